"""What a run begins with: a checkpoint's classes or a new head, found out before a model is built."""

from __future__ import annotations

import logging

import pytest
import torch
import yaml
from helpers.models import small_vit

from ns_easyrobust.cli import main as cli
from ns_easyrobust.errors import DataError
from ns_easyrobust.models.checkpoint_save import save_model
from ns_easyrobust.models.checkpoints import load_model
from ns_easyrobust.training import setup
from ns_easyrobust.training.options import parse_args
from ns_easyrobust.training.resume import require_same_run

ARCH = "vit_micro_patch8_32"


@pytest.fixture
def seven(tmp_path, monkeypatch):
    """A checkpoint of seven classes with another moving average, in the current folder."""
    monkeypatch.chdir(tmp_path)
    save_model(small_vit(7), tmp_path / "seven.pth.tar", ema=small_vit(7, seed=1), arch=ARCH)
    return "seven.pth.tar"


def flags(digits_dir, *more):
    return parse_args(["--data-dir", str(digits_dir), "--device", "cpu", "-j", "0", "-b", "8", *more])


def test_the_average_begins_with_the_very_same_new_head(digits_dir, seven, caplog):
    caplog.set_level(logging.INFO)
    args = flags(digits_dir, "--initial-checkpoint", seven, "--num-classes", "10", "--model-ema")
    model, ema = setup.build_model(args, torch.device("cpu"), setup.read_start(args))
    assert caplog.text.count("a new head for 10 classes") == 1
    raw, averaged = model.state_dict(), ema.module.state_dict()
    assert raw["1.head.weight"].shape == (10, 64)
    assert torch.equal(raw["1.head.weight"], averaged["1.head.weight"])
    assert torch.equal(raw["1.head.bias"], averaged["1.head.bias"])
    assert torch.equal(raw["1.cls_token"], small_vit(7)[1].cls_token)
    assert torch.equal(averaged["1.cls_token"], small_vit(7, seed=1)[1].cls_token)
    assert (args.model, args.num_classes) == (ARCH, 10)


def test_a_folder_of_other_classes_is_refused_before_a_model_is_built(digits_dir, seven, monkeypatch):
    monkeypatch.setattr(setup, "load_model", None)
    with pytest.raises(DataError, match=r"expected 7 class folders.* found 10\. .*--num-classes 10"):
        setup.read_start(flags(digits_dir, "--initial-checkpoint", seven))
    with pytest.raises(DataError, match=r"expected 12 class folders.* found 10\. .*--num-classes 10"):
        setup.read_start(flags(digits_dir, "--initial-checkpoint", seven, "--num-classes", "12"))


def test_a_run_from_a_head_for_other_classes(digits_dir, seven, tmp_path, capsys, caplog):
    words = ["train", "--data-dir", str(digits_dir), "--initial-checkpoint", seven, "--device", "cpu", "-j", "0"]
    words += ["--max-steps", "1", "-b", "8", "--output", "."]
    assert cli.main([*words, "--experiment", "no"]) == 2
    assert "--num-classes 10" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    with caplog.at_level(logging.INFO):
        assert cli.main([*words, "--num-classes", "10", "--experiment", "new"]) == 0
    assert caplog.text.count("a new head for 10 classes in place of 7") == 1
    written = yaml.safe_load((tmp_path / "new" / "args.yaml").read_text())
    assert (written["num_classes"], written["model"]) == (10, ARCH)
    assert load_model(None, tmp_path / "new" / "last.pth.tar").num_classes == 10
    assert cli.main([*words[:3], "--initial-checkpoint", "new/last.pth.tar", *words[5:], "--experiment", "on"]) == 0
    assert yaml.safe_load((tmp_path / "on" / "args.yaml").read_text())["num_classes"] == 10


def test_a_benchmark_never_makes_a_head(digits_dir, seven, tmp_path, capsys):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "imagenet-val").symlink_to(digits_dir / "val")
    words = ["benchmark", "--data-dir", "d", "--ckpt-path", seven, "--device", "cpu", "-j", "0", "--suite", "val"]
    assert cli.main([*words, "--num-classes", "10"]) == 2
    assert "checkpoint has 7 classes, the model 10" in capsys.readouterr().err


def test_flags_that_a_saved_run_does_not_know_count_as_their_defaults(tmp_path):
    saved = {"args": {"lr": 0.1}, "data": "x", "batch": 8}
    now = {"args": {"lr": 0.1, "new": "none", "also": 3}, "data": "x", "batch": 8}
    require_same_run(saved, now, tmp_path, {"lr": 1.0, "new": "none", "also": 3})
    with pytest.raises(Exception, match=r"--also: expected 4, .* found 3"):
        require_same_run(saved, now, tmp_path, {"new": "none", "also": 4})
    with pytest.raises(Exception, match=r"--lr: expected 0\.1, .* found 1\.0"):
        require_same_run(saved, {**now, "args": {}}, tmp_path, {"lr": 1.0})
