"""Checkerboard: what does an untrained net draw where all is flat? (★, 1 minute)

Enlarge one flat colour with three untrained x2 nets. The first starts with ICNR, as
`sr.py` does, and the `upsample[0]` of the second with `kaiming_normal_`. The third has
a transposed convolution of kernel 3 and stride 2 in place of PixelShuffle. Give `tail`
random weights, or its zeros hide everything but bicubic. Look at the three pictures:
which repeats every two pixels?

Run `python tests/exercises/checkerboard.py`.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch
from figures import sheet
from PIL import Image
from torch import nn

import sr
import style

def new_net(kind):
    torch.manual_seed(0)
    net = sr.SrResnet(2, nf=8, blocks=1)
    if kind == "without ICNR":
        nn.init.kaiming_normal_(net.upsample[0].weight)
    if kind == "transposed":
        net.upsample = nn.ConvTranspose2d(8, 8, 3, 2, padding=1, output_padding=1)
    torch.manual_seed(1)
    nn.init.normal_(net.tail.weight, std=0.1)
    return net


@torch.no_grad()
def flat_colour(net):
    """(3, 16, 16): a flat colour, enlarged. What sees its border is cut off."""
    colour = torch.tensor([0.8, 0.5, 0.3]).view(1, 3, 1, 1)
    return net(colour.expand(1, 3, 20, 20))[0, :, 12:-12, 12:-12]


def roughness(net):
    """How far a pixel is from the mean colour, on average."""
    out = flat_colour(net)
    return (out - out.mean((1, 2), keepdim=True)).abs().mean().item()


def main():
    nets = {kind: new_net(kind) for kind in ("ICNR", "without ICNR", "transposed")}
    pictures = {kind: flat_colour(net) for kind, net in nets.items()}
    deviations = {kind: out - out.mean((1, 2), keepdim=True)
                  for kind, out in pictures.items()}

    # One factor stretches the contrast of all three, so that they can be compared.
    most = max(deviation.abs().max() for deviation in deviations.values())
    tiles = {}
    for kind, deviation in deviations.items():
        print(f"{kind:12} roughness {255 * roughness(nets[kind]):.4f} grey levels")
        image = style.to_image(0.5 + 0.5 * deviation / most)
        tiles[kind] = image.resize((256, 256), Image.NEAREST)

    path = Path("out/exercises/checkerboard.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet([tiles]).save(path)
    print(path)


if __name__ == "__main__":
    main()
