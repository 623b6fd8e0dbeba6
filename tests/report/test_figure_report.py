"""Reports of figures: what stands where, and that files are written together."""

from __future__ import annotations

import logging

import pytest

from ns_easyrobust.errors import OptionError, OutputError
from ns_easyrobust.report.figure_report import FigureReport, files_of
from ns_easyrobust.report.sheet import Cell, Sheet


def too_many(stream):
    raise OptionError("too many panels")


def report(draw=lambda stream: stream.write(b"PNG")) -> FigureReport:
    sheets = [(heading, Sheet([("value", "unit")], [("row", [Cell("1")])])) for heading in ("First", "Second")]
    return FigureReport("Title", sheets, ["A note.", "Another."], [("label", "value"), ("=row", 1.25)], draw)


def test_text_and_markdown_hold_tables_and_notes():
    text, page = report().to_text(80), report().to_markdown("p.png", level=4)
    assert [line for line in text.splitlines() if line in ("First", "Second", "A note.", "Another.")] == [
        *("First", "Second", "A note.", "Another."),
    ]
    assert text.count("label") == 2  # a header of each table, and none of the notes
    assert page.startswith("![Title](p.png)\n\n#### First\n\n| label |")
    assert page.endswith("A note.\n\nAnother.\n")
    assert "![" not in report().to_markdown()


def test_files_are_written_together_or_not(tmp_path, caplog):
    assert files_of(tmp_path, "x") == []
    written = report().write(tmp_path, "x")
    assert (
        sorted(written)
        == sorted(files_of(tmp_path, "x"))
        == sorted(tmp_path / f"x.{kind}" for kind in ("csv", "md", "png"))
    )
    assert (tmp_path / "x.csv").read_text() == "label,value\n'=row,1.25\n"
    with caplog.at_level(logging.WARNING):
        report(too_many).write(tmp_path, "x")
    assert "x.png was not drawn: too many panels" in caplog.text
    assert not (tmp_path / "x.png").exists()  # it would be of other numbers
    assert "![" not in (tmp_path / "x.md").read_text()
    report().write(tmp_path, "y", markdown=False)
    assert sorted(path.suffix for path in files_of(tmp_path, "y")) == [".csv", ".png"]
    (tmp_path / "z.csv").mkdir()
    with pytest.raises(OutputError):
        report().write(tmp_path, "z")
    assert not (tmp_path / "z.md").exists()
