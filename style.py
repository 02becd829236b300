"""Style transfer: redraw a photo with the colours and the strokes of a painting.

    python style.py --style starry_night.jpg --content photo.jpg --data imagenet_sample
    python style.py --apply photo.jpg --init out/style/network.pt           stylise photos

One photo by optimising its pixels (Gatys 2016), then any photo in one pass by a net trained for it
(Johnson 2016), with instance norm (Ulyanov 2016) and Muon (Jordan 2024): fast.ai's lesson 14.
At 256 px, after 19 min on two cores (torch 2.13.0): equal to 16 optimiser steps, 58 times as fast.
Simplified from the papers: Adam for L-BFGS, nearest + conv for transposed conv, relative losses.
"""
import argparse, math, os, signal, time
from pathlib import Path
import numpy as np, torch
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from torch import distributed as dist, nn
from torch.utils.data import DataLoader, Dataset
from common import VGGFeatures, gram_matrix
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # by torchrun
# %% 1. Settings
def get_args(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--data", default="imagenet_sample", help="folder to train on; README has the layouts")
    add("--style", default="", help="picture with the style (its upper right); none: generated")
    add("--content", default="", help="photo to stylise in the end; none: generated")
    add("--out", default="out/style", help="folder for everything that a run writes")
    add("--init", help="checkpoint to use, or to start training from")
    add("--apply", nargs="+", default=[], metavar="PHOTO", help="stylise photos with --init, stop")
    add("--max-side", type=int, default=2048, help="with --apply: larger photos are reduced to it")
    add("--resume", action="store_true", help="go on with the run in --out, with its settings")
    add("--steps", type=int, default=240, help="training steps of the network")
    add("--optimize-steps", type=int, default=60, help="steps to optimise one photo's pixels")
    add("--batch-size", type=int, default=1, help="crops a step, on each device")
    add("--size", type=int, default=192, help="short side of the photos, side of training crops")
    add("--style-size", type=int, default=256, help="side of the style picture")
    add("--nf", type=int, default=16, help="feature channels at full size (Johnson: 32)")
    add("--padding", choices=("reflect", "crop"), default="reflect", help="crop: Johnson's")
    add("--norm", choices=("instance", "batch"), default="instance", help="batch: for batches >= 4")
    add("--vgg", type=int, choices=(16, 19), default=16, help="depth of the VGG")
    add("--content-layer", default="relu2_2", help="VGG layer of the content loss")
    add("--style-layers", nargs="+", default=["relu1_2", "relu2_2", "relu3_3", "relu4_3"],
        metavar="LAYER", help="VGG layers of the style loss")
    add("--style-weight", type=float, default=25, help="of the style loss, where content has 1")
    add("--tv", type=float, default=0.1, help="weight of total variation")
    add("--lr", type=float, default=1e-2, help="highest learning rate")
    add("--keep", type=float, default=1, help="random fraction of the photos to use")
    add("--seed", type=int, default=0, help="of the weights, the crops, the generated images")
    add("--device", default="auto", help="auto, cpu, cuda, mps ...")
    add("--workers", type=int, default=0, help="processes that load data")
    add("--eval-every", type=int, default=80, help="steps between validations, each saved")
    add("--weights", choices=("pretrained", "random"), default="pretrained", help="of VGG / ResNet")
    args = parser.parse_args(argv, argparse.Namespace(script="style"))
    for name, least in dict(steps=1, optimize_steps=1, batch_size=1, size=32, style_size=32, nf=1,
                            max_side=32, style_weight=0, tv=0, lr=1e-9, keep=1e-9,
                            seed=0, workers=0, eval_every=1).items():
        check(getattr(args, name) >= least, f"--{name.replace('_', '-')} takes {least} or more")
    check(args.init or not args.apply, "--apply needs --init CHECKPOINT")
    args.style_layers = " ".join(args.style_layers)  # a checkpoint's settings are plain types
    return args
def check(condition, sentence):  # ends the run, without a traceback, where the user can mend it
    if not condition:
        raise SystemExit(sentence)
# %% 2. Data: photos, one painting; where there are none, generated ones
def open_image(path):
    """An image file, upright and of 8 bits, in mode L, RGB or RGBA; SystemExit if unreadable."""
    try:
        im = ImageOps.exif_transpose(Image.open(path))
        if im.mode.startswith("I"):  # 16-bit grey: Pillow's conversion would clip it at 255
            im = Image.fromarray((np.asarray(im) / 257).clip(0, 255).astype(np.uint8))
        return im.convert("RGBA" if im.has_transparency_data else "L" if im.mode in "1L" else "RGB")
    except Exception as error:  # every decoder of Pillow raises its own kinds
        raise SystemExit(f"cannot read {path} as an image ({error})") from None
def dead_leaves(rng, side):
    """(side, side, 3) uint8 with the statistics of a photo: opaque leaves (Lee et al. 2001)."""
    canvas, smallest = 2 * side, 2.0 * rng.choice([2, 4, 8])  # twice the size, for smooth edges
    hues, ring = 255 * rng.random((rng.integers(2, 6), 3)), np.exp(1j * np.arange(0, 6.28, 0.26))
    image = Image.new("RGB", (canvas, canvas))
    for _ in range(int((canvas / smallest)**2 / 8)):  # enough to cover the canvas three times
        r = smallest * rng.random() ** -0.5           # density r^-3: the same area at every scale
        stretch, turn = 10 ** rng.uniform(0, 0.6), np.exp(2j * math.pi * rng.random())
        leaf = r * turn * (stretch * ring.real + 1j * ring.imag / stretch)  # disk to blade, x + iy
        leaf += canvas * (rng.random() + 1j * rng.random())
        colour = hues[rng.integers(len(hues))] * rng.random()  # few hues, any brightness
        ImageDraw.Draw(image).polygon(leaf.view(float).tolist(), fill=tuple(colour.astype(int)))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 2)))  # many photos are soft
    return np.asarray(image.resize((side, side), Image.BOX))
def load_photos(folder, size, keep=1.0, seed=0, room=2 * 2**30):
    """Photos below a folder, a random fraction: [(path, (H, W, 3) uint8, or None without room)].
    Decoded now, lest a bad one is met an hour into training, and kept while room (bytes) lasts."""
    if folder == "imagenet_sample" and not Path(folder).exists():
        print(f"no {folder} here: generated images take its place. To get it:\ngit clone --depth "
              f"1 https://github.com/EliSchwartz/imagenet-sample-images {folder}")
        return [(i, dead_leaves(np.random.default_rng([seed, i]), 256 + size)) for i in range(400)]
    photos, skipped, rng = [], [], np.random.default_rng(seed)
    for path in sorted(p for p in Path(folder).rglob("*") if p.is_file() and ".git" not in p.parts):
        if rng.random() < keep:
            try:
                photo = np.asarray(open_image(path).convert("RGB"))
                check(min(photo.shape[:2]) >= size, f"{path} has a side below {size} px")
                room -= photo.nbytes
                photos.append((path, photo if room > 0 else None))
            except SystemExit as sentence:
                skipped.append(sentence)
    print(f"{folder}: {len(photos)} photos, {len(skipped)} files skipped", *skipped[:1], sep="; ")
    check(photos, f"{folder} holds no usable photo: name a folder that does")
    return photos
def to_tensor(image):  # (H, W, 3) uint8 array or RGB Pillow image -> (3, H, W) float in [0, 1]
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
def to_image(x):  # (3, H, W) in [0, 1] -> (H, W, 3) uint8 array, rounded and clipped
    return (x * 255).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
def painting(rng, side):
    """A generated painting, (side, side, 3) uint8: strokes of a few hues that follow a flow."""
    canvas, hues = 2 * side, 255 * rng.random((5, 3))
    waves, phases = 12 * np.exp(2j * math.pi * rng.random(6)), 2 * math.pi * rng.random(6)
    draw = ImageDraw.Draw(image := Image.new("RGB", (canvas, canvas)))
    for width in (0.06, 0.03, 0.016):  # coarse strokes first, as a painter would
        path = [(1.4 * rng.random((int(1 / width**2), 2)) - 0.2) @ (1, 1j)]  # points z = x + iy
        for _ in range(10):  # a smooth random flow: the mean of some waves
            flow = np.cos(np.multiply.outer(path[-1], waves).real + phases).mean(-1)
            path.append(path[-1] + width * np.exp(2j * math.pi * flow))
        for stroke, f in zip(np.stack(path, axis=1), flow):
            hue = hues[int(6 * f + rng.normal(0, 0.5)) % 5] * rng.normal(1, 0.2)
            draw.line((canvas * stroke).view(float).tolist(), tuple(hue.clip(0, 255).astype(int)),
                      int(width * canvas / 2), "curve")
    return np.asarray(image.resize((side, side), Image.BOX))
def load_picture(path, size, generate, rng):
    """(1, 3, H, W) with a short side of `size`: from a file, or generated without a path."""
    image = open_image(path).convert("RGB") if path else Image.fromarray(generate(rng, size))
    check(min(image.size) >= 32, f"{path} has a side below 32 px: take a larger picture")
    method = Image.BOX if min(image.size) > size else Image.BICUBIC  # BOX averages areas
    return to_tensor(ImageOps.cover(image, (size, size), method))[None]
class Crops(Dataset):
    """Photos cut to squares: sample n, (3, size, size), depends on (seed, n) alone. So any number
    of workers gives the same run, and rank r of several takes every world-th n."""
    def __init__(self, photos, size, seed=0):
        self.photos, self.size, self.seed = photos, size, seed
    def __getitem__(self, n):
        rng = np.random.default_rng([self.seed, n])
        path, photo = self.photos[rng.integers(len(self.photos))]
        photo = open_image(path).convert("RGB") if photo is None else Image.fromarray(photo)
        photo = ImageOps.fit(photo, (self.size, self.size), centering=rng.random(2))
        return to_tensor(photo if rng.random() < 0.5 else ImageOps.mirror(photo))
# %% 3. Model: the image transformation network (Johnson et al. 2016, supplement, table 1)
class ResidualBlock(nn.Sequential):
    def forward(self, x):
        out = super().forward(x)  # without padding 2 px less on each side: pad < 0 crops x alike
        return out + nn.functional.pad(x, [(out.shape[2] - x.shape[2]) // 2] * 4)
class StyleNet(nn.Module):
    """(B, 3, H, W) in [0, 1] -> the same size, stylised. Zeros would mark the borders, so each conv
    reflects; "crop", the paper's: 40 px of reflected photo around, used up by unpadded blocks."""
    def __init__(self, nf, padding, norm):
        super().__init__()
        self.margin, pad = {"reflect": (0, 1), "crop": (40, 0)}[padding]  # 40: 10 convs x 4 px
        norms = {"instance": lambda c: nn.InstanceNorm2d(c, affine=True), "batch": nn.BatchNorm2d}
        def conv(before, after, kernel, stride=1, pad=1):
            return [nn.Conv2d(before, after, kernel, stride, pad, padding_mode="reflect"),
                    norms[norm](after), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(                                # (B, 3,      H,     W)
            *conv(3, nf, 9, pad=4),                                 # (B, nf,     H,     W)
            *conv(nf, 2 * nf, 3, stride=2),                         # (B, 2 * nf, H / 2, W / 2)
            *conv(2 * nf, 4 * nf, 3, stride=2),                     # (B, 4 * nf, H / 4, W / 4)
            *[ResidualBlock(*conv(4 * nf, 4 * nf, 3, pad=pad),
                            *conv(4 * nf, 4 * nf, 3, pad=pad)[:2]) for _ in range(5)],
            nn.Upsample(scale_factor=2), *conv(4 * nf, 2 * nf, 3),  # (B, 2 * nf, H / 2, W / 2)
            nn.Upsample(scale_factor=2), *conv(2 * nf, nf, 3),      # (B, nf,     H,     W)
            *conv(nf, 3, 9, pad=4)[:1])                             # (B, 3,      H,     W)
    def forward(self, x):
        (H, W), m = x.shape[2:], self.margin
        pad = m, m + -W % 4, m, m + -H % 4  # to multiples of 4: it goes to a quarter and back
        x = nn.functional.pad(x, pad, "reflect" if min(H, W) > max(pad) else "replicate")
        return self.layers(x)[..., :H, :W].sigmoid()  # bounded; the paper: a scaled tanh, the same
# %% 4. Loss: content and style as VGG sees them (Gatys 2016, eq. 1 and 5; Johnson 2016, 3.2)
def relative(x, y):
    """||x - y||^2 / ||y||^2 of each item: (B,). differs from the papers, which do not divide."""
    return (x - y).square().flatten(1).sum(1) / y.square().flatten(1).sum(1)
class PerceptualLoss:
    """How far pictures are from the content of photos and from the style of one (1, 3, H, W).
    perceptual(out, perceptual.target(photos)) -> (B, 3): content, style, total (with variation)."""
    def __init__(self, style, args):
        self.content, layers = args.content_layer, args.style_layers.split(" ")
        self.weights = 1, args.style_weight, args.tv
        self.vgg = VGGFeatures([self.content, *layers], args.weights, args.vgg).to(style.device)
        self.shallow = VGGFeatures([self.content], args.weights, args.vgg).to(style.device)
        self.grams = {k: gram_matrix(f) for k, f in self.vgg(style).items() if k in layers}  # once
    @torch.no_grad()
    def target(self, x):
        return self.shallow(x)[self.content]  # a VGG that goes no deeper than content needs
    def __call__(self, out, target):
        features = self.vgg(out)
        content = relative(features[self.content], target)
        style = torch.stack([relative(gram_matrix(features[k]), gram)
                             for k, gram in self.grams.items()]).mean(0)
        variation = out.diff(dim=2).abs().mean((1, 2, 3)) + out.diff(dim=3).abs().mean((1, 2, 3))
        total = sum(w * part for w, part in zip(self.weights, (content, style, variation)))
        return torch.stack([content, style, total], dim=1)
# %% 5. Metric and baseline: the loss itself, beside that of the photo as it is
@torch.no_grad()
def evaluate(net, perceptual, photos):
    """Content, style and total loss of net's picture of each of N photos (1, 3, H, W): (N, 3)."""
    return torch.cat([perceptual(net(x), perceptual.target(x)) for x in photos]).cpu()
# %% 6. Training
def get_device(name):
    """The device, and whether bf16 is fast on it; under torchrun, one device of a group."""
    found = torch.accelerator.is_available() and name != "cpu"
    device = torch.accelerator.current_accelerator() if found else torch.device("cpu")
    check(name in ("auto", device.type), f"--device {name}: there is no such device here")
    if "RANK" in os.environ:
        dist.init_process_group()  # gloo for tensors on the CPU, nccl for those on a GPU
        device = torch.device(device.type, int(os.environ["LOCAL_RANK"])) if found else device
        if RANK:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # rank 0 prints for all
    able = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch cannot tell
    bf16 = {"cpu": able.get("avx512_bf16", False) or able.get("amx_bf16", False),
            "cuda": found and torch.cuda.is_bf16_supported(False)}.get(device.type, False)
    print(f"device {device}, {'bf16' if bf16 else 'float32'}")
    return device, bf16
def learning_rate(step, steps, lr):  # linear warm-up, then half a cosine down to zero
    return lr * min(1, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
def save_checkpoint(path, model, optimizer, step, args):
    """One dict of plain types, written beside and renamed: a crash leaves the last one whole."""
    args = {k: v for k, v in vars(args).items() if isinstance(v, (str, int, float, bool))}
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step,
                "args": args}, f"{path}.tmp")
    os.replace(f"{path}.tmp", path)
def load_checkpoint(path, script):
    """What save_checkpoint wrote; SystemExit, saying why, if it is not one of this script's."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        writer = checkpoint["args"]["script"]
    except Exception as error:  # no file, no checkpoint, another program's: each its own kind
        raise SystemExit(f"{path} is no checkpoint of {script}.py: {error!r:.150}") from None
    check(writer == script, f"{path} is no checkpoint of {script}.py: {writer}.py wrote it")
    return checkpoint
def orthogonal(gradient):
    """(C_out, ...) -> the same shape; as a matrix, its singular values near 1: kernels learn in all
    directions alike (Muon, Jordan 2024; differs: averages over steps after this, not before)."""
    x = gradient.flatten(1) / gradient.norm().clamp(min=1e-12)
    for _ in range(5):  # Newton-Schulz steps
        s = x @ x.T
        x = 3.4445 * x + (2.0315 * s @ s - 4.7750 * s) @ x
    return x.view(gradient.shape)
def optimize(x, perceptual, steps, bf16, lr=0.05):
    """Gatys: no net learns, the parameters are the pixels of one picture, which start as the photo.
    x: (1, 3, H, W) -> the picture, and its total loss after 0, 1, ... steps: (steps + 1,)."""
    image, target, losses = x.clone().requires_grad_(), perceptual.target(x), []
    optimizer = torch.optim.Adam([image])
    for step in range(steps + 1):
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            loss = perceptual(image, target)[0, -1]
        losses.append(loss.detach())
        if step % math.ceil(steps / 5) == 0:
            print(f"optimize {step:3}/{steps} | total {loss.item():.3f}")
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)  # 0 in the last, which measures
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        image.data.clamp_(0, 1)
    return image.detach(), torch.stack(losses).cpu()  # .cpu() waits until a GPU is done
def train(model, perceptual, crops, photos, path, checkpoint, args):
    """Johnson: train a net, validating and saving to path. Ctrl-C saves, then ends the run."""
    device, batch, start, steps = photos[0].device, args.batch_size * WORLD, 0, args.steps
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, dampening=0.9)
    if args.resume:
        optimizer.load_state_dict(checkpoint["optimizer"])
        start = checkpoint["step"]
    base = evaluate(nn.Identity(), perceptual, photos).mean(0)[-1]
    stop, loss, clock = [], torch.tensor(math.nan), time.time()  # Ctrl-C fills stop: no half steps
    signal.signal(signal.SIGINT, signal.SIG_IGN if RANK else lambda *_: stop.append(True))
    batches = iter(DataLoader(crops, args.batch_size, num_workers=args.workers,
                              sampler=range(start * batch + RANK, steps * batch, WORLD)))
    net = nn.parallel.DistributedDataParallel(model) if WORLD > 1 else model
    for step in range(start, steps + 1):
        due = stop or step == steps or step % args.eval_every == 0
        if step > start and (due or step % math.ceil(args.eval_every / 5) == 0):
            pace = (step - start) / (time.time() - clock)
            print(f"step {step:6}/{steps} | loss {loss.item():.4f} | {pace * batch:.1f} img/s | "
                  f"{(steps - step) / pace:.0f} s left")
            check(math.isfinite(loss.item()), f"the loss is {loss}: lower --lr; last good: {path}")
        if due and RANK == 0 and (step > start or not start):
            save_checkpoint(path, model, optimizer, step, args)
            now = evaluate(model.eval(), perceptual, photos).mean(0)[-1]
            print(f"eval {step:6}/{steps} | total {now:.3f} (photo {base:.3f}) | saved {path}")
            path.with_name("log.csv").open("a").write(f"{step},{loss:.5f},{now:.4f}\n")
            check(not stop, f"stopped at step {step}: the same command with --resume goes on")
        if step == steps:
            break
        x = next(batches).to(device, memory_format=torch.channels_last)
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, args.lr)
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
            loss = perceptual(net.train()(x), perceptual.target(x))[:, -1].mean()
        optimizer.zero_grad()
        loss.backward()
        for p in model.parameters():  # kernels, and vectors, for which a sign is much the same
            p.grad = orthogonal(p.grad) if p.ndim == 4 else p.grad.sign() / 2
        optimizer.step()
    signal.signal(signal.SIGINT, lambda *_: check(False, "stopped: --resume does what is left"))
# %% 7. Use it
@torch.no_grad()
def apply(model, paths, out, max_side):
    """Stylise files into out/<stem>_styled.png, reduced first to max_side; alpha is kept.
    In one pass: instance norm looks at the whole picture, so tiles would differ in colour."""
    for path in paths:
        photo, target = open_image(path), out / f"{Path(path).stem}_styled.png"
        check(not target.exists(), f"{target} exists: move it away, or give another --out")
        photo.thumbnail((max_side, max_side), Image.BOX)  # only ever reduces
        check(min(photo.size) >= 32, f"{path} has a side below 32 px, at this --max-side")
        x = to_tensor(photo.convert("RGB"))[None].to(next(model.parameters()).device)
        try:
            styled = Image.fromarray(to_image(model.eval()(x)[0]))
        except RuntimeError as error:  # out of memory; on the CPU it has no kind of its own
            raise SystemExit(f"{path}: {error!r:.150}; a lower --max-side takes less") from None
        if photo.mode == "RGBA":
            styled.putalpha(photo.getchannel("A"))
        styled.save(target)
        print(f"{path} -> {target} {styled.width} x {styled.height} (--max-side {max_side})")
def compare(name, x, style, model, perceptual, args):
    """Stylise a photo x (1, 3, H, W) both ways, print what each took; returns {label: picture}."""
    start = time.perf_counter()
    image, losses = optimize(x, perceptual, args.optimize_steps, args.bf16)
    middle = time.perf_counter()
    styled = model(x).cpu()  # in float32, as --apply does
    slow, fast = middle - start, time.perf_counter() - middle
    cells, title = {}, "style" if args.weights == "pretrained" else "style (random features)"
    print(f"{'':16}   content     style     total   seconds")
    for label, y, seconds in (name, x, 0), ("optimised", image, slow), ("network", styled, fast):
        scores = evaluate(lambda x: y.to(x.device), perceptual, [x])[0]
        print(f"{label:16}", *(f"{value:9.4f}" for value in scores), f"{seconds:9.3f}")
        cells[f"{label} {scores[-1]:.2f}"] = y
        cells.setdefault(title, style)  # beside the photo itself
    equal = next((i for i, loss in enumerate(losses) if loss <= scores[-1]), math.inf)  # network's
    print(f"the optimiser equals the network at step {equal} of {args.optimize_steps}, in "
          f"{equal / len(losses) * slow / fast:.0f} times its time")
    return cells
def draw_figure(path, rows):
    """One PNG: a row a photo, a cell a picture (1, 3, H, W) under its label, cut to a square."""
    sheet = Image.new("RGB", (264 * len(rows[0]), 282 * len(rows)), "white")
    for i, row in enumerate(rows):
        for j, (label, x) in enumerate(row.items()):
            cell = ImageOps.fit(Image.fromarray(to_image(x[0])), (256, 256))
            sheet.paste(cell, (264 * j + 4, 282 * i + 22))
            ImageDraw.Draw(sheet).text((264 * j + 4, 282 * i + 4), label, "black", font_size=14)
    sheet.save(path)
# %% 8. Main
def main(argv=None):
    args = get_args(argv)
    out = Path(args.out)
    parent = next(p for p in (out, *out.absolute().parents) if p.exists())
    check(parent.is_dir() and os.access(parent, os.W_OK), f"--out {out} cannot be written to")
    out.mkdir(parents=True, exist_ok=True)
    start = out / "network.pt" if args.resume and not args.apply else args.init
    checkpoint = load_checkpoint(start, "style") if start else {"args": {}}
    device, args.bf16 = get_device(args.device)  # ranks wait here: all have read the checkpoint
    here = {"out", "init", "resume", "device", "bf16", "workers", args.content and "content"}
    vars(args).update({k: v for k, v in checkpoint["args"].items()  # a stopped run, or only its net
                       if k in ("nf", "padding", "norm") or args.resume and k not in here})
    torch.manual_seed(args.seed)
    model = StyleNet(args.nf, args.padding, args.norm).to(device, memory_format=torch.channels_last)
    if start:
        model.load_state_dict(checkpoint["model"])
    if args.apply:
        return apply(model, args.apply, out, args.max_side)
    rng, side = np.random.default_rng(args.seed), args.style_size
    style = load_picture(args.style, side, painting, rng)[..., :side, -side:]  # upper right square
    content = load_picture(args.content, args.size, dead_leaves, rng).to(device)
    try:
        perceptual = PerceptualLoss(style.to(device), args)
    except (OSError, ValueError) as error:
        check(isinstance(error, OSError) and not args.resume and WORLD == 1,
              f"{error}: change --content-layer, --style-layers or --weights")
        print(f"{error}.\nSo random features take the place of VGG's: coarser, but they do work.")
        args.weights = "random"
        perceptual = PerceptualLoss(style.to(device), args)
    photos = load_photos(args.data, args.size // 2, args.keep, args.seed)
    val = [Crops(photos[::20], args.size)[n][None].to(device) for n in range(8)]
    crops = Crops([photo for i, photo in enumerate(photos) if i % 20], args.size, args.seed)
    check(crops.photos, f"{args.data} holds one usable photo, but it takes two: one to validate")
    for name in ("network.pt", "optimised.png", "figure.png", "log.csv"):
        if (out / name).exists() and RANK == 0 and (not args.resume or name.endswith("png")):
            print("kept", (out / name).rename(out / f"{time.time():.0f}-{name}"))
    train(model, perceptual, crops, val, out / "network.pt", checkpoint, args)
    if RANK:
        return  # a single picture is optimised by one process
    worst = val[evaluate(model.eval().requires_grad_(False), perceptual, val)[:, -1].argmax()]
    pictures = {"content": content, "unseen photo": val[0], "worst unseen": worst}
    rows = [compare(name, x, style, model, perceptual, args) for name, x in pictures.items()]
    draw_figure(out / "figure.png", rows)
    Image.fromarray(to_image(list(rows[0].values())[2][0])).save(out / "optimised.png")
    print(f"figure: {out / 'figure.png'}")
if __name__ == "__main__":
    main()
