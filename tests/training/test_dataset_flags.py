"""Runs on sets by name: the same bits as on the folder of the same images, and resumed as exactly."""

from __future__ import annotations

import shutil

import pytest
from helpers.runs import equal, state_of

import ns_easyrobust.training.trainer as module
from ns_easyrobust.errors import OptionError, TrainingError
from ns_easyrobust.training.options import parse_args
from ns_easyrobust.training.trainer import train

MODEL = ["--model", "vit_micro_patch8_32", "--num-classes", "10", "--device", "cpu", "-j", "0", "-b", "8"]


def weights_of(folder):
    return state_of(folder)["state_dict"]


def test_a_run_on_a_set_by_name_has_the_bits_of_its_folder_and_goes_on_exactly(digits_dir, tmp_path, monkeypatch):
    images = shutil.copytree(digits_dir, tmp_path / "images")

    def run(name: str, *more: str):
        words = ["--data-dir", str(images), "--output", str(tmp_path), "--experiment", name, "--recovery-interval", "2"]
        return train(parse_args([*MODEL, *words, "--max-steps", "4", "--aa", "rand-m9-mstd0.5-inc1", *more]))

    by_name = ["--dataset", "torch/image_folder", "--resume", "auto"]
    whole = run("whole")
    real, steps = module._train_step, []

    def stopped(*args):
        steps.append(0)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "_train_step", stopped)
        run("cut", *by_name)
    next((images / "train").glob("*/*.png")).rename(images / "spare.png")
    with pytest.raises(TrainingError, match=r"expected the images that the run in .* began with"):
        run("cut", *by_name)
    shutil.rmtree(images)
    shutil.copytree(digits_dir, images)
    equal(weights_of(whole), weights_of(run("cut", *by_name)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: --data-dir"),
        (["--dataset", "torch/mnist"], "the following arguments are required: --data-dir"),
        (["--dataset", "wds/x", "--data-dir", "x"], "read as a stream"),
        (["--dataset-download", "--data-dir", "x"], "--dataset-download: expected --dataset torch/NAME"),
        (
            ["--dataset", "torch/mnist", "--data-dir", "x", "--input-key", "a"],
            "--input-key: expected --dataset hfds/NAME",
        ),
        (["--target-key", "a", "--data-dir", "x"], "--target-key: expected --dataset hfds/NAME, found None"),
    ],
)
def test_settings_that_are_of_no_set_are_refused_before_anything_is_read(words, message):
    with pytest.raises(OptionError, match=message):
        parse_args([*MODEL, *words])


def test_splits_of_a_set_by_name_keep_their_names(tmp_path):
    words = [*MODEL, "--data-dir", str(tmp_path), "--val-split", "validation"]
    assert parse_args(words).val_split == "val"
    assert parse_args([*words, "--dataset", "torch/mnist"]).val_split == "validation"
