"""seg.py: parity, invariants, claims with a twin that fails, learning, the command line."""
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import seg
from common import SaveFeatures
from conftest import fails, same, state

TINY = ["--steps", "4", "--batch-size", "2", "--sizes", "32", "--nf", "8", "--encoder", "18",
        "--eval-every", "4", "--weights", "random", "--device", "cpu"]


class LightBlock(nn.Module):
    """BasicBlock with the same channels and names, and a 64th of the weights to train and save."""

    def __init__(self, before, after, stride):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(c, after, 3, s, 1, groups=64, bias=False)
                                  for c, s in ((before, stride), (after, 1)))
        self.bn1, self.bn2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        shortcut = nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
        self.downsample = nn.Sequential(*shortcut if before != after else [])

    forward = seg.BasicBlock.forward


@pytest.fixture
def light(monkeypatch):
    """For tests of the command line and of checkpoints; what a net computes is tested without."""
    monkeypatch.setattr(seg, "BasicBlock", LightBlock)


@functools.cache
def car_pairs(cars=3, side=48, seed=1):
    return [(f"car {i}", "generated", *pair) for i in range(cars)
            for pair in list(seg.car(np.random.default_rng([seed, i]), side))[::4]]


def write(root, photos="train", masks="train_masks", suffix="_mask.gif", scale=1, cars=3, side=48):
    """Generated cars, four angles each, as files of one of the layouts."""
    for folder in (photos, masks):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i, (car, _, photo, mask) in enumerate(car_pairs(cars, side)):
        stem = f"{car.replace(' ', '')}_{i % 4:02}"
        photo.save(root / photos / f"{stem}.png")
        mask.point(lambda v: v * scale).save(root / masks / f"{stem}{suffix}")
    return root


@pytest.fixture
def carvana(tmp_path, light):
    return write(tmp_path / "cars")


def run(out, *flags):
    seg.main(["--out", str(out), *TINY, *map(str, flags)])
    return Path(out)


# ---- parity
def test_transposed_convolution_against_overlap_add():
    """Each input pixel stamps the kernel, scaled, onto the output; stamps add up where they meet."""
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    for kernel, stride, pad in ((2, 2, 0), (64, 32, 16)):
        w = torch.randn(3, 2, kernel, kernel, dtype=torch.float64)
        large = torch.zeros(2, 2, 3 * stride + kernel, 4 * stride + kernel, dtype=torch.float64)
        for i in range(4):
            for j in range(5):
                stamp = torch.einsum("bc,cdhw->bdhw", x[:, :, i, j], w)
                rows, cols = i * stride, j * stride
                large = large + F.pad(stamp, (cols, large.shape[3] - cols - kernel,
                                              rows, large.shape[2] - rows - kernel))
        want = large[:, :, pad:large.shape[2] - pad, pad:large.shape[3] - pad]
        got = F.conv_transpose2d(x, w, stride=stride, padding=pad)
        torch.testing.assert_close(got, want)
        grads = [torch.autograd.grad(t.square().sum(), x)[0] for t in (got, want)]
        torch.testing.assert_close(*grads)


def test_fcn_starts_as_bilinear_enlargement():
    head = seg.fcn(None, 8, 3)
    scores = torch.randn(1, 3, 5, 6)
    got = head[1](scores)
    want = F.interpolate(scores, scale_factor=32, mode="bilinear")
    assert got.shape == want.shape == (1, 3, 160, 192)
    inside = (..., slice(16, -16), slice(16, -16))
    torch.testing.assert_close(got[inside], want[inside], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(got, want, atol=0.1)  # beyond the outer centres it fades to zero


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
    e, x = seg.resnet(18).eval(), torch.rand(1, 3, 64, 32)
    names = {"relu": 3, "layer1": 5, "layer2": 6, "layer3": 7}
    hooks = {name: SaveFeatures(getattr(e, name)) for name in names}
    with torch.no_grad():
        assert e(x).shape == (1, 512, 2, 1)
        for name, end in names.items():
            assert torch.equal(hooks[name].features, nn.Sequential(*[*e][:end])(x)), name
    assert [hooks[n].features.shape[2] for n in names] == [32, 16, 8, 4]


def test_unet_sees_the_skips_and_simple_does_not():
    for name, sees in (("unet", True), ("simple", False)):
        torch.manual_seed(0)
        net = seg.Segmenter(name, 18, 8, 2).eval()
        x, out = torch.rand(1, 3, 64, 64), []
        for noise in (0, 1):  # what comes after layer1 is cut off, so only a skip can tell
            net.encoder.layer1.register_forward_pre_hook(lambda m, i, n=noise: i[0] + n)
            net.encoder.layer2.register_forward_pre_hook(lambda m, i: torch.zeros_like(i[0]))
            out.append(net(x))
        assert torch.equal(*out) != sees, name


@pytest.mark.parametrize("name", ["simple", "unet", "fcn"])
@pytest.mark.parametrize("classes", [2, 5])
def test_any_size_comes_out_at_its_own_size(name, classes):
    net = seg.Segmenter(name, 18, 8, classes).eval()
    for shape in ((1, 3, 33, 70), (2, 3, 64, 32), (1, 3, 7, 5)):
        out = net(torch.rand(shape))
        assert out.shape == (shape[0], classes, *shape[2:])
    last = [p for n, p in net.head.named_parameters() if n.endswith("weight")][-1]
    assert last.shape[1] == (1 if classes == 2 else classes)  # two classes need one logit


def test_loss_against_numpy_with_pixels_left_out():
    y = torch.tensor([[[0, 1], [1, seg.IGNORE]], [[1, 0], [seg.IGNORE, 0]]])
    z = torch.randn(2, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    got = seg.pixel_loss(F.pad(z, (0, 0, 0, 0, 1, 0)), y)
    keep = y != seg.IGNORE  # binary cross-entropy with logits of what has a label
    want = F.binary_cross_entropy_with_logits(z[:, 0][keep], y[keep].double())
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*[torch.autograd.grad(t, z)[0] for t in (got, want)])
    logits = np.random.default_rng(0).normal(size=(2, 3, 2, 2))
    terms = [np.log(np.exp(logits[b, :, i, j]).sum()) - logits[b, y[b, i, j], i, j]
             for b in (0, 1) for i in (0, 1) for j in (0, 1) if keep[b, i, j]]
    assert seg.pixel_loss(torch.from_numpy(logits), y).item() == pytest.approx(np.mean(terms))


def test_metrics_against_loops():
    rng = np.random.default_rng(0)
    truth, pred = rng.integers(0, 4, (2, 3, 8, 9))
    truth[0, :2], truth[1][truth[1] == 3], pred[1][pred[1] == 3] = seg.IGNORE, 0, 0
    cm = []
    for t, p in zip(truth, pred):
        m = np.zeros((4, 4), int)
        for a, b in zip(t.ravel(), p.ravel()):
            if a != seg.IGNORE:
                m[a, b] += 1
        cm.append(m)
    keep, dice, iou = truth != seg.IGNORE, [], []
    for t, p, k in zip(truth, pred, keep):
        t, p = t[k], p[k]
        dice.append(np.mean([2 * ((t == c) & (p == c)).sum() / ((t == c).sum() + (p == c).sum())
                             for c in range(4) if ((t == c) | (p == c)).any()]))
    t, p = truth[keep], pred[keep]
    iou = [((t == c) & (p == c)).sum() / ((t == c) | (p == c)).sum() for c in range(4)]
    got = seg.metrics(torch.from_numpy(np.stack(cm)))
    assert got == pytest.approx([(t == p).mean(), np.mean(dice), np.mean(iou)])


def test_metrics_of_two_classes_are_the_foregrounds():
    cm = torch.tensor([[[50, 10], [20, 20]], [[100, 0], [0, 0]], [[90, 10], [0, 0]]])
    accuracy, dice, iou = seg.metrics(cm)
    assert accuracy == pytest.approx(260 / 300)
    assert dice == pytest.approx((2 * 20 / (30 + 40) + 1 + 0) / 3)  # empty and found empty: 1
    assert iou == pytest.approx(20 / (30 + 40 - 20 + 10))
    assert seg.metrics(seg.baseline(cm))[:2] == pytest.approx([260 / 300, 2 / 3])  # two photos have none
    perfect = torch.diag_embed(torch.tensor([[3, 4], [5, 6]]))
    assert seg.metrics(perfect) == [1, 1, 1]


def test_evaluate_counts_every_pixel_with_a_label():
    args = seg.get_args(TINY)
    args.classes, args.bf16 = "0 1", False
    train, val, _ = seg.split(car_pairs())
    net = seg.Segmenter("simple", 18, 8, 2)
    masked = [(val[0][0], val[0][1].point(lambda v: seg.IGNORE if v == 1 else v)), *val[1:]]
    whole, part = (seg.evaluate(net, pairs, args) for pairs in (val, masked))
    assert whole.shape == (4, 2, 2) and (whole.sum((1, 2)) == 48 * 48).all()
    assert whole[0].sum(1).tolist() == np.bincount(np.ravel(val[0][1]), minlength=2).tolist()
    assert part[0].sum() == np.sum(np.array(val[0][1]) == 0) and torch.equal(part[1:], whole[1:])
    single = torch.cat([seg.evaluate(net, [pair], args) for pair in val])
    assert torch.equal(single, whole)


# ---- data
def test_cars_are_functions_of_the_seed_and_differ_by_angle():
    a, b, c = (list(seg.car(np.random.default_rng(seed), 64)) for seed in (1, 1, 2))
    assert len(a) == 16
    for (photo, mask), (again, _) in zip(a, b):
        assert photo.size == mask.size == (64, 64) and photo.mode == "RGB" and mask.mode == "L"
        assert photo.tobytes() == again.tobytes() and set(np.unique(mask)) == {0, 1}
        assert 0.05 < np.mean(mask) < 0.6
    assert a[0][1].tobytes() != a[2][1].tobytes() and a[0][0].tobytes() != c[0][0].tobytes()
    width = [np.ptp(np.nonzero(np.asarray(mask).any(0))) for _, mask in a]
    height = [np.ptp(np.nonzero(np.asarray(mask).any(1))) for _, mask in a]
    assert width[0] / height[0] > 1.3 * width[4] / height[4]  # from the side, then from its end


def test_no_car_is_on_both_sides_of_the_split():
    """The paint tells the cars apart here; an image split, the twin, has them on both sides."""
    pairs = car_pairs(cars=6)
    train, val, classes = seg.split(pairs)
    assert classes == "0 1" and len(train) == 16 and len(val) == 8
    name = {photo.tobytes(): car for car, _, photo, _ in pairs}
    sides = [{name[photo.tobytes()] for photo, _ in side} for side in (train, val)]
    assert sides[0] | sides[1] == set(name.values()) and not sides[0] & sides[1]
    by_image = [(f"image {i}", *pair[1:]) for i, pair in enumerate(pairs)]
    sides = [{name[photo.tobytes()] for photo, _ in side} for side in seg.split(by_image)[:2]]
    assert sides[0] & sides[1]


def test_masks_keep_their_values_through_resize_and_rotation():
    rng = np.random.default_rng(0)
    mask = Image.fromarray(rng.choice(np.array([0, 3, 7], np.uint8), (90, 120)))
    photo = Image.fromarray(rng.integers(0, 256, (90, 120, 3), np.uint8))
    _, small = seg.resize(photo, mask, 64)
    assert min(small.size) == 64 and {*np.unique(small)} == {0, 3, 7}
    soft = mask.resize(small.size, Image.BILINEAR)  # the twin
    assert not {*np.unique(soft)} <= {0, 3, 7}
    crops = seg.Crops({64: ([(photo, small)], [])}, 1000)
    assert {v for n in range(8) for v in crops[n][1].unique().tolist()} == {0, 3, 7, seg.IGNORE}


def test_photo_and_mask_turn_flip_and_shift_together():
    rng = np.random.default_rng(0)
    blobs = Image.fromarray(rng.integers(0, 2, (6, 9), np.uint8) * 255).resize((144, 96))
    mask = blobs.point(lambda v: int(v > 127))
    crops = seg.Crops({96: ([(blobs.convert("RGB"), mask)], [])}, 1000)
    seen = set()
    for n in range(12):
        x, y = crops[n]
        assert x.shape == (3, 96, 96) and y.shape == (96, 96) and 0 <= x.min() and x.max() <= 1
        bright, keep = x[0] > x[0].mean(), y != seg.IGNORE
        agree = [(image[keep] == (y == 1)[keep]).float().mean() for image in (bright, bright.flip(1))]
        assert agree[0] > 0.9 > agree[1]
        seen.add(y.numpy().tobytes())
    assert len(seen) == 12


def test_sample_n_is_a_function_of_seed_and_n_and_sizes_follow_one_another():
    data = {s: seg.split(car_pairs(side=s))[:2] for s in (32, 48)}
    crops = seg.Crops(data, 10)
    assert torch.equal(crops[3][0], crops[3][0]) and not torch.equal(crops[3][0], crops[4][0])
    assert not torch.equal(crops[3][0], seg.Crops(data, 10, seed=1)[3][0])
    assert [crops[n][0].shape[1] for n in (0, 9, 10, 19)] == [32, 32, 48, 48]


def test_the_three_layouts(tmp_path, capsys):
    pairs = seg.load_pairs(write(tmp_path / "a"), 32)
    train, val, classes = seg.split(pairs)
    assert (len(train), len(val), classes) == (8, 4, "0 1")
    assert "12 photos, 0 files skipped" in capsys.readouterr().out
    plain = write(tmp_path / "b", "images", "masks", ".png", scale=255)
    train, val, classes = seg.split(seg.load_pairs(plain, 32))
    assert (len(train), len(val), classes) == (8, 4, "0 255")
    assert {v for _, mask in train for v in np.unique(mask)} == {0, 1}  # class 1, not class 255
    for part in ("train", "val"):
        write(tmp_path / "c", part, f"{part}annot", ".png", scale=3, cars=1 + (part == "train"))
    some = next((tmp_path / "c" / "trainannot").iterdir())
    mask = np.array(Image.open(some))
    mask[:5] = 11
    Image.fromarray(mask).save(some)
    pairs = seg.load_pairs(tmp_path / "c", 32)
    train, val, classes = seg.split(pairs)  # 11 is CamVid's value for no label
    assert (len(train), len(val), classes) == (8, 4, "0 3")
    assert seg.IGNORE in {v for _, mask in train for v in np.unique(mask)}
    assert seg.split(pairs, ignore=12)[2] == "0 3 11"


def test_all_sizes_have_the_classes_of_the_largest(tmp_path, light):
    """A line of one pixel is lost at 32 px; the class after it must not move up."""
    root = write(tmp_path / "thin", "images", "masks", ".png", scale=9, side=96)
    for path in (root / "masks").iterdir():
        mask = np.array(Image.open(path))
        mask[0] = 4
        Image.fromarray(mask).save(path)
    small = seg.load_pairs(root, 32)
    assert seg.split(small)[2] == "0 9"
    assert state(run("o", "--data", root, "--model", "fcn", "--sizes", 32, 96, "--steps", 1)
                 / "fcn.pt")["args"]["classes"] == "0 4 9"


def test_a_palette_mask_keeps_its_indices(tmp_path):
    root = write(tmp_path / "p", "images", "masks", ".png", scale=2)
    for path in (root / "masks").iterdir():
        mask = Image.open(path)
        mask.putpalette([10, 20, 30, 40, 50, 60, 200, 0, 0])
        mask.save(path)
    assert seg.split(seg.load_pairs(root, 32))[2] == "0 2"


# ---- training
def test_a_frozen_encoder_does_not_move_and_a_thawed_one_keeps_its_statistics(carvana, tmp_path):
    weights = seg.resnet(18).state_dict()
    args = seg.get_args([*TINY, "--lr", "0.1", "--model", "unet"])
    args.bf16, args.classes = False, "0 1"
    data = {32: seg.split(seg.load_pairs(carvana, 32))[:2]}

    def moved(args_weights, frozen, steps):
        args.weights, args.steps = args_weights, steps
        net = seg.Segmenter("unet", 18, 8, 2)
        net.encoder.load_state_dict(weights)
        seg.train(net, seg.Crops(data, 1000), tmp_path / "net.pt", frozen, args)
        return {k for k, v in net.encoder.state_dict().items() if not torch.equal(v, weights[k])}

    assert moved("pretrained", frozen=2, steps=2) == set()
    names = moved("pretrained", frozen=1, steps=3)
    assert "conv1.weight" in names and "layer4.1.conv2.weight" in names
    assert not any("running" in name or "tracked" in name for name in names)
    assert any("running" in name for name in moved("random", frozen=0, steps=1))  # the twin


def test_learning_rates_in_three_groups(carvana, monkeypatch, tmp_path):
    path = tmp_path / "torch_home/hub/checkpoints/resnet18-f37072fd.pth"
    path.parent.mkdir(parents=True)
    torch.save({**seg.resnet(18).state_dict(), "fc.weight": torch.zeros(1000, 512)}, path)
    rates, step = [], torch.optim.Adam.step

    def record(self, *args):
        rates.append([group["lr"] for group in self.param_groups])
        sizes.append([sum(p.numel() for p in g["params"]) for g in self.param_groups])
        return step(self, *args)

    sizes = []
    monkeypatch.setattr(torch.optim.Adam, "step", record)
    run("o", "--data", carvana, "--model", "simple", "--weights", "pretrained", "--steps", 1)
    assert rates[0][0] * 100 == pytest.approx(rates[0][2]) == pytest.approx(rates[0][1] * 10)
    e = seg.resnet(18)
    first = sum(p.numel() for m in (e.conv1, e.bn1, e.layer1, e.layer2) for p in m.parameters())
    assert sizes[0][:2] == [first, sum(p.numel() for p in e.parameters()) - first]
    run("o", "--data", carvana, "--model", "simple", "--steps", 1)
    assert rates[1][0] == rates[1][1] == rates[1][2]


def test_any_number_of_workers_gives_the_same_bits(carvana):
    a, b = (run(f"w{n}", "--data", carvana, "--model", "simple", "--workers", n) for n in (0, 2))
    assert same(state(a / "simple.pt"), state(b / "simple.pt"))


def test_stopped_and_resumed_is_the_same_as_never_stopped(carvana, ctrl_c, capsys):
    """Stopped in the second size of the first of two nets."""
    flags = ["--data", carvana, "--sizes", 32, 40, "--steps", 2]
    whole = run("whole", *flags)
    steps_done, press = ctrl_c
    press()
    steps_done.clear()
    sentence = fails(seg, capsys, "--out", "stopped", *TINY, *flags)
    assert "--resume goes on" in sentence and state("stopped/simple.pt")["step"] == 3
    assert not Path("stopped/unet.pt").exists()
    seg.main(["--out", "stopped", "--resume", "--device", "cpu"])
    for name in ("simple.pt", "unet.pt"):
        assert same(state(whole / name), state(Path("stopped") / name)), name
    rows = [row.split(",")[:3] for row in Path("stopped/log.csv").read_text().splitlines()]
    assert len(rows) == len({tuple(row) for row in rows}) and rows[-1] == ["unet", "40", "4"]
    assert Path("stopped/figure.png").exists()


def test_two_ranks_print_once_and_leave_checkpoints_that_load_anywhere(two_ranks):
    """Each rank takes every second sample; BatchNorm apart, that is one run of twice the batch."""
    assert two_ranks.count("figure:") == 1 and two_ranks.count("eval      4/4") == 2  # two nets
    saved = state("two/unet.pt")
    seg.Segmenter("unet", 18, 8, 2).load_state_dict(saved["model"])
    run("alone", "--data", "data", "--model", "unet")
    assert not same(saved, state("alone/unet.pt"))  # the other rank's gradients count


def test_it_learns_and_shuffled_labels_teach_less():
    pairs = seg.split(car_pairs(cars=2, side=32))[0]
    shuffled = [(photo, pairs[i - 1][1].transpose(Image.FLIP_TOP_BOTTOM))
                for i, (photo, _) in enumerate(pairs)]
    losses = []
    for data in (pairs[:2], shuffled[:2]):
        torch.manual_seed(0)
        net = seg.Segmenter("unet", 18, 16, 2)
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        crops = seg.Crops({32: (data, [])}, 1000)
        for step in range(19):
            x, y = map(torch.stack, zip(*[crops[4 * step + i] for i in range(4)]))
            loss = seg.pixel_loss(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] < 0.25 and losses[0] < losses[1]


# ---- the command line
def test_a_run_ends_in_a_table_a_log_and_a_figure(carvana, capsys):
    out = run("o", "--data", carvana, "--model", "simple", "unet", "fcn")
    text = capsys.readouterr().out
    assert "eval      0/4" in text and "IoU" in text and "8 photos train, 4 validate" in text
    rows = [row.split(",") for row in (out / "log.csv").read_text().splitlines()]
    assert [row[0] for row in rows] == ["simple"] * 2 + ["unet"] * 2 + ["fcn"] * 2
    assert all(0 <= float(v) <= 1 for row in rows for v in row[4:7])
    with Image.open(out / "figure.png") as figure:
        assert figure.size == (264 * 5, 282 * 3)  # photo, truth, three nets; two photos, the worst
    before = (out / "unet.pt").read_bytes()
    run("o", "--data", carvana, "--model", "fcn")
    assert any(p.read_bytes() == before for p in out.glob("*-unet.pt"))


def test_the_default_folder_is_replaced_by_generated_cars(capsys, monkeypatch, light):
    views = list(seg.car(np.random.default_rng(0), 32))[:2]
    monkeypatch.setattr(seg, "car", lambda rng, side: views)
    run("o", "--data", "carvana", "--model", "simple", "--steps", 1)
    text = capsys.readouterr().out
    assert "no carvana here: generated cars" in text and "kaggle competitions download" in text


def test_without_a_download_the_encoder_is_random_and_says_so(carvana, capsys):
    run("o", "--data", carvana, "--weights", "pretrained", "--model", "simple")
    text = capsys.readouterr().out
    assert "resnet18-f37072fd.pth" in text and "no network" in text and "random" in text


def test_find_lr_prints_a_curve_and_a_suggestion(carvana, capsys):
    run("o", "--data", carvana, "--find-lr", "--steps", 20)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("lr ")]
    assert len(lines) == 20 and lines[0].startswith("lr 1.0e-05")
    rates, losses = zip(*[map(float, line.split()[1:3]) for line in lines])
    losses = [round(loss, 1) for loss in losses]
    best = rates[losses.index(min(losses))]
    assert float(lines[-1].split()[-1]) == pytest.approx(best / 5, rel=0.15)
    assert not Path("o/simple.pt").exists()


def test_seed_lr_and_nf_are_used(carvana):
    states = [state(run(f"o{i}", "--data", carvana, "--model", "simple", "--steps", 1, *flags)
                    / "simple.pt") for i, flags in enumerate(
                        ([], ["--seed", 1], ["--lr", 0.1], ["--nf", 16]))]
    assert not same(states[0], states[1]) and not same(states[0], states[2])
    assert states[3]["model"]["head.0.bn.weight"].shape == (16,)


def test_apply_writes_mask_and_overlay_at_the_photos_size(carvana, capsys):
    out = run("o", "--data", carvana, "--model", "unet", "--steps", 1)
    photo = car_pairs(side=100)[0][2].crop((0, 10, 100, 77))
    photo.save("a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0")
    seg.main(["--apply", "a.jpg", "--init", str(out / "unet.pt"), "--out", "m", "--device", "cpu"])
    with Image.open("m/a_mask.png") as mask, Image.open("m/a_overlay.png") as overlay:
        assert mask.size == overlay.size == (67, 100)  # turned upright
        assert mask.mode == "L" and {*np.unique(mask)} <= {0, 255}
    argv = ["--apply", "a.jpg", "--init", out / "unet.pt", "--out", "m"]
    assert "a_mask.png exists" in fails(seg, capsys, *argv)
    Image.new("RGB", (31, 80)).save("small.png")
    argv[1] = "small.png"
    assert "small.png has a side below 32 px" in fails(seg, capsys, *argv)


def test_overlay_is_red_where_a_label_was_missed_and_only_there():
    photo = Image.new("RGB", (4, 2), (200, 200, 200))
    truth = np.array([[0, 1, 2, seg.IGNORE], [0, 1, 2, 0]], np.uint8)
    pred = np.array([[0, 1, 2, 1], [1, 0, 2, 2]], np.uint8)
    image = np.asarray(seg.overlay(photo, pred, truth))
    red = (image == (255, 0, 0)).all(2)
    assert (red == [[0, 0, 0, 0], [1, 1, 0, 1]]).all()
    assert (image[0, 0] == 200).all()  # the first class keeps the photo
    assert len({tuple(image[0, i]) for i in (0, 1, 2)}) == 3


def test_apply_writes_the_values_of_many_classes(tmp_path, monkeypatch, light):
    root = write(tmp_path / "many", "images", "masks", ".png", scale=9)
    for path in (root / "masks").iterdir():
        mask = np.array(Image.open(path))
        mask[:20] = 4
        Image.fromarray(mask).save(path)
    out = run("o", "--data", root, "--model", "fcn")
    assert state(out / "fcn.pt")["args"]["classes"] == "0 4 9"
    photo = next((root / "images").iterdir())
    pattern = np.random.default_rng(0).integers(0, 3, (48, 48), np.uint8)
    monkeypatch.setattr(seg, "predict", lambda *args: pattern)
    seg.main(["--apply", str(photo), "--init", str(out / "fcn.pt"), "--out", "m"])
    with Image.open(f"m/{photo.stem}_mask.png") as mask:
        assert mask.mode == "P" and np.array_equal(np.array(mask), np.array([0, 4, 9])[pattern])


def test_training_goes_on_from_a_checkpoint_with_its_own_net(carvana, capsys):
    out = run("o", "--data", carvana, "--model", "unet", "--steps", 1)
    run("p", "--data", carvana, "--init", out / "unet.pt", "--nf", 16, "--sizes", 40, "--lr", 1e-9,
        "--steps", 1)
    a, b = state("o/unet.pt"), state("p/unet.pt")
    assert b["args"]["nf"] == 8 and not Path("p/simple.pt").exists()
    torch.testing.assert_close(a["model"]["head.0.tr_conv.weight"],
                               b["model"]["head.0.tr_conv.weight"], rtol=0, atol=1e-6)


# ---- every mistake
@pytest.mark.parametrize("flag, value", [
    ("--steps", 0), ("--batch-size", 0), ("--nf", 1), ("--lr", 0), ("--lr", "nan"), ("--seed", -1),
    ("--eval-every", 0), ("--sizes", 31), ("--encoder", 50), ("--model", "vgg"),
    ("--weights", "best"), ("--steps", "many"), ("--ignore", "none")])
def test_flags_out_of_range(capsys, flag, value):
    assert flag in fails(seg, capsys, flag, value)


def test_sizes_ascend_and_apply_needs_a_checkpoint(capsys):
    assert "--sizes" in fails(seg, capsys, "--sizes", 64, 32)
    assert "--sizes" in fails(seg, capsys, "--sizes", 64, 64)
    assert "--init" in fails(seg, capsys, "--apply", "photo.jpg")
    assert "there is no such device" in fails(seg, capsys, "--device", "abacus")


def test_folders_that_do_not_serve(capsys, photos, tmp_path):
    for folder in (photos, "nowhere"):
        sentence = fails(seg, capsys, *TINY, "--data", folder)
        assert str(folder) in sentence and "train_masks/" in sentence and "images/" in sentence
    one = write(tmp_path / "one", cars=1)
    assert "1 group" in fails(seg, capsys, *TINY, "--data", one)
    Path("file").write_text("")
    assert "--out file" in fails(seg, capsys, *TINY, "--data", one, "--out", "file")


def test_files_that_do_not_serve_are_counted(carvana, capsys):
    (carvana / "train" / "car0_77.png").write_bytes((carvana / "train/car0_00.png").read_bytes())
    (carvana / "train" / "car0_00.png").write_bytes(b"not a picture")
    (carvana / "train_masks" / "car1_01_mask.gif").write_bytes(b"GIF89a broken")
    Image.new("RGB", (20, 48)).save(carvana / "train" / "car2_02.png")
    pairs = seg.load_pairs(carvana, 32)
    assert len(pairs) == 9 and "4 files skipped" in capsys.readouterr().out


def test_a_mask_of_another_size_names_both(carvana, capsys):
    path = sorted((carvana / "train_masks").iterdir())[0]
    Image.open(path).resize((40, 48)).save(path)
    sentence = fails(seg, capsys, *TINY, "--data", carvana)
    assert path.name in sentence and "car0_00.png" in sentence and "(40, 48)" in sentence


def test_values_outside_the_classes_name_the_file(tmp_path, capsys, light):
    for part in ("train", "val"):
        write(tmp_path / "c", part, f"{part}annot", ".png")
    path = sorted((tmp_path / "c/valannot").iterdir())[2]
    Image.open(path).point(lambda v: v * 6).save(path)
    sentence = fails(seg, capsys, *TINY, "--data", tmp_path / "c")
    assert path.name in sentence and "6" in sentence and "[0, 1]" in sentence
    run("o", "--data", write(tmp_path / "d"), "--model", "simple", "--steps", 1)
    other = write(tmp_path / "e", "images", "masks", ".png", scale=7)
    sentence = fails(seg, capsys, *TINY, "--data", other, "--init", "o/simple.pt")
    assert "7" in sentence and "[0, 1]" in sentence
    white = write(tmp_path / "w", "images", "masks", ".png", scale=255)  # 255 is no class of it
    assert "255" in fails(seg, capsys, *TINY, "--data", white, "--init", "o/simple.pt")
    blank = write(tmp_path / "f", "images", "masks", ".png", scale=0)
    assert "[0]" in fails(seg, capsys, *TINY, "--data", blank)


def test_checkpoints_that_are_none(carvana, capsys):
    run("o", "--data", carvana, "--model", "simple", "--steps", 1)
    other = torch.load("o/simple.pt", weights_only=True)
    other["args"]["script"] = "sr"
    torch.save(other, "sr.pt")
    Path("empty.pt").write_bytes(b"")
    for name, why in (("gone.pt", "No such file"), ("empty.pt", ""), ("sr.pt", "sr.py wrote it")):
        sentence = fails(seg, capsys, "--apply", "a.jpg", "--init", name)
        assert "is no checkpoint of seg.py" in sentence and why in sentence
    assert "out/none/unet.pt" in fails(seg, capsys, "--resume", "--out", "out/none")
    assert "not --resume" in fails(seg, capsys, "--apply", "a.jpg", "--init", "b.pt", "--resume")


def test_a_loss_that_is_not_finite_stops_the_run(carvana, capsys, monkeypatch):
    monkeypatch.setattr(seg, "pixel_loss", lambda logits, y: logits.sum() * float("nan"))
    sentence = fails(seg, capsys, *TINY, "--data", carvana)
    assert "the loss is nan" in sentence and "simple.pt" in sentence


# ---- real data, opt-in
def test_resnet18_knows_imagenet(lesson_data, monkeypatch):
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
            photo = seg.open_image(path).convert("RGB")
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
    pairs = seg.load_pairs(lesson_data / "camvid", 32)
    train, val, classes = seg.split(pairs)
    assert (len(train), len(val)) == (123, 34) and classes == " ".join(map(str, range(11)))
