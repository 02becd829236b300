"""Super-resolution: enlarge a photo x2, x4 or x8, with detail that interpolation cannot give.

    python sr.py --data imagenet_sample                     train; ends in a table and a figure
    python sr.py --apply photo.jpg --init out/sr/pixel.pt   enlarge a photo
    python sr.py --test Set5 --init out/sr/pixel.pt         PSNR and SSIM as papers measure them

A small net learns to undo a bicubic reduction. A loss on pixels gives the best PSNR, but
soft pictures; a loss on what VGG sees makes them crisp. fast.ai's lesson 14, simplified from
Johnson, Shi, Lim. Set5 x4: 30.4 dB after 90 seconds on two cores; SRCNN 30.5, bicubic 28.4.
"""
import argparse
import copy
import glob
import io
import math
import os
import sys
import time
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from torch import distributed, nn
from torch.utils.data import DataLoader, Dataset

from common import VGGFeatures, icnr_

RANK = int(os.environ.get("RANK", 0))  # torchrun starts WORLD processes; this is one
WORLD = int(os.environ.get("WORLD_SIZE", 1))

# %% 1. Settings
def get_args(argv=None):
    found = torch.accelerator.is_available()
    device = torch.accelerator.current_accelerator().type if found else "cpu"
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument_group("data").add_argument
    add("--data", default="imagenet_sample", help="folder of photos to train on")
    add("--size", type=int, default=64, help="side of a high-resolution crop")
    add("--scale", type=int, default=4, choices=(2, 4, 8), help="enlargement")
    add("--seed", type=int, default=0, help="of weights, crops, generated images")
    add = parser.add_argument_group("model and training").add_argument
    add("--nf", type=int, default=32, help="feature channels")
    add("--blocks", type=int, default=8, help="residual blocks")
    add("--steps", type=int, default=1600, help="training steps with the pixel loss")
    add("--feature-steps", type=int, default=150, help="then steps with the feature loss")
    add("--batch-size", type=int, default=8, help="crops a step, on each device")
    add("--lr", type=float, default=3e-3, help="highest learning rate")
    add("--weights", default="pretrained", choices=("pretrained", "random"), help="of VGG")
    add("--freeze", action="store_true", help="train only the layers that enlarge")
    add("--eval-every", type=int, default=400, help="steps between validations")
    add("--device", default=device, choices={"cpu", device})
    add("--resume", action="store_true", help="the same command again: go on")
    add = parser.add_argument_group("use").add_argument
    add("--out", default="out/sr", help="folder for everything that a run writes")
    add("--init", help="checkpoint to use, or to start training from")
    add("--apply", nargs="+", metavar="PHOTO", help="only enlarge these with --init")
    add("--test", metavar="DIR", help="only measure --init on this folder's photos")
    return parser.parse_args(argv)

def check(condition, sentence):  # for what the user can mend: no traceback
    if not condition:
        raise SystemExit(sentence)

# %% 2. Data: photos or, where there are none, generated images
@lru_cache(maxsize=2000)  # 2,000 of ImageNet's photos, decoded, take 1 GB
def open_image(path):
    """An RGB Pillow image, upright, on white where transparent; OSError if it is none."""
    try:
        with open(path, "rb") as file:
            image = ImageOps.exif_transpose(Image.open(file))
        if image.mode.startswith("I;16"):  # Pillow's conversion would clip it at 255
            image = Image.fromarray((np.asarray(image) / 257).astype(np.uint8))
        if image.mode in "IF":
            raise ValueError("32 bits: save it with 8 or 16")
        flat = Image.new("RGBA", image.size, "white")
        flat.alpha_composite(image.convert("RGBA"))
        flat.info = image.info  # with the colour profile
        return flat.convert("RGB")
    except Exception as error:  # every decoder of Pillow raises its own kinds
        raise OSError(f"cannot read {path} as an image ({error})") from None

@lru_cache(maxsize=2000)
def dead_leaves(seed, number, side=320):
    """An image with the statistics of a photo: opaque leaves of any size (Lee 2001)."""
    rng = np.random.default_rng([seed, number])
    image = Image.new("RGB", (2 * side, 2 * side))  # twice the size, for smooth edges
    smallest = 2.0 * rng.choice([2, 4, 8])
    hues = 255 * rng.random((rng.integers(2, 6), 3))
    for _ in range(int((side / smallest)**2 / 2)):  # enough to cover it three times
        radius = smallest * rng.random() ** -0.5    # density r^-3: equal areas at all scales
        centre = 2 * side * rng.random(2)
        radii = radius * 2 ** rng.uniform(-1, 1, 2)
        colour = rng.choice(hues) * rng.random()    # few hues, any brightness
        ImageDraw.Draw(image).ellipse([*(centre - radii), *(centre + radii)],
                                      tuple(colour.astype(int)))
    blur = ImageFilter.GaussianBlur(rng.uniform(0, 2))
    return image.rotate(rng.uniform(0, 360)).filter(blur).resize((side, side), Image.BOX)

def find_photos(folder, size, generate=None, least=1):
    """The usable photos below a folder, `least` or more, as functions that open them."""
    if generate and folder == "imagenet_sample" and not Path(folder).exists():
        print(f"no {folder} here: images are generated, when first used. To get it:\n"
              f"git clone https://github.com/EliSchwartz/imagenet-sample-images {folder}")
        return [partial(generate, number) for number in range(400)]
    check(Path(folder).is_dir(), f"no such folder: {folder}")
    print(f"reading {folder} ...")
    photos, skipped = [], []
    paths = glob.glob(f"{glob.escape(folder)}/**", recursive=True)  # follows links
    for path in sorted(filter(os.path.isfile, paths)):
        try:  # now, or a bad file would be met an hour into training
            if min(open_image(path).size) < size:
                raise OSError(f"{path} has a side below {size} px")
            photos.append(partial(open_image, path))
        except OSError as error:
            skipped.append(error)
    print(f"{len(photos)} photos, {len(skipped)} files skipped", *skipped[:1], sep="; ")
    check(len(photos) >= least, f"{folder} is not enough: it takes {least} usable photos")
    return photos

def make_pair(photo, scale, side=10**6):
    """Pillow images (low, high): high is the middle of the photo, low is high reduced."""
    left = max(0, photo.width - side) // 2
    top = max(0, photo.height - side) // 2
    w, h = min(photo.width, side) // scale, min(photo.height, side) // scale
    high = photo.crop((left, top, left + w * scale, top + h * scale))
    return high.resize((w, h), Image.BICUBIC), high  # antialiased: as in the papers

def to_tensor(image):  # RGB Pillow image -> (3, H, W) float in [0, 1]
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255

class Crops(Dataset):
    """Pairs to train on. Number n follows from (seed, n) alone: so a run can be resumed."""

    def __init__(self, photos, size, scale, seed=0):
        self.photos, self.size, self.scale, self.seed = photos, size, scale, seed

    def __getitem__(self, n):
        rng = np.random.default_rng([self.seed, n])
        photo = self.photos[rng.integers(len(self.photos))]()
        left, top = rng.integers(np.array(photo.size) - self.size + 1)
        crop = photo.crop((left, top, left + self.size, top + self.size))
        crop = crop.rotate(90 * rng.integers(4))
        return [to_tensor(image) for image in make_pair(crop, self.scale)]

# %% 3. Model: EDSR at the lesson's size (Lim et al. 2017, figure 3)
conv = partial(nn.Conv2d, kernel_size=3, padding=1)

class ResBlock(nn.Sequential):  # no BatchNorm: it costs memory and range (Lim 2017)
    def forward(self, x):
        # x 0.1 steadies a deep sum (Lim 2017, 3.2). It cannot live in the kernels: Adam
        # moves all weights by about lr, so kernels a tenth as large would jump.
        return x + 0.1 * super().forward(x)

class SrResnet(nn.Module):
    """(B, 3, h, w) in [0, 1] -> (B, 3, h * scale, w * scale), not clipped. For scale 4:

    low -+- conv, blocks, conv -- conv, shuffle -- conv, shuffle -- conv -+- high
         |      nf, h, w            nf, 2h, 2w       nf, 4h, 4w           |
         +---------------------------- bicubic ---------------------------+
    """

    def __init__(self, scale, nf, blocks):
        super().__init__()
        self.config = {"scale": scale, "nf": nf, "blocks": blocks}
        self.scale = scale
        self.margin = 2 * blocks + 5  # low pixels that an output sees to each side
        body = [ResBlock(conv(nf, nf), nn.ReLU(), conv(nf, nf)) for _ in range(blocks)]
        self.body = nn.Sequential(conv(3, nf), *body, conv(nf, nf))
        self.upsample = nn.Sequential()  # last: small pictures cost less (Shi 2016)
        for _ in range(int(math.log2(scale))):
            self.upsample.extend([conv(nf, 4 * nf, bias=False), nn.PixelShuffle(2)])
            icnr_(self.upsample[-2].weight)
        self.tail = conv(nf, 3, bias=False)
        nn.init.zeros_(self.tail.weight)  # so that the untrained net is exactly bicubic

    def forward(self, x):
        out = self.body(x)        # (B, nf, h, w)
        out = self.upsample(out)  # (B, nf, h * scale, w * scale)
        out = self.tail(out)      # (B, 3, h * scale, w * scale)
        # differs from the lesson: added to bicubic, training starts there, not at noise.
        # With antialias, torch's kernel is Pillow's.
        return out + F.interpolate(x, out.shape[2:], mode="bicubic", antialias=True)

# %% 4. Loss: match features, not only pixels (Johnson et al. 2016, eq. 2)
# A pixel beside an edge may be 0 or 1, equally likely. By squared error, guessing 0 or 1
# costs 0.5 on average, and grey 0.25: blur wins. By absolute error all three cost 0.5:
# nothing asks for an edge. VGG does. (A ResNet reduces a picture fourfold before it looks.)
pixel_loss = F.l1_loss

# The lesson's. Deeper layers see 90 px and more, and lose where exactly an edge runs.
FEATURE_WEIGHTS = {"relu1_2": 0.2, "relu2_2": 0.7, "relu3_3": 0.1}

def feature_loss(vgg, out, y):
    """Pixel loss + weighted L1 distances of VGG's features; out, y: (B, 3, H, W) in [0, 1]."""
    with torch.no_grad():
        targets = vgg(y)
    loss = pixel_loss(out, y)  # differs from the lesson (1/100 of it): costs fewer dB
    for layer, features in vgg(out).items():
        # differs from the paper, which squares: a ratio means the same for any VGG
        distance = F.l1_loss(features, targets[layer]) / targets[layer].abs().mean()
        loss = loss + FEATURE_WEIGHTS[layer] * distance
    return loss

# %% 5. Metric and baseline: PSNR, SSIM and sharpness, beside bicubic
def measure(image, truth, border):
    """(3,): PSNR in dB, SSIM, sharpness; of luma (BT.601, 16 to 235) inside the border."""
    rgb = torch.stack([to_tensor(image), to_tensor(truth)])[..., border:-border, border:-border]
    weights = torch.tensor([65.481, 128.553, 24.966])
    x, y = (16 + torch.einsum("bchw,c->bhw", rgb, weights))[:, None, None]
    psnr = 10 * torch.log10(255**2 / (x - y).square().mean())
    gauss = torch.exp(-torch.arange(-5, 6)**2 / (2 * 1.5**2))  # Wang 2004, eq. 13
    window = torch.outer(gauss, gauss)[None, None] / gauss.sum()**2
    mx, my, xx, yy, xy = (F.conv2d(t, window) for t in (x, y, x * x, y * y, x * y))
    luminance = (2 * mx * my + 2.55**2) / (mx**2 + my**2 + 2.55**2)
    structure = (2 * (xy - mx * my) + 7.65**2) / (xx - mx**2 + yy - my**2 + 7.65**2)
    ssim = (luminance * structure).mean()
    # Mean |gradient| over that of the truth: below 1 is softer.
    slopes = [t.diff(dim=2).abs().mean() + t.diff(dim=3).abs().mean() for t in (x, y)]
    return torch.stack([psnr, ssim, slopes[0] / slopes[1]])

def evaluate(net, pairs):
    """(N, 3): what measure says of net, a function from low Pillow images to large ones."""
    scores = torch.stack([measure(net(x), y, y.width // x.width) for x, y in pairs])
    return scores.where(scores.isfinite(), math.nan)  # NaN for a picture of one colour

def compare(nets, pairs):  # prints the mean scores of each net; returns all of them
    print(f"{len(pairs)} photos      PSNR      SSIM sharpness (of one colour: left out)")
    scores = {name: evaluate(net, pairs) for name, net in nets.items()}
    for name, values in scores.items():
        print(f"{name:12}", *(f"{mean:9.4f}" for mean in values.nanmean(0)))
    return scores

# %% 6. Training
def load_checkpoint(path, net=None, strict=True):
    """Fill net, or a new one, from what train wrote. Return it, and the whole dict."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        net = net or SrResnet(**checkpoint["config"])
        new = net.load_state_dict(checkpoint["model"], strict=strict).missing_keys
        print(f"loaded {path} (x{checkpoint['config']['scale']}); new layers: {new}")
        return net, checkpoint
    except Exception as error:  # no file, another script's, other layers: all kinds
        raise SystemExit(f"{path} is no checkpoint for this: {error!r:.200}") from None

def train(model, loss_fn, path, steps, crops, pairs, args):
    """Train to `steps`. Every --eval-every steps, and at the end, validate and save."""
    optimizer = torch.optim.Adam(model.parameters())
    start = 0
    if args.resume and path.exists():
        checkpoint = load_checkpoint(path, model)[1]
        optimizer.load_state_dict(checkpoint["optimizer"])
        start = checkpoint["step"]
    net = nn.parallel.DistributedDataParallel(model) if WORLD > 1 else model
    batch = args.batch_size * WORLD
    mine = range(start * batch + RANK, steps * batch, WORLD)
    batches = DataLoader(crops, args.batch_size, sampler=mine)
    clock = time.time()
    for step, (low, high) in enumerate(batches, start + 1):
        loss = loss_fn(net(low.to(args.device)), high.to(args.device))
        cosine = 0.5 + 0.5 * math.cos(math.pi * step / steps)  # after a short warm-up
        optimizer.param_groups[0]["lr"] = args.lr * min(1, step / 50) * cosine
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)  # for a high lr (Kim 2016)
        check(norm.isfinite(), f"the gradient is {norm}: lower --lr; {path} is still good")
        optimizer.step()
        if step % 50 == 0:
            left = (time.time() - clock) / (step - start) * (steps - step)
            print(f"step {step:6}/{steps} | loss {loss:.4f} | {left:.0f} s left")
        if RANK == 0 and (step % args.eval_every == 0 or step == steps):
            now = evaluate(partial(enlarge, model), pairs).nanmean(0)[0]
            data = io.BytesIO()
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                        "step": step, "config": model.config, "args": vars(args)}, data)
            Path(f"{path}.tmp").write_bytes(data.getvalue())
            os.replace(f"{path}.tmp", path)  # it has its name only when it is whole
            with open(path.with_name("log.csv"), "a") as log:
                if log.tell() == 0:
                    log.write("stage,step,loss,psnr\n")
                log.write(f"{path.stem},{step},{loss:.5f},{now:.3f}\n")
            print(f"eval {step:6}/{steps} | psnr {now:.2f} dB | saved {path}")

# %% 7. Use it
@torch.no_grad()
def enlarge(model, image, tile=192):
    """RGB Pillow image -> a large one, by tiles: that bounds the memory. A margin as wide as
    the net can see makes it equal to one pass; where it is pasted, the next tile covers it."""
    x = to_tensor(image)[None].to(model.tail.weight.device)
    large = Image.new("RGB", (image.width * model.scale, image.height * model.scale))
    for top in range(0, image.height, tile):
        for left in range(0, image.width, tile):
            y0, x0 = max(0, top - model.margin), max(0, left - model.margin)
            low = x[..., y0:top + tile + model.margin, x0:left + tile + model.margin]
            out = model(low)[0, :, (top - y0) * model.scale:, (left - x0) * model.scale:]
            out = (out * 255).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
            large.paste(Image.fromarray(out), (left * model.scale, top * model.scale))
    return large

def apply(model, paths, out):
    """Enlarge files into out/<stem>_x<scale>.png. A bad one does not stop the others."""
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    for path in paths:
        target = out / f"{Path(path).stem}_x{model.scale}.png"
        try:
            if target.exists():
                raise OSError(f"{target} exists: move it away, or give another --out")
            photo = open_image(path)
            large = enlarge(model, photo)
            large.save(f"{target}.tmp", "PNG", icc_profile=photo.info.get("icc_profile"))
            os.replace(f"{target}.tmp", target)
            print(f"{path} -> {target}, {large.width} x {large.height}, RGB on white")
        except OSError as error:
            failed.append(f"not enlarged: {error}")
    check(not failed, "\n".join(failed))

def draw_figure(path, nets, pairs):
    """A row a pair: low | each net | truth; below, enlarged, the part where bicubic is worst."""
    sheet = Image.new("RGB", (264 * (len(nets) + 2), 552 * len(pairs)), "white")
    for i, (low, high) in enumerate(pairs):
        images = {"low": low} | {name: net(low) for name, net in nets.items()} | {"truth": high}
        error = (to_tensor(images["bicubic"]) - to_tensor(high)).abs().mean(0, keepdim=True)
        error = F.avg_pool2d(error, 64, stride=1)[0]
        top, left = divmod(error.argmax().item(), error.shape[1])
        box = (left, top, left + 64, top + 64)
        for j, (name, image) in enumerate(images.items()):
            image = image.resize(high.size, Image.NEAREST)
            part = image.crop(box).resize((256, 256), Image.NEAREST)
            ImageDraw.Draw(image).rectangle(box, outline="red", width=2)
            ImageDraw.Draw(sheet).text((264 * j + 4, 552 * i), name, "black", font_size=22)
            sheet.paste(image, (264 * j + 4, 552 * i + 28))
            sheet.paste(part, (264 * j + 4, 552 * i + 288))
    sheet.save(path)
    print(f"figure: {path}, its last row with the least gain")

# %% 8. Main
def load_vgg(weights):  # None where its file cannot be had
    try:
        return VGGFeatures(FEATURE_WEIGHTS, weights)
    except OSError as error:
        print(f"{error}\nSo the feature stage is left out; or take --weights random.")

def main(argv=None):
    args = get_args(argv)
    out = Path(args.out)
    if args.apply or args.test:
        model = load_checkpoint(args.init or out / "pixel.pt")[0].to(args.device)
    if args.apply:
        return apply(model, args.apply, out)
    if args.test:
        pairs = [make_pair(photo(), model.scale) for photo in find_photos(args.test, 32)]
        nets = {"bicubic": partial(ImageOps.scale, factor=model.scale)}
        return compare(nets | {"net": partial(enlarge, model)}, pairs)

    torch.manual_seed(args.seed)
    model = SrResnet(args.scale, args.nf, args.blocks)
    if args.init:
        load_checkpoint(args.init, model, strict=False)  # what fits
    model.body.requires_grad_(not args.freeze)
    model.to(args.device, memory_format=torch.channels_last)
    vgg = load_vgg(args.weights)
    photos = find_photos(args.data, max(args.size, 64), partial(dead_leaves, args.seed), 2)
    pairs = [make_pair(photo(), args.scale, side=256) for photo in photos[::20]]
    del photos[::20]  # held out: they are never trained on
    crops = Crops(photos, args.size, args.scale, args.seed)
    nets = {"bicubic": partial(ImageOps.scale, factor=args.scale)}
    compare(nets, pairs)
    print(f"a batch: {args.batch_size} of low, high", *(tuple(x.shape) for x in crops[0]))
    if (out / "log.csv").exists() and RANK == 0 and not args.resume:
        print("earlier run kept as", out.rename(f"{out}-{time.strftime('%Y%m%d-%H%M%S')}"))
    out.mkdir(parents=True, exist_ok=True)

    train(model, pixel_loss, out / "pixel.pt", args.steps, crops, pairs, args)
    nets["pixel loss"] = partial(enlarge, copy.deepcopy(model))
    if vgg and args.feature_steps:
        loss_fn = partial(feature_loss, vgg.to(args.device))
        train(model, loss_fn, out / "feature.pt", args.feature_steps, crops, pairs, args)
        nets["feature loss"] = partial(enlarge, model)
    scores = compare(nets, pairs)
    if RANK == 0:
        gain = scores["pixel loss"] - scores["bicubic"]
        draw_figure(out / "figure.png", nets, [*pairs[:2], pairs[gain[:, 0].argmin()]])

if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # for odd file names
    if WORLD > 1:
        distributed.init_process_group()
        if torch.accelerator.is_available():
            torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
    if RANK > 0:
        sys.stdout = open(os.devnull, "w")
    try:
        main()
    except (KeyboardInterrupt, OSError) as error:  # Ctrl-C; no space, no permission
        raise SystemExit(f"stopped: {str(error) or 'Ctrl-C; --resume goes on'}") from None
