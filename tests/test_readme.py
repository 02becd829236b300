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
import torch
from conftest import ROOT, write_photos
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
    lines = re.findall(r"^.*tests/claims\.py.*$", blocks, re.M)
    assert lines
    for line in lines:
        words = shlex.split(line.split("#")[0])
        importlib.import_module("claims").get_args(words[words.index("tests/claims.py") + 1:])


def test_every_command_runs(readme_output):
    runs = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n?)*)", readme_output, re.M)
    assert [command for command, _ in runs] == commands()
    for command, text in runs:
        wanted = ("figure:|->|lr |net " if "--help" not in command else "usage")
        assert re.search(wanted, text), command


def test_links_lead_to_what_they_name():
    for word, file, line in re.findall(r"\[`([\w.]+)`\]\((\w+\.py)#L(\d+)\)", README):
        assert word in (ROOT / file).read_text().splitlines()[int(line) - 1], (word, file, line)
    for target in re.findall(r"\]\(((?!http|#)[^)]+)\)", README):
        assert (ROOT / target.split("#")[0]).exists(), target
    titles = re.findall(r"^#+ (.*)$", README, re.M)
    anchors = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]
    assert {*re.findall(r"\]\(#([\w-]+)\)", README)} <= {*anchors}


def test_quoted_code_is_the_scripts():
    quotes = re.findall(r"<!-- (\w+\.py) -->\n```python\n(.*?)```", README, re.S)
    assert len(quotes) >= 4
    for file, code in quotes:
        assert code in (ROOT / file).read_text(), code


@pytest.fixture(scope="module")
def answers():
    """Every block of Python that is not a quotation, run in order, in one namespace.

    Those that draw are only compiled, as they need matplotlib.
    """
    scope = {}
    for code in re.findall(r"(?<!-->\n)```python\n(.*?)```", README, re.S):
        program = compile(code, "README.md", "exec")
        if "matplotlib" not in code:
            exec(program, scope)
    return scope


def test_answers_of_the_first_lesson(answers):
    import sr
    photo, other = (sr.dead_leaves(3, i, 96) for i in (0, 1))
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
    more = answers["feature_loss"](vgg, out, y, 2) - sr.feature_loss(vgg, out, y)
    torch.testing.assert_close(more, 2 * (out.diff(dim=2).abs().mean() +
                                          out.diff(dim=3).abs().mean()))
    kept = answers["keep"](list(range(1000)), 0.1)
    assert 60 < len(kept) < 140 and kept == answers["keep"](list(range(1000)), 0.1)
    roughness = answers["roughness"]
    assert roughness(answers["with_icnr"]) < 1e-6 < 1e-3 < roughness(answers["without"])


def test_answers_of_the_second_lesson(answers):
    import style
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    torch.testing.assert_close(answers["weighted"]([a, b], [0.5, 2.0]), 0.5 * a + 2 * b)
    net = answers["batch_norm"](style.StyleNet(4))
    kinds = {type(module).__name__ for module in net.modules()}
    assert "BatchNorm2d" in kinds and "InstanceNorm2d" not in kinds
    x = torch.rand(1, 8, 20, 20)
    assert answers["cropped_block"](8)(x).shape == (1, 8, 16, 16)
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 3, 32, 32)
    film = {}
    for step in range(20):
        answers["keep_frame"](film, step, x)
    assert list(film) == [0, 5, 15]
    photo = Image.new("RGB", (5000, 1000))
    assert answers["reduced"](photo).size == (2048, 410) and photo.size == (5000, 1000)
    shares = [answers["share"](1, 3, 2, rank, 2) for rank in (0, 1)]
    assert sorted([*shares[0], *shares[1]]) == [*range(4, 12)]


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


def test_the_size_of_the_readme():
    words = [word for word in README.split() if re.search(r"\w", word)]  # not the bars of tables
    assert len(words) <= 4500
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README):
        with Image.open(ROOT / picture) as image:
            assert image.width >= 1200, picture
        assert (ROOT / picture).stat().st_size <= 700_000, picture


def main(folder):
    """What readme_output is made of: a folder of tiny photos, cars and pictures, all commands."""
    tiny = {name: importlib.import_module(f"test_{name}").TINY for name in ("style", "seg")}
    tiny["sr"] = ["--steps", "2", "--feature-steps", "1", "--batch-size", "2", "--size", "32",
                  "--nf", "4", "--blocks", "1", "--eval-every", "9", "--weights", "random"]
    tiny["style"] = [*tiny["style"], "--steps", "1", "--optimize-steps", "1"]
    test_seg, seg = map(importlib.import_module, ("test_seg", "seg"))
    seg.BasicBlock = test_seg.LightBlock
    for name in ("imagenet_sample", "imagenet", "Set5"):
        write_photos(Path(folder, name))
    for name in ("carvana", "camvid"):
        test_seg.write(Path(folder, name))
    os.chdir(folder)
    count = itertools.count()
    time.strftime = lambda *_: f"{next(count)}"  # two runs a second: an old one's name is its time
    picture = next(Path("Set5").glob("*.png"))
    for name in re.findall(r"[\w]+\.jpg", " ".join(commands())):
        Path(name).write_bytes(picture.read_bytes())
    for command in commands():
        module, argv = split(command)
        print(f"$ {command}", flush=True)
        use = {"--apply", "--test", "--help"} & {*argv}
        try:
            module.main([*argv, *([] if use else tiny[module.__name__])])
        except SystemExit as stop:  # that of --help
            if stop.code:
                raise


if __name__ == "__main__":
    main(sys.argv[1])
