"""The exercises: each answer runs as it stands, asks its question in form, and is right.

Under torchrun, this file is the two processes of torchrun_style.py, see main.
"""
import ast
import functools
import importlib.util
import os
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import painting
import pytest
import test_seg
import torch
import torch.nn.functional as F
from conftest import PHOTOS, ROOT, small_photos, write
from PIL import Image, ImageStat
from torch import nn

import seg
import sr
import style

EXERCISES = sorted((ROOT / "tests/exercises").glob("*.py"))
FLAGS = {sr: ["--nf", "4", "--blocks", "1", "--batch-size", "2", "--size", "32"],
         seg: ["--nf", "8", "--batch-size", "2", "--size", "32"],
         style: ["--weights", "random", "--content-layer", "relu1_2", "--style-layers", "relu1_1",
                 "relu1_2", "--content-size", "64", "--style-size", "64", "--size", "48",
                 "--nf", "4"]}
# Of those that leave no picture: what the last lines say
PRINTS = {"fewer_photos": r"1 learned +[+-]\d+\.\d\d dB.*\n3 learned +.*\n7 learned +[+-]\d",
          "loss_parts": r"relu2_2 +\d\.\d{4} +\d+% +\d\.\d{4} +\d+%",
          "torchrun_style": r"1 process: there is nothing to compare",
          "two_readings": r"largest difference: 0\.0e\+00",
          "small_objects": r"plain +weighted +with Dice\n(.*\n)*Dice of pole( +\d\.\d{4}){3}\n",
          "light": r"plain +plain dark +varied +varie dark\n.*\nmean IoU( +\d\.\d{4}){4}\n",
          "resnet34": r"ResNet34: [\d,]+ parameters, \d+\.\d\d s a step, mean IoU 0\.\d{3}\n",
          "bfloat16": r"float32 .*1\.00 of.*\nsr.autocast .* of .*\nbfloat16 .*\navx512_bf16: "}


def load(stem):
    spec = importlib.util.spec_from_file_location(stem, ROOT / f"tests/exercises/{stem}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def takes_steps(file):
    return "sys.argv[1] if" in file.read_text() or "int(sys.argv[1])" in file.read_text()


def shrink():
    """Flags, nets and data as small as they may be."""
    for script, flags in FLAGS.items():
        def get_args(argv, parse=script.get_args, flags=flags):
            return parse([*argv, *flags])
        script.get_args = get_args
    seg.BasicBlock = test_seg.LightBlock
    split = seg.split
    seg.split = lambda groups: [part[:8] for part in split(groups)]
    draw = painting.painting
    painting.painting = lambda seed, side, hues: draw(seed, 64, hues)


@pytest.fixture
def restored(monkeypatch):
    """What a test changes in the scripts, the next one finds as it was."""
    kept = {script: {**vars(script)} for script in (*FLAGS, painting)}
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield kept
    for script, attributes in kept.items():
        vars(script).clear()
        vars(script).update(attributes)


@pytest.mark.parametrize("file", EXERCISES, ids=lambda file: file.stem)
def test_it_runs_alone(file, restored, monkeypatch, capsys):
    shrink()
    steps = "1" if file.stem == "bfloat16" else "2"  # slow where the machine has none
    monkeypatch.setattr(sys, "argv", [str(file), steps][:1 + takes_steps(file)])
    runpy.run_path(str(file), run_name="__main__")
    printed = capsys.readouterr().out
    assert {*Path().rglob("*")} <= {Path("out"), *Path("out").rglob("*")}
    assert [path.name for path in Path("out").glob("*")] in ([], ["exercises"])
    picture = Path(f"out/exercises/{file.stem}.png")
    if file.stem in PRINTS:
        assert re.search(PRINTS[file.stem], printed), printed
        assert not picture.exists()
    else:
        assert printed.rstrip().endswith(str(picture))
        with Image.open(picture) as image:
            assert image.format == "PNG" and image.width >= 700
            assert max(ImageStat.Stat(image.convert("RGB")).stddev) > 5  # not blank


@pytest.mark.parametrize("file", EXERCISES, ids=lambda file: file.stem)
def test_its_form(file, restored, capsys):
    text = file.read_text()
    title, question, how = ast.get_docstring(ast.parse(text)).split("\n\n")
    assert re.fullmatch(r"[A-Z][^:?]+: [^?]+\? \(★{1,3}, (1 minute|[2-9] minutes)\)", title)
    assert len(f'"""{title}') <= 88
    sentences = re.findall(r"[.?!](?=\s|$)", question.replace("et al.", "and others"))
    assert 2 <= len(sentences) <= 5, question
    assert f"python tests/exercises/{file.name}`" in how
    assert ("sets the steps" in how) == takes_steps(file)

    lines = [line for line in text.split('"""', 2)[2].splitlines() if line.strip()]
    assert 20 <= sum(not line.lstrip().startswith("#") for line in lines) <= 65
    assert text.endswith('\n\nif __name__ == "__main__":\n    main()\n')
    load(file.stem)
    assert capsys.readouterr().out == "" and not [*Path().iterdir()]
    assert all(vars(script) == attributes for script, attributes in restored.items())


# ---- lesson 1
def test_answers_of_the_first_lesson():
    photo, other = small_photos()[:2]
    plain, blurred = sr.make_pair(photo, 4), load("blur").make_pair(photo, 4, sigma=2)
    assert blurred[0].size == plain[0].size and blurred[1] == plain[1]
    assert np.std(blurred[0]) < np.std(plain[0])

    matched = load("match_histogram").match_histogram(photo, other)
    apart = [np.abs(np.percentile(image, range(5, 100, 10), (0, 1)) -
                    np.percentile(other, range(5, 100, 10), (0, 1))).mean()
             for image in (matched, photo)]
    assert apart[0] < 0.4 * apart[1]

    vgg = sr.VGGFeatures(sr.FEATURE_WEIGHTS, "random")
    out, y = torch.rand(2, 1, 3, 16, 16)
    parts = load("loss_parts").feature_parts(vgg, out, y)
    assert list(parts) == ["pixel", "relu1_2", "relu2_2", "relu3_3"]
    torch.testing.assert_close(sum(parts.values()), sr.feature_loss(vgg, out, y))


def test_a_flat_colour_is_rough_without_icnr():
    board = load("checkerboard")
    nets = {kind: board.new_net(kind) for kind in ("ICNR", "without ICNR", "transposed")}
    rough = {kind: board.roughness(net) for kind, net in nets.items()}
    assert rough["ICNR"] < 1e-6 < 1e-3 < min(rough["without ICNR"], rough["transposed"])
    for net in nets.values():
        assert net.tail.weight.std() > 0.05
        out = board.flat_colour(net)
        assert out.shape == (3, 16, 16)  # it repeats every two pixels, so no border is in it
        torch.testing.assert_close(out[:, 2:, 2:], out[:, :-2, :-2])


def test_a_small_photo_as_jpeg():
    answer = load("jpeg_input")
    photo = small_photos()[0]
    plain, (low, high) = sr.make_pair(photo, 4), answer.jpeg_pair(photo, 4)
    assert low.size == plain[0].size and high == plain[1]
    error = [np.abs(np.array(image, float) - np.array(plain[0], float)).mean()
             for image in (low, answer.jpeg(plain[0], quality=95))]
    assert error[0] > 2 * error[1] > 0


def test_the_open_loop_learns_as_sr_does(monkeypatch, capsys):
    args = sr.get_args(["--device", "cpu", *FLAGS[sr]])
    crops = sr.Crops(write(small_photos()[:4], "photos"), args.size, args.scale)
    pair = sr.make_pair(sr.open_image(PHOTOS[2]), args.scale)
    nets = []
    for _ in range(2):
        torch.manual_seed(0)
        nets.append(sr.SrResnet(args.scale, args.nf, args.blocks))
    tiles = load("film").shoot(nets[0], crops, pair, 9, args)
    sr.train(nets[1], F.l1_loss, Path("net.pt"), 9, args.lr, crops, [pair], args)
    for ours, theirs in zip(*(net.state_dict().values() for net in nets), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    psnr, = re.findall(r"psnr (\S+) dB", capsys.readouterr().out)
    assert [title.split()[0] for title in tiles] == ["0", "1", "4", "9"]
    assert [*tiles][-1].endswith(f"{psnr} dB") and {tile.size for tile in tiles.values()} == {
        (256, 256)}


# ---- lesson 2
def test_the_photos_own_colours():
    photo, other = small_photos()[:2]
    kept = load("keep_colours").keep_colours(other, photo).convert("YCbCr").split()
    for n, source in enumerate((other, photo, photo)):  # brightness of one, colours of the other
        wanted = np.asarray(source.convert("YCbCr").split()[n], float)
        assert np.abs(kept[n] - wanted).mean() < 4


def test_the_camera_keeps_what_the_optimiser_sees():
    args = style.get_args(["--device", "cpu", *FLAGS[style], "--optimize-steps", "3",
                           "--start", "noise"])
    x = style.to_tensor(small_photos(1, 48)[0])[None]
    camera = load("film_of_paint").Camera(x, args, {0, 2, 3})
    torch.manual_seed(3)
    image, _ = style.optimize(x, camera, "photo", os.devnull, args)
    torch.manual_seed(3)
    assert [*camera.pictures] == ["0 steps", "2 steps", "3 steps"]
    assert camera.pictures["0 steps"] == style.to_image(torch.rand_like(x)[0])
    assert camera.pictures["3 steps"] == style.to_image(image[0]) != camera.pictures["2 steps"]


def test_a_second_painting_trains_the_norms_alone(restored):
    answer = load("second_painting")
    assert answer.count(answer.only_norms(answer.NIGHT)) == (1600, 424_099)
    style.load_checkpoint = answer.only_norms
    style.main(["--init", str(answer.NIGHT), "--steps", "3", "--optimize-steps", "0", "--device",
                "cpu", *FLAGS[style], "--data", str(ROOT / "tests/data/photos"), "--out", "second"])
    before, after = (torch.load(path, weights_only=True)["model"]
                     for path in (answer.NIGHT, "second/network.pt"))
    for name in before:  # a norm follows its conv
        changed = not torch.equal(before[name].float(), after[name])
        assert changed == (".1." in name and name.count(".") > 2), name


def test_cropped_blocks_do_not_pad():
    net = load("crop_blocks").CroppedNet(4)
    assert net(torch.rand(2, 3, 50, 65)).shape == (2, 3, 50, 65)
    blocks = [layer for layer in net.layers if isinstance(layer, style.ResBlock)]
    convs = [m for block in blocks for m in block.modules() if isinstance(m, nn.Conv2d)]
    assert len(blocks) == 5 and len(convs) == 10
    assert all(conv.padding == (0, 0) and conv.padding_mode == "zeros" for conv in convs)
    x = torch.rand(1, 16, 9, 9)
    for layer in blocks[0]:  # with its branch at zero, a block is its shortcut
        if isinstance(layer, nn.Sequential):
            nn.init.zeros_(layer[1].weight)
    torch.testing.assert_close(blocks[0](x), x[..., 2:-2, 2:-2])


def test_gradients_are_means_and_crops_are_shared(monkeypatch):
    answer = load("torchrun_style")
    answer.WORLD, answer.RANK = 2, 1
    crops = style.Crops(write(small_photos()[:4], "photos"), 48)
    share = answer.Share(crops.paths, 48)
    assert torch.equal(share[3], crops[7]) and not torch.equal(share[3], crops[6])

    monkeypatch.setattr(torch.distributed, "all_reduce", lambda grad: grad.mul_(6))  # 1 + 5
    nets = style.StyleNet(4), answer.SharedNet(4)
    nets[1].load_state_dict(nets[0].state_dict())
    for net in nets:
        net(crops[0][None]).square().sum().backward()
    for alone, shared in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(shared.grad, 3 * alone.grad)


def test_two_processes_hold_the_same_weights_and_learn_as_one(two_ranks, restored):
    assert two_ranks.count("2 processes, the same weights in all: True") == 1  # process 0 alone
    assert two_ranks.count("of other weights: False") == 2
    first, second = (torch.load(f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [*Path("out/exercises").iterdir()] == [Path("out/exercises/torchrun_style")]

    # Two processes of a crop each take the steps of one with two
    style.main([*FLAGS[style], "--data", str(ROOT / "tests/data/photos"), "--steps", "2",
                "--optimize-steps", "0", "--device", "cpu", "--batch-size", "2", "--out", "one"])
    one = torch.load("one/network.pt", weights_only=True)["model"]
    torch.manual_seed(0)
    start = style.StyleNet(4).state_dict()

    def apart(a, b):
        return sum((a[name] - b[name]).abs().sum() for name in a)
    assert apart(first, one) < 0.02 * apart(first, start)


def main():
    """A process of torchrun_style.py, small, which also keeps its weights as rank<n>.pt."""
    shrink()
    answer = load("torchrun_style")
    sys.argv = ["torchrun_style.py", "2"]
    load_checkpoint = style.load_checkpoint

    def keep(path):
        model = load_checkpoint(path)
        torch.save(model.state_dict(), f"rank{answer.RANK}.pt")
        other = nn.Linear(1, 1)
        nn.init.constant_(other.weight, answer.RANK)
        print(f"of other weights: {answer.all_equal(other)}", file=sys.__stdout__)
        return model

    style.load_checkpoint = keep
    answer.main()


# ---- lesson 3
def test_two_readings_of_a_transposed_convolution():
    answer = load("two_readings")
    x, kernel = torch.rand(4, 5), torch.rand(3, 3)
    for stride in (1, 2, 3):
        want = F.conv_transpose2d(x[None, None], kernel[None, None], stride=stride)[0, 0]
        torch.testing.assert_close(answer.transposed_conv(x, kernel, stride), want)
        torch.testing.assert_close(answer.by_convolution(x, kernel, stride), want)
    assert answer.transposed_conv(x, torch.ones(2, 2), 2).shape == (8, 10)  # it doubles
    row = answer.transposed_conv(torch.ones(1, 4), torch.ones(3, 3), 2)[0]
    assert row.tolist() == [1, 1, 2, 1, 2, 1, 2, 1, 1]
    even = answer.transposed_conv(torch.ones(1, 4), torch.ones(2, 2), 2)[0]
    assert even.tolist() == [1] * 8  # it never overlaps


@functools.cache
def street_pairs():
    folder = ROOT / "tests/data/streets"
    return [(folder / f"images/street0{n}_0.jpg", folder / f"masks/street0{n}_0.png")
            for n in range(4)]


def test_rates_of_the_range_test(monkeypatch):
    monkeypatch.setattr(seg, "BasicBlock", test_seg.LightBlock)
    answer = load("find_rate")
    model = seg.Segmenter("unet", 8, 32, test_seg.CLASSES)
    start = model.head[4].weight.clone()
    curve = answer.find_lr(model, seg.Crops(street_pairs(), 32), 5, 2)
    rates, losses = zip(*curve, strict=True)
    assert rates == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 1e-1])
    assert np.isfinite(losses).all() and not torch.equal(start, model.head[4].weight)

    image = np.array(answer.draw([(1e-5, 2.0), (1e-3, 1.0), (1e-1, float("nan")), (1, 8.0)]))
    red = (image == (220, 20, 60)).all(2)  # crimson
    tops = [np.flatnonzero(red[:, x]).mean() for x in (40, 340, 640, 789)]
    assert tops == pytest.approx([220, 320, 20, 20], abs=3)  # half of the top, a quarter, the top


def test_losses_for_small_objects():
    answer = load("small_objects")
    masks = [Image.fromarray(np.uint8([[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 2]]))]
    weights = answer.class_weights([*masks, Image.new("L", (4, 4), seg.VOID)], "abc")
    assert (weights / weights[0]).tolist() == pytest.approx([1, (11 / 4)**0.5, 11**0.5])
    assert weights.mean().item() == pytest.approx(1)

    y = torch.tensor(np.array(masks[0])).long()[None]
    logits = torch.randn(1, 3, 4, 4)
    shares = logits.softmax(1)[0]
    dice = [(2 * shares[n][y[0] == n].sum() + 1) / (shares[n].sum() + (y == n).sum() + 1)
            for n in range(3)]
    torch.testing.assert_close(answer.dice_loss(logits, y), 1 - sum(dice) / 3)
    right = 99. * F.one_hot(y, 3).movedim(-1, 1)
    assert answer.dice_loss(right, y) < 1e-5 < 0.5 < answer.dice_loss(-right, y)
    unknown = y.clone()
    unknown[:, 1] = seg.VOID  # there, the logits do not count
    other = logits.clone()
    other[:, :, 1] = 7 * torch.randn(1, 3, 4)
    same = answer.dice_loss(logits, unknown)
    torch.testing.assert_close(answer.dice_loss(other, unknown), same)
    assert answer.dice_loss(logits, y) != same


def test_light_changes_the_photo_alone():
    answer = load("light")
    photo = Image.new("RGB", (8, 8), (100, 90, 80))
    light = [answer.jitter(photo, np.random.default_rng(i)) for i in range(9)]
    assert len({image.getpixel((0, 0)) for image in light}) > 5 and photo.getpixel((0, 0))[0] == 100
    plain, lit = (kind(street_pairs(), 48, 1) for kind in (seg.Crops, answer.LitCrops))
    ratios = []
    for n in range(6):
        assert torch.equal(plain[n][1], lit[n][1]) and torch.equal(lit[n][0], lit[n][0])
        ratios.append((lit[n][0].mean() / plain[n][0].mean()).item())
    assert 0.7 < min(ratios) < 0.98 and 1.02 < max(ratios) < 1.35

    class Model:
        predict = staticmethod(np.mean)
    assert answer.in_the_dark(Model)(photo) == pytest.approx(0.6 * 90, abs=1)


def test_a_resnet34_as_torchvisions():
    with torch.device("meta"):
        state = load("resnet34").resnet34().state_dict()
    numbers = sum(v.numel() for k, v in state.items() if "running" not in k and "num" not in k)
    assert numbers == 21_797_672 - 513_000  # torchvision's, without its last layer
    blocks = {f"{layer}.{n}" for layer, n in re.findall(r"(layer\d)\.(\d)\.conv1", " ".join(state))}
    assert blocks == {f"layer{i}.{n}" for i, count in zip((1, 2, 3, 4), (3, 4, 6, 3), strict=True)
                      for n in range(count)}
    assert [k for k in state if "downsample.0" in k] == [
        f"layer{i}.0.downsample.0.weight" for i in (2, 3, 4)]


@pytest.mark.parametrize("kind", ["HalfSegmenter", "AlwaysHalf"])
def test_convolutions_in_bfloat16_and_logits_in_float32(kind, monkeypatch):
    monkeypatch.setattr(seg, "BasicBlock", test_seg.LightBlock)
    asked = []

    def autocast(device):
        asked.append(device)
        return torch.autocast(device, torch.bfloat16)
    monkeypatch.setattr(sr, "autocast", autocast)
    nets = [cls("unet", 8, 32, ["a", "b"]) for cls in (getattr(load("bfloat16"), kind),
                                                      seg.Segmenter)]
    nets[1].load_state_dict(nets[0].state_dict())
    types = []
    nets[0].head[4].register_forward_hook(lambda module, args, out: types.append(out.dtype))
    x = torch.rand(2, 3, 32, 32)
    half, full = (net.eval()(x) for net in nets)
    assert types == [torch.bfloat16] and half.dtype == torch.float32
    assert asked == (["cpu"] if kind == "HalfSegmenter" else [])
    assert 0 < (half - full).abs().mean() < 0.05 * full.abs().mean()


def test_a_mask_over_its_photo():
    photo = Image.new("RGB", (8, 8), (100, 100, 100))
    numbers = np.zeros((4, 4), np.uint8)
    numbers[2:, 2:] = 1
    mask = seg.paint(numbers, numbers)
    result = np.array(load("overlay").overlay(photo, mask))
    left = (np.array(mask.convert("RGB"))[0, 0].astype(int) + 100) // 2
    right = (np.array(mask.convert("RGB"))[3, 3].astype(int) + 100) // 2
    assert np.abs(result[:3] - left).max() <= 1 and np.abs(result[5:, 5:] - right).max() <= 1
    white = (result == 255).all(2)
    wanted = np.zeros((8, 8), bool)
    wanted[3:5, 4:] = wanted[4:, 3:5] = True
    assert (white == wanted).all()


if __name__ == "__main__":
    main()
