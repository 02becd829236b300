"""Every command of the README parses, and runs, in the README's order, on tiny data."""
import importlib
import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from conftest import ROOT, write_photos

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
        assert module.get_args(argv).script == module.__name__


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
    links = re.findall(r"\[`([\w.]+)`\]\((\w+\.py)#L(\d+)\)", README)
    assert links
    for word, file, line in links:
        assert word in (ROOT / file).read_text().splitlines()[int(line) - 1], (word, file, line)
    for anchor in re.findall(r"\]\(#([\w-]+)\)", README):
        titles = re.findall(r"^#+ (.*)$", README, re.M)
        assert anchor in [re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles]


def test_the_table_of_claims_has_them_all():
    for claim in importlib.import_module("claims").SOURCES:
        assert f"**{claim.__doc__}**" in README, claim.__name__


def main(folder):
    """What readme_output is made of: a folder of tiny photos, cars and pictures, all commands."""
    tiny = {name: importlib.import_module(f"test_{name}").TINY for name in ("style", "seg")}
    tiny["sr"] = ["--steps", "2", "--feature-steps", "1", "--batch-size", "2", "--size", "32",
                  "--nf", "4", "--blocks", "1", "--eval-every", "9", "--weights", "random"]
    tiny["style"] += ["--vgg", "16", "--padding", "crop", "--steps", "1", "--optimize-steps", "1"]
    test_seg, seg = map(importlib.import_module, ("test_seg", "seg"))
    seg.BasicBlock = test_seg.LightBlock
    for name in ("imagenet_sample", "imagenet", "Set5"):
        write_photos(Path(folder, name))
    for name in ("carvana", "camvid"):
        test_seg.write(Path(folder, name))
    os.chdir(folder)
    picture = next(Path("Set5").glob("*.png"))
    for name in re.findall(r"[\w]+\.jpg", " ".join(commands())):
        Path(name).write_bytes(picture.read_bytes())
    for command in commands():
        module, argv = split(command)
        print(f"$ {command}", flush=True)
        use = {"--apply", "--test", "--help"} & {*argv}
        try:
            module.main([*argv, *([] if use else [*tiny[module.__name__], "--workers", "0"])])
        except SystemExit as stop:  # that of --help
            if stop.code:
                raise


if __name__ == "__main__":
    main(sys.argv[1])
