"""style.py: parity, invariants, learning; the command line, and files that go wrong."""
import functools
from functools import partial
from pathlib import Path

import conftest
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import same, state
from PIL import Image
from torch import nn

import style
from common import VGGFeatures, gram_matrix

style.painting = functools.cache(style.painting)  # each takes a second, and most tests draw one
style.landscape = functools.cache(style.landscape)

TINY = ["--steps", "4", "--optimize-steps", "2", "--batch-size", "2", "--size", "32",
        "--content-size", "32", "--nf", "4", "--eval-every", "2", "--device", "cpu",
        "--weights", "random", "--content-layer", "relu1_2", "--style-layers", "relu1_1", "relu1_2"]


def loss_of(*flags, seed=0):
    args = style.get_args([*TINY, *flags])
    painting = style.to_tensor(style.painting(seed, 48))[None]
    return style.PerceptualLoss(painting, args, "random"), painting


def photos_of(n, side=32):
    return torch.stack([style.to_tensor(style.landscape(3, i, side)) for i in range(n)])


# ---- loss
def test_perceptual_loss_against_loops():
    perceptual, painting = loss_of("--style-weight", "5", "--tv", "0.3", "--content-weight", "2")
    vgg = VGGFeatures(["relu1_1", "relu1_2"], "random")
    x = photos_of(2)
    out = torch.rand_like(x, requires_grad=True)
    parts = perceptual(out, x)
    for i in range(2):
        a, b, p = (vgg(t) for t in (out[i:i + 1], x[i:i + 1], painting))
        content = (a["relu1_2"] - b["relu1_2"]).square().sum() / b["relu1_2"].square().sum()
        styles = []
        for layer in ("relu1_1", "relu1_2"):
            grams = []
            for features in (a[layer], p[layer]):
                channels = features[0].flatten(1)
                rows = [torch.stack([(u * v).sum() for v in channels]) for u in channels]
                grams.append(torch.stack(rows) / features[0].numel())
            styles.append((grams[0] - grams[1]).square().sum() / grams[1].square().sum())
        variation = ((out[i, :, 1:] - out[i, :, :-1]).abs().mean() +
                     (out[i, ..., 1:] - out[i, ..., :-1]).abs().mean())
        wanted = {"content": 2 * content, "style": 5 * sum(styles) / 2,
                  "variation": 0.3 * variation}
        for name, value in wanted.items():
            torch.testing.assert_close(parts[name][i], value, rtol=1e-3, atol=1e-6)
    sum(parts.values()).sum().backward()
    assert out.grad.abs().sum() > 0


def test_the_photo_has_no_content_loss_and_the_painting_no_style_loss():
    perceptual, painting = loss_of()
    x = photos_of(1)
    assert perceptual(x, x)["content"] == 0 < perceptual(x, x)["style"]
    assert perceptual(painting, painting)["style"] < 1e-8


def test_the_loss_of_an_image_does_not_depend_on_its_batch():
    perceptual, _ = loss_of()
    x, out = photos_of(3), torch.rand(3, 3, 32, 32)
    whole = perceptual(out, x)
    for i in range(3):
        alone = perceptual(out[i:i + 1], x[i:i + 1])
        for name, value in alone.items():
            torch.testing.assert_close(whole[name][i:i + 1], value)


def test_a_gram_matrix_does_not_know_where():
    features = torch.rand(1, 6, 8, 8)
    shuffled = features.flatten(2)[..., torch.randperm(64)].view_as(features)
    torch.testing.assert_close(gram_matrix(features), gram_matrix(shuffled))
    fewer = features.clone()
    fewer[:, 0] = 0  # the twin: what is there does count
    assert not torch.allclose(gram_matrix(features), gram_matrix(fewer))


# ---- data
def test_generated_pictures_are_functions_of_the_seed():
    for make in (partial(style.landscape, 0, 1, 48), partial(style.painting, 0, 48)):
        assert np.array_equal(make(), make()) and make().size == (48, 48)
    assert not np.array_equal(style.landscape(0, 1, 48), style.landscape(0, 2, 48))
    assert not np.array_equal(style.painting(0, 48), style.painting(1, 48))


@pytest.mark.parametrize("power", [1.2, 1.7])
def test_noise_has_the_spectrum_it_is_asked_for(power):
    images = [style.noise(np.random.default_rng(i), 64, power)[..., 0] for i in range(8)]
    assert all(image.min() == 0 and image.max() == 1 for image in images)
    spectrum = np.mean([np.abs(np.fft.fft2(image - image.mean())) for image in images], 0)
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64)))
    use = (f > 0.03) & (f < 0.4)
    slope = np.polyfit(np.log(f[use]), np.log(spectrum[use]), 1)[0]
    assert slope == pytest.approx(-power, abs=0.1)


def test_a_landscape_is_dark_below_and_bright_above():
    pictures = [np.asarray(style.landscape(0, i, 64), float).mean(2) for i in range(12)]
    assert np.mean([p[:16].mean() for p in pictures]) > np.mean([p[-16:].mean() for p in pictures])


def test_strokes_run_along_the_flow():
    """Neighbours along the local direction are more alike than across it, unlike in noise."""
    def anisotropy(image):
        grey = np.asarray(image.convert("L"), float)
        dy, dx = np.gradient(grey)
        tensor = [F.avg_pool2d(torch.from_numpy(t)[None, None], 9, 1)[0, 0].numpy()
                  for t in (dx * dx, dy * dy, dx * dy)]
        spread = np.hypot(tensor[0] - tensor[1], 2 * tensor[2])
        return (spread / (tensor[0] + tensor[1] + 1e-9)).mean()
    assert anisotropy(style.painting(0, 128)) > anisotropy(Image.effect_noise((128, 128), 60)) + 0.2


def test_sample_n_is_a_function_of_seed_and_n(photos):
    crops = style.Crops(style.find_photos(photos, 32), 32)
    assert torch.equal(crops[5], crops[5]) and not torch.equal(crops[5], crops[6])
    assert not torch.equal(crops[5], style.Crops(crops.photos, 32, 1)[5])
    assert crops[5].shape == (3, 32, 32)


# ---- model
@pytest.mark.parametrize("size", [(32, 32), (33, 46), (9, 50)])
def test_output_has_the_size_of_the_input_and_is_bounded(size):
    net = style.StyleNet(4)
    out = net(torch.rand(2, 3, *size))
    assert out.shape == (2, 3, *size) and out.min() >= 0 and out.max() <= 1


def test_each_image_is_treated_alone():
    net, x = style.StyleNet(4), photos_of(3)
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]), rtol=1e-4, atol=1e-5)


def test_reflection_marks_borders_less_than_zeros():
    """The outer 8 px against those of the same photo with 32 px more around it.

    Batch norm in use has no sight of the picture, so that nothing but the borders differs.
    """
    x = torch.stack([style.to_tensor(style.landscape(0, i, 128)) for i in range(2)])
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
            error = (net(x)[..., 32:-32, 32:-32] - net(x[..., 32:-32, 32:-32])).abs()
        error[..., 8:-8, 8:-8] = float("nan")
        errors[mode] = error.nanmean()
    assert errors["reflect"] < 0.7 * errors["zeros"]


# ---- learning
@pytest.mark.parametrize("start", ["photo", "noise"])
def test_optimising_lowers_the_loss(start):
    perceptual, _ = loss_of()
    args = style.get_args([*TINY, "--start", start, "--optimize-steps", "12"])
    x = photos_of(1)
    image, losses = style.optimize(x, perceptual, Path("log.csv"), args)
    assert len(losses) == 13 and losses[-1] < 0.8 * losses[0]
    assert image.min() >= 0 and image.max() <= 1 and not image.requires_grad
    if start == "photo":  # the first loss is that of the photo itself
        assert losses[0] == pytest.approx(sum(perceptual(x, x).values()).item())


def test_content_alone_from_noise_inverts_a_layer():
    x = photos_of(1)
    args = style.get_args([*TINY, "--start", "noise", "--style-weight", "0", "--tv", "0",
                           "--optimize-steps", "60"])
    perceptual = style.PerceptualLoss(x, args, "random")
    image, losses = style.optimize(x, perceptual, Path("log.csv"), args)
    assert losses[-1] < 0.1 * losses[0]
    noise = torch.rand_like(x)
    assert (image - x).abs().mean() < 0.5 * (noise - x).abs().mean()


def test_a_net_learns_its_own_painting_better_than_another():
    x = photos_of(4)
    losses = {}
    for seed in (0, 5):
        torch.manual_seed(0)
        perceptual, _ = loss_of(seed=seed)
        net = style.StyleNet(4)
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(25):
            optimizer.zero_grad()
            sum(perceptual(net(x), x).values()).mean().backward()
            optimizer.step()
        for other in (0, 5):
            parts = style.evaluate(net, loss_of(seed=other)[0], x)
            losses[seed, other] = parts["style"].item()
    assert losses[0, 0] < losses[5, 0] and losses[5, 5] < losses[0, 5]


# ---- the loop and the command line
def run(out, *flags):
    style.main(["--out", str(out), *TINY, *map(str, flags)])


def fails(capsys, *argv):
    return conftest.fails(style, capsys, *argv)


@pytest.fixture
def trained(photos):
    run("out/style", "--data", photos)
    return Path("out/style/network.pt")


def test_a_run_from_the_first_line_to_the_figure(photos, capsys):
    Image.new("RGB", (50, 40), "teal").save("sea.png")
    run("out", "--data", photos, "--content", photos / "01.png", "--style", "sea.png")
    out = capsys.readouterr().out
    assert "a batch: 2 of (3, 32, 32)" in out
    assert out.index("photos      0") < out.index("network     2")  # the baseline comes first
    assert out.count("the network is as good as") == 3
    assert {p.name for p in Path("out").iterdir()} == {"network.pt", "log.csv", "figure.png",
                                                       "optimised.png"}
    with Image.open("out/figure.png") as figure:
        assert figure.size == (264 * 3, 292 * 4)  # the painting, then three photos
    log = np.genfromtxt("out/log.csv", delimiter=",", names=True, dtype=None, encoding=None)
    assert log.dtype.names == ("stage", "step", "content", "style", "variation", "total")
    np.testing.assert_allclose(log["content"] + log["style"] + log["variation"], log["total"],
                               rtol=1e-4)
    assert {*log["stage"]} == {"photos", "network", "optimise"}


def test_the_style_is_the_upper_right_square(photos, monkeypatch):
    seen = []
    real = style.PerceptualLoss
    monkeypatch.setattr(style, "PerceptualLoss",
                        lambda painting, *rest: seen.append(painting) or real(painting, *rest))
    picture = Image.new("RGB", (60, 90), "red")
    picture.paste("blue", (0, 0, 60, 60))
    picture.save("tall.png")
    run("out", "--data", photos, "--style", "tall.png")
    assert seen[0].shape == (1, 3, 256, 256)
    assert seen[0][0, 2].median() > 0.9 and seen[0][0, 0].median() < 0.1  # blue


def test_checkpoint_is_one_dict_of_plain_types(trained):
    checkpoint = state(trained)
    assert sorted(checkpoint) == ["args", "config", "model", "optimizer", "step"]
    assert checkpoint["config"] == {"nf": 4} and checkpoint["step"] == 4


def test_stopped_and_resumed_is_never_stopped(photos, monkeypatch):
    run("whole", "--data", photos)
    real, done = torch.optim.Adam.step, []

    def press(self, *args):
        done.append(1)
        if len(done) == 4:
            raise KeyboardInterrupt
        return real(self, *args)

    with monkeypatch.context() as context:
        context.setattr(torch.optim.Adam, "step", press)
        with pytest.raises(KeyboardInterrupt):
            run("halves", "--data", photos)
    assert state("halves/network.pt")["step"] == 2
    run("halves", "--data", photos, "--resume")
    assert same(state("whole/network.pt"), state("halves/network.pt"))


def test_what_is_not_finite_is_never_saved(photos, monkeypatch):
    real, calls = style.PerceptualLoss.__call__, []

    def broken(self, out, x):
        calls.append(out.requires_grad)
        parts = real(self, out, x)
        return parts if sum(calls) < 3 else {k: v * float("nan") for k, v in parts.items()}

    monkeypatch.setattr(style.PerceptualLoss, "__call__", broken)
    with pytest.raises(SystemExit, match="loss is nan.*lower --lr.*out/network.pt"):
        run("out", "--data", photos)
    assert state("out/network.pt")["step"] == 2


def test_an_earlier_run_is_renamed_whole(photos, capsys):
    run("out", "--data", photos)
    run("out", "--data", photos, "--seed", 1)
    kept = [path for path in Path().iterdir() if path.name.startswith("out-")]
    assert len(kept) == 1 and f"earlier run kept as {kept[0]}" in capsys.readouterr().out
    assert not same(state(kept[0] / "network.pt"), state("out/network.pt"))


def test_training_lowers_the_loss_on_photos_it_has_not_seen(photos):
    run("out", "--data", photos, "--steps", 40, "--eval-every", 40, "--lr", "1e-2")
    log = np.genfromtxt("out/log.csv", delimiter=",", names=True, dtype=None, encoding=None)
    photo, network = (log["total"][log["stage"] == name][0] for name in ("photos", "network"))
    assert network < 0.8 * photo


def test_flags_that_change_the_result(photos):
    def weights(*flags):
        out = "_".join(["out", *flags])
        pictures = ["--style", photos / "01.png", "--content", photos / "02.png"]
        run(out, "--data", photos, *pictures, "--optimize-steps", "1", *flags)
        return state(f"{out}/network.pt")["model"]["layers.0.0.weight"]
    base = weights()
    for flags in (["--lr", "1e-4"], ["--seed", "2"], ["--batch-size", "3"], ["--size", "36"],
                  ["--style-weight", "50"], ["--content-weight", "0"], ["--tv", "9"],
                  ["--content-layer", "relu1_1"], ["--style-layers", "relu1_1"]):
        assert not torch.equal(base, weights(*flags)), flags


def test_training_goes_on_from_a_checkpoint(photos, trained, capsys):
    run("more", "--data", photos, "--init", trained)
    assert f"loaded {trained} (step 4)" in capsys.readouterr().out
    assert not same(state("more/network.pt"), state(trained))


def test_without_photos_pictures_or_network(capsys):
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
    style.landscape(0, 0, 45).crop((0, 0, 45, 31)).convert(mode).save("in.png")
    style.main(["--apply", "in.png", "--init", str(trained), "--out", "styled"])
    with Image.open("styled/in_styled.png") as styled:
        assert styled.size == (45, 31) and styled.mode == "RGB"


def test_a_bad_file_among_many_does_not_stop_the_others(capsys, trained, photos):
    Path("notes.jpg").write_text("no photo")
    with pytest.raises(SystemExit) as stop:
        style.main(["--apply", "notes.jpg", str(photos / "01.png"), "--init", str(trained)])
    assert "cannot read notes.jpg" in stop.value.code
    before = Path("out/style/01_styled.png").read_bytes()
    assert "01_styled.png exists" in fails(capsys, "--apply", photos / "01.png", "--init", trained)
    assert Path("out/style/01_styled.png").read_bytes() == before


def test_pictures_that_are_none(photos):
    for flag in ("--style", "--content"):
        with pytest.raises(OSError, match="cannot read gone.png"):  # a sentence, in a shell
            run("out", "--data", photos, flag, "gone.png")


def test_layers_that_vgg_does_not_have(photos, capsys):
    for flag in ("--content-layer", "--style-layers"):
        sentence = fails(capsys, *TINY, "--data", photos, flag, "relu9_9")
        assert "relu9_9" in sentence and "relu1_1" in sentence


def test_folders_that_do_not_serve(capsys, tmp_path):
    assert "no such folder" in fails(capsys, *TINY, "--data", "nowhere")
    (tmp_path / "empty").mkdir()
    assert "takes 2 usable photos" in fails(capsys, *TINY, "--data", tmp_path / "empty")
    assert "--norm" in fails(capsys, "--norm", "batch")  # flags that are gone


def test_checkpoints_that_do_not_serve(capsys, trained, photos):
    other = state(trained)
    other["config"] = {"scale": 2, "nf": 4, "blocks": 1}
    torch.save(other, "sr.pt")
    for name in ("gone.pt", photos / "01.png", "sr.pt"):
        assert f"{name} is no checkpoint" in fails(capsys, "--apply", photos / "01.png",
                                                   "--init", name)
    sentence = fails(capsys, *TINY, "--data", photos, "--nf", 5, "--init", trained)
    assert "is no checkpoint" in sentence and "size mismatch" in sentence


def test_vgg_sees_style():
    """A painting is nearer to another crop of itself than a photo is."""
    painted = style.painting(0)
    args = style.get_args(["--device", "cpu"])
    left, right = (style.to_tensor(painted.crop((x, 0, x + 128, 128)))[None] for x in (0, 128))
    perceptual = style.PerceptualLoss(right, args, "included")
    photo = style.to_tensor(style.landscape(0, 0, 128))[None]
    assert perceptual(left, left)["style"] < 0.5 * perceptual(photo, photo)["style"]
