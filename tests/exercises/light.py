"""Light: does a net that learned in varied light see in the dark? (★★, 4 minutes)

The course also varies the brightness and the contrast of the photos that it learns
from. Where does that go, and what must not change? Train the U-Net with and without.
Then darken the held-out photos to 0.6 of their brightness. Look at the two columns
"dark".

Run `python tests/exercises/light.py`; a number behind it sets the steps.
"""
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import numpy as np
import torch
from PIL import ImageEnhance

import seg
import style

def jitter(photo, rng):
    photo = ImageEnhance.Brightness(photo).enhance(rng.uniform(0.8, 1.25))
    return ImageEnhance.Contrast(photo).enhance(rng.uniform(0.8, 1.25))


class LitCrops(seg.Crops):
    """The same crops as without, in another light."""

    def __getitem__(self, number):
        x, y = super().__getitem__(number)
        rng = np.random.default_rng([self.seed, number, 1])
        return seg.to_tensor(jitter(style.to_image(x), rng)), y


def learn(crops, val, classes, steps, args):
    torch.manual_seed(args.seed)
    model = seg.Segmenter("unet", args.nf, args.size, classes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "unet.pt")
        seg.train(model, [(model, args.lr)], path, steps, crops, val, args)
    return model


def in_the_dark(model):
    return lambda photo: model.predict(ImageEnhance.Brightness(photo).enhance(0.6))


def main():
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    args = seg.get_args(["--device", "cpu", "--eval-every", "1000"])
    classes, groups = seg.find_pairs(args.data)
    pairs, held_out = seg.split(groups)
    val = [seg.open_pair(*pair, args.size) for pair in held_out]

    methods = {}
    for name, kind in ("plain", seg.Crops), ("varied", LitCrops):
        crops = kind(pairs, args.size, args.seed)
        model = learn(crops, val, classes, steps, args)
        methods |= {name: model.predict, f"{name[:5]} dark": in_the_dark(model)}
    seg.compare(methods, val, classes)


if __name__ == "__main__":
    main()
