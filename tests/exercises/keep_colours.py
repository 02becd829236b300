"""The photo's own colours: how do you take the strokes alone? (★★, 1 minute)

A network trained for one painting brings strokes and colours at once. Take the
brightness of the stylised picture, and the colours of the photo. Pillow splits a
picture so with `convert("YCbCr")`. Look at the cup: do strokes without colours still
look like the painting?

Run `python tests/exercises/keep_colours.py`.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch
from figures import DATA, sheet
from PIL import Image

import style

def keep_colours(styled, photo):
    brightness, _, _ = styled.convert("YCbCr").split()
    _, blue, red = photo.convert("YCbCr").split()
    return Image.merge("YCbCr", (brightness, blue, red)).convert("RGB")


@torch.no_grad()
def main():
    photo = style.open_image(DATA / "photos/coffee.jpg")
    model = style.load_checkpoint(DATA / "nets/night.pt")
    styled = style.to_image(model(style.to_tensor(photo)[None])[0])

    path = Path("out/exercises/keep_colours.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    tiles = {"photo": photo, "stylised": styled,
             "its own colours": keep_colours(styled, photo)}
    sheet([tiles], 288).save(path)
    print(path)


if __name__ == "__main__":
    main()
