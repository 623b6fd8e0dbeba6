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
