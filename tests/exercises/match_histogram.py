"""Histogram matching: how does a picture get the colours of another one? (★★, 1 minute)

A net that learned from features alone shifts colours. Johnson et al. give its result
the distribution of the small photo's colours, which is known. Write that: each grey
value moves to the value of equal rank in the reference, channel by channel. Look at a
photo whose red was raised and whose blue was lowered, before and after. What does not
come back, and why?

Run `python tests/exercises/match_histogram.py`.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import numpy as np
from figures import DATA, sheet
from PIL import Image

import sr

def match_histogram(image, reference):
    tables = []
    for band, wanted in zip(image.split(), reference.split(), strict=True):
        count = np.array(band.histogram())
        rank = (count.cumsum() - count / 2) / count.sum()
        table = np.quantile(np.asarray(wanted), rank, method="inverted_cdf")
        tables += table.astype(int).tolist()
    return image.point(tables)


def main():
    photo = sr.open_image(DATA / "photos/coffee.jpg")
    low, photo = sr.make_pair(photo, 4)
    shifted = np.clip(np.array(photo) + (40, 0, -40), 0, 255)
    shifted = Image.fromarray(shifted.astype(np.uint8))
    images = {"photo": photo, "shifted": shifted,
              "matched": match_histogram(shifted, low)}

    for name, image in {"small photo": low, **images}.items():
        red, green, blue = np.array(image).mean((0, 1))
        print(f"{name:12} red {red:5.1f}, green {green:5.1f}, blue {blue:5.1f}")
    path = Path("out/exercises/match_histogram.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet([images], 288).save(path)
    print(path)


if __name__ == "__main__":
    main()
