from __future__ import annotations

import importlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.flag_values import HOSTILE
from PIL import Image

from ns_easyrobust.cli import main as cli
from ns_easyrobust.cli.corrupt import chosen_corruptions
from ns_easyrobust.data import ALEXNET_ERROR, FrostPictures, known_corruptions
from ns_easyrobust.evaluation import read_records

FROST = np.full((40, 40, 3), 90, np.uint8)


@pytest.fixture
def source(tmp_path) -> Path:
    """Two images of each of ten classes."""
    for label in range(10):
        (tmp_path / "val" / f"class{label}").mkdir(parents=True)
        for number in range(2):
            values = np.random.default_rng((label, number)).integers(0, 256, (4, 4, 3), dtype=np.uint8)
            image = Image.fromarray(values).resize((32, 32), Image.Resampling.BICUBIC)
            image.save(tmp_path / "val" / f"class{label}" / f"{number}.png")
    return tmp_path / "val"


def test_groups_of_corruptions():
    assert chosen_corruptions(["common"]) == list(ALEXNET_ERROR)
    assert set(chosen_corruptions(["extra", "fog"])) == {"speckle_noise", "gaussian_blur", "spatter", "saturate", "fog"}
    assert chosen_corruptions(["fog", "all"])[:2] == ["fog", "gaussian_noise"]
    assert set(chosen_corruptions(["all", "fog"])) == set(known_corruptions())


def test_benchmark_finds_it(source, tmp_path, trained, capsys):
    from ns_easyrobust.models.checkpoint_save import save_model

    target = tmp_path / "data" / "imagenet-c"
    words = ["corrupt", str(source), str(target), "--corruption", "contrast", "fog", "--severity", "2", "4", "-j", "0"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert f"wrote 80 images to {target}\nnext: ns-easyrobust benchmark --data-dir {target.parent} --suite c" in said
    save_model(trained, tmp_path / "m.pth.tar", arch="vit_micro_patch8_32")
    evaluation = ["benchmark", "--model", "vit_micro_patch8_32", "--num-classes", "10", "--suite", "c", "-j", "0"]
    evaluation += ["--data-dir", str(target.parent), "--ckpt-path", str(tmp_path / "m.pth.tar"), "--input-size", "32"]
    assert cli.main([*evaluation, "--records", str(tmp_path / "r.jsonl")]) == 0
    measured = [one for one in read_records(tmp_path / "r.jsonl") if "severity" in one.protocol]
    assert {(one.protocol["corruption"], one.protocol["severity"], one.n) for one in measured} == {
        (name, severity, 20) for name in ("contrast", "fog") for severity in (2, 4)
    }
    capsys.readouterr()
    assert cli.main(words) == 0
    assert "wrote 0 images" in (said := capsys.readouterr().out)
    assert "beside 80 that were there" in said


def test_elsewhere_it_says_what_to_do(source, tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.setattr(FrostPictures, "installed_or_drawn", lambda: FrostPictures([FROST] * 5, "drawn"))
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    few = ["--severity", "1", "-j", "0", "--corruption"]
    assert cli.main(["corrupt", "val", "c", *few, "frost"]) == 0
    said = capsys.readouterr().out
    assert "frost: drawn pictures" in said
    assert said.endswith("\nnext: ns-easyrobust benchmark --suite c=c ...\n")
    assert "the images keep their sizes (shorter sides of 32 to 32 pixels)" in caplog.text
    assert cli.main(["corrupt", "val", "d/imagenet-c", *few, "extra", "contrast"]) == 0
    assert capsys.readouterr().out.endswith("\nnext: ns-easyrobust benchmark --data-dir d --suite c ...\n")
    assert cli.main(["corrupt", "val", "e/imagenet-c", *few, "extra"]) == 0
    assert capsys.readouterr().out == "wrote 80 images to e/imagenet-c\n"


def test_flags_are_named_where_they_help(source, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = ["--severity", "1", "-j", "0", "--corruption", "frost"]
    assert cli.main(["corrupt", "val", "c", *few, "--frost-dir", "val"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        "--frost-dir val: expected the published pictures of frost, frost1.png, frost2.png, frost3.png, frost4.jpg, "
        "frost5.jpg, found no frost1.png, frost2.png, frost3.png, frost4.jpg, frost5.jpg. "
        "Give the folder `frost` of the package imagecorruptions."
    )
    (source / "class3" / "0.png").write_bytes(b"none")
    assert cli.main(["corrupt", "val", "new/new/c", *few]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "ns-easyrobust corrupt: val: expected images, found 1 of 20 that cannot be read. The first: val/class3/0.png: "
        "expected an image, found one that cannot be decoded (UnidentifiedImageError). Replace the file or take it out "
        "of the folder. Or leave out what cannot be read: --bad-images skip."
    )
    assert {path.name for path in tmp_path.iterdir()} == {"val"}


def test_a_missing_extra_is_one_line_before_anything_is_written(source, tmp_path, capsys, monkeypatch):
    def import_module(name: str, *rest: object) -> object:
        if name == "cv2":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(name, *rest)

    original = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", import_module)
    assert cli.main(["corrupt", str(source), str(tmp_path / "c")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ns-easyrobust corrupt: corrupt: expected opencv-python-headless, found it not installed.")
    assert "(pip install opencv-python-headless)" in line
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("value", HOSTILE["path"])
def test_paths_that_no_sane_run_has(value, source, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("fifo", "loop", "few"):
        value = value.replace(f"{{{name}}}", name)
    few = ["--corruption", "contrast", "--severity", "1", "-j", "0"]
    for words in ([str(source), value], [value, "c"]):
        try:
            code = cli.main(["corrupt", *words, *few])
        except SystemExit as ended:  # of the parser
            code = ended.code
        said = capsys.readouterr().err
        assert code in (0, 2)
        assert "Traceback" not in said
        assert sum(line.startswith("ns-easyrobust corrupt:") for line in said.splitlines()) == (code == 2)


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), pytest.param(signal.SIGTERM, 143, "SIGTERM", marks=pytest.mark.stress)],
)
def test_a_signal_ends_it_and_its_workers_in_one_line(number, code, word, source, tmp_path):
    noise = io.BytesIO()
    Image.effect_noise((900, 700), 60).convert("RGB").save(noise, "PNG", compress_level=1)  # seconds for each image
    for folder in source.iterdir():
        (folder / "0.png").write_bytes(noise.getvalue())
        (folder / "1.png").unlink()
    words = [sys.executable, "-m", "ns_easyrobust", "corrupt", source, tmp_path / "c", "-j", "2"]
    run = subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "c").glob("*/*/*/*")) and run.poll() is None:
        time.sleep(0.05)
    workers = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    run.send_signal(number)
    signalled = time.monotonic()
    _, said = run.communicate(timeout=60)
    assert time.monotonic() - signalled < 4, "it waits for no image to be done"
    lines = [line for line in said.splitlines() if "keep their sizes" not in line]
    assert run.returncode == code, said
    assert len(lines) == 1
    assert word in lines[0]
    assert lines[0].endswith("the same command goes on where it stopped")
    assert workers
    for _ in range(100):
        if not any(os.path.exists(f"/proc/{worker}") for worker in workers):
            break
        time.sleep(0.1)
    else:
        pytest.fail("workers are left")
