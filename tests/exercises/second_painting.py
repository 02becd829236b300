"""A second painting: how few numbers must a network learn anew? (★★★, 4 minutes)

Take `tests/data/nets/night.pt`, and train nothing but the scales and the shifts of its
instance norms (Dumoulin 2017). `style.py` calls `load_checkpoint` for `--init`: there
you can freeze the rest. The second painting is a sunset that `tests/painting.py` draws.
Look at the cat after both paintings: what has changed, the colours, the strokes, or
both?

Run `python tests/exercises/second_painting.py`; a number behind it sets the steps.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import numpy as np
import torch
from figures import DATA, sheet
from painting import painting
from PIL import ImageOps
from torch import nn

import style
from style import load_checkpoint

OUT = Path("out/exercises/second_painting")
NIGHT = DATA / "nets/night.pt"
HUES = np.array([(60, 20, 50), (150, 40, 50), (220, 90, 40), (250, 180, 70),
                 (250, 235, 200)])


def only_norms(path):
    model = load_checkpoint(path)
    for module in model.modules():
        module.requires_grad_(isinstance(module, nn.InstanceNorm2d))
    return model


def count(model):
    """How many numbers are trained, and how many there are."""
    parameters = [*model.parameters()]
    return (sum(values.numel() for values in parameters if values.requires_grad),
            sum(values.numel() for values in parameters))


@torch.no_grad()
def redraw(path, photo):
    return style.to_image(load_checkpoint(path)(style.to_tensor(photo)[None])[0])


def main():
    steps = sys.argv[1] if len(sys.argv) > 1 else "300"
    OUT.parent.mkdir(parents=True, exist_ok=True)
    sunset = painting(1, 512, HUES)
    sunset.save(f"{OUT}-sunset.png")

    style.load_checkpoint = only_norms
    style.main(["--init", str(NIGHT), "--style", f"{OUT}-sunset.png", "--lr", "2e-2",
                "--data", str(DATA / "photos"), "--steps", steps,
                "--optimize-steps", "0", "--device", "cpu", "--out", str(OUT)])

    photo = ImageOps.fit(style.open_image(DATA / "photos/cat.jpg"), (256, 256))
    tiles = {"photo": photo, "night.pt": redraw(NIGHT, photo),
             "second painting": sunset,
             "its norms trained": redraw(OUT / "network.pt", photo)}
    sheet([tiles]).save(f"{OUT}.png")
    print("{:,} of {:,} numbers were trained".format(*count(only_norms(NIGHT))))
    print(f"{OUT}.png")


if __name__ == "__main__":
    main()
