"""Deeper: what does a ResNet34 bring in place of a ResNet18? (★★, 5 minutes)

The course has a ResNet34. Its four layers have 3, 4, 6 and 3 blocks, where
`seg.resnet18` has 2 each. Write it with `seg.BasicBlock` and with torchvision's names,
and put the U-Net on it. Look at the numbers to train, at the seconds a step, and at the
mean IoU.

Run `python tests/exercises/resnet34.py`; a number behind it sets the steps.
"""
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch

import seg
from seg import resnet18

def resnet34():
    net = resnet18()
    for layer, channels, more in ((net.layer1, 64, 1), (net.layer2, 128, 2),
                                  (net.layer3, 256, 4), (net.layer4, 512, 1)):
        layer.extend([seg.BasicBlock(channels, channels) for _ in range(more)])
    return net


def learn(crops, val, classes, steps, args):
    """A U-Net on seg.resnet18, whatever that is now, and the seconds of a step."""
    torch.manual_seed(args.seed)
    model = seg.Segmenter("unet", args.nf, args.size, classes)
    start = time.time()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "unet.pt")
        seg.train(model, [(model, args.lr)], path, steps, crops, val, args)
    return model, (time.time() - start) / steps


def main():
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    args = seg.get_args(["--device", "cpu", "--eval-every", "1000"])
    classes, groups = seg.find_pairs(args.data)
    pairs, held_out = seg.split(groups)
    val = [seg.open_pair(*pair, args.size) for pair in held_out]
    crops = seg.Crops(pairs, args.size, args.seed)

    lines = []
    for name, encoder in ("ResNet18", resnet18), ("ResNet34", resnet34):
        seg.resnet18 = encoder
        # One photo to validate, as validation is inside the clock.
        model, seconds = learn(crops, val[:1], classes, steps, args)
        numbers = sum(values.numel() for values in model.encoder.parameters())
        iou = seg.evaluate(model.predict, val, classes)["mean IoU"]
        lines.append(f"{name}: {numbers:,} parameters, {seconds:.2f} s a step, "
                     f"mean IoU {iou:.3f}")
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
