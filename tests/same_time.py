"""The same photos, the same seconds: these scripts' defaults beside widely used recipes.

    LESSON_DATA=data python tests/same_time.py --seconds 160

LESSON_DATA holds imagenet_sample, Set5, style/starry_night.jpg, carvana and torch_home. The
recipes are rebuilt here from their settings: pytorch/examples' super_resolution (ESPCN on luma,
Shi 2016) and fast_neural_style, and milesial's U-Net (from scratch). All of them are made for
hours on a GPU; what they reach in three minutes on a CPU says nothing about that.
"""
import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import nn
from torch.utils.data import DataLoader

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import seg  # noqa: E402
import sr  # noqa: E402
import style  # noqa: E402
from common import VGGFeatures, gram_matrix  # noqa: E402

def train(net, loss_fn, optimizer, crops, batch, seconds):
    """Steps until the time is up; how many they were."""
    start = time.time()
    steps = 0
    for items in DataLoader(crops, batch, sampler=range(10**7)):
        loss = loss_fn(net, items)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        if time.time() - start > seconds:
            return steps


def espcn(folder, seconds):
    """Set5 x4 in dB. Four convs on luma, MSE, Adam 1e-3, 4 crops of 256 px a step."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 64, 5, padding=2), nn.ReLU(),
                        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
                        nn.Conv2d(64, 32, 3, padding=1), nn.ReLU(),
                        nn.Conv2d(32, 16, 3, padding=1), nn.PixelShuffle(4))
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)

    def luma(x):
        return (x * weights).sum(-3, keepdim=True)

    def loss_fn(net, items):
        low, high = items
        return F.mse_loss(net(luma(low)), luma(high))

    @torch.no_grad()
    def enlarge(image):
        size = (4 * image.width, 4 * image.height)
        y, cb, cr = image.convert("YCbCr").split()
        y = net(torch.from_numpy(np.array(y))[None, None] / 255)
        y = Image.fromarray((255 * y[0, 0]).round().clamp(0, 255).byte().numpy())
        return Image.merge("YCbCr", [y, cb.resize(size, Image.BICUBIC),
                                     cr.resize(size, Image.BICUBIC)]).convert("RGB")

    paths = sr.find_photos(str(folder / "imagenet_sample"), Path("out"))
    crops = sr.Crops([path for path in paths if min(sr.open_image(path).size) >= 256], 256, 4)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    steps = train(net, loss_fn, optimizer, crops, 4, seconds)
    paths = sr.find_photos(str(folder / "Set5"), Path("out"))
    pairs = [sr.make_pair(sr.open_image(path), 4) for path in paths]
    psnr = sr.evaluate([enlarge(low) for low, _ in pairs], pairs).mean(0)[0]
    print(f"ESPCN, {steps} steps: Set5 x4 {psnr:.2f} dB")


def fast_neural_style(folder, seconds):
    """Total loss of style.py on 8 photos, unseen, at 192 px. 32 channels, squared distances
    (content 1e5, Gram matrices 1e10), max pools, no variation, Adam 1e-3, batch 4 at 256 px."""
    torch.manual_seed(0)
    net = style.StyleNet(32).layers  # the same layers; its sigmoid is style.py's own
    painting = style.open_image(folder / "style/starry_night.jpg")
    layers = ["relu1_2", "relu2_2", "relu3_3", "relu4_3"]
    vgg = VGGFeatures(layers, pool=nn.MaxPool2d)
    square = ImageOps.fit(painting, (256, 256), centering=(1, 0))
    grams = {k: gram_matrix(v) for k, v in vgg(style.to_tensor(square)[None]).items()}

    def loss_fn(net, x):
        with torch.no_grad():
            target = vgg(x)["relu2_2"]
        features = vgg(net(x))
        strokes = sum(F.mse_loss(gram_matrix(features[k]), grams[k].expand(len(x), -1, -1))
                      for k in layers)
        return 1e5 * F.mse_loss(features["relu2_2"], target) + 1e10 * strokes

    paths = style.find_photos(str(folder / "imagenet_sample"), Path("out"))
    unseen = [style.to_tensor(ImageOps.fit(style.open_image(path), (192, 192)))[None]
              for path in paths[:160:20]]
    del paths[::20]
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    steps = train(net, loss_fn, optimizer, style.Crops(paths, 256), 4, seconds)
    args = style.get_args(["--device", "cpu"])
    perceptual = style.PerceptualLoss(style.to_tensor(square)[None], args)
    totals = [style.evaluate(method, perceptual, unseen)["total"]
              for method in (lambda x: net(x).clamp(0, 1), nn.Identity())]
    print(f"fast_neural_style, {steps} steps: total {totals[0]:.2f}, of the photos {totals[1]:.2f}")


def double_conv(before, after):
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False),
                         nn.BatchNorm2d(after), nn.ReLU(),
                         nn.Conv2d(after, after, 3, padding=1, bias=False),
                         nn.BatchNorm2d(after), nn.ReLU())


class PlainUNet(nn.Module):
    """64 to 1,024 channels, four times down and up, (B, 3, H, W) -> (B, 1, H, W)."""

    def __init__(self):
        super().__init__()
        channels = [64, 128, 256, 512, 1024]
        self.start = double_conv(3, 64)
        self.down = nn.ModuleList(double_conv(c, 2 * c) for c in channels[:-1])
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * c, c, 2, 2) for c in channels[-2::-1])
        self.join = nn.ModuleList(double_conv(2 * c, c) for c in channels[-2::-1])
        self.end = nn.Conv2d(64, 1, 1)

    def forward(self, x):
        skips = [self.start(x)]
        for down in self.down:
            skips.append(down(F.max_pool2d(skips[-1], 2)))
        x = skips.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([skips.pop(), up(x)], dim=1))
        return self.end(x)


def plain_unet(folder, seconds):
    """Dice of cars, unseen, at 128 px. BCE + 1 - Dice, RMSprop 1e-5, momentum 0.999, batch 1."""
    torch.manual_seed(0)
    net = PlainUNet()

    def loss_fn(net, items):
        x, y = items
        logits, y = net(x), y[:, None].float()
        prob = logits.sigmoid()
        dice = 2 * (prob * y).sum() / (prob.sum() + y.sum())
        return F.binary_cross_entropy_with_logits(logits, y) + 1 - dice

    @torch.no_grad()
    def predict(photo):
        logits = net.eval()(seg.to_tensor(photo)[None])
        logits = F.interpolate(logits, photo.size[::-1], mode="bilinear")
        return (logits[0, 0] > 0).byte().numpy()

    classes, groups = seg.find_pairs(folder / "carvana")
    pairs, held_out = seg.split(groups)
    val = [seg.open_pair(*pair, 128) for pair in held_out]
    optimizer = torch.optim.RMSprop(net.parameters(), 1e-5, weight_decay=1e-8, momentum=0.999)
    net.train()
    steps = train(net, loss_fn, optimizer, seg.Crops(pairs, 128), 1, seconds)
    scores = seg.evaluate(predict, val, classes)
    print(f"plain U-Net, {steps} steps: Dice {scores['Dice of object']:.3f}")


RECIPES = {"espcn": espcn, "fast_neural_style": fast_neural_style, "plain_unet": plain_unet}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {' '.join(RECIPES)}")
    parser.add_argument("--seconds", type=float, default=160, help="of training, each")
    args = parser.parse_args(argv)
    sr.check(os.environ.get("LESSON_DATA"), "LESSON_DATA names no folder with photos")
    folder = (ROOT / os.environ["LESSON_DATA"]).resolve()
    os.environ["TORCH_HOME"] = str(folder / "torch_home")
    for name in args.names or RECIPES:
        sr.check(name in RECIPES, f"no recipe {name}: there are {' '.join(RECIPES)}")
        RECIPES[name](folder, args.seconds)


if __name__ == "__main__":
    main()
