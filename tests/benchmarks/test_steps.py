"""Commands one after the other: printed, ended at the first that fails, and gone on with from there."""

from __future__ import annotations

import shlex

import pytest
from helpers.processes import load_script

script = load_script("steps")


def test_what_failed_is_gone_on_with(tmp_path, capfd):
    folder = tmp_path / "a b"
    text = """
sh -c "touch one && \\
    echo once >> log"  # makes one

sh -c "echo each >> log"
test -f mended
sh -c "echo last >> log"
"""
    with pytest.raises(SystemExit, match="exit code 1: test -f mended"):
        script.carry_out(text, folder)
    assert (folder / "log").read_text().split() == ["once", "each"]
    (folder / "mended").touch()
    capfd.readouterr()
    script.carry_out(text, folder)
    assert (folder / "log").read_text().split() == ["once", "each", "each", "last"]
    printed = capfd.readouterr().out.splitlines()
    assert printed[0] == f"$ mkdir -p '{folder}' && cd '{folder}'"
    assert printed[1] == '# one is there, so not again: sh -c "touch one && echo once >> log"'
    assert printed[2:] == ['$ sh -c "echo each >> log"', "$ test -f mended", '$ sh -c "echo last >> log"']


def test_paths_with_spaces_and_quotes_stay_as_they_are():
    names = ["two  spaces", 'it\'s  "one"', "tab\there"]
    (step,) = script.steps(f"touch   {shlex.join(names)}    last  # makes last\n")
    assert (shlex.split(step[0]), step[1]) == (["touch", *names, "last"], "last")
    assert step[0] == f"touch {shlex.join(names)} last"


def test_studies_find_this_folder_from_where_they_run(tmp_path):
    script.carry_out(script.link_to_benchmarks(tmp_path / "new"), tmp_path / "new")
    assert (tmp_path / "new" / "benchmarks").resolve() == script.HERE
