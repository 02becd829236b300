"""The figures of README.md, drawn anew: python tests/figures.py [name ...]

They take what the default runs leave: out/sr (sr.py on 500 photos), out/style, out/seg. The names
are those of the functions; each writes .github/figures/NAME.jpg.
"""
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageOps

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import seg  # noqa: E402
import sr  # noqa: E402
import style  # noqa: E402

DATA = ROOT / "tests/data"
PHOTOS = DATA / "photos"
LAYERS = ["relu1_2", "relu2_2", "relu3_3", "relu4_3"]


def sheet(rows, side=256):
    """Rows of {title: picture}, squares -> one picture. Shorter rows end at the right."""
    columns = max(map(len, rows))
    image = Image.new("RGB", ((side + 8) * columns, (side + 36) * len(rows)), "white")
    draw = ImageDraw.Draw(image)
    for i, row in enumerate(rows):
        for j, (title, tile) in enumerate(row.items(), start=columns - len(row)):
            draw.text(((side + 8) * j + 4, (side + 36) * i), title, "black", font_size=side // 12)
            tile = ImageOps.fit(tile, (side, side))
            image.paste(tile, ((side + 8) * j + 4, (side + 36) * i + 28))
    return image


def style_net(path):
    model = style.load_checkpoint(path)
    return lambda photo: style.to_image(model(style.to_tensor(photo)[None])[0].detach())


def strip():
    """One picture of each lesson: two by the nets of tests/data/nets, one by out/seg/unet.pt."""
    side = 436
    image = Image.new("RGB", (1320, side + 4), "white")

    # The cat's eye in a photo of 112 x 75 px, each pixel a square, and enlarged by 4
    low, _ = sr.make_pair(sr.open_image(PHOTOS / "cat.jpg"), 4)
    large = sr.enlarge(sr.load_checkpoint(DATA / "nets/x4.pt")[0], low)
    box = 108, 48, 108 + 128, 48 + 128
    tile, half = (picture.crop(box).resize((side, side), method)
                  for picture, method in ((low.resize(large.size, Image.NEAREST), Image.NEAREST),
                                          (large, Image.BICUBIC)))
    tile.paste(half.crop((side // 2, 0, side, side)), (side // 2, 0))
    ImageDraw.Draw(tile).line((side // 2, 0, side // 2, side), "white", 3)
    image.paste(tile, (0, 2))

    # The cup, painted, and the painting
    coffee = style.open_image(PHOTOS / "coffee.jpg")
    tile = ImageOps.fit(style_net(DATA / "nets/night.pt")(coffee), (side, side))
    painting = ImageOps.expand(Image.open(DATA / "painting.png").resize((110, 110)), 3, "white")
    tile.paste(painting, (0, side - 116))
    image.paste(tile, (side + 6, 2))

    # A street, half photo, half what the net sees
    classes, groups = seg.find_pairs(DATA / "streets")
    photo, mask = seg.split(groups)[1][0]
    photo = seg.open_photo(photo)
    pred = seg.load_checkpoint("out/seg/unet.pt").predict(photo)
    painted = seg.paint(pred, pred).convert("RGB").resize((side, side), Image.NEAREST)
    tile = photo.resize((side, side), Image.BICUBIC)
    tile.paste(painted.crop((side // 2, 0, side, side)), (side // 2, 0))
    ImageDraw.Draw(tile).line((side // 2, 0, side // 2, side), "white", 3)
    image.paste(tile, (2 * side + 12, 2))
    return image


def sr_parts():
    """Parts of 80 px, four times as large, from (left, top) in the photo. The last one fails."""
    nets = {name: sr.load_checkpoint(f"out/sr/{name.split()[0]}.pt")[0]
            for name in ("pixel loss", "feature loss")}
    rows = []
    for name, left, top in ("cat", 131, 73), ("coffee", 327, 239), ("astronaut", 131, 347):
        photo = sr.open_image(PHOTOS / f"{name}.jpg")
        low, high = sr.make_pair(photo, 4)
        row = {"low": low.resize(high.size, Image.NEAREST),
               "bicubic": low.resize(high.size, Image.BICUBIC)}
        row |= {title: sr.enlarge(model, low) for title, model in nets.items()} | {"truth": high}
        rows.append({title: tile.crop((left, top, left + 80, top + 80)).resize(
            (320, 320), Image.NEAREST) for title, tile in row.items()})
    return sheet(rows, 320)


def styles():
    """Both ways, on the two photos that were held out."""
    three, twenty = style_net("out/style/network.pt"), style_net(DATA / "nets/night.pt")
    painting = ImageOps.cover(style.open_image(DATA / "painting.png"), (256, 256))
    args = style.get_args(["--device", "cpu"])
    perceptual = style.PerceptualLoss(style.to_tensor(painting)[None], args)
    rows = []
    for name in "raccoon", "cat":
        photo = ImageOps.fit(style.open_image(PHOTOS / f"{name}.jpg"), (256, 256))
        with tempfile.TemporaryDirectory() as folder:
            x, _ = style.optimize(style.to_tensor(photo)[None], perceptual, name,
                                  f"{folder}/log.csv", args)
        rows.append({"photo": photo, "optimised, 20 steps": style.to_image(x[0]),
                     "network, 3 minutes": three(photo), "network, 20 minutes": twenty(photo)})
    rows[0] = {"painting": painting, **rows[0]}
    return sheet(rows)


def layers(steps=80):
    """From noise: the content of one layer alone; the style up to it."""
    painting = style.open_image(DATA / "painting.png").reduce(2)
    cat = ImageOps.fit(style.open_image(PHOTOS / "cat.jpg"), (256, 256))
    x = style.to_tensor(cat)[None]
    rows = [{"photo": cat}, {"painting": painting}]
    for i, layer in enumerate(LAYERS):
        content = ["--content-layer", layer, "--style-layers", layer, "--style-weight", "0"]
        strokes = ["--content-layer", "relu1_1", "--content-weight", "0",
                   "--style-layers", *LAYERS[:i + 1]]
        for row, title, flags in zip(rows, (layer, f"up to {layer}"), (content, strokes),
                                     strict=True):
            args = style.get_args(["--device", "cpu", "--start", "noise", "--tv", "0.02",
                                   "--optimize-steps", f"{steps}", *flags])
            perceptual = style.PerceptualLoss(style.to_tensor(painting)[None], args)
            torch.manual_seed(0)
            with tempfile.TemporaryDirectory() as folder:
                out, _ = style.optimize(x, perceptual, layer, f"{folder}/log.csv", args)
            row[title] = style.to_image(out[0])
    return sheet(rows)


def streets():
    """That of the run itself."""
    return Image.open("out/seg/figure.png")


def film():
    """What two exercises leave, one above the other."""
    rows = [Image.open(f"out/exercises/{name}.png") for name in ("film", "film_of_paint")]
    width = max(row.width for row in rows)
    image = Image.new("RGB", (width, sum(row.height for row in rows)), "white")
    image.paste(rows[0])
    image.paste(rows[1], (width - rows[1].width, rows[0].height))
    return image


FIGURES = {"strip": strip, "sr": sr_parts, "style": styles, "layers": layers, "streets": streets,
           "film": film}


def main(names):
    for name in names or FIGURES:
        path = ROOT / f".github/figures/{name}.jpg"
        image = FIGURES[name]()
        image.convert("RGB").save(path, quality=88)
        print(path, image.size, path.stat().st_size)


if __name__ == "__main__":
    main(sys.argv[1:])
