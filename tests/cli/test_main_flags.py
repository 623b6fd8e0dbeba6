"""Flags that users' scripts name stay: flags.tsv has those of 0.1.0, default, nargs and choices."""

from __future__ import annotations

import argparse
import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ns_easyrobust.cli.main import VERBS
from ns_easyrobust.cli.suite_flags import suite_or_folder
from ns_easyrobust.utils import FlagParser, file_or_folder


def actions_by_verb() -> Iterator[tuple[str, argparse.Action]]:
    for verb in VERBS:
        parser = FlagParser(prog=verb)
        importlib.import_module(f"ns_easyrobust.cli.{verb}").add_arguments(parser)
        yield from ((verb, action) for action in parser._actions)


def test_every_flag_that_names_a_file_or_folder_expands_the_home_folder():
    """Or ``output: ~/x`` in a recipe makes a folder called ``~``; found by what help calls the value, and by name."""
    says_path = re.compile(r"DIR|FILE|PATH|FOLDER|URL|CKPT|[./]")
    named_so = re.compile(r"(^|_)(dir|file|(?<!drop_)path|output|csv|checkpoint|records|config|script|downloads)$")
    paths = [
        (verb, action)
        for verb, action in actions_by_verb()
        if says_path.search(str(action.metavar)) or named_so.search(action.dest)
    ]
    assert len(paths) > 20
    for verb, action in paths:
        assert action.type in (file_or_folder, suite_or_folder), f"{verb} {action.option_strings or action.dest}"


def test_every_flag_of_earlier_versions_is_there_and_takes_what_it_took():
    actions = {f"{verb} {' '.join(a.option_strings) or a.dest}": a for verb, a in actions_by_verb()}
    earlier = (Path(__file__).parent / "flags.tsv").read_text(encoding="utf-8").splitlines()
    assert len(earlier) > 190
    for line in earlier:
        flag, default, nargs, choices = line.split("\t")
        if match := re.fullmatch("([0-9]+), at most the cores", default):
            default = str(min(int(match[1]), len(os.sched_getaffinity(0))))
        action = actions[flag]
        assert (str(action.default), str(action.nargs)) == (default, nargs), flag
        assert set(choices.split()) <= set(action.choices or ()), flag
        assert bool(choices) == bool(action.choices), flag
