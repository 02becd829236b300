"""What the three scripts share: VGG features by forward hooks, the Gram matrix, ICNR.

Images are float RGB in [0, 1], shape (B, 3, H, W).
"""
import socket

import torch
from torch import nn

VGG_BLOCKS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # convs a block: Simonyan 2015, table 1
VGG_WIDTHS = (64, 128, 256, 512, 512)
VGG_URLS = {16: "https://download.pytorch.org/models/vgg16-397923af.pth",
            19: "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"}
TIMEOUT = 5  # seconds without an answer before a download is given up


class SaveFeatures:
    """Forward hook that keeps a module's latest output in `.features` (None before the first).

    It keeps a copy, through which gradients flow: in `conv, ReLU(inplace=True)` the ReLU would
    overwrite what a hook on the conv keeps. A context manager; or call remove() when done.
    """

    def __init__(self, module):
        self.features = None
        self.handle = module.register_forward_hook(self.save)

    def save(self, module, inputs, output):
        self.features = output.clone()

    def remove(self):
        self.handle.remove()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.remove()


class VGGFeatures(nn.Module):
    """Activations of a frozen VGG, cut after the last layer asked for: nothing runs in vain.

    layers: names such as "relu1_2" or "conv4_1"; weights: "pretrained" (torchvision's file, from
    the torch hub cache or downloaded) or "random" (He, smooth, of zero mean; average pools as in
    Gatys 2016); depth: 16 or 19. forward(x): (B, 3, H, W) in [0, 1] -> {name: (B, C, H', W')};
    normalises inside; gradients reach x, never the weights; at least float32, also in autocast.
    Raises ValueError for an unknown layer or a file that lacks one, OSError if there is no file.
    """

    def __init__(self, layers, weights="pretrained", depth=16):
        super().__init__()
        if depth not in VGG_BLOCKS:
            raise ValueError(f"VGG{depth} is not known: depth is 16 or 19")
        names, modules, channels = [], [], 3
        for block, (convs, width) in enumerate(zip(VGG_BLOCKS[depth], VGG_WIDTHS), start=1):
            for i in range(1, convs + 1):
                names += [f"conv{block}_{i}", f"relu{block}_{i}"]
                modules += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            names.append(f"pool{block}")
            modules.append(nn.AvgPool2d(2) if weights == "random" else nn.MaxPool2d(2))
        unknown = [name for name in layers if name not in names]
        if unknown or not layers:
            raise ValueError(f"VGG{depth} has no layer {', '.join(unknown) or 'by an empty name'}; "
                             f"it has {' '.join(names)}")
        self.names = names[:max(names.index(name) for name in layers) + 1]
        self.features = nn.Sequential(*modules[:len(self.names)])  # keys as torchvision's
        # The statistics of the ImageNet photos that VGG was trained on.
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), False)
        self.load(layers, weights, depth)
        self.eval().requires_grad_(False)
        unique = dict.fromkeys(layers)  # a layer named twice is hooked once
        self.saved = {n: SaveFeatures(self.features[names.index(n)]) for n in unique}

    @torch.no_grad()
    def load(self, layers, weights, depth):
        if weights == "random":
            generator = torch.Generator().manual_seed(0)
            for module in self.features:
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, generator=generator)
                    module.weight += module.weight.mean((2, 3), keepdim=True)  # smooth
                    if module.in_channels > 3:  # or all channels would answer to brightness alike
                        module.weight -= module.weight.mean((1, 2, 3), keepdim=True)
                    nn.init.zeros_(module.bias)
            return
        if weights != "pretrained":
            raise ValueError(f"weights are 'pretrained' or 'random', not {weights!r}")
        url = VGG_URLS[depth]
        file = f"{torch.hub.get_dir()}/checkpoints/{url.rsplit('/', 1)[1]}"
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(TIMEOUT)  # torch.hub sets none: behind a firewall it would hang
        try:
            state = torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True,
                                                       weights_only=True)
        except OSError as error:
            raise OSError(f"could not download {url} ({error}); put the file at {file}") from None
        except Exception as error:  # a damaged file: torch.load raises many kinds
            raise OSError(f"{file} is not a weight file ({error!r:.150}); delete it and get it "
                          f"again from {url}") from None
        finally:
            socket.setdefaulttimeout(timeout)
        missing = [key for key in self.state_dict() if key not in state]
        if missing:
            first = int(missing[0].split(".")[1])
            served = [name for name in layers if self.names.index(name) < first]
            raise ValueError(f"{file} lacks {self.names[first]} ({missing[0]}): of those asked "
                             f"for, it serves {' '.join(served) or 'none'}")
        self.load_state_dict({key: state[key] for key in self.state_dict()})

    def forward(self, x):
        self.features((x - self.mean) / self.std)
        dtype = torch.promote_types(x.dtype, torch.float32)
        activations = {name: saved.features.to(dtype) for name, saved in self.saved.items()}
        for saved in self.saved.values():
            saved.features = None  # or the last batch's activations would stay in memory
        return activations


def gram_matrix(x):
    """Which channels fire together: the style of a picture (Gatys 2016, eq. 3).

    x: (B, C, H, W) features -> (B, C, C), divided by C * H * W (Johnson 2016, eq. 3), in float32
    or better. bmm, one product an image: with mm on (B * C, HW) the images of a batch would mix.
    """
    B, C, H, W = x.shape
    with torch.autocast(x.device.type, enabled=False):
        f = x.flatten(2).to(torch.promote_types(x.dtype, torch.float32))  # (B, C, HW)
        return torch.bmm(f, f.transpose(1, 2)) / (C * H * W)  # (B, C, HW) x (B, HW, C)


@torch.no_grad()
def icnr_(weight, scale=2, init=nn.init.kaiming_normal_):
    """Initialise, in place, the conv in front of a PixelShuffle(scale); returns weight.

    PixelShuffle lays `scale**2` neighbouring channels out as one scale x scale square of pixels.
    With independent random kernels those pixels differ from the start: a checkerboard, which
    training never quite removes. ICNR (Aitken 2017) draws one kernel a square and repeats it, so
    that the square begins flat, as nearest-neighbour enlargement, if the bias is zero or repeated.

    weight: (out * scale**2, in, kH, kW); init fills a (out, in, kH, kW) tensor in place.
    Raises ValueError if the output channels are not a multiple of scale**2.
    """
    if weight.shape[0] % scale**2:
        raise ValueError(f"{weight.shape[0]} output channels are not a multiple of {scale**2}")
    kernel = init(torch.empty_like(weight[::scale**2]))
    return weight.copy_(kernel.repeat_interleave(scale**2, dim=0))
