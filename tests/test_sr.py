"""sr.py: parity, invariants, learning; the command line, and files that go wrong."""
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import conftest
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, TINY, same, state
from PIL import Image, ImageCms, ImageFilter, ImageOps

import sr
from common import VGGFeatures

def leaves(n, side=96, seed=3):
    return [partial(sr.dead_leaves, seed, i, side) for i in range(n)]


def pairs_of(photos, scale=2):
    return [sr.make_pair(photo(), scale) for photo in photos]


def bicubic(scale=2):
    return partial(ImageOps.scale, factor=scale)


def trained_on(photos, steps, lr=3e-3, net=None, loss=F.l1_loss, shuffle=False):
    """A small net after `steps` of Adam, without the command line around it."""
    torch.manual_seed(0)
    net = net or sr.SrResnet(2, 16, 2)
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    crops = sr.Crops(photos, 48, 2)
    for step in range(steps):
        batch = [crops[8 * step + i] for i in range(8)]
        low, high = (torch.stack(images) for images in zip(*batch, strict=True))
        optimizer.zero_grad()
        loss(net(low), high.roll(1, 0) if shuffle else high).backward()
        optimizer.step()
    return net


def gain(net, pairs):
    """Mean dB over bicubic."""
    net = partial(sr.enlarge, net)
    return (sr.evaluate(net, pairs) - sr.evaluate(bicubic(), pairs))[:, 0].mean()


# ---- metrics, against plain numpy
def numpy_luma(image, border):
    r, g, b = np.moveaxis(np.asarray(image, float), 2, 0)
    y = 16 + (65.481 * r + 128.553 * g + 24.966 * b) / 255
    return y[border:y.shape[0] - border, border:y.shape[1] - border]


def numpy_ssim(a, b):
    """Window by window, as the formula is written (Wang et al. 2004)."""
    t = np.arange(11) - 5
    w = np.exp(-(t[:, None]**2 + t[None]**2) / (2 * 1.5**2))
    w /= w.sum()
    scores = []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            x, y = a[i:i + 11, j:j + 11], b[i:i + 11, j:j + 11]
            mx, my = (w * x).sum(), (w * y).sum()
            vx, vy = (w * (x - mx)**2).sum(), (w * (y - my)**2).sum()
            cov = (w * (x - mx) * (y - my)).sum()
            c1, c2 = 6.5025, 58.5225
            scores.append((2 * mx * my + c1) * (2 * cov + c2) /
                          ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return np.mean(scores)


@pytest.mark.parametrize("border", [2, 4])
def test_psnr_ssim_and_sharpness_against_numpy(border):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 256, (26, 22, 3)).astype(np.uint8)
    image = (truth + rng.normal(0, 20, truth.shape)).clip(0, 255).astype(np.uint8)
    a, b = (numpy_luma(t, border) for t in (image, truth))
    got = sr.measure(Image.fromarray(image), Image.fromarray(truth), border).tolist()
    assert got[0] == pytest.approx(10 * np.log10(255**2 / ((a - b)**2).mean()), abs=1e-3)
    assert got[1] == pytest.approx(numpy_ssim(a, b), abs=1e-4)
    slope = [np.abs(np.diff(t, axis=0)).mean() + np.abs(np.diff(t, axis=1)).mean() for t in (a, b)]
    assert got[2] == pytest.approx(slope[0] / slope[1], abs=1e-4)


def test_a_blurred_picture_is_less_sharp():
    photo = sr.dead_leaves(3, 0, 96)
    blurred = photo.filter(ImageFilter.GaussianBlur(2))
    assert sr.measure(blurred, photo, 4)[2] < 0.95
    assert sr.measure(photo, photo, 4)[2] == 1


def test_pictures_of_one_colour_are_left_out_of_the_mean(capsys):
    flat = Image.new("RGB", (48, 48), "red")
    pairs = [sr.make_pair(flat, 2), *pairs_of(leaves(2, 48))]
    scores = sr.compare({"bicubic": bicubic()}, pairs)["bicubic"]
    assert scores[0, [0, 2]].isnan().all() and scores[1:].isfinite().all()
    out = capsys.readouterr().out
    assert f"{scores[1:, 0].mean():.4f}" in out and "of one colour: left out" in out


def test_the_mean_is_of_decibels_not_of_errors():
    pairs = pairs_of(leaves(4))
    scores = sr.evaluate(bicubic(), pairs)[:, 0]
    one_by_one = [sr.evaluate(bicubic(), [pair])[0, 0] for pair in pairs]
    assert torch.equal(scores, torch.stack(one_by_one))
    pooled = -10 * torch.log10((10 ** (-scores / 10)).mean())
    assert abs(scores.mean() - pooled) > 0.1  # the trap


# ---- loss
def test_feature_loss_against_a_loop():
    vgg = VGGFeatures(sr.FEATURE_WEIGHTS, "random").double()
    out = torch.rand(2, 3, 16, 20, dtype=torch.float64, requires_grad=True)
    y = torch.rand(2, 3, 16, 20, dtype=torch.float64, requires_grad=True)
    want = (out - y).abs().mean()
    for layer, weight in (("relu1_2", 0.2), ("relu2_2", 0.7), ("relu3_3", 0.1)):
        a, b = vgg(out)[layer], vgg(y)[layer].detach()
        want = want + weight * (a - b).abs().sum() / b.abs().sum()
    got = sr.feature_loss(vgg, out, y)
    torch.testing.assert_close(got, want)
    grads = [torch.autograd.grad(loss, out, retain_graph=True)[0] for loss in (got, want)]
    torch.testing.assert_close(*grads)


def test_pixel_losses_and_two_equally_likely_edges():
    """What the comment above pixel_loss says, in numbers."""
    edges = torch.tensor([0.0, 1.0])
    squared = [F.mse_loss(torch.full((2,), guess), edges).item() for guess in (0.0, 0.5, 1.0)]
    absolute = [sr.pixel_loss(torch.full((2,), guess), edges).item() for guess in (0.0, 0.5, 1.0)]
    assert squared == [0.5, 0.25, 0.5] and absolute == [0.5, 0.5, 0.5]


# ---- data
def test_sample_n_is_a_function_of_seed_and_n(photos):
    found = sr.find_photos(photos, 32)
    crops = sr.Crops(found, 32, 2)
    first = [crops[n][1] for n in (5, 900, 5)]
    assert torch.equal(first[0], first[2]) and not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], sr.Crops(found, 32, 2, seed=1)[5][1])


def test_low_turns_along_with_high():
    crops = sr.Crops(leaves(3), 32, 2)
    for n in range(32):
        low, high = crops[n]
        assert low.shape == (3, 16, 16) and high.shape == (3, 32, 32)
        pixels = (high * 255).round().byte().permute(1, 2, 0).numpy()
        assert torch.equal(low, sr.to_tensor(sr.make_pair(Image.fromarray(pixels), 2)[0]))
    ramp = np.zeros((32, 32, 3), np.uint8) + np.arange(32, dtype=np.uint8)[:, None, None] * 7
    turned = sr.Crops([lambda: Image.fromarray(ramp)], 32, 2)
    assert len({tuple(turned[n][1][0, [0, 0, -1], [0, -1, 0]].tolist()) for n in range(99)}) == 4


def test_low_is_reduced_by_pillow():
    photo = sr.dead_leaves(3, 0, 95)
    low, high = sr.make_pair(photo, 4)
    assert low.size == (23, 23) and high.size == (92, 92)
    assert np.array_equal(low, photo.crop((0, 0, 92, 92)).resize((23, 23), Image.BICUBIC))
    _, middle = sr.make_pair(photo, 4, side=40)
    assert np.array_equal(middle, photo.crop((27, 27, 67, 67)))


def test_dead_leaves_have_the_spectrum_of_photos():
    """Power falls about as 1/f^2, as in photos; the twin, white noise, has a flat spectrum."""
    def slope(images):
        power = np.mean([np.abs(np.fft.fft2(i.mean(2) - i.mean()))**2 for i in images], 0)
        f = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128)))
        use = (f > 0.02) & (f < 0.2)
        return np.polyfit(np.log(f[use]), np.log(power[use]), 1)[0]
    rng = np.random.default_rng(0)
    assert -3.2 < slope([np.asarray(photo(), float) for photo in leaves(24, 128)]) < -1.8
    assert abs(slope(rng.integers(0, 256, (24, 128, 128, 3)).astype(float))) < 0.3
    assert np.array_equal(sr.dead_leaves(3, 1, 64), sr.dead_leaves.__wrapped__(3, 1, 64))


def test_every_kind_of_file_is_read_or_skipped_and_counted(tmp_path, capsys):
    folder = tmp_path / "mixed"
    folder.mkdir()
    photo = sr.dead_leaves(3, 0, 64)
    photo.save(folder / "rgb.jpg")
    photo.convert("L").save(folder / "grey.jpg")
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    photo.convert("P").save(folder / "palette.png")
    photo.convert("1").save(folder / "bits.tif")
    Image.fromarray(np.full((64, 64), 257 * 100, np.uint16)).save(folder / "deep.png")
    photo.resize((20, 64)).save(folder / "small.bmp")
    Image.fromarray(np.random.rand(64, 64).astype(np.float32)).save(folder / "float.tif")
    Image.fromarray(np.full((64, 64), 70000, np.int32)).save(folder / "int.tif")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "broken.jpg").write_bytes((folder / "rgb.jpg").read_bytes()[:700])
    (folder / "notes.txt").write_text("not a photo")
    found = sr.find_photos(str(folder), 32)
    out = capsys.readouterr().out
    assert "6 photos, 6 files skipped" in out and "broken.jpg" in out
    assert all(photo().mode == "RGB" and photo().size == (64, 64) for photo in found)
    assert (np.asarray(sr.open_image(str(folder / "deep.png"))) == 100).all()  # not clipped
    for name in ("float.tif", "int.tif"):
        with pytest.raises(OSError, match=f"{name}.*32 bits"):
            sr.open_image(str(folder / name))


def test_transparent_pixels_become_white():
    """A coloured disc on transparent black: no dark rim, whatever lies under alpha 0."""
    alpha = Image.new("L", (64, 64))
    alpha.paste(255, (16, 16, 48, 48))
    figure = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    figure.paste((200, 80, 40, 255), mask=alpha)
    figure.save("cutout.png")
    image = sr.open_image("cutout.png")
    assert image.mode == "RGB" and image.getpixel((0, 0)) == (255, 255, 255)
    low = image.resize((16, 16), Image.BICUBIC)
    assert np.asarray(low).min(axis=(0, 1))[0] >= 190  # red is 200 or 255, and never darker


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_orientation_is_applied(suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    ramp = Image.linear_gradient("L").resize((40, 20))
    ramp.save(f"turned.{suffix}", exif=exif)
    assert sr.open_image(f"turned.{suffix}").size == (20, 40)
    error = np.asarray(sr.open_image(f"turned.{suffix}"), int)[..., 0] - np.rot90(ramp, -1)
    assert np.abs(error).mean() < 3


def test_links_are_followed_and_the_git_folder_is_not(photos, capsys):
    (photos / ".git").mkdir()
    (photos / ".git" / "index").write_bytes(b"git")
    Path("linked").mkdir()
    os.symlink(photos, "linked/there", target_is_directory=True)
    sr.find_photos("linked", 32)
    assert "24 photos, 0 files skipped" in capsys.readouterr().out


# ---- model
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_the_untrained_net_is_pillows_bicubic(scale):
    net = sr.SrResnet(scale, 8, 1)
    low, _ = sr.make_pair(sr.dead_leaves(3, 0, 96), scale)
    assert net(sr.to_tensor(low)[None]).shape[2:] == (low.height * scale, low.width * scale)
    got, want = (np.asarray(f(low), int) for f in (partial(sr.enlarge, net), bicubic(scale)))
    # Pillow rounds and clips between its two passes: few pixels differ by more than rounding.
    assert (np.abs(got - want) > 1).mean() < 0.005
    torch.nn.init.normal_(net.tail.weight)  # the twin: the lesson's start, at noise
    assert np.abs(np.asarray(sr.enlarge(net, low), int) - want).max() > 20


def test_icnr_leaves_no_checkerboard_before_the_last_conv():
    net, x = sr.SrResnet(4, 8, 1), torch.rand(1, 3, 9, 7)

    def is_nearest():
        features = net.upsample[:2](net.body(x))
        first = features[..., ::2, ::2]
        return torch.equal(features, first.repeat_interleave(2, 2).repeat_interleave(2, 3))

    assert is_nearest()
    torch.nn.init.kaiming_normal_(net.upsample[0].weight)  # the twin
    assert not is_nearest()


@pytest.mark.parametrize("scale, blocks", [(2, 3), (4, 1), (8, 2)])
def test_tiles_equal_one_pass(scale, blocks):
    net = sr.SrResnet(scale, 8, blocks)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.15)  # so that every pixel in reach matters
    image = sr.dead_leaves(3, 0, 61).crop((0, 0, 53, 61))
    whole = np.asarray(sr.enlarge(net, image, tile=99), int)
    assert np.abs(np.asarray(sr.enlarge(net, image, tile=17), int) - whole).max() <= 1
    net.margin = 1  # the twin: too narrow a margin leaves seams
    assert np.abs(np.asarray(sr.enlarge(net, image, tile=17), int) - whole).max() > 1


def test_enlarging_leaves_the_net_and_the_image_alone():
    net, photo = sr.SrResnet(2, 8, 1), sr.dead_leaves(3, 0, 48)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    pixels = np.array(photo)
    sr.evaluate(partial(sr.enlarge, net), [sr.make_pair(photo, 2)])
    assert np.array_equal(photo, pixels)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


# ---- learning
def test_it_beats_bicubic_on_images_it_has_not_seen():
    pairs = pairs_of(leaves(6, 96, seed=11))
    learned = gain(trained_on(leaves(12), 60), pairs)
    assert learned > 0.2
    misled = gain(trained_on(leaves(12), 60, shuffle=True), pairs)  # pictures that do not belong
    assert misled < learned - 0.4


def test_it_overfits_two_images():
    pairs = pairs_of(leaves(2, 48))
    net = sr.SrResnet(2, 16, 2)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    low, high = (torch.stack([sr.to_tensor(image) for image in images])
                 for images in zip(*pairs, strict=True))
    for _ in range(200):
        optimizer.zero_grad()
        F.l1_loss(net(low), high).backward()
        optimizer.step()
    assert gain(net, pairs) > 3


# ---- the loop
def run(out, *flags):
    sr.main(["--out", str(out), *TINY, *map(str, flags)])


def test_a_run_from_the_first_line_to_the_figure(photos, capsys):
    run("out", "--data", photos, "--feature-steps", 2, "--weights", "random")
    out = capsys.readouterr().out
    assert "a batch: 2 of low, high (3, 8, 8) (3, 32, 32)" in out
    assert out.index("bicubic") < out.index("eval      2/4")  # the baseline comes first
    for name in ("bicubic", "pixel loss", "feature loss"):
        row = [line for line in out.splitlines() if line.startswith(name)][-1]
        assert len([float(value) for value in row.split()[-3:]]) == 3
    assert {p.name for p in Path("out").iterdir()} == {"pixel.pt", "feature.pt", "log.csv",
                                                       "figure.png"}
    with Image.open("out/figure.png") as figure:
        assert figure.width == 264 * 5  # low, bicubic, pixel, feature, truth
    log = np.genfromtxt("out/log.csv", delimiter=",", names=True, dtype=None, encoding=None)
    assert log.dtype.names == ("stage", "step", "loss", "psnr")
    assert log["step"].tolist() == [2, 4, 2] and np.isfinite(log["psnr"]).all()


def test_checkpoint_is_one_dict_of_plain_types(trained):
    checkpoint = state(trained)
    assert sorted(checkpoint) == ["args", "config", "model", "optimizer", "step"]
    assert checkpoint["step"] == 4
    assert checkpoint["config"] == {"scale": 4, "nf": 8, "blocks": 1}
    assert not any(k.startswith("module.") for k in checkpoint["model"])
    assert not list(trained.parent.glob("*.tmp"))


def stop_at(monkeypatch, step):
    """Ctrl-C within that step of Adam."""
    real, done = torch.optim.Adam.step, []

    def press(self, *args):
        done.append(1)
        if len(done) == step:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", press)


@pytest.mark.parametrize("step, stage", [(4, "pixel"), (8, "feature")])
def test_stopped_and_resumed_is_never_stopped(photos, monkeypatch, step, stage):
    flags = ["--data", photos, "--feature-steps", 4, "--weights", "random"]
    run("whole", *flags)
    with monkeypatch.context() as context:
        stop_at(context, step)
        with pytest.raises(KeyboardInterrupt):
            run("halves", *flags)
    assert state(f"halves/{stage}.pt")["step"] == 2
    run("halves", *flags, "--resume")
    for name in ("pixel.pt", "feature.pt"):
        assert state(f"halves/{name}")["step"] == 4
        assert same(state(f"whole/{name}"), state(f"halves/{name}"))
    assert not same(state("whole/feature.pt"), state("whole/pixel.pt"))


def test_two_ranks_are_one_with_twice_the_batch(two_ranks):
    flags = ["--data", "data", *TINY]
    assert two_ranks.count("eval      4/4") == 1  # rank 0 speaks for both
    sr.main(["--out", "one", *flags, "--batch-size", "4"])
    sr.main(["--out", "alone", *flags])  # the twin: half of the crops
    two, one, alone = (torch.cat([v.flatten() for v in state(f"{name}/pixel.pt")["model"].values()])
                       for name in ("two", "one", "alone"))
    assert (two - one).norm() < 0.2 * (alone - one).norm()


def test_what_is_not_finite_is_never_saved(photos, monkeypatch):
    good = sr.pixel_loss
    calls = []

    def loss(out, y):
        calls.append(1)
        return good(out, y) * (float("nan") if len(calls) == 3 else 1)

    monkeypatch.setattr(sr, "pixel_loss", loss)
    with pytest.raises(SystemExit, match="gradient is nan.*lower --lr.*out/pixel.pt"):
        run("out", "--data", photos)
    assert state("out/pixel.pt")["step"] == 2  # the last good one


def test_an_earlier_run_is_renamed_whole(photos, capsys):
    run("out", "--data", photos)
    first = state("out/pixel.pt")
    run("out", "--data", photos, "--seed", 1)
    kept = [path for path in Path().iterdir() if path.name.startswith("out-")]
    assert len(kept) == 1 and f"earlier run kept as {kept[0]}" in capsys.readouterr().out
    assert {p.name for p in kept[0].iterdir()} == {"pixel.pt", "log.csv", "figure.png"}
    assert same(state(kept[0] / "pixel.pt"), first) and not same(state("out/pixel.pt"), first)


def test_from_x2_to_x4(photos, capsys):
    run("x2", "--data", photos, "--scale", 2)
    capsys.readouterr()
    run("x4", "--data", photos, "--init", "x2/pixel.pt", "--freeze")
    assert "new layers: ['upsample.2.weight']" in capsys.readouterr().out
    x2, x4 = state("x2/pixel.pt")["model"], state("x4/pixel.pt")["model"]
    for name, value in x2.items():  # frozen: only what enlarges has moved
        assert torch.equal(value, x4[name]) == name.startswith("body"), name
    run("thawed", "--data", photos, "--init", "x4/pixel.pt")  # its twin
    assert not torch.equal(x4["body.0.weight"], state("thawed/pixel.pt")["model"]["body.0.weight"])


def test_flags_that_change_the_result(photos):
    def weights(*flags):
        out = "_".join(["out", *flags])
        run(out, "--data", photos, *flags)
        return state(f"{out}/pixel.pt")["model"]["tail.weight"]
    base = weights()
    for flags in (["--lr", "1e-4"], ["--seed", "2"], ["--batch-size", "3"], ["--size", "40"],
                  ["--steps", "3"]):
        assert not torch.equal(base, weights(*flags)), flags


# ---- the command line
def fails(capsys, *argv):
    return conftest.fails(sr, capsys, *argv)


def test_default_run_without_data_or_network(capsys, monkeypatch):
    monkeypatch.setattr(sr, "dead_leaves", lambda seed, number: sr.Image.effect_noise(
        (64, 64), 50).convert("RGB"))  # drawn faster
    sr.main([*TINY, "--feature-steps", "2"])
    out = capsys.readouterr().out
    assert "no imagenet_sample here" in out
    assert "git clone https://github.com/EliSchwartz/imagenet-sample-images" in out
    assert "put the file at" in out and "--weights random" in out  # no VGG: stage 2 is left out
    assert "pixel loss" in out and "feature loss" not in out
    assert sorted(p.name for p in Path("out/sr").iterdir()) == ["figure.png", "log.csv", "pixel.pt"]


def test_test_measures_a_folder(photos, trained, capsys):
    sr.main(["--test", str(photos), "--init", str(trained)])
    out = capsys.readouterr().out
    assert "24 photos" in out
    want = sr.evaluate(bicubic(4), pairs_of(sr.find_photos(str(photos), 32), 4)).nanmean(0)
    assert f"bicubic      {want[0]:9.4f} {want[1]:9.4f} {want[2]:9.4f}" in out


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "LA"])
def test_apply_to_pictures_of_every_mode(trained, mode):
    photo = sr.dead_leaves(1, 0, 33).crop((0, 0, 33, 20))
    photo.convert(mode).save("in.png")
    sr.main(["--apply", "in.png", "--out", "big", "--init", str(trained), "--device", "cpu"])
    with Image.open("big/in_x4.png") as large:
        assert large.size == (132, 80) and large.mode == "RGB"
        small = np.asarray(large.resize((33, 20), Image.BICUBIC), int)
        assert np.abs(small - np.asarray(sr.open_image("in.png"))).mean() < 6


def test_apply_keeps_the_colour_profile(trained):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    sr.dead_leaves(1, 0, 32).save("wide.jpg", icc_profile=profile)
    sr.main(["--apply", "wide.jpg", "--init", str(trained)])
    with Image.open("out/sr/wide_x4.png") as large:
        assert large.info["icc_profile"] == profile


def test_a_bad_file_among_many_does_not_stop_the_others(capsys, trained, photos):
    Path("notes.jpg").write_text("no photo")
    files = ["notes.jpg", "gone.jpg", photos / "01.png", photos / "02.png"]
    with pytest.raises(SystemExit) as stop:
        sr.main(["--apply", *map(str, files), "--init", str(trained)])
    assert "cannot read notes.jpg" in stop.value.code and "gone.jpg" in stop.value.code
    assert Path("out/sr/01_x4.png").exists() and Path("out/sr/02_x4.png").exists()
    before = Path("out/sr/01_x4.png").read_bytes()
    assert "01_x4.png exists" in fails(capsys, "--apply", photos / "01.png", "--init", trained)
    assert Path("out/sr/01_x4.png").read_bytes() == before  # never overwritten


def test_a_result_is_whole_or_not_there(capsys, trained, photos, monkeypatch):
    def full(self, path, *args, **kwargs):
        Path(path).write_bytes(b"half a picture")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert "No space left" in fails(capsys, "--apply", photos / "01.png", "--init", trained)
    assert not Path("out/sr/01_x4.png").exists()


def test_folders_that_do_not_serve(capsys, tmp_path, photos):
    assert "no such folder: nowhere" in fails(capsys, "--data", "nowhere", *TINY)
    (tmp_path / "one").mkdir()
    assert "takes 2 usable photos" in fails(capsys, "--data", tmp_path / "one", *TINY)
    (tmp_path / "one" / "a.png").write_bytes((photos / "01.png").read_bytes())
    assert "takes 2 usable photos" in fails(capsys, "--data", tmp_path / "one", *TINY)
    assert "takes 2" in fails(capsys, "--data", photos, *TINY, "--size", 128)
    assert "side below 128 px" in capsys.readouterr().out
    assert not Path("out/sr").exists()


def test_words_that_are_no_choice(capsys):
    for flag, value in (("--scale", 3), ("--weights", "best"), ("--steps", "many"),
                        ("--device", "abacus"), ("--st", 4)):
        assert flag in fails(capsys, flag, value)  # --st: nothing is abbreviated


def test_checkpoints_that_do_not_serve(capsys, trained, photos):
    torch.save({"model": {}}, "plain.pt")
    style = state(trained)
    style["config"] = {"nf": 16}
    torch.save(style, "style.pt")
    wrapped = state(trained)
    wrapped["model"] = {f"module.{name}": value for name, value in wrapped["model"].items()}
    torch.save(wrapped, "wrapped.pt")
    torch.save(sr.SrResnet(2, 8, 1), "pickled.pt")
    for name in ("gone.pt", photos / "01.png", "plain.pt", "style.pt", "wrapped.pt", "pickled.pt"):
        sentence = fails(capsys, "--apply", photos / "01.png", "--init", name)
        assert f"{name} is no checkpoint" in sentence
    assert "style.pt is no checkpoint" in fails(capsys, "--data", photos, *TINY, "--init",
                                                "style.pt")
    for flags in (["--init", trained], ["--resume"]):  # of another size
        sentence = fails(capsys, "--data", photos, *TINY, "--nf", 12, *flags)
        assert "is no checkpoint" in sentence and "size mismatch" in sentence


def in_a_shell(*argv, **env):
    return subprocess.run([sys.executable, str(ROOT / "sr.py"), *map(str, argv)], text=True,
                          capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1", **env})


def test_the_systems_errors_are_one_sentence(photos):
    Path("file").write_text("")
    done = in_a_shell("--data", photos, *TINY, "--out", "file/deeper")
    assert done.returncode == 1 and "file/deeper" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_cannot_be_printed(trained, photos):
    name = os.fsdecode(b"caf\xe9.png")
    os.rename(photos / "01.png", name)
    done = in_a_shell("--apply", name, "--init", trained, "--out", "odd", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert len(list(Path("odd").iterdir())) == 1


def test_help_names_every_flag_and_default(capsys):
    with pytest.raises(SystemExit):
        sr.main(["--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert sr.__doc__.split("\n")[0] in out and "(default: imagenet_sample)" in out


# ---- real data, opt-in
@pytest.mark.parametrize("scale, want", [(2, 33.66), (4, 28.42)])
def test_set5_bicubic_reads_the_literatures_value(lesson_data, scale, want):
    pairs = pairs_of(sr.find_photos(str(lesson_data / "Set5"), 32), scale)
    assert sr.evaluate(bicubic(scale), pairs)[:, 0].mean() == pytest.approx(want, abs=0.03)


def test_feature_loss_lowers_the_feature_distance(lesson_data, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(lesson_data / "torch_home"))
    vgg = VGGFeatures(sr.FEATURE_WEIGHTS)
    start = trained_on(leaves(12), 40).state_dict()
    distances = []
    for loss in (F.l1_loss, partial(sr.feature_loss, vgg)):
        net = sr.SrResnet(2, 16, 2)
        net.load_state_dict(start)
        trained_on(leaves(12), 30, 1e-3, net, loss)
        total = 0
        for low, high in pairs_of(leaves(4, 96, seed=11)):
            with torch.no_grad():
                a, b = (vgg(x[None])["relu3_3"] for x in (net(sr.to_tensor(low)[None])[0],
                                                          sr.to_tensor(high)))
            total += ((a - b).abs().sum() / b.abs().sum()).item()
        distances.append(total)
    assert distances[1] < distances[0]
