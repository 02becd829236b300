"""What the project promises of itself: sizes, form, imports, sections, helpers, flags, README."""
import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT

SCRIPTS = ["sr", "style", "seg"]
README = (ROOT / "README.md").read_text()
TREES = {name: ast.parse((ROOT / f"{name}.py").read_text()) for name in [*SCRIPTS, "common"]}


def source(name):
    return (ROOT / f"{name}.py").read_text()


@pytest.mark.parametrize("name", [*SCRIPTS, "common"])
def test_length_and_width(name):
    lines = source(name).splitlines()
    assert len(lines) < (150 if name == "common" else 400) and max(map(len, lines)) <= 100


def definitions(tree):
    return [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]


@pytest.mark.parametrize("name", [*SCRIPTS, "common"])
def test_it_can_be_read(name):
    """Air, short lines, one idea a line: what a reader would complain about first."""
    lines, tree = source(name).splitlines(), TREES[name]
    words = set()
    for node in ast.walk(tree):
        documented = isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef))
        if documented and ast.get_docstring(node):
            words |= {*range(node.body[0].lineno, node.body[0].end_lineno + 1)}
    code = [line for i, line in enumerate(lines, 1)
            if line.strip() and i not in words and not line.lstrip().startswith("#")]
    assert sum(not line.strip() for line in lines) >= 0.08 * len(lines)
    assert sum(map(len, code)) <= 56.5 * len(code)
    assert sum(len(line) > 88 for line in code) <= 0.105 * len(code)
    for node in definitions(tree):
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        before = lines[first - 2]
        assert not before.strip() or before.startswith("#"), node.name
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Import) or len(node.names) == 1
        assert not isinstance(node, ast.NamedExpr)
    if name != "common":
        main = next(node for node in definitions(tree) if node.name == "main")
        assert main.end_lineno - main.lineno < 40


@pytest.mark.parametrize("name", [*SCRIPTS, "common"])
def test_imports(name):
    allowed = {*sys.stdlib_module_names, "torch", "numpy", "PIL", "common"}
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= allowed
        if isinstance(node, ast.ImportFrom):
            assert node.module.split(".")[0] in allowed


def test_common_holds_only_what_it_may():
    names = [node.name for node in definitions(TREES["common"])]
    assert names == ["SaveFeatures", "VGGFeatures", "gram_matrix", "icnr_"]


def test_top_level_holds_nothing_else():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    top = {path.split("/")[0] for path in tracked.splitlines()}
    assert "sr.py" in top  # or this is no checkout, and says nothing
    allowed = {"sr.py", "style.py", "seg.py", "common.py", "tests", "README.md"}
    assert all(name in allowed or name.startswith(".") for name in top)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_same_sections_in_the_same_order(name):
    titles = re.findall(r"^# %% (\d)\. (\w+)", source(name), re.M)
    lesson = "Loss First Second Which" if name == "style" else "Model Loss Training Metric"
    wanted = ["Data", *lesson.split(), "Use", "Files", "Settings"]
    assert titles == [(str(i), title) for i, title in enumerate(wanted, 1)]


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_lesson_comes_first(name):
    lines = source(name).splitlines()
    first, files = (next(i for i, line in enumerate(lines, 1) if line.startswith(f"# %% {n}."))
                    for n in (1, 7))
    assert first <= 40 and files - first >= 0.58 * len(lines)


def test_helpers_of_the_same_name_are_the_same():
    """All but those that are each lesson's own."""
    own = {"get_args", "evaluate", "compare", "train", "run", "apply", "draw_figure", "main",
           "Crops", "ResBlock", "load_checkpoint"}
    seen = {}
    for name in SCRIPTS:
        for node in definitions(TREES[name]):
            if node.name not in own:
                text = ast.get_source_segment(source(name), node)
                assert seen.setdefault(node.name, text) == text, node.name


def flags(name):
    calls = [n for n in ast.walk(TREES[name]) if isinstance(n, ast.Call) and n.args
             and getattr(n.func, "id", "") == "add"]
    return {ast.literal_eval(call.args[0]): call for call in calls}


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_flag_is_read_and_tested(name):
    shared = {"--data", "--out", "--init", "--apply", "--steps", "--batch-size", "--lr", "--nf",
              "--seed", "--device", "--eval-every", "--weights", "--workers"}
    assert shared <= flags(name).keys()
    tests = "".join(p.read_text() for p in (ROOT / "tests").glob("test_*.py")
                    if p.name != "test_contract.py")
    for flag in flags(name):
        assert re.search(rf"args\.{flag[2:].replace('-', '_')}\b", source(name)), flag
        assert f'"{flag}"' in tests, flag


def test_shared_flags_have_the_same_help():
    """All but those that are about each script's own steps."""
    def texts(name):
        return {flag: {k.arg: ast.unparse(k.value) for k in call.keywords if k.arg != "default"}
                for flag, call in flags(name).items()}
    for flag in ("--out", "--init", "--lr", "--device", "--eval-every", "--workers"):
        assert len({str(texts(name).get(flag)) for name in SCRIPTS}) == 1, flag


@pytest.mark.parametrize("name", SCRIPTS)
def test_importing_does_nothing_and_cells_run_one_by_one(name, tmp_path, capsys):
    cells = source(name).split("\n# %%")
    scope = {"__name__": "cells"}
    for cell in cells:
        exec(compile("# %%" + cell if cell is not cells[0] else cell, name, "exec"), scope)
    assert callable(scope["main"]) and capsys.readouterr().out == ""
    assert not list(tmp_path.iterdir())


def test_readme_has_the_two_commands_and_its_pictures():
    assert "pip install torch==2.13.0 numpy pillow" in README
    assert "python sr.py --data imagenet_sample" in README and "python -m pytest" in README
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README) + re.findall(r'<img src="(.*?)"', README)
    assert len(pictures) > 3
    for picture in pictures:
        assert (ROOT / picture).is_file(), picture


def test_the_project_speaks_of_itself_alone():
    for path in [*ROOT.glob("*.py"), *ROOT.glob("tests/*.py"), ROOT / "README.md",
                 ROOT / ".ci/run"]:
        text = path.read_text()
        assert not re.search(r"(?<![\w.])/(work|home|root|Users)/", text), path
