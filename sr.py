"""Super-resolution: enlarge a photo x2, x4 or x8, with detail that interpolation cannot give.

    python sr.py --data imagenet_sample                       train; ends in a table and a figure
    python sr.py --apply photo.jpg --init out/sr/feature.pt   enlarge a photo
    python sr.py --test Set5 --init out/sr/pixel.pt           PSNR and SSIM as papers measure them

A loss on pixels makes few errors, but soft edges; one on what VGG sees makes them crisp
(fast.ai's lesson 14, after Johnson 2016). Set5, five pictures that papers enlarge by 4: 30.4 dB
after two minutes on two cores. Bicubic interpolation reaches 28.4, SRCNN (Dong 2014) 30.5.
"""
import argparse
import glob
import math
import os
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageOps
from torch import distributed, nn
from torch.utils.data import DataLoader, Dataset

from common import VGGFeatures, icnr_

# %% 1. Data: what goes in, what should come out
def make_pair(photo, scale, side=math.inf):
    """A photo, or `side` pixels of its middle -> Pillow images (low, high). low is high reduced
    by bicubic interpolation, as in papers: a network learns to undo just this, not noise."""
    w = min(photo.width, side) // scale
    h = min(photo.height, side) // scale
    left = max(0, photo.width - side) // 2
    top = max(0, photo.height - side) // 2
    high = photo.crop((left, top, left + w * scale, top + h * scale))
    return high.resize((w, h), Image.BICUBIC), high

def to_tensor(image):  # RGB Pillow image -> (3, H, W) float in [0, 1]
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255

class Crops(Dataset):
    """Pairs of tensors, without end. Pair n is random, but follows from (seed, n) alone."""

    def __init__(self, paths, size, scale, seed=0):
        self.paths, self.size, self.scale, self.seed = paths, size, scale, seed

    def __getitem__(self, n):
        rng = np.random.default_rng([self.seed, n])
        photo = open_small(self.paths[rng.integers(len(self.paths))], self.size)
        left = rng.integers(photo.width - self.size + 1)
        top = rng.integers(photo.height - self.size + 1)
        crop = photo.crop((left, top, left + self.size, top + self.size))
        crop = crop.rotate(90 * rng.integers(4))
        return [to_tensor(image) for image in make_pair(crop, self.scale)]

# %% 2. Model: EDSR with the course's 8 blocks (Lim et al. 2017, figure 3)
def conv(channels_in, channels_out, bias=True):
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=bias)

class ResBlock(nn.Sequential):  # layers, and a way round them
    def forward(self, x):
        # No BatchNorm, and times 0.1: for deep nets and days of training (Lim 2017, 3.1, 3.2).
        # Kept to be EDSR: in 200 steps here, each loses 0.1 dB (tests/RESULTS.md, claim 4).
        return x + 0.1 * super().forward(x)

class SrResnet(nn.Module):
    """(B, 3, h, w) in [0, 1] -> (B, 3, h * scale, w * scale), not clipped. It learns from crops,
    and enlarges whole photos, as convolutions take any h and w. For scale 4:

    low -+- conv, blocks, conv -- conv, shuffle -- conv, shuffle -- conv -+- high
         |      nf, h, w            nf, 2h, 2w       nf, 4h, 4w           |
         +---------------------------- bicubic ---------------------------+
    """

    def __init__(self, scale, nf, blocks):
        super().__init__()
        self.scale = scale
        self.config = {"scale": scale, "nf": nf, "blocks": blocks}
        # Pixels of low seen on each side: 1 per conv, 1 for all past a shuffle (1/2 + 1/4)
        self.margin = 2 * blocks + 4
        middle = [ResBlock(conv(nf, nf), nn.ReLU(), conv(nf, nf)) for _ in range(blocks)]
        self.body = nn.Sequential(conv(3, nf), *middle, conv(nf, nf))
        # It enlarges at its end, as convs on small pictures cost less (Shi 2016). PixelShuffle
        # turns 4 channels into 2 x 2 pixels. A transposed conv would put zeros between pixels
        # and multiply by them; where its kernels overlap unevenly, it draws a checkerboard.
        self.upsample = nn.Sequential()
        for _ in range(int(math.log2(scale))):
            wide = conv(nf, 4 * nf, bias=False)  # no bias: ICNR would repeat it
            icnr_(wide.weight)
            self.upsample.extend([wide, nn.PixelShuffle(2)])
        self.tail = conv(nf, 3, bias=False)
        nn.init.zeros_(self.tail.weight)  # untrained, it is bicubic

    def forward(self, x):
        out = self.body(x)        # (B, nf, h, w)
        out = self.upsample(out)  # (B, nf, h * scale, w * scale)
        out = self.tail(out)      # (B, 3, h * scale, w * scale)
        # differs from the course: with bicubic added, training starts there, not at noise.
        # (EDSR has a skip around its blocks.) antialias: only so torch's bicubic is Pillow's.
        return out + F.interpolate(x, out.shape[2:], mode="bicubic", antialias=True)

# %% 3. Loss: pixels, then features (Johnson et al. 2016, eq. 2)
# Where exactly does an edge run? The small picture does not say: a pixel beside it is 0 or 1,
# equally likely. Guess 0 or 1: the squared error is 0.5 on average; guess grey: 0.25. So blur
# wins (though nets trained with it were sharper here, claim 20). The absolute error, F.l1_loss,
# is 0.5 for all. VGG asks for an edge: its channels answer to one wherever it runs, and less to
# a soft one. (A ResNet's first block sees it shrunk fourfold.) Compared are the last layers before
# three pools, as in the course. They see 5, 14, 40 pixels; deeper ones lose the place.
FEATURE_WEIGHTS = {"relu1_2": 0.2, "relu2_2": 0.7, "relu3_3": 0.1}

def feature_loss(vgg, out, high, tv=0, pixel_weight=0.8):
    """Pixels (course: 1/100; more saves dB) + VGG + variation; (B, 3, H, W) in [0, 1]."""
    with torch.no_grad():  # the truth is given: nothing to learn
        targets = vgg(high)
    loss = pixel_weight * F.l1_loss(out, high)
    for layer, features in vgg(out).items():
        # differs from the paper (squares), the course (plain): ratios weigh layers alike
        distance = F.l1_loss(features, targets[layer]) / targets[layer].abs().mean()
        loss = loss + FEATURE_WEIGHTS[layer] * distance
    return loss + tv * (out.diff(dim=2).abs().mean() + out.diff(dim=3).abs().mean())

# %% 4. Training
def learning_rate(step, steps, lr):  # up a line, down a cosine
    warmup = min(1, step / min(50, steps / 10))  # Adam's averages need it
    return lr * warmup * (0.5 + 0.5 * math.cos(math.pi * (step - 1) / steps))

def autocast(device):  # bfloat16 where it is fast; weights stay float32
    fast = device == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False)
    if device == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device, torch.bfloat16, enabled=fast)

def train(model, loss_fn, path, steps, lr, crops, pairs, args):
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    start = 0
    if args.resume and path.exists():
        checkpoint = load_checkpoint(path, model)[1]
        check({**checkpoint["args"], "resume": True} == vars(args),
              f"--resume takes the flags of {path}")
        optimizer.load_state_dict(checkpoint["optimizer"])
        start = checkpoint["step"]
    # torchrun runs WORLD copies; gradients are averaged. net's keys begin with module.: save model
    net = nn.parallel.DistributedDataParallel(model) if WORLD > 1 else model
    batch = args.batch_size * WORLD
    numbers = range(start * batch + RANK, steps * batch, WORLD)
    batches = DataLoader(crops, args.batch_size, sampler=numbers, num_workers=args.workers)
    clock = time.time()
    for step, (low, high) in enumerate(batches, start + 1):
        with autocast(args.device):
            loss = loss_fn(net(low.to(args.device)), high.to(args.device))
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, lr)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)  # Kim 2016
        check(norm.isfinite(), f"step {step}: the gradient is {norm}: lower --lr")
        optimizer.step()
        if step % 50 == 0:
            seconds = (time.time() - clock) / (step - start) * (steps - step)
            print(f"step {step:6}/{steps} | loss {loss:.4f} | {seconds:.0f} s left")
        if RANK == 0 and (step % args.eval_every == 0 or step == steps):
            psnr = evaluate([enlarge(model, low) for low, high in pairs], pairs).nanmean(0)[0]
            with open(f"{path}.tmp", "wb") as file:
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                            "step": step, "config": model.config, "args": vars(args)}, file)
            os.replace(f"{path}.tmp", path)  # whole, or not there
            with open(path.with_name("log.csv"), "a") as log:
                log.write("" if log.tell() else "stage,step,loss,psnr\n")
                log.write(f"{path.stem},{step},{loss:.5f},{psnr:.3f}\n")
            print(f"eval {step:6}/{steps} | psnr {psnr:.2f} dB | saved {path}")

# %% 5. Metric and baseline: PSNR, SSIM and sharpness, beside bicubic interpolation
def measure(image, truth, border):
    """(3,): PSNR in dB, SSIM, sharpness; of brightness as in papers, without the border."""
    rgb = torch.stack([to_tensor(image), to_tensor(truth)])[..., border:-border, border:-border]
    weights = torch.tensor([65.481, 128.553, 24.966]).view(3, 1, 1)  # BT.601
    x, y = 16 + (rgb * weights).sum(1)[:, None, None]  # (1, 1, H, W) each
    # 255^2 over the mean squared error, as a logarithm. 1 dB: a fifth less squared error.
    psnr = 10 * torch.log10(255**2 / (x - y).square().mean())
    # SSIM: do mean, contrast, pattern agree around each pixel? (Wang 2004, eq. 13: up to 1.)
    gauss = torch.exp(-torch.arange(-5, 6)**2 / (2 * 1.5**2))
    window = torch.outer(gauss, gauss)[None, None] / gauss.sum()**2
    mx, my, xx, yy, xy = (F.conv2d(t, window) for t in (x, y, x * x, y * y, x * y))
    means = (2 * mx * my + 2.55**2) / (mx**2 + my**2 + 2.55**2)  # not 0 / 0
    patterns = (2 * (xy - mx * my) + 7.65**2) / (xx - mx**2 + yy - my**2 + 7.65**2)
    # Mean |gradient| over that of the truth. Below 1 is softer; but noise raises it, too.
    slopes = [t.diff(dim=2).abs().mean() + t.diff(dim=3).abs().mean() for t in (x, y)]
    return torch.stack([psnr, (means * patterns).mean(), slopes[0] / slopes[1]])

def evaluate(images, pairs):
    """(N, 3): what measure says of each image; NaN if its truth has one colour (x / 0)."""
    scores = torch.stack([measure(image, high, high.width // low.width)
                          for image, (low, high) in zip(images, pairs, strict=True)])
    return scores.where(scores[:, 2:].isfinite(), math.nan)

def compare(results, pairs):  # prints the means of {name: images}
    print(f"{len(pairs)} photos      PSNR      SSIM sharpness (of one colour: left out)")
    scores = {name: evaluate(images, pairs) for name, images in results.items()}
    for name, values in scores.items():
        print(f"{name:12}", *(f"{mean:9.4f}" for mean in values.nanmean(0)))
    return scores

# %% 6. Use it: the lesson in short, then your photos
def run(args, out):
    torch.manual_seed(args.seed)
    model = SrResnet(args.scale, args.nf, args.blocks)
    if args.init:
        load_checkpoint(args.init, model)
    model.body.requires_grad_(not args.freeze)
    layout = torch.contiguous_format if args.device == "mps" else torch.channels_last
    model.to(args.device, memory_format=layout)  # mps: wrong gradients
    vgg = VGGFeatures(FEATURE_WEIGHTS, args.weights).to(args.device, memory_format=layout)
    photos = find_photos(args.data, out, least=4)
    every = min(20, (len(photos) + 1) // 2)  # 1 in `every` is held out
    held_out = [open_small(path, 64) for path in photos[every // 2::every][:100]]
    pairs = [make_pair(photo, args.scale, side=256) for photo in held_out]
    del photos[every // 2::every]
    crops = Crops(photos, args.size, args.scale, args.seed)
    out = out.resolve() if out.is_symlink() else out
    if RANK == 0 and (out / "log.csv").exists() and not args.resume:
        print("earlier run kept as", out.rename(f"{out}-{time.strftime('%Y%m%d-%H%M%S')}"))
    out.mkdir(parents=True, exist_ok=True)
    results = {"bicubic": [low.resize(high.size, Image.BICUBIC) for low, high in pairs]}
    compare(results, pairs)
    train(model, F.l1_loss, out / "pixel.pt", args.steps, args.lr, crops, pairs, args)
    results["pixel loss"] = [enlarge(model, low) for low, high in pairs]
    if args.feature_steps:
        train(model, lambda x, y: feature_loss(vgg, x, y, args.tv), out / "feature.pt",
              args.feature_steps, args.lr, crops, pairs, args)
        results["feature loss"] = [enlarge(model, low) for low, high in pairs]
    scores = compare(results, pairs)
    gain = scores["pixel loss"] - scores["bicubic"]
    worst = gain[:, 0].nan_to_num(math.inf).argmin().item()
    if RANK == 0:
        draw_figure(out / "figure.png", results, pairs, [*{0, 1} - {worst}, worst])

@torch.no_grad()  # no BatchNorm, so no model.eval()
def enlarge(model, image, tile=192):
    """RGB Pillow image -> a large one, by tiles, to bound the memory. Each has a margin as wide
    as the network sees. Left and above it is cut off; elsewhere the next tiles cover it."""
    x = to_tensor(image)[None].to(model.tail.weight.device)
    scale, margin = model.scale, model.margin
    large = Image.new("RGB", (image.width * scale, image.height * scale))
    for top in range(0, image.height, tile):
        for left in range(0, image.width, tile):
            y0, x0 = max(0, top - margin), max(0, left - margin)
            out = model(x[..., y0:top + tile + margin, x0:left + tile + margin])
            out = out[0, :, (top - y0) * scale:, (left - x0) * scale:].permute(1, 2, 0)
            out = (255 * out).round().clamp(0, 255).byte().cpu().numpy()
            large.paste(Image.fromarray(out), (left * scale, top * scale))
    return large

def apply(model, paths, out):
    """Enlarge files into out/<stem>_x<scale>.png. A bad one does not stop the others."""
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    for path in paths:
        target = out / f"{Path(path).stem}_x{model.scale}.png"
        try:
            if target.exists():
                raise OSError(f"{target} exists: move it away")
            photo = open_image(path)
            large = enlarge(model, photo)
            large.save(f"{target}.tmp", "PNG", icc_profile=photo.info.get("icc_profile"))
            os.replace(f"{target}.tmp", target)
            print(f"{path} -> {target}, {large.width} x {large.height}")
            del photo, large  # to make room
        except OSError as error:
            failed.append(f"not enlarged: {error}")
    check(not failed, "\n".join(failed))

def test(model, folder, out):  # whole photos, as in papers
    pairs = [make_pair(open_image(path), model.scale) for path in find_photos(folder, out)]
    check(min(min(high.size) for low, high in pairs) > 31, "a photo is below 32 px")
    compare({"bicubic": [low.resize(high.size, Image.BICUBIC) for low, high in pairs],
             "network": [enlarge(model, low) for low, high in pairs]}, pairs)

# %% 7. Files (skip this at first reading)
def check(condition, sentence):  # a sentence, no traceback
    if not condition:
        raise SystemExit(sentence)

def open_image(path):  # RGB, upright, on white; or OSError
    try:
        with open(path, "rb") as file:  # else some TIFFs stay unturned
            image = ImageOps.exif_transpose(Image.open(file))
        if image.mode.startswith(("I", "F")):
            raise ValueError("more than 8 bits a channel")
        flat = Image.new("RGB", image.size, "white")
        flat.paste(image.convert("RGBA"), mask=image.convert("RGBA"))
        profile = image.info.get("icc_profile", b"")
        flat.info = {"icc_profile": profile} if profile[16:20] == b"RGB " else {}
        return flat
    except Exception as error:
        raise OSError(f"cannot read {path} as an image ({error})") from None

@lru_cache(maxsize=2000)
def open_small(path, size):  # to train on: a camera's photo takes 50 MB
    image = open_image(path)
    side = max(size, min(512, *image.size))
    return ImageOps.cover(image, (side, side))

def find_photos(folder, out, least=1):  # none twice, and none that a run wrote
    if folder == "imagenet_sample" and not Path(folder).exists():
        folder = f"{Path(__file__).resolve().parent}/tests/data/photos"
        print(f"no imagenet_sample here: {folder} takes its place. To get it:\n"
              "git clone https://github.com/EliSchwartz/imagenet-sample-images imagenet_sample")
    own = (f"{out.resolve()}{os.sep}", f"{out.resolve()}-20")
    known = tuple(Image.registered_extensions())
    files = map(os.path.realpath, glob.glob(f"{glob.escape(folder)}/**", recursive=True))
    photos = sorted({f for f in files if f.lower().endswith(known) and not f.startswith(own)})
    check(len(photos) >= least, f"{folder} has {len(photos)} photos, it takes {least}")
    return photos

def load_checkpoint(path, model=None):
    """Fill model, or a new one, with the layers of the same names. Return it, and the dict."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        model = SrResnet(**checkpoint["config"]) if model is None else model
        new = model.load_state_dict(checkpoint["model"], strict=False).missing_keys
        check(len(new) < len(model.state_dict()), f"{path} has other layers")
    except Exception as error:
        raise SystemExit(f"{path} is no checkpoint for this: {error!r:.300}") from None
    print(f"loaded {path} (x{checkpoint['config']['scale']}); new layers: {new}")
    return model, checkpoint

def draw_figure(path, results, pairs, rows):
    sheet = Image.new("RGB", (264 * (len(results) + 2), 552 * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for y, n in zip(range(28, sheet.height, 552), rows, strict=True):
        low, high = pairs[n]
        images = {"low": low.resize(high.size, Image.NEAREST)}
        images |= {name: large[n] for name, large in results.items()} | {"truth": high}
        error = {k: (to_tensor(image) - to_tensor(high)).abs() for k, image in images.items()}
        gain = (error["bicubic"] - error["pixel loss"]).mean(0, keepdim=True)
        gain = F.avg_pool2d(gain, 64, stride=1)[0]
        top, left = divmod(gain.argmax().item(), gain.shape[1])
        for x, (name, image) in zip(range(4, sheet.width, 264), images.items(), strict=True):
            part = image.crop((left, top, left + 64, top + 64))
            draw.text((x, y - 28), name, "black", font_size=22)
            sheet.paste(image, (x, y))
            sheet.paste(part.resize((256, 256), Image.NEAREST), (x, y + 260))
            draw.rectangle((x + left, y + top, x + left + 64, y + top + 64), outline="red")
    sheet.save(path)
    print(f"figure: {path}, its last row gains least")

# %% 8. Settings and main
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))

def get_args(argv=None):
    found = torch.accelerator.is_available()
    device = torch.accelerator.current_accelerator().type if found else "cpu"
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--data", default="imagenet_sample", help="folder of photos")
    add("--size", type=int, default=64, help="side of a crop")
    add("--scale", type=int, default=4, choices=(2, 4, 8), help="to train for")
    add("--nf", type=int, default=24, help="feature channels")
    add("--blocks", type=int, default=8, help="residual blocks")
    add("--steps", type=int, default=2000, help="with the pixel loss")
    add("--feature-steps", type=int, default=150, help="then with the feature loss")
    add("--batch-size", type=int, default=8, help="crops a step")
    add("--lr", type=float, default=4e-3, help="highest learning rate")
    add("--tv", type=float, default=0, help="against patterns")
    add("--weights", default="included", choices=("included", "torchvision", "random"))
    add("--freeze", action="store_true", help="train only what enlarges")
    add("--seed", type=int, default=0, help="of weights and crops")
    add("--eval-every", type=int, default=1000, help="steps between validations")
    add("--device", default=device, choices=sorted({"cpu", device}))
    add("--workers", type=int, default=0, help="to load data")
    add("--resume", action="store_true", help="same flags again: go on")
    add("--out", default="out/sr", help="where a run writes")
    add("--init", help="checkpoint to use, or to start from")
    add("--apply", nargs="+", metavar="PHOTO", help="only enlarge these")
    add("--test", metavar="DIR", help="only measure on its photos")
    args = parser.parse_args(argv)
    check(args.init or not args.freeze, "--freeze takes --init")
    least = min(args.size // 32, args.nf, args.batch_size, args.eval_every, args.seed + 1)
    check(args.lr > 0 < least, "at least --size 32, --nf, --batch-size, --eval-every 1, --lr > 0")
    return args

def main(argv=None):
    args = get_args(argv)
    out = Path(args.out)
    if not args.apply and not args.test:
        return run(args, out)
    model = load_checkpoint(args.init or out / "pixel.pt")[0].to(args.device)
    return apply(model, args.apply, out) if args.apply else test(model, args.test, out)

if __name__ == "__main__":
    if WORLD > 1:
        if torch.accelerator.is_available():
            torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group()
    try:
        main()
    except (KeyboardInterrupt, OSError) as error:
        raise SystemExit(f"stopped: {(str(error) or 'Ctrl-C').splitlines()[-1]}") from None
