"""Tests run from anywhere, on the CPU, with no network and no file outside the repository."""
import functools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PHOTOS = sorted((ROOT / "tests/data/photos").glob("*.jpg"))
sys.path.insert(0, str(ROOT))

import sr  # noqa: E402

torch.set_num_threads(1)  # the nets here are tiny, and two_ranks has the other cores


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """An empty working directory and an empty torch hub cache, whose downloads fail at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))

    def no_network(*args, **kwargs):
        raise OSError("no network in tests")

    def save(self, fp, format=None, **params):  # a figure's compression took a fifth of a run
        return full_save(self, fp, format, **{"compress_level": 0, **params})

    full_save = Image.Image.save
    monkeypatch.setattr(Image.Image, "save", save)
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    torch.manual_seed(0)


@functools.cache
def small_photos(count=24, side=96, seed=7):
    """Squares of the nine photos of tests/data, of half their size, in turn."""
    rng = np.random.default_rng(seed)
    squares = []
    for i in range(count):
        photo = Image.open(PHOTOS[i % 9]).convert("RGB").reduce(2)
        left = rng.integers(photo.width - side + 1)
        top = rng.integers(photo.height - side + 1)
        squares.append(photo.crop((left, top, left + side, top + side)))
    return squares


def write(images, folder):
    """As PNG files below the working directory; returns their paths, whole ones."""
    folder = Path.cwd() / folder
    folder.mkdir(parents=True)
    paths = [folder / f"{i:02}.png" for i in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    return [str(path) for path in paths]


def write_photos(folder):
    """24 photos of 96 px, as PNG and JPEG, some of them one level down."""
    (folder / "deeper").mkdir(parents=True)
    for i, photo in enumerate(small_photos()):
        photo.save(folder / (f"deeper/{i:02}.jpg" if i % 3 == 0 else f"{i:02}.png"), quality=95)
    return folder


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")


@pytest.fixture
def lesson_data():
    """The folder of real photos and weights that LESSON_DATA names; skipped where it does not."""
    folder = os.environ.get("LESSON_DATA")
    if not folder or not (ROOT / folder).is_dir():
        pytest.skip("LESSON_DATA names no folder with real data and weights")
    return (ROOT / folder).resolve()


TINY = ["--steps", "4", "--feature-steps", "0", "--batch-size", "2", "--size", "32", "--nf", "8",
        "--blocks", "1", "--eval-every", "2", "--device", "cpu"]


@pytest.fixture
def trained(photos):
    """A tiny x4 checkpoint, out/sr/pixel.pt below the working directory."""
    sr.main(["--data", str(photos), *TINY])
    return Path("out/sr/pixel.pt")


def state(path):
    return torch.load(path, weights_only=True)


def same(a, b):
    """Two checkpoints hold the same weights, to the bit."""
    return all(torch.equal(a["model"][k], b["model"][k]) for k in a["model"])


def fails(script, capsys, *argv):
    """The sentence that a script's main ends with; checks that it is one, and the exit status."""
    with pytest.raises(SystemExit) as stop:
        script.main([str(a) for a in argv])
    status = stop.value.code
    sentence = status if isinstance(status, str) else capsys.readouterr().err
    assert status == 2 or isinstance(status, str) and "\n" not in status and len(status) < 500
    return sentence


def run(folder, *command):
    """What a command prints that runs in a folder, on one core and without a network."""
    env = {"OMP_NUM_THREADS": "1", "LESSON_DATA": "", "TORCH_HOME": f"{folder}",
           "https_proxy": "http://127.0.0.1:9"}  # where nobody answers: downloads fail at once
    done = subprocess.run([sys.executable, *command], cwd=folder, timeout=3000, text=True,
                          env={**os.environ, **env}, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def run_two_ranks(folder):
    """sr.py in two processes on folder/data, into folder/two; returns what it prints."""
    write_photos(folder / "data")
    flags = ["--data", "data", *TINY, "--feature-steps", "2"]
    run(folder, *TORCHRUN, f"{ROOT}/sr.py", "--out", "x2", *flags, "--scale", "2", "--steps", "2")
    return run(folder, *TORCHRUN, f"{ROOT}/sr.py", "--out", "two", *flags) + run(
        folder, *TORCHRUN, f"{ROOT}/sr.py", "--out", "frozen", *flags, "--init", "x2/pixel.pt",
        "--freeze")


# These take longest and mostly wait for processes to start: they run beside the other tests, in
# this order, and the tests that read what they print come last.
RUNS = {
    "sr": run_two_ranks,
    "exercises": lambda folder: run(folder, *TORCHRUN, f"{ROOT}/tests/test_exercises.py"),
    "readme": lambda folder: run(folder, f"{ROOT}/tests/test_readme.py", f"{folder}"),
    "claims": lambda folder: run(folder, f"{ROOT}/tests/test_claims.py")}


def pytest_collection_modifyitems(items):
    """Those that wait for a run beside the tests come last."""
    items.sort(key=lambda item: bool({"two_ranks", "readme_output", "claims_output"} &
                                     {*item.fixturenames}))


@pytest.fixture(scope="session", autouse=True)
def beside(request, tmp_path_factory):
    """{name: (folder, future)} of those of RUNS that a test of this session waits for."""
    wanted = {item.module.__name__.removeprefix("test_") for item in request.session.items
              if {"two_ranks", "readme_output", "claims_output"} & {*item.fixturenames}}
    with ThreadPoolExecutor(1) as executor:
        folders = {name: tmp_path_factory.mktemp(name) for name in RUNS if name in wanted}
        yield {name: (folder, executor.submit(RUNS[name], folder))
               for name, folder in folders.items()}


@pytest.fixture
def two_ranks(request, beside, monkeypatch):
    """What the run of two processes printed; it lies in ./two, its data in ./data."""
    folder, future = beside[request.module.__name__.removeprefix("test_")]
    monkeypatch.chdir(folder)
    return future.result()


@pytest.fixture
def readme_output(beside):
    return beside["readme"][1].result()


@pytest.fixture
def claims_output(beside):
    return beside["claims"][1].result()
