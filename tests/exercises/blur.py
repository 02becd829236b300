"""Johnson's input: what if a photo is blurred before it is reduced? (★★, 1 minute)

Johnson et al. blur a photo, with sigma 1, before they reduce it. Where does that go?
Write it. Then enlarge such an input by `tests/data/nets/x4.pt`, which has learned from
photos that were only reduced. Look at the eye beside that of the input without a blur.

Run `python tests/exercises/blur.py`; nothing is trained.
"""
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from figures import DATA, sheet
from PIL import Image, ImageFilter

import sr

def make_pair(photo, scale, side=math.inf, sigma=1):
    low, high = sr.make_pair(photo, scale, side)
    blurred = high.filter(ImageFilter.GaussianBlur(sigma))
    return blurred.resize(low.size, Image.BICUBIC), high


def main():
    photo = sr.open_image(DATA / "photos/cat.jpg")
    model, _ = sr.load_checkpoint(DATA / "nets/x4.pt")
    pairs = {"not blurred": sr.make_pair(photo, 4), "blurred": make_pair(photo, 4)}
    images = {}
    for name, (low, high) in pairs.items():
        results = {"bicubic": low.resize(high.size, Image.BICUBIC),
                   "x4.pt": sr.enlarge(model, low)}
        for method, large in results.items():
            psnr = sr.measure(large, high, border=4)[0]
            print(f"{name:12} {method:8} {psnr:.2f} dB")
        images[f"{name}: {psnr:.2f} dB"] = large

    images["truth"] = high
    tiles = {title: image.crop((124, 66, 220, 162)).resize((288, 288), Image.NEAREST)
             for title, image in images.items()}
    path = Path("out/exercises/blur.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet([tiles], 288).save(path)
    print(path)


if __name__ == "__main__":
    main()
