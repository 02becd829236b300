"""Segmentation: say for each pixel of a photo what it shows, such as sky, road or car.

    python seg.py                                drawn streets; ends in a table and a figure
    python seg.py --data mine --weights torchvision      mine/images, mine/masks, classes.txt
    python seg.py --apply photo.jpg --init out/seg/unet.pt              the classes in a photo

A ResNet sees what is in a photo, but its map of that is 32 times smaller. A head enlarges it: the
FCN at once, the simple head in five steps, the U-Net in five, of which four see earlier maps.
"""
import argparse
import math
import socket
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageColor, ImageDraw, ImageOps
from torch import nn
from torch.utils.data import DataLoader, Dataset

from common import SaveFeatures

# %% 1. Data: photos, and masks with the number of a class at each pixel
VOID = 255  # unknown: not learned, not counted
COLOURS = "lightsteelblue orchid sandybrown green gold blue cyan sienna pink olive teal".split()

def to_tensor(image):  # RGB Pillow image -> (3, H, W) float in [0, 1]
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255

class Crops(Dataset):  # endless: crop n depends on (seed, n) alone
    def __init__(self, pairs, size, seed=0):
        self.pairs, self.size, self.seed = pairs, size, seed

    def __getitem__(self, n):  # (3, size, size) and (size, size)
        rng = np.random.default_rng([self.seed, n])
        photo, mask = open_pair(*self.pairs[rng.integers(len(self.pairs))], self.size)
        where = rng.random(2)
        x = to_tensor(ImageOps.fit(photo, (self.size, self.size), Image.BILINEAR, centering=where))
        # Numbers are picked, never averaged: the mean of 0, sky, and 2, house, would be 1, road.
        mask = ImageOps.fit(mask, (self.size, self.size), Image.NEAREST, centering=where)
        y = torch.from_numpy(np.array(mask)).long()
        return (x.flip(-1), y.flip(-1)) if rng.random() < 0.5 else (x, y)

def split(groups):
    """{group: its pairs} -> pairs to train on, and pairs held out: the folder val or, without it,
    every fifth group. With one car on both sides, a net would be praised for remembering it."""
    held_out = ["val/"] if "val/" in groups else sorted(groups)[::5]
    train = [pair for name in groups if name not in held_out for pair in groups[name]]
    return train, [pair for name in held_out for pair in groups[name]]

# %% 2. Model: a ResNet without its end (He et al. 2016), and three heads
class BasicBlock(nn.Module):
    def __init__(self, channels_in, channels_out, stride=1):
        super().__init__()  # no biases: BatchNorm has one
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample = nn.Identity() if stride == 1 else nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 1, 2, bias=False), nn.BatchNorm2d(channels_out))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        # x takes a shortcut: the convs learn only what to add, and gradients reach early layers.
        return F.relu(self.bn2(self.conv2(out)) + self.downsample(x))

def resnet18():  # its parts run in order; torchvision's names
    net = nn.Sequential()
    net.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)  # (64, H/2, W/2)
    net.bn1 = nn.BatchNorm2d(64)
    net.relu = nn.ReLU()
    net.maxpool = nn.MaxPool2d(3, stride=2, padding=1)  # (64, H/4, W/4)
    net.layer1 = nn.Sequential(BasicBlock(64, 64), BasicBlock(64, 64))
    net.layer2 = nn.Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128))
    net.layer3 = nn.Sequential(BasicBlock(128, 256, 2), BasicBlock(256, 256))
    net.layer4 = nn.Sequential(BasicBlock(256, 512, 2), BasicBlock(512, 512))
    return net

def FCN(encoder, nf, classes):  # each cell 32 times larger (Long 2015)
    large = nn.ConvTranspose2d(classes, classes, 64, stride=32, padding=16)
    tent = 1 - (torch.arange(64) - 31.5).abs() / 32  # bilinear
    large.weight.data = torch.outer(tent, tent) * torch.eye(classes)[..., None, None]
    return nn.Sequential(nn.Conv2d(512, classes, 1), large)

def up(channels_in, channels_out):
    """Twice as large. A transposed convolution stamps its kernel once for each pixel, `stride`
    apart, and adds what overlaps. Kernel 3 and stride 2 overlap unevenly: of ones they make
    1 1 2 1 2 1 2, a checkerboard. Kernel 2 and stride 2 do not overlap."""
    return nn.ConvTranspose2d(channels_in, channels_out, kernel_size=2, stride=2)

def SimpleHead(encoder, nf, classes):  # has to guess 32 x 32 pixels from one
    layers = []
    for channels_in in (512, nf, nf, nf):  # to H/16, H/8, H/4, H/2
        layers += [up(channels_in, nf), nn.ReLU(), nn.BatchNorm2d(nf)]
    return nn.Sequential(*layers, up(nf, classes))

class UpBlock(nn.Module):  # x doubled, beside an earlier map: the skip
    def __init__(self, channels_in, nf, layer, channels_skip):
        super().__init__()
        # A hook: PyTorch calls it each time `layer` has run. The output stays in skip.features.
        self.skip = SaveFeatures(layer)
        self.up = up(channels_in, nf // 2)
        self.conv = nn.Conv2d(channels_skip, nf - nf // 2, 1)
        self.bn = nn.BatchNorm2d(nf)

    def forward(self, x):
        skip = self.skip.features  # the encoder has just run on these photos
        self.skip.features = None  # or its graph would stay in memory
        return self.bn(F.relu(torch.cat([self.up(x), self.conv(skip)], dim=1)))

def UNet(encoder, nf, classes):
    """A simple head that also sees the ResNet's map of each size: deep maps know what is there,
    early ones where it ends (Ronneberger 2015; here without 3 x 3 convolutions)."""
    return nn.Sequential(                       # layer4 512, H/32 -----+
        UpBlock(512, nf, encoder.layer3, 256),  # layer3 256, H/16 --> nf, H/16
        UpBlock(nf, nf, encoder.layer2, 128),   # layer2 128, H/8  --> nf, H/8
        UpBlock(nf, nf, encoder.layer1, 64),    # layer1  64, H/4  --> nf, H/4
        UpBlock(nf, nf, encoder.relu, 64),      # relu    64, H/2  --> nf, H/2
        up(nf, classes))                        # photo    3, H       classes, H

class Segmenter(nn.Module):  # (B, 3, H, W) in [0, 1] -> logits (B, classes, H, W)
    def __init__(self, head, nf, size, classes):
        super().__init__()
        self.config = {"head": head, "nf": nf, "size": size, "classes": classes}
        self.encoder = resnet18()
        heads = {"fcn": FCN, "simple": SimpleHead, "unet": UNet}
        self.head = heads[head](self.encoder, nf, len(classes))

    def forward(self, x):
        H, W = x.shape[2:]
        mean = x.new_tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        std = x.new_tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        x = F.pad((x - mean) / std, (0, -W % 32, 0, -H % 32), "replicate")  # 70 -> 96
        return self.head(self.encoder(x))[..., :H, :W]

    @torch.no_grad()
    def predict(self, photo):  # RGB image -> (H, W) of class numbers
        size = self.config["size"]
        x = to_tensor(ImageOps.cover(photo, (size, size), Image.BILINEAR))[None]
        logits = self.eval()(x.to(next(self.parameters()).device))
        logits = F.interpolate(logits, photo.size[::-1], mode="bilinear")
        return logits[0].argmax(0).byte().cpu().numpy()

# %% 3. Loss: classification of each pixel
def pixel_loss(logits, y):
    """Of (B, classes, H, W), and (B, H, W) of class numbers. A logit is a score, of any size;
    softmax turns those of a pixel into shares that sum to 1: exp(a) / (exp(a) + exp(b) + ...).
    The loss is minus the logarithm of the true class's share, on average. With two classes it is
    the course's binary_cross_entropy_with_logits of a single logit, the difference of ours."""
    return F.cross_entropy(logits, y, ignore_index=VOID)

# %% 4. Training
def learning_rate(step, steps, lr):  # up a line, down a cosine
    warmup = min(1, step / min(50, steps / 10))  # Adam's averages need it
    return lr * warmup * (0.5 + 0.5 * math.cos(math.pi * (step - 1) / steps))

def train(model, rates, path, steps, crops, val, args):  # rates: [(layers, highest rate)]
    optimizer = torch.optim.Adam([{"params": part.parameters()} for part, _ in rates], fused=True)
    numbers = range(steps * args.batch_size)
    batches = DataLoader(crops, args.batch_size, sampler=numbers, num_workers=args.workers)
    clock = time.time()
    for step, (x, y) in enumerate(batches, start=1):
        model.train()
        # An encoder that has learned from many photos keeps its BatchNorms' means (eval mode).
        model.encoder.train(args.weights == "random" and not args.init)
        loss = pixel_loss(model(x.to(args.device)), y.to(args.device))
        for group, (_, lr) in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = learning_rate(step, steps, lr)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1)
        check(norm.isfinite(), f"step {step}: the gradient is {norm}: lower --lr")
        optimizer.step()
        if step % 20 == 0:
            seconds = (time.time() - clock) / step * (steps - step)
            print(f"step {step:6}/{steps} | loss {loss:.4f} | {seconds:.0f} s left")
        if step % args.eval_every == 0 or step == steps:
            scores = evaluate(model.predict, val, model.config["classes"])
            with open(f"{path}.tmp", "wb") as file:
                torch.save({"model": model.state_dict(), "config": model.config}, file)
            Path(f"{path}.tmp").replace(path)  # whole, or not there
            with open(path.with_name("log.csv"), "a") as log:
                log.write("" if log.tell() else ",".join(["stage,step,loss", *scores]) + "\n")
                print(path.stem, step, loss.item(), *scores.values(), sep=",", file=log)
            print(f"eval {step:6}/{steps} | mean IoU {scores['mean IoU']:.4f} | saved {path}")

# %% 5. Metric and baseline: accuracy, IoU and Dice, beside one class everywhere
def evaluate(method, pairs, classes):
    """{measure: value} of all pixels of all pairs together. method: photo -> class numbers."""
    table = np.zeros(2 * [len(classes)])
    for photo, mask in pairs:
        truth, pred = np.array(mask), method(photo)
        np.add.at(table, (truth[truth != VOID], pred[truth != VOID]), 1)
    hits = table.diagonal()
    areas = table.sum(0) + table.sum(1)
    iou = hits / (areas - hits).clip(1)  # overlap over union
    dice = 2 * hits / np.where(areas, areas, np.nan)  # twice it over both areas
    return {"accuracy": hits.sum() / table.sum(), "mean IoU": iou[areas > 0].mean(),
            **{f"Dice of {name}": dice[n] for n, name in enumerate(classes)}}

def compare(methods, pairs, classes):  # a column each
    columns = [evaluate(method, pairs, classes) for method in methods.values()]
    print(f"{len(pairs):5} photos         ", *(f"{name:>10}" for name in methods))
    for measure in columns[0]:
        print(f"{measure:20}", *(f"{column[measure]:10.4f}" for column in columns))

# %% 6. Use it: the lesson in short, then your photos
def run(args, out):
    classes, groups = find_pairs(args.data)
    pairs, held_out = split(groups)
    val = [open_pair(*pair, args.size) for pair in held_out]
    crops = Crops(pairs, args.size, args.seed)
    counts = sum(np.array(open_pair(*pair, args.size)[1].histogram()) for pair in pairs)
    print(*(f"{name} {counts[n] / counts.sum():.1%}" for n, name in enumerate(classes)), sep=", ")
    check(not [*out.glob("*.[cp][st]*")], f"{out} holds files: move them")
    out.mkdir(parents=True, exist_ok=True)
    draw_figure(out / "data.png", {}, [val[0], val[-1]], classes)
    methods = {}
    for head in args.model:
        torch.manual_seed(args.seed)
        model = Segmenter(head, args.nf, args.size, classes).to(args.device)
        # Early layers know edges and colours already: they learn slowly, the new head fast.
        lr = args.lr
        rates = [(model.encoder[:6], lr / 100), (model.encoder[6:], lr / 10), (model.head, lr)]
        if args.init:
            load_checkpoint(args.init, model)
        elif args.weights == "random":
            rates = [(model, lr)]
        else:  # the new head alone, or it would spoil the rest
            model.encoder.load_state_dict(load_resnet())
            model.encoder.requires_grad_(False)
            train(model, rates[2:], out / f"{head}-frozen.pt", args.steps // 4, crops, val, args)
            model.encoder.requires_grad_(True)
        train(model, rates, out / f"{head}.pt", args.steps, crops, val, args)
        methods[head] = model.predict
    baseline = {"commonest": lambda photo: np.full(photo.size[::-1], counts[:VOID].argmax())}
    compare(baseline | methods, val, classes)
    worst = min(val, key=lambda pair: evaluate(model.predict, [pair], classes)["mean IoU"])
    draw_figure(out / "figure.png", methods, [val[0], val[-1], worst], classes)

def apply(model, paths, out):
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    for path in paths:
        target = out / f"{Path(path).stem}_mask.png"
        try:
            check(not target.exists(), f"{target} exists: move it away")
            pred = model.predict(open_photo(path))
            paint(pred, pred).save(target)
            print(f"{path} -> {target}")
        except (OSError, SystemExit) as error:
            failed.append(f"not segmented: {error}")
    check(not failed, "\n".join(failed))

def paint(pred, truth):  # errors red, void black
    image = Image.fromarray(np.where((pred != truth) & (truth != VOID), np.uint8(254), pred))
    palette = [value for name in COLOURS * 24 for value in ImageColor.getrgb(name)]
    image.putpalette(palette[:762] + [255, 0, 0, 0, 0, 0])
    return image

# %% 7. Files (skip this at first reading)
FOLDERS = {"images": "masks", "train": "train_masks", "val": "val_masks"}

def check(condition, sentence):  # a sentence, no traceback
    if not condition:
        raise SystemExit(sentence)

def open_upright(path):
    try:
        return ImageOps.exif_transpose(Image.open(path))
    except Exception as error:
        raise OSError(f"cannot read {path} as an image ({error})") from None

def open_photo(path):
    photo = open_upright(path)
    check(photo.mode[0] not in "IF", f"{path} has more than 8 bits a channel")
    white = Image.new("RGBA", photo.size, "white")
    return Image.alpha_composite(white, photo.convert("RGBA")).convert("RGB")

def read_classes(folder):  # names, and {number in a mask: class}
    path = Path(folder, "classes.txt")
    if not path.exists():
        return ["background", "object"], {0: 0, 1: 1, 255: 1}
    names = [*map(str.strip, path.read_text("utf-8-sig", "replace").strip().split("\n"))]
    check(len(names) < 255 and all(names), f"{path}: a line is empty, or too many")
    classes = [*dict.fromkeys(name for name in names if name != "void")]
    numbers = [classes.index(name) if name in classes else VOID for name in names]
    return classes, dict(enumerate(numbers)) | {255: VOID}

@lru_cache(maxsize=2000)
def open_pair(photo_path, mask_path, size):
    photo, mask = open_photo(photo_path), open_upright(mask_path)
    check(photo.size == mask.size, f"{mask_path} and its photo differ in size")
    check(mask.mode in ("1", "L", "P"), f"{mask_path}: mode {mask.mode}, not L or P")
    array = np.array(mask, np.uint8)
    numbers = read_classes(mask_path.parents[1])[1]
    found = np.unique(array).tolist()
    odd = len(found) > 2 or mask.mode == "P" and sum(mask.getpalette()[:3]) > 382
    odd = found == [0, 255] if numbers[255] == VOID else odd
    check({*found} <= {*numbers} and not odd, f"{mask_path} holds {found}: see classes.txt")
    mask = Image.fromarray(np.uint8([numbers.get(n, VOID) for n in range(256)])[array])
    photo = ImageOps.cover(photo, (size, size), Image.BILINEAR)
    return photo, mask.resize(photo.size, Image.NEAREST)

def find_pairs(folder):
    """The classes, and {name up to its last _, or else the whole name: [(photo, mask), ...]}."""
    files, groups = {}, {}
    for path in sorted(Path(folder).glob("*/[!.]*")):
        if path.suffix.lower() in Image.registered_extensions():
            key = path.parent.name.replace("annot", "_masks"), path.stem.removesuffix("_mask")
            check(files.setdefault(key, path) == path, f"two files for one: {files[key]}, {path}")
    for (photos, name), path in files.items():
        if photos in FOLDERS:
            mask = files.get((FOLDERS[photos], name))
            group = "val/" if photos == "val" else name.rpartition("_")[0] or name
            groups.setdefault(group if mask else None, []).append((path, mask))
    alone = [path.name for path, _ in groups.pop(None, [])]
    groups = groups if len(groups) > 1 else {pair: [pair] for pair in sum(groups.values(), [])}
    print(f"{folder}: {len(groups)} groups; {len(alone)} photos without a mask", *alone[:5])
    check(len(groups) > 1, f"{folder}: no two photos with masks in {FOLDERS}")
    return read_classes(folder)[0], groups

def load_checkpoint(path, model=None):
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        model = Segmenter(**checkpoint["config"]) if model is None else model
        model.load_state_dict(checkpoint["model"])
    except Exception as error:
        raise SystemExit(f"{path} is no checkpoint for this: {error!r:.300}") from None
    check(checkpoint["config"]["classes"] == model.config["classes"], f"{path}: other classes")
    return model

def load_resnet():
    url = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    socket.setdefaulttimeout(10)  # firewalls may be silent
    try:
        state = torch.hub.load_state_dict_from_url(url, check_hash=True, weights_only=True)
    except Exception as error:
        raise OSError(f"{error!r:.99}: save {url} in {torch.hub.get_dir()}/checkpoints") from None
    return {key: state[key] for key in state if not key.startswith("fc.")}

def draw_figure(path, methods, pairs, classes):
    width = 264 * (len(methods) + 2)
    sheet = Image.new("RGB", (width + 150, 264 * len(pairs) + 32), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(["photo", "truth", *methods]):
        draw.text((264 * column + 4, 0), title, "black", font_size=22)
    for row, (photo, mask) in enumerate(pairs):
        preds = [np.array(mask), *(method(photo) for method in methods.values())]
        for column, image in enumerate([photo, *(paint(pred, preds[0]) for pred in preds)]):
            sheet.paste(ImageOps.contain(image, (256, 256)), (264 * column + 4, 264 * row + 32))
    for n, name in enumerate(classes):
        draw.rectangle((width, 26 * n + 32, width + 20, 26 * n + 52), COLOURS[n % 11])
        draw.text((width + 26, 26 * n + 32), name, "black", font_size=18)
    sheet.save(path)
    print(f"figure: {path}")

# %% 8. Settings and main
def get_args(argv=None):
    found = torch.accelerator.is_available()
    device = torch.accelerator.current_accelerator().type if found else "cpu"
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--data", default=Path(__file__).parent / "tests/data/streets")
    add("--size", type=int, default=96, help="short side of a photo")
    add("--model", nargs="+", default=["simple", "unet"], choices=("fcn", "simple", "unet"))
    add("--nf", type=int, default=64, help="feature channels")
    add("--weights", default="random", choices=("torchvision", "random"))
    add("--steps", type=int, default=200, help="of training")
    add("--batch-size", type=int, default=8, help="crops a step")
    add("--lr", type=float, default=6e-3, help="highest learning rate")
    add("--seed", type=int, default=0, help="of weights and crops")
    add("--eval-every", type=int, default=50, help="steps between validations")
    add("--device", default=device, choices=sorted({"cpu", device}))
    add("--workers", type=int, default=0, help="to load data")
    add("--out", default="out/seg", help="where a run writes")
    add("--init", help="checkpoint to use, or to start from")
    add("--apply", nargs="+", metavar="PHOTO", help="only segment these")
    args = parser.parse_args(argv)
    least = min(args.size // 32, args.nf // 2, args.batch_size // 2, args.eval_every, args.steps)
    check(min(least - 1, args.seed, args.workers) >= 0 < args.lr, "a flag is too low (--size 32)")
    return args

def main(argv=None):
    args = get_args(argv)
    out = Path(args.out)
    if not args.apply:
        return run(args, out)
    return apply(load_checkpoint(args.init or out / "unet.pt").to(args.device), args.apply, out)

if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, OSError) as error:
        raise SystemExit(f"stopped: {(str(error) or 'Ctrl-C').splitlines()[-1]}") from None
