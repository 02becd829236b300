"""Lesson 3. Each claim takes the data and a seed, and returns {"what: with / without": (with,
without, what "with" is said to be: higher or, where both had to take as long, time)}.

Unless a claim says otherwise: ResNet18 from random weights, 64 channels, 16 crops of 64 px a step,
trained by seg.train.
"""
import functools
import time

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import Dataset

import seg
from claims.lab import batches, material, quiet, rate, scaled, steps_in

LR = 6e-3


def new(data, seed, head="unet"):
    torch.manual_seed(seed)
    return seg.Segmenter(head, 64, 64, data.classes)


def split(data, seed):
    """Pairs to train on, and pairs to validate: every fifth group, others for each seed."""
    held = sorted(data.groups)[seed % 5::5]
    train = [pair for name in data.groups if name not in held for pair in data.groups[name]]
    return train, [pair for name in held for pair in data.groups[name]]


def train(model, pairs, size, steps, seed, groups=None, weights="random"):
    """Seconds of one stage of seg.py. groups: as seg.train takes them, or all at one rate."""
    model.config["size"] = size
    args = seg.get_args(["--weights", weights, "--batch-size", f"{scaled(16)}", "--device", "cpu",
                         "--eval-every", "1000000"])
    opened = [seg.open_pair(*pair, size) for pair in pairs]  # not to be timed
    with quiet() as folder:
        start = time.perf_counter()
        seg.train(model, groups or [(model, LR)], folder / "model.pt", steps,
                  seg.Crops(pairs, size, seed), opened[:1], args)
        return time.perf_counter() - start


def near(mask, band):
    """A mask that is void where no border between classes is within `band` pixels."""
    y = torch.from_numpy(np.array(mask)).float()[None]
    side = 2 * band + 1
    highest, lowest = F.max_pool2d(y, side, 1, band), -F.max_pool2d(-y, side, 1, band)
    return Image.fromarray(np.where((highest == lowest)[0].numpy(), np.uint8(seg.VOID), mask))


def score(model, pairs, band=None):
    """Mean IoU at 64 px; with a band, of the pixels that close to a border of the true mask."""
    val = [seg.open_pair(*pair, 64) for pair in pairs]
    if band:
        val = [(photo, near(mask, band)) for photo, mask in val]
    return float(seg.evaluate(model.predict, val, model.config["classes"])["mean IoU"])


@functools.cache
def group_unet(real, seed):
    """A U-Net of 80 steps, and the seconds they took."""
    data = material(real)
    model = new(data, seed)
    return model, train(model, split(data, seed)[0], 64, scaled(80), seed)


def unet(data, seed):
    """U-Net beats the simple head in equal time, over all and at borders"""
    pairs, val = split(data, seed)
    model, duration = group_unet(data.real, seed)
    steps, _ = steps_in(
        duration, lambda n: train(new(data, seed, "simple"), pairs, 64, n, seed))
    simple = new(data, seed, "simple")
    control = train(simple, pairs, 64, steps, seed)
    return {"mean IoU: U-Net / simple": (score(model, val), score(simple, val), "higher"),
            "mean IoU within 3 px of a border: U-Net / simple": (
                score(model, val, 3), score(simple, val, 3), "higher"),
            "seconds: U-Net / simple": (duration, control, "time")}


def small_first(data, seed):
    """Small photos first, then large, beats large from the start, in equal time"""
    pairs, val = split(data, seed)
    model = new(data, seed)
    duration = train(model, pairs, 32, scaled(60), seed)
    duration += train(model, pairs, 64, scaled(60), seed)
    steps, _ = steps_in(duration, lambda n: train(new(data, seed), pairs, 64, n, seed))
    large = new(data, seed)
    control = train(large, pairs, 64, steps, seed)
    return {"mean IoU at 64 px: 32 px first / 64 px only": (
                score(model, val), score(large, val), "higher"),
            "seconds: 32 px first / 64 px only": (duration, control, "time")}


def split_by_photo(data, seed):
    """A split by photo, with each car or street on both sides, flatters the score"""
    pairs, val = split(data, seed)
    seen, val = val[1::2], val[::2]  # other photos of the same cars
    by_group, _ = group_unet(data.real, seed)
    by_photo = new(data, seed)
    train(by_photo, pairs[len(seen):] + seen, 64, scaled(80), seed)  # as many photos
    return {"mean IoU of the same photos: their groups seen / not seen": (
        score(by_photo, val), score(by_group, val), "higher")}


class Resized(Dataset):
    """Photos and masks of 64 x 64 px, the masks by one of Pillow's methods; one in two mirrored."""

    def __init__(self, pairs, method, seed):
        self.pairs = [(photo.resize((64, 64), Image.BILINEAR), mask.resize((64, 64), method))
                      for photo, mask in pairs]
        self.seed = seed

    def __getitem__(self, n):
        rng = np.random.default_rng([self.seed, n])
        photo, mask = self.pairs[rng.integers(len(self.pairs))]
        x, y = seg.to_tensor(photo), torch.from_numpy(np.array(mask)).long()
        return (x.flip(-1), y.flip(-1)) if rng.random() < 0.5 else (x, y)


def mask_resize(data, seed):
    """Resizing masks with interpolation costs accuracy (a class 1 between 0 and 2)"""
    def three(photo, mask):  # background, dark car, bright car
        inside = np.array(mask) > 0
        bright = inside.any() and np.array(photo)[inside].mean() > 90
        return photo, Image.fromarray(np.uint8(inside * (2 if bright else 1)))

    sides = [[seg.open_pair(*pair, 128) for pair in side] for side in split(data, seed)]
    classes = data.classes
    if data.real:  # cars are one class only
        sides = [[three(*pair) for pair in side] for side in sides]
        classes = ["background", "dark car", "bright car"]
    results = []
    for method in Image.NEAREST, Image.BILINEAR:
        torch.manual_seed(seed)
        model = seg.Segmenter("unet", 64, 64, classes)
        optimizer = torch.optim.Adam(model.parameters())
        steps = scaled(80)
        for step, (x, y) in enumerate(batches(Resized(sides[0], method, seed), steps, scaled(16))):
            optimizer.param_groups[0]["lr"] = rate(step, steps, LR)
            loss = seg.pixel_loss(model.train()(x), y)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1)
            optimizer.step()
        val = Resized(sides[1], Image.NEAREST, seed).pairs
        results.append(float(seg.evaluate(model.predict, val, classes)["accuracy"]))
    return {"accuracy: nearest / bilinear": (*results, "higher")}


@functools.cache
def pretrained(real):
    """Weights of an encoder: ImageNet's or, generated, of streets used nowhere else."""
    if real:
        return seg.load_resnet()
    data = material(real)
    model = new(data, 99)
    train(model, sum(data.others.values(), []), 64, scaled(120), 99)
    return model.encoder.state_dict()


def freeze(data, seed):
    """Freezing first, then rates by depth, beats training all at once (pretrained encoder)"""
    pairs, val = split(data, seed)

    def run(steps, frozen=False, one_rate=False):
        model, duration = new(data, seed), 0
        model.encoder.load_state_dict(pretrained(data.real))
        groups = [(model.encoder[:6], LR / 100), (model.encoder[6:], LR / 10), (model.head, LR)]
        if frozen:
            model.encoder.requires_grad_(False)
            duration = train(model, pairs, 64, max(2, steps // 4), seed, groups[2:], "torchvision")
            model.encoder.requires_grad_(True)
        if one_rate:  # and BatchNorm goes on counting
            return model, train(model, pairs, 64, steps, seed)
        return model, duration + train(model, pairs, 64, steps, seed, groups, "torchvision")

    model, duration = run(scaled(60), frozen=True)
    rows = {}
    for what, one_rate in (("never frozen", False),
                           ("never frozen, one rate, BatchNorm too", True)):
        steps, _ = steps_in(duration, lambda n, one=one_rate: run(n, one_rate=one)[1])
        other, control = run(steps, one_rate=one_rate)
        rows[f"mean IoU: frozen first / {what}"] = score(model, val), score(other, val), "higher"
        rows[f"seconds: frozen first / {what}"] = duration, control, "time"
    return rows


def more_groups(data, seed):
    """More cars or streets teach more: sixteen more than four, four more than two"""
    pairs, val = split(data, seed)
    size = len(pairs) // 16  # photos of a group
    results = {}
    for count in 2, 4, 16:
        model = new(data, seed)
        train(model, pairs[:count * size], 64, scaled(80), seed)
        results[count] = score(model, val)
    return {"mean IoU: 16 groups / 4": (results[16], results[4], "higher"),
            "mean IoU: 4 groups / 2": (results[4], results[2], "higher")}


CLAIMS = {unet: "Ronneberger 2015", small_first: "the course", split_by_photo: "the course",
          mask_resize: "common advice", freeze: "the course"}
LATER = {more_groups: "common advice"}  # it keeps the numbers of the others
