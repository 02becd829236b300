"""Small objects: how does a net find poles, 1 % of the pixels? (★★, 5 minutes)

To `cross_entropy` a pole is hardly worth the trouble. Try two other losses in place of
`seg.pixel_loss`. The first weighs a class by one over the root of its share. The second
adds the soft Dice loss, in which every class counts the same. Look at the Dice of the
pole, and at what it costs elsewhere.

Run `python tests/exercises/small_objects.py`; a number behind it sets the steps.
"""
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import numpy as np
import torch
import torch.nn.functional as F

import seg
from seg import pixel_loss

def class_weights(masks, classes):
    """One over the root of each class's share of the pixels, with a mean of 1."""
    counts = sum(np.array(mask.histogram()[:len(classes)]) for mask in masks)
    weights = torch.from_numpy(counts / counts.sum()).float().rsqrt()
    return weights / weights.mean()


def dice_loss(logits, y):
    """1 - 2 * overlap / (both areas), of softmax's shares; the mean over classes."""
    known = (y != seg.VOID)[:, None]
    truth = F.one_hot(y.where(y != seg.VOID, 0), logits.shape[1]).movedim(-1, 1) * known
    pred = logits.softmax(1) * known
    overlap = (pred * truth).sum((0, 2, 3))
    areas = pred.sum((0, 2, 3)) + truth.sum((0, 2, 3))
    # Where a class is not in the batch, the ones save it from 0 / 0.
    return 1 - ((2 * overlap + 1) / (areas + 1)).mean()


def learn(crops, val, classes, steps, args):
    torch.manual_seed(args.seed)
    model = seg.Segmenter("unet", args.nf, args.size, classes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "unet.pt")
        seg.train(model, [(model, args.lr)], path, steps, crops, val, args)
    return model.predict


def main():
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    args = seg.get_args(["--device", "cpu", "--eval-every", "1000"])
    classes, groups = seg.find_pairs(args.data)
    pairs, held_out = seg.split(groups)
    val = [seg.open_pair(*pair, args.size) for pair in held_out]
    crops = seg.Crops(pairs, args.size, args.seed)
    masks = [seg.open_pair(*pair, args.size)[1] for pair in pairs]
    weights = class_weights(masks, classes)
    print("weights:", *(f"{name} {weight:.2f}"
                        for name, weight in zip(classes, weights, strict=True)))

    def weighted(logits, y):
        return F.cross_entropy(logits, y, weights, ignore_index=seg.VOID)

    def with_dice(logits, y):
        return pixel_loss(logits, y) + dice_loss(logits, y)

    losses = {"plain": pixel_loss, "weighted": weighted, "with Dice": with_dice}
    methods = {}
    for name, loss_fn in losses.items():
        seg.pixel_loss = loss_fn  # seg.train takes it from there
        methods[name] = learn(crops, val, classes, steps, args)
    seg.compare(methods, val, classes)


if __name__ == "__main__":
    main()
