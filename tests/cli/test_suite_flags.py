"""--suite with and without folders, and what is said where nothing fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from ns_easyrobust.cli.suite_flags import SuiteChoices, split_suites, suite_or_folder, what_fits
from ns_easyrobust.errors import DataError, OptionError


def test_only_a_suite_has_a_folder():
    choices = SuiteChoices(["val", "c"], ["all"])
    assert [text in choices for text in ("val", "c=x", "all", "all=x", "v", "=x", "")] == [True] * 3 + [False] * 4
    assert list(choices) == ["all", "val", "c"]


def test_folders_expand_the_home_folder_and_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x=y").mkdir()
    assert suite_or_folder("val") == "val"
    assert suite_or_folder("val=~/x=y") == f"val={tmp_path}/x=y"
    texts = [suite_or_folder(text) for text in ("val=~/x=y", "fgsm", "val")]
    assert split_suites(texts) == (["val", "fgsm"], {"val": tmp_path / "x=y"})
    for text in ("val=", f"val={tmp_path}/nowhere"):
        with pytest.raises(DataError, match=r"--suite val=.*: expected a folder, found none"):
            split_suites([text])
    with pytest.raises(OptionError, match="expected one folder of val, found another"):
        split_suites([f"val={tmp_path}", f"val={tmp_path}/x=y"])


@pytest.mark.parametrize(
    ("made", "given", "said"),
    [
        ("data/imagenet-c/fog", "data/imagenet-c", "called as one of them: give {root}/data, or --suite c={root}/data"),
        ("data/val/cat", "data", "It has val/ without train/: give --suite val={root}/data/val."),
        ("data/set/imagenet-a", "data", "Its set/ would fit: give {root}/data/set."),
        ("data/cat data/dog", "data", "It has cat, dog: if these are classes, give --suite val={root}/data."),
        ("data/train/cat", "data", "It has train."),
        ("data", "data", "It has no folders."),
    ],
)
def test_what_would_fit_is_said(tmp_path: Path, made: str, given: str, said: str) -> None:
    for name in made.split():
        (tmp_path / name).mkdir(parents=True)
    assert said.format(root=tmp_path) in what_fits(tmp_path / given)
