"""The command line of sr.py: every flag run, every mistake answered with one sentence."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import conftest
import sr
from conftest import ROOT, TINY


def fails(capsys, *argv):
    return conftest.fails(sr, capsys, *argv)


# ---- every flag at work
def test_default_run_without_data_or_network(capsys, monkeypatch):
    monkeypatch.setattr(sr, "dead_leaves",  # noise is drawn faster
                        lambda rng, side: rng.integers(0, 255, (48, 48, 3), np.uint8))
    sr.main(TINY)
    out = capsys.readouterr().out
    assert "no imagenet_sample here" in out
    assert "git clone --depth 1 https://github.com/EliSchwartz/imagenet-sample-images" in out
    assert "put the file at" in out and "--weights random" in out  # no VGG: stage 2 is left out
    assert "eval      0/4" in out and out.index("eval      0/4") < out.index("step")
    assert "bicubic" in out and "pixel loss" in out and "feature loss" not in out
    assert sorted(p.name for p in Path("out/sr").iterdir()) == ["figure.png", "log.csv", "pixel.pt"]


def test_both_stages_with_random_features(photos, capsys):
    sr.main(["--data", str(photos), *TINY, "--feature-steps", "2", "--weights", "random",
             "--tv", "0.1", "--blur", "1", "--keep", "0.9", "--seed", "3", "--lr", "1e-3",
             "--workers", "1", "--out", "elsewhere"])
    out = capsys.readouterr().out
    for layer in sr.FEATURE_WEIGHTS:
        assert layer in out
    rows = {line[:12].strip(): line.split()[-5:] for line in out.splitlines()
            if line.startswith(("bicubic", "pixel", "feature loss"))}
    assert len(rows) == 3 and all(len(values) == 5 for values in rows.values())
    assert {p.name for p in Path("elsewhere").iterdir()} == {"figure.png", "log.csv", "pixel.pt",
                                                             "feature.pt"}
    with Image.open("elsewhere/figure.png") as figure:
        assert figure.width == 264 * 5  # low, bicubic, pixel, feature, truth
    saved = torch.load("elsewhere/pixel.pt", weights_only=True)["args"]
    assert saved["blur"] == 1 and saved["keep"] == 0.9 and saved["seed"] == 3


def test_flags_that_change_the_result(photos):
    def weights(*flags):
        sr.main(["--data", str(photos), *TINY, "--out", "one", *flags])
        return torch.load("one/pixel.pt", weights_only=True)["model"]["tail.weight"]
    base = weights()
    assert torch.equal(base, weights())
    for flags in (["--lr", "1e-4"], ["--seed", "2"], ["--blur", "1.5"], ["--keep", "0.5"],
                  ["--batch-size", "3"], ["--size", "40"], ["--steps", "3"]):
        assert not torch.equal(base, weights(*flags)), flags


def test_test_measures_a_folder(photos, trained, capsys):
    sr.main(["--test", str(photos), "--init", str(trained)])
    rows = [line for line in capsys.readouterr().out.splitlines() if "| bicubic" in line]
    assert len(rows) == 25 and rows[-1].startswith("mean")
    values = np.array([[float(row.split()[i]) for i in (-8, -3)] for row in rows])
    np.testing.assert_allclose(values[:-1].mean(0), values[-1], atol=0.006)


@pytest.mark.parametrize("mode, saved", [("RGB", "RGB"), ("L", "L"), ("RGBA", "RGBA"),
                                         ("P", "RGB"), ("CMYK", "RGB"), ("LA", "RGBA")])
def test_apply_keeps_what_a_viewer_sees(trained, mode, saved):
    photo = Image.fromarray(sr.dead_leaves(np.random.default_rng(1), 33)).crop((0, 0, 33, 20))
    if mode in ("RGBA", "LA"):
        photo = photo.convert(mode)
        photo.putalpha(Image.linear_gradient("L").resize((33, 20)))
    photo = photo.convert(mode)
    suffix = "tif" if mode == "CMYK" else "png"
    photo.save(f"in.{suffix}")
    sr.main(["--apply", f"in.{suffix}", "--init", str(trained), "--out", "big", "--device", "cpu"])
    with Image.open("big/in_x2.png") as large:
        assert large.size == (66, 40) and large.mode == saved
        small = np.asarray(large.convert("RGB").resize((33, 20), Image.BICUBIC), int)
        assert np.abs(small - np.asarray(sr.open_image(f"in.{suffix}").convert("RGB"))).mean() < 6
        if saved == "RGBA":
            alpha = photo.getchannel("A").resize((66, 40), Image.BICUBIC)
            assert np.array_equal(np.asarray(large.getchannel("A")), np.asarray(alpha))


def test_apply_many_with_matching_histogram(trained, photos, monkeypatch):
    monkeypatch.setattr(sr, "enlarge", lambda model, image:  # a net that darkens
                        (image.repeat(2, 0).repeat(2, 1) * 0.7).astype(np.uint8))
    files = sorted(photos.glob("*.png"))[:2]
    sr.main(["--apply", *map(str, files), "--init", str(trained), "--match-histogram"])
    sr.main(["--apply", *map(str, files), "--init", str(trained), "--out", "plain"])
    deciles = np.arange(5, 100, 10)
    for file in files:
        apart = []
        for folder in ("out/sr", "plain"):
            with Image.open(f"{folder}/{file.stem}_x2.png") as large, Image.open(file) as photo:
                a, b = (np.percentile(np.asarray(i), deciles, (0, 1)) for i in (large, photo))
                apart.append(np.abs(a - b).mean())
        assert apart[0] < 1 and apart[1] > 5  # matched; the twin: without the flag


# ---- every mistake
@pytest.mark.parametrize("flag, value", [
    ("--steps", 0), ("--steps", -3), ("--batch-size", 0), ("--size", -1), ("--size", 8),
    ("--nf", 0), ("--blocks", 0), ("--lr", 0), ("--lr", "nan"), ("--keep", 0), ("--eval-every", 0),
    ("--feature-steps", -1), ("--tv", -1), ("--blur", -1), ("--seed", -1), ("--workers", -1)])
def test_numbers_out_of_range(capsys, flag, value):
    assert flag in fails(capsys, flag, value)


def test_words_that_are_no_choice(capsys):
    assert "--scale" in fails(capsys, "--scale", 3)
    assert "--weights" in fails(capsys, "--weights", "best")
    assert "--steps" in fails(capsys, "--steps", "many")
    assert "there is no such device" in fails(capsys, "--device", "abacus")
    assert "--init" in fails(capsys, "--apply", "photo.jpg")


def test_folders_without_photos(capsys, tmp_path):
    assert "nowhere" in fails(capsys, "--data", "nowhere", *TINY)
    (tmp_path / "empty").mkdir()
    assert "empty" in fails(capsys, "--data", tmp_path / "empty", *TINY)
    (tmp_path / "empty" / "a.txt").write_text("a")
    assert "no usable photo" in fails(capsys, "--data", tmp_path / "empty", *TINY)
    assert "1 files skipped" in capsys.readouterr().out
    assert not Path("out/sr/pixel.pt").exists()


def test_photos_smaller_than_the_crop(capsys, photos):
    assert "no usable photo" in fails(capsys, "--data", photos, *TINY, "--size", 128)
    assert "side below 128 px" in capsys.readouterr().out


def test_a_single_photo_is_too_few_to_train(capsys, tmp_path, photos):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.png").write_bytes((photos / "01.png").read_bytes())
    assert "takes two" in fails(capsys, "--data", tmp_path / "one", *TINY)


def test_apply_to_what_is_no_photo(capsys, trained):
    Path("notes.jpg").write_text("no photo")
    assert "cannot read notes.jpg" in fails(capsys, "--apply", "notes.jpg", "--init", trained)
    assert "cannot read gone.jpg" in fails(capsys, "--apply", "gone.jpg", "--init", trained)


def test_apply_overwrites_nothing(capsys, trained, photos):
    file = photos / "01.png"
    sr.main(["--apply", str(file), "--init", str(trained)])
    before = Path("out/sr/01_x2.png").read_bytes()
    assert "01_x2.png exists" in fails(capsys, "--apply", file, "--init", trained)
    assert Path("out/sr/01_x2.png").read_bytes() == before


def test_checkpoints_that_are_none(capsys, trained, photos):
    torch.save({"model": {}}, "plain.pt")
    other = torch.load(trained, weights_only=True)
    other["args"]["script"] = "style"
    torch.save(other, "style.pt")
    torch.save(sr.SrResnet(2, 8, 1), "pickled.pt")
    for name, why in (("gone.pt", "No such file"), (photos / "01.png", ""), ("plain.pt", "args"),
                      ("style.pt", "style.py"), ("pickled.pt", "")):
        for flags in (["--apply", photos / "01.png"], ["--test", photos], TINY):
            sentence = fails(capsys, *flags, "--init", name, "--data", photos)
            assert "is no checkpoint of sr.py" in sentence and why in sentence


def test_a_checkpoint_of_another_width_to_start_from(capsys, trained, photos):
    sentence = fails(capsys, "--data", photos, *TINY, "--nf", 12, "--init", trained)
    assert "no layer fits" in sentence and "--nf 8" in sentence
    sr.main(["--test", str(photos), "--init", str(trained), "--nf", "12"])  # rebuilt from its own


def test_resume_takes_the_settings_of_the_run(photos, trained):
    sr.main(["--resume", "--steps", "99", "--nf", "5"])  # those of the stopped run count
    assert torch.load(trained, weights_only=True)["step"] == 4


def test_nothing_to_resume(capsys, photos):
    assert "out/sr/pixel.pt" in fails(capsys, "--data", photos, *TINY, "--resume")


def test_out_that_cannot_be_written(capsys, photos):
    Path("file").write_text("")
    assert "--out file" in fails(capsys, "--data", photos, *TINY, "--out", "file")
    assert "--out file/deeper" in fails(capsys, "--data", photos, *TINY, "--out", "file/deeper")
    assert Path("file").read_text() == ""


def test_a_mistake_leaves_no_traceback_in_a_shell():
    done = subprocess.run([sys.executable, str(ROOT / "sr.py"), "--data", "nowhere"],
                          capture_output=True, text=True, env={**os.environ, "TORCH_HOME": "."})
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_help_names_every_flag_and_default(capsys):
    with pytest.raises(SystemExit):
        sr.main(["--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert "--match-histogram" in out and "(default: imagenet_sample)" in out
