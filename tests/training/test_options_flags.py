"""Flags that bear timm's or EasyRobust's names: docs/flags.md has whatever differs from the scripts there.

timm_flags.tsv was read off the scripts: timm's train.py of 0.5.4 and 1.0.31, EasyRobust's base_training_script.py.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from ns_easyrobust.errors import OptionError
from ns_easyrobust.training.options import build_parser, parse_args

DOCS = (Path(__file__).parents[2] / "docs" / "flags.md").read_text(encoding="utf-8")
FIRST, SECOND, MISSING = DOCS.split("\n## ")[1:]
TYPES = {"whole number": "int", "number": "float", "file_or_folder": "str", "float": "float"}


def theirs() -> dict[str, list[str]]:
    """Type, count and default of each flag in the three scripts, '-' where it is missing."""
    lines = (Path(__file__).parent / "timm_flags.tsv").read_text(encoding="utf-8").splitlines()
    return {flag: specs for flag, *specs in (line.split("\t") for line in lines)}


def ours() -> dict[str, str]:
    """The same of the real parser, with the choices."""
    return {name_of(action): described(action) for action in build_parser()._actions}


def spellings() -> set[str]:
    return {spelling for action in build_parser()._actions for spelling in action.option_strings}


def name_of(action: argparse.Action) -> str:
    return next(spelling for spelling in action.option_strings if spelling.startswith("--"))


def described(action: argparse.Action) -> str:
    if action.nargs == 0:
        return "switch"
    default = action.default if isinstance(action.default, list | tuple) else [action.default]
    shown = " ".join("none" if value in (None, "") else str(value) for value in default)
    kind = TYPES.get(getattr(action.type, "__name__", "str"), "str")
    choices = ["of", *action.choices] if action.choices else []
    return " ".join([kind, *([str(action.nargs)] if action.nargs else []), f"= {shown}", *choices])


def cells(section: str) -> list[list[str]]:
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    assert rows
    return rows


def test_what_differs_is_in_the_table_with_a_reason(monkeypatch):
    monkeypatch.setattr("ns_easyrobust.utils.arguments.default_workers", lambda: 4)  # as on four cores and more
    found = {flag: [*theirs()[flag], text] for flag, text in ours().items() if flag in theirs()}
    assert len(found) > 60
    differing = {flag: specs for flag, specs in found.items() if len({*specs} - {"-"}) > 1}
    documented = {flag.strip("`"): rest for flag, *rest in cells(FIRST)}
    assert {flag: row[:-1] for flag, row in documented.items()} == differing
    assert all(len(row[-1]) > 10 for row in documented.values())


def test_other_meanings_are_of_flags_that_both_have():
    flags = {flag for row in cells(SECOND) for flag in re.findall(r"--[a-z-]+", row[0])}
    assert flags <= set(theirs())
    assert flags <= set(ours())


def test_what_is_missing_is_listed():
    listed = re.findall(r"`(--[a-z-]+)`", MISSING)
    assert listed == [flag for flag in theirs() if flag not in ours() and flag not in spellings()]


def test_a_recipe_of_timms_with_a_missing_flag_is_refused_by_name(tmp_path):
    (tmp_path / "timm.yaml").write_text("model: vit_micro_patch8_32\ndata_dir: x\nlayer_decay: 0.75\n")
    with pytest.raises(OptionError, match="layer_decay"):
        parse_args(["-c", str(tmp_path / "timm.yaml")])
