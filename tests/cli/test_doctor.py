"""The verb doctor."""

from __future__ import annotations

import argparse
import shutil

import pytest

from ns_easyrobust.cli import doctor
from ns_easyrobust.errors import DataError


def arguments(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    doctor.add_arguments(parser)
    return parser.parse_args(flags)


def test_the_verb_prints_aligned_lines_and_counts_problems(own, capsys):
    root = own("imagenet-a", "imagenet-c", classes=1)
    flags = (str(root), "--suite", "a", "c", "--images", "all", "-j", "1")
    doctor.run(arguments(*flags))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "imagenet-a  ok       200 classes, 200 images, labelled by wnid"
    assert lines[-1] == "2 ok, 0 absent, 4 warning, 0 problem"
    columns = {line.index(word) for line in lines for word in ("ok  ", "warning  ", "->") if word in line}
    assert columns == {12, 21}
    shutil.rmtree(root / "imagenet-c" / "snow")
    with pytest.raises(DataError, match=r"expected no problems, found 1, listed above\.") as caught:
        doctor.run(arguments(*flags))
    assert caught.value.exit_code == 2
    assert "5 of 75 folders missing: snow" in capsys.readouterr().out


def test_a_training_folder_of_own_classes(digits_dir, tmp_path, capsys):
    (tmp_path / "train").mkdir()
    (tmp_path / "val").symlink_to(digits_dir / "val")
    c = f"c={digits_dir}/imagenet-c"
    doctor.run(arguments(str(tmp_path), "--suite", "val", c, "--images", "5", "-j", "1"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "for a model of 10 classes, as the validation set has (another: --num-classes N)"
    assert lines[2].split(maxsplit=2) == ["val", "ok", "10 classes, 500 images, labelled by the order of the folders"]
    assert lines[3].startswith(f"{digits_dir}/imagenet-c  ok       5 of 75 folders")
    with pytest.raises(DataError, match="expected no problems, found 1"):
        doctor.run(arguments(str(tmp_path), "--suite", "val", "--num-classes", "9", "--images", "1", "-j", "1"))


def test_where_nothing_is_found_it_is_said_what_fits(tmp_path):
    (tmp_path / "val" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match=r"imagenet-val/.* or a training folder .* It has val/ without train/: give"):
        doctor.run(arguments(str(tmp_path)))
