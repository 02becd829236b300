"""Super-resolution: enlarge a photo x2, x4 or x8 with detail that interpolation cannot give.

    python sr.py --data imagenet_sample                     train; ends in a table and a figure
    python sr.py --apply photo.jpg --init out/sr/pixel.pt   enlarge a photo
    python sr.py --test Set5 --init out/sr/pixel.pt         PSNR and SSIM by the field's protocol

A small net undoes a bicubic reduction, first by a pixel loss (best PSNR), then by VGG features
(crisper, lower PSNR): fast.ai's lesson 14. Johnson 2016, Shi 2016 (PixelShuffle), Lim 2017 (EDSR).
Set5 x2: 36.9 dB after two minutes on two cores (AMD EPYC, bf16, torch 2.13.0); bicubic 33.7.
Simplified from the papers: EDSR's net, narrower and without its skip around all blocks; hundreds
of JPEG photos for DIV2K; the feature loss refines a trained net instead of training one.
"""
import argparse, copy, functools, math, os, signal, time
from pathlib import Path
import numpy as np, torch, torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from torch import distributed as dist, nn
from torch.utils.data import DataLoader, Dataset
from common import VGGFeatures, icnr_
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # by torchrun
# %% 1. Settings
def get_args(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--data", default="imagenet_sample", help="folder to train on; README has the layouts")
    add("--out", default="out/sr", help="folder for everything that a run writes")
    add("--init", help="checkpoint to use, or to start training from")
    add("--apply", nargs="+", default=[], metavar="PHOTO", help="enlarge photos with --init, stop")
    add("--test", metavar="DIR", help="measure --init on a folder of photos, stop")
    add("--resume", action="store_true", help="go on with the run in --out, with its settings")
    add("--steps", type=int, default=1500, help="training steps with the pixel loss")
    add("--feature-steps", type=int, default=100, help="then steps with the feature loss")
    add("--batch-size", type=int, default=16, help="crops a step, on each device")
    add("--size", type=int, default=48, help="side of a high-resolution crop")
    add("--scale", type=int, default=2, choices=(2, 4, 8), help="enlargement")
    add("--nf", type=int, default=32, help="feature channels")
    add("--blocks", type=int, default=8, help="residual blocks")
    add("--lr", type=float, default=3e-3, help="highest learning rate")
    add("--tv", type=float, default=0, help="weight of total variation in the feature loss")
    add("--keep", type=float, default=1, help="random fraction of the photos to use")
    add("--blur", type=float, default=0, help="Gaussian sigma before reducing (Johnson: 1)")
    add("--seed", type=int, default=0, help="of the weights, the crops, the generated images")
    add("--device", default="auto", help="auto, cpu, cuda, mps ...")
    add("--workers", type=int, default=0, help="processes that load data")
    add("--eval-every", type=int, default=500, help="steps between validations, each saved")
    add("--weights", choices=("pretrained", "random"), default="pretrained", help="of VGG / ResNet")
    add("--match-histogram", action="store_true", help="with --apply: keep the photo's colours")
    args = parser.parse_args(argv, argparse.Namespace(script="sr", frozen=0))
    for name, least in dict(steps=1, feature_steps=0, batch_size=1, size=32, nf=1, blocks=1, tv=0,
                            lr=1e-9, keep=1e-9, blur=0, seed=0, workers=0, eval_every=1).items():
        check(getattr(args, name) >= least, f"--{name.replace('_', '-')} takes {least} or more")
    check(args.init or not (args.apply or args.test), "--apply and --test need --init CHECKPOINT")
    return args

def check(condition, sentence):  # ends the run, without a traceback, where the user can mend it
    if not condition:
        raise SystemExit(sentence)
# %% 2. Data: photos or, where there are none, generated images
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

def make_pair(photo, scale, blur=0.0):
    """(H, W, 3) uint8 -> low (3, H / scale, W / scale) and high (3, H, W), cut to fit scale.
    Low is made as in the papers: bicubic, antialiased, 8 bits; blur: Gaussian sigma before."""
    h, w = photo.shape[0] // scale, photo.shape[1] // scale
    high = Image.fromarray(photo[:h * scale, :w * scale])
    low = high.filter(ImageFilter.GaussianBlur(blur)).resize((w, h), Image.BICUBIC)
    return to_tensor(low), to_tensor(high)

class Crops(Dataset):
    """Training pairs: sample n depends on (seed, n) alone. So any number of workers gives the same
    run, a stopped run goes on at its next n, and rank r of several takes every world-th n."""
    def __init__(self, photos, size, scale, blur=0.0, seed=0):
        self.photos, self.size, self.scale, self.blur, self.seed = photos, size, scale, blur, seed
    def __getitem__(self, n):
        rng = np.random.default_rng([self.seed, n])
        path, photo = self.photos[rng.integers(len(self.photos))]
        photo = np.asarray(open_image(path).convert("RGB")) if photo is None else photo
        top, left = (rng.integers(side - self.size + 1) for side in photo.shape[:2])
        high = np.rot90(photo[top:top + self.size, left:left + self.size], rng.integers(4))
        return make_pair(high[:, ::rng.choice([-1, 1])], self.scale, self.blur)  # low turns along
# %% 3. Model: EDSR at the lesson's size (Lim et al. 2017, figure 3)
conv = functools.partial(nn.Conv2d, kernel_size=3, padding=1)
class ResBlock(nn.Sequential):  # no BatchNorm: in long runs it costs PSNR (Lim 2017, 3.1)
    def forward(self, x):  # x 0.1 steadies a deep sum (Lim 2017, 3.2)
        return x + 0.1 * super().forward(x)

class SrResnet(nn.Module):
    """(B, 3, H, W) in [0, 1] -> (B, 3, H * scale, W * scale), not clipped."""
    def __init__(self, scale, nf, blocks):
        super().__init__()
        self.scale, self.margin = scale, 2 * blocks + 5  # margin: input px seen in each direction
        body = [ResBlock(conv(nf, nf), nn.ReLU(inplace=True), conv(nf, nf)) for _ in range(blocks)]
        self.body = nn.Sequential(conv(3, nf), *body, conv(nf, nf))
        self.upsample = nn.Sequential()
        for _ in range(int(math.log2(scale))):
            self.upsample.extend([conv(nf, 4 * nf, bias=False), nn.PixelShuffle(2)])
            icnr_(self.upsample[-2].weight, 2)
        self.tail = conv(nf, 3, bias=False)
        nn.init.zeros_(self.tail.weight)  # so that the untrained net is exactly bicubic
    def bicubic(self, x):
        """The baseline: Pillow's enlargement. Without antialias, torch has another kernel."""
        return F.interpolate(x, scale_factor=self.scale, mode="bicubic", antialias=True)
    def forward(self, x):
        features = self.upsample(self.body(x))  # (B, nf, H, W) -> (B, nf, H * scale, W * scale)
        # differs from the lesson: added to bicubic, so that training starts there, not at noise
        return self.tail(features) + self.bicubic(x)
# %% 4. Loss: match features, not only pixels (Johnson et al. 2016, eq. 2)
FEATURE_WEIGHTS = {"relu1_2": 0.2, "relu2_2": 0.7, "relu3_3": 0.1}  # the lesson's
def feature_distances(vgg, out, y):
    """(layers, B): each image's ||F(out) - F(y)|| / ||F(y)||, in L1; out, y: (B, 3, H, W).
    differs from the paper: L1, and relative, to mean the same for any VGG, even a random one."""
    with torch.no_grad():
        target = vgg(y)
    return torch.stack([(f - target[layer]).abs().mean((1, 2, 3)) /
                        target[layer].abs().mean((1, 2, 3)) for layer, f in vgg(out).items()])
def feature_loss(vgg, tv, out, y):
    """Weighted distances + 4 x pixel L1 (the lesson: 1/100, at more dB lost) + tv x variation."""
    distances = feature_distances(vgg, out, y).mean(1)
    variation = out.diff(dim=2).abs().mean() + out.diff(dim=3).abs().mean()
    loss = sum(weight * d for weight, d in zip(FEATURE_WEIGHTS.values(), distances))
    return 4 * F.l1_loss(out, y) + loss + tv * variation
# %% 5. Metric and baseline: PSNR and SSIM on luma, beside bicubic
def luma(x, border):
    """(B, 3, H, W) in [0, 1], rounded to 8 bits -> Y of BT.601, (B, 1, H', W') in 16..235."""
    r, g, b = F.pad((x * 255).round().clamp(0, 255), [-border] * 4).split(1, dim=1)  # pad < 0 crops
    return 16 + (65.481 * r + 128.553 * g + 24.966 * b) / 255
def psnr(sr, high, border):
    """Peak signal-to-noise ratio of each image on luma: (B,) in dB, inf where they are equal.
    sr, high: (B, 3, H, W) in [0, 1], else ValueError; border: pixels left out on each side, by
    convention the scale. Average these, not the errors: papers report the mean dB an image."""
    if sr.shape != high.shape:
        raise ValueError(f"shapes differ: {tuple(sr.shape)} and {tuple(high.shape)}")
    return 10 * (255**2 / (luma(sr, border) - luma(high, border)).square().mean((1, 2, 3))).log10()

def ssim(sr, high, border):
    """Structural similarity of each image on luma: (B,), at most 1 (Wang et al. 2004, eq. 13).
    As psnr; an 11 x 11 Gaussian window of sigma 1.5, where it fits whole."""
    x, y, c1, c2 = luma(sr, border), luma(high, border), (0.01 * 255)**2, (0.03 * 255)**2
    g = torch.exp(-torch.arange(-5, 6, dtype=x.dtype, device=x.device).square() / (2 * 1.5**2))
    window = torch.outer(g, g)[None, None] / g.sum()**2
    mx, my, xx, yy, xy = (F.conv2d(t, window) for t in (x, y, x * x, y * y, x * y))
    return ((2 * mx * my + c1) * (2 * (xy - mx * my) + c2) / (mx**2 + my**2 + c1) /
            (xx - mx**2 + yy - my**2 + c2)).mean((1, 2, 3))

@torch.no_grad()
def evaluate(net, pairs, scale, vgg=None):
    """PSNR, SSIM and, given a vgg, feature distances of net on N pairs (low, high): (N, 2 or 5)."""
    rows = []
    for low, high in pairs:  # one at a time, since their sizes differ
        out = net(low)
        distances = feature_distances(vgg, out, high) if vgg else []
        rows.append(torch.cat([psnr(out, high, scale), ssim(out, high, scale), *distances]).cpu())
    return torch.stack(rows)
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

def load_layers(model, checkpoint):
    """Copy the tensors that fit from a checkpoint; print and return the names of the others."""
    state, own = checkpoint["model"], model.state_dict()
    fits = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    new = sorted(own.keys() - fits.keys())
    check(fits, f"--init: no layer fits, as it was trained with --nf {checkpoint['args']['nf']}")
    model.load_state_dict(fits, strict=False)
    print(f"loaded {' '.join(fits) if new else 'every layer'}\nnew {' '.join(new) or 'nothing'}")
    return new

def train(model, loss_fn, crops, pairs, path, steps, lr, frozen, args):
    """Train to `steps`, validating and saving to path; with --resume go on from path.
    For the first `frozen` steps only the upsampling end learns. Ctrl-C saves, then ends the run."""
    device, batch, start = model.tail.weight.device, args.batch_size * WORLD, 0
    optimizer = torch.optim.Adam(model.parameters())
    if args.resume and path.exists():
        checkpoint = load_checkpoint(path, "sr")
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        start = checkpoint["step"]
    stop, loss, clock = [], torch.tensor(math.nan), time.time()  # Ctrl-C fills stop: no half steps
    signal.signal(signal.SIGINT, signal.SIG_IGN if RANK else lambda *_: stop.append(True))
    batches = iter(DataLoader(crops, args.batch_size, num_workers=args.workers,
                              sampler=range(start * batch + RANK, steps * batch, WORLD)))
    for step in range(start, steps + 1):
        due = stop or step == steps or step % args.eval_every == 0
        if step > start and (due or step % math.ceil(args.eval_every / 5) == 0):
            pace = (step - start) / (time.time() - clock)
            print(f"step {step:6}/{steps} | loss {loss.item():.4f} | {pace * batch:.1f} img/s | "
                  f"{(steps - step) / pace:.0f} s left")
            check(math.isfinite(loss.item()), f"the loss is {loss}: lower --lr; last good: {path}")
        if due and RANK == 0 and (step > start or not start):
            save_checkpoint(path, model, optimizer, step, args)
            base, now = (evaluate(f, pairs, model.scale).mean(0)[0] for f in (model.bicubic, model))
            print(f"eval {step:6}/{steps} | psnr {now:.2f} dB (bicubic {base:.2f}) | saved {path}")
            path.with_name("log.csv").open("a").write(f"{path.stem},{step},{loss:.5f},{now:.3f}\n")
            check(not stop, f"stopped at step {step}: the same command with --resume goes on")
        if step == steps:
            break
        if step in (start, frozen):
            model.body.requires_grad_(step >= frozen)
            net = nn.parallel.DistributedDataParallel(model) if WORLD > 1 else model
        x, y = (t.to(device, memory_format=torch.channels_last) for t in next(batches))
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, lr)
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
            loss = loss_fn(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)  # lets the rate be high (VDSR, Kim 2016)
        optimizer.step()
    signal.signal(signal.SIGINT, lambda *_: check(False, "stopped: --resume does what is left"))
# %% 7. Use it
@torch.no_grad()
def enlarge(model, image, tile=192):
    """(H, W, 3) uint8 -> (H * scale, W * scale, 3) uint8, tile by tile: memory stays bounded.
    Each has a margin as wide as the net can see, cut off after: equal to one pass, to rounding."""
    (H, W), scale, margin = image.shape[:2], model.scale, model.margin
    large = np.empty((H * scale, W * scale, 3), np.uint8)
    for top, left in ((i, j) for i in range(0, H, tile) for j in range(0, W, tile)):
        t, l = max(0, top - margin), max(0, left - margin)
        x = to_tensor(image[t:top + tile + margin, l:left + tile + margin])
        y = to_image(model(x.to(model.tail.weight.device)[None])[0])
        part = large[top * scale:(top + tile) * scale, left * scale:(left + tile) * scale]
        part[:] = y[(top - t) * scale:, (left - l) * scale:][:part.shape[0], :part.shape[1]]
    return large

def match_histogram(image, reference):
    """Pillow RGB image whose channels get the distributions of reference's (Johnson 2016, 4.2)."""
    tables = [np.quantile(band, (h.cumsum() - h / 2) / h.sum(), method="inverted_cdf")
              for h, band in zip(np.reshape(image.histogram(), (3, 256)), reference.split())]
    return image.point(np.concatenate(tables).astype(int).tolist())
def apply(model, paths, out, match):
    """Enlarge files into out/<stem>_x<scale>.png; grey stays grey, and alpha is enlarged too."""
    for path in paths:
        photo, target = open_image(path), out / f"{Path(path).stem}_x{model.scale}.png"
        check(not target.exists(), f"{target} exists: move it away, or give another --out")
        large = Image.fromarray(enlarge(model, np.asarray(photo.convert("RGB"))))
        large = match_histogram(large, photo.convert("RGB")) if match else large
        if photo.mode == "RGBA":
            large.putalpha(photo.getchannel("A").resize(large.size, Image.BICUBIC))
        large.convert(photo.mode).save(target)
        print(f"{path} {photo.width} x {photo.height} -> {target} {large.width} x {large.height}")

def draw_figure(path, nets, pairs, scale):
    """One PNG, a row a pair: low | each net's image | truth, with the centre enlarged."""
    sheet = Image.new("RGB", (264 * (len(nets) + 2), 282 * len(pairs)), "white")
    for i, (low, high) in enumerate(pairs):
        images = {"low": low} | {name: net(low) for name, net in nets.items()} | {"truth": high}
        for j, (name, x) in enumerate(images.items()):
            cell = Image.fromarray(to_image(x[0].detach())).resize((256, 256), Image.NEAREST)
            cell.paste(cell.crop((108, 108, 148, 148)).resize((120, 120), Image.NEAREST), (4, 132))
            sheet.paste(cell, (264 * j + 4, 282 * i + 22))
            text = f"{name} {psnr(x, high, scale).item():.2f} dB" if name in nets else name
            ImageDraw.Draw(sheet).text((264 * j + 4, 282 * i + 4), text, "black", font_size=14)
    sheet.save(path)
# %% 8. Main
def main(argv=None):
    args = get_args(argv)
    out = Path(args.out)
    parent = next(p for p in (out, *out.absolute().parents) if p.exists())
    check(parent.is_dir() and os.access(parent, os.W_OK), f"--out {out} cannot be written to")
    out.mkdir(parents=True, exist_ok=True)
    use = args.apply or args.test
    start = out / "pixel.pt" if args.resume and not use else args.init
    checkpoint = load_checkpoint(start, "sr") if start else None
    device, args.bf16 = get_device(args.device)  # ranks wait here: all have read the checkpoint
    if use or args.resume:  # a checkpoint knows its own net, and a stopped run all its settings
        here = {"out", "init", "resume", "device", "bf16", "workers", "match_histogram"}
        vars(args).update({k: v for k, v in checkpoint["args"].items() if k not in here})
    torch.manual_seed(args.seed)
    model = SrResnet(args.scale, args.nf, args.blocks).to(device, memory_format=torch.channels_last)
    new = load_layers(model, checkpoint) if checkpoint else []
    if new and not any(name.startswith("body") for name in new):
        args.frozen = args.steps // 4
    if args.apply:
        return apply(model, args.apply, out, args.match_histogram)
    photos = (load_photos(args.test, 32, room=math.inf) if args.test else
              load_photos(args.data, args.size, args.keep, args.seed))
    val = photos if args.test else [(k, p[:256, :256]) for k, p in photos[::20] if p is not None]
    pairs = [[x[None].to(device) for x in make_pair(p, args.scale, args.blur)] for _, p in val]
    if args.test:
        scores = torch.cat([evaluate(net, pairs, args.scale) for net in (model.bicubic, model)], 1)
        for path, row in zip([*(path for path, _ in val), "mean"], [*scores, scores.mean(0)]):
            print("%-26s | bicubic %.2f dB %.4f | net %.2f dB %.4f" % (Path(f"{path}").name, *row))
        return
    photos = [photo for i, photo in enumerate(photos) if i % 20]
    check(photos, f"{args.data} holds one usable photo, but it takes two: one to validate")
    crops = Crops(photos, args.size, args.scale, args.blur, args.seed)
    for name in ("pixel.pt", "feature.pt", "figure.png", "log.csv"):
        if (out / name).exists() and RANK == 0 and (not args.resume or name.endswith("png")):
            print("kept", (out / name).rename(out / f"{time.time():.0f}-{name}"))
    train(model, F.l1_loss, crops, pairs, out / "pixel.pt", args.steps, args.lr, args.frozen, args)
    nets, vgg = {"bicubic": model.bicubic, "pixel loss": copy.deepcopy(model)}, None
    try:
        vgg = VGGFeatures(FEATURE_WEIGHTS, args.weights).to(device)
    except (OSError, ValueError) as error:
        print(f"{error}.\nSo the feature stage is left out; --weights random has random features.")
    if vgg and args.feature_steps:
        train(model, lambda out, y: feature_loss(vgg, args.tv, out, y), crops, pairs,
              out / "feature.pt", args.feature_steps, args.lr / 10, 0, args)  # lr / 10: it refines
        nets["feature loss"] = model
    scores = {name: evaluate(net, pairs, args.scale, vgg) for name, net in nets.items()}
    print(f"{'':12}   PSNR dB      SSIM", *(f"{layer:>9}" for layer in FEATURE_WEIGHTS if vgg))
    for name, score in scores.items():
        print(f"{name:12}", *(f"{value:9.4f}" for value in score.mean(0)))
    worst = (scores["pixel loss"] - scores["bicubic"])[:, 0].argmin()
    if RANK == 0:
        draw_figure(out / "figure.png", nets, [*pairs[:3], pairs[worst]], args.scale)
    print(f"figure: {out / 'figure.png'}")

if __name__ == "__main__":
    main()
