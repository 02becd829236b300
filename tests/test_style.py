"""style.py: parity, invariants, claims with a twin that fails, learning, the command line."""
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import style
from common import VGGFeatures, gram_matrix
from conftest import fails, same, state

TINY = ["--steps", "4", "--optimize-steps", "2", "--batch-size", "1", "--size", "32", "--nf", "4",
        "--style-size", "32", "--style-layers", "relu1_2", "relu2_2", "--content-layer", "relu2_2",
        "--eval-every", "2", "--weights", "random", "--device", "cpu"]


def perceptual(*flags, picture=None, dtype=torch.float32):
    """A small loss with random features; its style is a generated painting."""
    args = style.get_args([*TINY, *flags])
    picture = style.painting(np.random.default_rng(5), 32) if picture is None else picture
    loss = style.PerceptualLoss(style.to_tensor(picture)[None], args)
    if dtype == torch.float64:
        loss.vgg.double(), loss.shallow.double()
        loss.grams = {layer: gram.double() for layer, gram in loss.grams.items()}
    return loss


def photos_of(n, side=64, seed=3):
    return [(i, style.dead_leaves(np.random.default_rng([seed, i]), side)) for i in range(n)]


def tensors(n, side=32, seed=9):
    return [style.to_tensor(photo)[None] for _, photo in photos_of(n, side, seed)]


# ---- parity
def test_perceptual_loss_against_loops():
    loss = perceptual("--style-weight", "7", "--tv", "0.5",
                      dtype=torch.float64)
    x = torch.rand(3, 3, 36, 32, dtype=torch.float64, requires_grad=True)
    photo = torch.rand(3, 3, 36, 32, dtype=torch.float64)
    got = loss(x, loss.target(photo))
    vgg = VGGFeatures(["relu1_2", "relu2_2"], "random").double()
    want = []
    for i in range(3):
        have, goal = vgg(x[i:i + 1]), vgg(photo[i:i + 1])
        f, g = have["relu2_2"], goal["relu2_2"]
        content = ((f - g)**2).sum() / (g**2).sum()
        parts = []
        for layer, gram in loss.grams.items():
            a = have[layer][0].reshape(have[layer].shape[1], -1)
            a = a @ a.T / a.numel()
            parts.append(((a - gram[0])**2).sum() / (gram[0]**2).sum())
        variation = ((x[i, :, 1:] - x[i, :, :-1]).abs().mean() +
                     (x[i, :, :, 1:] - x[i, :, :, :-1]).abs().mean())
        part = sum(parts) / 2
        want.append(torch.stack([content, part, content + 7 * part + 0.5 * variation]))
    want = torch.stack(want)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)  # the Grams were float32 once
    grads = [torch.autograd.grad(t[:, 2].sum(), x, retain_graph=True)[0] for t in (got, want)]
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-9)


def test_loss_of_the_photo_and_of_the_painting_themselves():
    loss, photo = perceptual("--tv", "0"), tensors(1)[0]
    content, style_, total = loss(photo, loss.target(photo))[0]
    assert content == 0 and style_ > 0.01 and total == pytest.approx(25 * style_.item(), rel=1e-5)
    painting = style.to_tensor(style.painting(np.random.default_rng(5), 32))[None]
    content, style_, _ = loss(painting, loss.target(photo))[0]
    assert style_ < 1e-9 and content > 0.1


def test_targets_have_no_graph_and_stop_at_the_content_layer():
    loss = perceptual("--content-layer", "relu1_2")
    x = torch.rand(1, 3, 32, 32, requires_grad=True)
    target = loss.target(x)
    assert not target.requires_grad and not any(g.requires_grad for g in loss.grams.values())
    assert len(loss.shallow.features) < len(loss.vgg.features)
    assert torch.equal(target, loss.vgg(x)["relu1_2"])


def test_the_loss_of_an_image_does_not_depend_on_its_batch():
    loss, x, y = perceptual(), torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32)
    whole = loss(x, loss.target(y))
    single = torch.cat([loss(a[None], loss.target(b[None])) for a, b in zip(x, y)])
    torch.testing.assert_close(whole, single, rtol=1e-4, atol=1e-5)
    flat = gram_matrix(x.transpose(0, 1).reshape(1, 3, 4 * 32, 32))  # the trap: one mixed Gram
    assert not torch.allclose(flat, gram_matrix(x)[:1], rtol=1e-3)


def test_an_unpadded_block_is_the_inside_of_a_padded_one():
    nets = [style.StyleNet(4, padding, "batch").eval() for padding in ("reflect", "crop")]
    nets[1].load_state_dict(nets[0].state_dict())
    x = torch.randn(1, 16, 12, 14)
    padded, cropped = (next(m for m in net.layers if isinstance(m, style.ResidualBlock))(x)
                       for net in nets)
    assert cropped.shape == (1, 16, 8, 10)
    torch.testing.assert_close(cropped, padded[..., 2:-2, 2:-2])


# ---- data
def test_paintings_are_functions_of_the_seed():
    a, b, c = (style.painting(np.random.default_rng(seed), 64) for seed in (1, 1, 2))
    assert a.shape == (64, 64, 3) and a.dtype == np.uint8
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    assert a.reshape(-1, 3).std(0).max() > 20  # not flat


def test_strokes_run_along_the_flow():
    """Edges of a painting have a direction (coherence of the structure tensor); noise has none."""
    def coherence(image):
        y, x = np.gradient(image.mean(2))
        xx, yy, xy = (t.reshape(16, 16, 16, 16).sum((1, 3)) for t in (x * x, y * y, x * y))
        return (np.hypot(xx - yy, 2 * xy) / (xx + yy)).mean()
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(float)
    assert coherence(style.painting(np.random.default_rng(0), 256).astype(float)) > 0.3
    assert coherence(noise) < 0.2


def test_sample_n_is_a_function_of_seed_and_n(photos):
    crops = style.Crops(style.load_photos(photos, 32), 32)
    a, b, again = (crops[n] for n in (5, 901, 5))
    assert a.shape == (3, 32, 32) and torch.equal(a, again) and not torch.equal(a, b)
    assert not torch.equal(a, style.Crops(crops.photos, 32, seed=1)[5])


def test_crops_slide_along_the_long_side_and_flip():
    ramp = np.zeros((40, 100, 3), np.uint8) + (2 * np.arange(100, dtype=np.uint8))[:, None]
    seen = torch.stack([style.Crops([("ramp", ramp)], 40)[n][0, 0] for n in range(50)])
    left = seen.amin(1)
    assert left.min() < 0.1 and left.max() > 0.35  # from the left end to the right one
    rising = seen[:, -1] > seen[:, 0]
    assert 10 < rising.sum() < 40  # half of them mirrored


def test_crops_beyond_the_cache_are_read_when_drawn(photos):
    cached, lean = style.load_photos(photos, 32), style.load_photos(photos, 32, room=100_000)
    assert any(photo is None for _, photo in lean)
    for n in range(12):
        assert torch.equal(style.Crops(cached, 32)[n], style.Crops(lean, 32)[n])


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "LA"])
def test_pictures_of_every_mode(mode, tmp_path):
    image = Image.fromarray(photos_of(1, 80)[0][1]).crop((0, 0, 80, 50)).convert(mode)
    image.save("in.tif" if mode == "CMYK" else "in.png")
    x = style.load_picture("in.tif" if mode == "CMYK" else "in.png", 40, None, None)
    assert x.shape == (1, 3, 40, 64) and 0 <= x.min() and x.max() <= 1
    assert style.load_picture("in.tif" if mode == "CMYK" else "in.png", 100, None, None).shape[2:] \
        == (100, 160)


def test_pictures_are_reduced_by_averaging_areas():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(image).save("a.png")
    x = style.load_picture("a.png", 32, None, None)[0].permute(1, 2, 0).numpy() * 255
    want = image.reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(x - want).max() <= 1  # rounded to 8 bits along each axis


def test_the_style_is_the_upper_right_square(monkeypatch, photos):
    seen = []
    real = style.PerceptualLoss
    monkeypatch.setattr(style, "PerceptualLoss", lambda s, a: seen.append(s) or real(s, a))
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 64:] = 255
    Image.fromarray(wide).save("wide.png")
    style.main(["--data", str(photos), *TINY, "--style", "wide.png"])
    assert seen[0].shape == (1, 3, 32, 32) and (seen[0] == 1).all()


# ---- model
@pytest.mark.parametrize("padding", ["reflect", "crop"])
@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (70, 41), (45, 130)])
def test_output_has_the_size_of_the_input_and_is_bounded(padding, norm, size):
    net = style.StyleNet(4, padding, norm)
    for p in net.parameters():
        nn.init.normal_(p, std=1)
    out = net(torch.rand(2, 3, *size))
    assert out.shape == (2, 3, *size) and out.min() >= 0 and out.max() <= 1 and out.std() > 0.1


def test_instance_norm_treats_each_image_alone_and_batch_norm_does_not():
    x = torch.rand(3, 3, 32, 32)
    for norm, alone in (("instance", True), ("batch", False)):
        net = style.StyleNet(4, "reflect", norm)
        assert torch.allclose(net(x)[:1], net(x[:1]), atol=1e-5) == alone
    net.eval()  # with the running statistics batch norm no longer mixes the batch
    torch.testing.assert_close(net(x)[:1], net(x[:1]))


def border_error(net, photo, around=32, border=8):
    """Mean absolute error of the outer pixels, against the photo stylised with surroundings."""
    inside = photo[..., around:-around, around:-around]
    with torch.no_grad():
        true, out = net(photo)[..., around:-around, around:-around], net(inside)
    ring = torch.ones_like(out, dtype=torch.bool)
    ring[..., border:-border, border:-border] = False
    return (out - true)[ring].abs().mean().item()


def padded_nets():
    """Three nets with the same weights: reflect, crop, and the twin that pads with zeros.

    With the running statistics of batch norm they have no sight of the whole picture: all that
    can differ between a photo and the same photo with surroundings is what the borders do.
    """
    nets = {padding: style.StyleNet(8, padding, "batch").eval() for padding in ("reflect", "crop")}
    nets["crop"].load_state_dict(nets["reflect"].state_dict())
    nets["zero"] = style.StyleNet(8, "reflect", "batch").eval()
    nets["zero"].load_state_dict(nets["reflect"].state_dict())
    for module in nets["zero"].modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "zeros"
    return nets


def test_reflection_leaves_smaller_border_errors_than_zeros():
    errors = {"reflect": 0, "crop": 0, "zero": 0}
    for seed in range(4):
        torch.manual_seed(seed)
        nets = padded_nets()
        for photo in tensors(3, 128, seed):
            for padding, net in nets.items():
                errors[padding] += border_error(net, photo)
    assert errors["reflect"] < 0.5 * errors["zero"] and errors["crop"] < 0.5 * errors["zero"]


# ---- optimising, learning
def test_optimising_starts_at_the_photo_and_lowers_the_loss():
    loss, photo = perceptual(), tensors(1)[0]
    before = photo.clone()
    image, losses = style.optimize(photo, loss, 20, False)
    assert torch.equal(photo, before) and not image.requires_grad
    assert losses.shape == (21,)
    as_it_is = style.evaluate(nn.Identity(), loss, [photo])[0, 2].item()
    assert losses[0].item() == pytest.approx(as_it_is, rel=1e-5)
    assert losses[20] < 0.5 * losses[0] and 0 <= image.min() and image.max() <= 1
    got = style.evaluate(lambda x: image, loss, [photo])[0, 2].item()
    assert got == pytest.approx(losses[20].item(), rel=1e-4)


def trained_on(loss, steps, lr=1e-3, seed=0):
    torch.manual_seed(0)
    net, crops = style.StyleNet(8, "reflect", "instance"), style.Crops(photos_of(8), 32, seed)
    optimizer = torch.optim.Adam(net.parameters(), lr)
    for step in range(steps):
        x = torch.stack([crops[4 * step + i] for i in range(4)])
        optimizer.zero_grad()
        loss(net(x), loss.target(x))[:, -1].mean().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1)
        optimizer.step()
    return net


@pytest.mark.parametrize("shape", [(8, 3, 9, 9), (16, 16, 3, 3), (3, 8, 9, 9)])
def test_orthogonal_brings_the_singular_values_near_one(shape):
    m = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    m *= torch.logspace(0, -1, len(m)).view(-1, 1, 1, 1)  # rows that differ tenfold
    m = m.contiguous(memory_format=torch.channels_last)
    before, got = m.clone(), style.orthogonal(m)
    U, S, V = torch.linalg.svd(m.flatten(1), full_matrices=False)
    values = torch.linalg.svdvals(got.flatten(1))
    assert values.min() > 0.6 and values.max() < 1.3 and S.max() > 5 * S.min()
    nearest = (U @ V).flatten()
    cosine = nn.functional.cosine_similarity(got.flatten(), nearest, 0)
    assert cosine > 0.97 and 0.95 > nn.functional.cosine_similarity(m.flatten(), nearest, 0)
    torch.testing.assert_close(style.orthogonal(1e3 * m), got, atol=1e-4, rtol=0)
    assert torch.equal(m, before) and got.shape == m.shape
    assert not style.orthogonal(torch.zeros(shape)).any()  # and not nan


def test_a_net_learns_its_own_painting_better_than_another():
    pictures = [style.painting(np.random.default_rng(seed), 64) for seed in (5, 8)]
    losses = [perceptual("--style-size", "64", picture=picture) for picture in pictures]
    nets, unseen = [trained_on(loss, 60) for loss in losses], tensors(4)
    scores = torch.stack([torch.stack([style.evaluate(net, loss, unseen)[:, 1].mean()
                                       for net in nets]) for loss in losses])
    assert scores[0, 0] < 0.9 * scores[0, 1] and scores[1, 1] < 0.9 * scores[1, 0]
    base = style.evaluate(nn.Identity(), losses[0], unseen)[:, 2].mean()
    assert style.evaluate(nets[0], losses[0], unseen)[:, 2].mean() < 0.95 * base


def test_evaluate_leaves_the_net_and_the_input_alone():
    net, x = style.StyleNet(4, "reflect", "batch").eval(), tensors(2)
    weights, before = {k: v.clone() for k, v in net.state_dict().items()}, x[0].clone()
    style.evaluate(net, perceptual(), x)
    assert torch.equal(x[0], before) and all(p.grad is None for p in net.parameters())
    assert all(torch.equal(v, weights[k]) for k, v in net.state_dict().items())


# ---- the loop
def run(out, *flags):
    style.main(["--out", str(out), *TINY, *flags])


@pytest.fixture
def trained(photos):
    run("out/style", "--data", str(photos))
    return Path("out/style/network.pt")


def test_a_whole_run(photos, capsys):
    Image.fromarray(photos_of(1, 90)[0][1]).crop((0, 0, 90, 60)).save("photo.jpg")
    style.main(["--data", str(photos), *TINY, "--content", "photo.jpg", "--keep", "0.9", "--seed",
                "3", "--workers", "1", "--out", "o", "--lr", "1e-3", "--vgg", "19", "--tv", "1"])
    out = capsys.readouterr().out
    assert out.index("eval      0/4") < out.index("step      1/4")
    rows = [line.split()[-4:] for line in out.splitlines()
            if line.startswith(("content  ", "optimised", "network"))]
    assert len(rows) == 7  # three photos, and two rows each of the two ways; content once
    assert out.count("the optimiser equals the network at step") == 3
    assert sorted(p.name for p in Path("o").iterdir()) == ["figure.png", "log.csv", "network.pt",
                                                           "optimised.png"]
    with Image.open("o/figure.png") as figure, Image.open("o/optimised.png") as optimised:
        assert figure.size == (264 * 4, 282 * 3) and optimised.size == (48, 32)
    assert state("o/network.pt")["args"]["style_layers"] == "relu1_2 relu2_2"


def test_without_photos_pictures_or_network(capsys, monkeypatch):
    monkeypatch.setattr(style, "dead_leaves",  # noise is drawn faster
                        lambda rng, side: rng.integers(0, 255, (48, 48, 3), np.uint8))
    flags = [flag for flag in TINY if flag not in ("--weights", "random")]
    style.main(flags)
    out = capsys.readouterr().out
    assert "no imagenet_sample here" in out and "put the file at" in out
    assert "random features take the place" in out and "figure: out/style/figure.png" in out
    assert state("out/style/network.pt")["args"]["weights"] == "random"


@pytest.mark.parametrize("flags", [["--padding", "crop"], ["--norm", "batch"], ["--nf", "6"]])
def test_a_checkpoint_knows_its_own_net(photos, flags):
    run("one", "--data", str(photos), *flags)
    style.main(["--apply", str(photos / "01.png"), "--init", "one/network.pt", "--out", "applied"])
    with Image.open("applied/01_styled.png") as styled:
        assert styled.size == (96, 96)
    run("two", "--data", str(photos), "--init", "one/network.pt")  # goes on from it
    saved = [state(f"{name}/network.pt")["args"][flags[0][2:]] for name in ("one", "two")]
    assert saved[0] == saved[1] != vars(style.get_args(TINY))[flags[0][2:]]


def test_flags_that_change_the_result(photos, monkeypatch):
    Image.fromarray(photos_of(1, 40, 8)[0][1]).save("style.png")
    cells = dict.fromkeys("abc", torch.zeros(1, 3, 32, 32))
    monkeypatch.setattr(style, "compare", lambda *_: cells)  # not looked at here
    noise = lambda rng, side: rng.integers(0, 255, (side, side, 3), np.uint8)  # noqa: E731
    monkeypatch.setattr(style, "painting", noise)  # drawn faster

    def weights(*flags):
        run("one", "--data", str(photos), "--eval-every", "9", "--steps", "2",
            "--batch-size", "2", *flags)  # of one photo, the norms are the same
        return state("one/network.pt")["model"]["layers.0.weight"]
    base = weights()
    assert torch.equal(base, weights()) and torch.equal(base, weights("--content", "style.png"))
    for flags in (["--lr", "1e-4"], ["--seed", "2"], ["--keep", "0.5"], ["--batch-size", "3"],
                  ["--size", "40"], ["--steps", "3"], ["--style", "style.png"],
                  ["--style-size", "48"], ["--style-weight", "3"],
                  ["--tv", "3"], ["--style-layers", "relu1_1"], ["--content-layer", "relu1_1"],
                  ["--padding", "crop"], ["--norm", "batch"]):
        assert not torch.equal(base, weights(*flags)), flags


def test_stopped_and_resumed_is_never_stopped(photos, ctrl_c):
    flags = ["--data", str(photos), "--norm", "batch"]
    run("whole", *flags)
    steps_done, arm = ctrl_c
    arm()
    with pytest.raises(SystemExit, match="stopped at step 3.*--resume"):
        run("halves", *flags)
    assert state("halves/network.pt")["step"] == 3
    style.main(["--out", "halves", "--resume"])  # its settings are those of the stopped run
    assert same(state("whole/network.pt"), state("halves/network.pt"))


def test_same_bits_for_any_number_of_workers(photos):
    run("none", "--data", str(photos))
    run("two", "--data", str(photos), "--workers", "2")
    assert same(state("none/network.pt"), state("two/network.pt"))


def test_two_ranks_are_one_with_twice_the_batch(two_ranks):
    flags = ["--data", "data", *TINY]
    assert two_ranks.count("step      4/4") == 1 and two_ranks.count("figure:") == 1
    style.main(["--out", "one", *flags, "--batch-size", "2"])
    style.main(["--out", "alone", *flags])  # the twin: half of the photos
    # not the biases: before an instance norm their gradient is nothing but rounding
    def weights(name):
        model = state(f"{name}/network.pt")["model"]
        return torch.cat([v.flatten() for k, v in model.items() if k.endswith("weight")])
    two, one, alone = map(weights, ("two", "one", "alone"))
    assert (two - one).norm() < 0.2 * (alone - one).norm()


def test_a_loss_that_is_not_finite_stops_the_run(photos, monkeypatch):
    monkeypatch.setattr(style, "relative", lambda x, y: (x.flatten(1) * np.nan).sum(1))
    with pytest.raises(SystemExit, match="the loss is nan.*lower --lr.*out/network.pt"):
        run("out", "--data", str(photos))
    assert state("out/network.pt")["step"] == 0


def test_an_earlier_run_is_kept(photos, trained):
    first = state(trained)
    run("out/style", "--data", str(photos), "--seed", "1")
    kept = [p for p in trained.parent.iterdir() if p.name.endswith("-network.pt")]
    assert len(kept) == 1 and same(state(kept[0]), first) and not same(state(trained), first)


def test_training_lowers_the_loss_on_photos_it_has_not_seen(photos):
    run("out", "--data", str(photos), "--steps", "40", "--batch-size", "2", "--eval-every", "20")
    totals = [float(line.split(",")[2]) for line in Path("out/log.csv").read_text().splitlines()]
    assert len(totals) == 3 and totals[2] < totals[1] < totals[0]


def test_a_resumed_run_keeps_its_settings_and_its_pictures(photos, capsys):
    Image.fromarray(photos_of(1, 90)[0][1]).crop((0, 0, 90, 60)).save("photo.jpg")
    run("o", "--data", str(photos), "--content", "photo.jpg")
    first = Path("o/optimised.png").read_bytes()
    style.main(["--out", "o", "--resume", "--style", "photo.jpg"])  # the painting stays generated
    assert Path("o/optimised.png").read_bytes() == first
    assert len([p for p in Path("o").iterdir() if p.name.endswith("-optimised.png")]) == 1
    assert Path("o/log.csv").read_text().count("nan") == 1  # of step 0: nothing is validated twice
    style.main(["--out", "o", "--resume", "--content", str(photos / "01.png")])  # another photo
    assert Path("o/optimised.png").read_bytes() != first


def test_a_resumed_run_does_not_change_to_random_features(photos, capsys, tmp_path):
    path = tmp_path / "torch_home/hub/checkpoints/vgg16-397923af.pth"
    path.parent.mkdir(parents=True)
    torch.save(VGGFeatures(["relu2_2"], "random").state_dict(), path)
    run("o", "--data", str(photos), "--weights", "pretrained")
    path.unlink()
    assert "put the file at" in fails(style, capsys, "--out", "o", "--resume")


def test_the_step_at_which_the_optimiser_equals_the_network(photos, capsys, monkeypatch):
    for losses, step in (([1e9, 1e9, 0.0, 0.0], "step 2 of 3"), ([1e9] * 4, "step inf of 3")):
        monkeypatch.setattr(style, "optimize", lambda x, *_: (x, torch.tensor(losses)))
        run("o", "--data", str(photos), "--optimize-steps", "3")
        assert capsys.readouterr().out.count(step) == 3


# ---- applying
@pytest.mark.parametrize("mode, saved", [("RGB", "RGB"), ("L", "RGB"), ("RGBA", "RGBA"),
                                         ("P", "RGB"), ("LA", "RGBA")])
def test_apply_to_every_mode_and_odd_sizes(trained, mode, saved):
    photo = Image.fromarray(photos_of(1, 75)[0][1]).crop((0, 0, 75, 33))
    if mode in ("RGBA", "LA"):
        photo = photo.convert(mode)
        photo.putalpha(Image.linear_gradient("L").resize((75, 33)))
    photo.convert(mode).save("in.png")
    style.main(["--apply", "in.png", "--init", str(trained), "--device", "cpu"])
    with Image.open("out/style/in_styled.png") as styled:
        assert styled.size == (75, 33) and styled.mode == saved
        if saved == "RGBA":
            assert styled.getchannel("A").tobytes() == photo.getchannel("A").tobytes()


def test_a_large_photo_is_reduced_and_one_beyond_memory_refused(trained, capsys, monkeypatch):
    Image.fromarray(photos_of(1, 90)[0][1]).crop((0, 0, 90, 60)).save("large.png")
    style.main(["--apply", "large.png", "--init", str(trained), "--max-side", "60"])
    with Image.open("out/style/large_styled.png") as styled:
        assert styled.size == (60, 40)
    assert "--max-side 60" in capsys.readouterr().out

    def forward(self, x):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(style.StyleNet, "forward", forward)
    assert "a lower --max-side" in fails(style, capsys, "--apply", "large.png", "--init", trained,
                                       "--out", "other")


def test_apply_is_the_net_in_use_not_in_training(photos):
    run("o", "--data", str(photos), "--norm", "batch")
    style.main(["--apply", str(photos / "01.png"), "--init", "o/network.pt", "--out", "a"])
    net = style.StyleNet(4, "reflect", "batch")
    net.load_state_dict(state("o/network.pt")["model"])
    x = style.to_tensor(Image.open(photos / "01.png"))[None]
    with torch.no_grad(), Image.open("a/01_styled.png") as styled:
        in_training = style.to_image(net.train()(x)[0]).astype(int)
        in_use = style.to_image(net.eval()(x)[0]).astype(int)
        assert np.abs(np.asarray(styled) - in_use).max() <= 1 < np.abs(in_training - in_use).max()


# ---- every mistake
@pytest.mark.parametrize("flag, value", [
    ("--steps", 0), ("--batch-size", 0), ("--size", 31), ("--style-size", 8), ("--nf", 0),
    ("--optimize-steps", 0), ("--max-side", 1), ("--lr", 0), ("--lr", "nan"), ("--keep", 0),
    ("--style-weight", -1), ("--tv", -1), ("--seed", -1),
    ("--workers", -1), ("--eval-every", 0)])
def test_numbers_out_of_range(capsys, flag, value):
    assert flag in fails(style, capsys, flag, value)


def test_words_that_are_no_choice(capsys):
    for flag, value in (("--vgg", 11), ("--padding", "zero"), ("--norm", "layer"),
                        ("--weights", "best"), ("--steps", "many")):
        assert flag in fails(style, capsys, flag, value)
    assert "there is no such device" in fails(style, capsys, "--device", "abacus")
    assert "--init" in fails(style, capsys, "--apply", "photo.jpg")


@pytest.mark.parametrize("flag", ["--style", "--content"])
def test_pictures_that_are_none(capsys, photos, flag):
    Path("notes.txt").write_text("no picture")
    Image.new("RGB", (31, 200)).save("tiny.png")
    for name, why in (("gone.jpg", "cannot read gone.jpg"), ("notes.txt", "cannot read notes.txt"),
                      ("tiny.png", "tiny.png has a side below 32 px")):
        assert why in fails(style, capsys, "--data", photos, *TINY, flag, name)
    assert not Path("out/style/network.pt").exists()


def test_layers_that_vgg_does_not_have(capsys, photos):
    assert "no layer" in fails(style, capsys, "--data", photos, *TINY, "--style-layers", "")
    for flags in (["--style-layers", "relu9_9"], ["--content-layer", "relu3_4"]):
        sentence = fails(style, capsys, "--data", photos, *TINY, *flags)
        assert flags[1] in sentence and "relu3_3" in sentence and flags[0] in sentence
    style.main(["--data", str(photos), *TINY, "--content-layer", "relu3_4", "--vgg", "19"])


def test_a_weight_file_that_lacks_a_layer_names_those_it_serves(capsys, photos, tmp_path):
    path = tmp_path / "torch_home/hub/checkpoints/vgg16-397923af.pth"
    path.parent.mkdir(parents=True)
    torch.save(VGGFeatures(["relu2_2"], "random").state_dict(), path)
    flags = ["--data", photos, *TINY, "--weights", "pretrained"]
    sentence = fails(style, capsys, *flags, "--style-layers", "relu1_2", "relu2_2", "relu3_3")
    assert "lacks conv3_1" in sentence and "it serves relu2_2 relu1_2" in sentence
    assert "--style-layers" in sentence
    style.main([str(flag) for flag in flags])  # with relu1_2 and relu2_2


def test_folders_and_photos_that_do_not_serve(capsys, photos, trained, tmp_path):
    assert "nowhere" in fails(style, capsys, "--data", "nowhere", *TINY)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.png").write_bytes((photos / "01.png").read_bytes())
    assert "takes two" in fails(style, capsys, "--data", tmp_path / "one", *TINY)
    Image.new("RGB", (20, 90)).save("thin.png")
    assert "below 32 px" in fails(style, capsys, "--apply", "thin.png", "--init", trained)
    assert "cannot read gone.jpg" in fails(style, capsys, "--apply", "gone.jpg", "--init", trained)
    style.main(["--apply", str(photos / "01.png"), "--init", str(trained)])
    before = Path("out/style/01_styled.png").read_bytes()
    assert "01_styled.png exists" in fails(style, capsys, "--apply", photos / "01.png", "--init",
                                           trained)
    assert Path("out/style/01_styled.png").read_bytes() == before


def test_checkpoints_that_are_none(capsys, trained, photos):
    other = torch.load(trained, weights_only=True)
    other["args"]["script"] = "sr"
    torch.save(other, "sr.pt")
    Path("empty.pt").write_bytes(b"")
    for name, why in (("gone.pt", "No such file"), ("empty.pt", ""), ("sr.pt", "sr.py wrote it")):
        for flags in (["--apply", photos / "01.png"], ["--data", photos, *TINY]):
            sentence = fails(style, capsys, *flags, "--init", name)
            assert "is no checkpoint of style.py" in sentence and why in sentence
    assert "out/none/network.pt" in fails(style, capsys, "--resume", "--out", "out/none")


def test_out_that_cannot_be_written(capsys, photos):
    Path("file").write_text("")
    for out in ("file", "file/deeper"):
        assert f"--out {out}" in fails(style, capsys, "--data", photos, *TINY, "--out", out)


# ---- real data, opt-in
def test_the_shared_weight_file_serves_up_to_relu3_3(lesson_data, capsys, monkeypatch, photos):
    monkeypatch.setenv("TORCH_HOME", str(lesson_data / "torch_home"))
    painting = lesson_data / "style" / "starry_night.jpg"
    flags = ["--data", photos, *TINY, "--weights", "pretrained", "--style", painting]
    layers = ["relu1_2", "relu2_2", "relu3_3"]
    sentence = fails(style, capsys, *flags, "--style-layers", *layers, "relu4_3")
    assert "lacks conv4_1" in sentence and "relu1_2 relu2_2 relu3_3" in sentence
    style.main([str(flag) for flag in [*flags, "--style-layers", *layers]])
    assert "random features" not in capsys.readouterr().out
