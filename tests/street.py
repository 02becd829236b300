"""Eleven classes: seg.py on the streets of CamVid, the answer to an exercise of the README.

    python tests/street.py --data camvid --sizes 180

camvid holds train, trainannot, val and valannot, with masks of 0 to 10 and 11 where nobody
knows. What changes: the masks, the loss, the metric, and the channels at the end.
"""
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import seg  # noqa: E402

CLASSES = "sky building pole road pavement tree sign fence car pedestrian bicyclist".split()
UNKNOWN = 255
read_folder = seg.find_pairs


def open_mask(path):
    return Image.open(path).point(lambda value: UNKNOWN if value == len(CLASSES) else value)


def find_pairs(folder, size, seed):
    pairs = []
    for part in ("train", "val"):
        seg.FOLDERS = {part: f"{part}annot"}
        pairs += [(part, *pair) for _, *pair in read_folder(folder, size, seed)]
    return pairs


def split(pairs):
    counts = sum(np.bincount(np.ravel(mask), minlength=256) for _, _, mask in pairs)
    for name, count in zip([*CLASSES, "unknown"], [*counts[:11], counts[UNKNOWN]], strict=True):
        print(f"{name:10} {count / counts.sum():6.1%} of the pixels")
    train = [pair for part, *pair in pairs if part == "train"]
    return train, [pair for part, *pair in pairs if part == "val"]


class FCN(nn.Sequential):  # as in the README, for more than one class
    def __init__(self, encoder, nf, classes=1):
        super().__init__(
            nn.Conv2d(512, classes, 1), nn.ConvTranspose2d(classes, classes, 64, 32, 16))
        tent = 1 - (torch.arange(64) - 31.5).abs() / 32
        self[1].weight.data = torch.einsum("ij,h,w->ijhw", torch.eye(classes), tent, tent)


class Segmenter(seg.Segmenter):  # (B, 3, H, W) -> (B, 11, H, W)
    def __init__(self, head, depth, nf, size):
        super().__init__(head, depth, nf, size)
        if head == "fcn":
            self.head = FCN(self.encoder, nf, len(CLASSES))
        else:
            self.head[-1] = seg.up(nf, len(CLASSES))


def pixel_loss(logits, y):  # (B, 11, H, W), (B, 1, H, W)
    return F.cross_entropy(logits, y[:, 0].long(), ignore_index=UNKNOWN)


@torch.no_grad()
def predict(model, photo):
    side = model.config["size"]
    x = seg.to_tensor(ImageOps.cover(photo, (side, side), Image.BILINEAR))[None]
    return model.eval()(x)[0].argmax(0).numpy()


def evaluate(net, pairs):
    """(1, 3): accuracy, mean Dice and mean IoU of the classes, of the pixels of all photos."""
    table = np.zeros((11, 11))  # truth by prediction
    for photo, mask in pairs:
        truth = np.array(mask)
        known = truth != UNKNOWN
        np.add.at(table, (truth[known], net(photo)[known].astype(int)), 1)
    right = table.diagonal()
    areas = table.sum(0) + table.sum(1)
    seen = areas > 0
    dice = 2 * right[seen] / areas[seen]
    return np.array([[right.sum() / table.sum(), dice.mean(), (dice / (2 - dice)).mean()]])


if __name__ == "__main__":
    seg.HEADS["fcn"] = FCN
    for change in (open_mask, find_pairs, split, Segmenter, pixel_loss, predict, evaluate):
        setattr(seg, change.__name__, change)
    seg.draw_figure = lambda *_: print("figure: left out, as it knows one class only")
    seg.main()
