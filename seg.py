"""Segmentation: say for every pixel of a photo what it shows, such as car or background.

    python seg.py --data carvana                               train; ends in a table and a figure
    python seg.py --apply photo.jpg --init out/seg/unet.pt     mark what a photo shows

A ResNet that knows ImageNet (He 2016), and a head that enlarges: a simple one, a U-Net (Ronneberger
2015) or FCN-32s (Long 2015): fast.ai's lesson 14. Generated cars, 64 px, from random weights, 2:15
on two cores (AMD EPYC, bf16, torch 2.13.0): Dice 0.97 for the U-Net, 0.95 for the simple head.
Simplified from the papers: heads of transposed convolutions, no border weights, the coarsest FCN.
"""
import argparse, functools, math, os, signal, socket, time
from pathlib import Path
import numpy as np, torch, torch.nn.functional as F
from PIL import Image, ImageDraw, ImageOps
from torch import distributed as dist, nn
from torch.utils.data import DataLoader, Dataset
from common import SaveFeatures
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # by torchrun
# %% 1. Settings
def get_args(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--data", default="carvana", help="folder to train on; README has the layouts")
    add("--out", default="out/seg", help="folder for everything that a run writes")
    add("--init", help="checkpoint to use, or to start training from")
    add("--apply", nargs="+", default=[], metavar="PHOTO", help="segment photos with --init, stop")
    add("--find-lr", action="store_true", help="try learning rates on the first net, stop")
    add("--resume", action="store_true", help="go on with the run in --out, with its settings")
    add("--model", nargs="+", choices=("simple", "unet", "fcn"),
        default=["simple", "unet"], help="nets to train (with --init: its own)")
    add("--encoder", type=int, choices=(18, 34), default=18, help="depth of the ResNet")
    add("--nf", type=int, default=256, help="feature channels of the head")
    add("--sizes", type=int, nargs="+", default=[64], help="short sides of the photos, in turn")
    add("--steps", type=int, default=330, help="training steps at each size")
    add("--batch-size", type=int, default=16, help="crops a step, on each device")
    add("--lr", type=float, default=3e-3, help="highest learning rate")
    add("--ignore", type=int, help="mask value without a label, beside 255 (in trainannot/: 11)")
    add("--seed", type=int, default=0, help="of the weights, the crops, the generated images")
    add("--device", default="auto", help="auto, cpu, cuda, mps ...")
    add("--workers", type=int, default=0, help="processes that load data")
    add("--eval-every", type=int, default=110, help="steps between validations, each saved")
    add("--weights", choices=("pretrained", "random"), default="pretrained", help="of VGG / ResNet")
    args = parser.parse_args(argv, argparse.Namespace(script="seg", net="", size=0, classes=""))
    for name, least in dict(nf=2, steps=1, batch_size=1, eval_every=1, lr=1e-9, seed=0).items():
        check(getattr(args, name) >= least, f"--{name.replace('_', '-')} takes {least} or more")
    check([31, *args.sizes] == sorted({31, *args.sizes}), "--sizes takes 32 or more, ascending")
    check(not args.apply or args.init and not args.resume, "--apply needs --init, not --resume")
    args.sizes, args.model = " ".join(map(str, args.sizes)), " ".join(dict.fromkeys(args.model))
    return args  # a checkpoint's settings are plain types
def check(condition, sentence):  # ends the run, without a traceback, where the user can mend it
    if not condition:
        raise SystemExit(sentence)
# %% 2. Data: photos with masks or, where there are none, generated cars
IGNORE = 255  # the class of pixels without a label
LAYOUTS = {"train_masks": "train", "trainannot": "train", "valannot": "val", "masks": "images"}
def open_image(path):
    """An image file, upright and of 8 bits, in mode L, RGB or RGBA; SystemExit if unreadable."""
    try:
        im = ImageOps.exif_transpose(Image.open(path))
        if im.mode.startswith("I"):  # 16-bit grey: Pillow's conversion would clip it at 255
            im = Image.fromarray((np.asarray(im) / 257).clip(0, 255).astype(np.uint8))
        return im.convert("RGBA" if im.has_transparency_data else "L" if im.mode in "1L" else "RGB")
    except Exception as error:  # every decoder of Pillow raises its own kinds
        raise SystemExit(f"cannot read {path} as an image ({error})") from None
def to_tensor(image):  # (H, W, 3) uint8 array or RGB Pillow image -> (3, H, W) float in [0, 1]
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
def resize(photo, mask, size):  # to a short side; no class 4 appears between a 3 and a 5
    return [ImageOps.cover(image, (size, size), method)
            for image, method in ((photo, Image.BILINEAR), (mask, Image.NEAREST))]
def car(rng, side):
    """A generated car from 16 angles, in front of polygons: Pillow photos, masks of 0 and 1."""
    paint, low, high = rng.integers(0, 256, 3), *rng.uniform((0.35, 0.6), (0.5, 0.85))
    for turn in math.pi / 8 * np.arange(16):
        photo, mask = Image.new("RGB", (256, 256)), Image.new("L", (256, 256))
        for spread in 300 * 0.96 ** np.arange(120):  # from larger than the photo to a few px
            points = rng.uniform(0, 256, 2) + spread * rng.uniform(-1, 1, (6, 2))
            ImageDraw.Draw(photo).polygon([*points.flat], tuple(rng.integers(64, 192, 3)))
        tilt, zoom, *centre = rng.uniform((0.2, 80, 115, 140), (0.5, 115, 140, 165))
        for z in np.linspace(0, high, 99):  # a stack of rectangles, from the ground up
            x, y = (1, 0.4) if z < low else (1 - z, 0.4 - 0.2 * (z - low))
            colour = paint * (1 if z == high or 0 < low - z < 0.02 else 0.7)  # lit from above
            colour = colour if 0.1 < z < low or z > high - 0.05 else np.full(3, 50)  # tyres, glass
            ground = np.array([-x - y * 1j, x - y * 1j, x + y * 1j, y * 1j - x]) * np.exp(turn * 1j)
            points = np.stack([ground.real, -z - tilt * ground.imag], axis=1) * zoom + centre
            ImageDraw.Draw(photo).polygon([*points.flat], tuple(colour.astype(int)))
            ImageDraw.Draw(mask).polygon([*points.flat], 1)
        yield resize(photo, mask, side)
def load_pairs(folder, size, seed=0):
    """[(group, mask file, photo, mask)] of short side `size`; group: "val", or name up to its _."""
    if folder == "carvana" and not Path(folder).exists():
        print(f"no {folder} here: generated cars take its place. To get it (and unzip all):\n"
              f"kaggle competitions download -c carvana-image-masking-challenge -p {folder}")
        return [(f"car {i}", "generated", *pair) for i in range(50)
                for pair in car(np.random.default_rng([seed, i]), size)]
    pairs, skipped, found = [], [], [name for name in LAYOUTS if Path(folder, name).is_dir()]
    check(found, f"{folder} has no train/ + train_masks/, train/ + trainannot/, images/ + masks/")
    for name in found:
        files = {file.stem.removesuffix("_mask"): file for file in Path(folder, name).glob("*")}
        for path in sorted(Path(folder, LAYOUTS[name]).glob("*")):
            try:
                check(file := files.get(path.stem), f"{path} has no mask")
                photo, mask = open_image(path).convert("RGB"), np.array(Image.open(file), "u1")
                mask = Image.fromarray(mask).convert("L")  # its values, not a palette's colours
                check(min(photo.size) >= 32, f"{path} has a side below 32 px")
            except (SystemExit, Exception) as sentence:
                skipped.append(sentence)
                continue
            check(photo.size == mask.size, f"{path} is {photo.size}, but {file} {mask.size}")
            group = "val" if name == "valannot" else path.stem.rpartition("_")[0] or path.stem
            pairs.append((group, file, *resize(photo, mask, size)))
    print(f"{folder}: {len(pairs)} photos, {len(skipped)} files skipped", *skipped[:1], sep="; ")
    return pairs
def split(pairs, ignore=None, classes=""):
    """[(photo, mask of indices)] to train, the same to validate, the mask values of the classes."""
    groups = sorted({pair[0] for pair in pairs})
    held = {"val"} if "val" in groups else groups[::5]  # whole groups: no car is on both sides
    check(0 < len(held) < len(groups), f"{len(groups)} group (name up to the last _): it takes 2")
    values = [{*np.unique(mask).tolist()} for _, _, _, mask in pairs]
    seen = set().union(*(v for v, pair in zip(values, pairs) if pair[0] not in held))
    ignore = {255, 11 if ignore is None and "annot" in Path(pairs[0][1]).parent.name else ignore}
    classes = [*map(int, classes.split())] or sorted(seen if seen <= {0, 255} else seen - ignore)
    check(len({*classes} & seen) > 1, f"masks hold {sorted(seen)}: not two of classes {classes}")
    for (_, file, _, _), v in zip(pairs, values):
        check(v <= {*classes, *ignore}, f"{file} holds {v}; classes: {classes}; see --ignore")
    table = [classes.index(v) if v in classes else IGNORE for v in range(256)]
    train, val = ([(photo, mask.point(table)) for group, _, photo, mask in pairs
                   if (group in held) == side] for side in (False, True))
    print(f"{len(train)} photos train, {len(val)} validate: {len(held)} of {len(groups)} groups")
    return train, val, " ".join(map(str, classes))
class Crops(Dataset):
    """Sample n, a function of (seed, n); data: {size: (pairs to train, to validate)}, in turn."""
    def __init__(self, data, samples, seed=0):
        self.data, self.samples, self.seed = data, samples, seed
    def __getitem__(self, n):
        rng, size = np.random.default_rng([self.seed, n]), [*self.data][n // self.samples]
        photo, mask = self.data[size][0][rng.integers(len(self.data[size][0]))]
        left, top = (int(rng.integers(side - size + 1)) for side in photo.size)
        box, angle = (left, top, left + size, top + size), rng.uniform(-4, 4)
        x = to_tensor(photo.rotate(angle, Image.BILINEAR).crop(box))
        y = np.array(mask.rotate(angle, Image.NEAREST, fillcolor=IGNORE).crop(box))
        x = (x - x.mean()) * rng.uniform(0.8, 1.25) + x.mean() * rng.uniform(0.8, 1.25)
        pair = x.clamp(0, 1), torch.from_numpy(y).long()
        return [t.flip(-1) for t in pair] if rng.random() < 0.5 else pair
# %% 3. Model: a ResNet without its end (He et al. 2016, table 1), and three heads that enlarge
FILES = {18: "resnet18-f37072fd.pth", 34: "resnet34-b627a593.pth"}  # torchvision's
class BasicBlock(nn.Module):
    def __init__(self, before, after, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        shortcut = nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
        self.downsample = nn.Sequential(*shortcut if before != after else [])
    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.downsample(x))
def resnet(depth):
    """Normalised (B, 3, H, W) -> (B, 512, H / 32, W / 32); parameters as torchvision names them."""
    net = nn.Sequential()
    net.conv1, net.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
    net.relu, net.maxpool = nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    for i, blocks in enumerate({18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}[depth]):
        a, b = (64, 64, 128, 256, 512)[i:i + 2]  # channels before and after
        layer = [BasicBlock(b if j else a, b, 1 if j or not i else 2) for j in range(blocks)]
        net.add_module(f"layer{i + 1}", nn.Sequential(*layer))
    return net
class UpBlock(nn.Module):
    """(B, before, H, W) -> (B, nf, 2H, 2W), given a skip half of it from what that module gave."""
    def __init__(self, before, nf, skip=None, channels=0):
        super().__init__()
        self.skips, own = [SaveFeatures(skip)] if skip else [], nf // 2 if skip else nf
        self.tr_conv, self.bn = nn.ConvTranspose2d(before, own, 2, 2), nn.BatchNorm2d(nf)
        self.x_conv = nn.Conv2d(channels, nf - own, 1) if skip else None
    def forward(self, x):
        skips = [self.x_conv(skip.features) for skip in self.skips]
        return self.bn(F.relu(torch.cat([self.tr_conv(x), *skips], dim=1)))
def simple(e, nf, logits, skips=4 * [()]):  # x2, five times, from the last features; no skip
    blocks = [UpBlock(before, nf, *skip) for before, skip in zip((512, nf, nf, nf), skips)]
    return nn.Sequential(*blocks, nn.ConvTranspose2d(nf, logits, 2, 2))
def unet(e, nf, logits):  # also sees what the encoder e saw at each size (Ronneberger, figure 1)
    return simple(e, nf, logits, [(e.layer3, 256), (e.layer2, 128), (e.layer1, 64), (e.relu, 64)])
def fcn(e, nf, logits):  # FCN-32s (Long 2015, 4.1): to classes, x32 at once, bilinear at first
    enlarge = nn.ConvTranspose2d(logits, logits, 64, 32, 16, bias=False)
    tent = 1 - (torch.arange(64) - 31.5).abs() / 32
    enlarge.weight.data = torch.einsum("ij,h,w->ijhw", torch.eye(logits), tent, tent)
    return nn.Sequential(nn.Conv2d(512, logits, 1), enlarge)
class Segmenter(nn.Module):
    """(B, 3, H, W) in [0, 1], of any size -> logits (B, classes, H, W)."""
    def __init__(self, net, depth, nf, classes):
        super().__init__()
        self.encoder, heads = resnet(depth), {"simple": simple, "unet": unet, "fcn": fcn}
        self.head = heads[net](self.encoder, nf, classes if classes > 2 else 1)
    def forward(self, x):
        mean, std = x.new_tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
        x, (H, W) = (x - mean) / std, x.shape[2:]  # ImageNet's; the encoder halves five times
        out = self.head(self.encoder(F.pad(x, (0, -W % 32, 0, -H % 32), "replicate")))
        return F.pad(out, (0, 0, 0, 0, out.shape[1] == 1, 0))[..., :H, :W]  # softmax(0, z): sigmoid
# %% 4. Loss: cross-entropy of the pixels that have a label
pixel_loss = functools.partial(F.cross_entropy, ignore_index=IGNORE)  # (B, C, H, W), (B, H, W)
# %% 5. Metric and baseline: accuracy, Dice and IoU, beside the most frequent class everywhere
def predict(model, photo, bf16, size=None):
    """Pillow photo -> class indices (H, W), uint8; the net sees it with a short side of `size`."""
    small = ImageOps.cover(photo, (size, size), Image.BILINEAR) if size else photo
    x = to_tensor(small)[None].to(next(model.parameters()).device)
    with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        logits = model.eval()(x.to(memory_format=torch.channels_last)).float()
    return np.uint8(F.interpolate(logits, photo.size[::-1], mode="bilinear").argmax(1)[0].cpu())
def evaluate(model, pairs, args):
    """The confusion matrix of each photo, truth by prediction, in pixels: (N, classes, classes)."""
    n = len(args.classes.split())
    cells = (n * np.asarray(mask, int) + predict(model, photo, args.bf16) for photo, mask in pairs)
    counts = [np.bincount(cell.ravel(), minlength=n * n)[:n * n] for cell in cells]  # no IGNORE
    return torch.from_numpy(np.stack(counts)).view(-1, n, n)
def metrics(cm):
    """(N, C, C) -> accuracy, Dice (mean of photos), IoU (all pixels). Of two classes the second's,
    Dice 1 where neither truth nor prediction has it; of more, the mean of those that occur."""
    both, area = cm.diagonal(dim1=1, dim2=2), cm.sum(1) + cm.sum(2)
    dice, iou = 2 * both / area, both.sum(0) / (area - both).sum(0)
    dice, iou = (dice[:, 1:].nan_to_num(1), iou[1:]) if cm.shape[1] == 2 else (dice, iou)
    return [t.item() for t in (both.sum() / cm.sum(), dice.nanmean(1).nanmean(), iou.nanmean())]
def baseline(cm):  # of predicting the most frequent class everywhere
    return cm.sum(2, keepdim=True) * F.one_hot(cm.sum((0, 2)).argmax(), cm.shape[1])
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
def train(model, crops, path, frozen, args):  # Ctrl-C saves, then ends the run
    """A pretrained encoder keeps its BatchNorm statistics and, for `frozen` steps, all weights."""
    device, start, curve, e = next(model.parameters()).device, 0, [], model.encoder
    steps, batch = args.steps * len(crops.data), args.batch_size * WORLD
    optimizer = torch.optim.Adam([{"params": g.parameters()} for g in (e[:6], e[6:], model.head)])
    if args.resume and path.exists():
        checkpoint = load_checkpoint(path, "seg")
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        start = checkpoint["step"]
    stop, loss, clock = [], torch.tensor(math.nan), time.time()  # Ctrl-C fills stop: no half steps
    signal.signal(signal.SIGINT, signal.SIG_IGN if RANK else lambda *_: stop.append(True))
    batches = iter(DataLoader(crops, args.batch_size, num_workers=max(0, args.workers),
                              sampler=range(start * batch + RANK, steps * batch, WORLD)))
    for step in range(start, steps + 1):
        args.size = [*crops.data][max(0, step - 1) // args.steps]  # so far
        due = stop or step in (frozen, steps) or step % args.eval_every == 0
        if step > start and not curve and (due or step % math.ceil(args.eval_every / 5) == 0):
            pace = (step - start) / (time.time() - clock)
            print(f"step {step:6}/{steps} | loss {loss.item():.4f} | {pace * batch:.1f} img/s | "
                  f"{(steps - step) / pace:.0f} s left")
            check(math.isfinite(loss.item()), f"the loss is {loss}: lower --lr; last good: {path}")
        if due and RANK == 0 and not args.find_lr and (step > start or not start):
            save_checkpoint(path, model, optimizer, step, args)
            cm = evaluate(model, crops.data[args.size][1], args)
            now, base = metrics(cm), metrics(baseline(cm))
            print(f"eval {step:6}/{steps} | accuracy {now[0]:.4f} ({base[0]:.4f}) Dice {now[1]:.4f}"
                  f" ({base[1]:.4f}) IoU {now[2]:.4f} ({base[2]:.4f}) | saved {path}")
            path.with_name("log.csv").open("a").write("%s,%d,%d,%.5f,%.4f,%.4f,%.4f,%.0f\n" % (
                path.stem, args.size, step, loss.item(), *now, time.time() - clock))
        check(not (due and stop), f"stopped at step {step}: the same command with --resume goes on")
        if step == steps:
            break
        if step in (start, frozen):
            e.requires_grad_(step >= frozen)
            net = nn.parallel.DistributedDataParallel(model) if WORLD > 1 else model
        x, y = (t.to(device) for t in next(batches))
        lr = learning_rate(step % args.steps, args.steps, args.lr)  # anew for each size
        lr = 10 ** (5 * step / steps - 5) if args.find_lr else lr
        for group, factor in zip(optimizer.param_groups, (0.01, 0.1, 1)):  # the lesson's
            group["lr"] = lr * (factor if args.weights == "pretrained" else 1)
        model.train().encoder.train(args.weights == "random")
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
            loss = pixel_loss(net(x.to(memory_format=torch.channels_last)).float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if args.find_lr:  # the range test (Smith 2017, 3.3): the rate grows, and the loss tells
            curve.append((round(loss.item(), 1), lr / 5))  # a fifth of the first near the best
            print(f"lr {lr:.1e} {loss:.3f} {'#' * int(min(50, 40 * loss))} try {min(curve)[1]:.0e}")
    signal.signal(signal.SIGINT, lambda *_: check(False, "stopped: --resume does what is left"))
# %% 7. Use it
COLOURS = (np.random.default_rng(75).integers(0, 256, (256, 3)) // (2, 1, 1)).astype(np.uint8)
def overlay(photo, pred, truth):  # all classes but the first in colour, errors in red
    image = np.where(pred[..., None] > 0, np.asarray(photo) // 2 + COLOURS[pred] // 2, photo)
    image[(pred != truth) & (truth != IGNORE)] = 255, 0, 0
    return Image.fromarray(image)
def apply(model, paths, out, args):
    """Files to out/<stem>_mask.png and <stem>_overlay.png, seen at the size of training."""
    values = np.uint8(args.classes.split())
    for path in paths:
        photo = open_image(path).convert("RGB")
        check(min(photo.size) >= 32, f"{path} has a side below 32 px")
        pred = predict(model, photo, args.bf16, args.size)
        mask = Image.fromarray(values[pred] if len(values) > 2 else 255 * pred)
        if len(values) > 2:
            mask.putpalette(COLOURS[np.searchsorted(values, range(256))].tobytes())
        for kind, image in ("mask", mask), ("overlay", overlay(photo, pred, pred)):
            target = out / f"{Path(path).stem}_{kind}.png"
            check(not target.exists(), f"{target} exists: move it away, or give another --out")
            image.save(target)
        print(f"{path} {photo.width} x {photo.height} -> {target} and its mask")
def draw_figure(path, nets, pairs, bf16):
    """One PNG, a row a photo: photo | truth | each net's prediction, its errors in red."""
    sheet = Image.new("RGB", (264 * (len(nets) + 2), 282 * len(pairs)), "white")
    for i, (photo, mask) in enumerate(pairs):
        truth, valid = np.asarray(mask), np.asarray(mask) != IGNORE
        row = {"photo": photo, "truth": overlay(photo, truth * valid, truth)}
        for name, net in nets.items():
            pred = predict(net, photo, bf16)
            row[f"{name}: {(pred != truth)[valid].mean():.1%} wrong"] = overlay(photo, pred, truth)
        for j, (text, cell) in enumerate(row.items()):
            sheet.paste(ImageOps.pad(cell, (256, 256), Image.NEAREST), (264 * j + 4, 282 * i + 22))
            ImageDraw.Draw(sheet).text((264 * j + 4, 282 * i + 4), text, "black", font_size=14)
    sheet.save(path)
# %% 8. Main
def main(argv=None):
    args = get_args(argv)
    out = Path(args.out)
    parent = next(p for p in (out, *out.absolute().parents) if p.exists())
    check(parent.is_dir() and os.access(parent, os.W_OK), f"--out {out} cannot be written to")
    out.mkdir(parents=True, exist_ok=True)
    files = [out / name for name in ("unet.pt", "simple.pt", "fcn.pt", "figure.png", "log.csv")]
    start = next(filter(Path.exists, files[:3]), files[0]) if args.resume else args.init
    checkpoint = load_checkpoint(start, "seg") if start else {"args": {}}
    device, args.bf16 = get_device(args.device)  # ranks wait here: all have read the checkpoint
    here = ({"out", "resume", "device", "bf16", "workers", "find_lr"} if args.resume else
            vars(args).keys() - {"net", "encoder", "nf", "classes", "weights", "size"})
    vars(args).update({k: v for k, v in checkpoint["args"].items() if k not in here})
    sizes = [] if args.apply else [int(size) for size in args.sizes.split()]
    data, nets = {n: load_pairs(args.data, n, args.seed) for n in sizes}, {}
    for n in sizes[::-1]:  # the largest shows all classes, the others have the same
        *_, args.classes = data[n] = split(data[n], args.ignore, args.classes)
    for path in filter(Path.exists, files[3:4] if args.resume else files):  # files[3]: the figure
        if RANK == 0 and not args.apply and not args.find_lr:
            print("kept", path.rename(out / f"{time.time():.0f}-{path.name}"))
    for args.net in [args.net] if args.init else args.model.split()[:1 if args.find_lr else None]:
        torch.manual_seed(args.seed)
        model = Segmenter(args.net, args.encoder, args.nf, len(args.classes.split()))
        if args.init:
            model.load_state_dict(checkpoint["model"])
        elif args.weights == "pretrained" and not args.resume * (out / f"{args.net}.pt").exists():
            socket.setdefaulttimeout(5)  # torch.hub sets none: behind a firewall it would hang
            try:
                url = f"https://download.pytorch.org/models/{FILES[args.encoder]}"
                state = torch.hub.load_state_dict_from_url(url, check_hash=True, weights_only=True)
                model.encoder.load_state_dict({k: v for k, v in state.items() if k[:3] != "fc."})
            except Exception as error:  # no network, a damaged file, one that lacks a layer
                print(f"no {url} ({error!r:.99}): so the encoder starts at random, never frozen.\n"
                      f"To change that, put the file into {torch.hub.get_dir()}/checkpoints")
                args.weights = "random"
        nets[args.net] = model.to(device, memory_format=torch.channels_last)
        if args.apply:
            return RANK or apply(model, args.apply, out, args)  # one rank is enough
        frozen = args.steps // 4 if args.weights == "pretrained" and not args.init else 0
        crops = Crops(data, args.steps * args.batch_size * WORLD, args.seed)
        train(model, crops, out / f"{args.net}.pt", frozen, args)
    if RANK == 0 and not args.find_lr:
        print("net, size, step, loss, accuracy, Dice, IoU, seconds\n" + files[-1].read_text())
        val = data[sizes[-1]][1]
        dice = [metrics(matrix[None])[1] for matrix in evaluate(model, val, args)]
        draw_figure(files[3], nets, [*val[::len(val) // 3 + 1], val[np.nanargmin(dice)]], args.bf16)
        print(f"figure: {files[3]}")
if __name__ == "__main__":
    main()
