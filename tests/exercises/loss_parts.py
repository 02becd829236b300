"""Parts of the loss: how much of it is pixels, and how much VGG? (★★, 1 minute)

`feature_loss` in `sr.py` adds up a distance of pixels and distances of three layers of
VGG. Write it so that it returns the parts. Feed it with eight crops that
`tests/data/nets/x4.pt` has enlarged, and with the same crops by bicubic. Look at the
shares: which part steers the training?

Run `python tests/exercises/loss_parts.py`.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch
import torch.nn.functional as F
from figures import DATA
from torch.utils.data import default_collate

import sr

def feature_parts(vgg, out, high, pixel_weight=0.8):
    """{part: its share of sr.feature_loss}; they sum to the loss."""
    with torch.no_grad():
        targets = vgg(high)
    parts = {"pixel": pixel_weight * F.l1_loss(out, high)}
    for layer, features in vgg(out).items():
        distance = F.l1_loss(features, targets[layer]) / targets[layer].abs().mean()
        parts[layer] = sr.FEATURE_WEIGHTS[layer] * distance
    return parts


@torch.no_grad()
def main():
    vgg = sr.VGGFeatures(sr.FEATURE_WEIGHTS)
    photos = sr.find_photos(str(DATA / "photos"), Path("out"))
    crops = sr.Crops(photos, size=64, scale=4)
    low, high = default_collate([crops[number] for number in range(8)])

    # The tail of an untrained net is zero, so that it is bicubic.
    bicubic = sr.SrResnet(4, nf=8, blocks=1)
    model, _ = sr.load_checkpoint(DATA / "nets/x4.pt")
    columns = [feature_parts(vgg, net(low), high) for net in (bicubic, model)]
    totals = [sum(column.values()) for column in columns]

    print("part            bicubic           x4.pt")
    for part in columns[0]:
        shares = [f"{column[part]:9.4f} {column[part] / total:5.0%}"
                  for column, total in zip(columns, totals, strict=True)]
        print(f"{part:8}", *shares)
    print("sum     ", *(f"{total:9.4f}      " for total in totals))


if __name__ == "__main__":
    main()
