"""sr.py: parity, invariants, learning, quality; the command line, and files that go wrong."""
import os
import subprocess
import sys
from pathlib import Path

import conftest
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import PHOTOS, ROOT, TINY, same, small_photos, state, write
from PIL import Image, ImageCms, ImageFilter
from torch import nn

import sr
from common import VGGFeatures

def pairs_of(photos, scale=2):
    return [sr.make_pair(photo, scale) for photo in photos]


def bicubic(pairs):
    return [low.resize(high.size, Image.BICUBIC) for low, high in pairs]


def enlarged(net, pairs):
    return [sr.enlarge(net, low) for low, _ in pairs]


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
    better = sr.evaluate(enlarged(net, pairs), pairs) - sr.evaluate(bicubic(pairs), pairs)
    return better[:, 0].mean()


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
    photo = small_photos()[0]
    blurred = photo.filter(ImageFilter.GaussianBlur(2))
    assert sr.measure(blurred, photo, 4)[2] < 0.95
    assert sr.measure(photo, photo, 4)[2] == 1


def test_a_picture_of_one_colour_leaves_the_mean_of_every_method(capsys):
    flat = Image.new("RGB", (48, 48), "red")
    off = Image.new("RGB", (48, 48), (254, 0, 0))  # a network is never quite flat there
    pairs = pairs_of(small_photos()[:3])
    with_flat = [*pairs, sr.make_pair(flat, 2)]
    plain = sr.compare({"bicubic": bicubic(pairs), "net": bicubic(pairs)}, pairs)
    table = capsys.readouterr().out.splitlines()[1:]
    scores = sr.compare({"bicubic": bicubic(with_flat), "net": [*bicubic(pairs), off]}, with_flat)
    assert capsys.readouterr().out.splitlines()[1:] == table
    for name in plain:
        assert scores[name][3].isnan().all() and torch.equal(scores[name][:3], plain[name])


def test_the_mean_is_of_decibels_not_of_errors():
    pairs = pairs_of(small_photos()[:4])
    scores = sr.evaluate(bicubic(pairs), pairs)[:, 0]
    one_by_one = [sr.evaluate(bicubic([pair]), [pair])[0, 0] for pair in pairs]
    assert torch.equal(scores, torch.stack(one_by_one))
    pooled = -10 * torch.log10((10 ** (-scores / 10)).mean())
    assert abs(scores.mean() - pooled) > 0.1  # the trap


# ---- loss
def test_feature_loss_against_a_loop():
    vgg = VGGFeatures(sr.FEATURE_WEIGHTS).double()
    out = torch.rand(2, 3, 16, 20, dtype=torch.float64, requires_grad=True)
    y = torch.rand(2, 3, 16, 20, dtype=torch.float64, requires_grad=True)
    want = 0.3 * (out - y).abs().mean()
    for layer, weight in (("relu1_2", 0.2), ("relu2_2", 0.7), ("relu3_3", 0.1)):
        a, b = vgg(out)[layer], vgg(y)[layer].detach()
        want = want + weight * (a - b).abs().sum() / b.abs().sum()
    down, right = out[..., 1:, :] - out[..., :-1, :], out[..., 1:] - out[..., :-1]
    want = want + 2 * (down.abs().mean() + right.abs().mean())
    got = sr.feature_loss(vgg, out, y, tv=2, pixel_weight=0.3)
    torch.testing.assert_close(got, want)
    grads = [torch.autograd.grad(loss, out, retain_graph=True)[0] for loss in (got, want)]
    torch.testing.assert_close(*grads)
    assert torch.autograd.grad(got, y, allow_unused=True)[0].abs().sum() < 1  # of pixels alone


def test_pixel_losses_and_two_equally_likely_edges():
    """What the comment above FEATURE_WEIGHTS says, in numbers."""
    edges = torch.tensor([0.0, 1.0])
    squared = [F.mse_loss(torch.full((2,), guess), edges).item() for guess in (0.0, 0.5, 1.0)]
    absolute = [F.l1_loss(torch.full((2,), guess), edges).item() for guess in (0.0, 0.5, 1.0)]
    assert squared == [0.5, 0.25, 0.5] and absolute == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("layer, pixels", [("relu1_2", 5), ("relu2_2", 14), ("relu3_3", 40)])
def test_what_a_layer_sees(layer, pixels):
    """As the comment says: so far apart are the pixels that one feature depends on."""
    vgg = VGGFeatures([layer])
    for p in vgg.parameters():
        p.abs_()  # no ReLU is off
    x = torch.ones(1, 3, 96, 96, requires_grad=True)
    features = vgg(x)[layer]
    features[..., features.shape[2] // 2, features.shape[3] // 2].sum().backward()
    seen = x.grad.abs().sum((0, 1, 2)).nonzero()
    assert seen.max() - seen.min() + 1 == pixels


# ---- data
def test_sample_n_is_a_function_of_seed_and_n(photos):
    found = sr.find_photos(str(photos), Path("out"))
    crops = sr.Crops(found, 32, 2)
    first = [crops[n][1] for n in (5, 900, 5)]
    assert torch.equal(first[0], first[2]) and not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], sr.Crops(found, 32, 2, seed=1)[5][1])


def test_low_turns_along_with_high():
    crops = sr.Crops(write(small_photos()[:3], "photos"), 32, 2)
    for n in range(32):
        low, high = crops[n]
        assert low.shape == (3, 16, 16) and high.shape == (3, 32, 32)
        pixels = (high * 255).round().byte().permute(1, 2, 0).numpy()
        assert torch.equal(low, sr.to_tensor(sr.make_pair(Image.fromarray(pixels), 2)[0]))
    ramp = np.zeros((32, 32, 3), np.uint8) + np.arange(32, dtype=np.uint8)[:, None, None] * 7
    turned = sr.Crops(write([Image.fromarray(ramp)], "ramp"), 32, 2)
    assert len({tuple(turned[n][1][0, [0, 0, -1], [0, -1, 0]].tolist()) for n in range(99)}) == 4


def test_low_is_reduced_by_pillow():
    photo = small_photos()[0].crop((0, 0, 95, 95))
    low, high = sr.make_pair(photo, 4)
    assert low.size == (23, 23) and high.size == (92, 92)
    assert np.array_equal(low, photo.crop((0, 0, 92, 92)).resize((23, 23), Image.BICUBIC))
    _, middle = sr.make_pair(photo, 4, side=40)
    assert np.array_equal(middle, photo.crop((27, 27, 67, 67)))


def test_large_photos_are_kept_reduced_and_small_ones_fill_a_crop():
    large, small, usual = write([Image.new("RGB", size, "red") for size in
                                 ((2000, 1500), (20, 30), (400, 300))], "sizes")
    assert sr.open_small(large, 64).size == (683, 512)
    assert sr.open_small(large, 600).size == (800, 600)
    assert sr.open_small(small, 64).size == (64, 96)
    assert sr.open_small(usual, 64).size == (400, 300)
    assert sr.Crops([small], 64, 4)[0][1].shape == (3, 64, 64)


def test_files_are_known_by_their_names(photos, capsys):
    for name in ("notes.txt", "._00.jpg", ".DS_Store", "mask.json"):
        (photos / name).write_bytes(b"no photo")
    (photos / ".git").mkdir()
    (photos / ".git/thumb.png").write_bytes((photos / "01.png").read_bytes())
    (photos / "LOUD.PNG").write_bytes((photos / "01.png").read_bytes())
    names = [Path(path).name for path in sr.find_photos(str(photos), Path("out"))]
    assert len(names) == 25 and "LOUD.PNG" in names and "00.jpg" in names


def test_links_are_followed_but_no_photo_comes_twice(photos):
    os.symlink(photos, photos / "again", target_is_directory=True)  # a circle
    Path("linked").mkdir()
    os.symlink(photos, "linked/there", target_is_directory=True)
    os.symlink(photos / "01.png", "linked/one.png")
    assert len(sr.find_photos("linked", Path("out"))) == 24


def test_nothing_that_a_run_wrote_is_learned_from(photos):
    for name in ("runs/sr", "runs/sr-20261127-120000", "runs/sr-photos"):
        (photos / name).mkdir(parents=True)
        (photos / name / "figure.png").write_bytes((photos / "01.png").read_bytes())
    found = sr.find_photos(str(photos), photos / "runs/sr")
    assert [path for path in found if "figure" in path] == [f"{photos}/runs/sr-photos/figure.png"]


def test_every_kind_of_picture_is_read_or_refused_by_name():
    photo = small_photos()[0].crop((0, 0, 64, 64))
    photo.save("rgb.jpg")
    photo.convert("L").save("grey.jpg")
    photo.convert("CMYK").save("cmyk.jpg")
    photo.convert("P").save("palette.png")
    photo.convert("1").save("bits.tif")
    Image.fromarray(np.full((64, 64), 257 * 100, np.uint16)).save("deep.png")
    Image.fromarray(np.random.rand(64, 64).astype(np.float32)).save("float.tif")
    Image.fromarray(np.full((64, 64), 70000, np.int32)).save("int.tif")
    for name in ("rgb.jpg", "grey.jpg", "cmyk.jpg", "palette.png", "bits.tif"):
        image = sr.open_image(name)
        assert image.mode == "RGB" and image.size == (64, 64)
        if name != "bits.tif":  # dithered
            assert np.abs(np.asarray(image, int) - np.asarray(photo, int)).mean() < 40
    for name in ("deep.png", "float.tif", "int.tif"):
        with pytest.raises(OSError, match=f"{name}.*more than 8 bits"):
            sr.open_image(name)
    Path("empty.jpg").write_bytes(b"")
    Path("broken.jpg").write_bytes(Path("rgb.jpg").read_bytes()[:700])
    for name in ("empty.jpg", "broken.jpg", "gone.jpg", "."):
        with pytest.raises(OSError, match=f"cannot read {name} as an image"):
            sr.open_image(name)


def test_a_photo_that_cannot_be_read_stops_the_run_by_its_name(photos, capsys):
    for path in photos.glob("*.png"):
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(OSError, match=r"cannot read .*\.png as an image"):
        run("out", "--data", photos)


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


# ---- model
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_the_untrained_net_is_pillows_bicubic(scale):
    net = sr.SrResnet(scale, 8, 1)
    photo = small_photos()[0].point(lambda value: 64 + value // 2)  # nothing to clip
    pair = sr.make_pair(photo, scale)
    low = pair[0]
    assert net(sr.to_tensor(low)[None]).shape[2:] == (low.height * scale, low.width * scale)
    got, want = (np.asarray(f([pair])[0], int) for f in (lambda p: enlarged(net, p), bicubic))
    # Pillow rounds and clips between its two passes: few pixels differ by more than rounding.
    assert (np.abs(got - want) > 1).mean() < 0.005
    nn.init.normal_(net.tail.weight)  # the twin: the course's start, at noise
    assert np.abs(np.asarray(sr.enlarge(net, low), int) - want).max() > 20


def test_icnr_leaves_no_checkerboard_before_the_last_conv():
    net, x = sr.SrResnet(4, 8, 1), torch.rand(1, 3, 9, 7)

    def is_nearest():
        features = net.upsample[:2](net.body(x))
        first = features[..., ::2, ::2]
        return torch.equal(features, first.repeat_interleave(2, 2).repeat_interleave(2, 3))

    assert is_nearest()
    nn.init.kaiming_normal_(net.upsample[0].weight)  # the twin
    assert not is_nearest()


@pytest.mark.parametrize("scale, blocks", [(2, 3), (4, 1), (8, 2)])
def test_tiles_equal_one_pass(scale, blocks):
    net = sr.SrResnet(scale, 8, blocks)
    for p in net.parameters():
        nn.init.normal_(p, std=0.15)  # so that every pixel in reach matters
    image = small_photos()[0].crop((0, 0, 53, 61))
    whole = np.asarray(sr.enlarge(net, image, tile=99), int)
    assert np.abs(np.asarray(sr.enlarge(net, image, tile=17), int) - whole).max() <= 1
    net.margin = 1  # the twin: too narrow a margin leaves seams
    assert np.abs(np.asarray(sr.enlarge(net, image, tile=17), int) - whole).max() > 1


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_the_margin_is_as_wide_as_the_net_sees(scale):
    net = sr.SrResnet(scale, 4, 2).double()
    for p in net.parameters():
        nn.init.uniform_(p, 0.1, 0.2)  # no ReLU is off
    x = torch.rand(1, 3, 48, 48, dtype=torch.float64, requires_grad=True)
    reach = []
    for i in range(scale):  # of the pixels of one low pixel
        grad = torch.autograd.grad(net(x)[0, 0, 24 * scale, 24 * scale + i], x)[0]
        columns = grad[0].abs().sum((0, 1)).nonzero()
        reach += [24 - columns.min().item(), columns.max().item() - 24]
    assert max(reach) == net.margin


def test_enlarging_leaves_the_net_and_the_image_alone():
    net, photo = sr.SrResnet(2, 8, 1), small_photos()[0]
    before = {k: v.clone() for k, v in net.state_dict().items()}
    pixels = np.array(photo)
    sr.enlarge(net, photo)
    assert np.array_equal(photo, pixels)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 60), (60, 4)])
def test_tiny_photos_are_enlarged(size):
    net = sr.SrResnet(4, 8, 1)
    assert sr.enlarge(net, Image.new("RGB", size)).size == (4 * size[0], 4 * size[1])


# ---- learning
def test_it_beats_bicubic_on_photos_it_has_not_seen():
    photos = small_photos()
    pairs = pairs_of(photos[18:])
    paths = write(photos[:18], "train")
    learned = gain(trained_on(paths, 60), pairs)
    assert learned > 0.15
    misled = gain(trained_on(paths, 60, shuffle=True), pairs)  # pictures that do not belong
    assert misled < learned - 0.4


def test_it_overfits_two_images():
    pairs = pairs_of([photo.crop((0, 0, 48, 48)) for photo in small_photos()[:2]])
    net = sr.SrResnet(2, 16, 2)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    low, high = (torch.stack([sr.to_tensor(image) for image in images])
                 for images in zip(*pairs, strict=True))
    for _ in range(200):
        optimizer.zero_grad()
        F.l1_loss(net(low), high).backward()
        optimizer.step()
    assert gain(net, pairs) > 3


def test_feature_loss_lowers_the_feature_distance():
    vgg = VGGFeatures(sr.FEATURE_WEIGHTS)
    photos = small_photos()
    paths = write(photos[:18], "train")
    start = trained_on(paths, 40).state_dict()
    distances = []
    for loss in (F.l1_loss, lambda out, high: sr.feature_loss(vgg, out, high)):
        net = sr.SrResnet(2, 16, 2)
        net.load_state_dict(start)
        trained_on(paths, 8, 1e-3, net, loss)
        total = 0
        for low, high in pairs_of(photos[18:]):
            with torch.no_grad():
                a, b = (vgg(x[None])["relu3_3"] for x in (net(sr.to_tensor(low)[None])[0],
                                                          sr.to_tensor(high)))
            total += ((a - b).abs().sum() / b.abs().sum()).item()
        distances.append(total)
    assert distances[1] < distances[0]


def test_the_rate_rises_for_a_tenth_and_the_last_step_still_moves():
    for steps in (1, 7, 40, 2000):
        rates = [sr.learning_rate(step, steps, 0.1) for step in range(1, steps + 1)]
        assert max(rates) > 0.095 and min(rates) > 0
        assert rates.index(max(rates)) < max(1, min(50, steps / 10))
        assert rates[-1] == 0.1 if steps == 1 else rates[-1] < 0.02


def test_bfloat16_learns_as_float32(monkeypatch):
    """Where bfloat16 is fast it is used; here it is switched on, fast or not."""
    kinds = set()

    def loss(out, high):
        kinds.add(torch.is_autocast_enabled("cpu"))
        return F.l1_loss(out, high)

    args = sr.get_args(["--device", "cpu", "--eval-every", "99"])
    paths = write(small_photos()[:18], "train")
    pairs = pairs_of(small_photos()[18:21])
    scores = []
    for fast in (False, True):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda fast=fast: {"avx512_bf16": fast})
        torch.manual_seed(0)
        net = sr.SrResnet(2, 16, 2)
        sr.train(net, loss, Path(f"{fast}.pt"), 50, 5e-3, sr.Crops(paths, 32, 2), pairs, args)
        assert all(p.dtype == torch.float32 for p in net.parameters())
        scores.append(gain(net, pairs))
    assert kinds == {False, True}
    assert scores[0] > 0.1 and abs(scores[0] - scores[1]) < 0.05


def test_the_net_of_the_repository_keeps_its_quality():
    """Photos that it has not seen: a change that breaks the field's numbers fails here."""
    net, checkpoint = sr.load_checkpoint(ROOT / "tests/data/nets/x4.pt")
    assert all(value.dtype == torch.float16 for value in checkpoint["model"].values())
    assert (ROOT / "tests/data/nets/x4.pt").stat().st_size < 600_000
    pairs = [sr.make_pair(sr.open_image(path), 4, side=128) for path in PHOTOS]
    ours, theirs = (sr.evaluate(images, pairs).mean(0) for images in
                    (enlarged(net, pairs), bicubic(pairs)))
    assert ours[0] > theirs[0] + QUALITY["psnr"] and ours[1] > theirs[1] + QUALITY["ssim"]


QUALITY = {"psnr": 1.25, "ssim": 0.06}  # measured: 1.296, 0.062


# ---- the loop
def run(out, *flags):
    sr.main(["--out", str(out), *TINY, *map(str, flags)])


def test_a_run_from_the_first_line_to_the_figure(photos, capsys):
    run("out", "--data", photos, "--feature-steps", 2)
    out = capsys.readouterr().out
    assert out.index("bicubic") < out.index("eval      2/4")  # the baseline comes first
    for name in ("bicubic", "pixel loss", "feature loss"):
        row = [line for line in out.splitlines() if line.startswith(name)][-1]
        assert len([float(value) for value in row.split()[-3:]]) == 3
    assert {p.name for p in Path("out").iterdir()} == {"pixel.pt", "feature.pt", "log.csv",
                                                       "figure.png"}
    with Image.open("out/figure.png") as figure:
        assert figure.size == (264 * 5, 552 * 2)  # low, bicubic, pixel, feature, truth
    log = np.genfromtxt("out/log.csv", delimiter=",", names=True, dtype=None, encoding=None)
    assert log.dtype.names == ("stage", "step", "loss", "psnr")
    assert log["step"].tolist() == [2, 4, 2] and np.isfinite(log["psnr"]).all()


@pytest.mark.parametrize("flat", [10, 30, 70])
def test_the_figures_last_row_gains_least_and_is_not_of_one_colour(monkeypatch, flat):
    photos = [photo for _ in range(4) for photo in small_photos()[:20]]
    photos[flat] = Image.new("RGB", (96, 96), "red")
    write(photos, "many")  # the numbers 10, 30, 50, 70 are held out
    drawn = []
    monkeypatch.setattr(sr, "draw_figure", lambda path, results, pairs, rows: drawn.append(
        (results, pairs, rows)))
    run("out", "--data", "many", "--steps", 8)
    results, pairs, rows = drawn[0]
    assert len(pairs) == 4
    gains = (sr.evaluate(results["pixel loss"], pairs) - sr.evaluate(results["bicubic"], pairs))
    assert len(set(rows)) == len(rows) and {0, 1} <= {*rows}
    assert gains[rows[-1], 0] == np.nanmin(gains[:, 0])


def test_the_enlarged_part_is_where_the_pixel_loss_gains_most():
    truth = Image.new("RGB", (256, 256), "white")
    wrong, right = truth.copy(), truth.copy()
    wrong.paste("black", (128, 64, 192, 128))
    low = truth.resize((64, 64))
    sr.draw_figure("f.png", {"bicubic": [wrong], "pixel loss": [right]}, [(low, truth)], [0])
    with Image.open("f.png") as figure:
        part = figure.crop((268, 288, 268 + 256, 288 + 256))
    assert part.getextrema() == ((0, 0), (0, 0), (0, 0))


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
    flags = ["--data", photos, "--feature-steps", 4, "--out", "run"]
    run("run", *flags)
    os.rename("run", "whole")
    with monkeypatch.context() as context:
        stop_at(context, step)
        with pytest.raises(KeyboardInterrupt):
            run("run", *flags)
    assert state(f"run/{stage}.pt")["step"] == 2
    run("run", *flags, "--resume")
    for name in ("pixel.pt", "feature.pt"):
        assert state(f"run/{name}")["step"] == 4
        assert same(state(f"whole/{name}"), state(f"run/{name}"))
    assert not same(state("whole/feature.pt"), state("whole/pixel.pt"))


@pytest.mark.parametrize("flag", [["--seed", 5], ["--batch-size", 3], ["--steps", 8], ["--lr", 1]])
def test_resume_takes_the_same_flags(photos, capsys, flag):
    run("out", "--data", photos)
    before = state("out/pixel.pt")
    with pytest.raises(SystemExit, match="--resume takes the flags of .*pixel.pt"):
        run("out", "--data", photos, *flag, "--resume")
    assert same(before, state("out/pixel.pt"))


def weights(path):
    return torch.cat([value.flatten() for value in state(path)["model"].values()])


def test_two_ranks_are_one_with_twice_the_batch(two_ranks):
    flags = ["--data", "data", *TINY, "--feature-steps", "2"]
    assert two_ranks.count("eval      4/4") == 2  # of two runs: rank 0 speaks for both
    sr.main(["--out", "one", *flags, "--batch-size", "4"])
    sr.main(["--out", "alone", *flags])  # the twin: half of the crops
    for stage in ("pixel", "feature"):
        two, one, alone = (weights(f"{name}/{stage}.pt") for name in ("two", "one", "alone"))
        assert (two - one).norm() < 0.2 * (alone - one).norm()


def test_two_ranks_with_a_frozen_body(two_ranks):
    x2, x4 = state("x2/pixel.pt")["model"], state("frozen/feature.pt")["model"]
    for name, value in x2.items():
        assert torch.equal(value, x4[name]) == name.startswith("body"), name


def test_workers_change_nothing(photos):
    run("none", "--data", photos)
    run("two", "--data", photos, "--workers", 2)
    assert same(state("none/pixel.pt"), state("two/pixel.pt"))


def test_what_is_not_finite_is_never_saved(photos, monkeypatch):
    good = F.l1_loss
    calls = []

    def loss(out, y):
        calls.append(1)
        return good(out, y) * (float("nan") if len(calls) == 3 else 1)

    monkeypatch.setattr(sr.F, "l1_loss", loss)
    with pytest.raises(SystemExit, match="step 3: the gradient is nan: lower --lr"):
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


def test_where_out_is_a_link_the_folder_is_renamed(photos):
    Path("disk/runs").mkdir(parents=True)
    os.symlink("disk/runs", "out", target_is_directory=True)
    for seed in (0, 1):
        run("out", "--data", photos, "--seed", seed)
    assert Path("out").is_symlink() and (Path("disk/runs") / "pixel.pt").exists()
    assert len([path for path in Path("disk").iterdir() if path.name.startswith("runs-20")]) == 1


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


def test_total_variation_makes_smoother_pictures(photos):
    scores = []
    for tv in (0, 5):
        run(f"tv{tv}", "--data", photos, "--feature-steps", 4, "--tv", tv)
        net = sr.load_checkpoint(f"tv{tv}/feature.pt")[0]
        pairs = pairs_of(small_photos()[:3], 4)
        scores.append(sr.evaluate(enlarged(net, pairs), pairs)[:, 2].mean())
    assert scores[1] < scores[0]


# ---- the command line
def fails(capsys, *argv):
    return conftest.fails(sr, capsys, *argv)


def test_default_run_without_data_or_network(capsys):
    sr.main([*TINY, "--feature-steps", "2"])
    out = capsys.readouterr().out
    assert "no imagenet_sample here" in out and "tests/data/photos" in out
    assert "git clone https://github.com/EliSchwartz/imagenet-sample-images" in out
    assert sorted(p.name for p in Path("out/sr").iterdir()) == ["feature.pt", "figure.png",
                                                                "log.csv", "pixel.pt"]


def test_weights_that_cannot_be_had_are_missed_before_training(photos):
    with pytest.raises(OSError, match="no weights from .*save it as .*or take .*included"):
        run("out", "--data", photos, "--weights", "torchvision", "--feature-steps", 2)
    assert not Path("out").exists()


def test_test_measures_a_folder(photos, trained, capsys):
    sr.main(["--test", str(photos), "--init", str(trained)])
    out = capsys.readouterr().out
    assert "24 photos" in out
    paths = sr.find_photos(str(photos), Path("out"))
    pairs = pairs_of([sr.open_image(path) for path in paths], 4)
    want = sr.evaluate(bicubic(pairs), pairs).nanmean(0)
    assert f"bicubic      {want[0]:9.4f} {want[1]:9.4f} {want[2]:9.4f}" in out


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "LA"])
def test_apply_to_pictures_of_every_mode(trained, mode):
    photo = small_photos()[0].crop((0, 0, 33, 20))
    (photo.quantize(64) if mode == "P" else photo.convert(mode)).save("in.png")
    sr.main(["--apply", "in.png", "--out", "big", "--init", str(trained), "--device", "cpu"])
    with Image.open("big/in_x4.png") as large:
        assert large.size == (132, 80) and large.mode == "RGB"
        small = np.asarray(large.resize((33, 20), Image.BICUBIC), int)
        assert np.abs(small - np.asarray(sr.open_image("in.png"))).mean() < 6


def test_apply_keeps_a_colour_profile_of_rgb_alone(trained):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo = small_photos()[0]
    photo.save("wide.jpg", icc_profile=srgb)
    photo.convert("CMYK").save("cmyk.jpg", icc_profile=srgb[:16] + b"CMYK" + srgb[20:])
    photo.convert("L").save("grey.jpg", icc_profile=srgb[:16] + b"GRAY" + srgb[20:])
    sr.main(["--apply", "wide.jpg", "cmyk.jpg", "grey.jpg", "--init", str(trained)])
    profiles = [Image.open(f"out/sr/{name}_x4.png").info.get("icc_profile")
                for name in ("wide", "cmyk", "grey")]
    assert profiles == [srgb, None, None]


def test_apply_keeps_no_photo_in_memory(trained, photos):
    sr.open_small.cache_clear()
    sr.main(["--apply", *map(str, photos.glob("*.png")), "--init", str(trained)])
    assert sr.open_small.cache_info().currsize == 0


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
    assert "nowhere has 0 photos, it takes 4" in fails(capsys, "--data", "nowhere", *TINY)
    (tmp_path / "few").mkdir()
    for i in range(3):
        (tmp_path / f"few/{i}.png").write_bytes((photos / "01.png").read_bytes())
    assert "few has 3 photos, it takes 4" in fails(capsys, "--data", tmp_path / "few", *TINY)
    assert not Path("out/sr").exists()


def test_of_four_photos_two_are_held_out(capsys):
    write(small_photos()[:4], "four")
    run("out", "--data", "four")
    assert "2 photos      PSNR" in capsys.readouterr().out


def test_values_that_are_no_choice(capsys):
    for flag, value in (("--scale", 3), ("--weights", "best"), ("--steps", "many"),
                        ("--device", "abacus"), ("--st", 4), ("--size", 31), ("--nf", 0),
                        ("--batch-size", 0), ("--eval-every", 0), ("--lr", "nan"), ("--lr", 0)):
        assert flag in fails(capsys, flag, value)  # --st: nothing is abbreviated
    assert "--freeze takes --init" in fails(capsys, "--freeze")


def test_checkpoints_that_do_not_serve(capsys, trained, photos):
    torch.save({"model": {}}, "plain.pt")
    style = state(trained)
    style["config"] = {"nf": 16}
    torch.save(style, "style.pt")
    wrapped = state(trained)
    wrapped["model"] = {f"module.{name}": value for name, value in wrapped["model"].items()}
    torch.save(wrapped, "wrapped.pt")
    torch.save(sr.SrResnet(2, 8, 1), "pickled.pt")
    for name in ("gone.pt", photos / "01.png", "plain.pt", "style.pt", "pickled.pt"):
        sentence = fails(capsys, "--apply", photos / "01.png", "--init", name)
        assert f"{name} is no checkpoint" in sentence
    assert "style.pt is no checkpoint" not in fails(capsys, "--apply", "x.png", "--init", trained)
    for flags in (["--apply", photos / "01.png"], ["--data", photos, *TINY]):  # DDP's names
        assert "wrapped.pt has other layers" in fails(capsys, *flags, "--init", "wrapped.pt")
    sentence = fails(capsys, "--data", photos, *TINY, "--nf", 12, "--init", trained)
    assert "is no checkpoint" in sentence and "size mismatch" in sentence


def python(*argv):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *map(str, argv)], text=True, capture_output=True,
                          env=env)


def in_a_shell(*argv):
    return python(ROOT / "sr.py", *argv)


def test_the_systems_errors_are_one_sentence(photos):
    Path("file").write_text("")
    done = in_a_shell("--data", photos, *TINY, "--out", "file/deeper")
    assert done.returncode == 1 and "file/deeper" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_so_are_those_of_a_worker(photos):
    for path in photos.glob("*.png"):
        path.write_bytes(path.read_bytes()[:200])
    done = in_a_shell("--data", photos, *TINY, "--workers", 1)
    assert done.returncode == 1 and "cannot read" in done.stderr and ".png" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of the size of files")
def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_survives(photos):
    run("out", "--data", photos)
    before = Path("out/pixel.pt").read_bytes()
    code = ("import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000));"
            f"sys.argv = ['sr.py', '--data', '{photos}', '--out', 'out', '--resume', *{TINY}];"
            f"sys.path.insert(0, '{ROOT}'); runpy.run_path('{ROOT}/sr.py', run_name='__main__')")
    os.rename("out", "full")
    done = python("-c", code)
    assert done.returncode == 1 and "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("out/pixel.pt").exists() and Path("full/pixel.pt").read_bytes() == before


def test_it_runs_in_a_notebook(photos):
    """As %run does it, where stdout is no file."""
    code = (f"import io, runpy, sys; sys.stdout = io.StringIO(); sys.path.insert(0, '{ROOT}');"
            f"sys.argv = ['sr.py', '--data', '{photos}', *{TINY}];"
            f"runpy.run_path('{ROOT}/sr.py', run_name='__main__')")
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


def test_help_names_every_flag_and_default(capsys):
    with pytest.raises(SystemExit):
        sr.main(["--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert sr.__doc__.split("\n")[0] in out and "(default: imagenet_sample)" in out


# ---- real data, opt-in
@pytest.mark.parametrize("scale, want", [(2, 33.66), (4, 28.42)])
def test_set5_bicubic_reads_the_literatures_value(lesson_data, scale, want):
    paths = sr.find_photos(str(lesson_data / "Set5"), Path("out"))
    pairs = pairs_of([sr.open_image(path) for path in paths], scale)
    assert sr.evaluate(bicubic(pairs), pairs)[:, 0].mean() == pytest.approx(want, abs=0.03)
