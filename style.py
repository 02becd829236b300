"""Style transfer: redraw a photo with the colours and the strokes of a painting.

    python style.py --style starry_night.jpg --content photo.jpg --data imagenet_sample
    python style.py --apply photo.jpg --init out/style/network.pt          stylise a photo

A network learns to do it in one pass (Johnson 2016). Then the pixels of single photos are
optimised by the same loss (Gatys 2016), to see what it should have done. fast.ai's lesson 14,
simplified: a small net with instance norm (Ulyanov 2016) and two minutes' training.
"""
import argparse
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
from PIL import Image, ImageDraw, ImageOps
from torch import nn
from torch.utils.data import DataLoader, Dataset

from common import VGGFeatures, gram_matrix

# %% 1. Settings
def get_args(argv=None):
    found = torch.accelerator.is_available()
    device = torch.accelerator.current_accelerator().type if found else "cpu"
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument_group("data").add_argument
    add("--data", default="imagenet_sample", help="folder of photos to train on")
    add("--style", help="the painting (its upper right square); none: generated")
    add("--content", help="photo to stylise in the end; none: generated")
    add("--size", type=int, default=128, help="side of the photos to train on")
    add("--content-size", type=int, default=192, help="short side of photos in the end")
    add("--seed", type=int, default=0, help="of weights, crops, generated images")
    add = parser.add_argument_group("model and training").add_argument
    add("--nf", type=int, default=16, help="feature channels at full size (Johnson: 32)")
    add("--weights", default="included", choices=("included", "torchvision", "random"))
    add("--content-layer", default="relu2_2", help="where VGG compares content")
    add("--style-layers", nargs="+", metavar="LAYER", help="where it compares style",
        default=["relu1_2", "relu2_2", "relu3_3", "relu4_3"])
    add("--content-weight", type=float, default=1, help="of the content loss")
    add("--style-weight", type=float, default=5, help="of the style loss")
    add("--tv", type=float, default=0.1, help="weight of the total variation")
    add("--steps", type=int, default=180, help="training steps of the network")
    add("--optimize-steps", type=int, default=25, help="steps on the pixels of a photo")
    add("--start", default="photo", choices=("photo", "noise"), help="of these pixels")
    add("--batch-size", type=int, default=2, help="photos a step")
    add("--lr", type=float, default=3e-3, help="highest learning rate")
    add("--eval-every", type=int, default=90, help="steps between validations")
    add("--device", default=device, choices={"cpu", device})
    add("--resume", action="store_true", help="the same command again: go on")
    add = parser.add_argument_group("use").add_argument
    add("--out", default="out/style", help="folder for everything that a run writes")
    add("--init", help="checkpoint to use, or to start training from")
    add("--apply", nargs="+", metavar="PHOTO", help="only stylise these with --init")
    return parser.parse_args(argv)

def check(condition, sentence):  # for what the user can mend: no traceback
    if not condition:
        raise SystemExit(sentence)

# %% 2. Data: photos and one painting; where there are none, generated ones
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

def noise(rng, side, power):
    """(side, side, 1) in [0, 1]: 1/f noise, the smoother the higher its power."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    frequency[0, 0] = np.inf
    phases = np.exp(2j * np.pi * rng.random(frequency.shape))
    image = np.fft.irfft2(phases / frequency**power, (side, side))[..., None]
    return (image - image.min()) / np.ptp(image)

def landscape(seed, number, side=256):
    """A Pillow image with things to recognise: a sky with clouds, a sun, some ridges."""
    rng = np.random.default_rng([seed, number])
    y, x = np.mgrid[:side, :side][..., None] / side
    top, bottom, land = rng.uniform(0.1, 0.9, (3, 3))
    image = top + y * (bottom - top)
    clouds = (2.5 * noise(rng, side, 1.7) - 1.2).clip(0, 1)
    distance = np.hypot(x - rng.uniform(0.1, 0.9), y - rng.uniform(0.1, 0.4))
    sun = np.exp(1 - (distance / 0.08).clip(1))  # a disk with a glow
    for cover in (clouds, sun):
        image = image + cover * (rng.uniform(0.8, 1, 3) - image)
    for depth in np.linspace(0.2, 1, rng.integers(3, 6)):  # each ridge nearer, and darker
        ridge = 0.55 + 0.45 * depth - 0.4 * noise(rng, side, 1.7)[0]
        colour = ((1.2 - depth) * land + 0.1 * bottom) * (0.6 + 0.8 * noise(rng, side, 1.2))
        image = np.where(y > ridge, colour, image)
    return Image.fromarray((255 * image.clip(0, 1)).astype(np.uint8))

def painting(seed, side=256):
    """A Pillow image of strokes in a few hues that follow a flow, coarse ones first."""
    rng = np.random.default_rng(seed)
    hues = 255 * rng.random((5, 3))
    waves = 12 * np.exp(2j * np.pi * rng.random(6))
    image = Image.new("RGB", (2 * side, 2 * side))
    for width in (0.06, 0.03, 0.016):
        points = [(1.4 * rng.random((int(1 / width**2), 2)) - 0.2) @ (1, 1j)]  # x + iy
        for _ in range(10):  # a smooth random flow: the mean of some waves
            flow = np.cos(np.multiply.outer(points[-1], waves).real).mean(-1)
            points.append(points[-1] + width * np.exp(2j * np.pi * flow))
        for stroke, angle in zip(np.stack(points, axis=1), flow, strict=True):
            hue = hues[int(6 * angle + rng.normal(0, 0.5)) % 5] * rng.normal(1, 0.2)
            line = (2 * side * stroke).view(float).tolist()
            ImageDraw.Draw(image).line(line, tuple(hue.clip(0, 255).astype(int)),
                                       int(width * side), joint="curve")
    return image.resize((side, side), Image.BOX)

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

def to_tensor(image):  # RGB Pillow image -> (3, H, W) float in [0, 1]
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255

def to_image(x):  # (3, H, W) in [0, 1] -> RGB Pillow image
    return Image.fromarray((x * 255).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy())

class Crops(Dataset):
    """Photos as squares, (3, size, size). Number n follows from (seed, n) alone."""

    def __init__(self, photos, size, seed=0):
        self.photos, self.size, self.seed = photos, size, seed

    def __getitem__(self, n):
        rng = np.random.default_rng([self.seed, n])
        photo = self.photos[rng.integers(len(self.photos))]()
        return to_tensor(ImageOps.fit(photo, (self.size, self.size), centering=rng.random(2)))

# %% 3. Model: the image transformation network (Johnson et al. 2016, supplement, table 1)
def conv_norm(before, after, kernel=3, stride=1):
    return nn.Sequential(  # zeros would mark the borders, so it reflects
        nn.Conv2d(before, after, kernel, stride, kernel // 2, padding_mode="reflect"),
        nn.InstanceNorm2d(after, affine=True))  # differs from the paper: Ulyanov 2016

class ResBlock(nn.Sequential):  # no ReLU after the sum (Gross and Wilber 2016)
    def forward(self, x):
        return x + super().forward(x)

class StyleNet(nn.Module):
    """(B, 3, H, W) in [0, 1] -> the same, stylised. It is the net of super-resolution with a
    way down to a quarter in front, where convs cost less and see more, and another loss."""

    def __init__(self, nf):
        super().__init__()
        self.config = {"nf": nf}
        conv = partial(conv_norm, 4 * nf, 4 * nf)
        self.layers = nn.Sequential(                                 # (B, 3, H, W)
            conv_norm(3, nf, kernel=9), nn.ReLU(),                   # (B, nf, H, W)
            conv_norm(nf, 2 * nf, stride=2), nn.ReLU(),              # (B, 2nf, H/2, W/2)
            conv_norm(2 * nf, 4 * nf, stride=2), nn.ReLU(),          # (B, 4nf, H/4, W/4)
            *[ResBlock(conv(), nn.ReLU(), conv()) for _ in range(5)],  # the same
            nn.Upsample(scale_factor=2),                             # (B, 4nf, H/2, W/2)
            conv_norm(4 * nf, 2 * nf), nn.ReLU(),                    # (B, 2nf, H/2, W/2)
            nn.Upsample(scale_factor=2),                             # (B, 2nf, H, W)
            conv_norm(2 * nf, nf), nn.ReLU(),                        # (B, nf, H, W)
            nn.Conv2d(nf, 3, 9, padding=4, padding_mode="reflect"))  # (B, 3, H, W)

    def forward(self, x):
        H, W = x.shape[2:]
        x = F.pad(x, (0, -W % 4, 0, -H % 4), "replicate")  # to a quarter and back
        return self.layers(x)[..., :H, :W].sigmoid()  # the paper: a scaled tanh, the same

# %% 4. Loss: content and style as VGG sees them (Gatys 2016, eq. 1 and 5)
def relative(x, y):
    """||x - y||^2 / ||y||^2 of each item, (B,). differs from the papers: no layer outweighs."""
    return (x - y).square().flatten(1).sum(1) / y.square().flatten(1).sum(1)

class PerceptualLoss:
    """perceptual(out, photos) -> {"content", "style", "variation": (B,)}, each weighted. The
    loss is their sum. out, photos: (B, 3, H, W) in [0, 1]; painting: (1, 3, h, w)."""

    def __init__(self, painting, args, weights):
        self.args = args
        layers = [args.content_layer, *args.style_layers]
        self.vgg = VGGFeatures(layers, weights).to(args.device)
        self.shallow = VGGFeatures(layers[:1], weights).to(args.device)  # enough for photos
        features = self.vgg(painting)
        self.grams = {layer: gram_matrix(features[layer]) for layer in args.style_layers}

    def __call__(self, out, photos):
        with torch.no_grad():
            target = self.shallow(photos)[self.args.content_layer]
        features = self.vgg(out)
        content = relative(features[self.args.content_layer], target)
        # A Gram matrix sums over positions: it knows what occurs together, not where.
        style = [relative(gram_matrix(features[k]), gram) for k, gram in self.grams.items()]
        variation = sum(out.diff(dim=dim).abs().mean((1, 2, 3)) for dim in (2, 3))
        return {"content": self.args.content_weight * content,
                "style": self.args.style_weight * torch.stack(style).mean(0),
                "variation": self.args.tv * variation}

# %% 5. Metric and baseline: the loss itself, beside that of the photo as it is
@torch.no_grad()
def evaluate(net, perceptual, x):
    """{part of the loss: its mean over net's pictures of the photos x, (B, 3, H, W)}."""
    return {name: part.mean() for name, part in perceptual(net(x), x).items()}

# %% 6. Training
def load_checkpoint(path, net=None):
    """Fill net, or a new one, from what train wrote. Return it, and the whole dict."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        net = net or StyleNet(**checkpoint["config"])
        net.load_state_dict(checkpoint["model"])
        print(f"loaded {path} (step {checkpoint['step']})")
        return net, checkpoint
    except Exception as error:  # no file, another script's, other layers: all kinds
        raise SystemExit(f"{path} is no checkpoint for this: {error!r:.200}") from None

def report(log, stage, step, parts):  # prints the parts of the loss, and appends them to log
    values = [part.item() for part in parts.values()]
    words = [f"{name} {value:.3f} |" for name, value in zip(parts, values, strict=True)]
    print(f"{stage:8} {step:4} |", *words, f"total {sum(values):.3f}")
    with open(log, "a") as file:
        print(stage, step, *values, sum(values), sep=",", file=file)

def train(model, perceptual, path, crops, photos, args):
    """Johnson: train a network on many photos. Every --eval-every steps validate and save."""
    optimizer = torch.optim.Adam(model.parameters())
    start = 0
    if args.resume and path.exists():
        checkpoint = load_checkpoint(path, model)[1]
        optimizer.load_state_dict(checkpoint["optimizer"])
        start = checkpoint["step"]
    rest = range(start * args.batch_size, args.steps * args.batch_size)
    batches = DataLoader(crops, args.batch_size, sampler=rest)
    clock = time.time()
    for step, x in enumerate(batches, start + 1):
        x = x.to(args.device)
        loss = sum(perceptual(model(x), x).values()).mean()
        cosine = 0.5 + 0.5 * math.cos(math.pi * step / args.steps)  # after a short warm-up
        optimizer.param_groups[0]["lr"] = args.lr * min(1, step / 50) * cosine
        optimizer.zero_grad()
        loss.backward()
        check(loss.isfinite(), f"the loss is {loss}: lower --lr; {path} is still good")
        optimizer.step()
        if step % 20 == 0:
            left = (time.time() - clock) / (step - start) * (args.steps - step)
            print(f"step {step:6}/{args.steps} | loss {loss:.4f} | {left:.0f} s left")
        if step % args.eval_every == 0 or step == args.steps:
            data = io.BytesIO()
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                        "step": step, "config": model.config, "args": vars(args)}, data)
            Path(f"{path}.tmp").write_bytes(data.getvalue())
            os.replace(f"{path}.tmp", path)  # it has its name only when it is whole
            report(path.with_name("log.csv"), "network", step, evaluate(model, perceptual, photos))

def optimize(x, perceptual, log, args):
    """Gatys: the parameters are the pixels of one picture. Return it, and all its losses."""
    image = x.clone() if args.start == "photo" else torch.rand_like(x)
    optimizer = torch.optim.Adam([image.requires_grad_()])
    losses = []
    for step in range(args.optimize_steps + 1):
        parts = perceptual(image, x)
        loss = sum(parts.values()).mean()
        losses.append(loss.item())
        if step % 10 == 0:
            report(log, "optimise", step, parts)
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / args.optimize_steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        image.data.clamp_(0, 1)
    return image.detach(), losses

# %% 7. Use it
@torch.no_grad()
def apply(model, paths, out):
    """Stylise files into out/<stem>_styled.png; whole, as instance norm looks at all of it."""
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    for path in paths:
        target = out / f"{Path(path).stem}_styled.png"
        try:
            if target.exists():
                raise OSError(f"{target} exists: move it away, or give another --out")
            photo = open_image(path)
            x = to_tensor(photo)[None].to(next(model.parameters()).device)
            styled = to_image(model(x)[0])
            styled.save(f"{target}.tmp", "PNG", icc_profile=photo.info.get("icc_profile"))
            os.replace(f"{target}.tmp", target)
            print(f"{path} -> {target}, {styled.width} x {styled.height}, RGB on white")
        except OSError as error:
            failed.append(f"not stylised: {error}")
    check(not failed, "\n".join(failed))

def compare(x, model, perceptual, log, args):
    """Stylise x, (1, 3, H, W), both ways. Return {title: image}."""
    optimised, losses = optimize(x, perceptual, log, args)
    parts = evaluate(model, perceptual, x)
    report(log, "network", args.steps, parts)
    steps = sum(loss > sum(parts.values()).item() for loss in losses)
    print(f"the network is as good as {steps} steps of the optimiser")
    pictures = {"photo": x, "optimised": optimised, "network": model(x)}
    return {title: to_image(picture[0]) for title, picture in pictures.items()}

def draw_figure(path, rows):
    """A row a dict {title: image}, each image cut to a square."""
    sheet = Image.new("RGB", (264 * 3, 292 * len(rows)), "white")
    for i, row in enumerate(rows):
        for j, (title, image) in enumerate(row.items()):
            ImageDraw.Draw(sheet).text((264 * j + 4, 292 * i), title, "black", font_size=22)
            sheet.paste(ImageOps.fit(image, (256, 256)), (264 * j + 4, 292 * i + 28))
    sheet.save(path)
    print(f"figure: {path}, its last row with the highest loss")

# %% 8. Main
def load_loss(painting, args):
    try:
        return PerceptualLoss(painting, args, args.weights)
    except ValueError as error:  # no such layer
        raise SystemExit(str(error)) from None

def main(argv=None):
    args = get_args(argv)
    out = Path(args.out)
    if args.apply:
        model = load_checkpoint(args.init or out / "network.pt")[0].to(args.device)
        return apply(model, args.apply, out)
    torch.manual_seed(args.seed)
    model = StyleNet(args.nf)
    if args.init:
        load_checkpoint(args.init, model)
    model.to(args.device, memory_format=torch.channels_last)
    style = open_image(args.style) if args.style else painting(args.seed)
    style = ImageOps.fit(style, (256, 256), centering=(1, 0))
    perceptual = load_loss(to_tensor(style)[None].to(args.device), args)

    photos = find_photos(args.data, args.size // 2, partial(landscape, args.seed), 2)
    square = (args.content_size, args.content_size)
    unseen = [to_tensor(ImageOps.fit(photo(), square)) for photo in photos[:160:20]]
    unseen = torch.stack(unseen).to(args.device)
    del photos[::20]  # they are never trained on
    crops = Crops(photos, args.size, args.seed)
    print(f"a batch: {args.batch_size} of {tuple(crops[0].shape)}")
    if (out / "log.csv").exists() and not args.resume:
        print("earlier run kept as", out.rename(f"{out}-{time.strftime('%Y%m%d-%H%M%S')}"))
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "log.csv").exists():
        (out / "log.csv").write_text("stage,step,content,style,variation,total\n")
    report(out / "log.csv", "photos", 0, evaluate(nn.Identity(), perceptual, unseen))
    train(model, perceptual, out / "network.pt", crops, unseen, args)
    model.requires_grad_(False)
    content = open_image(args.content) if args.content else landscape(args.seed, 400)
    content = to_tensor(ImageOps.cover(content, square)).to(args.device)
    losses = sum(perceptual(model(unseen), unseen).values())
    rows = [compare(x[None], model, perceptual, out / "log.csv", args)
            for x in (content, unseen[losses.argmin()], unseen[losses.argmax()])]
    rows[0]["optimised"].save(out / "optimised.png")
    draw_figure(out / "figure.png", [{"painting": style}, *rows])

if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # for odd file names
    try:
        main()
    except (KeyboardInterrupt, OSError) as error:  # Ctrl-C; no space, no permission
        raise SystemExit(f"stopped: {str(error) or 'Ctrl-C; --resume goes on'}") from None
