"""Overlay: how well does a mask follow the edges of its photo? (★, 1 minute)

Lay a mask over its photo, half transparent, with white borders between the classes. The
mask is a PNG with a palette, as `seg.py --apply` writes it. Pillow's `blend` mixes, and
two pixels lie at a border where the numbers of their classes differ. Look at the poles
and at the trees.

Run `python tests/exercises/overlay.py`, or put the paths of a photo and of a mask
behind it.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import numpy as np
from figures import DATA
from PIL import Image

import seg

def overlay(photo, mask):
    """RGB photo, mask with a palette, of any size -> RGB."""
    mask = mask.resize(photo.size, Image.NEAREST)
    mixed = np.array(Image.blend(photo, mask.convert("RGB"), 0.5))

    # Both pixels of a pair are painted white, side by side, then one above the other.
    numbers = np.array(mask)
    across = numbers[:, 1:] != numbers[:, :-1]
    down = numbers[1:] != numbers[:-1]
    for border, first, second in ((across, mixed[:, :-1], mixed[:, 1:]),
                                  (down, mixed[:-1], mixed[1:])):
        first[border] = second[border] = 255
    return Image.fromarray(mixed)


def example():
    """A drawn street and its mask, three times as large."""
    name = "street00_0"
    photo = seg.open_photo(DATA / f"streets/images/{name}.jpg").resize((768, 768))
    numbers = np.array(Image.open(DATA / f"streets/masks/{name}.png"))
    return photo, seg.paint(numbers, numbers)


def main():
    if len(sys.argv) > 2:
        photo, mask = seg.open_photo(sys.argv[1]), Image.open(sys.argv[2])
    else:
        photo, mask = example()
    path = Path("out/exercises/overlay.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    overlay(photo, mask).save(path)
    print(path)


if __name__ == "__main__":
    main()
