"""What the three scripts share: VGG features by forward hooks, the Gram matrix, ICNR.

Images are float RGB in [0, 1], shape (B, 3, H, W).
"""
import socket

import torch
from torch import nn

# Convolutions and channels of each block (Simonyan 2015, table 1, columns D and E).
VGG_CONVS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
VGG_CHANNELS = (64, 128, 256, 512, 512)
VGG_FILES = {16: "vgg16-397923af.pth", 19: "vgg19-dcbb9e9d.pth"}  # torchvision's


class SaveFeatures:
    """Forward hook that keeps a module's latest output in `.features`; remove() ends that.

    It keeps a copy, through which gradients flow: in `conv, ReLU(inplace=True)` the ReLU
    would overwrite what a hook on the conv keeps.
    """

    def __init__(self, module):
        self.features = None
        self.handle = module.register_forward_hook(self.save)

    def save(self, module, inputs, output):
        self.features = output.clone()

    def remove(self):
        self.handle.remove()


class VGGFeatures(nn.Module):
    """Activations of a frozen VGG, cut after the last layer asked for.

    The cut leaves out what is never looked at. That is above all the fully connected layers:
    nine tenths of the weights, and the reason why a whole VGG takes one size only.

    layers: names such as "relu1_2"
    weights: "pretrained" (torchvision's) or "random"; depth: 16 or 19
    pool: nn.AvgPool2d (Gatys 2016, section 2) or VGG's own nn.MaxPool2d. The gradient of a
        max pool reaches one pixel of four, which draws a grid of period 2 into pictures.

    forward: (B, 3, H, W) in [0, 1] -> {layer: (B, C, H', W')}, float32 or better. Gradients
    reach x, never the weights. Raises ValueError for an unknown layer, OSError where there is
    no file, or one that lacks a layer.
    """

    def __init__(self, layers, weights="pretrained", depth=16, pool=nn.AvgPool2d):
        super().__init__()
        names = []
        modules = []
        before = 3
        for block, convs in enumerate(VGG_CONVS[depth], start=1):
            channels = VGG_CHANNELS[block - 1]
            for i in range(1, convs + 1):
                names += [f"conv{block}_{i}", f"relu{block}_{i}"]
                conv = nn.utils.skip_init(nn.Conv2d, before, channels, 3, padding=1)  # filled below
                modules += [conv, nn.ReLU(inplace=True)]
                before = channels
            names.append(f"pool{block}")
            modules.append(pool(2))
        unknown = [name for name in layers if name not in names]
        if unknown or not layers:
            raise ValueError(f"VGG{depth} has no layer {unknown}; it has {' '.join(names)}")
        self.names = names[:max(names.index(name) for name in layers) + 1]
        self.features = nn.Sequential(*modules[:len(self.names)])  # keys as torchvision's

        # The statistics of the ImageNet photos that VGG was trained on.
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
        self.register_buffer("mean", mean.view(3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(3, 1, 1), persistent=False)
        self.load(weights, depth)
        self.eval().requires_grad_(False)
        unique = dict.fromkeys(layers)  # a layer named twice is hooked once
        self.saved = {n: SaveFeatures(self.features[names.index(n)]) for n in unique}

    @torch.no_grad()
    def load(self, weights, depth):
        if weights == "random":
            # Normal (He 2015), the same in every run; smooth; of zero mean behind the first
            # layer, or all channels would answer to brightness alike.
            generator = torch.Generator().manual_seed(0)
            for conv in self.features:
                if isinstance(conv, nn.Conv2d):
                    nn.init.kaiming_normal_(conv.weight, generator=generator)
                    conv.weight += conv.weight.mean((2, 3), keepdim=True)
                    if conv.in_channels > 3:
                        conv.weight -= conv.weight.mean((1, 2, 3), keepdim=True)
                    nn.init.zeros_(conv.bias)
            return
        url = f"https://download.pytorch.org/models/{VGG_FILES[depth]}"
        file = f"{torch.hub.get_dir()}/checkpoints/{VGG_FILES[depth]}"
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(5)  # seconds; torch.hub has none, and a firewall may be silent
        try:
            state = torch.hub.load_state_dict_from_url(
                url, map_location="cpu", check_hash=True, weights_only=True)
        except OSError as error:
            raise OSError(f"no {url} ({error}); put the file at {file}") from None
        except Exception as error:  # a damaged file: torch.load raises many kinds
            raise OSError(f"{file} is damaged, delete it ({error!r:.150})") from None
        finally:
            socket.setdefaulttimeout(timeout)
        for key in self.state_dict():
            if key not in state:
                layer = self.names[int(key.split(".")[1])]
                raise OSError(f"{file} lacks {layer} ({key}): ask for layers before it")
        self.load_state_dict({key: state[key] for key in self.state_dict()})

    def forward(self, x):
        self.features((x - self.mean) / self.std)
        dtype = torch.promote_types(x.dtype, torch.float32)
        features = {name: saved.features.to(dtype) for name, saved in self.saved.items()}
        for saved in self.saved.values():
            saved.features = None  # or the last batch's would stay in memory
        return features


def gram_matrix(x):
    """Which channels fire together: the style of a picture (Gatys 2016, eq. 3).

    x: (B, C, H, W) features -> (B, C, C) in float32 or better, divided by C * H * W (Johnson
    2016, eq. 3). bmm multiplies each image with itself: with mm on (B * C, HW) they would mix.
    """
    B, C, H, W = x.shape
    with torch.autocast(x.device.type, enabled=False):
        f = x.flatten(2).to(torch.promote_types(x.dtype, torch.float32))  # (B, C, HW)
        return torch.bmm(f, f.transpose(1, 2)) / (C * H * W)              # (B, C, C)


@torch.no_grad()
def icnr_(weight, scale=2, init=nn.init.kaiming_normal_):
    """Initialise, in place, the conv in front of a PixelShuffle(scale); returns weight.

    PixelShuffle lays scale**2 neighbouring channels out as one square of pixels:

        channels  a b c d  of one pixel   ->   a b  of the enlarged picture
                                               c d

    Four kernels drawn apart make four different pixels, even where the picture is flat: a
    checkerboard, which training never quite removes. ICNR (Aitken 2017) draws one kernel and
    repeats it. Equal kernels, flat square. The bias must be zero, or repeated as well.

    weight: (out * scale**2, in, kH, kW); init fills a (out, in, kH, kW) tensor in place.
    """
    kernel = init(torch.empty_like(weight[::scale**2]))
    return weight.copy_(kernel.repeat_interleave(scale**2, dim=0))
