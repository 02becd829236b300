"""What the README says is so: its commands run, its code is the scripts', its blocks work."""
import importlib
import itertools
import os
import re
import shlex
import sys
import time
from pathlib import Path

import pytest
import test_seg
import test_style
import torch
from conftest import ROOT, write_photos
from PIL import Image

README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "tests/RESULTS.md").read_text()
RUNS = r"\b(sr|style|seg)\.py\b"


def commands(text=README):
    """Those of the scripts, each once: lines of shell blocks, and `python ...` in the text."""
    spans = re.findall(r"```sh\n(.*?)```|`((?:python|torchrun) [^`\n]*)`", text, re.S)
    lines = "\n".join(a or b for a, b in spans).replace("\\\n", " ").splitlines()
    parts = [part.strip() for line in lines for part in line.split("#")[0].split("&&")]
    return [*dict.fromkeys(part for part in parts if re.search(RUNS, part))]


def split(command):
    """'torchrun ... sr.py --steps 9' -> the module sr, ['--steps', '9']."""
    words = shlex.split(command)
    script = next(i for i, word in enumerate(words) if word.endswith(".py"))
    return importlib.import_module(words[script][:-3]), words[script + 1:]


@pytest.mark.parametrize("command", commands() + commands(RESULTS))
def test_every_command_parses(command):
    module, argv = split(command)
    if "--help" not in argv:
        assert module.get_args(argv).out


def test_commands_of_the_claims_parse():
    lines = re.findall(r"(?:^|`)([^`\n]*tests/claims\b(?!/)[^`\n]*)", README, re.M)
    lines = [line for line in lines if "python" in line]
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
    targets += ["README.md" + anchor for anchor in re.findall(r"\]\((#[\w-]+)\)", README)]
    for target in targets:
        path, _, anchor = target.partition("#")
        assert (ROOT / path).exists(), target
        titles = re.findall(r"^#+ (.*)$", (ROOT / path).read_text(), re.M) if anchor else [""]
        anchors = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]
        assert anchor in anchors, target


def test_quoted_code_is_the_scripts():
    quotes = re.findall(r"<!-- (\w+\.py) -->\n```python\n(.*?)```", README, re.S)
    assert len(quotes) >= 4
    for file, code in quotes:
        assert code in (ROOT / file).read_text(), code
        assert code.lstrip().startswith(("def ", "class ")), code


def blocks():
    """Those of Python that are no quotations of a script."""
    return re.findall(r"(?<!-->\n)```python\n(.*?)```", README, re.S)


@pytest.mark.parametrize("code", blocks(), ids=lambda code: code.split("\n")[2][:30])
def test_every_block_runs_alone_as_pasted(code):
    exec(compile(code, "README.md", "exec"), {})


def test_transposed_convolution_by_hand():
    code, = (code for code in blocks() if "def transposed_conv" in code)
    scope = {}
    exec(code, scope)
    transposed_conv = scope["transposed_conv"]
    x, kernel = torch.rand(4, 5), torch.rand(3, 3)
    for stride in (1, 2, 3):
        want = torch.nn.functional.conv_transpose2d(x[None, None], kernel[None, None],
                                                    stride=stride)[0, 0]
        torch.testing.assert_close(transposed_conv(x, kernel, stride), want)
    assert transposed_conv(x, torch.ones(2, 2), 2).shape == (8, 10)  # it doubles
    row = transposed_conv(torch.ones(1, 4), torch.ones(3, 3), 2)[0]
    assert row.tolist() == [1, 1, 2, 1, 2, 1, 2, 1, 1]
    even = transposed_conv(torch.ones(1, 4), torch.ones(2, 2), 2)[0]
    assert even.tolist() == [1] * 8  # it never overlaps


def test_every_exercise_is_listed_with_its_stars_and_minutes():
    files = sorted((ROOT / "tests/exercises").glob("*.py"))
    assert len(files) > 15
    for file in files:
        stars, minutes = re.search(r"\((★+), (.*?)\)", file.read_text()).groups()
        listed = rf"\[{file.stem}\]\(tests/exercises/{file.name}\) {stars} {minutes}:"
        assert re.search(listed, README), (file.stem, stars, minutes)


def test_the_size_of_the_readme():
    words = [word for word in README.split() if re.search(r"\w", word)]  # not the bars of tables
    assert len(words) <= 3600
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README):
        with Image.open(ROOT / picture) as image:
            assert image.width >= 1200, picture
        assert (ROOT / picture).stat().st_size <= 500_000, picture


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
