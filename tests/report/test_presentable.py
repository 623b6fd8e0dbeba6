"""Texts that others wrote, in every field of a record and every form of a report."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers.hostile_records import TEXTS, odd_records
from helpers.records import make, one_record

from ns_easyrobust.report.presentable import presentable, presentable_record
from ns_easyrobust.report.sheet import as_markdown
from ns_easyrobust.report.table import ResultsTable
from ns_easyrobust.report.table2 import Table2
from ns_easyrobust.report.table2_view import table2_sheet
from ns_easyrobust.report.writing import write_report


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on records that hold :data:`TEXTS` in each of their fields."""
    folder = tmp_path_factory.mktemp("odd")
    assert len(write_report(odd_records(), folder, baseline="base")) == 4
    return folder


def test_nothing_steers_a_terminal_or_turns_the_text_around(folder: Path) -> None:
    table = ResultsTable(odd_records(), baseline="base")
    texts = [path.read_bytes().decode() for path in folder.glob("results.[mch]*")]
    assert len(texts) == 3
    for text in [*texts, table.to_text(width=100)]:
        assert re.search(r"\\x1b\\?\[2J", text), "it is shown what was there"
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]", text)
        assert "secret" not in text


def test_markdown_shows_each_text_as_it_is(folder: Path) -> None:
    """No unescaped character of a link, a tag, a table's border, emphasis, code or mathematics is left."""
    text = (folder / "results.md").read_text()
    widths = {len(re.split(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("| ")}
    assert len(widths) == 2, "two tables, each of one width"
    unescaped = re.sub(r"\\[^\w\s]", "", text)
    assert not re.search(r"[<>`*$~&]", unescaped)
    assert not re.search(r"\]\(", unescaped)
    assert not re.search(r"^(\s*- )?\d+[.)] ", unescaped, re.MULTILINE)
    assert {line for line in text.splitlines() if line.startswith("#")} == {
        "### Protocol of each column",
        "### Model of each row",
        "### Versions",
        "## The columns of the paper's Table 2",
    }


def test_html_has_no_element_from_a_record(folder: Path) -> None:
    class Tags(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.found: set[str] = set()
            self.links: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.found.add(tag)
            self.links += [name for name, _ in attrs if name in ("href", "src") or name.startswith("on")]

    tags = Tags()
    tags.feed((folder / "results.html").read_text())
    assert not tags.found & {"script", "a", "iframe", "object", "form", "link", "svg"}
    assert tags.links == ["src"], "the picture"


def test_no_cell_of_the_csv_is_a_formula(folder: Path) -> None:
    rows = list(csv.DictReader(io.StringIO((folder / "results.csv").read_text())))
    assert [row["label"] for row in rows if row["label"].startswith("'")] == [
        f"'{text}" for text in TEXTS if text[0] in "=+-@" and "\n" not in text
    ]
    for row in rows:
        assert (float(row["value"]), row["unit"]) == (60, "%")
        assert not [cell for cell in row.values() if cell and cell[0] in "=+-@\t\r"]


def test_negative_differences_stay_numbers() -> None:
    table = ResultsTable([make("base", correct=60), make("-- new", correct=50)], baseline="base")
    line = table.to_csv().splitlines()[-1]
    assert line.startswith("'-- new,")
    assert line.endswith(",-10.0,,,")


def test_the_picture_is_drawn(folder: Path) -> None:
    assert (folder / "results.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_rows_are_named_by_what_is_given_or_by_what_is_shown() -> None:
    raw = "bad\udcff.pth"
    records = [make(raw, checkpoint=raw), make("new", correct=50)]
    for name in (raw, "bad\\udcff.pth"):
        table = ResultsTable(records, baseline=name)
        assert table.rows == ("bad\\udcff.pth", "new")
        assert table.baseline == "bad\\udcff.pth"
    assert as_markdown(table2_sheet(Table2(table))).encode()


def test_presentable_by_hand() -> None:
    assert presentable("a\x1b[1m\nb\u202e \udcff ü 10/2") == "a\\x1b[1m\\nb\\u202e \\udcff ü 10/2"
    assert presentable("https://me:secret@host/x https://host/y") == "https://***@host/x https://host/y"
    assert presentable("https://host/x?a=1&X-Amz-Signature=secret") == "https://host/x?a=1&X-Amz-Signature=***"
    assert presentable("https://host/x?token=secret") == "https://host/x?token=***"
    plain = one_record(right="right/x.npz", images="e" * 64)
    assert presentable_record(plain) is plain
    shown = presentable_record(one_record(machine="\x07", right="right/\x07.npz", protocol={"a": ["\x07", 1]}))
    assert (shown.machine, shown.protocol) == ("\\x07", {"a": ["\\x07", 1]})
    assert shown.right == "right/\x07.npz", "the file's own name"
