"""Lesson 2. Each claim takes the data and a seed, and returns {"what: with / without": (with,
without, what "with" is said to be: lower, higher or same)}."""
import functools
import math
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

import style
from claims.lab import material, period_2, quiet, scaled, seconds, steps_of
from common import VGGFeatures, gram_matrix

def gram(data, seed):
    """bmm keeps the images of a batch apart, mm mixes them in the style loss"""
    vgg = VGGFeatures(["relu2_2"])
    generator = torch.Generator().manual_seed(seed)
    x = data.squares[torch.randperm(len(data.val), generator=generator)[:4], :, :128, :128]

    def mm(f):  # images and channels in one matrix: (B * C, HW) x (HW, B * C)
        B, C, H, W = f.shape
        f = f.reshape(B * C, H * W)
        return (f @ f.T)[None] / (C * H * W)

    def loss(gram_matrix, x):
        painting = data.painting[..., :128, :128].expand_as(x)
        have, want = gram_matrix(vgg(x)["relu2_2"]), gram_matrix(vgg(painting)["relu2_2"])
        return style.relative(have, want).mean().item()

    rows = {}
    for batch in 1, 4:
        own = statistics.mean(loss(gram_matrix, image[None]) for image in x[:batch])
        with_bmm, with_mm = (abs(loss(g, x[:batch]) / own - 1) for g in (gram_matrix, mm))
        rows[f"off the images' own loss, batch {batch}: bmm / mm"] = (
            with_bmm, with_mm, "same" if batch == 1 else "lower")
    return rows


# The network, with another padding or norm

class CroppedBlock(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + x[..., 2:-2, 2:-2]


class Cropped(style.StyleNet):
    """Johnson's: 40 px of reflected photo around, which five blocks without padding use up."""

    def __init__(self, nf):
        super().__init__(nf)

        def conv_norm():
            return nn.Sequential(nn.Conv2d(4 * nf, 4 * nf, 3),
                                 nn.InstanceNorm2d(4 * nf, affine=True))
        for i, layer in enumerate(self.layers):
            if isinstance(layer, style.ResBlock):
                self.layers[i] = CroppedBlock(conv_norm(), nn.ReLU(), conv_norm())

    def forward(self, x):  # H and W are multiples of 4
        return self.layers(F.pad(x, (40, 40, 40, 40), "reflect")).sigmoid()


@functools.cache
def trained(real, padding, norm, seed):
    """A network of 60 steps at 96 px, and its loss."""
    data = material(real)
    torch.manual_seed(seed)
    net = Cropped(8) if padding == "crop" else style.StyleNet(8)
    for module in list(net.modules()):
        if padding == "zeros" and isinstance(module, nn.Conv2d):
            module.padding_mode = "zeros"
        if norm == "batch" and isinstance(module, nn.Sequential) and len(module) == 2:
            module[1] = nn.BatchNorm2d(module[1].num_features)
    net.to(memory_format=torch.channels_last)
    args = style.get_args(["--style-layers", "relu1_2", "relu2_2", "relu3_3", "--device", "cpu"])
    perceptual = style.PerceptualLoss(data.painting, args)

    def loss_fn(net, x):
        return perceptual(net(x), perceptual.content(x))["total"].mean()
    seconds(steps_of(net, loss_fn, style.Crops(data.photos, 96, seed), scaled(60), 5e-3,
                     scaled(4)))
    return net.eval(), perceptual


def small(data):
    """The validation photos, at the size of training."""
    return F.interpolate(data.squares, size=96, mode="area")


@torch.no_grad()
def border(net, data):
    """Mean error, in grey levels, of the outer 8 px: against the same photo with 32 px more."""
    errors = []
    for x in data.squares.split(1):
        error = (net(x)[..., 32:-32, 32:-32] - net(x[..., 32:-32, 32:-32])).abs()
        error[..., 8:-8, 8:-8] = math.nan
        errors.append(255 * error.nanmean().item())
    return statistics.mean(errors)


def padding(data, seed):
    """Zeros mark the borders of a stylised photo more than reflection, and that more than crops"""
    # With batch norm, which in use looks at no pixel, and so not at a border either.
    zeros, reflect, crop = (border(trained(data.real, kind, "batch", seed)[0], data)
                            for kind in ("zeros", "reflect", "crop"))
    what = "error of the outer 8 px in grey levels"
    return {f"{what}: reflect / zeros": (reflect, zeros, "lower"),
            f"{what}: crop / zeros": (crop, zeros, "lower"),
            f"{what}: crop / reflect": (crop, reflect, "lower")}


def instance_norm(data, seed):
    """Instance norm beats batch norm at equal steps"""
    losses = []
    for norm in "instance", "batch":
        net, perceptual = trained(data.real, "reflect", norm, seed)
        losses.append(style.evaluate(net, perceptual, small(data).split(1))["total"])
    return {"total loss after 60 steps: instance / batch": (*losses, "lower")}


# The optimiser

def style_pools(data, seed):
    """Average pools in the VGG of style transfer leave less of a grid than max pools do"""
    x = data.squares[seed % len(data.squares)][None, :, :96, :96]
    layers = ["relu1_2", "relu2_2", "relu3_3", "relu4_3"]

    def optimised(vgg):  # style.py's loss without the variation, which would smooth a grid
        content = vgg(x)["relu2_2"]
        grams = {layer: gram_matrix(f) for layer, f in vgg(data.painting).items()}
        image = x.clone().requires_grad_()
        optimizer = torch.optim.Adam([image])
        for step in range(scaled(40)):
            optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / scaled(40))
            features = vgg(image)
            loss = style.relative(features["relu2_2"], content).sum()
            for layer in layers:
                distance = style.relative(gram_matrix(features[layer]), grams[layer])
                loss = loss + 5 / len(layers) * distance.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            image.data.clamp_(0, 1)
        return image.detach()

    def distance(image):  # to the photo's content, as the VGG sees it that was trained
        want = maximum(x)["relu2_2"]
        return style.relative(maximum(image)["relu2_2"], want).item()

    average = VGGFeatures(layers, pool=nn.AvgPool2d)
    maximum = VGGFeatures(layers, pool=nn.MaxPool2d)
    images = [optimised(vgg) for vgg in (average, maximum)]
    grids = [period_2(image, F.avg_pool2d(image, 3, 1, 1)) for image in images]
    return {"grid of period 2 px after 40 steps, grey levels: average / max": (*grids, "lower"),
            "distance to the photo on relu2_2: average / max": (*map(distance, images), "lower")}


def one_pass(data, seed):
    """The network is many times faster than optimising, at equal loss"""
    net, perceptual = trained(data.real, "reflect", "instance", seed)
    x = small(data)[seed % len(data.squares)][None]
    with torch.no_grad():
        net(x)  # warms up
        start = time.perf_counter()
        out = net(x)
        fast = time.perf_counter() - start
        wanted = perceptual(out, perceptual.content(x))["total"].item()
    args = style.get_args(["--optimize-steps", str(scaled(80)), "--device", "cpu"])
    start = time.perf_counter()
    with quiet() as folder:
        _, losses = style.optimize(x, perceptual, "photo", folder / "log.csv", args)
    slow = time.perf_counter() - start
    equal = next((i for i, loss in enumerate(losses) if loss <= wanted), len(losses) - 1)
    return {"seconds to its loss: network x 10 / optimiser (80 steps at most)": (
        10 * fast, slow * equal / len(losses), "lower")}


CLAIMS = {
    gram: "Gatys 2016, eq. 3", padding: "Johnson 2016, supplement",
    instance_norm: "Ulyanov 2016", style_pools: "Gatys 2016, 2",
    one_pass: "Johnson 2016, table 1"}
