"""Two readings: how is a transposed convolution also a convolution? (★★, 1 minute)

The README stamps a kernel for each pixel, and adds up the stamps. There is another
reading: put zeros between the pixels, put a border of zeros around them, and convolve
with the flipped kernel. Write it so. Look at the two results, and at that of torch's
`conv_transpose2d`.

Run `python tests/exercises/two_readings.py`.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch
import torch.nn.functional as F

def transposed_conv(x, kernel, stride):
    (h, w), k = x.shape, len(kernel)
    out = torch.zeros(stride * (h - 1) + k, stride * (w - 1) + k)
    for i in range(h):
        for j in range(w):
            out[stride * i:stride * i + k, stride * j:stride * j + k] += x[i, j] * kernel
    return out


def by_convolution(x, kernel, stride):
    H, W = x.shape
    spread = torch.zeros(stride * (H - 1) + 1, stride * (W - 1) + 1)
    spread[::stride, ::stride] = x
    padded = F.pad(spread, [len(kernel) - 1] * 4)
    return F.conv2d(padded[None, None], kernel.flip(0, 1)[None, None])[0, 0]


def main():
    x = torch.tensor([[1., 2.], [3., 4.]])
    kernel = torch.tensor([[1., 0., 2.], [0., 1., 0.], [3., 0., 1.]])
    wanted = F.conv_transpose2d(x[None, None], kernel[None, None], stride=2)[0, 0]
    results = {"stamps": transposed_conv(x, kernel, 2),
               "zeros between": by_convolution(x, kernel, 2), "torch": wanted}
    for name, result in results.items():
        print(name)
        for row in result.tolist():
            print(*(f"{value:4.0f}" for value in row))
    differences = [(result - wanted).abs().max() for result in results.values()]
    print(f"largest difference: {max(differences):.1e}")


if __name__ == "__main__":
    main()
