"""JPEG input: can a net learn to enlarge photos that were compressed? (★★, 1 minute)

`sr.py` learns to undo a clean reduction, but small photos of the web are JPEG. Compress
`low` in the making of a pair, at quality 30. Go on from `tests/data/nets/x4.pt`, with
400 steps at a rate of 1e-3. Look at the cat: what becomes of the blocks and of the
noise around edges?

Run `python tests/exercises/jpeg_input.py`; a number behind it sets the steps.
"""
import io
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch.nn.functional as F
from figures import DATA, sheet
from PIL import Image

import sr
from sr import make_pair

OUT = Path("out/exercises/jpeg_input")


def jpeg(image, quality=30):
    """The same image, compressed and read again."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def jpeg_pair(photo, scale, side=math.inf):
    low, high = make_pair(photo, scale, side)
    return jpeg(low), high


def main():
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    args = sr.get_args(["--device", "cpu", "--lr", "1e-3"])
    OUT.mkdir(parents=True, exist_ok=True)
    sr.make_pair = jpeg_pair  # sr.Crops takes it from there

    # As in sr.py, the cat and the raccoon are held out.
    photos = sr.find_photos(str(DATA / "photos"), OUT)
    held_out = [sr.open_image(path) for path in photos[2::5]]
    pairs = [sr.make_pair(photo, args.scale, side=256) for photo in held_out]
    del photos[2::5]

    model, _ = sr.load_checkpoint(DATA / "nets/x4.pt")
    results = {"bicubic": [low.resize(high.size, Image.BICUBIC) for low, high in pairs],
               "x4.pt": [sr.enlarge(model, low) for low, _ in pairs]}
    crops = sr.Crops(photos, args.size, args.scale, args.seed)
    sr.train(model, F.l1_loss, OUT / "jpeg.pt", steps, args.lr, crops, pairs, args)
    results["knows JPEG"] = [sr.enlarge(model, low) for low, _ in pairs]
    sr.compare(results, pairs)

    # The first photo is the cat. One of its eyes fills the tiles.
    low, high = pairs[0]
    images = {"JPEG": low.resize(high.size, Image.NEAREST)}
    images |= {name: large[0] for name, large in results.items()} | {"truth": high}
    tiles = {name: image.crop((26, 42, 122, 138)).resize((288, 288), Image.NEAREST)
             for name, image in images.items()}
    sheet([tiles], 288).save(f"{OUT}.png")
    print(f"{OUT}.png")


if __name__ == "__main__":
    main()
