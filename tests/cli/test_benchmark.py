"""``benchmark`` refuses at once what it could not write to, or what nobody means, in one line."""

from __future__ import annotations

import os

import pytest

from ns_easyrobust.cli import main as cli
from ns_easyrobust.evaluation.results_file import read_records
from ns_easyrobust.models.checkpoint_save import save_model


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "imagenet-val").mkdir(parents=True)

    def line(*flags: str) -> str:
        words = ("benchmark", "--model", "vit_micro_patch8_32", "--ckpt-path", "x.pth", "--data-dir", "data", *flags)
        assert cli.main(list(words)) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1
        return said[0]

    return line


def test_results_files_that_are_none(refused, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    for path, found in {
        "/dev/full": "a device or socket",
        "/dev/null": "a device or socket",
        "fifo": "a pipe",
        "data": "a folder",
        ".": "a folder",
        "/": "a folder",
        "loop": "Too many levels of symbolic links",
        "x" * 300: "too long a name",
        "x" * 250: "File name too long",  # with the ending of the journal's folder
        "file/r.jsonl": "cannot write",
    }.items():
        assert found in refused("--records", path), path
    (tmp_path / "right").symlink_to("nowhere")
    assert "expected a folder right or none, found a file" in refused("--records", "r.jsonl")
    (tmp_path / "right").unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "fifo", "file", "loop"]


@pytest.mark.parametrize("folder", ["nowhere", "file"])
def test_data_folders_that_are_none(refused, tmp_path, folder):
    (tmp_path / "file").touch()
    assert "expected a folder with imagenet-val/ and others" in refused("--data-dir", folder)
    assert "too long a name" in refused("--data-dir", "x" * 300)


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ("--epsilon 8", "found 8. Divide it by 255"),
        ("--pgd-epsilon 2", "found 2. Divide it by 255"),
        ("--patchfool-norm linf --patchfool-epsilon 8", "Divide it by 255"),
        ("--autoattack-norm L2 --autoattack-epsilon 127.5", "Divide it by 255"),
        ("--cw-radius 0.5 128", "found 128. Divide it by 255"),
        ("--batch-size 1000000000000", "expected a whole number <= 65536"),
        ("--subset first:" + "9" * 5000, "expected all, first:N"),
        ("--crop-pct 87.5", "expected a number between 0.01 and 1"),
        ("--cw-lr 0", "expected c >= 0, kappa >= 0, steps >= 1 and lr > 0"),
    ],
)
def test_settings_that_nobody_means(refused, flags, found):
    assert found in refused(*flags.split())


def test_folders_are_asked_for_before_the_model(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "val").mkdir()
    for flags, found in {
        "--suite fgsm": "--data-dir: expected a folder, found none. Give it, or the folder of each suite: val=DIR",
        "--suite val=val v2": "suite: v2=DIR behind",
        "--suite fgsm a v2 val": "suite: val=DIR a=DIR v2=DIR behind --suite.",
        "--adv --suite val=val": "x.pth",
        "--adv": "suite: val=DIR behind --suite.",
        "--suite val=nowhere": "--suite val=nowhere: expected a folder, found none",
        "--suite all=val": "invalid choice: 'all=val'",
        "--data-dir .": "It has val/ without train/: give --suite val=",
        "--suite val=val fgsm": "x.pth",
    }.items():
        words = ["benchmark", "--model", "vit_micro_patch8_32", "--ckpt-path", "x.pth", *flags.split()]
        assert cli.main(words) == 2
        (said,) = capsys.readouterr().err.strip().splitlines()
        assert found in said, flags


def test_what_was_asked_for_by_name_and_not_run_gives_exit_code_3(trained, digits_dir, tmp_path, capsys, monkeypatch):
    """The model has three blocks, PatchFool's default needs a fifth; as one of a group it is only named."""
    monkeypatch.chdir(tmp_path)
    save_model(trained, tmp_path / "c.pth.tar")
    (tmp_path / "train").mkdir()
    (tmp_path / "val").symlink_to(digits_dir / "val")
    words = [
        "benchmark",
        "--model",
        "vit_micro_patch8_32",
        "--num-classes",
        "10",
        "--ckpt-path",
        "c.pth.tar",
        "-j",
        "0",
        "--subset",
        "random:8",
    ]
    words += ["--cw-steps", "1"]
    assert cli.main([*words, "--data-dir", "."]) == 0
    out, _ = capsys.readouterr()
    assert out.rstrip().splitlines()[-2:] == [
        "not run: damagenet, a, c, v2, r, sketch, stylized: no folder damagenet, imagenet-a, imagenet-c, imagenetv2, "
        "imagenet-r, imagenet-sketch, imagenet-style. Add it, with images of the model's own 10 classes, or give "
        "--suite NAME=DIR.",
        "not run: patchfool: expected a model with a block 4 to choose patches by, found 3 blocks (0..2). Choose one "
        "of them as the layer, and the loss 'ce', for the attention loss needs 4.",
    ]
    assert cli.main([*words, "--suite", "val=val", "patchfool"]) == 3
    out, err = capsys.readouterr()
    assert "val top1" in out
    assert "not run: patchfool: expected" in out
    assert "ns-easyrobust benchmark: --suite patchfool: asked for by name and not run; all else is in results" in err
    assert {record.suite for record in read_records("results.jsonl")} == {"imagenet-val", "fgsm", "cw"}
    assert cli.main([*words, "--suite", "val=val", "patchfool", "--again", "--patchfool-layer", "1", "--patchfool-loss",
                     "ce", "--patchfool-steps", "1"]) == 0  # fmt: skip
    assert cli.main([*words, "--data-dir", ".", "--suite", "patchfool", "a", "--records", "none.jsonl"]) == 2
    assert "block 4 to choose patches by" in (err := capsys.readouterr().err)
    assert "no folder imagenet-a. Add it, with images of the model's own 10 classes, or" in err
    assert not (tmp_path / "none.jsonl").exists()
