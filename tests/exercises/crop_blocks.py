"""Cropped blocks: what does a net paint at borders without padding? (★★★, 4 minutes)

`style.py` mirrors at every convolution. The residual blocks of Johnson et al. do not
pad: the photo gets 40 mirrored pixels around it, and ten convolutions at a quarter of
the size use them up. Write that network. Each block crops its shortcut by two pixels a
side, as much as its convolutions lose. Look at the borders of the cat.

Run `python tests/exercises/crop_blocks.py`; a number behind it sets the steps.
"""
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch
import torch.nn.functional as F
from figures import DATA, sheet
from PIL import ImageOps
from torch import nn

import style
from style import StyleNet

class CroppedBlock(style.ResBlock):
    def forward(self, x):
        return x[..., 2:-2, 2:-2] + nn.Sequential.forward(self, x)


class CroppedNet(StyleNet):
    def __init__(self, nf):
        super().__init__(nf)
        for number, layer in enumerate(self.layers):
            if isinstance(layer, style.ResBlock):
                self.layers[number] = CroppedBlock(*layer)
                for conv in layer.modules():
                    if isinstance(conv, nn.Conv2d):
                        conv.padding, conv.padding_mode = (0, 0), "zeros"

    def forward(self, x):
        H, W = x.shape[2:]
        x = F.pad(x, (40, 40 + -W % 4, 40, 40 + -H % 4), "reflect")
        return self.layers(x)[..., :H, :W].float().sigmoid()


def main():
    steps = sys.argv[1] if len(sys.argv) > 1 else "300"
    style.StyleNet = CroppedNet
    with tempfile.TemporaryDirectory() as folder:
        style.main(["--data", str(DATA / "photos"), "--steps", steps,
                    "--optimize-steps", "0", "--device", "cpu", "--out", folder])
        model = style.load_checkpoint(f"{folder}/network.pt")

    photo = ImageOps.fit(style.open_image(DATA / "photos/cat.jpg"), (256, 256))
    with torch.no_grad():
        out = model(style.to_tensor(photo)[None])[0]
    tiles = {"painting": style.open_image(DATA / "painting.png"), "photo": photo,
             "cropped blocks": style.to_image(out)}

    path = Path("out/exercises/crop_blocks.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet([tiles]).save(path)
    print(path)


if __name__ == "__main__":
    main()
