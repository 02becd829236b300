"""Draws tests/data/painting.png, a night sky: strokes that follow a flow, broad ones first."""
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

HUES = np.array([(24, 36, 84), (40, 78, 150), (96, 146, 190), (232, 196, 74), (246, 236, 196)])


def painting(seed=5, side=512, hues=HUES):
    """An RGB Pillow image. hues: (N, 3) of 255; the strokes' direction chooses among them."""
    rng = np.random.default_rng(seed)
    waves = 12 * np.exp(2j * np.pi * rng.random(6))  # (6,): how often, and which way
    image = Image.new("RGB", (2 * side, 2 * side), tuple(hues[0].tolist()))
    draw = ImageDraw.Draw(image)
    for width in (0.06, 0.03, 0.016):  # of the side
        x, y = 1.4 * rng.random((2, int(1 / width**2))) - 0.2
        points = [x + 1j * y]
        for _ in range(10):  # a step along the flow: the mean of some waves, as an angle
            waving = [np.cos(wave.real * points[-1].real + wave.imag * points[-1].imag)
                      for wave in waves]
            flow = np.mean(waving, axis=0)
            points.append(points[-1] + width * np.exp(2j * np.pi * flow))
        for stroke, angle in zip(np.stack(points, axis=1), flow, strict=True):
            hue = int(np.clip(2 + 4 * angle + rng.normal(0, 0.6), 0, len(hues) - 1))
            colour = hues[hue] * rng.normal(1, 0.12)
            line = [(2 * side * point.real, 2 * side * point.imag) for point in stroke]
            draw.line(line, tuple(colour.clip(0, 255).astype(int).tolist()), int(width * side),
                      joint="curve")
    return image.resize((side, side), Image.BOX)


if __name__ == "__main__":
    painting().save(Path(__file__).parent / "data/painting.png", optimize=True)
