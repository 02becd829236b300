"""Style transfer: redraw a photo with the colours and the strokes of a painting.

    python style.py                                              both ways, and a figure
    python style.py --style painting.jpg --content photo.jpg     your painting, your photo
    python style.py --apply photo.jpg --init out/style/network.pt         one pass, one photo

There is no right answer to learn from. There is only a loss: VGG, which is never trained, says
how far a picture is from the photo in content and from the painting in style. Two ways make it
small: to change the pixels of one picture (Gatys 2016), or to train a network that redraws any
photo in one pass (Johnson 2016). After fast.ai's lesson 14.
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
from torch import nn
from torch.utils.data import DataLoader, Dataset

from common import VGGFeatures, gram_matrix

# %% 1. Data: any photos, and one painting
def to_tensor(image):  # RGB Pillow image -> (3, H, W) float in [0, 1]
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255

def to_image(x):  # and back
    x = (255 * x).round().clamp(0, 255).byte()
    return Image.fromarray(x.permute(1, 2, 0).cpu().numpy())

class Crops(Dataset):
    """Photos, (3, size, size), without end. Number n is random, but follows from (seed, n)
    alone. A crop is the largest square of a photo, reduced, so that it shows whole things."""

    def __init__(self, paths, size, seed=0):
        self.paths, self.size, self.seed = paths, size, seed

    def __getitem__(self, n):
        rng = np.random.default_rng([self.seed, n])
        photo = open_small(self.paths[rng.integers(len(self.paths))], self.size)
        return to_tensor(ImageOps.fit(photo, (self.size, self.size), centering=rng.random(2)))

# %% 2. Loss: content and style, as VGG sees them (Gatys et al. 2016, eq. 1 and 5)
# Which layers? Early ones keep each pixel, deep ones only shapes. Content is compared early, in
# relu2_2, so that one knows the photo again after minutes of training. Style is compared in the
# last layers before the first four pools. They see 5, 14, 40 and 92 pixels: strokes of all widths.
def relative(x, y):
    """||x - y||^2 / ||y||^2 of each item, (B,). 0: equal; 1: as far off as features of zero.
    The papers divide by sizes alone: there, a layer with large numbers outweighs the others."""
    return (x - y).square().flatten(1).sum(1) / y.square().flatten(1).sum(1)

class PerceptualLoss:
    """perceptual(out, perceptual.content(photos)) -> {"content", "style", "variation", "total"},
    (B,) each, times its weight: at the default of 5, a style of 5 is as far off as Grams of zero.
    out, photos: (B, 3, H, W) in [0, 1]; painting: (1, 3, h, w). ValueError for unknown layers."""

    def __init__(self, painting, args):
        self.args = args
        layers = [args.content_layer, *args.style_layers]
        self.vgg = VGGFeatures(layers, args.weights, depth=args.vgg).to(args.device)
        # A second VGG, for photos, ends at the content layer: they need no more. That saves time.
        self.short_vgg = VGGFeatures(layers[:1], args.weights, depth=args.vgg).to(args.device)
        features = self.vgg(painting.to(args.device))
        self.grams = {name: gram_matrix(features[name]) for name in args.style_layers}
        share = len(self.grams) // len(args.style_weight)  # layers to a weight: all, or one
        self.weights = [weight / share for weight in args.style_weight * share]

    @torch.no_grad()  # the photo is given: nothing to learn
    def content(self, photos):
        return self.short_vgg(photos)[self.args.content_layer]

    def __call__(self, out, content):
        features = self.vgg(out)
        # Content: the same activations at the same places.
        distance = relative(features[self.args.content_layer], content)
        # Style: the same channels active together, anywhere, as a Gram matrix sums over places.
        style = 0
        for (layer, gram), weight in zip(self.grams.items(), self.weights, strict=True):
            style = style + weight * relative(gram_matrix(features[layer]), gram)
        # Total variation: how much neighbouring pixels differ. It is largest in noise.
        variation = out.diff(dim=2).abs().mean((1, 2, 3)) + out.diff(dim=3).abs().mean((1, 2, 3))
        parts = {"content": self.args.content_weight * distance, "style": style,
                 "variation": self.args.tv * variation}
        return {**parts, "total": sum(parts.values())}

# %% 3. First way: the pixels of one picture (Gatys et al. 2016)
def optimize(photo, perceptual, name, log, args):
    """(1, 3, H, W) -> the same, optimised; and its losses, before each step and in the end.
    It starts from the photo, as in d2l: from noise, as in the paper, takes more steps."""
    image = photo.clone() if args.start == "photo" else torch.rand_like(photo)
    optimizer = torch.optim.Adam([image.requires_grad_()])  # its pixels are the parameters
    content = perceptual.content(photo)
    totals = []
    for step in range(args.optimize_steps + 1):
        parts = perceptual(image, content)
        totals.append(parts["total"].item())
        if step % 5 == 0 or step == args.optimize_steps:
            report(log, "optimise", name, step, {k: v.item() for k, v in parts.items()})
        if step == args.optimize_steps:  # the last round only measures
            return image.detach(), totals
        # A step of Adam is about its rate for each pixel: at 0.1, 26 of 255 grey levels. Large at
        # first, for colours, small in the end. differs from the paper (L-BFGS, hundreds of steps)
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / args.optimize_steps)
        optimizer.zero_grad()
        parts["total"].sum().backward()
        optimizer.step()
        with torch.no_grad():
            image.clamp_(0, 1)

# %% 4. Second way: a network for all photos (Johnson et al. 2016, supplement, table 1)
def conv_norm(channels_in, channels_out, kernel=3, stride=1):
    """A convolution, then instance norm: each channel of each picture gets mean 0 and variance
    1, then a scale and a shift that are learned. So the photo's own contrast is gone, and the
    painting's takes its place (Ulyanov 2016). differs from the paper (batch norm: one mean for
    all photos of a batch). Borders are mirrors, as zeros would be an edge that no photo has, and
    the net would paint it. No bias: the norm would take it away again."""
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2,
                     padding_mode="reflect", bias=False)
    return nn.Sequential(conv, nn.InstanceNorm2d(channels_out, affine=True))

class ResBlock(nn.Sequential):  # x passes by; the layers learn the change (Gross, Wilber 2016)
    def forward(self, x):
        return x + super().forward(x)

class StyleNet(nn.Module):
    """(B, 3, H, W) in [0, 1] -> the same, stylised. Down to a quarter: there 4 nf channels cost
    what nf do at full size, and see four times as far. Five residual blocks, and up again."""

    def __init__(self, nf):
        super().__init__()
        self.config = {"nf": nf}
        blocks = [ResBlock(conv_norm(4 * nf, 4 * nf), nn.ReLU(), conv_norm(4 * nf, 4 * nf))
                  for _ in range(5)]
        # Enlarge, then convolve: where a transposed conv's kernels overlap, they draw a grid.
        self.layers = nn.Sequential(                             # (B, 3, H, W)
            conv_norm(3, nf, kernel=9), nn.ReLU(),               # (B, nf, H, W)
            conv_norm(nf, 2 * nf, stride=2), nn.ReLU(),          # (B, 2nf, H/2, W/2)
            conv_norm(2 * nf, 4 * nf, stride=2), nn.ReLU(),      # (B, 4nf, H/4, W/4)
            *blocks,                                             # the same
            nn.Upsample(scale_factor=2, mode="nearest"),         # (B, 4nf, H/2, W/2)
            conv_norm(4 * nf, 2 * nf), nn.ReLU(),                # (B, 2nf, H/2, W/2)
            nn.Upsample(scale_factor=2, mode="nearest"),         # (B, 2nf, H, W)
            conv_norm(2 * nf, nf), nn.ReLU(),                    # (B, nf, H, W)
            nn.Conv2d(nf, 3, 9, padding=4, padding_mode="reflect"))  # (B, 3, H, W)

    def forward(self, x):
        H, W = x.shape[2:]
        x = F.pad(x, (0, -W % 4, 0, -H % 4), "reflect")  # to whole quarters
        return self.layers(x)[..., :H, :W].float().sigmoid()  # a tanh in the paper

def learning_rate(step, steps, lr):  # up a line, down a cosine
    warmup = min(1, step / min(50, steps / 10))  # Adam's averages need it
    return lr * warmup * (0.5 + 0.5 * math.cos(math.pi * (step - 1) / steps))

def autocast(device):  # bfloat16 where it is fast; weights stay float32
    fast = device == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False)
    if device == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device, torch.bfloat16, enabled=fast)

def train(model, perceptual, path, crops, held_out, args):
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    numbers = range(args.steps * args.batch_size)
    batches = DataLoader(crops, args.batch_size, sampler=numbers, num_workers=args.workers)
    clock = time.time()
    for step, photos in enumerate(batches, start=1):
        photos = photos.to(args.device)
        with autocast(args.device):
            parts = perceptual(model(photos), perceptual.content(photos))
        loss = parts["total"].mean()
        optimizer.param_groups[0]["lr"] = learning_rate(step, args.steps, args.lr)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), math.inf)  # measured, not clipped
        check(norm.isfinite(), f"step {step}: the gradient is {norm}: lower --lr")
        optimizer.step()
        if step % 20 == 0:
            seconds = (time.time() - clock) / step * (args.steps - step)
            print(f"step {step:6}/{args.steps} | loss {loss:.4f} | {seconds:.0f} s left")
        if step % args.eval_every == 0 or step == args.steps:
            parts = evaluate(model, perceptual, held_out)
            report(path.with_name("log.csv"), "network", "held out", step, parts)
            with open(f"{path}.tmp", "wb") as file:
                torch.save({"model": model.state_dict(), "step": step, "config": model.config,
                            "args": vars(args)}, file)
            os.replace(f"{path}.tmp", path)  # whole, or not there
            print(f"eval {step:6}/{args.steps} | loss {parts['total']:.4f} | saved {path}")

# %% 5. Which is nearer? The loss of both, beside that of the photo as it is
@torch.no_grad()  # instance norm is the same in training and in use: no model.eval()
def evaluate(model, perceptual, photos):
    """{part of the loss: its mean over model's pictures of photos, a list of (1, 3, H, W)}."""
    rows = [perceptual(model(photo), perceptual.content(photo)) for photo in photos]
    return {part: sum(row[part] for row in rows).item() / len(rows) for part in rows[0]}

def report(log, stage, photo, step, parts):  # a line to read, and a row of log.csv
    words = [f"{part} {value:.3f}" for part, value in parts.items()]
    print(f"{stage:8} {photo:8} {step:5}", *words, sep=" | ")
    with open(log, "a") as file:
        file.write("" if file.tell() else "stage,photo,step,content,style,variation,total\n")
        print(stage, photo, step, *parts.values(), sep=",", file=file)

def compare(name, photo, model, perceptual, log, args):
    """Redraw a photo, (1, 3, H, W), in both ways, or by its pixels alone: {title: image}."""
    optimised, totals = optimize(photo, perceptual, name, log, args)
    images = {"photo": photo, "optimised": optimised}
    if args.steps or args.init:
        parts = evaluate(model, perceptual, [photo])
        report(log, "network", name, args.steps, parts)
        beaten = sum(total > parts["total"] for total in totals[1:])
        print(f"the network is ahead of {beaten} of {args.optimize_steps} optimiser's steps")
        images["network"] = model(photo).detach()
    return {title: to_image(image[0]) for title, image in images.items()}

# %% 6. Use it: the lesson in short, then your photos
def run(args, out):
    torch.manual_seed(args.seed)
    model = load_checkpoint(args.init) if args.init else StyleNet(args.nf)
    layout = torch.contiguous_format if args.device == "mps" else torch.channels_last
    model.to(args.device, memory_format=layout)  # mps: wrong gradients
    painting = open_image(args.style or Path(__file__).parent / "tests/data/painting.png")
    painting = ImageOps.cover(painting, (args.style_size, args.style_size))
    try:
        perceptual = PerceptualLoss(to_tensor(painting)[None], args)
    except ValueError as error:  # no such layer
        raise SystemExit(str(error)) from None
    size = (args.content_size, args.content_size)
    photos = {}
    if args.content:
        content = ImageOps.cover(open_image(args.content), size)
        photos["your"] = to_tensor(content)[None].to(args.device)
    if args.steps:
        paths = find_photos(args.data, out, least=4)
        every = min(20, (len(paths) + 1) // 2)  # one in twenty is held out, up to four serve
        squares = [ImageOps.fit(open_image(p), size) for p in paths[every // 2::every][:4]]
        held_out = [to_tensor(photo)[None].to(args.device) for photo in squares]
        del paths[every // 2::every]
        crops = Crops(paths, args.size, args.seed)
    out = out.resolve() if out.is_symlink() else out
    log = out / "log.csv"
    if log.exists():
        print("earlier run kept as", out.rename(f"{out}-{time.strftime('%Y%m%d-%H%M%S')}"))
    out.mkdir(parents=True, exist_ok=True)
    if args.steps:
        report(log, "photo", "held out", 0, evaluate(nn.Identity(), perceptual, held_out))
        train(model, perceptual, out / "network.pt", crops, held_out, args)
        held_out.sort(key=lambda photo: evaluate(model, perceptual, [photo])["total"])
        photos |= {"best": held_out[0], "worst": held_out[-1]}
    rows = [compare(name, photos[name], model, perceptual, log, args) for name in photos]
    for title, image in rows[0].items():
        image.save(out / f"{title}.png")
    draw_figure(out / "figure.png", painting, rows, args.content_size)

@torch.no_grad()
def apply(model, paths, out):
    """Stylise files into out/<stem>_styled.png. A bad one does not stop the others. A photo is
    done whole, as instance norm looks at all of it; so its size is bounded by the memory."""
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    for path in paths:
        target = out / f"{Path(path).stem}_styled.png"
        try:
            if target.exists():
                raise OSError(f"{target} exists: move it away")
            photo = open_image(path)
            if min(photo.size) < 5:
                raise OSError("a side is below 5 px, too small for mirrors")
            x = to_tensor(photo)[None].to(next(model.parameters()).device)
            styled = to_image(model(x)[0])
            styled.save(f"{target}.tmp", "PNG", icc_profile=photo.info.get("icc_profile"))
            os.replace(f"{target}.tmp", target)
            print(f"{path} -> {target}, {styled.width} x {styled.height}")
        except (OSError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            failed.append(f"not stylised: {path}: {str(error)[:200] or 'no memory'}")
    check(not failed, "\n".join(failed))

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

def load_checkpoint(path):  # the model that train saved
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        model = StyleNet(**checkpoint["config"])
        model.load_state_dict(checkpoint["model"])
    except Exception as error:
        raise SystemExit(f"{path} is no checkpoint for this: {error!r:.300}") from None
    print(f"loaded {path}")
    return model

def draw_figure(path, painting, rows, side):  # each picture cut to a square
    rows = [{"painting": painting, **rows[0]}, *rows[1:]]
    width, height = side + 8, side + 36
    sheet = Image.new("RGB", (width * len(rows[0]), height * len(rows)), "white")
    for y, row in zip(range(28, sheet.height, height), rows, strict=True):
        for n, (title, image) in enumerate(row.items(), start=len(rows[0]) - len(row)):
            ImageDraw.Draw(sheet).text((n * width + 4, y - 28), title, "black", font_size=22)
            sheet.paste(ImageOps.fit(image, (side, side)), (n * width + 4, y))
    sheet.save(path)
    print(f"figure: {path}")

# %% 8. Settings and main
def get_args(argv=None):
    found = torch.accelerator.is_available()
    device = torch.accelerator.current_accelerator().type if found else "cpu"
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--data", default="imagenet_sample", help="folder of photos")
    add("--style", help="the painting; none: tests/data/painting.png")
    add("--content", help="photo to redraw in the end")
    add("--size", type=int, default=128, help="side of a crop")
    add("--style-size", type=int, default=256, help="of the painting: scales its strokes")
    add("--content-size", type=int, default=256, help="of photos in the end")
    add("--nf", type=int, default=16, help="feature channels")
    add("--vgg", type=int, default=16, choices=(16, 19), help="layers (Gatys: 19)")
    add("--weights", default="included", choices=("included", "torchvision", "random"))
    add("--content-layer", default="relu2_2", help="where VGG compares content")
    add("--style-layers", nargs="+", metavar="LAYER", help="where it compares style",
        default=["relu1_2", "relu2_2", "relu3_3", "relu4_3"])
    add("--content-weight", type=float, default=1, help="of the content loss")
    add("--style-weight", type=float, nargs="+", default=[5], help="one for all, or one a layer")
    add("--tv", type=float, default=0.1, help="of the total variation")
    add("--steps", type=int, default=300, help="of training; 0: optimise --content alone")
    add("--optimize-steps", type=int, default=20, help="on the pixels of a photo")
    add("--start", default="photo", choices=("photo", "noise"), help="of these pixels")
    add("--batch-size", type=int, default=1, help="crops a step")
    add("--lr", type=float, default=1e-3, help="highest learning rate")
    add("--seed", type=int, default=0, help="of weights and crops")
    add("--eval-every", type=int, default=150, help="steps between validations")
    add("--device", default=device, choices=sorted({"cpu", device}))
    add("--workers", type=int, default=0, help="to load data")
    add("--out", default="out/style", help="where a run writes")
    add("--init", help="checkpoint to use, or to start from")
    add("--apply", nargs="+", metavar="PHOTO", help="only stylise these")
    args = parser.parse_args(argv)
    check(args.steps or args.content or args.apply, "--steps 0 takes --content")
    check(len(args.style_weight) in (1, len({*args.style_layers})),
          f"--style-weight takes one number, or {len({*args.style_layers})}: one a layer")
    least = min(args.size // 48, args.content_size // 48, args.style_size // 48, args.nf,
                args.batch_size, args.eval_every)
    check(min(least - 1, args.seed, args.steps, args.optimize_steps) >= 0 < args.lr,
          "at least 48 for sizes, 1 for --nf, --batch-size, --eval-every; --lr above 0")
    return args

def main(argv=None):
    args = get_args(argv)
    out = Path(args.out)
    if not args.apply:
        return run(args, out)
    model = load_checkpoint(args.init or out / "network.pt").to(args.device)
    return apply(model, args.apply, out)

if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, OSError) as error:
        raise SystemExit(f"stopped: {(str(error) or 'Ctrl-C').splitlines()[-1]}") from None
