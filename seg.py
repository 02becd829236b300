"""Segmentation: say for every pixel of a photo what it shows, such as car or background.

    python seg.py --data carvana                  train; ends in a table and a figure
    python seg.py --apply photo.jpg --init out/seg/unet-64px.pt       segment a photo

A ResNet sees what is in a photo, but 32 times smaller. A simple head or a U-Net enlarges
that. fast.ai's lesson 14, simplified from He 2016 and Ronneberger 2015. Generated cars,
random weights, 3 minutes on two cores: Dice 0.94 and 0.97.
"""
import argparse
import math
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageOps
from torch import nn
from torch.utils.data import DataLoader, Dataset

from common import SaveFeatures

# %% 1. Settings
def get_args(argv=None):
    found = torch.accelerator.is_available()
    device = torch.accelerator.current_accelerator().type if found else "cpu"
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument_group("data").add_argument
    add("--data", default="carvana", help="folder of photos and masks")
    add("--sizes", type=int, nargs="+", default=[64], help="short sides, in turn")
    add("--seed", type=int, default=0, help="of weights, crops, generated images")
    add = parser.add_argument_group("model and training").add_argument
    add("--model", nargs="+", default=["simple", "unet"], choices=[*HEADS])
    add("--encoder", type=int, default=18, choices=(18, 34), help="depth of the ResNet")
    add("--nf", type=int, default=64, help="feature channels of the head")
    add("--steps", type=int, default=180, help="training steps at each size")
    add("--batch-size", type=int, default=16, help="crops a step")
    add("--lr", type=float, default=6e-3, help="highest learning rate")
    add("--weights", default="pretrained", choices=("pretrained", "random"))
    add("--eval-every", type=int, default=180, help="steps between validations")
    add("--device", default=device, choices={"cpu", device})
    add("--resume", action="store_true", help="the same command again: go on")
    add = parser.add_argument_group("use").add_argument
    add("--out", default="out/seg", help="folder for everything that a run writes")
    add("--init", help="checkpoint to use, or to start training from")
    add("--apply", nargs="+", metavar="PHOTO", help="only segment these with --init")
    return parser.parse_args(argv)

def check(condition, sentence):  # for what the user can mend: no traceback
    if not condition:
        raise SystemExit(sentence)

# %% 2. Data: photos with masks or, where there are none, generated cars
FOLDERS = {"train": "train_masks", "images": "masks"}  # photos: masks

def open_mask(path):  # mode L: 0, or 1 where the object is
    mask = Image.open(path)
    values = np.unique(mask).tolist()
    check(mask.mode in "1LP" and values in ([0], [1], [255], [0, 1], [0, 255]),
          f"{path}, mode {mask.mode}, holds {values[:9]}: it takes one channel of 8 "
          "bits, or a palette, with 0 and 1, or 0 and 255")
    return Image.fromarray(np.uint8(np.array(mask) > 0))

def car(seed, number):  # photo and mask; every 16 numbers are one car that turns
    rng = np.random.default_rng([seed, number // 16])
    paint = rng.integers(0, 256, 3)
    hood, roof = rng.uniform((0.35, 0.6), (0.5, 0.85))  # heights
    rng = np.random.default_rng([seed, number, 1])
    tilt, zoom, x0, y0 = rng.uniform((0.2, 90, 115, 140), (0.5, 120, 140, 165))
    image = Image.new("RGBA", (256, 256))
    for radius in 300 * 0.96 ** np.arange(120):  # clutter; alpha: the mask
        points = rng.uniform(0, 256, 2) + radius * rng.uniform(-1, 1, (6, 2))
        ImageDraw.Draw(image).polygon([*points.flat], (*rng.integers(64, 192, 3), 0))
    angles = math.pi / 8 * number + np.array([0.4, 2.7, 3.5, 5.9])  # corners
    for z in np.linspace(0, roof, 99):  # stacked up
        radius = zoom * (1.1 if z < hood else 1.1 - z)
        x = x0 + radius * np.cos(angles)
        y = y0 - radius * np.sin(angles) * tilt - zoom * z
        dark = z < 0.1 or hood < z < roof - 0.05  # tyres, windows
        lit = z == roof or 0 < hood - z < 0.02  # from above
        colour = [50, 50, 50] if dark else paint * (1 if lit else 0.7)
        ImageDraw.Draw(image).polygon([*zip(x, y, strict=True)], (*np.uint8(colour), 255))
    return image.convert("RGB"), image.getchannel("A").point(bool)

def shrink(photo, mask, size):  # a mask's numbers are not to be mixed
    photo = ImageOps.cover(photo, (size, size), Image.BILINEAR)
    return photo, mask.resize(photo.size, Image.NEAREST)

def find_pairs(folder, size, seed):  # [(car, photo, mask)], short sides of size
    if folder == "carvana" and not Path(folder).exists():
        print(f"no {folder} here: cars are generated. To get it, and unzip all:\n"
              f"kaggle competitions download -c carvana-image-masking-challenge -p {folder}")
        return [(n // 16, *shrink(*car(seed, n), size)) for n in range(1280)]
    files = {}
    for path in sorted(Path(folder).glob("*/*")):
        if path.suffix.lower() in Image.registered_extensions():
            key = (path.parent.name, path.stem.removesuffix("_mask"))
            first = files.setdefault(key, path)
            check(first == path, f"two files for one photo: {first} and {path}")
    pairs = []
    for (photos, name), path in files.items():
        found = files.get((FOLDERS.get(photos), name))
        if found:
            photo = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
            mask = open_mask(found)
            check(mask.size == photo.size, f"{path} and {found} differ in size")
            name = name.rpartition("_")[0] or name
            pairs.append((name, *shrink(photo, mask, size)))
    check(pairs, f"{folder} has no photos and masks in folders as {FOLDERS}")
    return pairs

def split(pairs):  # [(photo, mask)] to train, and to validate
    share = np.mean([np.mean(mask) for _, _, mask in pairs])
    print(f"{len(pairs)} photos; the object covers {share:.1%}")
    # Not by photo: with one car on both sides, a net would be praised for remembering it.
    cars = sorted({name for name, _, _ in pairs})
    check(len(cars) > 1, f"only photos of {cars[0]} (names up to the last _)")
    rest = [pair for name, *pair in pairs if name not in cars[::5]]
    return rest, [pair for name, *pair in pairs if name in cars[::5]]

def to_tensor(image):  # RGB Pillow image -> (3, H, W) float in [0, 1]
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255

class Crops(Dataset):  # squares to train on; number n follows from (seed, n) alone
    def __init__(self, pairs, size, seed=0):
        self.pairs, self.size, self.seed = pairs, size, seed

    def __getitem__(self, n):
        rng = np.random.default_rng([self.seed, n])
        photo, mask = self.pairs[rng.integers(len(self.pairs))]
        crop = partial(ImageOps.fit, size=(self.size, self.size), centering=rng.random(2))
        x = to_tensor(crop(photo, method=Image.BILINEAR))
        mask = np.array(crop(mask, method=Image.NEAREST))
        y = torch.from_numpy(mask)[None].float()
        return (x.flip(2), y.flip(2)) if rng.random() < 0.5 else (x, y)

# %% 3. Model: a ResNet without its end (He et al. 2016, table 1), and two heads
class BasicBlock(nn.Module):
    def __init__(self, before, after, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        shortcut = [nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)]
        self.downsample = nn.Sequential(*shortcut if before != after else [])

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.downsample(x))

def resnet(depth):  # runs its parts in this order; their names are torchvision's
    def layer(before, after, blocks, stride=2):
        rest = [BasicBlock(after, after) for _ in range(blocks - 1)]
        return nn.Sequential(BasicBlock(before, after, stride), *rest)

    blocks = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}[depth]
    net = nn.Sequential()                              # (B, 3, H, W)
    net.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)  # (B, 64, H/2, W/2)
    net.bn1 = nn.BatchNorm2d(64)
    net.relu = nn.ReLU()
    net.maxpool = nn.MaxPool2d(3, 2, 1)                # (B, 64, H/4, W/4)
    net.layer1 = layer(64, 64, blocks[0], stride=1)    # (B, 64, H/4, W/4)
    net.layer2 = layer(64, 128, blocks[1])             # (B, 128, H/8, W/8)
    net.layer3 = layer(128, 256, blocks[2])            # (B, 256, H/16, W/16)
    net.layer4 = layer(256, 512, blocks[3])            # (B, 512, H/32, W/32)
    return net

# A transposed convolution stamps its kernel for each pixel, a stride apart; stamps add up.
# n pixels become n' = s n + k - 2 p - s, so kernel 2 and stride 2 double. It brings back
# the size that a convolution took, not the values: it is no inverse. Kernel 3 and stride 2
# overlap unevenly: ones turn into 1 1 2 1 2 1 2, a checkerboard. Kernel 2 does not overlap.
up = partial(nn.ConvTranspose2d, kernel_size=2, stride=2)

class SimpleHead(nn.Sequential):  # has to guess 32 x 32 pixels from one
    def __init__(self, encoder, nf):
        super().__init__(                                # (B, 512, H/32, W/32)
            up(512, nf), nn.ReLU(), nn.BatchNorm2d(nf),  # (B, nf, H/16, W/16)
            up(nf, nf), nn.ReLU(), nn.BatchNorm2d(nf),   # (B, nf, H/8, W/8)
            up(nf, nf), nn.ReLU(), nn.BatchNorm2d(nf),   # (B, nf, H/4, W/4)
            up(nf, nf), nn.ReLU(), nn.BatchNorm2d(nf),   # (B, nf, H/2, W/2)
            up(nf, 1))                                   # (B, 1, H, W)

class UpBlock(nn.Module):  # (B, before, H, W) -> (B, nf, 2H, 2W), half from a skip
    def __init__(self, before, nf, layer, channels):
        super().__init__()
        self.skip = SaveFeatures(layer)
        self.up = up(before, nf // 2)
        self.conv = nn.Conv2d(channels, nf - nf // 2, 1)
        self.bn = nn.BatchNorm2d(nf)

    def forward(self, x):
        out = torch.cat([self.up(x), self.conv(self.skip.features)], dim=1)
        return self.bn(F.relu(out))

class UNet(nn.Sequential):
    """The encoder's sizes join the head's (Ronneberger 2015, figure 1; without its 3 x 3 convs).
    photo    3, H                          1, H
    relu    64, H/2   ------ skip ----->  nf, H/2    ^
    layer1  64, H/4   ------ skip ----->  nf, H/4    |
    layer2 128, H/8   ------ skip ----->  nf, H/8    |
    layer3 256, H/16  ------ skip ----->  nf, H/16   |
    layer4 512, H/32  -------------------------------+
    """

    def __init__(self, encoder, nf):
        super().__init__(                           # (B, 512, H/32, W/32)
            UpBlock(512, nf, encoder.layer3, 256),  # (B, nf, H/16, W/16)
            UpBlock(nf, nf, encoder.layer2, 128),   # (B, nf, H/8, W/8)
            UpBlock(nf, nf, encoder.layer1, 64),    # (B, nf, H/4, W/4)
            UpBlock(nf, nf, encoder.relu, 64),      # (B, nf, H/2, W/2)
            up(nf, 1))                              # (B, 1, H, W)

HEADS = {"simple": SimpleHead, "unet": UNet}  # README adds an FCN

class Segmenter(nn.Module):  # (B, 3, H, W) in [0, 1], any size -> (B, 1, H, W)
    def __init__(self, head, depth, nf, size):
        super().__init__()
        self.config = {"head": head, "depth": depth, "nf": nf, "size": size}
        self.encoder = resnet(depth)
        self.head = HEADS[head](self.encoder, nf)

    def forward(self, x):
        H, W = x.shape[2:]
        mean, std = x.new_tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
        x = F.pad((x - mean) / std, (0, -W % 32, 0, -H % 32), "replicate")
        return self.head(self.encoder(x))[..., :H, :W]

# %% 4. Loss: is this pixel of the object?
pixel_loss = F.binary_cross_entropy_with_logits  # of logits, masks: (B, 1, H, W)

# %% 5. Metric and baseline: accuracy, Dice and IoU, beside background everywhere
@torch.no_grad()
def predict(model, photo):  # RGB Pillow image -> (H, W) bool, of its own size
    size = model.config["size"]
    x = to_tensor(ImageOps.cover(photo, (size, size), Image.BILINEAR))[None]
    logits = model.eval()(x.to(next(model.parameters()).device))
    logits = F.interpolate(logits, photo.size[::-1], mode="bilinear")
    return (logits[0, 0] > 0).cpu().numpy()

def evaluate(net, pairs):
    """(N, 3): accuracy, Dice and IoU of each photo; net: photo -> (H, W) bool."""
    scores = []
    for photo, mask in pairs:
        truth = np.array(mask) > 0
        pred = net(photo)
        areas = truth.sum() + pred.sum()
        dice = 2 * (truth & pred).sum() / areas if areas else 1  # none, and none found
        iou = dice / (2 - dice)  # overlap over union
        scores.append([(truth == pred).mean(), dice, iou])
    return np.array(scores)

def compare(nets, pairs):  # prints the mean scores of each net; returns all of them
    print(f"{len(pairs)} photos    accuracy     Dice      IoU")
    scores = {name: evaluate(net, pairs) for name, net in nets.items()}
    for name, values in scores.items():
        print(f"{name:12}", *(f"{mean:9.4f}" for mean in values.mean(0)))
    return scores

# %% 6. Training
def load_checkpoint(path, net=None):
    """Fill net, or a new one, from what train wrote. Return it, and the whole dict."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        net = net or Segmenter(**checkpoint["config"])
        net.load_state_dict(checkpoint["model"])
        print(f"loaded {path} (step {checkpoint['step']})")
        return net, checkpoint
    except Exception as error:  # no file, another script's, other layers: all kinds
        raise SystemExit(f"{path} is no checkpoint for this: {error!r:.200}") from None

def train(model, ratios, path, steps, crops, pairs, args):
    """Train to `steps`. ratios: of the rates of early layers (to layer2), late ones and head."""
    early = {"params": model.encoder[:6].parameters()}
    late = {"params": model.encoder[6:].parameters()}
    head = {"params": model.head.parameters()}
    optimizer = torch.optim.Adam([early, late, head])
    model.encoder.requires_grad_(ratios[0] > 0)
    start = 0
    if args.resume and path.exists():
        checkpoint = load_checkpoint(path, model)[1]
        optimizer.load_state_dict(checkpoint["optimizer"])
        start = checkpoint["step"]
    rest = range(start * args.batch_size, steps * args.batch_size)
    batches = DataLoader(crops, args.batch_size, sampler=rest)
    for step, (x, y) in enumerate(batches, start + 1):
        model.train()
        model.encoder.train(ratios[0] == 1)  # BatchNorm keeps ImageNet's
        loss = pixel_loss(model(x.to(args.device)), y.to(args.device))
        cosine = 0.5 + 0.5 * math.cos(math.pi * step / steps)  # after a short warm-up
        for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
            group["lr"] = ratio * args.lr * min(1, step / 50) * cosine
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1)
        check(norm.isfinite(), f"the gradient is {norm}: lower --lr; {path} is still good")
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step:6}/{steps} | loss {loss:.4f}")
        if step % args.eval_every == 0 or step == steps:
            scores = evaluate(partial(predict, model), pairs).mean(0)
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                        "step": step, "config": model.config, "args": vars(args)}, f"{path}.tmp")
            Path(f"{path}.tmp").replace(path)  # it has its name only when it is whole
            with open(path.with_name("log.csv"), "a") as log:
                if log.tell() == 0:
                    print("stage,step,loss,accuracy,dice,iou", file=log)
                print(path.stem, step, loss.item(), *scores, sep=",", file=log)
            print(f"eval {step:6}/{steps} | Dice {scores[1]:.4f} | saved {path}")

# %% 7. Use it
def apply(model, paths, out):  # writes out/<stem>_mask.png, white for the object
    out.mkdir(parents=True, exist_ok=True)
    for path in paths:
        target = out / f"{Path(path).stem}_mask.png"
        check(not target.exists(), f"{target} exists: move it away, or give another --out")
        photo = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        Image.fromarray(predict(model, photo)).save(target)
        print(f"{path} -> {target}")

def overlay(photo, pred, truth):  # the photo grey, the object blue, errors red
    image = np.array(photo.convert("L").convert("RGB"))
    image[pred] = image[pred] // 2 + np.uint8([0, 60, 127])
    image[pred != truth] = 255, 0, 0
    return Image.fromarray(image)

def draw_figure(path, nets, scores, pairs):
    """A row a pair: photo | truth | each net, its errors red. The last is the worst."""
    sheet = Image.new("RGB", (264 * (len(nets) + 2), 292 * 3), "white")
    worst = scores[[*nets][-1]][:, 1].argmin()
    for i, number in enumerate([0, len(pairs) // 3, worst]):
        photo, mask = pairs[number]
        truth = np.array(mask) > 0
        row = {"photo" if i < 2 else "the worst": photo, "truth": overlay(photo, truth, truth)}
        for name, net in nets.items():
            dice = evaluate(net, [pairs[number]])[0, 1]
            row[f"{name}: Dice {dice:.3f}"] = overlay(photo, net(photo), truth)
        for j, (title, image) in enumerate(row.items()):
            ImageDraw.Draw(sheet).text((264 * j + 4, 292 * i), title, "black", font_size=22)
            sheet.paste(ImageOps.contain(image, (256, 256)), (264 * j + 4, 292 * i + 28))
    sheet.save(path)
    print(f"figure: {path}, errors in red")

# %% 8. Main
def load_resnet(depth):  # None without its file
    name = {18: "resnet18-f37072fd.pth", 34: "resnet34-b627a593.pth"}[depth]
    url = f"https://download.pytorch.org/models/{name}"  # torchvision's
    try:
        state = torch.hub.load_state_dict_from_url(url, check_hash=True, weights_only=True)
        return {key: state[key] for key in state if not key.startswith("fc.")}
    except Exception as error:
        print(f"no {url} ({error}); put it into {torch.hub.get_dir()}/checkpoints\n"
              "The ResNet starts at random.")

def main(argv=None):
    args = get_args(argv)
    out = Path(args.out)
    if args.apply:
        model = load_checkpoint(args.init or out / "unet-64px.pt")[0].to(args.device)
        return apply(model, args.apply, out)
    check(args.batch_size > 1 or min(args.sizes) > 32, "BatchNorm takes --batch-size 2")
    pairs, val = split(find_pairs(args.data, max(256, *args.sizes), args.seed))
    state = None if args.init or args.weights == "random" else load_resnet(args.encoder)
    rates = (0.01, 0.1, 1) if state or args.init else (1, 1, 1)
    stages = [(f"{size}px", size, rates, args.steps) for size in args.sizes]
    if state:  # first the head alone, as its noise harms the encoder
        stages.insert(0, ("frozen", args.sizes[0], (0, 0, 1), args.steps // 4))
    if (out / "log.csv").exists() and not args.resume:
        check(out not in Path(args.init or "").parents, "--init is in --out: give another --out")
        print("earlier run kept as", out.rename(f"{out}-{time.strftime('%Y%m%d-%H%M%S')}"))
    out.mkdir(parents=True, exist_ok=True)
    nets = {}
    for name in args.model:
        torch.manual_seed(args.seed)
        model = Segmenter(name, args.encoder, args.nf, args.sizes[0])
        if state:
            model.encoder.load_state_dict(state)
        if args.init:
            load_checkpoint(args.init, model)
        model.to(args.device, memory_format=torch.channels_last)
        for stage, size, ratios, steps in stages:
            model.config["size"] = size
            crops = Crops(pairs, size, args.seed)
            small = [shrink(*pair, size) for pair in val]
            train(model, ratios, out / f"{name}-{stage}.pt", steps, crops, small, args)
        nets[name] = partial(predict, model)
    background = {"background": lambda photo: np.zeros(photo.size[::-1], bool)}
    draw_figure(out / "figure.png", nets, compare(background | nets, small), val)

if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # for odd file names
    try:
        main()
    except (KeyboardInterrupt, OSError) as error:  # Ctrl-C; no space, no permission
        raise SystemExit(f"stopped: {str(error) or 'Ctrl-C; --resume goes on'}") from None
