"""What the experiments share: data, a training loop, clocks, the measure of a checkerboard."""
import contextlib
import functools
import math
import os
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from generators import write_leaves
from painting import painting
from PIL import ImageOps
from torch import nn
from torch.utils.data import default_collate

import seg
import sr
import style
from claims import ROOT

REAL = "imagenet_sample", "style/starry_night.jpg", "carvana", "torch_home"  # below LESSON_DATA
fraction = 1.0  # of the steps, the batches and the data; report.py's --fraction


def scaled(n, least=2):
    return max(least, round(n * fraction))


@contextlib.contextmanager
def quiet():
    """Nothing is printed; what is written goes into the folder that this gives."""
    with contextlib.redirect_stdout(None), tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


# Data, generated or real

@functools.cache
def material(real):
    """A namespace:

    photos: paths of those to train on
    val, squares: photos to validate, 192 px; the same as one tensor
    painting: (1, 3, 192, 192)
    groups: {car or street: [(photo, mask)]}, paths of 20 of them
    others: the same of 20 others
    classes: their names
    """
    folder = tempfile.TemporaryDirectory()  # of drawn pictures, kept as long as this
    if real:
        data = ROOT / os.environ["LESSON_DATA"]
        photos = [path for path in sr.find_photos(str(data / REAL[0]), Path("out"))
                  if min(sr.open_image(path).size) >= 192]
        picture = style.open_image(str(data / REAL[1]))
        masks = data / REAL[2]
    else:
        leaves = write_leaves(Path(folder.name) / "leaves", scaled(100, 10))
        photos = sr.find_photos(str(leaves), Path("out"))
        picture = painting()
        masks = ROOT / "tests/data/streets"
    held = photos[::max(1, len(photos) // 6)][:scaled(6)]
    val = [sr.open_image(path).crop((0, 0, 192, 192)) for path in held]
    with quiet():
        classes, groups = seg.find_pairs(masks)
    names = sorted(groups)
    return SimpleNamespace(
        real=real, folder=folder, photos=[photo for photo in photos if photo not in held],
        val=val, squares=torch.stack([sr.to_tensor(photo) for photo in val]),
        painting=style.to_tensor(ImageOps.fit(picture, (192, 192), centering=(1, 0)))[None],
        groups={name: groups[name] for name in names[:20]},
        others={name: groups[name] for name in names[20:40]}, classes=classes)


# Training

def rate(step, steps, lr):
    """The scripts' curve, but with a tenth of the steps to warm up: their 50 are most of a short
    run, and would favour the longer of two."""
    return lr * min(1, 10 * (step + 1) / steps) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def batches(crops, steps, size):
    """`steps` batches of a dataset's items, in the order of their numbers."""
    for step in range(steps):
        yield default_collate([crops[step * size + i] for i in range(size)])


def steps_of(net, loss_fn, crops, steps, lr, size, clip=math.inf):
    """Train net by Adam. A generator: each step is taken when its number is asked for."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters)
    for step, batch in enumerate(batches(crops, steps, size)):
        optimizer.param_groups[0]["lr"] = rate(step, steps, lr)
        loss = loss_fn(net.train(), batch)
        optimizer.zero_grad()
        loss.backward()
        if not nn.utils.clip_grad_norm_(parameters, clip).isfinite():
            return
        optimizer.step()
        yield step + 1


# Clocks

def seconds(steps):
    """How long it takes to go through them."""
    start = time.perf_counter()
    for _ in steps:
        pass
    return time.perf_counter() - start


def pace(run):
    """Seconds a step of run(steps): of two short runs, what is alike in both is overhead."""
    run(2)  # warms up
    few, many = scaled(4), scaled(16, 4)
    short = run(few)
    whole = run(many)
    # If the machine stalls in the short run, the difference is too small: a step takes some time.
    return max(whole - short, whole / 5) / (many - few)


def steps_in(duration, run):
    """How many steps of run(steps) take as long, and its seconds a step."""
    a_step = pace(run)
    return max(2, round((duration - run(2)) / a_step) + 2), a_step


# Checkerboards

def period_2(out, y, border=16):
    """RMS of the error at the frequencies of a checkerboard, in grey levels of 255.

    out, y: (B, 3, H, W). Of the Hann-windowed spectrum, the 3 x 3 bins around a period of 2 px
    along rows, along columns and along both: there a flat colour lands that is enlarged unevenly.
    """
    side = min(out.shape[2:]) // 2 * 2 - 2 * border
    error = 255 * (out - y)[..., border:border + side, border:border + side]
    hann = torch.hann_window(side)
    window = torch.outer(hann, hann)
    power = torch.fft.fft2(error * window).abs().square() / window.square().sum() / side**2
    h = side // 2
    power = power.roll((h, h), (2, 3))  # frequency 0 in the centre, period 2 at 0
    near = F.pad(power, (1, 1, 1, 1), "circular").unfold(2, 3, 1).unfold(3, 3, 1).sum((-1, -2))
    return (near[..., 0, 0] + near[..., 0, h] + near[..., h, 0]).mean().sqrt().item()


@torch.no_grad()
def flat(net):
    """period_2 of a x2 net's picture of flat colours, where it does not see their borders."""
    x = torch.rand(16, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    return period_2(net(x.expand(-1, -1, 80, 80)), x.expand(-1, -1, 160, 160), border=32)


