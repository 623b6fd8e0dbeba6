"""Tables copied from reports into a page: which, which of their columns, and what cannot be found."""

from __future__ import annotations

import pytest
from helpers.processes import load_script

script = load_script("evidence_tables")
REPORT = r"""# s.yaml

## Results

Each method was trained.

| method | val | fgsm |
|:--|--:|--:|
| a\|b | 1 | 2 |

| second | table |
|:--|--:|

## Noises

Nothing here.

## Methods

| method | flags |
|:--|:--|
"""
PAGE = """before
<!-- table one/report.md | Results | 1 3 -->
old
<!-- end -->
between
<!-- table one/report.md | Methods -->
<!-- end -->
after
"""


def test_tables_stand_between_their_comments_and_the_rest_is_left(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "report.md").write_text(REPORT)
    shown = script.rendered(PAGE, tmp_path)
    assert shown.splitlines() == [
        *("before", "<!-- table one/report.md | Results | 1 3 -->", ""),
        *("| method | fgsm |", "|:--|--:|", r"| a\|b | 2 |", "", "<!-- end -->"),
        *("between", "<!-- table one/report.md | Methods -->", ""),
        *("| method | flags |", "|:--|:--|", "", "<!-- end -->", "after"),
    ]
    assert script.rendered(shown, tmp_path) == shown


def test_a_table_without_an_end_swallows_nothing(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "report.md").write_text(REPORT)
    with pytest.raises(SystemExit, match="expected <!-- end --> below each of 2 tables' names, found 1"):
        script.rendered(PAGE.replace("<!-- end -->\n", "", 1), tmp_path)


@pytest.mark.parametrize(("section", "line"), [("Nobody", "expected a section"), ("Noises", "expected a table")])
def test_what_is_not_there_is_named(section, line):
    with pytest.raises(SystemExit, match=line):
        script.table_of(REPORT, section, [])
