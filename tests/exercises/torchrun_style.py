"""Several processes: how do two processes train one style network? (★★★, 1 minute)

`sr.py` runs under torchrun, `style.py` does not. Bring it there, and leave its loop
alone. Each process takes its share of the crops, and a hook at each parameter averages
the gradients over all processes. Process 0 alone keeps what it writes. Look at the last
line: do all processes hold the same weights in the end?

Run `torchrun --nproc_per_node=2 tests/exercises/torchrun_style.py`, or for one process
`python tests/exercises/torchrun_style.py`; a number behind it sets the steps.
"""
import contextlib
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch
from figures import DATA
from torch import distributed

import style
from style import Crops, StyleNet

# torchrun starts WORLD copies of this file, and tells each its RANK.
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


class Share(Crops):
    """Of WORLD crops in a row, each process takes another one."""

    def __getitem__(self, number):
        return super().__getitem__(number * WORLD + RANK)


def average(parameter):
    if WORLD > 1:
        distributed.all_reduce(parameter.grad)
        parameter.grad /= WORLD


class SharedNet(StyleNet):
    def __init__(self, nf):
        super().__init__(nf)
        # PyTorch calls such a hook as soon as the gradient of its parameter is there.
        for parameter in self.parameters():
            parameter.register_post_accumulate_grad_hook(average)


def all_equal(model):
    """Whether all processes hold the same weights, to the bit."""
    weights = torch.cat([values.flatten() for values in model.state_dict().values()])
    copies = [torch.zeros_like(weights) for _ in range(WORLD)]
    distributed.all_gather(copies, weights)
    return all(torch.equal(copy, weights) for copy in copies)


def main():
    steps = sys.argv[1] if len(sys.argv) > 1 else "30"
    if WORLD > 1:
        distributed.init_process_group("gloo")
    style.Crops, style.StyleNet = Share, SharedNet

    # The seed is the same in all processes, so they start from equal weights.
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        out = Path("out/exercises/torchrun_style") if RANK == 0 else Path(folder)
        if RANK:
            stack.enter_context(contextlib.redirect_stdout(None))
        style.main(["--data", str(DATA / "photos"), "--steps", steps,
                    "--content-size", "128", "--optimize-steps", "0",
                    "--device", "cpu", "--out", str(out)])
        model = style.load_checkpoint(out / "network.pt")
        if WORLD > 1:
            print(f"{WORLD} processes, the same weights in all: {all_equal(model)}")
            distributed.destroy_process_group()
        else:
            print("1 process: there is nothing to compare")


if __name__ == "__main__":
    main()
