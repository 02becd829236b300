"""What the three scripts share: VGG features by forward hooks, the Gram matrix, ICNR.

Images are float RGB in [0, 1], shape (B, 3, H, W).
"""
import socket
from pathlib import Path

import torch
from torch import nn

# The convolutions of each block, and their channels (Simonyan and Zisserman 2015,
# arXiv 1409.1556, table 1, columns D and E).
VGG_BLOCKS = {16: [(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)],
              19: [(2, 64), (2, 128), (4, 256), (4, 512), (4, 512)]}
VGG_FILES = {16: "vgg16-397923af.pth", 19: "vgg19-dcbb9e9d.pth"}  # torchvision's
INCLUDED = Path(__file__).resolve().parent / "tests/data/vgg16.pt"


class SaveFeatures:
    """Keeps the latest output of a module in `.features`, by a forward hook.

    A hook is a function that a module calls with its output each time it has run. It reaches
    into a network without a change to the network's own code. No copy is made: an in-place
    ReLU behind the module would overwrite what is kept.
    """

    def __init__(self, module):
        self.features = None
        module.register_forward_hook(self.save)

    def save(self, module, inputs, output):
        self.features = output


class VGGFeatures(nn.Module):
    """What a frozen VGG sees in a picture: the outputs of some of its layers.

    layers: names such as "relu2_1": the ReLU behind the first convolution of block 2
    weights: "included" (tests/data/vgg16.pt, up to relu4_3), "torchvision" (its own file,
        downloaded once, half a gigabyte) or "random"
    depth: 16 or 19
    pool: nn.AvgPool2d, or nn.MaxPool2d, with which VGG was trained. Its filters still fit, as
        both pools keep a channel's meaning. Where pixels follow the gradient of a max pool,
        one of four is reached, which can draw a grid: Gatys 2016, section 2, took averages.
        Measured here: less of a grid, a little less sharpness (tests/RESULTS.md).

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
            raise ValueError(f"VGG{depth} has no {' '.join(layers)}; it has {' '.join(names)}")

        # What lies behind the last layer asked for is left out, above all the fully connected
        # layers: nine tenths of the weights, and why the paper's VGG takes one size only.
        end = max(names.index(name) for name in layers) + 1
        if weights == "included" and (depth != 16 or end > names.index("relu4_3") + 1):
            raise ValueError(f"the included weights are VGG16's up to relu4_3: VGG{depth} up to "
                             f"{names[end - 1]} takes the weights 'torchvision'")
        self.names = names[:end]
        self.features = nn.Sequential(*[modules[name] for name in self.names])

        # The statistics of the ImageNet photos that VGG learned from. Buffers move to the GPU
        # with the model. persistent=False: they are no part of its state_dict, which then has
        # the same names as torchvision's file, "features.0.weight" and so on.
        mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        {"included": self.load_included, "torchvision": self.load_torchvision,
         "random": self.draw_random}[weights](depth)
        self.requires_grad_(False)  # VGG judges. It never learns
        self.saved = {name: SaveFeatures(modules[name]) for name in layers}

    @torch.no_grad()
    def load_included(self, depth):
        state = torch.load(INCLUDED, weights_only=True)
        for i, module in enumerate(self.features):
            if isinstance(module, nn.Conv2d):  # 8 bits a weight, and a scale for each channel
                scale = state[f"features.{i}.scale"].float().view(-1, 1, 1, 1)
                module.weight.copy_(state[f"features.{i}.weight"] * scale)
                module.bias.copy_(state[f"features.{i}.bias"])

    def load_torchvision(self, depth):
        url = f"https://download.pytorch.org/models/{VGG_FILES[depth]}"
        file = f"{torch.hub.get_dir()}/checkpoints/{VGG_FILES[depth]}"
        socket.setdefaulttimeout(10)  # seconds; a silent firewall would stop it for ever
        try:
            state = torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True,
                                                       weights_only=True)
            self.load_state_dict({key: state[key] for key in self.state_dict()})
        except Exception as error:  # no network, a broken download, a damaged file: all kinds
            raise OSError(f"no weights of VGG{depth} from {url} ({error!r:.200}): save this file "
                          f"as {file} yourself, or take VGG16's included weights") from None
        finally:
            socket.setdefaulttimeout(None)

    @torch.no_grad()
    def draw_random(self, depth):
        """What a VGG sees that was never trained: colours and coarse texture (He, Wang and
        Hopcroft 2016). For tests, and to see what the training is worth. Always the same."""
        generator = torch.Generator().manual_seed(0)
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                weight = nn.init.kaiming_normal_(module.weight, generator=generator)
                weight += weight.mean((2, 3), keepdim=True)  # neighbours weigh alike, in part
                if module.in_channels > 3:  # without a mean, or all channels tell brightness
                    weight -= weight.mean((1, 2, 3), keepdim=True)
                nn.init.zeros_(module.bias)

    def forward(self, x):
        # The result of the last layer is not used: on the way the hooks keep all that counts.
        self.features((x - self.mean) / self.std)
        features = {name: saved.features.to(x.dtype) for name, saved in self.saved.items()}
        for saved in self.saved.values():
            saved.features = None  # or the graph of this batch would stay in memory
        return features


def gram_matrix(x):
    """Which channels fire together: the style of a picture (Gatys 2016, eq. 3).

    x: (B, C, H, W) features in float32 -> (B, C, C). Divided by C * H * W (Johnson 2016, eq. 3),
    pictures of different sizes compare. bmm multiplies each picture with itself: with mm on
    (B * C, H * W) the pictures of a batch would mix.
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
    checkerboard. ICNR (Aitken 2017) draws one kernel and repeats it: the conv starts as one
    that is followed by nearest-neighbour enlargement. The bias must be zero, or repeated.
    Training removes most of a checkerboard, too; behind a last conv that starts at zero, as
    in sr.py, no sure difference was measured (tests/RESULTS.md).

    weight: (out * scale**2, in, kH, kW); init fills a tensor (out, in, kH, kW) in place.
    """
    out = len(weight) // scale**2
    kernel = init(torch.empty_like(weight[:out]))
    return weight.copy_(kernel.repeat_interleave(scale**2, dim=0))
