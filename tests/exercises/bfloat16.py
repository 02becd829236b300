"""Half the bits: is a step of the U-Net faster in bfloat16? (★★, 2 minutes)

`sr.py` computes in bfloat16 where the machine is good at it. Bring its `autocast` to
the steps of `seg.py`, and leave that file alone. The forward pass belongs under
`autocast`, the loss does not: sums of many small numbers take float32. Look at the time
of a step with float32, with `sr.autocast`, which may decide against bfloat16, and with
bfloat16 in any case.

Run `python tests/exercises/bfloat16.py`; a number behind it sets the steps of a turn.
"""
import contextlib
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch

import seg
import sr

class HalfSegmenter(seg.Segmenter):
    """Its convolutions may compute in bfloat16; its weights and logits are float32."""

    def autocast(self, x):
        return sr.autocast(x.device.type)

    def forward(self, x):
        with self.autocast(x):
            logits = super().forward(x)
        return logits.float()


class AlwaysHalf(HalfSegmenter):
    def autocast(self, x):
        return torch.autocast(x.device.type, torch.bfloat16)


def seconds(model, crops, val, steps, args):
    """Seconds of a training step. Nothing is printed, and nothing is kept."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(None), tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "unet.pt")
        seg.train(model, [(model, args.lr)], path, steps, crops, val, args)
    return (time.perf_counter() - start) / steps


def main():
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    args = seg.get_args(["--device", "cpu", "--eval-every", "1000"])
    classes, groups = seg.find_pairs(args.data)
    pairs, held_out = seg.split(groups)
    val = [seg.open_pair(*held_out[0], args.size)]
    crops = seg.Crops(pairs, args.size, args.seed)

    kinds = {"float32": seg.Segmenter, "sr.autocast": HalfSegmenter,
             "bfloat16": AlwaysHalf}
    models = {name: kind("unet", args.nf, args.size, classes)
              for name, kind in kinds.items()}
    times = {name: [] for name in models}

    # In turns, as a machine that is slow for a while then is slow for all of them.
    # The first turn warms up.
    for turn in range(3):
        for name, model in models.items():
            took = seconds(model, crops, val, steps, args)
            times[name] += [took] if turn else []

    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        ratio = median / medians["float32"]
        print(f"{name:12} {median:.3f} s a step, {ratio:.2f} of float32")
    print("avx512_bf16:", torch.cpu.get_capabilities().get("avx512_bf16", False))


if __name__ == "__main__":
    main()
