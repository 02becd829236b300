"""Lesson 1. Each claim takes the data and a seed, and returns {"what: with / without": (with,
without, what "with" is said to be: lower, higher, same or, where both had to take as long, time)}.

Unless a claim says otherwise: x2, 16 channels, 4 blocks, 16 crops of 48 px a step.
"""
import copy
import os
import statistics
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from generators import write_leaves
from PIL import Image
from torch import nn

import sr
from claims import ROOT
from claims.lab import flat, pace, scaled, seconds, steps_in, steps_of
from common import VGGFeatures

def new(seed, scale=2, blocks=4, kind=sr.SrResnet):
    torch.manual_seed(seed)
    return kind(scale, 16, blocks).to(memory_format=torch.channels_last)


def random_tail(net, seed):
    """sr.py's tail of zeros hides at first what is before it."""
    torch.manual_seed(seed)
    nn.init.normal_(net.tail.weight, std=0.1)
    return net


def training(net, data, steps, seed, lr=3e-3, loss_fn=F.l1_loss):
    """A generator of steps, see lab.steps_of."""
    crops = sr.Crops(data.photos, 24 * net.scale, net.scale, seed)
    return steps_of(net, lambda net, batch: loss_fn(net(batch[0]), batch[1]), crops, steps, lr,
                    scaled(16), clip=0.1)


def train(*args, **kwargs):
    return seconds(training(*args, **kwargs))


def pairs_of(data, scale):
    return [sr.make_pair(photo.crop((0, 0, 128, 128)), scale) for photo in data.val]


def means(net, pairs):
    """Mean PSNR, SSIM and sharpness of a net's pictures."""
    net.eval()
    return sr.evaluate([sr.enlarge(net, low) for low, _ in pairs], pairs).nanmean(0).tolist()


def scores(net, data):
    """Mean PSNR, SSIM and sharpness of the validation photos."""
    return means(net, pairs_of(data, net.scale))


def psnr(net, data):
    return scores(net, data)[0]


# How to enlarge

def icnr(data, seed):
    """ICNR removes the checkerboard at the start, and less of it is left after training"""
    what = "checkerboard on flat colours"
    rows = {}
    for tail in "random", "zero":
        with_icnr, without = new(seed), new(seed)
        nn.init.kaiming_normal_(without.upsample[0].weight)
        if tail == "random":
            random_tail(with_icnr, seed)
            random_tail(without, seed)
            rows[f"{what}, start: ICNR / without"] = flat(with_icnr), flat(without), "lower"
        train(with_icnr, data, scaled(200), seed)
        train(without, data, scaled(200), seed)
        rows[f"{what}, 200 steps, {tail} tail: ICNR / without"] = (
            flat(with_icnr), flat(without), "lower")
    return rows


def transposed(data, seed):
    """Transposed convolution makes checkerboards; nearest + conv, pixel shuffle + ICNR make less"""
    def enlarging_by(upsample=None):
        net = new(seed)
        net.upsample = upsample() if upsample else net.upsample
        return random_tail(net, seed)

    nets = {
        "transposed": enlarging_by(lambda: nn.ConvTranspose2d(16, 16, 3, 2, 1, output_padding=1)),
        "nearest": enlarging_by(lambda: nn.Sequential(nn.Upsample(scale_factor=2),
                                                      sr.conv(16, 16))),
        "shuffle": enlarging_by()}
    rows = {}
    for when, steps in ("start", 0), ("200 steps", scaled(200)):
        for net in nets.values():
            train(net, data, steps, seed)
        for kind in "nearest", "shuffle":
            rows[f"checkerboard on flat colours, {when}: {kind} / transposed"] = (
                flat(nets[kind]), flat(nets["transposed"]), "lower")
    return rows


class EnlargeFirst(sr.SrResnet):
    """As in SRCNN and VDSR: bicubic first, and all convolutions at full size."""

    def forward(self, x):
        x = F.interpolate(x, scale_factor=self.scale, mode="bicubic", antialias=True)
        return self.tail(self.body(x)) + x


def upsample_last(data, seed):
    """Convolving first and enlarging last costs less than the other way round"""
    last = new(seed)
    first = new(seed, kind=EnlargeFirst)
    ms_last = 1e3 * pace(lambda steps: train(new(seed), data, steps, seed))
    duration = train(last, data, scaled(300), seed)
    steps, a_step = steps_in(
        duration, lambda steps: train(new(seed, kind=EnlargeFirst), data, steps, seed))
    control = train(first, data, steps, seed)
    return {"ms a step: enlarging last / first": (ms_last, 1e3 * a_step, "lower"),
            "PSNR in the time of 300 steps: last / first": (
                psnr(last, data), psnr(first, data), "higher"),
            "seconds: last / first": (duration, control, "time")}


# What a block is made of

class Unscaled(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


def with_norms(conv1, relu, conv2):  # as in SRResNet (Ledig 2017)
    return sr.ResBlock(conv1, nn.BatchNorm2d(16), relu, conv2, nn.BatchNorm2d(16))


def batchnorm(data, seed):
    """BatchNorm hurts super-resolution; scaling each branch by 0.1 steadies high rates"""
    def trained(block, lr):
        net = new(seed, blocks=8)
        for i in range(1, 9):
            net.body[i] = block(*net.body[i])
        train(net, data, scaled(200), seed, lr)
        return psnr(net, data)

    ours = {lr: trained(sr.ResBlock, lr) for lr in (3e-3, 3e-2)}
    rows = {"PSNR: without / with BatchNorm": (ours[3e-3], trained(with_norms, 3e-3), "higher")}
    for lr in ours:
        rows[f"PSNR, rate {lr:g}: branch x 0.1 / x 1"] = ours[lr], trained(Unscaled, lr), "higher"
    return rows


class NotAdded(sr.SrResnet):
    def forward(self, x):
        return self.tail(self.upsample(self.body(x)))


def add_bicubic(data, seed):
    """Adding the bicubic enlargement speeds the start"""
    most = scaled(300)
    pairs = pairs_of(data, 2)
    bicubic = [low.resize(high.size, Image.BICUBIC) for low, high in pairs]
    baseline = sr.evaluate(bicubic, pairs)[:, 0].nanmean()

    def steps_to_beat_bicubic(net):
        for step in training(net, data, most, seed):
            if step % 10 == 0 and psnr(net, data) > baseline + 0.1:
                return step
        return most

    zero = steps_to_beat_bicubic(new(seed))
    random = steps_to_beat_bicubic(random_tail(new(seed), seed))
    control = steps_to_beat_bicubic(random_tail(new(seed, kind=NotAdded), seed))
    what = "steps to bicubic + 0.1 dB (300 at most)"
    return {f"{what}: added to a zero tail / not added": (zero, control, "lower"),
            f"{what}: added to a random tail / not added": (random, control, "lower")}


# The feature loss

def relu3_3_distance(net, data, vgg):
    total = 0
    for low, high in pairs_of(data, net.scale):
        with torch.no_grad():
            have = vgg(sr.to_tensor(sr.enlarge(net, low))[None])["relu3_3"]
            want = vgg(sr.to_tensor(high)[None])["relu3_3"]
        total += ((have - want).abs().sum() / want.abs().sum()).item()
    return total / len(data.val)


@torch.no_grad()
def pattern(net):
    """RMS, in grey levels, of a net's picture of flat colours minus its own 5 x 5 mean."""
    x = torch.rand(8, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    out = 255 * net(x.expand(-1, -1, 48, 48))[..., 32:-32, 32:-32]  # which sees no border
    fine = out[..., 2:-2, 2:-2] - F.avg_pool2d(out, 5, stride=1)
    return fine.square().mean().sqrt().item()


def refined(start, data, seed, loss_fn):
    """The same net, trained on for 60 steps."""
    net = copy.deepcopy(start)
    train(net, data, scaled(60), seed + 1000, 2e-3, loss_fn)
    return net


def feature_loss(data, seed):
    """A feature loss lowers PSNR and the feature distance, and sharpens (one net, equal steps)"""
    vgg = VGGFeatures(sr.FEATURE_WEIGHTS)
    start = new(seed)
    train(start, data, scaled(400), seed)
    feature = refined(start, data, seed, partial(sr.feature_loss, vgg))
    pixel = refined(start, data, seed, F.l1_loss)
    a, b = scores(feature, data), scores(pixel, data)
    distances = relu3_3_distance(feature, data, vgg), relu3_3_distance(pixel, data, vgg)
    return {"PSNR: feature / pixel loss": (a[0], b[0], "lower"),
            "distance on relu3_3: feature / pixel loss": (*distances, "lower"),
            "sharpness: feature / pixel loss": (a[2], b[2], "higher")}


def average_pools(data, seed):
    """Average pools in the VGG of a feature loss leave less of a pattern than max pools do"""
    average = VGGFeatures(sr.FEATURE_WEIGHTS, pool=nn.AvgPool2d)
    maximum = VGGFeatures(sr.FEATURE_WEIGHTS, pool=nn.MaxPool2d)  # as it was trained
    start = new(seed)
    train(start, data, scaled(300), seed)
    nets = [refined(start, data, seed, partial(sr.feature_loss, vgg)) for vgg in (average, maximum)]
    a, b = (scores(net, data) for net in nets)
    distances = [relu3_3_distance(net, data, maximum) for net in nets]
    return {"pattern on flat colours: average / max": (*map(pattern, nets), "lower"),
            "PSNR: average / max": (a[0], b[0], "higher"),
            "sharpness: average / max": (a[2], b[2], "higher"),
            "distance on relu3_3: average / max": (*distances, "lower")}


def cut_vgg(data, seed):
    """Cutting VGG at the last layer used saves time and leaves the loss as it is, to the bit"""
    layers = [*sr.FEATURE_WEIGHTS]
    side = scaled(96, 32)
    y = data.squares[np.random.default_rng(seed).permutation(len(data.val))[:4], :, :side, :side]

    def measure(vgg):  # ms; the loss and its gradient
        times = []
        for _ in range(scaled(6)):
            x = y.flip(3).requires_grad_()
            start = time.perf_counter()
            have = vgg(x)
            with torch.no_grad():
                want = vgg(y)
            loss = sum(F.l1_loss(have[layer], want[layer]) for layer in layers)
            loss.backward()
            times.append(time.perf_counter() - start)
        return 1e3 * statistics.median(times[1:]), loss.detach(), x.grad

    ms, loss, gradient = measure(VGGFeatures(layers, "random"))
    whole, other_loss, other = measure(VGGFeatures([*layers, "relu5_3"], "random"))
    different = (loss != other_loss).sum().item() + (gradient != other).sum().item()
    return {"ms a loss and its gradient: cut / whole": (ms, whole, "lower"),
            "values of both that differ: cut / none": (different, 0, "same")}


def squares(data, seed):
    """Squared errors reward blur: absolute ones give sharper pictures, features the sharpest"""
    vgg = VGGFeatures(sr.FEATURE_WEIGHTS)
    starts = {}
    for name, loss_fn in ("absolute", F.l1_loss), ("squared", F.mse_loss):
        starts[name] = new(seed)
        train(starts[name], data, scaled(400), seed, loss_fn=loss_fn)
    results = {
        "absolute": scores(refined(starts["absolute"], data, seed, F.l1_loss), data),
        "squared": scores(refined(starts["squared"], data, seed, F.mse_loss), data),
        "features": scores(refined(starts["absolute"], data, seed,
                                   partial(sr.feature_loss, vgg)), data)}
    rows = {}
    for a, b, psnr in (("absolute", "squared", "higher"), ("features", "absolute", "lower"),
                       ("features", "squared", "lower")):
        rows[f"PSNR: {a} / {b}"] = results[a][0], results[b][0], psnr
        rows[f"sharpness: {a} / {b}"] = results[a][2], results[b][2], "higher"
    return rows


# x4 from x2

def x4_from_x2(data, seed):
    """Starting x4 from x2 with the layers that fit beats starting afresh, in equal time"""
    steps = scaled(150)
    x2 = new(seed)
    before = train(x2, data, scaled(300), seed)

    def from_x2(zero_tail):
        net = new(seed + 1000, scale=4)
        net.load_state_dict(x2.state_dict(), strict=False)
        if zero_tail:  # it starts at bicubic, and not with what the new layers make of noise
            nn.init.zeros_(net.tail.weight)
        start = psnr(net, data)
        net.body.requires_grad_(False)  # a quarter of the steps for the new end alone
        duration = train(net, data, max(1, steps // 4), seed)
        net.body.requires_grad_(True)
        return start, psnr(net, data), duration + train(net, data, steps - steps // 4, seed), net

    start, frozen, after, net = from_x2(zero_tail=False)
    zero_start, zero_frozen, _, zero = from_x2(zero_tail=True)
    rows = {"PSNR x4 at the start: its tail at zero / as loaded": (zero_start, start, "higher"),
            "PSNR x4, body frozen: its tail at zero / as loaded": (zero_frozen, frozen, "higher"),
            "PSNR x4 in the end: its tail at zero / as loaded": (
                psnr(zero, data), psnr(net, data), "higher")}
    for name, duration in ("x2 at hand", after), ("x2's time counted", before + after):
        fresh = new(seed + 1000, scale=4)
        n, _ = steps_in(duration, lambda n: train(new(seed, scale=4), data, n, seed))
        control = train(fresh, data, n, seed)
        rows[f"PSNR x4, {name}: from x2 / afresh"] = psnr(net, data), psnr(fresh, data), "higher"
        rows[f"seconds, {name}: from x2 / afresh"] = duration, control, "time"
    return rows


# What to learn from

def photos_or_ellipses(data, seed):
    """A net learns more from photos than from drawn ellipses, and more from many than from seven"""
    held_out = 2, 6  # of the nine: the cat and the pagoda
    nine = sr.find_photos(str(ROOT / "tests/data/photos"), Path("out"))
    sets = {"nine": [path for i, path in enumerate(nine) if i not in held_out]}
    leaves = write_leaves(Path(data.folder.name) / f"learn{seed}", scaled(400, 4), 320)
    sets["ellipses"] = sr.find_photos(str(leaves), Path("out"))
    tests = {"two photos": [sr.make_pair(sr.open_image(nine[i]), 4, 256) for i in held_out]}
    if data.real:
        sets["many"] = data.photos
        tests["photos"] = pairs_of(data, 4)
        set5 = ROOT / os.environ["LESSON_DATA"] / "Set5"
        paths = sr.find_photos(str(set5), Path("out"))
        tests["Set5"] = [sr.make_pair(sr.open_image(path), 4) for path in paths]
    nets = {}
    for kind, paths in sets.items():
        torch.manual_seed(seed)
        nets[kind] = sr.SrResnet(4, 24, 8).to(memory_format=torch.channels_last)
        loss = training(nets[kind], SimpleNamespace(photos=paths), scaled(600), seed, 4e-3)
        seconds(loss)
    rows = {}
    for name, pairs in tests.items():
        psnrs = {kind: means(net, pairs)[0] for kind, net in nets.items()}
        rows[f"PSNR x4 of {name}: seven photos / ellipses"] = (
            psnrs["nine"], psnrs["ellipses"], "higher")
        if data.real:
            rows[f"PSNR x4 of {name}: many photos / seven"] = (
                psnrs["many"], psnrs["nine"], "higher")
    return rows


CLAIMS = {
    icnr: "Aitken 2017", transposed: "Odena 2016", upsample_last: "Shi 2016",
    batchnorm: "Lim 2017, 3.1 and 3.2", feature_loss: "Johnson 2016, 4.2",
    average_pools: "Gatys 2016, 2", add_bicubic: "Kim 2016 (VDSR)",
    x4_from_x2: "Lim 2017, 3.2; the course", cut_vgg: "arithmetic"}
LATER = {squares: "the course", photos_or_ellipses: "Achddou 2021"}  # they keep the numbers
