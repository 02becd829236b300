"""What the lesson and its papers claim, measured: python tests/claims.py [name ...]

One short experiment a claim, with the scripts' own data, nets and losses, against a control that
differs in one thing, over three seeds (of the weights, the crops and, for cars, the split).
All of it takes under 20 minutes on two cores. The data is generated and VGG's weights are random;
where the environment variable LESSON_DATA names a folder (from the project's root) that holds
imagenet_sample/, style/, carvana/ and torch_home/, each experiment runs on those too, and has
columns of its own, in as much time again.

A row says "yes" if "with" differs from "without" as claimed in every seed, and the difference is
1.7 times its standard deviation over seeds (a one-sided t-test of three pairs at 5 %: of forty rows
without any effect, two would still say yes); "opposite" if the reverse is so; else "unclear".
A claim holds if all of its rows say yes, else only where they do; not, if none does.
Claims that do not hold are reported like those that do. Some experiments were redesigned after
a first version had been run, where its control differed in two things; README says which.
"""
import argparse
import contextlib
import copy
import functools
import math
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import seg  # noqa: E402
import sr  # noqa: E402
import style  # noqa: E402
from common import VGGFeatures, gram_matrix  # noqa: E402

FRACTION = 1.0  # of the steps, the batches and the data, by --fraction
DEVICE = torch.device("cpu")  # by main


# The data: a namespace for generated pictures, one for real ones

REAL = "imagenet_sample", "style/starry_night.jpg", "carvana", "torch_home"  # below LESSON_DATA


def scaled(n, least=2):
    return max(least, round(n * FRACTION))


def generated_cars(first, count, size):
    return [(n // 16, *seg.shrink(*seg.car(0, n), size))
            for n in range(16 * first, 16 * (first + count))]


@functools.cache
def material(real):
    """photos to train, as functions; val: images to validate, 192 px, and squares, the same as one
    tensor; a painting, (1, 3, 192, 192); VGG's weights; cars: {size: [(car, photo, mask)]} of 20 cars."""
    if real:
        folder = ROOT / os.environ["LESSON_DATA"]
        with contextlib.redirect_stdout(None):
            photos = sr.find_photos(str(folder / REAL[0]), 192)
        picture = style.open_image(str(folder / REAL[1]))
        pairs = seg.find_pairs(folder / REAL[2], 128, 0)
    else:
        photos = [partial(sr.dead_leaves, 0, i, 256) for i in range(scaled(100, 10))]
        picture = style.painting(0)
        pairs = generated_cars(0, scaled(20, 2), 128)
    names = sorted({name for name, *_ in pairs})[:20]
    cars = {size: [(name, *seg.shrink(photo, mask, size))
                   for name, photo, mask in pairs if name in names]
            for size in (32, 64, 128)}
    held = photos[::max(1, len(photos) // 6)][:scaled(6)]
    val = [photo().crop((0, 0, 192, 192)) for photo in held]
    painting = style.to_tensor(ImageOps.fit(picture, (192, 192), centering=(1, 0)))[None]
    return SimpleNamespace(real=real, photos=[p for p in photos if p not in held], val=val,
                           squares=torch.stack([sr.to_tensor(p) for p in val]).to(DEVICE),
                           painting=painting.to(DEVICE), cars=cars,
                           weights="pretrained" if real else "random")


# Training, without what the scripts print

def learning_rate(step, steps, lr):
    """The scripts' curve, but with a tenth of the steps to warm up: their 50 are most of a short
    run, and would favour the longer of two."""
    return lr * min(1, 10 * (step + 1) / steps) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


@contextlib.contextmanager
def quiet():
    with contextlib.redirect_stdout(None), tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def fit(net, loss_fn, crops, steps, lr, batch, clip=math.inf, every=10**9, score=None):
    """Adam, as in the scripts: seconds, and [(step, score())] of every `every` steps.

    The curve of the rate is theirs, but with a tenth of the steps to warm up: their 50 are most
    of a short run, and would favour the longer of two.
    """
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer, scores = torch.optim.Adam(parameters), []
    start = time.perf_counter()
    for step in range(steps):
        items = torch.utils.data.default_collate([crops[step * batch + i] for i in range(batch)])
        items = items if isinstance(items, list) else [items]
        loss = loss_fn(net, *(item.to(DEVICE) for item in items))
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, lr)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, clip)
        if not norm.isfinite():
            break
        optimizer.step()
        if (step + 1) % every == 0:
            scores.append((step + 1, score()))
    return time.perf_counter() - start, scores


def sr_pairs(data, scale):
    return [sr.make_pair(image.crop((0, 0, 128, 128)), scale) for image in data.val]


def sr_net(seed, scale=2, nf=16, blocks=4, icnr=True, upsample=None, tail="zero", kind=sr.SrResnet):
    torch.manual_seed(seed)
    net = kind(scale, nf, blocks)
    if not icnr:
        nn.init.kaiming_normal_(net.upsample[0].weight)
    net.upsample = upsample(nf) if upsample else net.upsample
    if tail == "random":
        torch.manual_seed(seed)  # the same for any upsampler
        nn.init.normal_(net.tail.weight, std=0.1)
    return net.to(DEVICE, memory_format=torch.channels_last)


def sr_train(net, data, steps, seed, lr=3e-3, loss_fn=sr.pixel_loss, every=10**9):
    """Seconds, and [(step, PSNR)] of its validations."""
    crops = sr.Crops(data.photos, 24 * net.scale, net.scale, seed)
    return fit(net, lambda net, low, high: loss_fn(net(low), high), crops, steps, lr, scaled(16),
               0.1, every, lambda: psnr(net, data))


class CroppedBlock(style.ResBlock):
    """Johnson's: two convs without padding, and x cropped by 2 px a side."""

    def forward(self, x):
        return nn.Sequential.forward(self, x) + x[..., 2:-2, 2:-2]


class Cropped(style.StyleNet):
    """Johnson's: 40 px of reflected photo around, which five such blocks at a quarter use up."""

    def __init__(self, nf):
        super().__init__(nf)
        for i, block in enumerate(self.layers):
            if isinstance(block, style.ResBlock):
                self.layers[i] = CroppedBlock(*block)
                block[0][0].padding = block[2][0].padding = (0, 0)
                for conv in (block[0][0], block[2][0]):
                    conv._reversed_padding_repeated_twice = [0, 0, 0, 0]

    def forward(self, x):
        return self.layers(F.pad(x, (40, 40, 40, 40), "reflect")).sigmoid()


@functools.cache
def style_net(real, padding, norm, seed):
    """A network trained for 60 steps at 96 px, and its loss."""
    data = material(real)
    args = style.get_args(["--style-layers", "relu1_2", "relu2_2", "relu3_3",
                           "--device", DEVICE.type])
    torch.manual_seed(seed)
    net = Cropped(8) if padding == "crop" else style.StyleNet(8)
    for module in list(net.modules()):
        if padding == "zeros" and isinstance(module, nn.Conv2d):
            module.padding_mode = "zeros"
        if norm == "batch" and isinstance(module, nn.Sequential) and len(module) == 2:
            module[1] = nn.BatchNorm2d(module[1].num_features)
    net.to(DEVICE, memory_format=torch.channels_last)
    perceptual = style.PerceptualLoss(data.painting, args, data.weights)
    fit(net, lambda net, x: sum(perceptual(net(x), x).values()).mean(),
        style.Crops(data.photos, 96, seed), scaled(60), 5e-3, scaled(4))
    return net.eval(), perceptual


def seg_net(seed, name="unet", classes=1):
    torch.manual_seed(seed)
    net = seg.Segmenter(name, 18, 64, 64)
    if classes > 1:
        net.head[4] = seg.up(64, classes)
    return net.to(DEVICE, memory_format=torch.channels_last)


def seg_split(data, size, seed):
    """[(photo, mask)] to train, the same to validate: every fifth car, others for each seed."""
    pairs = data.cars[size]
    names = sorted({pair[0] for pair in pairs})
    order = {name: f"{(i + seed) % len(names):05}" for i, name in enumerate(names)}
    with quiet():
        return seg.split([(order[name], *pair) for name, *pair in pairs])


def seg_train(net, splits, steps, seed, ratios=(1, 1, 1), frozen=0, loss_fn=seg.pixel_loss):
    """`steps` at each size of {size: split}: seconds. ratios: of the rates of early layers, late
    ones and the head; the first `frozen` steps train the head alone. All as seg.py does it."""
    parts = (net.encoder[:6], net.encoder[6:], net.head)
    optimizer = torch.optim.Adam([{"params": part.parameters()} for part in parts])
    batch = scaled(16)
    start = time.perf_counter()
    for size, (pairs, _) in splits.items():
        net.config["size"] = size
        crops = seg.Crops(pairs, size, seed)
        for step in range(steps):
            items = [crops[step * batch + i] for i in range(batch)]
            x, y = torch.utils.data.default_collate(items)
            net.train()
            net.encoder.train(ratios[0] == 1)
            net.encoder.requires_grad_(step >= frozen)
            for group, ratio in zip(optimizer.param_groups, ratios):
                group["lr"] = ratio * learning_rate(step, steps, 6e-3)
            loss = loss_fn(net(x.to(DEVICE)), y.to(DEVICE))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1)
            optimizer.step()
    return time.perf_counter() - start


def pace(run):
    """Seconds a step of run(steps): of two short runs, what is alike in both is overhead."""
    run(2)  # warms up
    few, many = scaled(4), scaled(16, 4)
    short, whole = run(few), run(many)
    # If the machine stalls in the short run, the difference is too small: a step takes some time.
    return max(whole - short, whole / 5) / (many - few)


def steps_in(seconds, run):
    """How many steps of run(steps) take as long, and its seconds a step."""
    a_step = pace(run)
    return max(2, round((seconds - run(2)) / a_step) + 2), a_step


# What is measured

def period_2(out, y, border=16):
    """RMS of the error at the frequencies of a checkerboard, in grey levels of 255.

    out, y: (B, 3, H, W). Of the Hann-windowed spectrum, the 3 x 3 bins around a period of 2 px
    along rows, along columns and along both: there a flat colour lands that is enlarged unevenly.
    """
    side = min(out.shape[2:]) // 2 * 2 - 2 * border
    error = 255 * (out - y)[..., border:border + side, border:border + side]
    hann = torch.hann_window(side, device=out.device)
    window = torch.outer(hann, hann)
    power = torch.fft.fft2(error * window).abs().square() / window.square().sum() / side**2
    power = power.roll((side // 2, side // 2), (2, 3))  # frequency 0 in the centre, period 2 at 0
    near = F.pad(power, (1, 1, 1, 1), "circular").unfold(2, 3, 1).unfold(3, 3, 1).sum((-1, -2))
    h = side // 2
    return (near[..., 0, 0] + near[..., 0, h] + near[..., h, 0]).mean().sqrt().item()


@torch.no_grad()
def flat(net):
    """period_2 of a net's picture of flat colours, where it does not see their borders."""
    x = torch.rand(16, 3, 1, 1, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    return period_2(net(x.expand(-1, -1, 80, 80)), x.expand(-1, -1, 160, 160), border=32)


def psnr(net, data):
    return sr.evaluate(partial(sr.enlarge, net), sr_pairs(data, net.scale))[:, 0].nanmean().item()


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
        y, pred = y.bool() & near, torch.from_numpy(seg.predict(net, photo)) & near
        scores.append((2 * (y & pred).sum() / (y.sum() + pred.sum())).nan_to_num(1).item())
    return statistics.mean(scores)


# The claims: each takes the data and a seed, and returns {"what: with / without": (with, without,
# what "with" is said to be: "lower", "higher", "same" or, where both had to take as long, "time")}

def icnr(data, seed):
    """ICNR removes the checkerboard at the start, and less of it is left after training"""
    what, rows = "checkerboard on flat colours", {}
    for tail in "random", "zero":  # a tail of zeros, as in sr.py, hides at first what is before it
        nets = [sr_net(seed, icnr=flag, tail=tail) for flag in (True, False)]
        if tail == "random":
            rows[f"{what}, start: ICNR / without"] = (*map(flat, nets), "lower")
        for net in nets:
            sr_train(net, data, scaled(200), seed)
        rows[f"{what}, 200 steps, {tail} tail: ICNR / without"] = (*map(flat, nets), "lower")
    return rows


def transposed(data, seed):
    """Transposed convolution makes checkerboards; nearest + conv, pixel shuffle + ICNR make less"""
    kinds = {"transposed": lambda nf: nn.ConvTranspose2d(nf, nf, 3, 2, 1, output_padding=1),
             "nearest": lambda nf: nn.Sequential(nn.Upsample(scale_factor=2), sr.conv(nf, nf)),
             "shuffle": None}
    nets = {name: sr_net(seed, upsample=kind, tail="random") for name, kind in kinds.items()}
    start = {name: flat(net) for name, net in nets.items()}
    for net in nets.values():
        sr_train(net, data, scaled(200), seed)
    end = {name: flat(net) for name, net in nets.items()}
    return {f"checkerboard on flat colours, {when}: {kind} / transposed": (
                levels[kind], levels["transposed"], "lower")
            for when, levels in (("start", start), ("200 steps", end))
            for kind in ("nearest", "shuffle")}


def gram(data, seed):
    """bmm keeps the images of a batch apart, mm mixes them in the style loss"""
    vgg = VGGFeatures(["relu2_2"], data.weights).to(DEVICE)
    order = np.random.default_rng(seed).permutation(len(data.val))[:4]
    x, rows = data.squares[order][..., :128, :128], {}

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
        rows[f"off the images' own loss, batch {batch}: bmm / mm"] = (
            *deviations, "same" if batch == 1 else "lower")
    return rows


class EnlargeFirst(sr.SrResnet):
    """The same net the other way round, as in SRCNN and VDSR: bicubic first, then convolve."""

    def __init__(self, scale, nf, blocks):
        super().__init__(scale, nf, blocks)
        self.upsample = nn.Sequential()

    def forward(self, x):
        x = F.interpolate(x, scale_factor=self.scale, mode="bicubic", antialias=True)
        return self.tail(self.body(x)) + x


def upsample_last(data, seed):
    """Convolving first and enlarging last costs less than the other way round"""
    steps, last = scaled(300), sr_net(seed)

    def first():
        return sr_net(seed, kind=EnlargeFirst)
    a_step = pace(lambda n: sr_train(sr_net(seed), data, n, seed)[0])
    seconds, _ = sr_train(last, data, steps, seed)
    other, longer = steps_in(seconds, lambda n: sr_train(first(), data, n, seed)[0])
    net = first()
    control, _ = sr_train(net, data, other, seed)
    return {"ms a step: enlarging last / first": (1e3 * a_step, 1e3 * longer, "lower"),
            "PSNR in the time of 300 steps: last / first": (psnr(last, data), psnr(net, data),
                                                            "higher"),
            "seconds: last / first": (seconds, control, "time")}


class BatchNorm(nn.BatchNorm2d):
    def forward(self, x):  # sr.py has no such layer, and so no train() and eval() in its loop
        self.training = torch.is_grad_enabled()
        return super().forward(x)


def batchnorm(data, seed):
    """BatchNorm hurts super-resolution; scaling each branch by 0.1 steadies high rates"""
    def trained(change, lr):
        net = sr_net(seed, blocks=8)
        change(net)
        sr_train(net, data, scaled(200), seed, lr)
        return psnr(net, data)

    def same(net):
        pass

    def norms(net):  # conv, BatchNorm, ReLU, conv, BatchNorm: as in SRResNet (Ledig 2017)
        for i, block in enumerate(net.body):
            if isinstance(block, sr.ResBlock):
                norm = [BatchNorm(16).to(DEVICE) for _ in range(2)]
                net.body[i] = sr.ResBlock(block[0], norm[0], *block[1:], norm[1])

    def unscaled(net):
        for block in net.body:
            if isinstance(block, sr.ResBlock):
                block.__class__ = Unscaled
    ours = {lr: trained(same, lr) for lr in (3e-3, 3e-2)}
    return {"PSNR: without / with BatchNorm": (ours[3e-3], trained(norms, 3e-3), "higher"),
            **{f"PSNR, rate {lr:g}: branch x 0.1 / x 1": (ours[lr], trained(unscaled, lr), "higher")
               for lr in ours}}


class Unscaled(sr.ResBlock):
    def forward(self, x):
        return x + nn.Sequential.forward(self, x)


def relu3_3_distance(net, data, vgg):
    total = 0
    for low, high in sr_pairs(data, net.scale):
        with torch.no_grad():
            have, want = (vgg(sr.to_tensor(image)[None].to(DEVICE))
                          for image in (sr.enlarge(net, low), high))
        total += ((have["relu3_3"] - want["relu3_3"]).abs().sum() / want["relu3_3"].abs().sum())
    return (total / len(data.val)).item()


def scores_of(net, data, vgg):
    """PSNR, sharpness and relu3_3 distance of a net's pictures, and its pattern on flat colours."""
    mean = sr.evaluate(partial(sr.enlarge, net), sr_pairs(data, net.scale)).nanmean(0)
    return {"PSNR": mean[0].item(), "sharpness": mean[2].item(),
            "distance on relu3_3": relu3_3_distance(net, data, vgg), "pattern": pattern(net)}


@torch.no_grad()
def pattern(net):
    """RMS, in grey levels, of a net's picture of flat colours minus its own 5 x 5 mean."""
    x = torch.rand(8, 3, 1, 1, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    out = 255 * net(x.expand(-1, -1, 48, 48))[..., 32:-32, 32:-32]  # which sees no border
    fine = out[..., 2:-2, 2:-2] - F.avg_pool2d(out, 5, stride=1)
    return fine.square().mean().sqrt().item()


def refined(start, data, seed, loss_fn):
    """The same net, trained on for 60 steps."""
    net = copy.deepcopy(start)
    sr_train(net, data, scaled(60), seed + 1000, 2e-3, loss_fn)
    return net


def feature_loss(data, seed):
    """Feature loss lowers PSNR and the feature distance, and sharpens (from one net, equal steps)"""
    vgg = VGGFeatures(sr.FEATURE_WEIGHTS, data.weights).to(DEVICE)
    start = sr_net(seed)
    sr_train(start, data, scaled(400), seed)
    nets = [refined(start, data, seed, loss) for loss in (partial(sr.feature_loss, vgg),
                                                          sr.pixel_loss)]
    with_, without = (scores_of(net, data, vgg) for net in nets)
    said = {"PSNR": "lower", "distance on relu3_3": "lower", "sharpness": "higher"}
    return {f"{what}: feature / pixel loss": (with_[what], without[what], better)
            for what, better in said.items()}


def average_pools(data, seed):
    """Average pools in the VGG of a feature loss leave less of a pattern than max pools do"""
    pools = nn.AvgPool2d, nn.MaxPool2d
    vggs = [VGGFeatures(sr.FEATURE_WEIGHTS, data.weights, pool=pool).to(DEVICE) for pool in pools]
    start = sr_net(seed)
    sr_train(start, data, scaled(300), seed)
    nets = [refined(start, data, seed, partial(sr.feature_loss, vgg)) for vgg in vggs]
    with_, without = (scores_of(net, data, vggs[1]) for net in nets)  # max: what was trained
    said = {"pattern": "lower", "PSNR": "higher", "sharpness": "higher",
            "distance on relu3_3": "lower"}
    return {f"{what}: average / max": (with_[what], without[what], better)
            for what, better in said.items()}


class NotAdded(sr.SrResnet):
    def forward(self, x):
        return self.tail(self.upsample(self.body(x)))


def add_bicubic(data, seed):
    """Adding the bicubic enlargement speeds the start"""
    most, steps = scaled(300), []
    bicubic = sr.evaluate(partial(ImageOps.scale, factor=2), sr_pairs(data, 2))[:, 0].nanmean()
    for kind, tail in (sr.SrResnet, "zero"), (sr.SrResnet, "random"), (NotAdded, "random"):
        net = sr_net(seed, tail=tail, kind=kind)
        _, log = sr_train(net, data, most, seed, every=10)
        steps.append(next((step for step, value in log if value > bicubic + 0.1), most))
    what = "steps to bicubic + 0.1 dB (300 at most)"
    return {f"{what}: added to a zero tail / not added": (steps[0], steps[2], "lower"),
            f"{what}: added to a random tail / not added": (steps[1], steps[2], "lower")}


def x4_from_x2(data, seed):
    """Starting x4 from x2 with the layers that fit beats starting afresh, in equal time"""
    small, steps = sr_net(seed), scaled(150)
    before, _ = sr_train(small, data, scaled(300), seed)
    net = sr_net(seed + 1000, 4)
    net.load_state_dict(small.state_dict(), strict=False)
    net.body.requires_grad_(False)  # a quarter of the steps for the new end alone
    first, _ = sr_train(net, data, max(1, steps // 4), seed)
    net.body.requires_grad_(True)
    after = first + sr_train(net, data, steps - steps // 4, seed)[0]
    rows = {}
    for name, seconds in ("x2 at hand", after), ("x2's time counted", before + after):
        fresh = sr_net(seed + 1000, 4)
        n, _ = steps_in(seconds, lambda n: sr_train(sr_net(seed, 4), data, n, seed)[0])
        control, _ = sr_train(fresh, data, n, seed)
        rows[f"PSNR x4, {name}: from x2 / afresh"] = (psnr(net, data), psnr(fresh, data), "higher")
        rows[f"seconds, {name}: from x2 / afresh"] = (seconds, control, "time")
    return rows


def padding(data, seed):
    """Zero padding marks the borders of a stylised photo more than reflect and crop do"""
    def border(kind):  # the outer 8 px, against the same photo with 32 px more around it
        net, _ = style_net(data.real, kind, "batch", seed)  # in use, its norm sees no borders
        errors = []
        for x in data.squares.split(1):
            with torch.no_grad():
                error = (net(x)[..., 32:-32, 32:-32] - net(x[..., 32:-32, 32:-32])).abs()
            error[..., 8:-8, 8:-8] = math.nan
            errors.append(255 * error.nanmean().item())
        return statistics.mean(errors)
    zeros = border("zeros")
    return {f"error of the outer 8 px in grey levels: {kind} / zeros": (border(kind), zeros,
                                                                        "lower")
            for kind in ("reflect", "crop")}


def small(data):  # at the size of training
    return F.interpolate(data.squares, size=96, mode="area")


def total(net, perceptual, data):
    return sum(style.evaluate(net, perceptual, small(data)).values()).item()


def instance_norm(data, seed):
    """Instance norm beats batch norm at equal steps"""
    losses = [total(*style_net(data.real, "reflect", norm, seed), data)
              for norm in ("instance", "batch")]
    return {"total loss after 60 steps: instance / batch": (*losses, "lower")}


def style_pools(data, seed):
    """Average pools in the VGG of style transfer leave less of a grid than max pools do"""
    x = data.squares[seed % len(data.squares)][None, :, :96, :96]
    args = style.get_args(["--optimize-steps", str(scaled(40)), "--device", DEVICE.type])
    images = []
    for pool in nn.AvgPool2d, nn.MaxPool2d:
        patched = partial(VGGFeatures, pool=pool)
        with quiet() as folder, mock.patch.object(style, "VGGFeatures", patched):
            perceptual = style.PerceptualLoss(data.painting, args, data.weights)
            images.append(style.optimize(x, perceptual, folder / "log.csv", args)[0])
    grids = [period_2(image, F.avg_pool2d(image, 3, 1, 1)) for image in images]
    return {"error at a period of 2 px after 40 steps: average / max": (*grids, "lower")}


def one_pass(data, seed):
    """The network is many times faster than optimising, at equal loss"""
    net, perceptual = style_net(data.real, "reflect", "instance", seed)
    x = small(data)[seed % len(data.squares)][None]
    args = style.get_args(["--optimize-steps", str(scaled(80)), "--device", DEVICE.type])
    clock = time.perf_counter
    with torch.no_grad():
        net(x)  # warms up
        start = clock()
        out = net(x).cpu()
        fast, wanted = clock() - start, sum(perceptual(out.to(DEVICE), x).values()).item()
    start = clock()
    with quiet() as folder:
        _, losses = style.optimize(x, perceptual, folder / "log.csv", args)
    slow = clock() - start
    equal = next((i for i, loss in enumerate(losses) if loss <= wanted), len(losses) - 1)
    return {"seconds to its loss: network x 10 / optimiser (80 steps at most)": (
        10 * fast, slow * equal / len(losses), "lower")}


@functools.cache
def car_unet(real, seed):
    """A U-Net trained for 80 steps at 64 px, the cars it was trained on and those kept; seconds."""
    sides, net = seg_split(material(real), 64, seed), seg_net(seed)
    return net, sides, seg_train(net, {64: sides}, scaled(80), seed)


def unet(data, seed):
    """U-Net beats the simple head in equal time, over all and at borders"""
    net, sides, seconds = car_unet(data.real, seed)
    n, _ = steps_in(seconds, lambda n: seg_train(seg_net(seed, "simple"), {64: sides}, n, seed))
    simple = seg_net(seed, "simple")
    control = seg_train(simple, {64: sides}, n, seed)
    rows = {f"{what}: U-Net / simple": (dice(net, sides[1], band), dice(simple, sides[1], band),
                                        "higher")
            for what, band in (("Dice", 0), ("Dice within 3 px of the border", 3))}
    return {**rows, "seconds: U-Net / simple": (seconds, control, "time")}


def small_first(data, seed):
    """Small photos first, then large, beats large from the start, in equal time"""
    splits, steps = {size: seg_split(data, size, seed) for size in (32, 64)}, scaled(60)
    nets, large = [seg_net(seed), seg_net(seed)], {64: splits[64]}
    seconds = seg_train(nets[0], splits, steps, seed)
    n, _ = steps_in(seconds, lambda n: seg_train(seg_net(seed), large, n, seed))
    control = seg_train(nets[1], large, n, seed)
    return {"Dice at 64 px: 32 px first / 64 px only": (
                *(dice(net, splits[64][1]) for net in nets), "higher"),
            "seconds: 32 px first / 64 px only": (seconds, control, "time")}


def split(data, seed):
    """A split by photo, with each car on both sides, flatters the score"""
    by_car, (train, val), _ = car_unet(data.real, seed)
    seen, val = val[1::2], val[::2]  # other photos of the same cars
    net = seg_net(seed)
    seg_train(net, {64: (train[len(seen):] + seen, val)}, scaled(80), seed)
    return {"Dice of the same photos: their cars seen / not seen": (
        dice(net, val), dice(by_car, val), "higher")}


def mask_resize(data, seed):
    """Resizing masks with interpolation costs accuracy (three classes: a 1 between 0 and 2)"""
    def three(photo, mask):  # background, dark car, bright car
        inside = np.asarray(mask) == 1
        return Image.fromarray(np.uint8(inside * (1 + (np.asarray(photo)[inside].mean() > 90))))

    def resized(pairs, method):
        return [(photo.resize((64, 64), Image.BILINEAR),
                 three(photo, mask).resize((64, 64), method)) for photo, mask in pairs]
    def loss_fn(logits, y):
        return F.cross_entropy(logits, y[:, 0].long())

    (train, val), accuracy = seg_split(data, 128, seed), []
    val = resized(val, Image.NEAREST)
    for method in Image.NEAREST, Image.BILINEAR:
        net = seg_net(seed, classes=3)
        seg_train(net, {64: (resized(train, method), val)}, scaled(80), seed, loss_fn=loss_fn)
        right = []
        for photo, mask in val:
            with torch.no_grad():
                logits = net.eval()(seg.to_tensor(photo)[None].to(DEVICE))
            right.append((logits[0].argmax(0).cpu().numpy() == np.array(mask)).mean())
        accuracy.append(statistics.mean(right))
    return {"accuracy: nearest / bilinear": (*accuracy, "higher")}


@functools.cache
def encoder(real):
    """Weights of a pretrained encoder: of ImageNet's file or, generated, of cars used nowhere."""
    net = seg_net(99)
    if real:
        net.encoder.load_state_dict(seg.load_resnet(18))
    else:
        pairs = [pair for _, *pair in generated_cars(1000, scaled(20, 2), 64)]
        seg_train(net, {64: (pairs, pairs)}, scaled(120), 99)
    return net.encoder.state_dict()


def freeze(data, seed):
    """Freezing first, then rates by depth, beats training all at once (pretrained encoder)"""
    sides, steps = seg_split(data, 64, seed), scaled(60)

    def run(steps, ratios, frozen):
        net = seg_net(seed)
        net.encoder.load_state_dict(encoder(data.real))
        return net, seg_train(net, {64: sides}, steps, seed, ratios, frozen)
    net, seconds = run(steps, (0.01, 0.1, 1), steps // 4)
    ours, rows = dice(net, sides[1]), {}
    for ratios, what in (((0.01, 0.1, 1), "never frozen"),
                         ((1, 1, 1), "never frozen, one rate, BatchNorm too")):
        n, _ = steps_in(seconds, lambda n: run(n, ratios, 0)[1])
        net, control = run(n, ratios, 0)
        rows[f"Dice: frozen first / {what}"] = (ours, dice(net, sides[1]), "higher")
        rows[f"seconds: frozen first / {what}"] = (seconds, control, "time")
    return rows


def cut_vgg(data, seed):
    """Cutting VGG at the last layer used saves time and leaves the loss as it is, to the bit"""
    order = np.random.default_rng(seed).permutation(len(data.val))[:4]
    y = data.squares[order][..., :scaled(96, 32), :scaled(96, 32)]
    layers, seconds, results = [*sr.FEATURE_WEIGHTS], [], []
    for names in layers, [*layers, "relu5_3"]:
        vgg, times = VGGFeatures(names, "random").to(DEVICE), []
        for _ in range(scaled(6)):
            x, start = y.flip(3).requires_grad_(), time.perf_counter()
            have = vgg(x)
            with torch.no_grad():
                want = vgg(y)
            loss = sum(F.l1_loss(have[layer], want[layer]) for layer in layers)
            loss.backward()
            x.grad.sum().item()  # waits for a GPU
            times.append(time.perf_counter() - start)
        seconds.append(1e3 * statistics.median(times[1:]))
        results.append((loss.detach(), x.grad))
    different = sum((a != b).sum().item() for a, b in zip(*results))
    return {"ms a loss and its gradient: cut / whole": (*seconds, "lower"),
            "values of both that differ: cut / none": (different, 0, "same")}


SOURCES = {  # claim -> who says so
    icnr: "Aitken 2017", transposed: "Odena 2016", gram: "Gatys 2016, eq. 3",
    upsample_last: "Shi 2016", batchnorm: "Lim 2017, 3.1 and 3.2",
    feature_loss: "Johnson 2016, 4.2", average_pools: "Gatys 2016, 2", add_bicubic: "Kim 2016 (VDSR)",
    x4_from_x2: "Lim 2017, 3.2; the lesson", padding: "Johnson 2016, supplement",
    instance_norm: "Ulyanov 2016", style_pools: "Gatys 2016, 2", one_pass: "Johnson 2016, table 1",
    unet: "Ronneberger 2015", small_first: "the lesson", split: "the lesson",
    mask_resize: "common advice", freeze: "the lesson", cut_vgg: "arithmetic"}
CLAIMS = {function.__name__: function for function in SOURCES}


# The table

def verdict(with_, without, better):
    """Of one row, over seeds: yes, opposite or unclear; of equal times: yes or no."""
    if better == "time":  # within a sixth, in the mean: what clocks on a shared machine allow
        return "yes" if 6 / 7 < statistics.mean(with_) / statistics.mean(without) < 7 / 6 else "no"
    gain = [a - b if better == "higher" else b - a for a, b in zip(with_, without)]
    if better == "same":
        return "yes" if all(abs(g) <= 1e-5 for g in gain) else "opposite"
    for sign, word in (1, "yes"), (-1, "opposite"):
        if len(gain) > 2 and min(sign * g for g in gain) > 0 and (
                abs(statistics.mean(gain)) > 1.7 * statistics.stdev(gain)):
            return word
    return "unclear"


def summary(rows):
    """{row: (with, without, better)} -> the claim's verdict, in words."""
    if any(row[2] == "time" and verdict(*row) == "no" for row in rows.values()):
        return "unclear: the times were not equal"
    words = {what: verdict(*row) for what, row in rows.items() if row[2] != "time"}
    yes, opposite = ([what for what, word in words.items() if word == wanted]
                     for wanted in ("yes", "opposite"))
    if len(yes) == len(words):
        return "holds"
    if yes:
        return "holds only for " + "; ".join(yes)
    return "does not hold: opposite for " + "; ".join(opposite) if opposite else "unclear"


def cells(with_, without, better):
    """The columns of one row."""
    def mean(values, digits="#.4g"):
        spread = statistics.stdev(values) if len(values) > 1 else 0
        return f"{statistics.mean(values):{digits}} ± {spread:.1g}"
    ratio = statistics.mean(with_) / statistics.mean(without) if any(without) else math.nan
    difference = [a - b for a, b in zip(with_, without)]
    return (f"{mean(with_):>16} |{mean(without):>16} |{ratio:>8.3g} |"
            f"{mean(difference, '+.2g'):>17} |{verdict(with_, without, better):>9} |")


def run(name, sets, seeds):
    """One claim on each data set: prints its rows, and a verdict each."""
    claim, verdicts, columns = CLAIMS[name], [], []
    for real in sets:
        data, start = material(real), time.perf_counter()
        results = [claim(data, seed) for seed in range(seeds)]
        rows = {what: (*zip(*(result[what][:2] for result in results)), better)
                for what, (*_, better) in results[0].items()}
        verdicts.append(f"{'real' if real else 'generated'} data, "
                        f"{time.perf_counter() - start:.0f} s: {summary(rows)}")
        columns.append([cells(*row) for row in rows.values()])
    print(f"\n{name}: {claim.__doc__} ({SOURCES[claim]})")
    for what, *texts in zip(rows, *columns):
        print(f"| {what:75} |" + "".join(texts))
    print(*verdicts, sep="\n", flush=True)  # as they come


def get_args(argv=None):
    parser = argparse.ArgumentParser(description="What the lesson claims, measured.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {' '.join(CLAIMS)}")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each experiment")
    parser.add_argument("--fraction", type=float, default=1,
                        help="of steps, batches and data, for a quick look")
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in CLAIMS]
    sr.check(not unknown, f"no claim {' '.join(unknown)}: there are {' '.join(CLAIMS)}")
    sr.check(args.seeds > 0 and args.fraction > 0, "--seeds and --fraction take more than 0")
    return args


def main(argv=None):
    global FRACTION, DEVICE
    args = get_args(argv)
    folder, FRACTION = os.environ.get("LESSON_DATA"), args.fraction
    if folder:
        missing = [name for name in REAL if not (ROOT / folder / name).exists()]
        sr.check(not missing, f"LESSON_DATA: {ROOT / folder} has no {' '.join(missing)}")
        os.environ["TORCH_HOME"] = str(ROOT / folder / "torch_home")
    if torch.accelerator.is_available():
        DEVICE = torch.accelerator.current_accelerator()
    sets = [False, True] if folder else [False]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; mean ± standard "
          f"deviation of {args.seeds} seeds" + "; real data in the second columns" * bool(folder))
    print(f"| {'measured: with / without':75} |" + len(sets) * (
        f"{'with':>16} |{'without':>16} |{'ratio':>8} |{'difference':>17} |{'as said':>9} |"))
    start = time.perf_counter()
    for name in args.names or CLAIMS:
        try:
            run(name, sets, args.seeds)
        except (SystemExit, KeyboardInterrupt) as stop:  # Ctrl-C, which the loops turn into words
            raise SystemExit(f"{name}: {stop}".split(": the same command")[0]) from None
    print(f"\n{(time.perf_counter() - start) / 60:.1f} min in all")


if __name__ == "__main__":
    main()
