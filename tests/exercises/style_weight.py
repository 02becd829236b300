"""How much painting: at which weight of the style is the photo gone? (★, 1 minute)

Optimise the pixels of the cat three times, with `--style-weight` 1, 5 and 50. The
painting is `tests/data/painting.png`. Look at the three pictures: in which can you
still find the eyes? Then compare the distances in content and in style, both without
their weights.

Run `python tests/exercises/style_weight.py`; a number behind it sets the steps.
"""
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch
from figures import DATA, sheet
from PIL import ImageOps

import style

def open_square(path, side):
    """(1, 3, side, side): the middle of a picture."""
    image = ImageOps.fit(style.open_image(path), (side, side))
    return style.to_tensor(image)[None]


def main():
    steps = sys.argv[1] if len(sys.argv) > 1 else "20"
    tiles = {}
    for weight in 1, 5, 50:
        args = style.get_args(["--device", "cpu", "--content-size", "192",
                               "--style-weight", f"{weight}",
                               "--optimize-steps", steps])
        photo = open_square(DATA / "photos/cat.jpg", args.content_size)
        painting = open_square(DATA / "painting.png", args.style_size)
        perceptual = style.PerceptualLoss(painting, args)
        name = f"weight {weight}"
        image, _ = style.optimize(photo, perceptual, name, os.devnull, args)
        tiles["photo"] = style.to_image(photo[0])
        tiles[name] = style.to_image(image[0])

        # 0 is equal, 1 is as far off as a picture in which VGG sees nothing.
        with torch.no_grad():
            parts = perceptual(image, perceptual.content(photo))
        content, strokes = parts["content"].item(), parts["style"].item() / weight
        print(f"{name}: content {content:.3f}, style {strokes:.3f}")

    path = Path("out/exercises/style_weight.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet([tiles]).save(path)
    print(path)


if __name__ == "__main__":
    main()
