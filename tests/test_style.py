"""style.py: parity, invariants, learning; the command line, and files that go wrong."""
import functools
from pathlib import Path
from types import SimpleNamespace

import conftest
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import PHOTOS, ROOT, same, small_photos, state, write
from painting import painting
from PIL import Image, ImageCms
from torch import nn

import style
from common import VGGFeatures, gram_matrix

TINY = ["--steps", "4", "--optimize-steps", "2", "--batch-size", "2", "--size", "48",
        "--content-size", "48", "--style-size", "48", "--nf", "4", "--eval-every", "2",
        "--device", "cpu", "--weights", "random", "--content-layer", "relu1_2",
        "--style-layers", "relu1_1", "relu1_2", "--style-weight", "5"]
painting = functools.cache(painting)


def loss_of(*flags, seed=5):
    """A loss whose painting has 48 px, and the painting as a batch."""
    x = style.to_tensor(painting(seed, 48))[None]
    return style.PerceptualLoss(x, style.get_args([*TINY, *flags])), x


def photos_of(count, side=48):
    return torch.stack([style.to_tensor(photo) for photo in small_photos(count, side)])


def parts_of(perceptual, out, photos):
    return perceptual(out, perceptual.content(photos))


def training(*flags, paths=None):
    """All that train takes after the network and its loss."""
    args = style.get_args([*TINY, *flags])
    crops = style.Crops(paths or write(small_photos()[:8], "train"), args.size, args.seed)
    return Path("network.pt"), crops, [x[None] for x in photos_of(2)], args


# ---- loss
@pytest.mark.parametrize("weights, each", [(["5"], [2.5, 2.5]), (["3", "0.5"], [3, 0.5])])
def test_perceptual_loss_against_loops(weights, each):
    perceptual, painted = loss_of("--style-weight", *weights, "--tv", "0.3",
                                  "--content-weight", "2")
    vgg = VGGFeatures(["relu1_1", "relu1_2"], "random")
    x = photos_of(2)
    out = torch.rand_like(x, requires_grad=True)
    parts = parts_of(perceptual, out, x)
    for i in range(2):
        a, b, p = (vgg(t) for t in (out[i:i + 1], x[i:i + 1], painted))
        content = (a["relu1_2"] - b["relu1_2"]).square().sum() / b["relu1_2"].square().sum()
        total_style = 0
        for layer, weight in zip(("relu1_1", "relu1_2"), each, strict=True):
            grams = []
            for features in (a[layer], p[layer]):
                channels = features[0].flatten(1)
                rows = [torch.stack([(u * v).sum() for v in channels]) for u in channels]
                grams.append(torch.stack(rows) / features[0].numel())
            total_style += weight * (grams[0] - grams[1]).square().sum() / grams[1].square().sum()
        variation = ((out[i, :, 1:] - out[i, :, :-1]).abs().mean() +
                     (out[i, ..., 1:] - out[i, ..., :-1]).abs().mean())
        wanted = {"content": 2 * content, "style": total_style, "variation": 0.3 * variation}
        for name, value in wanted.items():
            torch.testing.assert_close(parts[name][i], value, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(parts["total"][i], sum(wanted.values()), rtol=1e-3, atol=1e-6)
    parts["total"].sum().backward()
    assert out.grad.abs().sum() > 0


def test_a_distance_of_0_is_equal_and_of_1_is_as_far_off_as_zeros():
    y = torch.rand(2, 3, 4)
    assert style.relative(y, y).tolist() == [0, 0]
    assert style.relative(torch.zeros_like(y), y).tolist() == [1, 1]


def test_the_photo_has_no_content_loss_and_the_painting_no_style_loss():
    perceptual, painted = loss_of()
    x = photos_of(1)
    assert parts_of(perceptual, x, x)["content"] == 0 < parts_of(perceptual, x, x)["style"]
    assert parts_of(perceptual, painted, painted)["style"] < 1e-8


def test_the_loss_of_an_image_does_not_depend_on_its_batch():
    perceptual, _ = loss_of()
    x, out = photos_of(3), torch.rand(3, 3, 48, 48)
    whole = parts_of(perceptual, out, x)
    for i in range(3):
        alone = parts_of(perceptual, out[i:i + 1], x[i:i + 1])
        for name, value in alone.items():
            torch.testing.assert_close(whole[name][i:i + 1], value)


def test_a_gram_matrix_does_not_know_where():
    features = torch.rand(1, 6, 8, 8)
    shuffled = features.flatten(2)[..., torch.randperm(64)].view_as(features)
    torch.testing.assert_close(gram_matrix(features), gram_matrix(shuffled))
    fewer = features.clone()
    fewer[:, 0] = 0  # the twin: what is there does count
    assert not torch.allclose(gram_matrix(features), gram_matrix(fewer))


def test_vgg_sees_style():
    """A painting is nearer to another part of itself than a photo is."""
    left, right = (style.to_tensor(painting(5, 256).crop((x, 0, x + 128, 128)))[None]
                   for x in (0, 128))
    perceptual = style.PerceptualLoss(right, style.get_args(["--device", "cpu"]))
    photo = style.to_tensor(style.open_image(PHOTOS[2]).crop((200, 0, 328, 128)))[None]
    styles = [parts_of(perceptual, x, x)["style"] for x in (left, photo)]
    assert styles[0] < 0.5 * styles[1]


# ---- data
def test_the_painting_is_drawn_by_its_script():
    kept, drawn = (np.asarray(image.convert("RGB"), float) for image in
                   (Image.open(ROOT / "tests/data/painting.png"), painting()))
    assert kept.shape == (512, 512, 3) and np.abs(kept - drawn).mean() < 2


def test_strokes_run_along_the_flow():
    """Neighbours along the local direction are more alike than across it, unlike in noise."""
    def anisotropy(image):
        grey = np.asarray(image.convert("L"), float)
        dy, dx = np.gradient(grey)
        tensor = [F.avg_pool2d(torch.from_numpy(t)[None, None], 9, 1)[0, 0].numpy()
                  for t in (dx * dx, dy * dy, dx * dy)]
        spread = np.hypot(tensor[0] - tensor[1], 2 * tensor[2])
        return (spread / (tensor[0] + tensor[1] + 1e-9)).mean()
    assert anisotropy(painting(5, 128)) > anisotropy(Image.effect_noise((128, 128), 60)) + 0.2


def test_sample_n_is_a_function_of_seed_and_n(photos):
    crops = style.Crops(style.find_photos(str(photos), Path("out")), 48)
    assert torch.equal(crops[5], crops[5]) and not torch.equal(crops[5], crops[6])
    assert not torch.equal(crops[5], style.Crops(crops.paths, 48, 1)[5])
    assert crops[5].shape == (3, 48, 48)


def test_a_crop_is_the_largest_square(tmp_path):
    picture = Image.new("RGB", (200, 100), "red")
    picture.paste("blue", (0, 50, 200, 100))
    picture.save("wide.png")
    crop = style.Crops(["wide.png"], 50)[0]
    assert crop[0, :24].min() > 0.9 and crop[2, 26:].min() > 0.9  # all of its height


# ---- model
@pytest.mark.parametrize("size", [(32, 32), (33, 46), (9, 50), (5, 5)])
def test_output_has_the_size_of_the_input_and_is_bounded(size):
    net = style.StyleNet(4)
    out = net(torch.rand(2, 3, *size))
    assert out.shape == (2, 3, *size) and out.min() >= 0 and out.max() <= 1


def test_each_image_is_treated_alone():
    net, x = style.StyleNet(4), photos_of(3)
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]), rtol=1e-4, atol=1e-5)


def test_contrast_and_brightness_of_the_photo_are_gone():
    layer, x = style.conv_norm(3, 8), photos_of(2)
    torch.testing.assert_close(layer(x), layer(0.5 * x + 0.3), rtol=0.02, atol=0.02)
    plain, changed = layer[0](x), layer[0](0.5 * x + 0.3)  # the twin: without the norm
    assert (plain - changed).abs().mean() > 0.2 * plain.abs().mean()


def test_reflection_marks_borders_less_than_zeros():
    """The outer 8 px against those of the same photo with 32 px more around it.

    Batch norm in use has no sight of the picture, so that nothing but the borders differs.
    """
    x = photos_of(2, 96)
    errors = {}
    for mode in ("reflect", "zeros"):
        torch.manual_seed(0)
        net = style.StyleNet(4)
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.padding_mode = mode
        for module in list(net.modules()):
            if isinstance(module, nn.Sequential) and len(module) > 1:
                if isinstance(module[1], nn.InstanceNorm2d):
                    module[1] = nn.BatchNorm2d(module[1].num_features)
        with torch.no_grad():
            net.train()(x)
            net.eval()
            error = (net(x)[..., 24:-24, 24:-24] - net(x[..., 24:-24, 24:-24])).abs()
        error[..., 8:-8, 8:-8] = float("nan")
        errors[mode] = error.nanmean()
    assert errors["reflect"] < 0.7 * errors["zeros"]


# ---- learning
def optimize(x, perceptual, *flags):
    args = style.get_args([*TINY, *flags])
    return style.optimize(x, perceptual, "photo", Path("log.csv"), args)


@pytest.mark.parametrize("start", ["photo", "noise"])
def test_optimising_lowers_the_loss(start):
    perceptual, _ = loss_of()
    x = photos_of(1)
    image, totals = optimize(x, perceptual, "--start", start, "--optimize-steps", "12")
    assert len(totals) == 13 and totals[-1] < 0.8 * totals[0]
    assert image.min() >= 0 and image.max() <= 1 and not image.requires_grad
    assert totals[-1] == pytest.approx(parts_of(perceptual, image, x)["total"].item(), rel=1e-4)
    if start == "photo":  # the first loss is that of the photo itself
        assert totals[0] == pytest.approx(parts_of(perceptual, x, x)["total"].item())


def test_no_step_changes_nothing():
    x = photos_of(1)
    image, totals = optimize(x, loss_of()[0], "--optimize-steps", "0")
    assert torch.equal(image, x) and len(totals) == 1


def test_content_alone_from_noise_inverts_a_layer():
    x = photos_of(1)
    flags = ["--start", "noise", "--style-weight", "0", "--tv", "0", "--optimize-steps", "60"]
    image, totals = optimize(x, loss_of(*flags)[0], *flags)
    assert totals[-1] < 0.1 * totals[0]
    noise = torch.rand_like(x)
    assert (image - x).abs().mean() < 0.5 * (noise - x).abs().mean()


def test_total_variation_makes_smoother_pictures():
    x = photos_of(1)
    variation = {}
    for tv in ("0", "10"):
        image, _ = optimize(x, loss_of("--tv", tv)[0], "--optimize-steps", "15")
        variation[tv] = image.diff(dim=3).abs().mean()
    assert variation["10"] < 0.7 * variation["0"]


def test_a_net_learns_its_own_painting_better_than_another():
    x = photos_of(4)
    losses = {}
    green = painting.__wrapped__(0, 48, np.array([(20, 90, 20), (90, 200, 60), (240, 240, 90)]))
    for seed, picture in ((0, green), (5, painting(5, 48))):
        paint = style.to_tensor(picture)[None]
        losses[seed] = (style.PerceptualLoss(paint, style.get_args(TINY)), {})
    for seed in (0, 5):
        torch.manual_seed(0)
        perceptual = losses[seed][0]
        net = style.StyleNet(4)
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(25):
            optimizer.zero_grad()
            parts_of(perceptual, net(x), x)["total"].mean().backward()
            optimizer.step()
        for other in (0, 5):
            losses[seed][1][other] = style.evaluate(net, losses[other][0], x.split(1))["style"]
    assert losses[0][1][0] < losses[5][1][0] and losses[5][1][5] < losses[0][1][5]


def test_the_mean_is_of_photos_whatever_their_sizes():
    perceptual, _ = loss_of()
    small, large = photos_of(1), photos_of(1, 80)
    alone = [style.evaluate(nn.Identity(), perceptual, [x])["total"] for x in (small, large)]
    both = style.evaluate(nn.Identity(), perceptual, [small, large])["total"]
    assert both == pytest.approx(sum(alone) / 2)


def test_bfloat16_learns_as_float32(monkeypatch):
    """Where bfloat16 is fast it is used; here it is switched on, fast or not."""
    early = ["--style-layers", "relu1_1", "--content-layer", "relu1_1"]
    path, crops, held_out, args = training("--steps", "12", "--eval-every", "12", "--lr", "1e-2")
    perceptual, _ = loss_of(*early)
    kinds, losses = set(), []

    class Watched(style.StyleNet):
        def forward(self, x):
            kinds.add(torch.is_autocast_enabled("cpu") and torch.is_grad_enabled())
            return super().forward(x)

    for fast in (False, True):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda fast=fast: {"avx512_bf16": fast})
        torch.manual_seed(0)
        net = Watched(4)
        style.train(net, perceptual, path, crops, held_out, args)
        assert all(p.dtype == torch.float32 for p in net.parameters())
        losses.append(style.evaluate(net, perceptual, held_out)["total"])
    before = style.evaluate(style.StyleNet(4), perceptual, held_out)["total"]
    assert kinds == {False, True}
    assert max(losses) < 0.5 * before


def test_workers_change_nothing():
    path, crops, held_out, args = training()
    nets = []
    for workers in (0, 1):
        torch.manual_seed(0)
        nets.append(style.StyleNet(4))
        args.workers = workers
        style.train(nets[-1], loss_of()[0], path, crops, held_out, args)
    assert same({"model": nets[0].state_dict()}, {"model": nets[1].state_dict()})


def test_the_net_of_the_repository_keeps_its_quality():
    """Photos of tests/data at 192 px: a change that breaks its pictures fails here."""
    file = ROOT / "tests/data/nets/night.pt"
    assert file.stat().st_size < 1_000_000
    assert all(value.dtype == torch.float16 for value in state(file)["model"].values())
    net = style.load_checkpoint(file)
    paint = style.to_tensor(Image.open(ROOT / "tests/data/painting.png").reduce(2))[None]
    perceptual = style.PerceptualLoss(paint, style.get_args(["--device", "cpu"]))
    photos = [style.to_tensor(style.open_image(PHOTOS[n]).resize((192, 192)))[None]
              for n in (2, 7)]  # the cat and the raccoon
    losses = [style.evaluate(model, perceptual, photos) for model in (nn.Identity(), net)]
    assert losses[1]["total"] < 1.95 and losses[0]["total"] > 3.8


# ---- the loop and the command line
def run(out, *flags):
    style.main(["--out", str(out), *TINY, *map(str, flags)])


def fails(capsys, *argv):
    return conftest.fails(style, capsys, *argv)


@pytest.fixture
def trained(photos):
    run("out/style", "--data", photos)
    return Path("out/style/network.pt")


def rows_of(path):
    return np.genfromtxt(path, delimiter=",", names=True, dtype=None, encoding=None)


def test_a_run_from_the_first_line_to_the_figure(photos, capsys):
    Image.new("RGB", (50, 60), "teal").save("sea.png")
    small_photos()[1].crop((0, 0, 96, 60)).save("mine.png")
    run("out", "--data", photos, "--content", "mine.png", "--style", "sea.png")
    out = capsys.readouterr().out
    assert out.index("photo    held out") < out.index("network  held out")  # the baseline
    assert out.count("the network is ahead of") == 3
    assert {p.name for p in Path("out").iterdir()} == {
        "network.pt", "log.csv", "figure.png", "photo.png", "optimised.png", "network.png"}
    with Image.open("out/figure.png") as figure:
        assert figure.size == (4 * 56, 3 * 84)  # the painting and three photos
    for title in ("photo", "optimised", "network"):
        assert Image.open(f"out/{title}.png").size == (77, 48)  # whole, not a square
    log = rows_of("out/log.csv")
    assert log.dtype.names == ("stage", "photo", "step", "content", "style", "variation", "total")
    np.testing.assert_allclose(log["content"] + log["style"] + log["variation"], log["total"],
                               rtol=1e-4)
    rows = [*zip(log["stage"], log["photo"], log["step"], strict=True)]
    assert rows == [("photo", "held out", 0), ("network", "held out", 2),
                    ("network", "held out", 4), *[
        row for name in ("your", "best", "worst") for row in (
            ("optimise", name, 0), ("optimise", name, 2), ("network", name, 4))]]
    best, worst = (log["total"][(log["photo"] == name) & (log["stage"] == "network")][0]
                   for name in ("best", "worst"))
    assert best <= worst


def test_without_training_one_photo_is_optimised(trained, capsys):
    small_photos()[1].save("mine.png")
    run("alone", "--steps", 0, "--content", "mine.png", "--data", "nowhere")
    assert {p.name for p in Path("alone").iterdir()} == {
        "log.csv", "figure.png", "photo.png", "optimised.png"}
    with Image.open("alone/figure.png") as figure:
        assert figure.size == (3 * 56, 84)
    run("both", "--steps", 0, "--content", "mine.png", "--init", trained)
    assert Path("both/network.png").exists() and not Path("both/network.pt").exists()
    assert "--steps 0 takes --content" in fails(capsys, "--steps", 0)


def test_how_far_ahead_the_network_is(monkeypatch, capsys):
    monkeypatch.setattr(style, "optimize", lambda x, *_: (x, [9.0, 5.0, 4.0, 3.0]))
    args = SimpleNamespace(steps=1, init=None, optimize_steps=3)
    x = photos_of(1)
    for total, ahead in ((4.5, 1), (1.0, 3), (9.5, 0), (5.0, 0)):
        monkeypatch.setattr(style, "evaluate", lambda *_, total=total: {"total": total})
        style.compare("your", x, nn.Identity(), None, Path("log.csv"), args)
        assert f"ahead of {ahead} of 3 optimiser's steps" in capsys.readouterr().out


def test_the_whole_painting_counts_at_the_size_asked_for(photos, monkeypatch):
    seen = []
    real = style.PerceptualLoss
    monkeypatch.setattr(style, "PerceptualLoss",
                        lambda painting, args: seen.append(painting) or real(painting, args))
    Image.new("RGB", (60, 90), "red").save("tall.png")
    run("out", "--data", photos, "--style", "tall.png", "--style-size", 50)
    assert seen[0].shape == (1, 3, 75, 50)


def test_d2ls_setting_and_the_courses(photos):
    d2l = ["--vgg", 19, "--content-layer", "conv4_4", "--style-layers",
           "conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1"]
    course = ["--content-layer", "relu4_3", "--style-weight", 0.025, 0.275, 5, 0.2,
              "--style-layers", "relu2_2", "relu3_3", "relu4_3", "relu5_3"]
    for number, flags in enumerate((d2l, course)):
        run(number, *flags, "--steps", 0, "--content", photos / "01.png")
        log = rows_of(f"{number}/log.csv")
        assert log["total"][-1] < log["total"][0]


def test_checkpoint_is_one_dict_of_plain_types(trained):
    checkpoint = state(trained)
    assert sorted(checkpoint) == ["args", "config", "model", "step"]
    assert checkpoint["config"] == {"nf": 4} and checkpoint["step"] == 4


def test_what_is_not_finite_is_never_saved(photos, monkeypatch):
    real, calls = style.PerceptualLoss.__call__, []

    def broken(self, out, content):
        calls.append(out.requires_grad)
        parts = real(self, out, content)
        return parts if sum(calls) < 3 else {k: v * float("nan") for k, v in parts.items()}

    monkeypatch.setattr(style.PerceptualLoss, "__call__", broken)
    with pytest.raises(SystemExit, match="step 3: the gradient is nan: lower --lr"):
        run("out", "--data", photos)
    assert state("out/network.pt")["step"] == 2


def test_an_earlier_run_is_renamed_whole(photos, capsys):
    run("out", "--data", photos)
    run("out", "--data", photos, "--seed", 1)
    kept = [path for path in Path().iterdir() if path.name.startswith("out-")]
    assert len(kept) == 1 and f"earlier run kept as {kept[0]}" in capsys.readouterr().out
    assert not same(state(kept[0] / "network.pt"), state("out/network.pt"))


def test_training_lowers_the_loss_on_photos_it_has_not_seen(photos):
    run("out", "--data", photos, "--steps", 30, "--eval-every", 30, "--lr", "1e-2")
    log = rows_of("out/log.csv")
    photo, network = (log["total"][log["stage"] == name][0] for name in ("photo", "network"))
    assert network < 0.8 * photo


def test_flags_that_change_the_result(photos):
    def weights(*flags):
        out = "_".join(["out", *flags])
        run(out, "--data", photos, "--optimize-steps", "0", *flags)
        return state(f"{out}/network.pt")["model"]["layers.0.0.weight"]
    base = weights()
    for flags in (["--lr", "1e-4"], ["--seed", "2"], ["--batch-size", "3"], ["--size", "52"],
                  ["--style-weight", "50"], ["--content-weight", "0"], ["--tv", "9"],
                  ["--content-layer", "relu1_1"], ["--style-size", "60"],
                  ["--style-layers", "relu1_1"]):
        assert not torch.equal(base, weights(*flags)), flags


def test_training_goes_on_from_a_checkpoint(photos, trained, capsys):
    run("more", "--data", photos, "--init", trained, "--nf", 8)
    assert f"loaded {trained}" in capsys.readouterr().out
    assert state("more/network.pt")["config"] == {"nf": 4}
    assert not same(state("more/network.pt"), state(trained))


def test_default_run_without_data_or_network(capsys):
    flags = [flag for flag in TINY if flag not in ("--weights", "random")]
    style.main(flags)
    assert "no imagenet_sample here" in capsys.readouterr().out
    assert Path("out/style/figure.png").exists()


def test_weights_that_cannot_be_had(photos):
    with pytest.raises(OSError, match="no weights from .*save it as .*or take .*included"):
        run("out", "--data", photos, "--weights", "torchvision")
    assert not Path("out").exists()


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "LA"])
def test_apply_to_every_mode_and_odd_sizes(trained, mode):
    small_photos()[0].crop((0, 0, 45, 31)).convert(mode).save("in.png")
    style.main(["--apply", "in.png", "--init", str(trained), "--out", "styled"])
    with Image.open("styled/in_styled.png") as styled:
        assert styled.size == (45, 31) and styled.mode == "RGB"


def test_apply_keeps_a_colour_profile_of_rgb_alone(trained):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    grey = profile[:16] + b"GRAY" + profile[20:]
    for name, kept in (("rgb", profile), ("grey", grey)):
        small_photos()[0].save(f"{name}.png", icc_profile=kept)
        style.main(["--apply", f"{name}.png", "--init", str(trained)])
    assert Image.open("out/style/rgb_styled.png").info["icc_profile"] == profile
    assert "icc_profile" not in Image.open("out/style/grey_styled.png").info


def test_a_bad_file_among_many_does_not_stop_the_others(trained, photos, monkeypatch):
    Path("notes.jpg").write_text("no photo")
    Image.new("RGB", (4, 40)).save("thin.png")
    Image.new("RGB", (400, 400)).save("huge.png")
    Image.new("RGB", (300, 300)).save("large.png")
    real = style.StyleNet.forward

    def forward(self, x):
        if x.shape[3] == 400:
            torch.empty(10**15)
        if x.shape[3] == 300:
            raise MemoryError  # as Python's own, without a word
        return real(self, x)

    monkeypatch.setattr(style.StyleNet, "forward", forward)
    with pytest.raises(SystemExit) as stop:
        style.main(["--apply", "notes.jpg", "thin.png", "huge.png", "large.png",
                    str(photos / "01.png"), "--init", str(trained)])
    lines = stop.value.code.split("\n")
    assert len(lines) == 4 and "large.png: no memory" in lines[3]
    assert "cannot read notes.jpg" in lines[0]
    assert "thin.png" in lines[1] and "5 px" in lines[1]
    assert "huge.png" in lines[2] and "memory" in lines[2]
    before = Path("out/style/01_styled.png").read_bytes()
    with pytest.raises(SystemExit, match="01_styled.png exists"):
        style.main(["--apply", str(photos / "01.png"), "--init", str(trained)])
    assert Path("out/style/01_styled.png").read_bytes() == before


def test_a_programming_error_keeps_its_traceback(trained, photos, monkeypatch):
    monkeypatch.setattr(style.StyleNet, "forward", lambda self, x: x @ x[:, :1, :5])
    with pytest.raises(RuntimeError):
        style.main(["--apply", str(photos / "01.png"), "--init", str(trained)])


def test_pictures_that_are_none(photos):
    for flag in ("--style", "--content"):
        with pytest.raises(OSError, match="cannot read gone.png"):  # a sentence, in a shell
            run("out", "--data", photos, flag, "gone.png")


def test_layers_that_vgg_does_not_have(photos, capsys):
    for flags in (["--content-layer", "relu9_9"], ["--style-layers", "relu9_9", "relu1_1"]):
        sentence = fails(capsys, *TINY, "--data", photos, *flags)
        assert "relu9_9" in sentence and "relu1_1" in sentence
    for flags in (["--vgg", 19], ["--style-layers", "relu5_1"]):
        assert "take torchvision's" in fails(capsys, *TINY, "--weights", "included", *flags)


def test_values_that_are_no_choice(capsys):
    for flag, value in {"--batch-size": 0, "--eval-every": 0, "--nf": 0, "--seed": -1, "--lr": 0,
                        "--size": 47, "--content-size": 4, "--style-size": 1,
                        "--optimize-steps": -1}.items():
        assert "at least" in fails(capsys, *TINY, flag, value), flag
    assert "one number, or 2" in fails(capsys, *TINY, "--style-weight", 1, 2, 3)
    assert "--resume" in fails(capsys, "--resume")  # flags that are gone


def test_folders_that_do_not_serve(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in ("nowhere", tmp_path / "empty"):
        assert "has 0 photos, it takes 4" in fails(capsys, *TINY, "--data", folder)


def test_checkpoints_that_do_not_serve(capsys, trained, photos):
    other = state(trained)
    other["config"] = {"scale": 2, "nf": 4, "blocks": 1}
    torch.save(other, "sr.pt")
    other["config"] = {"nf": 5}
    torch.save(other, "size.pt")
    for name in ("gone.pt", photos / "01.png", "sr.pt", "size.pt"):
        assert f"{name} is no checkpoint" in fails(capsys, "--apply", photos / "01.png",
                                                   "--init", name)


def test_help_names_every_flag_and_default(capsys):
    with pytest.raises(SystemExit):
        style.main(["--help"])
    text = capsys.readouterr().out
    assert "redraw a photo" in text and "default: relu2_2" in text and "--workers" in text
