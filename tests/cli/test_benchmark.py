"""``benchmark`` refuses at once what it could not write to, or what nobody means, in one line."""

from __future__ import annotations

import os

import pytest

from ns_easyrobust.cli import main as cli


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()

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
