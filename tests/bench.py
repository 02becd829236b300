"""Speed, as ratios measured in one run: python tests/bench.py (about six minutes on two cores).

Every row times two things in turns, five times each, and takes the medians: a noisy machine then
slows both alike.
"""
import contextlib
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from generators import write_leaves  # noqa: E402

import seg  # noqa: E402
import sr  # noqa: E402
import style  # noqa: E402
from common import VGGFeatures, gram_matrix  # noqa: E402

ROUNDS = 5


def medians(*functions):
    """Median seconds of each function, called in turns after one warm-up."""
    times = [[] for _ in functions]
    for round_ in range(ROUNDS + 1):
        for function, seconds in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            if round_:
                seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]


def row(name, ours, theirs, ratio):
    print(f"{name:50} {ours:>18} {theirs:>24} {ratio:>8}")


def step(loss_fn, optimizer):
    loss = loss_fn()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def sr_steps(batch, size, device):
    """One step with the feature loss: as sr.py takes it, and as the course's recipe reads.

    The plain recipe: contiguous layout, VGG16 run to its end, targets without no_grad.
    """
    low = torch.rand(batch, 3, size // 2, size // 2, device=device)
    high = torch.rand(batch, 3, size, size, device=device)
    ours, plain = sr.SrResnet(2, 64, 8).to(device), sr.SrResnet(2, 64, 8).to(device)
    ours = ours.to(memory_format=torch.channels_last)
    vgg = VGGFeatures(sr.FEATURE_WEIGHTS).to(device, memory_format=torch.channels_last)
    whole = VGGFeatures([*sr.FEATURE_WEIGHTS, "relu5_3"], "random", pool=nn.MaxPool2d).to(device)

    def our_loss():
        return sr.feature_loss(vgg, ours(low), high)

    def plain_loss():
        out = plain(low)
        have, want = whole(out), whole(high)
        losses = [weight * F.l1_loss(have[layer], want[layer])
                  for layer, weight in sr.FEATURE_WEIGHTS.items()]
        return F.l1_loss(out, high) / 100 + sum(losses)

    a, b = torch.optim.Adam(ours.parameters()), torch.optim.Adam(plain.parameters())
    return partial(step, our_loss, a), partial(step, plain_loss, b)


def bench_sr(device):
    batch, size = 8, 96
    ours, plain = sr_steps(batch, size, device)
    fast, slow = medians(ours, plain)
    row("sr: training step, images/s (course's recipe)", f"{batch / fast:.1f}",
        f"{batch / slow:.1f}", f"{slow / fast:.1f} x")

    with FlopCounterMode(display=False) as counter:
        ours()
    products = []
    for n in (1024, 2048, 4096):
        a, b = (torch.randn(n, n, device=device) for _ in range(2))
        products.append(2 * n**3 / medians(partial(torch.matmul, a, b))[0])
    rate = counter.get_total_flops() / fast
    row("sr: the step's GFLOP/s (best matrix product)", f"{rate / 1e9:.0f}",
        f"{max(products) / 1e9:.0f}", f"{rate / max(products):.0%}")

    args = sr.get_args([])
    with tempfile.TemporaryDirectory() as folder:
        leaves = write_leaves(Path(folder) / "leaves", 20, side=320)
        crops = sr.Crops(sr.find_photos(str(leaves), Path("out")), args.size, args.scale)
        batch = [crops[n] for n in range(args.batch_size)]  # and the others are kept, too
        for n in range(200):
            crops[n]
    net = sr.SrResnet(args.scale, args.nf, args.blocks)
    net = net.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters())
    low, high = (torch.stack(images).to(device) for images in zip(*batch, strict=True))
    load, learn = medians(lambda: [crops[n] for n in range(args.batch_size)],
                          partial(step, lambda: F.l1_loss(net(low), high), optimizer))
    row("sr: loader images/s (pixel step images/s)", f"{args.batch_size / load:.0f}",
        f"{args.batch_size / learn:.0f}", f"{load / learn:.1%}")

    image = Image.effect_noise((800, 600), 50).convert("RGB")
    net = sr.SrResnet(2, args.nf, args.blocks).to(device, memory_format=torch.channels_last)
    seconds, = medians(partial(sr.enlarge, net, image))
    row("sr: --apply x2, megapixels/s of the result", f"{4 * 0.48 / seconds:.2f}", "", "")


def style_steps(batch, size, device):
    """One training step of the style network: as style.py takes it, and as a plain recipe reads.

    The plain recipe: contiguous layout, one VGG to the last layer for output and target, the
    target without no_grad, and the Gram matrices of the painting computed in each step.
    """
    args = style.get_args(["--device", device.type])
    layers = args.style_layers
    painting = style.to_tensor(Image.open(ROOT / "tests/data/painting.png").reduce(2))[None]
    painting = painting.to(device)
    perceptual = style.PerceptualLoss(painting, args)
    x = torch.rand(batch, 3, size, size, device=device)
    ours, plain = (style.StyleNet(args.nf).to(device) for _ in range(2))
    ours = ours.to(memory_format=torch.channels_last)

    def our_loss():
        with style.autocast(device.type):
            return perceptual(ours(x), perceptual.content(x))["total"].mean()

    def plain_loss():
        out = plain(x)
        have, photo, goal = (perceptual.vgg(t) for t in (out, x, painting))
        content = style.relative(have[args.content_layer], photo[args.content_layer])
        grams = [style.relative(gram_matrix(have[k]), gram_matrix(goal[k])) for k in layers]
        variation = out.diff(dim=2).abs().mean() + out.diff(dim=3).abs().mean()
        strokes = args.style_weight[0] * sum(grams) / len(grams)
        return (content + strokes).mean() + args.tv * variation

    a, b = torch.optim.Adam(ours.parameters()), torch.optim.Adam(plain.parameters())
    return perceptual, ours, partial(step, our_loss, a), partial(step, plain_loss, b)


def bench_style(device):
    args = style.get_args(["--optimize-steps", "5", "--device", device.type])
    batch, size = args.batch_size, args.size
    perceptual, net, ours, plain = style_steps(batch, size, device)
    fast, slow = medians(ours, plain)
    row("style: training step, images/s (plain recipe)", f"{batch / fast:.2f}",
        f"{batch / slow:.2f}", f"{slow / fast:.1f} x")

    photo = Image.open(ROOT / "tests/data/photos/cat.jpg").resize((1024, 1024))
    photo = style.to_tensor(photo)[None].to(device)
    net(photo[..., :64, :64])  # warms up
    with torch.no_grad():
        one_pass, = medians(lambda: net(photo).cpu())
    start = time.perf_counter()
    with contextlib.redirect_stdout(None), tempfile.TemporaryDirectory() as folder:
        style.optimize(photo, perceptual, "photo", f"{folder}/log.csv", args)
    steps = 500 / 6 * (time.perf_counter() - start)  # 5 steps take 6 evaluations
    row("style: 1024 px, seconds (500 optimise steps)", f"{one_pass:.2f}", f"{steps:.0f}",
        f"{steps / one_pass:.0f} x")


def bench_seg(device):
    """A U-Net's training step as seg.py takes it, in bfloat16, and the loading of its crops."""
    batch, size = 16, 128
    crops = seg.Crops(sum(seg.find_pairs(ROOT / "tests/data/streets")[1].values(), []), size)
    x, y = (part.to(device) for part in default_collate([crops[n] for n in range(batch)]))
    model = seg.Segmenter("unet", 64, size, [*"abcdef"]).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)

    def step(half=False):
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = model(x)
        loss = seg.pixel_loss(logits.float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ours, half = medians(step, lambda: step(half=True))
    row("seg: U-Net18 step, images/s (in bfloat16)", f"{batch / ours:.1f}", f"{batch / half:.1f}",
        f"{ours / half:.1f} x")
    load, ours = medians(lambda: [crops[n] for n in range(batch)], step)
    row("seg: loader images/s (U-Net18 step images/s)", f"{batch / load:.0f}",
        f"{batch / ours:.1f}", f"{load / ours:.1%}")


if __name__ == "__main__":
    found = torch.accelerator.is_available()
    device = torch.accelerator.current_accelerator() if found else torch.device("cpu")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    row("what (compared with)", "this project", "the other", "ratio")
    bench_sr(device)
    bench_style(device)
    bench_seg(device)
