"""Film: what does a net learn first, and what last? (★, 2 minutes)

Train x4 on the seven photos, and enlarge the cat after 0, 50, 200, 800 and 1,600 steps.
Write the loop of the training yourself: a batch, the loss, its gradients, a step. Look
at the eye. When do its edges become clean, and when does nothing change any more?

Run `python tests/exercises/film.py`; a number behind it sets the steps.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch
import torch.nn.functional as F
from figures import DATA, sheet
from PIL import Image
from torch import nn
from torch.utils.data import default_collate

import sr

def eye(photo):
    return photo.crop((138, 80, 202, 144)).resize((256, 256), Image.NEAREST)


def shoot(model, crops, pair, steps, args):
    """{title: the cat's eye} after none, a 32nd, an eighth, a half and all steps."""
    low, high = pair
    moments = {0, steps // 32, steps // 8, steps // 2, steps}
    optimizer = torch.optim.Adam(model.parameters())
    tiles = {}
    for step in range(steps + 1):
        if step in moments:
            large = sr.enlarge(model, low)
            psnr = sr.measure(large, high, border=4)[0]
            title = f"{step:,} steps: {psnr:.2f} dB"
            tiles[title] = eye(large)
            print(title)
        if step == steps:
            return tiles

        # The training itself: a batch, the loss, its gradients, a step.
        numbers = range(step * args.batch_size, (step + 1) * args.batch_size)
        lows, highs = default_collate([crops[number] for number in numbers])
        loss = F.l1_loss(model(lows), highs)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.param_groups[0]["lr"] = sr.learning_rate(step + 1, steps, args.lr)
        optimizer.step()


def main():
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 1600
    args = sr.get_args(["--device", "cpu"])
    path = Path("out/exercises/film.png")
    path.parent.mkdir(parents=True, exist_ok=True)

    # As in sr.py, the cat and the raccoon are held out.
    photos = sr.find_photos(str(DATA / "photos"), path.parent)
    pair = sr.make_pair(sr.open_image(photos[2]), args.scale)
    del photos[2::5]
    crops = sr.Crops(photos, args.size, args.scale, args.seed)

    torch.manual_seed(args.seed)
    model = sr.SrResnet(args.scale, args.nf, args.blocks)
    model.to(memory_format=torch.channels_last)
    tiles = shoot(model, crops, pair, steps, args)
    sheet([tiles | {"truth": eye(pair[1])}]).save(path)
    print(path)


if __name__ == "__main__":
    main()
