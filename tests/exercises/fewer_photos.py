"""Fewer photos: how many photos does super-resolution need? (★, 2 minutes)

`sr.py` learns from seven of the nine photos in `tests/data/photos`. Let one net learn
from one photo, one from three and one from all seven, for the same number of steps. All
you change is the list of photos that `sr.Crops` cuts from. Look at the gain over
bicubic on the cat and the raccoon, which none of the nets has seen.

Run `python tests/exercises/fewer_photos.py`; a number behind it sets the steps.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch
import torch.nn.functional as F
from figures import DATA
from PIL import Image

import sr

OUT = Path("out/exercises/fewer_photos")


def learn(photos, pairs, steps, args):
    """The default net after some steps of the pixel loss on crops of these photos."""
    torch.manual_seed(args.seed)
    model = sr.SrResnet(args.scale, args.nf, args.blocks)
    model.to(memory_format=torch.channels_last)
    crops = sr.Crops(photos, args.size, args.scale, args.seed)
    path = OUT / f"{len(photos)}.pt"
    sr.train(model, F.l1_loss, path, steps, args.lr, crops, pairs, args)
    return model


def main():
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    args = sr.get_args(["--device", "cpu"])
    OUT.mkdir(parents=True, exist_ok=True)

    # As in sr.py, the cat and the raccoon are held out.
    photos = sr.find_photos(str(DATA / "photos"), OUT)
    held_out = [sr.open_image(path) for path in photos[2::5]]
    pairs = [sr.make_pair(photo, args.scale, side=256) for photo in held_out]
    del photos[2::5]

    results = {"bicubic": [low.resize(high.size, Image.BICUBIC) for low, high in pairs]}
    for count in 1, 3, 7:
        model = learn(photos[:count], pairs, steps, args)
        results[f"{count} learned"] = [sr.enlarge(model, low) for low, _ in pairs]

    scores = sr.compare(results, pairs)
    for name, values in scores.items():
        gain = (values - scores["bicubic"])[:, 0].mean()
        print(f"{name:12} {gain:+9.2f} dB against bicubic")


if __name__ == "__main__":
    main()
