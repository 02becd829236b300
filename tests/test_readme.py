"""What the README says is so: its commands run, its code is the scripts', its answers work."""
import importlib
import itertools
import os
import re
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import test_seg
import test_style
import torch
from conftest import ROOT, small_photos, write_photos
from PIL import Image

README = (ROOT / "README.md").read_text()
RUNS = r"\b(sr|style|seg)\.py\b"


def commands():
    """Those of the scripts, each once: lines of shell blocks, and `python ...` in the text."""
    spans = re.findall(r"```sh\n(.*?)```|`(python [^`\n]*)`", README, re.S)
    lines = "\n".join(a or b for a, b in spans).replace("\\\n", " ").splitlines()
    parts = [part.strip() for line in lines for part in line.split("#")[0].split("&&")]
    return [*dict.fromkeys(part for part in parts if re.search(RUNS, part))]


def split(command):
    """'torchrun ... sr.py --steps 9' -> the module sr, ['--steps', '9']."""
    words = shlex.split(command)
    script = next(i for i, word in enumerate(words) if word.endswith(".py"))
    return importlib.import_module(words[script][:-3]), words[script + 1:]


@pytest.mark.parametrize("command", commands())
def test_every_command_parses(command):
    module, argv = split(command)
    if "--help" not in argv:
        assert module.get_args(argv).out


def test_commands_of_the_claims_parse():
    blocks = "".join(re.findall(r"```sh\n(.*?)```", README, re.S))
    lines = re.findall(r"^.*tests/claims .*$", blocks, re.M)
    assert lines
    for line in lines:
        words = shlex.split(line.split("#")[0])
        importlib.import_module("claims.report").get_args(words[words.index("tests/claims") + 1:])


def test_every_command_runs(readme_output):
    runs = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n?)*)", readme_output, re.M)
    assert [command for command, _ in runs] == commands()
    for command, text in runs:
        wanted = ("figure:|->|lr |net |network " if "--help" not in command else "usage")
        assert re.search(wanted, text), command


def test_links_lead_to_what_they_name():
    targets = re.findall(r"\]\(((?!http|#)[^)]+)\)", README)
    assert len(targets) > 5
    for target in targets:
        assert (ROOT / target.split("#")[0]).exists(), target
    titles = re.findall(r"^#+ (.*)$", README, re.M)
    anchors = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]
    assert {*re.findall(r"\]\(#([\w-]+)\)", README)} <= {*anchors}


def test_quoted_code_is_the_scripts():
    quotes = re.findall(r"<!-- (\w+\.py) -->\n```python\n(.*?)```", README, re.S)
    assert len(quotes) >= 6
    for file, code in quotes:
        assert code in (ROOT / file).read_text(), code


@pytest.fixture(scope="module")
def answers():
    """Every block of Python that is not a quotation, run in order, in one namespace.

    Those that draw are only compiled, as they need matplotlib. Those that end in a run of
    style.py leave its flags in "runs"; what they put into style.py is taken out again.
    """
    import style
    kept = dict(vars(style))
    scope = {"runs": []}
    style.main = scope["runs"].append
    for code in re.findall(r"(?<!-->\n)```python\n(.*?)```", README, re.S):
        program = compile(code, "README.md", "exec")
        if "matplotlib" not in code:
            exec(program, scope)
    vars(style).update(kept)
    return scope


def test_answers_of_the_first_lesson(answers):
    import sr
    photo, other = small_photos()[:2]
    plain, blurred = sr.make_pair(photo, 4), answers["make_pair"](photo, 4, sigma=2)
    assert blurred[0].size == plain[0].size and blurred[1] == plain[1]
    assert np.std(blurred[0]) < np.std(plain[0])

    matched = answers["match_histogram"](photo, other)
    apart = [np.abs(np.percentile(image, range(5, 100, 10), (0, 1)) -
                    np.percentile(other, range(5, 100, 10), (0, 1))).mean()
             for image in (matched, photo)]
    assert apart[0] < 0.4 * apart[1]

    vgg = sr.VGGFeatures(sr.FEATURE_WEIGHTS, "random")
    out, y = torch.rand(2, 1, 3, 16, 16)
    parts = answers["feature_parts"](vgg, out, y)
    assert list(parts) == ["pixel", "relu1_2", "relu2_2", "relu3_3"]
    torch.testing.assert_close(sum(parts.values()), sr.feature_loss(vgg, out, y))
    roughness = answers["roughness"]
    assert roughness(answers["with_icnr"]) < 1e-6 < 1e-3 < roughness(answers["without"])


def test_answers_of_the_second_lesson(answers, monkeypatch):
    import style
    photo, other = small_photos()[:2]
    kept = answers["keep_colours"](other, photo).convert("YCbCr").split()
    for n, source in enumerate((other, photo, photo)):  # brightness of one, colours of the other
        wanted = np.asarray(source.convert("YCbCr").split()[n], float)
        assert np.abs(kept[n] - wanted).mean() < 4

    os.symlink(ROOT / "tests", "tests")
    second, cropped = answers["runs"]
    with monkeypatch.context() as context:
        context.setattr(style, "load_checkpoint", answers["only_norms"])
        style.main([*second[:2], "--out", "second", *test_style.TINY])
    before, after = (torch.load(path, weights_only=True)["model"]
                     for path in (second[1], "second/network.pt"))
    for name in before:  # a norm follows its conv
        changed = not torch.equal(before[name].float(), after[name])
        assert changed == (".1." in name and name.count(".") > 2), name

    with monkeypatch.context() as context:
        context.setattr(style, "StyleNet", answers["CroppedNet"])
        style.main([*cropped, *test_style.TINY])
    assert Path("out/cropped/network.pt").exists()
    net = answers["CroppedNet"](4)
    assert net(torch.rand(2, 3, 50, 65)).shape == (2, 3, 50, 65)
    assert not any(m.padding != (0, 0) and m.padding != 0 for layer in net.layers
                   if isinstance(layer, style.ResBlock) for m in layer.modules()
                   if isinstance(m, torch.nn.Conv2d))

    shares = [answers["share"](3, 2, rank, 2) for rank in (0, 1)]
    assert sorted([*shares[0], *shares[1]]) == [*range(12)]


def test_answers_of_the_third_lesson(answers):
    x, kernel = torch.rand(4, 5), torch.rand(3, 3)
    for stride in (1, 2, 3):
        want = torch.nn.functional.conv_transpose2d(x[None, None], kernel[None, None],
                                                    stride=stride)[0, 0]
        torch.testing.assert_close(answers["transposed_conv"](x, kernel, stride), want)
        torch.testing.assert_close(answers["by_convolution"](x, kernel, stride), want)
    assert answers["transposed_conv"](x, torch.ones(2, 2), 2).shape == (8, 10)  # it doubles
    row = answers["transposed_conv"](torch.ones(1, 4), torch.ones(3, 3), 2)[0]
    assert row.tolist() == [1, 1, 2, 1, 2, 1, 2, 1, 1]
    even = answers["transposed_conv"](torch.ones(1, 4), torch.ones(2, 2), 2)[0]
    assert even.tolist() == [1] * 8  # it never overlaps


def test_rates_and_light_of_the_third_lesson(answers, monkeypatch):
    import seg
    photo = Image.new("RGB", (8, 8), (100, 90, 80))
    light = [answers["jitter"](photo, np.random.default_rng(i)) for i in range(9)]
    assert len({image.getpixel((0, 0)) for image in light}) > 5 and photo.getpixel((0, 0))[0] == 100

    os.symlink(ROOT / "tests", "tests")
    monkeypatch.setattr(seg, "BasicBlock", test_seg.LightBlock)
    block, = re.findall(r"```python\n([^`]*def find_lr.*?)```", README, re.S)
    assert "96, classes), crops)" in block
    exec(block.replace("crops)\n", "crops, 5, 2)\n"), {"__name__": "__main__"})
    curve = np.loadtxt("lr.csv", delimiter=",", skiprows=1)
    assert curve[:, 0] == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 1e-1])
    assert np.isfinite(curve).all()


def test_the_size_of_the_readme():
    words = [word for word in README.split() if re.search(r"\w", word)]  # not the bars of tables
    assert len(words) <= 4500
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README):
        with Image.open(ROOT / picture) as image:
            assert image.width >= 1200, picture
        assert (ROOT / picture).stat().st_size <= 700_000, picture


def main(folder):
    """What readme_output is made of: a folder of tiny photos, cars and pictures, all commands."""
    tiny = {"style": test_style.TINY, "seg": test_seg.TINY}
    tiny["sr"] = ["--steps", "2", "--feature-steps", "1", "--batch-size", "2", "--size", "32",
                  "--nf", "4", "--blocks", "1", "--eval-every", "9", "--weights", "random"]
    tiny["style"] = [*tiny["style"][2:], "--optimize-steps", "1"]
    at = tiny["seg"].index("--size")  # at their own sizes
    tiny["seg"] = [*tiny["seg"][:at], *tiny["seg"][at + 2:], "--steps", "2", "--weights", "random"]
    importlib.import_module("seg").BasicBlock = test_seg.LightBlock
    for name in ("imagenet_sample", "imagenet", "Set5"):
        write_photos(Path(folder, name))
    test_seg.write(Path(folder, "carvana"), "train", "train_masks", "_mask.gif")
    test_seg.write(Path(folder, "mine"), names=test_seg.CLASSES)
    for part in ("train", "val"):
        test_seg.write(Path(folder, "camvid"), part, f"{part}annot", names=test_seg.CLASSES)
    os.chdir(folder)
    os.symlink(ROOT / "tests", "tests")
    count = itertools.count()
    time.strftime = lambda *_: f"{next(count)}"  # two runs a second: an old one's name is its time
    picture = next(Path("Set5").glob("*.png"))
    for name in re.findall(r"[\w]+\.jpg", " ".join(commands())):
        Path(name).write_bytes(picture.read_bytes())
    for command in commands():
        module, argv = split(command)
        print(f"$ {command}", flush=True)
        use = {"--apply", "--test", "--help"} & {*argv}
        few = ["--steps", "1"] if module.__name__ == "style" and "--steps 0" not in command else []
        try:
            module.main([*argv, *([] if use else tiny[module.__name__] + few)])
        except SystemExit as stop:  # that of --help
            if stop.code:
                raise


if __name__ == "__main__":
    main(sys.argv[1])
