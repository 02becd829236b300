"""sr.py: parity, invariants, claims with a twin that fails, learning."""
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import sr
from common import VGGFeatures
from conftest import TINY, same, state


def leaves(n, side=96, seed=3):
    return [(i, sr.dead_leaves(np.random.default_rng([seed, i]), side)) for i in range(n)]


def pairs_of(photos, scale=2):
    return [[x[None] for x in sr.make_pair(photo, scale)] for _, photo in photos]


def trained_on(photos, steps, lr=3e-3, net=None, shuffle=False):
    """A small net after `steps` of sr.py's own step, without the command line around it."""
    torch.manual_seed(0)
    net = net or sr.SrResnet(2, 16, 2)
    optimizer, crops = torch.optim.Adam(net.parameters(), lr=lr), sr.Crops(photos, 48, 2)
    for step in range(steps):
        low, high = (torch.stack(t) for t in zip(*[crops[8 * step + i] for i in range(8)]))
        optimizer.zero_grad()
        F.l1_loss(net(low), high.roll(1, 0) if shuffle else high).backward()
        optimizer.step()
    return net


# ---- parity with plain numpy
def numpy_luma(image, border):
    image = np.clip(np.round(image * 255), 0, 255)
    y = 16 + (65.481 * image[0] + 128.553 * image[1] + 24.966 * image[2]) / 255
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


@pytest.mark.parametrize("border", [0, 2, 4])
def test_psnr_and_ssim_against_numpy(border):
    high = torch.rand(3, 3, 26, 22, dtype=torch.float64)
    out = high + 0.1 * torch.randn_like(high)
    for i in range(3):
        a, b = (numpy_luma(t[i].numpy(), border) for t in (out, high))
        want = 10 * np.log10(255**2 / ((a - b)**2).mean())
        assert sr.psnr(out, high, border)[i].item() == pytest.approx(want, abs=1e-9)
        assert sr.ssim(out, high, border)[i].item() == pytest.approx(numpy_ssim(a, b), abs=1e-9)


def test_metrics_of_equal_images_and_of_other_shapes():
    x = torch.rand(2, 3, 20, 20)
    assert torch.isinf(sr.psnr(x, x, 2)).all()
    torch.testing.assert_close(sr.ssim(x, x, 2), torch.ones(2))
    with pytest.raises(ValueError, match="shapes differ"):
        sr.psnr(x, x[..., 1:], 2)


def test_metrics_do_not_depend_on_the_batch():
    high = torch.rand(4, 3, 24, 24)
    out = high + 0.05 * torch.randn_like(high) * torch.arange(1, 5).view(4, 1, 1, 1)
    for metric in (sr.psnr, sr.ssim):
        whole = metric(out, high, 2)
        for size in (1, 2):
            parts = [metric(a, b, 2) for a, b in zip(out.split(size), high.split(size))]
            torch.testing.assert_close(torch.cat(parts), whole)
    pooled = 10 * torch.log10(1 / (out.clamp(0, 1) - high).square().mean())
    assert abs(sr.psnr(out, high, 2).mean() - pooled) > 0.5  # the trap: the dB of the mean error


def test_bicubic_is_pillows():
    photo = leaves(1)[0][1]
    low, _ = sr.make_pair(photo, 2)
    want = Image.fromarray(sr.to_image(low)).resize((96, 96), Image.BICUBIC)
    got = sr.to_image(sr.SrResnet(2, 8, 1).bicubic(low[None])[0])
    assert np.abs(got.astype(int) - np.asarray(want)).max() <= 1
    other = F.interpolate(low[None], scale_factor=2, mode="bicubic")[0]  # the twin: a = -0.75
    assert np.abs(sr.to_image(other).astype(int) - np.asarray(want)).max() > 1


def test_feature_distances_against_a_loop():
    vgg = VGGFeatures(sr.FEATURE_WEIGHTS, "random").double()
    x = torch.rand(3, 3, 16, 20, dtype=torch.float64, requires_grad=True)
    y = torch.rand(3, 3, 16, 20, dtype=torch.float64)
    got = sr.feature_distances(vgg, x, y)
    for layer, row in zip(sr.FEATURE_WEIGHTS, got):
        for i in range(3):
            fx, fy = vgg(x[i:i + 1])[layer], vgg(y[i:i + 1])[layer]
            torch.testing.assert_close(row[i], (fx - fy).abs().sum() / fy.abs().sum())
    got.sum().backward()
    assert x.grad.abs().sum() > 0


def test_feature_loss_adds_its_parts():
    vgg = VGGFeatures(sr.FEATURE_WEIGHTS, "random")
    out, y = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    d = sr.feature_distances(vgg, out, y).mean(1)
    want = 0.2 * d[0] + 0.7 * d[1] + 0.1 * d[2] + 4 * (out - y).abs().mean()
    torch.testing.assert_close(sr.feature_loss(vgg, 0.0, out, y), want)
    variation = ((out[:, :, 1:] - out[:, :, :-1]).abs().mean() +
                 (out[..., 1:] - out[..., :-1]).abs().mean())
    torch.testing.assert_close(sr.feature_loss(vgg, 3.0, out, y), want + 3 * variation)


# ---- data
def test_sample_n_is_a_function_of_seed_and_n(photos):
    crops = sr.Crops(sr.load_photos(photos, 32), 32, 2)
    first = [crops[n] for n in (5, 900, 5)]
    assert torch.equal(first[0][1], first[2][1]) and not torch.equal(first[0][1], first[1][1])
    other = sr.Crops(crops.photos, 32, 2, seed=1)[5]
    assert not torch.equal(first[0][1], other[1])


def test_low_gets_the_same_turn_and_flip_as_high():
    crops = sr.Crops(leaves(3), 32, 2)
    for n in range(64):
        low, high = crops[n]
        assert low.shape == (3, 16, 16) and high.shape == (3, 32, 32)
        want, _ = sr.make_pair(sr.to_image(high), 2)
        assert torch.equal(low, want)
        if high.std() > 0.05:  # the twin: mirrored alone, low does not fit
            assert not torch.allclose(low.flip(2), want, atol=0.02)
    ramp = np.zeros((32, 32, 3), np.uint8) + np.arange(32, dtype=np.uint8)[:, None, None] * 7
    ramp[..., 1] = np.arange(32)[None] * 5
    seen = {tuple(sr.Crops([("ramp", ramp)], 32, 2)[n][1][:2, [0, 0, -1], [0, -1, 0]].flatten()
                  .tolist()) for n in range(200)}
    assert len(seen) == 8  # four rotations, each also mirrored


def test_low_is_reduced_by_pillow_and_blurred_before():
    photo = leaves(1)[0][1][:95, :90]
    low, high = sr.make_pair(photo, 4)
    assert low.shape == (3, 23, 22) and high.shape == (3, 92, 88)
    want = Image.fromarray(photo[:92, :88]).resize((22, 23), Image.BICUBIC)
    assert np.array_equal(sr.to_image(low), np.asarray(want))
    assert sr.make_pair(photo, 4, 2.0)[0].std() < low.std()


def test_dead_leaves_have_the_spectrum_of_photos():
    """Power falls about as 1/f^2, as in photos; the twin, white noise, has a flat spectrum."""
    def slope(images):
        power = np.mean([np.abs(np.fft.fft2(i.mean(2) - i.mean()))**2 for i in images], 0)
        f = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128)))
        use = (f > 0.02) & (f < 0.2)
        return np.polyfit(np.log(f[use]), np.log(power[use]), 1)[0]
    rng = np.random.default_rng(0)
    assert -3.2 < slope([p for _, p in leaves(24, 128)]) < -1.8
    assert abs(slope(rng.integers(0, 256, (24, 128, 128, 3)).astype(float))) < 0.3


def test_every_kind_of_file_is_read_or_skipped_and_counted(tmp_path, capsys):
    folder = tmp_path / "mixed"
    folder.mkdir()
    photo = Image.fromarray(leaves(1, 64)[0][1])
    photo.save(folder / "rgb.jpg")
    photo.convert("L").save(folder / "grey.jpg")
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    photo.convert("P").save(folder / "palette.png")
    photo.convert("RGBA").save(folder / "alpha.webp")
    photo.convert("1").save(folder / "bits.tif")
    Image.fromarray(np.full((64, 64), 257 * 100, np.uint16)).save(folder / "deep.png")
    photo.resize((20, 64)).save(folder / "small.bmp")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "broken.jpg").write_bytes((folder / "rgb.jpg").read_bytes()[:700])
    (folder / "notes.txt").write_text("not a photo")
    photos = dict(sr.load_photos(folder, 32))
    assert "7 photos, 4 files skipped" in capsys.readouterr().out
    assert all(p.shape == (64, 64, 3) and p.dtype == np.uint8 for p in photos.values())
    assert (photos[folder / "deep.png"] == 100).all()  # 16 bits reduced, not clipped


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (40, 20), "red").save(tmp_path / "turned.jpg", exif=exif)
    assert sr.open_image(tmp_path / "turned.jpg").size == (20, 40)


def test_photos_beyond_the_cache_are_read_when_drawn(photos):
    cached, lean = sr.load_photos(photos, 32), sr.load_photos(photos, 32, room=100_000)
    assert [p for p, _ in cached] == [p for p, _ in lean]
    assert 0 < sum(photo is None for _, photo in lean) < len(lean)
    for n in range(20):
        assert all(torch.equal(a, b) for a, b in zip(sr.Crops(cached, 32, 2)[n],
                                                     sr.Crops(lean, 32, 2)[n]))


def test_a_run_with_more_photos_than_memory(photos, monkeypatch):
    monkeypatch.setattr(sr.load_photos, "__defaults__", (1.0, 0, 200_000))
    run("lean", "--data", str(photos))
    assert state("lean/pixel.pt")["step"] == 4


def test_the_git_folder_of_a_clone_is_not_read(photos, capsys):
    (photos / ".git").mkdir()
    (photos / ".git" / "index").write_bytes(b"git")
    sr.load_photos(photos, 32)
    assert "24 photos, 0 files skipped" in capsys.readouterr().out


def test_keep_takes_a_random_fraction(photos):
    some = [p for p, _ in sr.load_photos(photos, 32, keep=0.5)]
    assert 4 <= len(some) <= 20 and some == [p for p, _ in sr.load_photos(photos, 32, keep=0.5)]
    assert some != [p for p, _ in sr.load_photos(photos, 32, keep=0.5, seed=1)]


# ---- model
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_untrained_net_is_bicubic(scale):
    net, x = sr.SrResnet(scale, 8, 1), torch.rand(2, 3, 9, 7)
    assert net(x).shape == (2, 3, 9 * scale, 7 * scale)
    assert torch.equal(net(x), net.bicubic(x))
    torch.nn.init.normal_(net.tail.weight)  # the twin: the lesson's start, at noise
    assert not torch.allclose(net(x), net.bicubic(x), atol=0.1)


def test_icnr_leaves_no_checkerboard_before_the_last_conv():
    net, x = sr.SrResnet(4, 8, 1), torch.rand(1, 3, 9, 7)
    features = net.upsample[:2](net.body(x))
    nearest = features[..., ::2, ::2].repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(features, nearest)
    torch.nn.init.kaiming_normal_(net.upsample[0].weight)  # the twin
    features = net.upsample[:2](net.body(x))
    assert not torch.allclose(features, features[..., ::2, ::2].repeat_interleave(2, 2)
                              .repeat_interleave(2, 3), atol=1e-3)


@pytest.mark.parametrize("scale, blocks", [(2, 3), (4, 1), (8, 2)])
def test_tiles_equal_one_pass(scale, blocks):
    net = sr.SrResnet(scale, 8, blocks)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.15)  # so that every pixel in reach matters
    image = leaves(1, 61)[0][1][:, :53]
    with torch.no_grad():
        whole = sr.to_image(net(sr.to_tensor(image)[None])[0])
    tiled = sr.enlarge(net, image, tile=17)
    assert np.abs(tiled.astype(int) - whole).max() <= 1
    net.margin = 1  # the twin: too narrow a margin leaves seams
    assert np.abs(sr.enlarge(net, image, tile=17).astype(int) - whole).max() > 1


def test_evaluate_and_enlarge_leave_the_net_and_the_input_alone():
    net, photos = sr.SrResnet(2, 8, 1).train(), leaves(2, 48)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    image = photos[0][1].copy()
    sr.evaluate(net, pairs_of(photos), 2)
    sr.enlarge(net, photos[0][1])
    assert net.training and np.array_equal(image, photos[0][1])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


# ---- learning
def test_it_beats_bicubic_on_images_it_has_not_seen():
    pairs = pairs_of(leaves(6, 96, seed=11))
    net = trained_on(leaves(12), 60)
    gain = sr.evaluate(net, pairs, 2)[:, 0].mean() - sr.evaluate(net.bicubic, pairs, 2)[:, 0].mean()
    assert gain > 0.5
    worse = trained_on(leaves(12), 60, shuffle=True)  # the twin: pictures that do not belong
    assert sr.evaluate(worse, pairs, 2)[:, 0].mean() < sr.evaluate(net, pairs, 2)[:, 0].mean() - 0.5


def test_it_overfits_two_images():
    pairs = pairs_of(leaves(2, 48))
    net = sr.SrResnet(2, 16, 2)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    low, high = (torch.cat(images) for images in zip(*pairs))
    for _ in range(200):
        optimizer.zero_grad()
        F.l1_loss(net(low), high).backward()
        optimizer.step()
    gain = (sr.evaluate(net, pairs, 2) - sr.evaluate(net.bicubic, pairs, 2))[:, 0].mean()
    assert gain > 3


def test_histograms_match():
    a, b = (Image.fromarray(p) for _, p in leaves(2, 64))
    assert np.array_equal(np.asarray(sr.match_histogram(a, a)), np.asarray(a))
    before, after, want = (np.asarray(i).reshape(-1, 3).mean(0)
                           for i in (a, sr.match_histogram(a, b), b))
    assert np.abs(after - want).max() < 5 < np.abs(before - want).max()


# ---- the loop
def run(out, *flags):
    sr.main(["--out", str(out), *TINY, *flags])


def test_checkpoint_is_one_dict_of_plain_types(trained):
    checkpoint = state(trained)
    assert sorted(checkpoint) == ["args", "model", "optimizer", "step"] and checkpoint["step"] == 4
    assert all(isinstance(v, (str, int, float, bool)) for v in checkpoint["args"].values())
    assert not any(k.startswith("module.") for k in checkpoint["model"])
    assert not list(trained.parent.glob("*.tmp"))


def test_stopped_and_resumed_is_never_stopped(photos, ctrl_c):
    run("whole", "--data", str(photos))
    steps_done, arm = ctrl_c
    arm()
    with pytest.raises(SystemExit, match="stopped at step 3.*--resume"):
        run("halves", "--data", str(photos))
    assert state("halves/pixel.pt")["step"] == 3
    run("halves", "--data", str(photos), "--resume")
    assert len(steps_done) == 4 and same(state("whole/pixel.pt"), state("halves/pixel.pt"))
    assert not same(state("halves/pixel.pt"), {"model": sr.SrResnet(2, 8, 1).state_dict()})


def test_feature_stage_resumes_too(photos, monkeypatch):
    flags = ["--data", str(photos), "--feature-steps", "3", "--weights", "random"]
    run("whole", *flags)
    real = sr.feature_loss
    monkeypatch.setattr(sr, "feature_loss", lambda *args: os.kill(os.getpid(), signal.SIGINT)
                        or real(*args))
    with pytest.raises(SystemExit, match="stopped at step 1"):
        run("halves", *flags)
    assert state("halves/pixel.pt")["step"] == 4 and state("halves/feature.pt")["step"] == 1
    monkeypatch.setattr(sr, "feature_loss", real)
    run("halves", *flags, "--resume")
    assert state("halves/feature.pt")["step"] == 3
    lines = Path("halves/log.csv").read_text().splitlines()
    assert [line for line in lines if "nan" in line] == [lines[0], lines[3]]  # at each step 0 only
    for name in ("pixel.pt", "feature.pt"):
        assert same(state(f"whole/{name}"), state(f"halves/{name}"))


def test_same_bits_for_any_number_of_workers(photos):
    run("none", "--data", str(photos))
    run("two", "--data", str(photos), "--workers", "2")
    assert same(state("none/pixel.pt"), state("two/pixel.pt"))


def test_two_ranks_are_one_with_twice_the_batch(two_ranks):
    flags = ["--data", "data", *TINY]
    assert two_ranks.count("step      4/4") == 1  # rank 0 speaks for both
    sr.main(["--out", "one", *flags, "--batch-size", "4"])
    sr.main(["--out", "alone", *flags])  # the twin: half of the crops
    two, one, alone = (torch.cat([v.flatten() for v in state(f"{name}/pixel.pt")["model"].values()])
                       for name in ("two", "one", "alone"))
    assert (two - one).norm() < 0.2 * (alone - one).norm()


def test_a_loss_that_is_not_finite_stops_the_run(photos, monkeypatch):
    monkeypatch.setattr(sr.F, "l1_loss", lambda out, y: (out - y).abs().mean() * math.nan)
    with pytest.raises(SystemExit, match="the loss is nan.*lower --lr.*out/pixel.pt"):
        run("out", "--data", str(photos))
    assert state("out/pixel.pt")["step"] == 0  # the last good one


def test_an_earlier_run_is_kept(photos):
    run("out", "--data", str(photos))
    first = state("out/pixel.pt")
    run("out", "--data", str(photos), "--seed", "1")
    kept = [p for p in Path("out").iterdir() if p.name.endswith("-pixel.pt")]
    assert len(kept) == 1 and same(state(kept[0]), first) and not same(state("out/pixel.pt"), first)


def test_learning_rate_rises_then_falls_to_zero():
    curve = [sr.learning_rate(step, 1000, 0.1) for step in range(1000)]
    assert curve[0] == pytest.approx(0.002) and max(curve) <= 0.1 and curve[-1] < 1e-5
    assert curve[:49] == sorted(curve[:49]) and curve[50:] == sorted(curve[50:], reverse=True)


def test_progressive_enlarging(photos, trained, capsys):
    run("x4", "--data", str(photos), "--scale", "4", "--init", str(trained), "--steps", "1",
        "--eval-every", "1")
    out = capsys.readouterr().out
    assert "loaded body.0.weight" in out and "new upsample.2.weight" in out
    x4 = state("x4/pixel.pt")
    assert x4["args"]["frozen"] == 0  # a quarter of one step
    run("frozen", "--data", str(photos), "--scale", "4", "--init", str(trained), "--steps", "4")
    assert state("frozen/pixel.pt")["args"]["frozen"] == 1
    run("x8", "--data", str(photos), "--scale", "8", "--init", "x4/pixel.pt")
    assert "new upsample.4.weight" in capsys.readouterr().out


def test_the_body_is_frozen_first(photos, trained):
    model = sr.SrResnet(4, 8, 1)
    new = sr.load_layers(model, sr.load_checkpoint(trained, "sr"))
    assert new == ["upsample.2.weight"]
    body = {k: v.clone() for k, v in model.body.state_dict().items()}
    tail, crops = model.tail.weight.clone(), sr.Crops(sr.load_photos(photos, 32), 32, 4)
    args = sr.get_args(TINY)
    args.bf16 = False
    Path("out").mkdir(exist_ok=True)
    pairs = pairs_of(leaves(1), 4)
    sr.train(model, F.l1_loss, crops, pairs, Path("out/a.pt"), 2, 1e-3, 2, args)
    assert all(torch.equal(v, body[k]) for k, v in model.body.state_dict().items())
    assert not torch.equal(tail, model.tail.weight)
    sr.train(model, F.l1_loss, crops, pairs, Path("out/b.pt"), 2, 1e-3, 1, args)  # its twin
    assert not all(torch.equal(v, body[k]) for k, v in model.body.state_dict().items())


# ---- real data, opt-in
def test_set5_bicubic_reads_the_literatures_value(lesson_data):
    photos = sr.load_photos(lesson_data / "Set5", 32)
    scores = sr.evaluate(sr.SrResnet(2, 8, 1).bicubic, pairs_of(photos), 2).mean(0)
    assert scores[0] == pytest.approx(33.66, abs=0.03)
    assert scores[1] == pytest.approx(0.930, abs=0.001)


def test_feature_loss_lowers_the_feature_distance(lesson_data, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(lesson_data / "torch_home"))
    vgg = VGGFeatures(sr.FEATURE_WEIGHTS)
    photos = leaves(12)
    start = trained_on(photos, 40)
    pixel, feature = (trained_on(photos, 0, net=sr.SrResnet(2, 16, 2)) for _ in range(2))
    pixel.load_state_dict(start.state_dict())
    feature.load_state_dict(start.state_dict())
    trained_on(photos, 30, 1e-3, pixel)
    optimizer, crops = torch.optim.Adam(feature.parameters(), 1e-3), sr.Crops(photos, 48, 2)
    for step in range(30):
        low, high = (torch.stack(t) for t in zip(*[crops[8 * step + i] for i in range(8)]))
        optimizer.zero_grad()
        sr.feature_loss(vgg, 0.0, feature(low), high).backward()
        optimizer.step()
    pairs = pairs_of(leaves(4, 96, seed=11))
    a, b = (sr.evaluate(net, pairs, 2, vgg).mean(0) for net in (pixel, feature))
    assert (b[2:] < a[2:]).all()
