"""Pictures that are drawn, for the claims and for speed: what learns from them as from photos?"""
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

def dead_leaves(seed, number, side=320):
    """A Pillow image with the statistics of a photo: opaque leaves of any size (Lee 2001)."""
    rng = np.random.default_rng([seed, number])
    canvas = 3 * side  # twice the size for smooth edges, and half more to cut its corners off
    image = Image.new("RGB", (canvas, canvas))
    smallest = 2.0 * rng.choice([2, 4, 8])
    hues = 255 * rng.random((rng.integers(2, 6), 3))
    for _ in range(int((canvas / smallest)**2 / 8)):  # enough to cover it three times
        radius = smallest * rng.random() ** -0.5      # density r^-3: equal areas at all scales
        centre = canvas * rng.random(2)
        radii = radius * 2 ** rng.uniform(-1, 1, 2)
        colour = rng.choice(hues) * rng.random()      # few hues, any brightness
        ImageDraw.Draw(image).ellipse([*(centre - radii), *(centre + radii)],
                                      tuple(colour.astype(int)))
    blur = ImageFilter.GaussianBlur(rng.uniform(0, 2))
    corner = side / 2
    middle = (corner, corner, corner + 2 * side, corner + 2 * side)
    return image.rotate(rng.uniform(0, 360)).crop(middle).filter(blur).resize((side, side),
                                                                             Image.BOX)

def write_leaves(folder, count, side=256, seed=0):
    """The first `count` images of a seed, as PNG files in a folder that is made."""
    folder.mkdir(parents=True)
    for number in range(count):
        dead_leaves(seed, number, side).save(folder / f"{number:03}.png")
    return folder
