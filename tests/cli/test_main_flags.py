"""Flags that users' scripts name stay, with their defaults: flags.txt holds those of version 0.1.0."""

from __future__ import annotations

import importlib
from pathlib import Path

from ns_easyrobust.cli.main import VERBS
from ns_easyrobust.utils import FlagParser


def test_every_flag_and_default_of_earlier_versions_is_there():
    found = set()
    for verb in VERBS:
        parser = FlagParser(prog=verb)
        importlib.import_module(f"ns_easyrobust.cli.{verb}").add_arguments(parser)
        for action in parser._actions:
            found.add(f"{verb} {' '.join(action.option_strings) or action.dest} = {action.default}")
    earlier = (Path(__file__).parent / "flags.txt").read_text(encoding="utf-8").splitlines()
    assert len(earlier) > 190
    assert [line for line in earlier if line not in found] == []
