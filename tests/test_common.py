"""common.py against independent forms: values and gradients in float64."""
import pickle
import socket

import numpy as np
import pytest
import torch
from torch import nn

from common import INCLUDED, SaveFeatures, VGGFeatures, gram_matrix, icnr_

def test_save_features_keeps_the_latest_output():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    saved = SaveFeatures(net[0])
    assert saved.features is None
    for x in torch.randn(2, 1, 3, 8, 8):
        net(x)
        assert torch.equal(saved.features, net[0](x)) and saved.features.min() < 0


def test_save_features_lets_gradients_through():
    conv = nn.Conv2d(3, 4, 3)
    saved = SaveFeatures(conv)
    conv(torch.randn(1, 3, 8, 8))
    saved.features.sum().backward()
    assert conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("depth, relu3_3", [(16, 15), (19, 15)])
def test_vgg_layer_names_are_torchvisions_indices(depth, relu3_3):
    vgg = VGGFeatures(["relu3_3"], "random", depth)
    assert len(vgg.features) == relu3_3 + 1  # cut: nothing behind relu3_3
    last = {16: "features.28.weight", 19: "features.34.weight"}[depth]
    whole = VGGFeatures([{16: "relu5_3", 19: "relu5_4"}[depth]], "random", depth).state_dict()
    assert list(whole)[-2] == last and whole[last].shape == (512, 512, 3, 3)


def test_vgg_hooks_deliver_what_slicing_delivers():
    layers = ["conv1_2", "relu1_2", "relu2_2", "pool2", "conv3_1"]
    vgg = VGGFeatures(layers).double()
    x = torch.rand(2, 3, 20, 12, dtype=torch.float64, requires_grad=True)
    features = vgg(x)
    y = x.detach().clone().requires_grad_()
    normal = (y - vgg.mean) / vgg.std
    for name in layers:
        want = vgg.features[:vgg.names.index(name) + 1](normal)
        torch.testing.assert_close(features[name], want)
        grad, want_grad = (torch.autograd.grad(f.square().sum(), t, retain_graph=True)[0]
                           for f, t in ((features[name], x), (want, y)))
        torch.testing.assert_close(grad, want_grad)
    assert not any(p.requires_grad for p in vgg.parameters())


def test_random_channels_do_not_all_answer_to_brightness():
    """Kernels of zero mean, but for the first; with their mean they are the twin that fails: it is
    then most of each Gram matrix, which hardly knows one picture from another."""
    colours = np.random.default_rng(0).random((1, 3, 4, 4), np.float32)
    x = nn.functional.interpolate(torch.from_numpy(colours), scale_factor=16)

    def share(vgg):  # of the largest eigenvalue in the Gram matrix
        values = torch.linalg.eigvalsh(gram_matrix(vgg(x)["relu3_3"])[0])
        return (values[-1] / values.sum()).item()
    vgg = VGGFeatures(["relu3_3"], "random")
    kernels = [m.weight for m in vgg.features if isinstance(m, nn.Conv2d)]
    assert all(kernel.mean((1, 2, 3)).abs().max() < 1e-6 for kernel in kernels[1:])
    assert kernels[0].mean((1, 2, 3)).abs().max() > 1e-3  # flat colours are seen
    ours = share(vgg)
    generator = torch.Generator().manual_seed(0)
    for kernel in kernels:
        nn.init.kaiming_normal_(kernel, generator=generator)
        kernel += kernel.mean((2, 3), keepdim=True)
    assert ours < 0.6 < 0.8 < share(vgg)
    assert any(isinstance(m, nn.AvgPool2d) for m in vgg.features)
    assert not any(isinstance(m, nn.MaxPool2d) for m in vgg.features)


def test_vgg_features_are_of_the_pictures_type_and_not_kept():
    vgg = VGGFeatures(["relu1_2"])
    with torch.autocast("cpu", torch.bfloat16):
        x = torch.rand(1, 3, 8, 8)
        assert vgg(x)["relu1_2"].dtype == torch.float32
    assert vgg.double()(x.double())["relu1_2"].dtype == torch.float64
    assert all(saved.features is None for saved in vgg.saved.values())


def test_vgg_is_cut_behind_the_last_layer_and_the_same():
    x = torch.rand(1, 3, 16, 16)
    short, long = VGGFeatures(["relu1_2"]), VGGFeatures(["relu1_2", "relu4_3"])
    assert len(short.features) == 4 < len(long.features)
    assert torch.equal(short(x)["relu1_2"], long(x)["relu1_2"])


def test_vgg_random_weights_are_the_same_in_every_run():
    a, b = VGGFeatures(["relu2_2"], "random"), VGGFeatures(["relu2_2"], "random")
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("layers", [["relu9_9"], []])
def test_vgg_unknown_layer_names_the_choices(layers):
    with pytest.raises(ValueError, match="relu1_1"):
        VGGFeatures(layers)


# ---- weights
@pytest.mark.parametrize("layers, depth", [(["relu5_1"], 16), (["pool4"], 16), (["relu2_1"], 19)])
def test_what_the_included_weights_do_not_hold(layers, depth):
    with pytest.raises(ValueError, match=f"relu4_3: for {layers[0]} of VGG{depth} take torch"):
        VGGFeatures(layers, depth=depth)
    assert len(VGGFeatures(["relu4_3"]).features) == 23


def test_the_included_weights_are_a_trained_vgg():
    """Its own scale: a mean of 1 for each layer on photos. And kernels as the file has them."""
    from conftest import PHOTOS
    from PIL import Image
    photos = [np.array(Image.open(path).convert("RGB").resize((96, 96))) for path in PHOTOS]
    x = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).float() / 255
    layers = ["relu1_2", "relu2_2", "relu3_3", "relu4_3"]
    vgg = VGGFeatures(layers, pool=nn.MaxPool2d)
    for features in vgg(x).values():
        assert 0.5 < features.mean() < 1.5
    file = torch.load(INCLUDED, weights_only=True)
    want = file["features.5.weight"][7].float() * file["features.5.scale"][7].float()
    assert torch.equal(vgg.features[5].weight[7], want)
    assert torch.equal(vgg.features[5].bias, file["features.5.bias"].float())


def test_a_download_that_fails_is_one_sentence_that_says_what_to_do():
    with pytest.raises(OSError, match=r"no weights from https://.*/vgg16-397923af.pth .*no network"
                       ".*save it as .*checkpoints/vgg16-397923af.pth, or take .*included"):
        VGGFeatures(["relu1_2"], "torchvision")
    assert socket.getdefaulttimeout() is None  # it was set for the download alone


@pytest.mark.parametrize("error", [
    RuntimeError("invalid hash value"), pickle.UnpicklingError("invalid load key"), EOFError()])
def test_so_is_a_broken_download(monkeypatch, error):
    def broken(*args, **kwargs):
        raise error
    monkeypatch.setattr("torch.hub.download_url_to_file", broken)
    with pytest.raises(OSError, match=f"{type(error).__name__}.*save it as") as caught:
        VGGFeatures(["relu1_2"], "torchvision")
    assert "\n" not in str(caught.value) and "delete" not in str(caught.value)


def hub_file(tmp_path, content, name="vgg16-397923af.pth"):
    path = tmp_path / "torch_home/hub/checkpoints" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)


@pytest.mark.parametrize("depth, name", [(16, "vgg16-397923af.pth"), (19, "vgg19-dcbb9e9d.pth")])
def test_vgg_reads_a_float16_file_of_the_features_alone(tmp_path, depth, name):
    want = VGGFeatures(["relu3_3"], "random", depth).state_dict()
    hub_file(tmp_path, {key: value.half() for key, value in want.items()}, name)
    vgg = VGGFeatures(["relu2_2"], "torchvision", depth)
    for key, value in vgg.state_dict().items():
        assert torch.equal(value, want[key].half().float())


def test_vgg_file_that_lacks_a_layer_or_is_damaged(tmp_path):
    hub_file(tmp_path, VGGFeatures(["relu1_2"], "random").state_dict())
    with pytest.raises(OSError, match="features.5.weight.*save it as"):
        VGGFeatures(["relu2_2"], "torchvision")
    for damage in (b"no weights", b""):
        hub_file(tmp_path, damage)
        with pytest.raises(OSError, match="save it as .*vgg16-397923af.pth"):
            VGGFeatures(["relu1_2"], "torchvision")


def test_pools_average_unless_told_otherwise():
    """A max pool sends the gradient to one pixel of four, an average pool to all of them."""
    for pool, reached in ((nn.AvgPool2d, 64), (nn.MaxPool2d, 16)):
        x = torch.rand(1, 64, 8, 8, requires_grad=True)
        vgg = VGGFeatures(["pool1"], pool=pool)
        vgg.features[-1](x).sum().backward()
        assert (x.grad[0, 0] != 0).sum() == reached
    assert isinstance(VGGFeatures(["pool1"]).features[-1], nn.AvgPool2d)


def test_gram_matrix_against_a_loop():
    x = torch.randn(3, 4, 5, 7, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    want = torch.stack([torch.stack([torch.stack([(y[b, i] * y[b, j]).sum() for j in range(4)])
                                     for i in range(4)]) for b in range(3)]) / (4 * 5 * 7)
    torch.testing.assert_close(gram_matrix(x), want)
    weight = torch.randn_like(want)
    (gram_matrix(x) * weight).sum().backward()
    (want * weight).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_gram_matrix_does_not_mix_the_batch_but_mm_does():
    x = torch.randn(3, 4, 5, 7)
    changed = x.clone()
    changed[1] = 0
    assert torch.equal(gram_matrix(x)[0], gram_matrix(changed)[0])

    def mm(x):  # the trap: (C, B * HW)
        f = x.transpose(0, 1).flatten(1)
        return f @ f.T

    assert not torch.allclose(mm(x), mm(changed))


def test_gram_matrix_is_float32_under_autocast():
    x = torch.randn(1, 4, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.bmm(x[0], x[0]).dtype == torch.bfloat16  # what would happen to it
        assert torch.equal(gram_matrix(x), gram_matrix(x.float()))
        assert gram_matrix(x).dtype == torch.float32


@pytest.mark.parametrize("scale", [2, 3])
def test_icnr_starts_as_nearest_enlargement(scale):
    conv = nn.Conv2d(5, 6 * scale**2, 3, padding=1)
    nn.init.zeros_(conv.bias)
    x = torch.randn(2, 5, 7, 4)

    def is_nearest(out):
        return torch.equal(out, out[..., ::scale, ::scale].repeat_interleave(scale, 2)
                           .repeat_interleave(scale, 3))

    shuffle = nn.PixelShuffle(scale)
    assert not is_nearest(shuffle(conv(x)))  # the twin: independent kernels
    assert icnr_(conv.weight, scale) is conv.weight
    assert is_nearest(shuffle(conv(x)))
    nn.init.normal_(conv.bias)
    assert not is_nearest(shuffle(conv(x)))  # the twin: a bias that is neither zero nor repeated


def test_icnr_draws_with_init():
    weight = torch.empty(8, 3, 3, 3)
    icnr_(weight, 2, lambda kernel: kernel.copy_(torch.arange(54.).view(2, 3, 3, 3)))
    assert torch.equal(weight[:4], weight[:1].expand(4, 3, 3, 3)) and weight[4, 0, 0, 0] == 27
