"""seg.py: parity, invariants, learning; the command line, and files that go wrong."""
import copy
import functools
import shutil
from pathlib import Path

import conftest
import numpy as np
import pytest
import streets
import torch
import torch.nn.functional as F
from conftest import ROOT, same, state
from PIL import Image
from torch import nn

import seg
from common import SaveFeatures

STREETS = ROOT / "tests/data/streets"
CLASSES = "sky road house tree pole car".split()
TINY = ["--steps", "4", "--batch-size", "2", "--size", "32", "--nf", "4", "--eval-every", "2",
        "--device", "cpu"]


class LightBlock(nn.Module):
    """BasicBlock with the same names and channels, and a 64th of the weights to train and save."""

    def __init__(self, channels_in, channels_out, stride=1):
        super().__init__()
        channels = channels_in, channels_out
        self.conv1 = nn.Conv2d(*channels, 3, stride, padding=1, groups=64, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, groups=64, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample = nn.Identity() if stride == 1 else nn.Sequential(
            nn.Conv2d(*channels, 1, stride, bias=False), nn.BatchNorm2d(channels_out))

    forward = seg.BasicBlock.forward


@pytest.fixture
def light(monkeypatch):
    """For tests of the loop and the command line; what a net computes is tested without."""
    monkeypatch.setattr(seg, "BasicBlock", LightBlock)


@functools.cache
def views(count=3, side=48):
    """[(name, photo, mask)]: four views of each of some streets of tests/data, reduced."""
    pairs = []
    for name in [f"street{n:02}_{view}" for n in range(count) for view in range(4)]:
        photo = Image.open(STREETS / f"images/{name}.jpg").resize((side, side))
        mask = Image.open(STREETS / f"masks/{name}.png").resize((side, side), Image.NEAREST)
        pairs.append((name, photo, Image.fromarray(np.array(mask))))
    return pairs


def write(root, photos="images", masks="masks", suffix=".png", names=None, count=3, scale=1):
    """These views as files of one of the layouts. With names of classes, a classes.txt; without,
    the houses are the one object."""
    for folder in (photos, masks):
        (root / folder).mkdir(parents=True, exist_ok=True)
    if names:
        (root / "classes.txt").write_text("\n".join(names) + "\n")
    for name, photo, mask in views(count):
        photo.save(root / photos / f"{name}.png")
        mask = mask if names else mask.point(lambda v: scale * (v == 2))
        mask.save(root / masks / f"{name}{suffix}")
    return root


@pytest.fixture
def data(tmp_path, light):
    return write(tmp_path / "data", names=CLASSES)


def run(out, *flags):
    seg.main(["--out", str(out), *TINY, *map(str, flags)])
    return Path(out)


def fails(capsys, *argv):
    return conftest.fails(seg, capsys, *argv)


def read(root, size=48):
    """[(photo, mask)] of all pairs of a folder, and its classes."""
    classes, groups = seg.find_pairs(root)
    return [seg.open_pair(*pair, size) for pair in sum(groups.values(), [])], classes


@pytest.fixture
def trained(data):
    return run("out/seg", "--data", data, "--model", "unet") / "unet.pt"


# ---- transposed convolution
@pytest.mark.parametrize("kernel, stride, pad", [(2, 2, 0), (3, 2, 1), (64, 32, 16)])
def test_transposed_convolution_stamps_and_adds(kernel, stride, pad):
    """Also its other reading: zeros between the pixels, a border, the flipped kernel."""
    x = torch.randn(1, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, 2, kernel, kernel, dtype=torch.float64)
    large = torch.zeros(1, 2, 3 * stride + kernel, stride + kernel, dtype=torch.float64)
    for i in range(4):
        for j in range(2):
            stamp = torch.einsum("bc,cdhw->bdhw", x[:, :, i, j], w)
            right = large.shape[3] - j * stride - kernel
            below = large.shape[2] - i * stride - kernel
            large = large + F.pad(stamp, (j * stride, right, i * stride, below))
    want = large[:, :, pad:large.shape[2] - pad, pad:large.shape[3] - pad]
    spread = torch.zeros(1, 3, 3 * stride + 1, stride + 1, dtype=torch.float64)
    spread[:, :, ::stride, ::stride] = x.detach()
    other = F.conv2d(F.pad(spread, [kernel - pad - 1] * 4), w.flip(2, 3).transpose(0, 1))
    got = F.conv_transpose2d(x, w, stride=stride, padding=pad)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(got.detach(), other)
    torch.testing.assert_close(*[torch.autograd.grad(t.square().sum(), x)[0] for t in (got, want)])
    assert got.shape[2] == stride * 4 + kernel - 2 * pad - stride


def test_transposed_convolution_brings_back_the_size_and_not_the_values():
    x = torch.randn(1, 3, 16, 12)
    there = nn.Conv2d(3, 8, 5, padding=2, stride=2)
    back = nn.ConvTranspose2d(8, 3, 5, padding=2, stride=2, output_padding=1)
    assert back(there(x)).shape == x.shape and not torch.allclose(back(there(x)), x, atol=0.1)


# ---- model
def test_resnet_has_the_names_and_shapes_of_torchvisions_file():
    net = seg.resnet18()
    assert sum(p.numel() for p in net.parameters()) == 11_176_512
    bn = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    names = ["conv1.weight", *(f"bn1.{n}" for n in bn)]
    for layer in range(1, 5):
        for b in range(2):
            start = f"layer{layer}.{b}."
            for k in (1, 2):
                names += [f"{start}conv{k}.weight", *(f"{start}bn{k}.{n}" for n in bn)]
            if layer > 1 and b == 0:
                names += [f"{start}downsample.0.weight"]
                names += [f"{start}downsample.1.{n}" for n in bn]
    shapes = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    assert set(shapes) == set(names)
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert shapes["layer3.0.conv1.weight"] == (256, 128, 3, 3)
    assert shapes["layer3.0.downsample.0.weight"] == (256, 128, 1, 1)


def test_hooks_deliver_what_slicing_delivers():
    encoder = seg.resnet18().eval()
    x = torch.rand(1, 3, 64, 32)
    ends = {"relu": 3, "layer1": 5, "layer2": 6, "layer3": 7}
    hooks = {name: SaveFeatures(getattr(encoder, name)) for name in ends}
    with torch.no_grad():
        assert encoder(x).shape == (1, 512, 2, 1)
        for name, end in ends.items():
            assert torch.equal(hooks[name].features, nn.Sequential(*[*encoder][:end])(x)), name
    assert [hooks[name].features.shape[2] for name in ends] == [32, 16, 8, 4]


@pytest.mark.parametrize("name, sees", [("unet", True), ("simple", False), ("fcn", False)])
def test_unet_sees_the_skips_and_the_others_do_not(name, sees):
    """What comes after layer1 is cut off, so that only a skip can tell its input."""
    model = seg.Segmenter(name, 8, 64, CLASSES).eval()
    x = torch.rand(1, 3, 64, 64)
    outs = []
    for noise in (0, 1):
        model.encoder.layer1.register_forward_pre_hook(lambda m, i, n=noise: i[0] + n)
        model.encoder.layer2.register_forward_pre_hook(lambda m, i: torch.zeros_like(i[0]))
        outs.append(model(x))
    assert torch.equal(*outs) != sees


def test_the_fcn_begins_as_bilinear_interpolation():
    head = seg.FCN(None, 8, 3)
    logits = torch.randn(2, 3, 4, 5)
    wanted = F.interpolate(logits, scale_factor=32, mode="bilinear", align_corners=False)
    got = F.conv_transpose2d(logits, head[1].weight, stride=32, padding=16)
    inside = (..., slice(16, -16), slice(16, -16))  # the border has neighbours on one side only
    torch.testing.assert_close(got[inside], wanted[inside])
    assert head(torch.rand(2, 512, 4, 5)).shape == (2, 3, 128, 160)


@pytest.mark.parametrize("name", ["fcn", "simple", "unet"])
@pytest.mark.parametrize("shape", [(1, 3, 33, 70), (2, 3, 64, 32), (1, 3, 7, 5)])
def test_any_size_comes_out_at_its_own_size(name, shape):
    model = seg.Segmenter(name, 8, 64, CLASSES).eval()
    assert model(torch.rand(shape)).shape == (shape[0], 6, *shape[2:])


def test_an_odd_number_of_channels():
    model = seg.Segmenter("unet", 5, 32, CLASSES)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 6, 32, 32)


def test_a_unet_can_be_copied_after_a_step():
    model = seg.Segmenter("unet", 4, 32, CLASSES)
    seg.pixel_loss(model(torch.rand(2, 3, 32, 32)), torch.zeros(2, 32, 32).long()).backward()
    copied = copy.deepcopy(model)
    assert same({"model": model.state_dict()}, {"model": copied.state_dict()})


def test_predict_answers_at_the_size_of_the_photo():
    model = seg.Segmenter("simple", 4, 32, CLASSES)
    assert model.predict(Image.new("RGB", (100, 67))).shape == (67, 100)
    shapes = []
    model.encoder.register_forward_pre_hook(lambda module, inputs: shapes.append(inputs[0].shape))
    model.predict(Image.new("RGB", (640, 320)))
    assert shapes[0][2:] == (32, 64)  # it is seen at the size of training


# ---- loss
def test_the_loss_is_minus_the_log_of_the_true_share_and_void_is_left_out():
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    y = torch.randint(3, (2, 4, 5))
    y[0, 1:3] = seg.VOID
    total, count = 0, 0
    for b, h, w in np.ndindex(2, 4, 5):
        if y[b, h, w] != seg.VOID:
            shares = logits[b, :, h, w].exp() / logits[b, :, h, w].exp().sum()
            total, count = total - shares[y[b, h, w]].log(), count + 1
    loss = seg.pixel_loss(logits, y)
    torch.testing.assert_close(loss, total / count)
    grads = [torch.autograd.grad(value, logits)[0] for value in (loss, total / count)]
    torch.testing.assert_close(*grads)
    assert (grads[0][0, :, 1:3] == 0).all()


def test_two_classes_are_the_courses_single_logit():
    logits = torch.randn(2, 2, 4, 5)
    y = torch.randint(2, (2, 4, 5))
    single = logits[:, 1] - logits[:, 0]
    wanted = F.binary_cross_entropy_with_logits(single, y.float())
    torch.testing.assert_close(seg.pixel_loss(logits, y), wanted)


# ---- metrics
def test_evaluate_against_loops():
    rng = np.random.default_rng(0)
    truths = rng.choice(np.array([0, 1, 2, seg.VOID], np.uint8), (3, 8, 9))
    preds = rng.integers(0, 3, (3, 8, 9), np.uint8)
    pairs = [(Image.new("RGB", (9, 8), (i, 0, 0)), Image.fromarray(truths[i])) for i in range(3)]
    scores = seg.evaluate(lambda photo: preds[photo.getpixel((0, 0))[0]], pairs, ["a", "b", "c"])
    known = [(t, p) for t, p in zip(truths.ravel().tolist(), preds.ravel().tolist(), strict=True)
             if t != seg.VOID]
    ious = []
    for number, name in enumerate("abc"):
        both = sum(t == p == number for t, p in known)
        either = sum(number in pair for pair in known)
        ious.append(both / either)
        assert scores[f"Dice of {name}"] == pytest.approx(2 * both / (both + either))
    assert scores["mean IoU"] == pytest.approx(np.mean(ious))
    assert scores["accuracy"] == pytest.approx(sum(t == p for t, p in known) / len(known))


def test_a_class_that_does_not_occur_has_no_part_in_the_mean():
    pairs = [(Image.new("RGB", (4, 4)), Image.new("L", (4, 4)))]
    scores = seg.evaluate(lambda photo: np.zeros((4, 4), np.uint8), pairs, ["a", "b"])
    assert scores["mean IoU"] == scores["accuracy"] == scores["Dice of a"] == 1
    assert np.isnan(scores["Dice of b"])
    scores = seg.evaluate(lambda photo: np.ones((4, 4), np.uint8), pairs, ["a", "b"])
    assert scores["mean IoU"] == scores["accuracy"] == 0  # predicted, so it occurs


def test_accuracy_flatters_who_says_one_class():
    pairs = [(photo, mask.point(lambda v: int(v == 5))) for _, photo, mask in views()]
    nothing = seg.evaluate(lambda photo: np.zeros((48, 48), np.uint8), pairs, ["not", "car"])
    assert nothing["accuracy"] > 0.85 and nothing["Dice of car"] == 0


# ---- data
def test_the_streets_of_the_repository_are_drawn_by_the_script():
    """Its pixels may differ a little between versions of Pillow; what the mask says may not."""
    photo, mask = streets.street(7)
    kept = STREETS / "images/street07_1.jpg", STREETS / "masks/street07_1.png"
    assert np.array_equal(mask.crop((128, 0, 384, 256)), Image.open(kept[1]))
    apart = np.abs(np.int16(photo.crop((128, 0, 384, 256))) - np.int16(Image.open(kept[0])))
    assert apart.mean() < 6
    names = [sorted(path.stem for path in (STREETS / d).iterdir()) for d in ("images", "masks")]
    assert names[0] == names[1] and len(names[0]) == 160 and streets.CLASSES == CLASSES
    assert sum(path.stat().st_size for path in STREETS.rglob("*.*")) < 2.5e6
    found = set()
    for path in (STREETS / "masks").iterdir():
        found |= {*np.unique(Image.open(path)).tolist()}
    assert found == {*range(6)}


def test_no_street_is_on_both_sides_of_the_split():
    classes, groups = seg.find_pairs(STREETS)
    sides = [{photo.stem[:8] for photo, _ in side} for side in seg.split(groups)]
    assert [len(side) for side in sides] == [32, 8] and not sides[0] & sides[1]
    assert classes == CLASSES
    by_photo = {pair[0].stem: [pair] for pair in sum(groups.values(), [])}  # the twin
    sides = [{photo.stem[:8] for photo, _ in side} for side in seg.split(by_photo)]
    assert sides[0] & sides[1]


def test_masks_keep_their_values(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    mask = Image.fromarray(rng.choice(np.array([0, 3, 7], np.uint8), (90, 120)))
    paths = tmp_path / "images/a.png", tmp_path / "masks/a.png"
    Image.fromarray(rng.integers(0, 256, (90, 120, 3), np.uint8)).save(paths[0])
    mask.save(paths[1])
    (tmp_path / "classes.txt").write_text("\n".join("abcdefgh"))
    _, small = seg.open_pair(*paths, 64)
    assert min(small.size) == 64 and {*np.unique(small)} == {0, 3, 7}
    assert not {*np.unique(mask.resize(small.size, Image.BILINEAR))} <= {0, 3, 7}  # the twin
    crops = seg.Crops([paths], 40)
    assert {v for n in range(8) for v in crops[n][1].unique().tolist()} == {0, 3, 7}


def test_photo_and_mask_flip_and_shift_together(tmp_path):
    rng = np.random.default_rng(0)
    blobs = Image.fromarray(rng.integers(0, 2, (6, 9), np.uint8) * 255).resize((144, 96))
    for folder, image in (("images", blobs), ("masks", blobs.point(lambda v: 255 * (v > 127)))):
        (tmp_path / folder).mkdir()
        image.save(tmp_path / folder / "a.png")
    crops = seg.Crops([(tmp_path / "images/a.png", tmp_path / "masks/a.png")], 48)
    seen = set()
    for n in range(12):
        x, y = crops[n]
        assert x.shape == (3, 48, 48) and y.shape == (48, 48) and 0 <= x.min() <= x.max() <= 1
        bright = x[0] > 0.5
        assert (bright == y.bool()).float().mean() > 0.9
        assert (bright.flip(1) == y.bool()).float().mean() < 0.9
        seen.add(y.numpy().tobytes())
    assert len(seen) > 8


def test_sample_n_is_a_function_of_seed_and_n():
    pairs = seg.split(seg.find_pairs(STREETS)[1])[0]
    crops = seg.Crops(pairs, 32)
    assert torch.equal(crops[3][0], crops[3][0]) and not torch.equal(crops[3][0], crops[4][0])
    assert not torch.equal(crops[3][0], seg.Crops(pairs, 32, seed=1)[3][0])


@pytest.mark.parametrize("photos, masks, suffix, scale", [
    ("train", "train_masks", "_mask.gif", 1), ("train", "train_masks", ".png", 255),
    ("train", "trainannot", ".png", 1), ("images", "masks", ".png", 255)])
def test_the_layouts_with_one_object(tmp_path, photos, masks, suffix, scale, capsys):
    root = write(tmp_path / "a", photos, masks, suffix, scale=scale)
    classes, groups = seg.find_pairs(root)
    assert classes == ["background", "object"]
    assert [len(side) for side in seg.split(groups)] == [8, 4]
    for (_, mask), (_, _, wanted) in zip(read(root)[0], views(), strict=True):
        assert np.array_equal(mask, np.array(wanted) == 2)
    assert "3 groups; 0 photos without a mask" in capsys.readouterr().out


def test_camvids_layout_has_its_own_val_and_a_void(tmp_path):
    for part in ("train", "val"):
        write(tmp_path, part, f"{part}annot", names=[*CLASSES[:5], "void"])
    train, val = seg.split(seg.find_pairs(tmp_path)[1])
    assert len(train) == len(val) == 12
    assert {photo.parent.name for photo, _ in val} == {"val"}
    masks, classes = read(tmp_path)
    assert classes == CLASSES[:5]
    found = {n for _, mask in masks for n in np.unique(mask).tolist()}
    assert found == {0, 1, 2, 3, 4, seg.VOID}


def test_a_group_may_be_called_val(tmp_path):
    write(tmp_path, names=CLASSES)
    for path in [*tmp_path.rglob("street00_*.png")]:
        path.rename(path.with_name(path.name.replace("street00", "val")))
    train, val = seg.split(seg.find_pairs(tmp_path)[1])
    assert {photo.stem[:-2] for photo, _ in val} == {"street01"}  # the first of three names


def test_void_may_stand_anywhere_and_names_may_repeat(tmp_path):
    write(tmp_path, names=["void ", "road", "house", "green", "green", "car", ""])
    pairs, classes = read(tmp_path)
    assert classes == ["road", "house", "green", "car"]
    for (_, mask), (_, _, wanted) in zip(pairs, views(), strict=True):
        table = np.uint8([seg.VOID, 0, 1, 2, 2, 3])
        assert np.array_equal(mask, table[np.array(wanted)])


def test_names_of_cameras_are_groups_of_one(tmp_path, capsys):
    write(tmp_path, names=CLASSES)
    for folder in ("images", "masks"):
        for n, path in enumerate(sorted((tmp_path / folder).iterdir())):
            path.rename(path.with_name(f"IMG_{n:04}.png"))
    train, val = seg.split(seg.find_pairs(tmp_path)[1])
    assert (len(train), len(val)) == (9, 3)
    assert "12 groups" in capsys.readouterr().out


def test_a_palette_mask_keeps_its_numbers(tmp_path):
    root = write(tmp_path)
    for path in (root / "masks").iterdir():
        mask = Image.open(path)
        mask.putpalette([10, 20, 30, 40, 50, 60])
        mask.save(path)
    for (_, mask), (_, _, wanted) in zip(read(root)[0], views(), strict=True):
        assert np.array_equal(mask, np.array(wanted) == 2)


@pytest.mark.parametrize("folders", [("images", "masks"), ("images",)])
def test_photos_and_masks_are_turned_as_their_files_say(tmp_path, folders):
    """Both have the tag; or the photo alone, and the mask is upright already."""
    root = write(tmp_path, names=CLASSES)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    for folder in folders:
        for path in (root / folder).iterdir():
            Image.open(path).rotate(90).save(path, exif=exif)
    for (photo, mask), (_, whole, wanted) in zip(read(root)[0], views(), strict=True):
        assert np.array_equal(photo, whole) and np.array_equal(mask, wanted)


# ---- files that go wrong
def damage(root, kind):
    """One mask or photo of root, changed; its path."""
    path = sorted((root / ("images" if "photo" in kind else "masks")).iterdir())[1]
    image = np.array(Image.open(path))
    if kind == "soft":
        image[0, :4] = 128
    if kind == "both":  # 1 and 255 beside each other: which one is the object?
        image[0, :4] = 1
    if kind == "bright":  # where a 0 should be
        image[image == 0] = 100
    if kind == "colours":
        image = np.stack([image, 0 * image, image], axis=2)
    if kind == "16 bits":
        image = image.astype(np.uint16) * 257
    if kind == "photo of 16 bits":
        image = image[..., 0].astype(np.uint16) * 257
    image = Image.fromarray(image)
    if kind == "palette":  # black and white change places, in the file but not to the eye
        image = image.point(lambda v: int(v == 0))
        image.putpalette([255, 255, 255, 0, 0, 0])
    if kind == "size":
        image = image.resize((40, 40), Image.NEAREST)
    image.save(path)
    if kind == "truncated photo":
        path.write_bytes(path.read_bytes()[:-900])
    return path


@pytest.mark.parametrize("kind, words", [
    ("soft", "128, 255"), ("both", "[0, 1, 255]"), ("bright", "holds [100, 255]"),
    ("colours", "mode RGB"), ("16 bits", "mode I;16"), ("palette", "classes.txt"),
    ("size", "differ in size"), ("photo of 16 bits", "more than 8 bits"),
    ("truncated photo", "cannot read")])
def test_files_that_are_none_are_named(tmp_path, light, kind, words):
    root = write(tmp_path / "a", scale=255)
    path = damage(root, kind)
    with pytest.raises((SystemExit, OSError)) as stop:
        run("out", "--data", root)
    assert path.name in str(stop.value) and words in str(stop.value)
    assert not Path("out").exists()  # found before the training


def test_a_number_without_a_name_is_refused(tmp_path, light, capsys):
    root = write(tmp_path / "a", names=CLASSES[:5])
    assert "[0, 1, 2, 3, 4, 5]: see classes.txt" in fails(capsys, *TINY, "--data", root)


@pytest.mark.parametrize("names", [["sky", "", *CLASSES[1:]], [f"{n}" for n in range(300)]])
def test_names_that_are_none(tmp_path, light, capsys, names):
    root = write(tmp_path / "a", names=names)
    assert "classes.txt: a line is empty" in fails(capsys, *TINY, "--data", root)


def test_names_of_another_encoding_do_not_stop_the_run(tmp_path, light):
    root = write(tmp_path / "a", names=CLASSES)
    (root / "classes.txt").write_bytes("\n".join(["h\xe4user", *CLASSES[1:]]).encode("cp1252"))
    assert len(read(root)[1]) == 6


def test_black_and_white_beside_two_names_is_no_void(tmp_path, light, capsys):
    root = write(tmp_path / "a", scale=255)
    (root / "classes.txt").write_text("background\nhouse\n")
    assert "holds [0, 255]" in fails(capsys, *TINY, "--data", root)


def test_a_net_of_the_users_is_not_overwritten(data, capsys):
    Path("mine").mkdir()
    Path("mine/unet.pt").write_bytes(b"mine")
    assert "mine holds files" in fails(capsys, *TINY, "--data", data, "--out", "mine")
    assert Path("mine/unet.pt").read_bytes() == b"mine"


def test_a_transparent_photo_lies_on_white(tmp_path):
    photo = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    photo.putpixel((0, 0), (10, 20, 30, 255))
    photo.save(tmp_path / "a.png")
    flat = seg.open_photo(tmp_path / "a.png")
    assert flat.getpixel((0, 0)) == (10, 20, 30) and flat.getpixel((1, 1)) == (255, 255, 255)


def test_two_masks_for_one_photo_stop_the_run(data, capsys):
    path = sorted((data / "masks").iterdir())[0]
    Image.open(path).convert("L").save(path.with_suffix(".jpg"))  # a preview
    sentence = fails(capsys, *TINY, "--data", data)
    assert path.name in sentence and path.with_suffix(".jpg").name in sentence


def test_photos_without_a_mask_are_named_and_other_files_left_out(data, capsys):
    for path in [*data.rglob("*.png")]:
        path.with_suffix(".json").write_text("{}")
        path.with_name(f"._{path.name}").write_text("what a Mac leaves")
    (data / "images/notes.txt").write_text("no photo")
    (data / "images/lonely.png").write_bytes((data / "images/street00_0.png").read_bytes())
    (data / "masks/street00_1.png").unlink()
    assert len(read(data)[0]) == 11
    assert "2 photos without a mask lonely.png street00_1.png" in capsys.readouterr().out


def test_folders_that_do_not_serve(capsys, photos, tmp_path):
    for folder in (photos, "nowhere"):
        assert f"{folder}: no two photos with masks" in fails(capsys, *TINY, "--data", folder)
    one = write(tmp_path / "one", count=1)
    for path in [*one.rglob("street00_[123].png")]:
        path.unlink()
    assert "no two photos with masks" in fails(capsys, *TINY, "--data", one)


def test_flags_that_are_too_small_stop_with_a_sentence(capsys):
    for flags in (["--batch-size", 1], ["--size", 20], ["--eval-every", 0], ["--nf", 1],
                  ["--seed", -1], ["--workers", -1], ["--lr", -1], ["--lr", "nan"]):
        assert "a flag is too low" in fails(capsys, *TINY, *flags)


def test_checkpoints_that_are_none(trained, capsys):
    Path("empty.pt").write_bytes(b"")
    torch.save({"model": {}, "config": {"nf": 8}}, "style.pt")
    for name in ("gone.pt", "empty.pt", "style.pt"):
        assert f"{name} is no checkpoint for this" in fails(capsys, "--apply", "a", "--init", name)
    flags = [*TINY, "--data", "data", "--model", "simple", "--init", trained]
    assert "is no checkpoint for this" in fails(capsys, *flags, "--out", "out/more")
    Path("data/classes.txt").write_text("\n".join(reversed(CLASSES)))
    flags = [*TINY, "--data", "data", "--model", "unet", "--init", trained, "--out", "out/less"]
    assert "other classes" in fails(capsys, *flags)


@pytest.mark.parametrize("flag, value", [("--model", "vgg"), ("--steps", "many"),
                                         ("--weights", "best"), ("--sizes", 32)])
def test_flags_out_of_range(capsys, flag, value):
    assert flag in fails(capsys, flag, value)


# ---- training
def test_a_frozen_encoder_does_not_move_and_a_thawed_one_keeps_its_statistics(data):
    pairs = seg.split(seg.find_pairs(data)[1])[0]
    val = [seg.open_pair(*pairs[0], 32)]

    def moved(choose, *flags):
        args = seg.get_args([*TINY, "--lr", "0.1", *flags])
        torch.manual_seed(0)
        model = seg.Segmenter("unet", 4, 32, CLASSES)
        before = {k: v.clone() for k, v in model.encoder.state_dict().items()}
        seg.train(model, choose(model), Path("net.pt"), 2, seg.Crops(pairs, 32), val, args)
        return {k for k, v in model.encoder.state_dict().items() if not torch.equal(v, before[k])}

    knows = ["--weights", "torchvision"]
    assert moved(lambda model: [(model.head, 0.1)], *knows) == set()
    names = moved(lambda model: [(model, 0.1)], *knows)
    assert "conv1.weight" in names and "layer4.1.conv2.weight" in names
    assert not any("running" in name or "tracked" in name for name in names)
    assert any("running" in name for name in moved(lambda model: [(model, 0.1)]))  # the twin


@pytest.fixture
def imagenet(tmp_path):
    """A file in torch hub's cache in place of torchvision's, whose hash is not checked here."""
    path = tmp_path / "torch_home/hub/checkpoints/resnet18-f37072fd.pth"
    path.parent.mkdir(parents=True)
    encoder = seg.resnet18().state_dict()
    torch.save({**encoder, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}, path)
    return encoder


@pytest.fixture
def rates(monkeypatch):
    """[(rate, number of parameters) of each group] at each step."""
    record, step = [], torch.optim.Adam.step

    def recorded(self, *args):
        record.append([(group["lr"], sum(p.numel() for p in group["params"]))
                       for group in self.param_groups])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", recorded)
    return record


def test_stages_and_their_rates(data, imagenet, rates):
    """The head alone, then everything at three rates; larger photos by --init."""
    out = run("o", "--data", data, "--model", "simple", "--weights", "torchvision", "--steps", 8,
              "--eval-every", 4, "--lr", 1e-2)
    assert [len(groups) for groups in rates] == 2 * [1] + 8 * [3]
    assert max(groups[0][0] for groups in rates[:2]) == pytest.approx(1e-2)  # of --lr, no less
    for (early, _), (late, _), (head, _) in rates[2:]:
        assert 100 * early == pytest.approx(head) == pytest.approx(10 * late)
    e = seg.resnet18()
    first = sum(p.numel() for m in (e.conv1, e.bn1, e.layer1, e.layer2) for p in m.parameters())
    assert rates[2][0][1] == first
    frozen = state(out / "simple-frozen.pt")["model"]
    assert all(torch.equal(frozen[f"encoder.{k}"], v) for k, v in imagenet.items())
    log = (out / "log.csv").read_text().splitlines()
    assert log[0].startswith("stage,step,loss,accuracy,mean IoU,Dice of sky,Dice of road")
    assert [line.split(",")[0] for line in log[1:]] == ["simple-frozen"] + 2 * ["simple"]
    run("p", "--data", data, "--model", "simple", "--init", out / "simple.pt", "--size", 40)
    assert [len(groups) for groups in rates[10:]] == 4 * [3]  # no frozen stage
    assert state("p/simple.pt")["config"]["size"] == 40 and not Path("p/simple-frozen.pt").exists()


def test_random_weights_learn_at_one_rate(data, rates):
    run("o", "--data", data, "--model", "simple")
    assert [len(groups) for groups in rates] == 4 * [1]


@pytest.mark.parametrize("content", [None, b"no weights"])
def test_without_its_file_the_run_stops_and_says_what_to_do(data, tmp_path, content):
    if content:
        path = tmp_path / "torch_home/hub/checkpoints/resnet18-f37072fd.pth"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    with pytest.raises(OSError, match="save https://download.*resnet18-f37072fd.pth in .*hub"):
        run("o", "--data", data, "--weights", "torchvision", "--model", "simple")
    assert not list(Path("o").glob("*.pt"))


def test_checkpoint_is_one_dict_of_plain_types(trained):
    checkpoint = state(trained)
    assert sorted(checkpoint) == ["config", "model"]
    assert checkpoint["config"] == {"head": "unet", "nf": 4, "size": 32, "classes": CLASSES}


def test_what_is_not_finite_is_never_saved(data, monkeypatch):
    real, calls = seg.pixel_loss, []

    def broken(logits, y):
        calls.append(1)
        return real(logits, y) * (1 if len(calls) < 3 else float("nan"))

    monkeypatch.setattr(seg, "pixel_loss", broken)
    with pytest.raises(SystemExit, match="step 3: the gradient is nan: lower --lr"):
        run("out", "--data", data, "--model", "unet")
    weights = state("out/unet.pt")["model"].values()  # of step 2
    assert all(value.isfinite().all() for value in weights)


def test_it_learns_and_shuffled_labels_teach_less(light):
    pairs = [(photo, mask) for _, photo, mask in views(2, 32)][::4]
    shuffled = [(photo, pairs[i - 1][1].transpose(Image.Transpose.FLIP_TOP_BOTTOM))
                for i, (photo, _) in enumerate(pairs)]
    losses = []
    for data in (pairs, shuffled):
        torch.manual_seed(0)
        model = seg.Segmenter("unet", 16, 32, CLASSES)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        x = torch.stack([seg.to_tensor(photo) for photo, _ in data])
        y = torch.stack([torch.from_numpy(np.array(mask)).long() for _, mask in data])
        for step in range(30):
            flip = step % 2 == 1
            loss = seg.pixel_loss(model(x.flip(-1) if flip else x), y.flip(-1) if flip else y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] < 0.4 and losses[0] < losses[1]


def test_flags_that_change_the_result(data):
    def weights(*flags):
        out = run("_".join(["out", *flags]), "--data", data, "--model", "simple", *flags)
        return state(out / "simple.pt")["model"]["head.0.weight"]
    base = weights()
    for flags in (["--lr", "1e-4"], ["--seed", "2"], ["--batch-size", "3"], ["--size", "36"],
                  ["--steps", "3"]):
        assert not torch.equal(base, weights(*flags)), flags
    assert weights("--nf", "8").shape[1] == 8
    assert torch.equal(base, weights("--workers", "1"))


# ---- the command line
def test_a_run_from_the_first_line_to_the_figure(data, capsys):
    out = run("out", "--data", data, "--model", "fcn", "simple", "unet")
    text = capsys.readouterr().out
    assert "sky 3" in text and "%, road" in text
    table = text[text.index("4 photos"):].splitlines()
    assert table[0].split()[2:] == ["commonest", "fcn", "simple", "unet"]
    assert [line.split("  ")[0] for line in table[1:9]] == [
        "accuracy", "mean IoU", *(f"Dice of {name}" for name in CLASSES)]
    assert {p.name for p in out.iterdir()} == {"fcn.pt", "simple.pt", "unet.pt", "log.csv",
                                               "data.png", "figure.png"}
    log = np.genfromtxt(out / "log.csv", delimiter=",", names=True, dtype=None, encoding=None)
    assert log.dtype.names[:4] == ("stage", "step", "loss", "accuracy")
    assert all(0 <= value <= 1 for name in log.dtype.names[3:] for value in log[name])
    with Image.open(out / "figure.png") as figure, Image.open(out / "data.png") as before:
        assert figure.size == (264 * 5 + 150, 264 * 3 + 32)  # photo, truth, three nets; legend
        assert before.size == (264 * 2 + 150, 264 * 2 + 32)


def test_an_earlier_run_is_not_overwritten(data, capsys):
    run("out", "--data", data, "--model", "simple")
    before = Path("out/simple.pt").read_bytes()
    assert "out holds files" in fails(capsys, "--out", "out", *TINY, "--data", data)
    assert Path("out/simple.pt").read_bytes() == before


def test_training_goes_on_from_a_checkpoint(data, trained):
    run("p", "--data", data, "--init", trained, "--model", "unet", "--size", 40,
        "--lr", 1e-9, "--steps", 2)
    a, b = state(trained)["model"], state("p/unet.pt")["model"]
    torch.testing.assert_close(a["head.0.up.weight"], b["head.0.up.weight"], rtol=0, atol=1e-6)
    assert not torch.equal(a["head.0.up.weight"], b["head.0.up.weight"])


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_apply_writes_a_palette_of_the_photos_size(trained, mode):
    photo = views()[0][1].crop((0, 3, 48, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.convert(mode).save("a.png", exif=exif)
    seg.main(["--apply", "a.png", "--init", str(trained), "--out", "m", "--device", "cpu"])
    with Image.open("m/a_mask.png") as mask:
        assert mask.size == (37, 48) and mask.mode == "P"  # upright
        assert np.max(mask) < 6


def test_apply_overwrites_nothing_and_goes_on_after_a_bad_file(trained, capsys):
    for name in ("a.png", "b.png", "c.png"):
        views()[0][1].save(name)
    Path("notes.jpg").write_text("no photo")
    Path("b.png").write_bytes(Path("b.png").read_bytes()[:500])
    argv = ["--apply", "a.png", "--init", str(trained), "--out", "m"]
    seg.main(argv)
    before = Path("m/a_mask.png").read_bytes()
    assert "a_mask.png exists" in fails(capsys, *argv)
    with pytest.raises(SystemExit) as stop:
        seg.main(["--apply", "notes.jpg", "b.png", "c.png", "--init", str(trained), "--out", "m"])
    lines = str(stop.value).splitlines()
    assert len(lines) == 2 and "notes.jpg" in lines[0] and "b.png" in lines[1]
    assert Path("m/c_mask.png").exists() and Path("m/a_mask.png").read_bytes() == before


def test_colours_are_red_where_it_is_wrong_and_only_there():
    truth = np.uint8([[0, 1, 1, 0, seg.VOID]])
    pred = np.uint8([[0, 1, 0, 1, 1]])
    image = np.asarray(seg.paint(pred, truth).convert("RGB"))
    assert (image == (255, 0, 0)).all(2).tolist() == [[False, False, True, True, False]]
    truth = np.asarray(seg.paint(truth, truth).convert("RGB"))
    assert truth[0, 4].tolist() == [0, 0, 0]
    palette = seg.paint(truth[..., 0], truth[..., 0]).getpalette()
    colours = {tuple(palette[3 * n:3 * n + 3]) for n in range(11)}
    assert len(colours) == 11 and (255, 0, 0) not in colours


# ---- real data, opt-in
def test_resnet18_knows_imagenet(lesson_data):
    """Top-1 on one photo of each class: the file's own classifier on what our encoder sees."""
    file = lesson_data / "torch_home/hub/checkpoints/resnet18-f37072fd.pth"
    weights = torch.load(file, weights_only=True)
    encoder = seg.resnet18().eval()
    encoder.load_state_dict({k: v for k, v in weights.items() if not k.startswith("fc.")})
    paths = sorted((lesson_data / "imagenet_sample").rglob("*.JPEG"))
    step, right = 1000 // len(paths), 0  # all of the 1,000 photos, or every second
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    with torch.no_grad():
        for i, path in enumerate(paths):
            photo = Image.open(path).convert("RGB")
            scale = 256 / min(photo.size)
            photo = photo.resize([round(side * scale) for side in photo.size], Image.BILINEAR)
            left, top = ((side - 224) // 2 for side in photo.size)
            x = seg.to_tensor(photo.crop((left, top, left + 224, top + 224)))
            features = encoder(((x - mean) / std)[None]).mean((2, 3))
            scores = F.linear(features, weights["fc.weight"].float(), weights["fc.bias"].float())
            right += int(scores.argmax() == step * i)
    print(f"top-1: {right / len(paths):.3f} on {len(paths)} photos")
    assert right / len(paths) >= 0.70


def test_real_masks_load(lesson_data, tmp_path):
    train, val = seg.split(seg.find_pairs(lesson_data / "carvana")[1])
    assert (len(train), len(val)) == (51 * 16, 13 * 16)
    assert {*np.unique(seg.open_pair(*val[0], 64)[1])} == {0, 1}
    shutil.copytree(lesson_data / "camvid", tmp_path / "camvid")
    names = "sky building pole road pavement tree sign fence car pedestrian bicyclist void"
    (tmp_path / "camvid/classes.txt").write_text("\n".join(names.split()))
    train, val = seg.split(seg.find_pairs(tmp_path / "camvid")[1])
    assert (len(train), len(val)) == (123, 34)
    found = {n for pair in val for n in np.unique(seg.open_pair(*pair, 64)[1]).tolist()}
    assert found == {*range(11), seg.VOID}
