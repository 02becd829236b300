"""Film of paint: what comes first out of noise, the cat or the strokes? (★, 1 minute)

Start from noise (`--start noise`), and let one optimisation paint the cat. Keep a copy
of the picture after 0, 5, 15 and 40 steps. The loss is called once a step with the
picture itself, so a subclass of `PerceptualLoss` can keep the copies. Look at what is
there at each moment.

Run `python tests/exercises/film_of_paint.py`; a number behind it sets the steps.
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

class Camera(style.PerceptualLoss):
    """The loss; it keeps the pictures that it is asked about at some of the steps."""

    def __init__(self, painting, args, moments):
        super().__init__(painting, args)
        self.moments = moments
        self.step = 0
        self.pictures = {}

    def __call__(self, out, content):
        if self.step in self.moments:
            self.pictures[f"{self.step} steps"] = style.to_image(out[0].detach())
        self.step += 1
        return super().__call__(out, content)


def main():
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    args = style.get_args(["--device", "cpu", "--start", "noise",
                           "--optimize-steps", f"{steps}"])
    sides = args.content_size, args.style_size
    files = DATA / "photos/cat.jpg", DATA / "painting.png"
    photo, painting = (ImageOps.fit(style.open_image(file), (side, side))
                       for file, side in zip(files, sides, strict=True))

    moments = {0, steps // 8, 3 * steps // 8, steps}
    camera = Camera(style.to_tensor(painting)[None], args, moments)
    torch.manual_seed(args.seed)
    style.optimize(style.to_tensor(photo)[None], camera, "cat", os.devnull, args)

    path = Path("out/exercises/film_of_paint.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet([{"photo": photo} | camera.pictures]).save(path)
    print(path)


if __name__ == "__main__":
    main()
