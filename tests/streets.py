"""Draws tests/data/streets: 40 streets, each seen from four places, and masks with six classes."""
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import seg  # noqa: E402

SKY, ROAD, HOUSE, TREE, POLE, CAR = range(6)
CLASSES = ["sky", "road", "house", "tree", "pole", "car"]
SKIES = [(96, 156, 220), (130, 176, 224), (160, 170, 182), (190, 196, 204), (222, 180, 150)]
WALLS = [(196, 120, 92), (222, 205, 170), (232, 228, 218), (170, 160, 150), (214, 178, 110),
         (150, 96, 76), (176, 190, 180), (120, 126, 136)]
ROOFS = [(140, 62, 48), (92, 70, 62), (74, 76, 84), (120, 96, 80)]
LEAVES = [(58, 104, 48), (84, 128, 56), (112, 140, 62), (160, 120, 50)]
CARS = [(178, 34, 40), (240, 240, 240), (36, 40, 46), (150, 156, 164), (36, 76, 150), (40, 96, 70),
        (216, 170, 40)]


class Scene:
    """A photo of 640 x 256 px and its mask, drawn together, at twice the size."""

    def __init__(self, rng):
        self.rng, self.light = rng, rng.uniform(0.65, 1.1)
        self.photo, self.mask = Image.new("RGB", (1280, 512)), Image.new("L", (1280, 512))

    def draw(self, shape, points, label, colour, vary=8):
        colour = (self.light * np.array(colour) + self.rng.normal(0, vary)).clip(0, 255)
        for image, ink in (self.photo, tuple(colour.astype(int).tolist())), (self.mask, label):
            getattr(ImageDraw.Draw(image), shape)([2 * float(p) for p in points], ink)

    def choose(self, colours):
        return colours[self.rng.integers(len(colours))]


def sky(scene, ground):
    """It grows paler towards the horizon."""
    top = np.array(scene.choose(SKIES))
    for y in range(0, ground, 4):
        scene.draw("rectangle", (0, y, 640, y + 4), SKY, top + (236 - top) * y / 256, 1)


def house(scene, x, width, height, ground):
    wall, top = scene.choose(WALLS), ground - height
    scene.draw("rectangle", (x, top, x + width, ground), HOUSE, wall)
    if scene.rng.random() < 0.7:
        peak = top - scene.rng.integers(18, 45)
        roof = (x - 6, top, x + width / 2, peak, x + width + 6, top)
        scene.draw("polygon", roof, HOUSE, scene.choose(ROOFS))
    glass = (226, 200, 120) if scene.rng.random() < 0.2 else (86, 104, 120)
    columns = max(2, width // 26)
    for column in range(columns):
        left = x + width * (column + 0.5) / columns - 6
        for y in range(top + 12, ground - 28, 30):
            scene.draw("rectangle", (left - 1, y - 1, left + 13, y + 17), HOUSE, (236, 232, 224))
            scene.draw("rectangle", (left, y, left + 12, y + 16), HOUSE, glass, 14)
    scene.draw("rectangle", (x + width / 2 - 6, ground - 24, x + width / 2 + 6, ground), HOUSE,
               scene.choose(ROOFS))


def road(scene, ground):
    grey = scene.rng.integers(84, 130)
    scene.draw("rectangle", (0, ground, 640, ground + 14), ROAD, (176, 170, 162))  # pavement
    scene.draw("rectangle", (0, ground + 14, 640, 256), ROAD, (grey, grey, grey + 6))
    for x in range(0, 640, 72):
        scene.draw("rectangle", (x, ground + 46, x + 34, ground + 49), ROAD, (226, 226, 216))


def tree(scene, x, ground):
    height, base = scene.rng.integers(55, 115), ground + scene.rng.integers(2, 12)
    scene.draw("rectangle", (x - 3, base - height / 2, x + 3, base), TREE, (96, 72, 52))
    leaf = np.array(scene.choose(LEAVES))
    for _ in range(26):
        dx, dy = scene.rng.normal(0, height / 7, 2)
        radius = scene.rng.uniform(height / 14, height / 7)
        y = base - 0.7 * height + dy
        box = (x + dx - radius, y - radius, x + dx + radius, y + radius)
        scene.draw("ellipse", box, TREE, leaf * (1 - dy / height), 9)  # the top is lit


def lamp(scene, x, ground):
    top = ground - scene.rng.integers(95, 125)
    scene.draw("rectangle", (x, top, x + 3, ground + 8), POLE, (70, 74, 78), 3)
    scene.draw("rectangle", (x, top, x + 16, top + 3), POLE, (70, 74, 78), 3)
    scene.draw("ellipse", (x + 9, top, x + 23, top + 8), POLE, (246, 236, 190), 3)


def car(scene, x, y):
    s, body = scene.rng.uniform(0.85, 1.3), scene.choose(CARS)
    shadow = (x - 2, y - 5 * s, x + 94 * s, y + 5 * s)
    scene.draw("ellipse", shadow, ROAD, (52, 52, 56), 2)
    cabin = (x + 16 * s, y - 22 * s, x + 28 * s, y - 38 * s, x + 62 * s, y - 38 * s,
             x + 76 * s, y - 22 * s)
    scene.draw("polygon", cabin, CAR, body, 3)
    for left, right in (22, 44), (47, 69):
        glass = (x + left * s, y - 23 * s, x + (left + 8) * s, y - 35 * s,
                 x + (right - 8) * s, y - 35 * s, x + right * s, y - 23 * s)
        scene.draw("polygon", glass, CAR, (140, 164, 178), 4)
    body_line = (x, y - 20 * s, x + 8 * s, y - 24 * s, x + 84 * s, y - 24 * s,
                 x + 92 * s, y - 18 * s, x + 92 * s, y - 6 * s, x, y - 6 * s)
    scene.draw("polygon", body_line, CAR, body, 3)
    scene.draw("rectangle", (x + 86 * s, y - 18 * s, x + 92 * s, y - 13 * s), CAR, (250, 240, 190))
    for wheel in (20, 72):
        for radius, colour in (9, (24, 24, 26)), (4, (170, 172, 176)):
            middle_x, middle_y = x + wheel * s, y - 5 * s
            box = (middle_x - radius * s, middle_y - radius * s,
                   middle_x + radius * s, middle_y + radius * s)
            scene.draw("ellipse", box, CAR, colour, 2)


def street(seed):
    """Photo and mask, 640 x 256 px."""
    rng = np.random.default_rng(seed)
    scene, ground = Scene(rng), int(rng.integers(145, 185))
    sky(scene, ground)
    x = -40
    while x < 640:
        width, height = int(rng.integers(60, 130)), int(rng.integers(52, 125))
        house(scene, x, width, height, ground)
        x += width + int(rng.integers(4, 70))
    road(scene, ground)
    for x in rng.integers(0, 640, rng.integers(3, 8)):
        tree(scene, x, ground)
    for x in rng.integers(0, 640, rng.integers(3, 7)):
        lamp(scene, x, ground)
    for y in np.sort(ground + rng.integers(24, 66, rng.integers(3, 7))):  # far ones first
        car(scene, rng.integers(-40, 600), y)
    photo = scene.photo.resize((640, 256), Image.BOX).filter(ImageFilter.GaussianBlur(0.5))
    grain = rng.normal(0, 3, (256, 640, 1))
    photo = Image.fromarray((np.array(photo) + grain).clip(0, 255).astype(np.uint8))
    return photo, scene.mask.resize((640, 256), Image.NEAREST)


if __name__ == "__main__":
    folder = Path(__file__).parent / "data/streets"
    for name in "images", "masks":
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    for number in range(40):
        photo, mask = street(number)
        mask = seg.paint(np.array(mask), np.array(mask))
        for view in range(4):
            box = (128 * view, 0, 128 * view + 256, 256)
            name = f"street{number:02}_{view}"
            photo.crop(box).save(folder / f"images/{name}.jpg", quality=85)
            mask.crop(box).save(folder / f"masks/{name}.png", optimize=True)
