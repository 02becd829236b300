"""What the three scripts share: VGG features by forward hooks, the Gram matrix, ICNR.

Images are float RGB in [0, 1], shape (B, 3, H, W).
"""
import socket
from pathlib import Path

import torch
from torch import nn

# Of each block: convolutions and channels (Simonyan 2015, table 1: arXiv 1409.1556)
VGG_BLOCKS = {16: [(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)],
              19: [(2, 64), (2, 128), (4, 256), (4, 512), (4, 512)]}
VGG_FILES = {16: "vgg16-397923af.pth", 19: "vgg19-dcbb9e9d.pth"}  # torchvision's
INCLUDED = Path(__file__).resolve().parent / "tests/data/vgg16.pt"

class SaveFeatures:
    """Keeps the latest output of a module in `.features`, by a forward hook.

    A hook is a function that a module calls with its output each time it has run: one can look
    into a network and leave its code alone. An in-place ReLU would overwrite what is kept.
    """

    def __init__(self, module):
        self.features = None
        module.register_forward_hook(self.save)

    def save(self, module, inputs, output):
        self.features = output

class VGGFeatures(nn.Module):
    """What a frozen VGG sees in a picture: the outputs of some of its layers.

    layers: names such as "relu2_1": the ReLU after the first convolution of block 2
    weights: "included" (tests/data/vgg16.pt, up to relu4_3), "torchvision" (its own file,
        downloaded once, half a gigabyte) or "random"
    depth: 16 or 19
    pool: nn.AvgPool2d (Gatys 2016, section 2), or nn.MaxPool2d as in VGG's own training. The
        filters still fit, as both keep a channel's meaning. The gradient of a max pool reaches
        one pixel of four, which can draw a grid. On photos here, averages drew less of it on
        the mean of seeds (not in each), and sharpened less (tests/RESULTS.md, claims 6 and 13).

    forward: (B, 3, H, W) in [0, 1] -> {layer: (B, C, H', W')} of x's dtype. Gradients reach x,
    never the weights. Raises ValueError for a layer that is not there, OSError for a file.
    """

    def __init__(self, layers, weights="included", depth=16, pool=nn.AvgPool2d):
        super().__init__()
        modules = {}
        channels_in = 3
        for block, (convs, channels) in enumerate(VGG_BLOCKS[depth], start=1):
            for i in range(1, convs + 1):
                modules[f"conv{block}_{i}"] = nn.Conv2d(channels_in, channels, 3, padding=1)
                modules[f"relu{block}_{i}"] = nn.ReLU()
                channels_in = channels
            modules[f"pool{block}"] = pool(2)
        names = list(modules)
        if not layers or not set(layers) <= set(names):
            unknown = set(layers) - set(names)
            raise ValueError(f"VGG{depth} has no {unknown}; it has {' '.join(names)}")
        # What comes after the last layer asked for is left out, above all the fully connected
        # layers: nine tenths of the weights, and why the paper's VGG takes one size only.
        self.names = names[:max(names.index(name) for name in layers) + 1]
        self.features = nn.Sequential(*[modules[name] for name in self.names])
        if weights == "included" and (depth != 16 or "pool4" in self.names):
            raise ValueError("the included weights are VGG16's up to relu4_3: for "
                             f"{self.names[-1]} of VGG{depth} take torchvision's")

        # The statistics of the ImageNet photos that VGG learned from. Buffers move to the GPU
        # with the module; persistent=False keeps them out of its state_dict, whose names are
        # those of torchvision's file, "features.0.weight" and so on.
        mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.load_state_dict(self.read(weights, depth))
        self.requires_grad_(False)  # VGG judges; it never learns
        self.saved = {name: SaveFeatures(modules[name]) for name in dict.fromkeys(layers)}

    def read(self, weights, depth):  # a state_dict
        state = self.state_dict()
        if weights == "included":  # 8 bits a weight, and a scale for each output channel
            file = torch.load(INCLUDED, weights_only=True)
            for key in state:
                scale = file[key.replace("weight", "scale")].view(-1, 1, 1, 1)
                state[key] = file[key] * scale.float() if "weight" in key else file[key]
        elif weights == "torchvision":
            url = f"https://download.pytorch.org/models/{VGG_FILES[depth]}"
            path = f"{torch.hub.get_dir()}/checkpoints/{VGG_FILES[depth]}"
            socket.setdefaulttimeout(10)  # seconds, for firewalls that are silent
            try:
                file = torch.hub.load_state_dict_from_url(
                    url, map_location="cpu", check_hash=True, weights_only=True)
                state = {key: file[key] for key in state}
            except Exception as error:  # no network, a broken download, a damaged file
                raise OSError(f"no weights from {url} ({error!r:.150}): save it as {path}, "
                              "or take VGG16's included weights") from None
            finally:
                socket.setdefaulttimeout(None)
        else:  # random, always the same: mostly colours (He, Wang, Hopcroft 2016)
            generator = torch.Generator().manual_seed(0)
            for key, value in state.items():
                if "bias" in key:
                    value.zero_()
                else:
                    nn.init.kaiming_normal_(value, generator=generator)
                    value += value.mean((2, 3), keepdim=True)  # smoother kernels
                    if value.shape[1] > 3:  # else each channel mostly sees brightness
                        value -= value.mean((1, 2, 3), keepdim=True)
        return state

    def forward(self, x):
        # The result of the last layer is not used: on the way, the hooks keep what counts.
        self.features((x - self.mean) / self.std)
        features = {name: saved.features.to(x.dtype) for name, saved in self.saved.items()}
        for saved in self.saved.values():
            saved.features = None  # or the graph of this batch would stay in memory
        return features

def gram_matrix(x):
    """How much channels fire together, anywhere: the style of a picture (Gatys 2016, eq. 3).

    x: (B, C, H, W) features, float32 -> (B, C, C). Divided by C * H * W (Johnson 2016, eq. 3),
    pictures of different sizes compare. bmm keeps those of a batch apart; mm would mix them.
    """
    B, C, H, W = x.shape
    f = x.flatten(2)                                          # (B, C, H * W)
    with torch.autocast(x.device.type, enabled=False):        # long sums take float32
        return torch.bmm(f, f.transpose(1, 2)) / (C * H * W)  # (B, C, C)

@torch.no_grad()
def icnr_(weight, scale=2, init=nn.init.kaiming_normal_):
    """Initialise, in place, the conv in front of a PixelShuffle(scale); returns weight.

    PixelShuffle lays scale**2 neighbouring channels out as one square of pixels:

        channels  a b c d  of one pixel   ->   a b  of the enlarged picture
                                               c d

    Four kernels drawn apart make four different pixels, even where the picture is flat: a
    checkerboard. ICNR (Aitken 2017) draws one kernel and repeats it: at the start, that is
    nearest-neighbour enlargement. The bias must be zero, or repeated as well. Behind a last
    conv of zeros, as in sr.py, it made no sure difference (tests/RESULTS.md, claim 1).

    weight: (out * scale**2, in, kH, kW); init fills a tensor (out, in, kH, kW) in place.
    """
    out = len(weight) // scale**2
    kernel = init(torch.empty_like(weight[:out]))
    return weight.copy_(kernel.repeat_interleave(scale**2, dim=0))
