"""What the lesson and its papers claim, measured: python tests/claims.py [name ...]

One short experiment a claim, with the scripts' own data, nets, losses and loops, against a control
that differs in one thing, over three seeds (of the weights, the crops and, for cars, the split).
All of it takes under 20 minutes on two cores. The data is generated and VGG's weights are random;
where the environment variable LESSON_DATA names a folder with imagenet_sample/, style/, carvana/
and torch_home/, each experiment is run on those too, and has columns of its own.

A row holds if "with" beats "without" in every seed, and by more than the standard deviation of the
difference. A claim holds if all its rows do, does not if none does, else only where they do.
Steps and rates were fixed before the outcome was known; none is there to make a claim hold.
"""
import argparse
import contextlib
import copy
import functools
import math
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import seg  # noqa: E402
import sr  # noqa: E402
import style  # noqa: E402
from common import VGGFeatures, gram_matrix  # noqa: E402

FRACTION = 1.0  # of the steps and the data, by --fraction
DEVICE, BF16 = torch.device("cpu"), False  # by main


# The data: a namespace for generated pictures, one for real ones

def scaled(n, least=2):
    return max(least, round(n * FRACTION))


@functools.cache
def material(real):
    """photos to train [(name, array)], photos to validate [(1, 3, 192, 192)], a painting, VGG's
    weights, and cars: {size: [(group, file, photo, mask)]}."""
    if real:
        folder = ROOT / os.environ["LESSON_DATA"]
        photos = sr.load_photos(folder / "imagenet_sample", 192)
        picture, pairs = folder / "style/starry_night.jpg", seg.load_pairs(folder / "carvana", 128)
    else:
        photos = [(i, sr.dead_leaves(np.random.default_rng([0, i]), 256))
                  for i in range(scaled(100, 10))]
        picture = ""
        pairs = [(f"car {i}", "generated", *pair) for i in range(scaled(20, 2))
                 for pair in seg.car(np.random.default_rng([0, i]), 128)]
    groups = sorted({group for group, *_ in pairs})[:20]
    large = [pair for pair in pairs if pair[0] in groups]
    cars = {size: [(*names, *seg.resize(*pair, size)) for *names, pair in
                   ((group, file, (photo, mask)) for group, file, photo, mask in large)]
            for size in (32, 64, 128)}
    held = [photo for _, photo in photos[::len(photos) // 10][:6]]
    names = {name for name, _ in photos[::len(photos) // 10][:6]}
    val = [sr.to_tensor(photo[:192, :192])[None].to(DEVICE) for photo in held]
    painting = style.load_picture(picture, 192, style.painting, np.random.default_rng(0))
    return SimpleNamespace(real=real, photos=[p for p in photos if p[0] not in names], val=val,
                           painting=painting[..., :192, -192:].to(DEVICE), cars=cars,
                           weights="pretrained" if real else "random")


# Training by the scripts' own loops, without what they print

@contextlib.contextmanager
def quiet():
    with contextlib.redirect_stdout(None), tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the loops have a handler of theirs


def sr_pairs(data, scale):
    return [[t[None].to(DEVICE) for t in sr.make_pair(sr.to_image(x[0, :, :128, :128]), scale)]
            for x in data.val]


def sr_net(seed, scale=2, nf=16, blocks=4, icnr=True, upsample=None, tail="zero"):
    torch.manual_seed(seed)
    net = sr.SrResnet(scale, nf, blocks)
    if not icnr:
        nn.init.kaiming_normal_(net.upsample[0].weight)
    net.upsample = upsample(nf) if upsample else net.upsample
    if tail == "random":
        nn.init.normal_(net.tail.weight, std=0.1)
    return net.to(DEVICE, memory_format=torch.channels_last)


def sr_train(net, data, steps, seed, lr=3e-3, loss_fn=F.l1_loss, frozen=0, every=10**9, first=0):
    """sr.py's loop: seconds, and [(step, PSNR)] of its validations."""
    args = sr.get_args(["--eval-every", str(every)])
    args.bf16, size = BF16, 24 * net.scale
    crops = sr.Crops(data.photos, size, net.scale, seed=seed)
    with quiet() as folder:
        start = time.perf_counter()
        sr.train(net, loss_fn, crops, sr_pairs(data, net.scale), folder / "pixel.pt", steps, lr,
                 frozen, args)
        seconds = time.perf_counter() - start
        rows = [line.split(",") for line in (folder / "log.csv").read_text().splitlines()]
    return seconds, [(int(row[1]), float(row[3])) for row in rows]


def style_args(data, *flags):
    args = style.get_args(["--size", "128", "--batch-size", "4", "--nf", "8", "--weights",
                           data.weights, "--style-layers", "relu1_2", "relu2_2", "relu3_3", *flags])
    args.bf16, args.steps, args.eval_every = BF16, scaled(60), 10**9
    return args


@functools.cache
def style_net(real, padding, norm, seed):
    """A network trained for 60 steps by style.py's loop, and the loss that it was trained with."""
    data = material(real)
    args = style_args(data)
    torch.manual_seed(seed)
    net = style.StyleNet(args.nf, padding.replace("zeros", "reflect"), norm)
    for module in net.modules():
        if padding == "zeros" and isinstance(module, nn.Conv2d):
            module.padding_mode = "zeros"
    net.to(DEVICE, memory_format=torch.channels_last)
    perceptual = style.PerceptualLoss(data.painting, args)
    with quiet() as folder:
        style.train(net, perceptual, style.Crops(data.photos, 96, seed), data.val[:1],
                    folder / "network.pt", None, args)
    return net.eval(), perceptual


def seg_net(seed, name="unet"):
    torch.manual_seed(seed)
    net = seg.Segmenter(name, 18, 128, 2)
    return net.to(DEVICE, memory_format=torch.channels_last)


def seg_split(data, size, seed, by="car"):
    """[(photo, mask)] to train, the same to validate: every fifth car, or every fifth photo."""
    pairs = data.cars[size]
    if by == "image":
        pairs = [(f"{i:05}", *pair[1:]) for i, pair in enumerate(pairs)]
    groups = sorted({pair[0] for pair in pairs})
    order = {group: f"{(i + seed) % len(groups):05}" for i, group in enumerate(groups)}
    with quiet():
        return seg.split([(order[pair[0]], *pair[1:]) for pair in pairs])[:2]


def seg_train(net, splits, steps, seed, weights="random", frozen=0, classes="0 1"):
    """seg.py's loop over {size: split}, `steps` at each size: seconds."""
    args = seg.get_args(["--steps", str(steps), "--weights", weights, "--eval-every", "1000000"])
    args.bf16, args.classes = BF16, classes
    crops = seg.Crops({n: (train, val[:1]) for n, (train, val) in splits.items()},
                      steps * args.batch_size, seed)
    with quiet() as folder:
        start = time.perf_counter()
        seg.train(net, crops, folder / "unet.pt", frozen, args)
        return time.perf_counter() - start


def steps_in(seconds, run):
    """How many steps take as long; of two short runs, what is alike in both is overhead."""
    few, many = run(4), run(12)
    a_step = (many - few) / 8
    return max(2, round((seconds - few + 4 * a_step) / a_step))


# What is measured

def period_2(out, y):
    """RMS of the error at the frequencies of a checkerboard, in grey levels of 255.

    out, y: (B, 3, H, W). Of the Hann-windowed spectrum, the 3 x 3 bins around a period of 2 px
    along rows, along columns and along both: there a flat colour lands that is enlarged unevenly.
    """
    side = min(out.shape[2:]) // 2 * 2 - 32
    error = 255 * (out - y).mean(1)[:, 16:16 + side, 16:16 + side]  # without the borders
    hann = torch.hann_window(side, device=out.device)
    window = torch.outer(hann, hann)
    power = torch.fft.fft2(error * window).abs().square() / window.square().sum() / side**2
    power = torch.roll(power, (side // 2, side // 2), (1, 2))[:, None]  # frequency 0 in the centre
    near = F.pad(power, (1, 1, 1, 1), "circular").unfold(2, 3, 1).unfold(3, 3, 1).sum((-1, -2))
    h = side // 2
    return (near[:, 0, 0, 0] + near[:, 0, 0, h] + near[:, 0, h, 0]).mean().sqrt().item()


@torch.no_grad()
def flat(net):
    """period_2 of a net's picture of flat colours."""
    x = torch.rand(16, 3, 1, 1, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    return period_2(net(x.expand(-1, -1, 48, 48)), x.expand(-1, -1, 96, 96))


@torch.no_grad()
def on_photos(net, data):
    return statistics.mean(period_2(net(low), high) for low, high in sr_pairs(data, 2))


def psnr(net, data):
    with torch.no_grad():
        return sr.evaluate(net, sr_pairs(data, net.scale), net.scale).mean(0)[0].item()


def dice(net, val, band=0):
    """Mean Dice of photos; with a band, of the pixels that close to a border of the true mask."""
    scores = []
    for photo, mask in val:
        y = torch.from_numpy(np.array(mask)).float()[None, None]
        near = torch.ones_like(y, dtype=torch.bool)
        if band:
            side = 2 * band + 1
            grown, shrunk = (s * F.max_pool2d(s * y, side, 1, band) for s in (1, -1))
            near = grown != shrunk
        y, pred = y.bool() & near, torch.from_numpy(seg.predict(net, photo, BF16)).bool() & near
        scores.append((2 * (y & pred).sum() / (y.sum() + pred.sum())).nan_to_num(1).item())
    return statistics.mean(scores)


# The claims: each takes the data and a seed, and returns {what is measured: (with, without,
# "lower" | "higher" | "same": what "with" is said to be)}

def icnr(data, seed):
    """ICNR removes the checkerboard at the start, and less of it is left after training"""
    rows = {}
    for tail in "random", "zero":  # a tail of zeros, as in sr.py, hides at first what is before it
        nets = [sr_net(seed, icnr=flag, tail=tail) for flag in (True, False)]
        if tail == "random":
            rows["levels on flat colours, at the start"] = (*map(flat, nets), "lower")
        for net in nets:
            sr_train(net, data, scaled(200), seed)
        rows[f"levels on flat colours, after 200 steps, {tail} tail"] = (*map(flat, nets), "lower")
        rows[f"levels on photos, after 200 steps, {tail} tail"] = (
            *(on_photos(net, data) for net in nets), "lower")
    return rows


def transposed(data, seed):
    """Transposed convolution makes checkerboards; nearest + conv, pixel shuffle + ICNR do not"""
    kinds = {"transposed": lambda nf: nn.ConvTranspose2d(nf, nf, 3, 2, 1, output_padding=1),
             "nearest + conv": lambda nf: nn.Sequential(nn.Upsample(scale_factor=2),
                                                        sr.conv(nf, nf)),
             "shuffle": None}
    nets = {name: sr_net(seed, upsample=kind, tail="random") for name, kind in kinds.items()}
    start, rows = {name: flat(net) for name, net in nets.items()}, {}
    for net in nets.values():
        sr_train(net, data, scaled(200), seed)
    end = {name: flat(net) for name, net in nets.items()}
    for when, levels in ("at the start", start), ("after 200 steps", end):
        for other in "nearest + conv", "shuffle":
            rows[f"levels on flat colours {when}, against {other}"] = (
                levels["transposed"], levels[other], "higher")
    return rows


def gram(data, seed):
    """bmm keeps the images of a batch apart, mm mixes them (deviation of the style loss)"""
    vgg = VGGFeatures(["relu2_2"], data.weights).to(DEVICE)
    order = np.random.default_rng(seed).permutation(len(data.val))[:4]
    x, rows = torch.cat([data.val[i][..., :128, :128] for i in order]), {}

    def mm(f):  # images and channels in one matrix: (B * C, HW) x (HW, B * C)
        B, C, H, W = f.shape
        f = f.reshape(B * C, H * W)
        return (f @ f.T)[None] / (C * H * W)

    def loss(gram_matrix, x):
        have, want = (gram_matrix(vgg(t)["relu2_2"])
                      for t in (x, data.painting[..., :128, :128].expand_as(x)))
        return style.relative(have, want).mean().item()

    for batch in (1, 4):
        own = statistics.mean(loss(gram_matrix, image[None]) for image in x[:batch])
        deviations = [abs(loss(g, x[:batch]) / own - 1) for g in (gram_matrix, mm)]
        rows[f"from the images' own, batch {batch}"] = (
            *deviations, "same" if batch == 1 else "lower")
    return rows


class EnlargeFirst(sr.SrResnet):
    """The same net the other way round, as in SRCNN and VDSR: bicubic first, then convolve."""

    def __init__(self, scale, nf, blocks):
        super().__init__(scale, nf, blocks)
        self.upsample = nn.Sequential()

    def forward(self, x):
        x = self.bicubic(x)
        return self.tail(self.body(x)) + x


def upsample_last(data, seed):
    """Convolving first and enlarging last costs less than the other way round"""
    steps, last = scaled(300), sr_net(seed)

    def first():
        torch.manual_seed(seed)
        return EnlargeFirst(2, 16, 4).to(DEVICE, memory_format=torch.channels_last)
    seconds, _ = sr_train(last, data, steps, seed)
    other = steps_in(seconds, lambda n: sr_train(first(), data, n, seed)[0])
    net = first()
    longer, _ = sr_train(net, data, other, seed)
    return {"ms a step": (1e3 * seconds / steps, 1e3 * longer / other, "lower"),
            "PSNR in equal time (300 steps)": (psnr(last, data), psnr(net, data), "higher")}


def batchnorm(data, seed):
    """BatchNorm hurts super-resolution; scaling each branch by 0.1 steadies high rates"""
    steps = scaled(200)

    def trained(change, lr):
        net = sr_net(seed, blocks=8)
        change(net)
        sr_train(net, data, steps, seed, lr)
        return psnr(net.eval(), data)

    def same(net):
        pass

    def norms(net):  # conv, BatchNorm, ReLU, conv, BatchNorm: as in SRResNet (Ledig 2017)
        for i, block in enumerate(net.body):
            if isinstance(block, sr.ResBlock):
                norm = [nn.BatchNorm2d(16).to(DEVICE) for _ in range(2)]
                net.body[i] = sr.ResBlock(block[0], norm[0], *block[1:], norm[1])

    def unscaled(net):
        for block in net.body:
            if isinstance(block, sr.ResBlock):
                block.__class__ = Unscaled
    ours = {lr: trained(same, lr) for lr in (3e-3, 3e-2)}
    return {"PSNR without BatchNorm": (ours[3e-3], trained(norms, 3e-3), "higher"),
            "PSNR with the branch x 0.1, rate 3e-3": (ours[3e-3], trained(unscaled, 3e-3),
                                                      "higher"),
            "PSNR with the branch x 0.1, rate 3e-2": (ours[3e-2], trained(unscaled, 3e-2),
                                                      "higher")}


class Unscaled(sr.ResBlock):
    def forward(self, x):
        return x + nn.Sequential.forward(self, x)


def feature_loss(data, seed):
    """Feature loss lowers PSNR and the feature distance both (from one net, as many steps)"""
    vgg = VGGFeatures(sr.FEATURE_WEIGHTS, data.weights).to(DEVICE)
    start, scores = sr_net(seed), []
    sr_train(start, data, scaled(400), seed)
    for loss_fn in functools.partial(sr.feature_loss, vgg, 0), F.l1_loss:
        net = copy.deepcopy(start)
        sr_train(net, data, scaled(60), seed + 1000, 3e-4, loss_fn)
        scores.append(sr.evaluate(net, sr_pairs(data, 2), 2, vgg).mean(0).tolist())
    (p, _, *with_), (q, _, *without) = scores
    return {"PSNR": (p, q, "lower"), **{f"distance on {layer}": (a, b, "lower") for layer, a, b in
                                        zip(sr.FEATURE_WEIGHTS, with_, without)}}


class NotAdded(sr.SrResnet):
    def __init__(self, *args):
        super().__init__(*args)
        self.tail.reset_parameters()  # PyTorch's default: zeros would be black

    def forward(self, x):
        return self.tail(self.upsample(self.body(x)))


def add_bicubic(data, seed):
    """Adding the bicubic enlargement speeds the start"""
    most, steps = scaled(400), []
    for kind in sr.SrResnet, NotAdded:
        torch.manual_seed(seed)
        net = kind(2, 16, 4).to(DEVICE, memory_format=torch.channels_last)
        _, log = sr_train(net, data, most, seed, every=10)
        with torch.no_grad():
            bicubic = sr.evaluate(net.bicubic, sr_pairs(data, 2), 2).mean(0)[0].item()
        steps.append(next((step for step, value in log if value > bicubic + 0.1), most))
    return {"steps to pass bicubic by 0.1 dB (of 400 at most)": (*steps, "lower")}


def x4_from_x2(data, seed):
    """Starting x4 from x2 with the layers that fit beats starting afresh, in equal time"""
    small, steps = sr_net(seed), scaled(150)
    before, _ = sr_train(small, data, scaled(300), seed)
    net = sr_net(seed + 1000, 4)
    with quiet():
        sr.load_layers(net, {"model": small.state_dict(), "args": {"nf": 16}})
    after, _ = sr_train(net, data, steps, seed, frozen=steps // 4)
    rows = {}
    for name, seconds in ("x2 at hand", after), ("x2's time counted", before + after):
        fresh = sr_net(seed + 1000, 4)
        n = steps_in(seconds, lambda n: sr_train(sr_net(seed, 4), data, n, seed)[0])
        sr_train(fresh, data, n, seed)
        rows[f"PSNR x4, {name}"] = (psnr(net, data), psnr(fresh, data), "higher")
    return rows


def padding(data, seed):
    """Zero padding marks the borders of a stylised photo; reflect and crop do not"""
    def border(kind):  # the outer 8 px, against the same photo with 32 px more around it
        net, _ = style_net(data.real, kind, "instance", seed)
        errors = []
        for x in data.val:
            with torch.no_grad():
                error = (net(x)[..., 32:-32, 32:-32] - net(x[..., 32:-32, 32:-32])).abs()
            error[..., 8:-8, 8:-8] = math.nan
            errors.append(255 * error.nanmean().item())
        return statistics.mean(errors)
    zeros = border("zeros")
    return {f"error of the outer 8 px in grey levels, {kind}": (border(kind), zeros, "lower")
            for kind in ("reflect", "crop")}


def instance_norm(data, seed):
    """Instance norm beats batch norm at equal steps"""
    losses = []
    for norm in "instance", "batch":
        net, perceptual = style_net(data.real, "reflect", norm, seed)
        losses.append(style.evaluate(net, perceptual, data.val).mean(0)[-1].item())
    return {"total loss after 60 steps": (*losses, "lower")}


def one_pass(data, seed):
    """The network is many times faster than optimising, at equal loss"""
    net, perceptual = style_net(data.real, "reflect", "instance", seed)
    steps, x, clock = scaled(80), data.val[seed % len(data.val)], time.perf_counter
    with torch.no_grad():
        net(x)  # warms up
        start = clock()
        out = net(x).cpu()
        fast, total = clock() - start, perceptual(out.to(DEVICE), perceptual.target(x))[0, -1]
    start = clock()
    with quiet():
        _, losses = style.optimize(x, perceptual, steps, BF16)
    slow = clock() - start
    equal = next((i for i, loss in enumerate(losses) if loss <= total), steps)
    return {"seconds to the network's loss": (fast, slow * equal / (steps + 1), "lower")}


@functools.cache
def car_unet(real, seed):
    """A U-Net trained for 80 steps at 64 px, the cars it was trained on and those kept; seconds."""
    sides, net = seg_split(material(real), 64, seed), seg_net(seed)
    return net, sides, seg_train(net, {64: sides}, scaled(80), seed)


def unet(data, seed):
    """U-Net beats the simple head in equal time, over all and at borders"""
    net, sides, seconds = car_unet(data.real, seed)
    n = steps_in(seconds, lambda n: seg_train(seg_net(seed, "simple"), {64: sides}, n, seed))
    simple = seg_net(seed, "simple")
    seg_train(simple, {64: sides}, n, seed)
    return {what: (dice(net, sides[1], band), dice(simple, sides[1], band), "higher")
            for what, band in (("Dice", 0), ("Dice within 3 px of the border", 3))}


def small_first(data, seed):
    """Small photos first, then large, beats large from the start, in equal time"""
    splits, steps = {size: seg_split(data, size, seed) for size in (32, 64)}, scaled(60)
    nets = [seg_net(seed), seg_net(seed)]
    seconds = seg_train(nets[0], splits, steps, seed)
    large = {64: splits[64]}
    n = steps_in(seconds, lambda n: seg_train(seg_net(seed), large, n, seed))
    seg_train(nets[1], large, n, seed)
    return {"Dice at 64 px, after 32 and 64 px": (*(dice(net, splits[64][1]) for net in nets),
                                                  "higher")}


def split(data, seed):
    """A split by photo, with each car on both sides, flatters the score"""
    net, sides = seg_net(seed), seg_split(data, 64, seed, "image")
    seg_train(net, {64: sides}, scaled(80), seed)
    by_car, cars, _ = car_unet(data.real, seed)
    return {"Dice by photo, against by car": (dice(net, sides[1]), dice(by_car, cars[1]), "higher")}


def mask_resize(data, seed):
    """Resizing masks with interpolation costs accuracy"""
    sides = {method: ([], []) for method in (Image.NEAREST, Image.BILINEAR)}
    train, val = seg_split(data, 128, seed)
    for side, photos in enumerate((train, val)):
        for photo, mask in photos:  # three classes: background, dark car, bright car
            inside = np.asarray(mask) == 1
            bright = np.asarray(photo)[inside].mean() > 90
            mask = Image.fromarray(np.uint8(inside * (1 + bright)))
            for method, pairs in sides.items():
                small = photo.resize((64, 64), Image.BILINEAR)
                truth = mask.resize((64, 64), Image.NEAREST if side else method)
                pairs[side].append((small, truth))
    rows, accuracy = {}, []
    shares = [statistics.mean(np.mean(np.asarray(mask) != np.asarray(right)) for (_, mask), (
        _, right) in zip(pairs[0], sides[Image.NEAREST][0])) for pairs in sides.values()]
    for pairs in sides.values():
        torch.manual_seed(seed)
        net = seg.Segmenter("unet", 18, 128, 3).to(DEVICE, memory_format=torch.channels_last)
        seg_train(net, {64: pairs}, scaled(80), seed, classes="0 1 2")
        accuracy.append(seg.metrics(seg.evaluate(net, pairs[1], SimpleNamespace(
            classes="0 1 2", bf16=BF16)))[0])
    rows["share of wrong mask pixels"] = (*shares, "lower")
    rows["accuracy, nearest against bilinear"] = (*accuracy, "higher")
    return rows


@functools.cache
def encoder(real):
    """Weights of a pretrained encoder: of ImageNet's file or, generated, of cars never used."""
    net = seg_net(99)
    if real:
        state = torch.hub.load_state_dict_from_url(
            f"https://download.pytorch.org/models/{seg.FILES[18]}", weights_only=True)
        net.encoder.load_state_dict({k: v for k, v in state.items() if k[:3] != "fc."})
    else:
        pairs = [pair for i in range(1000, 1000 + scaled(20, 2))
                 for pair in seg.car(np.random.default_rng([0, i]), 64)]
        seg_train(net, {64: (pairs, pairs[:1])}, scaled(120), 99)
    return net.encoder.state_dict()


def freeze(data, seed):
    """Freezing first, then rates by depth, beats training all at once (pretrained encoder)"""
    sides, steps, scores = seg_split(data, 64, seed), scaled(60), []

    def run(steps, weights, frozen):
        net = seg_net(seed)
        net.encoder.load_state_dict(encoder(data.real))
        return net, seg_train(net, {64: sides}, steps, seed, weights, frozen)
    net, seconds = run(steps, "pretrained", steps // 4)
    scores.append(dice(net, sides[1]))
    for weights in "pretrained", "random":
        n = steps_in(seconds, lambda n: run(n, weights, 0)[1])
        scores.append(dice(run(n, weights, 0)[0], sides[1]))
    return {"Dice, against rates by depth from the start": (*scores[:2], "higher"),
            "Dice, against one rate for all": (scores[0], scores[2], "higher")}


def cut_vgg(data, seed):
    """Cutting VGG at the last layer used saves time and leaves the loss as it is, to the bit"""
    x, y = (torch.rand(4, 3, 96, 96, generator=torch.Generator().manual_seed(seed + i)).to(DEVICE)
            for i in range(2))
    layers, seconds, results = [*sr.FEATURE_WEIGHTS], [], []
    whole = VGGFeatures([*layers, "relu5_3"], "random").to(DEVICE)
    short = VGGFeatures(layers, "random").to(DEVICE)
    for vgg in short, whole:
        times = []
        for _ in range(6):
            out, start = x.clone().requires_grad_(), time.perf_counter()
            have = vgg(out)
            with torch.no_grad():
                want = vgg(y)
            loss = sum(F.l1_loss(have[layer], want[layer]) for layer in layers)
            loss.backward()
            times.append(time.perf_counter() - start)
        seconds.append(1e3 * statistics.median(times[1:]))
        results.append((loss.detach(), out.grad))
    different = sum((a != b).sum().item() for a, b in zip(*results))
    return {"ms a loss and its gradient": (*seconds, "lower"),
            "values of loss and gradient that differ": (different, 0, "same")}


SOURCES = {  # claim -> source, and where in this project it is put to use
    icnr: "Aitken 2017", transposed: "Odena 2016", gram: "Gatys 2016, eq. 3",
    upsample_last: "Shi 2016", batchnorm: "Lim 2017, 3.1 and 3.2",
    feature_loss: "Johnson 2016, 4.2", add_bicubic: "Kim 2016 (VDSR)",
    x4_from_x2: "Lim 2017, 3.2; the lesson", padding: "Johnson 2016, supplement",
    instance_norm: "Ulyanov 2016", one_pass: "Johnson 2016, table 1", unet: "Ronneberger 2015",
    small_first: "the lesson", split: "the lesson", mask_resize: "common advice",
    freeze: "the lesson", cut_vgg: "arithmetic"}
CLAIMS = {function.__name__: function for function in SOURCES}


# The table

def verdict(with_, without, better):
    """Of one row, over seeds: does "with" beat "without" each time, and by more than by chance?"""
    gains = [(b - a) * (1 if better == "lower" else -1) for a, b in zip(with_, without)]
    if better == "same":
        return all(abs(gain) <= 1e-5 for gain in gains)
    spread = statistics.stdev(gains) if len(gains) > 1 else 0
    return min(gains) > 0 and statistics.mean(gains) > spread


def summary(held):
    """{row: does it hold?} -> the claim's verdict, in words."""
    if all(held.values()):
        return "holds"
    if not any(held.values()):
        return "does not hold"
    return "holds only for: " + "; ".join(name for name, holds in held.items() if holds)


def cell(values):
    spread = statistics.stdev(values) if len(values) > 1 else 0
    return f"{statistics.mean(values):.4g} ± {spread:.2g}"


def ratio(with_, without):
    return statistics.mean(with_) / statistics.mean(without) if any(without) else math.nan


def run(name, sets, seeds):
    """One claim on each data set: prints its rows, and returns the verdicts."""
    claim, verdicts, columns = CLAIMS[name], [], []
    for real in sets:
        data, start = material(real), time.perf_counter()
        results = [claim(data, seed) for seed in range(seeds)]
        rows = {what: (*zip(*(result[what][:2] for result in results)), better)
                for what, (*_, better) in results[0].items()}
        held = {what: verdict(*row) for what, row in rows.items()}
        verdicts.append(f"{'real' if real else 'generated'} data, "
                        f"{time.perf_counter() - start:.0f} s: {summary(held)}")
        columns.append([f"{cell(a):>19} |{cell(b):>19} |{ratio(a, b):>8.3g} |"
                        f"{'yes' if held[what] else 'no':>5} |"
                        for what, (a, b, _) in rows.items()])
    print(f"\n{name}: {claim.__doc__} ({SOURCES[claim]})")
    for what, *cells in zip(rows, *columns):
        print(f"| {what:65} |" + "".join(cells))
    print(*verdicts, sep="\n", flush=True)  # as they come
    return verdicts


def main(argv=None):
    global FRACTION, DEVICE, BF16
    parser = argparse.ArgumentParser(description="What the lesson claims, measured.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {' '.join(CLAIMS)}")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each experiment")
    parser.add_argument("--fraction", type=float, default=1, help="of the steps, for a quick look")
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in CLAIMS]
    sr.check(not unknown, f"no claim {' '.join(unknown)}: there are {' '.join(CLAIMS)}")
    sr.check(args.seeds > 0 and args.fraction > 0, "--seeds and --fraction take more than 0")
    folder, FRACTION = os.environ.get("LESSON_DATA"), args.fraction
    if folder:
        sr.check((ROOT / folder).is_dir(), f"LESSON_DATA={folder} is no folder")
        os.environ["TORCH_HOME"] = str(ROOT / folder / "torch_home")
    DEVICE, BF16 = sr.get_device("auto")
    sets = [False, True] if folder else [False]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; mean ± standard "
          f"deviation of {args.seeds} seeds" + "; real data in the second columns" * bool(folder))
    print(f"| {'measured':65} |" + len(sets) * (
        f"{'with':>19} |{'without':>19} |{'ratio':>8} |{'holds':>5} |"))
    start = time.perf_counter()
    for name in args.names or CLAIMS:
        run(name, sets, args.seeds)
    print(f"\n{(time.perf_counter() - start) / 60:.1f} min in all")


if __name__ == "__main__":
    main()
