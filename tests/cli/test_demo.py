"""The demo's parts; `make demo` runs it whole, and so does `make stress`."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from ns_easyrobust.cli import demo
from ns_easyrobust.cli import main as cli
from ns_easyrobust.data.demo_data import STRENGTHS
from ns_easyrobust.errors import OutputError
from ns_easyrobust.models.checkpoint_save import save_model


def test_the_digits_are_scikit_learns_each_once(digits_dir):
    train, val = (sorted((digits_dir / part).glob("*/*.png")) for part in ("train", "val"))
    assert (len(train), len(val)) == (1297, 500)
    assert {int(path.stem) for path in train} | {int(path.stem) for path in val} == set(range(1797))
    digits = load_digits()
    for path in (train[0], val[-1]):
        assert digits.target[int(path.stem)] == int(path.parent.name)
        small = Image.open(path).convert("L").resize((8, 8), Image.Resampling.BOX)
        original = digits.images[int(path.stem)] * 255 / 16
        assert np.corrcoef(np.asarray(small).ravel(), original.ravel())[0, 1] > 0.95


def test_corruptions_change_every_image_and_keep_the_labels(digits_dir):
    for name in STRENGTHS:
        for path in sorted((digits_dir / "imagenet-c" / name / "3").glob("*/*.png"))[::50]:
            clean = digits_dir / "imagenet-val" / path.parent.name / path.name
            assert np.any(np.asarray(Image.open(path)) != np.asarray(Image.open(clean)))


def test_the_sheet_of_unseen_noise(trained, digits_dir, tmp_path):
    checkpoint = tmp_path / "trained.pth.tar"
    save_model(trained, checkpoint)
    sheet = demo._exact_noise_sheet(checkpoint, digits_dir / "val", tmp_path / "sheet.png")
    assert Image.open(sheet).size[0] > 600


def test_a_used_folder_is_left_alone(tmp_path, capsys):
    (tmp_path / "precious").touch()
    assert cli.main(["demo", "--output", str(tmp_path)]) == 2
    assert "expected a new or empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_two_demos_at_once_have_a_folder_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with demo._own_folder(None) as one, demo._own_folder(None) as other:
        assert (str(one), str(other)) == ("output/demo", "output/demo-2")
        with pytest.raises(OutputError, match="nobody else at work on this demo"), demo._own_folder(str(one)):
            pass
    with demo._own_folder(str(one)) as again:  # whoever leaves lets go
        assert [path.name for path in again.iterdir()] == [".lock"]


@pytest.mark.parametrize("code", [130, 143])
def test_a_signal_in_one_of_its_commands_ends_the_demo(tmp_path, monkeypatch, code, capsys):
    main, run = cli.main, []
    monkeypatch.setattr(cli, "main", lambda words: run.append(words) or code)
    monkeypatch.setattr("ns_easyrobust.data.write_digits", lambda root: root)
    assert main(["demo", "--output", str(tmp_path / "demo")]) == code
    assert len(run) == 1
    assert "failed" not in capsys.readouterr().err


@pytest.mark.stress
def test_the_whole_demo(tmp_path, capsys):
    assert cli.main(["demo", "--output", str(tmp_path / "demo")]) == 0
    out = capsys.readouterr().out
    history = demo._history(tmp_path / "demo" / "nullspace")
    assert len(history) == 6
    assert all(entry["stopped"] and 0 < entry["synthesis_steps"] < 1000 for entry in history)
    for name in ("results.md", "results.csv", "results.png", "noise.png", "unseen.png"):
        assert (tmp_path / "demo" / name).stat().st_size > 1000
    assert "--aug nullspace" in out
    assert "[" in out
