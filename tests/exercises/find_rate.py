"""Which rate: how do you find a learning rate without trying many? (★★, 1 minute)

The course raises the rate at each step, from far too small to far too large, and plots
the loss (Smith 2017, 3.3). Write this range test for the U-Net and the streets. Look at
the curve. The loss is lowest shortly before all goes wrong: a tenth of that rate, or
less, is a good choice.

Run `python tests/exercises/find_rate.py`; a number behind it sets the steps.
"""
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader

import seg

def find_lr(model, crops, steps=100, batch_size=8):
    """[(rate, loss)] for rates from 1e-5 to 1."""
    optimizer = torch.optim.Adam(model.parameters())
    curve = []
    batches = DataLoader(crops, batch_size, sampler=range(steps * batch_size))
    for step, (x, y) in enumerate(batches):
        lr = 10 ** (5 * step / steps - 5)
        optimizer.param_groups[0]["lr"] = lr
        loss = seg.pixel_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"lr {lr:.1e} | loss {loss:.4f}")
        curve.append((lr, loss.item()))
    return curve


def draw(curve):
    """The loss over the rate, from 0 to twice the first loss. A decade takes 150 px."""
    image = Image.new("RGB", (830, 460), "white")
    pen = ImageDraw.Draw(image)
    most = 2 * curve[0][1]
    for exponent in range(-5, 1):
        x = 40 + 150 * (exponent + 5)
        pen.line((x, 20, x, 420), "lightgrey")
        pen.text((x, 440), f"1e{exponent}", "black", font_size=18, anchor="mm")
    pen.text((415, 12), f"the loss, 0 to {most:.2f}, over the rate", "black",
             font_size=18, anchor="mm")
    points = []
    for lr, loss in curve:
        height = min(loss, most) / most if math.isfinite(loss) else 1
        points.append((40 + 150 * (math.log10(lr) + 5), 420 - 400 * height))
    pen.line(points, "crimson", 3)
    return image


def main():
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    args = seg.get_args(["--device", "cpu"])
    classes, groups = seg.find_pairs(args.data)
    crops = seg.Crops(seg.split(groups)[0], args.size, args.seed)
    torch.manual_seed(args.seed)
    model = seg.Segmenter("unet", args.nf, args.size, classes)
    curve = find_lr(model, crops, steps, args.batch_size)

    path = Path("out/exercises/find_rate.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(curve).save(path)
    best, _ = min((point for point in curve if math.isfinite(point[1])),
                  key=lambda point: point[1])
    print(f"the loss is lowest at {best:.1e}; a tenth of it is {best / 10:.1e}")
    print(path)


if __name__ == "__main__":
    main()
