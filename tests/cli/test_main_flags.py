"""Flags that users' scripts name stay: flags.tsv has those of 0.1.0, default, nargs and choices."""

from __future__ import annotations

import importlib
from pathlib import Path

from ns_easyrobust.cli.main import VERBS
from ns_easyrobust.utils import FlagParser


def test_every_flag_of_earlier_versions_is_there_and_takes_what_it_took():
    actions = {}
    for verb in VERBS:
        parser = FlagParser(prog=verb)
        importlib.import_module(f"ns_easyrobust.cli.{verb}").add_arguments(parser)
        actions |= {f"{verb} {' '.join(a.option_strings) or a.dest}": a for a in parser._actions}
    earlier = (Path(__file__).parent / "flags.tsv").read_text(encoding="utf-8").splitlines()
    assert len(earlier) > 190
    for line in earlier:
        flag, default, nargs, choices = line.split("\t")
        action = actions[flag]
        assert (str(action.default), str(action.nargs)) == (default, nargs), flag
        assert set(choices.split()) <= set(action.choices or ()), flag
        assert bool(choices) == bool(action.choices), flag
