"""seg.py: parity, invariants, learning; the command line, and files that go wrong."""
import functools
from pathlib import Path

import conftest
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import same, state
from PIL import Image
from torch import nn

import seg
from common import SaveFeatures

TINY = ["--steps", "4", "--batch-size", "2", "--sizes", "32", "--nf", "4", "--eval-every", "2",
        "--weights", "random", "--device", "cpu"]


class LightBlock(nn.Module):
    """BasicBlock with the same names and channels, and a 64th of the weights to train and save."""

    def __init__(self, before, after, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, groups=64, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, groups=64, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        shortcut = [nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)]
        self.downsample = nn.Sequential(*shortcut if before != after else [])

    forward = seg.BasicBlock.forward


@pytest.fixture
def light(monkeypatch):
    """For tests of the loop and the command line; what a net computes is tested without."""
    monkeypatch.setattr(seg, "BasicBlock", LightBlock)


@functools.cache
def cars(count=3, side=48, seed=1):
    """[(car, photo, mask)], four angles of each car."""
    return [(n // 16, *seg.shrink(*seg.car(seed, n), side)) for n in range(0, 16 * count, 4)]


def write(root, photos="train", masks="train_masks", suffix="_mask.gif", scale=1, count=3):
    """Generated cars as files of one of the layouts."""
    for folder in (photos, masks):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i, (car, photo, mask) in enumerate(cars(count)):
        photo.save(root / photos / f"car{car}_{i % 4:02}.png")
        mask = mask.point(lambda v: v * scale)
        mask.save(root / masks / f"car{car}_{i % 4:02}{suffix}")
    return root


@pytest.fixture
def carvana(tmp_path, light):
    return write(tmp_path / "cars")


def run(out, *flags):
    seg.main(["--out", str(out), *TINY, *map(str, flags)])
    return Path(out)


def fails(capsys, *argv):
    return conftest.fails(seg, capsys, *argv)


@pytest.fixture
def trained(carvana):
    return run("out/seg", "--data", carvana, "--model", "unet") / "unet-32px.pt"


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
@pytest.mark.parametrize("depth, parameters", [(18, 11_176_512), (34, 21_284_672)])
def test_resnet_has_the_names_and_shapes_of_torchvisions_files(depth, parameters):
    net = seg.resnet(depth)
    assert sum(p.numel() for p in net.parameters()) == parameters
    blocks = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}[depth]
    bn = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    names = ["conv1.weight", *(f"bn1.{n}" for n in bn)]
    for layer, count in enumerate(blocks, start=1):
        for b in range(count):
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
    encoder = seg.resnet(18).eval()
    x = torch.rand(1, 3, 64, 32)
    ends = {"relu": 3, "layer1": 5, "layer2": 6, "layer3": 7}
    hooks = {name: SaveFeatures(getattr(encoder, name)) for name in ends}
    with torch.no_grad():
        assert encoder(x).shape == (1, 512, 2, 1)
        for name, end in ends.items():
            assert torch.equal(hooks[name].features, nn.Sequential(*[*encoder][:end])(x)), name
    assert [hooks[name].features.shape[2] for name in ends] == [32, 16, 8, 4]


@pytest.mark.parametrize("name, sees", [("unet", True), ("simple", False)])
def test_unet_sees_the_skips_and_simple_does_not(name, sees):
    """What comes after layer1 is cut off, so that only a skip can tell its input."""
    net = seg.Segmenter(name, 18, 8, 64).eval()
    x = torch.rand(1, 3, 64, 64)
    outs = []
    for noise in (0, 1):
        net.encoder.layer1.register_forward_pre_hook(lambda m, i, n=noise: i[0] + n)
        net.encoder.layer2.register_forward_pre_hook(lambda m, i: torch.zeros_like(i[0]))
        outs.append(net(x))
    assert torch.equal(*outs) != sees


@pytest.mark.parametrize("name", ["simple", "unet"])
@pytest.mark.parametrize("shape", [(1, 3, 33, 70), (2, 3, 64, 32), (1, 3, 7, 5)])
def test_any_size_comes_out_at_its_own_size(name, shape):
    net = seg.Segmenter(name, 18, 8, 64).eval()
    assert net(torch.rand(shape)).shape == (shape[0], 1, *shape[2:])


def test_predict_answers_at_the_size_of_the_photo():
    net = seg.Segmenter("simple", 18, 4, 32)
    assert seg.predict(net, Image.new("RGB", (100, 67))).shape == (67, 100)
    shapes = []
    net.encoder.register_forward_pre_hook(lambda module, inputs: shapes.append(inputs[0].shape))
    seg.predict(net, Image.new("RGB", (640, 320)))
    assert shapes[0][2:] == (32, 64)  # it is seen at the size of training


# ---- metrics
def test_evaluate_against_loops():
    rng = np.random.default_rng(0)
    pairs = [(Image.new("RGB", (9, 8), (i, 0, 0)),
              Image.fromarray(rng.integers(0, 2, (8, 9), np.uint8))) for i in range(3)]
    preds = rng.random((3, 8, 9)) < 0.5
    scores = seg.evaluate(lambda photo: preds[photo.getpixel((0, 0))[0]], pairs)
    for i, (_, mask) in enumerate(pairs):
        right, both, either = 0, 0, 0
        for truth, pred in zip(np.asarray(mask).ravel(), preds[i].ravel(), strict=True):
            right += truth == pred
            both += truth == 1 and pred
            either += truth == 1 or pred
        wanted = [right / 72, 2 * both / (both + either), both / either]
        assert scores[i] == pytest.approx(wanted)


def test_dice_where_there_is_nothing():
    pairs = [(Image.new("RGB", (4, 4)), Image.new("L", (4, 4)))]
    assert seg.evaluate(lambda photo: np.zeros((4, 4), bool), pairs).tolist() == [[1, 1, 1]]
    assert seg.evaluate(lambda photo: np.ones((4, 4), bool), pairs).tolist() == [[0, 0, 0]]


def test_accuracy_flatters_who_says_background(carvana):
    val = seg.split(cars())[1]
    accuracy, dice, _ = seg.evaluate(lambda photo: np.zeros((48, 48), bool), val).mean(0)
    assert accuracy > 0.6 and dice == 0


# ---- data
def test_cars_are_functions_of_the_seed_and_turn():
    for n in (0, 5):
        assert all(np.array_equal(*two) for two in zip(seg.car(1, n), seg.car(1, n), strict=True))
    views = [seg.car(1, n) for n in range(16)]
    for photo, mask in views:
        assert photo.size == mask.size == (256, 256) and photo.mode == "RGB" and mask.mode == "L"
        assert {*np.unique(mask)} == {0, 1} and 0.05 < np.mean(mask) < 0.6
    width = [np.ptp(np.nonzero(np.asarray(mask).any(0))) for _, mask in views]
    height = [np.ptp(np.nonzero(np.asarray(mask).any(1))) for _, mask in views]
    assert width[0] / height[0] > 1.3 * width[4] / height[4]  # from the side, from its end
    assert not np.array_equal(seg.car(1, 0)[0], seg.car(2, 0)[0])


def test_no_car_is_on_both_sides_of_the_split():
    """The paint tells the cars apart here; a split by photo, the twin, has them on both sides."""
    pairs = cars(6)
    name = {photo.tobytes(): car for car, photo, _ in pairs}
    sides = [{name[photo.tobytes()] for photo, _ in side} for side in seg.split(pairs)]
    assert sides[0] | sides[1] == {*range(6)} and not sides[0] & sides[1]
    by_photo = [(i, *pair) for i, (_, *pair) in enumerate(pairs)]
    sides = [{name[photo.tobytes()] for photo, _ in side} for side in seg.split(by_photo)]
    assert sides[0] & sides[1]


def test_masks_keep_their_values():
    rng = np.random.default_rng(0)
    mask = Image.fromarray(rng.choice(np.array([0, 3, 7], np.uint8), (90, 120)))
    photo = Image.fromarray(rng.integers(0, 256, (90, 120, 3), np.uint8))
    _, small = seg.shrink(photo, mask, 64)
    assert min(small.size) == 64 and {*np.unique(small)} == {0, 3, 7}
    assert not {*np.unique(mask.resize(small.size, Image.BILINEAR))} <= {0, 3, 7}  # the twin
    crops = seg.Crops([(photo, mask)], 40)
    assert {v for n in range(8) for v in crops[n][1].unique().tolist()} == {0, 3, 7}


def test_photo_and_mask_flip_and_shift_together():
    rng = np.random.default_rng(0)
    blobs = Image.fromarray(rng.integers(0, 2, (6, 9), np.uint8) * 255).resize((144, 96))
    mask = blobs.point(lambda v: int(v > 127))
    crops = seg.Crops([(blobs.convert("RGB"), mask)], 48)
    seen = set()
    for n in range(12):
        x, y = crops[n]
        assert x.shape == (3, 48, 48) and y.shape == (1, 48, 48) and 0 <= x.min() <= x.max() <= 1
        bright = x[0] > 0.5
        assert (bright == y[0].bool()).float().mean() > 0.9
        assert (bright.flip(1) == y[0].bool()).float().mean() < 0.9
        seen.add(y.numpy().tobytes())
    assert len(seen) > 8


def test_sample_n_is_a_function_of_seed_and_n():
    pairs = seg.split(cars())[0]
    crops = seg.Crops(pairs, 32)
    assert torch.equal(crops[3][0], crops[3][0]) and not torch.equal(crops[3][0], crops[4][0])
    assert not torch.equal(crops[3][0], seg.Crops(pairs, 32, seed=1)[3][0])


@pytest.mark.parametrize("photos, masks, suffix, scale", [
    ("train", "train_masks", "_mask.gif", 1), ("train", "train_masks", ".png", 255),
    ("images", "masks", ".png", 255)])
def test_the_layouts(tmp_path, photos, masks, suffix, scale, capsys):
    root = write(tmp_path / "a", photos, masks, suffix, scale)
    pairs = seg.find_pairs(root, 32, 0)
    train, val = seg.split(pairs)
    assert (len(train), len(val)) == (8, 4) and min(pairs[0][1].size) == 32
    assert all({*np.unique(mask)} <= {0, 1} for _, _, mask in pairs)
    assert "12 photos; the object covers" in capsys.readouterr().out


def test_a_palette_mask_keeps_its_indices(carvana):
    for path in (carvana / "train_masks").iterdir():
        mask = Image.open(path)
        mask.putpalette([10, 20, 30, 40, 50, 60])
        mask.save(path)
    masks = [mask for _, _, mask in seg.find_pairs(carvana, 48, 0)]
    assert all(np.array_equal(m, want) for m, (_, _, want) in zip(masks, cars(), strict=True))


# ---- files that go wrong
def damage(root, kind):
    """One mask of root, changed; its path."""
    path = sorted((root / "masks").iterdir())[1]
    mask = np.array(Image.open(path))
    if kind == "soft":
        mask[0, :4] = 128
    if kind == "bright":  # where a 0 should be
        mask[mask == 0] = 100
    if kind == "colours":
        mask = np.stack([mask, 0 * mask, mask], axis=2)
    if kind == "16 bits":
        mask = mask.astype(np.uint16) * 257
    image = Image.fromarray(mask)
    image.resize((40, 40) if kind == "size" else image.size, Image.NEAREST).save(path)
    return path


@pytest.mark.parametrize("kind, words", [
    ("soft", "128, 255"), ("bright", "holds [100, 255]"), ("colours", "mode RGB"),
    ("16 bits", "mode I;16"), ("size", "size")])
def test_masks_that_are_none_name_the_file(tmp_path, capsys, kind, words):
    root = write(tmp_path / "a", "images", "masks", ".png", 255)
    path = damage(root, kind)
    sentence = fails(capsys, *TINY, "--data", root)
    assert path.name in sentence and words in sentence


def test_two_masks_for_one_photo_stop_the_run(carvana, capsys):
    path = sorted((carvana / "train_masks").iterdir())[0]
    Image.open(path).convert("L").save(path.with_suffix(".jpg"))  # a preview
    sentence = fails(capsys, *TINY, "--data", carvana)
    assert path.name in sentence and path.with_suffix(".jpg").name in sentence


def test_other_files_are_left_out_of_the_pairing(carvana):
    for path in [*carvana.rglob("*.gif"), *carvana.rglob("*.png")]:
        path.with_suffix(".json").write_text("{}")
    (carvana / "train" / "notes.txt").write_text("no photo")
    (carvana / "train" / "car7_01.png").write_bytes((carvana / "train/car0_00.png").read_bytes())
    assert len(seg.find_pairs(carvana, 32, 0)) == 12


def test_folders_that_do_not_serve(capsys, photos, tmp_path):
    for folder in (photos, "nowhere"):
        assert str(folder) in fails(capsys, *TINY, "--data", folder)
    one = write(tmp_path / "one", count=1)
    assert "only photos of car0" in fails(capsys, *TINY, "--data", one)


def test_a_batch_of_one_pixel_stops_with_a_sentence(capsys):
    assert "--batch-size 2" in fails(capsys, *TINY, "--batch-size", 1)


def test_batches_of_one_work_from_64_pixels(carvana):
    run("o", "--data", carvana, "--model", "simple", "--batch-size", 1, "--sizes", 64)


def test_checkpoints_that_are_none(trained, capsys):
    Path("empty.pt").write_bytes(b"")
    torch.save({"model": {}, "config": {"nf": 8}}, "style.pt")
    for name in ("gone.pt", "empty.pt", "style.pt"):
        assert f"{name} is no checkpoint for this" in fails(capsys, "--apply", "a", "--init", name)
    flags = [*TINY, "--data", "cars", "--model", "simple", "--init", trained]
    assert "is no checkpoint for this" in fails(capsys, *flags, "--out", "out/more")
    assert "give another --out" in fails(capsys, *flags)  # or it would be renamed with its folder
    assert trained.exists()


@pytest.mark.parametrize("flag, value", [("--encoder", 50), ("--model", "vgg"), ("--steps", "many"),
                                         ("--weights", "best"), ("--size", 32)])
def test_flags_out_of_range(capsys, flag, value):
    assert flag in fails(capsys, flag, value)


# ---- training
def test_a_frozen_encoder_does_not_move_and_a_thawed_one_keeps_its_statistics(light):
    args = seg.get_args([*TINY, "--lr", "0.1"])
    pairs = seg.split(cars())[0]

    def moved(ratios):
        torch.manual_seed(0)
        net = seg.Segmenter("unet", 18, 4, 32)
        before = {k: v.clone() for k, v in net.encoder.state_dict().items()}
        seg.train(net, ratios, Path("net.pt"), 2, seg.Crops(pairs, 32), pairs[:1], args)
        return {k for k, v in net.encoder.state_dict().items() if not torch.equal(v, before[k])}

    assert moved((0, 0, 1)) == set()
    names = moved((0.01, 0.1, 1))
    assert "conv1.weight" in names and "layer4.1.conv2.weight" in names
    assert not any("running" in name or "tracked" in name for name in names)
    assert any("running" in name for name in moved((1, 1, 1)))  # the twin


@pytest.fixture
def imagenet(tmp_path):
    """A file in torch hub's cache in place of torchvision's, whose hash is not checked here."""
    path = tmp_path / "torch_home/hub/checkpoints/resnet18-f37072fd.pth"
    path.parent.mkdir(parents=True)
    encoder = seg.resnet(18).state_dict()
    torch.save({**encoder, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}, path)
    return encoder


def test_stages_and_their_rates(carvana, imagenet, monkeypatch):
    """The head alone, then everything at three rates; a larger size in the end."""
    rates, sizes, step = [], [], torch.optim.Adam.step

    def record(self, *args):
        rates.append([group["lr"] for group in self.param_groups])
        sizes.append([sum(p.numel() for p in g["params"]) for g in self.param_groups])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", record)
    out = run("o", "--data", carvana, "--model", "simple", "--weights", "pretrained",
              "--sizes", 32, 40, "--steps", 8, "--eval-every", 4)
    assert len(rates) == 2 + 8 + 8
    assert rates[0][:2] == [0, 0] and rates[0][2] > 0
    for early, late, head in rates[2:9]:
        assert 100 * early == pytest.approx(head) == pytest.approx(10 * late)
    e = seg.resnet(18)
    first = sum(p.numel() for m in (e.conv1, e.bn1, e.layer1, e.layer2) for p in m.parameters())
    assert sizes[0][:2] == [first, sum(p.numel() for p in e.parameters()) - first]
    frozen = state(out / "simple-frozen.pt")["model"]
    assert all(torch.equal(frozen[f"encoder.{k}"], v) for k, v in imagenet.items())
    assert state(out / "simple-40px.pt")["config"]["size"] == 40
    log = (out / "log.csv").read_text().splitlines()
    assert log[0] == "stage,step,loss,accuracy,dice,iou"
    stages = [line.split(",")[0] for line in log[1:]]
    assert stages == ["simple-frozen"] + 2 * ["simple-32px"] + 2 * ["simple-40px"]


def test_random_weights_learn_at_one_rate(carvana, monkeypatch):
    rates, step = [], torch.optim.Adam.step

    def record(self, *args):
        rates.append({group["lr"] for group in self.param_groups})
        return step(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", record)
    run("o", "--data", carvana, "--model", "simple")
    assert len(rates) == 4 and all(len(three) == 1 for three in rates)


@pytest.mark.parametrize("content", [None, b"no weights"])
def test_without_its_file_the_encoder_is_random_and_says_so(carvana, capsys, tmp_path, content):
    if content:
        path = tmp_path / "torch_home/hub/checkpoints/resnet18-f37072fd.pth"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    run("o", "--data", carvana, "--weights", "pretrained", "--model", "simple")
    text = capsys.readouterr().out
    assert "resnet18-f37072fd.pth" in text and "put it into" in text and "at random" in text


def test_checkpoint_is_one_dict_of_plain_types(trained):
    checkpoint = state(trained)
    assert sorted(checkpoint) == ["args", "config", "model", "optimizer", "step"]
    assert checkpoint["config"] == {"head": "unet", "depth": 18, "nf": 4, "size": 32}


def test_stopped_and_resumed_is_never_stopped(carvana, monkeypatch):
    """Stopped in the second size of the second of two nets."""
    flags = ["--data", carvana, "--sizes", 32, 40]
    run("whole", *flags)
    real, done = torch.optim.Adam.step, []

    def press(self, *args):
        done.append(1)
        if len(done) == 8 + 4 + 4:
            raise KeyboardInterrupt
        return real(self, *args)

    with monkeypatch.context() as context:
        context.setattr(torch.optim.Adam, "step", press)
        with pytest.raises(KeyboardInterrupt):
            run("halves", *flags)
    assert state("halves/unet-40px.pt")["step"] == 2
    run("halves", *flags, "--resume")
    for path in Path("whole").glob("*.pt"):
        assert same(state(path), state(f"halves/{path.name}")), path
    assert Path("halves/figure.png").exists()


def test_what_is_not_finite_is_never_saved(carvana, monkeypatch):
    real, calls = seg.pixel_loss, []

    def broken(logits, y):
        calls.append(1)
        return real(logits, y) * (1 if len(calls) < 3 else float("nan"))

    monkeypatch.setattr(seg, "pixel_loss", broken)
    with pytest.raises(SystemExit, match="gradient is nan.*lower --lr.*out/unet-32px.pt"):
        run("out", "--data", carvana, "--model", "unet")
    assert state("out/unet-32px.pt")["step"] == 2


def test_it_learns_and_shuffled_labels_teach_less(light):
    pairs = seg.split(cars(2, 32))[0][:2]
    shuffled = [(photo, pairs[i - 1][1].transpose(Image.Transpose.FLIP_TOP_BOTTOM))
                for i, (photo, _) in enumerate(pairs)]
    losses = []
    for data in (pairs, shuffled):
        torch.manual_seed(0)
        net = seg.Segmenter("unet", 18, 16, 32)
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        crops = seg.Crops(data, 32)
        for step in range(19):
            items = [crops[4 * step + i] for i in range(4)]
            x, y = (torch.stack(parts) for parts in zip(*items, strict=True))
            loss = seg.pixel_loss(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] < 0.25 and losses[0] < losses[1]


def test_flags_that_change_the_result(carvana):
    def weights(*flags):
        out = run("_".join(["out", *flags]), "--data", carvana, "--model", "simple", *flags)
        return state(next(out.glob("simple-??px.pt")))["model"]["head.0.weight"]
    base = weights()
    for flags in (["--lr", "1e-4"], ["--seed", "2"], ["--batch-size", "3"], ["--sizes", "36"],
                  ["--steps", "3"]):
        assert not torch.equal(base, weights(*flags)), flags
    assert weights("--nf", "8").shape[1] == 8


# ---- the command line
def test_a_run_from_the_first_line_to_the_figure(carvana, capsys):
    out = run("out", "--data", carvana)
    text = capsys.readouterr().out
    assert text.index("background") < text.index("\nsimple") < text.index("\nunet")
    assert {p.name for p in out.iterdir()} == {"simple-32px.pt", "unet-32px.pt", "log.csv",
                                               "figure.png"}
    log = np.genfromtxt(out / "log.csv", delimiter=",", names=True, dtype=None, encoding=None)
    assert log.dtype.names == ("stage", "step", "loss", "accuracy", "dice", "iou")
    assert all(0 <= value <= 1 for name in ("accuracy", "dice", "iou") for value in log[name])
    with Image.open(out / "figure.png") as figure:
        assert figure.size == (264 * 4, 292 * 3)  # photo, truth, two nets; the last is the worst


def test_an_earlier_run_is_renamed_whole(carvana, capsys):
    run("out", "--data", carvana, "--model", "simple")
    run("out", "--data", carvana, "--model", "simple", "--seed", 1)
    kept = [path for path in Path().iterdir() if path.name.startswith("out-")]
    assert len(kept) == 1 and f"earlier run kept as {kept[0]}" in capsys.readouterr().out
    assert not same(state(kept[0] / "simple-32px.pt"), state("out/simple-32px.pt"))


def test_the_default_folder_is_replaced_by_generated_cars(capsys, monkeypatch):
    view = seg.car(0, 0)
    monkeypatch.setattr(seg, "car", lambda seed, number: view)
    pairs = seg.find_pairs("carvana", 32, 0)
    text = capsys.readouterr().out
    assert "no carvana here: cars are generated" in text and "kaggle competitions" in text
    assert len(pairs) == 1280 and len({car for car, _, _ in pairs}) == 80


def test_a_deeper_encoder(carvana):
    out = run("o", "--data", carvana, "--model", "simple", "--encoder", 34, "--steps", 1)
    assert "encoder.layer3.5.conv1.weight" in state(out / "simple-32px.pt")["model"]


def test_training_goes_on_from_a_checkpoint(carvana, trained, capsys):
    run("p", "--data", carvana, "--init", trained, "--model", "unet", "--sizes", 40,
        "--lr", 1e-9, "--steps", 1)
    assert f"loaded {trained} (step 4)" in capsys.readouterr().out
    a, b = state(trained)["model"], state("p/unet-40px.pt")["model"]
    torch.testing.assert_close(a["head.0.up.weight"], b["head.0.up.weight"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_apply_writes_a_mask_of_the_photos_size(trained, mode):
    photo = cars()[0][1].crop((0, 3, 48, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.convert(mode).save("a.png", exif=exif)
    seg.main(["--apply", "a.png", "--init", str(trained), "--out", "m", "--device", "cpu"])
    with Image.open("m/a_mask.png") as mask:
        assert mask.size == (37, 48) and mask.mode == "1"  # upright


def test_apply_overwrites_nothing_and_names_what_it_cannot_read(trained, capsys):
    cars()[0][1].save("a.png")
    Path("notes.jpg").write_text("no photo")
    argv = ["--apply", "a.png", "--init", str(trained), "--out", "m"]
    seg.main(argv)
    assert "a_mask.png exists" in fails(capsys, *argv)
    with pytest.raises(OSError, match="notes.jpg"):
        seg.main(["--apply", "notes.jpg", "--init", str(trained)])


def test_overlay_is_red_where_it_is_wrong_and_only_there():
    photo = Image.new("RGB", (4, 1), (200, 200, 200))
    truth = np.array([[0, 1, 1, 0]], bool)
    pred = np.array([[0, 1, 0, 1]], bool)
    image = np.asarray(seg.overlay(photo, pred, truth))
    assert (image == (255, 0, 0)).all(2).tolist() == [[False, False, True, True]]
    assert (image[0, 0] == 200).all() and image[0, 1, 2] > image[0, 1, 0] + 90  # blue


# ---- real data, opt-in
def test_resnet18_knows_imagenet(lesson_data):
    """Top-1 on one photo of each class: the file's own classifier on what our encoder sees."""
    file = lesson_data / "torch_home/hub/checkpoints/resnet18-f37072fd.pth"
    weights = torch.load(file, weights_only=True)
    encoder = seg.resnet(18).eval()
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


def test_real_masks_load(lesson_data):
    train, val = seg.split(seg.find_pairs(lesson_data / "carvana", 32, 0))
    assert (len(train), len(val)) == (51 * 16, 13 * 16)
