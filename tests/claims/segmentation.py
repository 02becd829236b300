"""Lesson 3. Each claim takes the data and a seed, and returns {"what: with / without": (with,
without, what "with" is said to be: higher or, where both had to take as long, time)}.

Unless a claim says otherwise: ResNet18 from random weights, 64 channels, 16 crops of 64 px a step.
"""
import functools
import statistics
import time

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import seg
from claims.lab import batches, generated_cars, material, rate, scaled, steps_in

def new(seed, head="unet"):
    torch.manual_seed(seed)
    net = seg.Segmenter(head, 18, 64, 64)
    return net.to(memory_format=torch.channels_last)


def split(data, size, seed):
    """[(photo, mask)] to train, the same to validate: every fifth car, others for each seed."""
    held = sorted({name for name, *_ in data.cars[size]})[seed % 5::5]
    pairs = data.cars[size]
    return ([pair for name, *pair in pairs if name not in held],
            [pair for name, *pair in pairs if name in held])


def train(net, pairs, size, steps, seed, ratios=(1, 1, 1), frozen=0, loss_fn=seg.pixel_loss):
    """Seconds. ratios: of the rates of early layers, late ones and the head; the first `frozen`
    steps train the head alone. All as seg.py does it."""
    net.config["size"] = size
    parts = net.encoder[:6], net.encoder[6:], net.head
    optimizer = torch.optim.Adam([{"params": part.parameters()} for part in parts])
    start = time.perf_counter()
    for step, (x, y) in enumerate(batches(seg.Crops(pairs, size, seed), steps, scaled(16))):
        net.train()
        net.encoder.train(ratios[0] == 1)
        net.encoder.requires_grad_(step >= frozen)
        for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
            group["lr"] = ratio * rate(step, steps, 6e-3)
        loss = loss_fn(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1)
        optimizer.step()
    return time.perf_counter() - start


def dice(net, val, band=None):
    """Mean Dice of photos; with a band, of the pixels that close to a border of the true mask."""
    values = []
    for photo, mask in val:
        truth = torch.from_numpy(np.array(mask) > 0)
        pred = torch.from_numpy(seg.predict(net, photo))
        if band:
            y = truth[None].float()
            side = 2 * band + 1
            grown = F.max_pool2d(y, side, 1, band)
            shrunk = -F.max_pool2d(-y, side, 1, band)
            near = (grown != shrunk)[0]
            truth, pred = truth & near, pred & near
        areas = truth.sum() + pred.sum()
        values.append((2 * (truth & pred).sum() / areas).nan_to_num(1).item())
    return statistics.mean(values)


@functools.cache
def car_unet(real, seed):
    """A U-Net of 80 steps, and the seconds they took."""
    net = new(seed)
    pairs, _ = split(material(real), 64, seed)
    return net, train(net, pairs, 64, scaled(80), seed)


def unet(data, seed):
    """U-Net beats the simple head in equal time, over all and at borders"""
    pairs, val = split(data, 64, seed)
    net, duration = car_unet(data.real, seed)
    steps, _ = steps_in(duration, lambda n: train(new(seed, "simple"), pairs, 64, n, seed))
    simple = new(seed, "simple")
    control = train(simple, pairs, 64, steps, seed)
    return {"Dice: U-Net / simple": (dice(net, val), dice(simple, val), "higher"),
            "Dice within 3 px of the border: U-Net / simple": (
                dice(net, val, 3), dice(simple, val, 3), "higher"),
            "seconds: U-Net / simple": (duration, control, "time")}


def small_first(data, seed):
    """Small photos first, then large, beats large from the start, in equal time"""
    pairs, val = split(data, 64, seed)
    net = new(seed)
    duration = train(net, split(data, 32, seed)[0], 32, scaled(60), seed)
    duration += train(net, pairs, 64, scaled(60), seed)
    steps, _ = steps_in(duration, lambda n: train(new(seed), pairs, 64, n, seed))
    large = new(seed)
    control = train(large, pairs, 64, steps, seed)
    return {"Dice at 64 px: 32 px first / 64 px only": (dice(net, val), dice(large, val), "higher"),
            "seconds: 32 px first / 64 px only": (duration, control, "time")}


def split_by_photo(data, seed):
    """A split by photo, with each car on both sides, flatters the score"""
    pairs, val = split(data, 64, seed)
    seen, val = val[1::2], val[::2]  # other photos of the same cars
    by_car, _ = car_unet(data.real, seed)
    by_photo = new(seed)
    train(by_photo, pairs[len(seen):] + seen, 64, scaled(80), seed)  # as many photos
    return {"Dice of the same photos: their cars seen / not seen": (
        dice(by_photo, val), dice(by_car, val), "higher")}


def mask_resize(data, seed):
    """Resizing masks with interpolation costs accuracy (three classes: a 1 between 0 and 2)"""
    def three(photo, mask):  # background, dark car, bright car
        inside = np.array(mask) > 0
        bright = np.array(photo)[inside].mean() > 90
        return Image.fromarray(np.uint8(inside * (2 if bright else 1)))

    def resized(pairs, method):
        return [(photo.resize((64, 64), Image.BILINEAR),
                 three(photo, mask).resize((64, 64), method)) for photo, mask in pairs]

    def loss_fn(logits, y):
        return F.cross_entropy(logits, y[:, 0].long())

    @torch.no_grad()
    def accuracy(net, val):
        logits = [net.eval()(seg.to_tensor(photo)[None])[0] for photo, _ in val]
        return statistics.mean((x.argmax(0).numpy() == np.array(mask)).mean()
                               for x, (_, mask) in zip(logits, val, strict=True))

    pairs, val = split(data, 128, seed)
    val = resized(val, Image.NEAREST)
    results = []
    for method in Image.NEAREST, Image.BILINEAR:
        net = new(seed)
        net.head[4] = seg.up(64, 3)
        train(net, resized(pairs, method), 64, scaled(80), seed, loss_fn=loss_fn)
        results.append(accuracy(net, val))
    return {"accuracy: nearest / bilinear": (*results, "higher")}


@functools.cache
def pretrained(real):
    """Weights of an encoder: ImageNet's or, generated, of cars used nowhere else."""
    if real:
        return seg.load_resnet(18)
    net = new(99)
    pairs = [pair for _, *pair in generated_cars(1000, scaled(20), 64)]
    train(net, pairs, 64, scaled(120), 99)
    return net.encoder.state_dict()


def freeze(data, seed):
    """Freezing first, then rates by depth, beats training all at once (pretrained encoder)"""
    pairs, val = split(data, 64, seed)

    def run(steps, ratios, frozen=0):
        net = new(seed)
        net.encoder.load_state_dict(pretrained(data.real))
        return net, train(net, pairs, 64, steps, seed, ratios, frozen)

    steps = scaled(60)
    net, duration = run(steps, (0.01, 0.1, 1), frozen=steps // 4)
    rows = {}
    for what, ratios in (("never frozen", (0.01, 0.1, 1)),
                         ("never frozen, one rate, BatchNorm too", (1, 1, 1))):
        n, _ = steps_in(duration, lambda n, ratios=ratios: run(n, ratios)[1])
        other, control = run(n, ratios)
        rows[f"Dice: frozen first / {what}"] = dice(net, val), dice(other, val), "higher"
        rows[f"seconds: frozen first / {what}"] = duration, control, "time"
    return rows


CLAIMS = {unet: "Ronneberger 2015", small_first: "the lesson", split_by_photo: "the lesson",
          mask_resize: "common advice", freeze: "the lesson"}
