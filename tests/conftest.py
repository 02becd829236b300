"""Tests run from anywhere, on the CPU, with no network and no file outside the repository."""
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import sr  # noqa: E402


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """An empty working directory and an empty torch hub cache, whose downloads fail at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))

    def no_network(*args, **kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    torch.manual_seed(0)


@pytest.fixture
def photos(tmp_path):
    """A folder of 24 generated photos, 96 px, as PNG and JPEG, some of them one level down."""
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    for i in range(24):
        photo = Image.fromarray(sr.dead_leaves(np.random.default_rng([7, i]), 96))
        photo.save(folder / (f"deeper/{i:02}.jpg" if i % 3 == 0 else f"{i:02}.png"), quality=95)
    return folder


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
    """A tiny x2 checkpoint, out/sr/pixel.pt below the working directory."""
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


@pytest.fixture
def ctrl_c(monkeypatch):
    """Ctrl-C in the middle of the third step, which is not due to be saved; the steps taken."""
    step, steps_done = torch.optim.Adam.step, []

    def press(self, *args):
        step(self, *args)
        steps_done.append(1)
        if len(steps_done) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    return steps_done, lambda: monkeypatch.setattr(torch.optim.Adam, "step", press)


def two_ranks(script, *flags):
    """What a run of two processes prints."""
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone",
                           "--nproc_per_node=2", str(ROOT / script), *flags],
                          env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=100,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
