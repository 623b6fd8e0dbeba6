"""A report's files, and what is handed to the plot and the page."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from helpers.records import make, mce

from ns_easyrobust.errors import OutputError
from ns_easyrobust.evaluation.results_file import append_record, read_records
from ns_easyrobust.report import writing
from ns_easyrobust.report.figures import Dot
from ns_easyrobust.report.html import html_page
from ns_easyrobust.report.sheet import as_markdown
from ns_easyrobust.report.statistics import wilson_interval
from ns_easyrobust.report.table import ResultsTable
from ns_easyrobust.report.table2 import Table2
from ns_easyrobust.report.table2_view import table2_sheet
from ns_easyrobust.report.writing import write_report


def test_report_writes_four_files_and_the_plot_shows_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Any] = {}
    draw = writing.dot_panels

    def spy(panels: Any, labels: Any, **options: Any) -> bytes:
        drawn.update(panels=panels, labels=labels, **options)
        return draw(panels, labels, **options)

    monkeypatch.setattr(writing, "dot_panels", spy)
    records = [make("a"), make("b", correct=40), mce("a", 50), make("b", "fgsm")]
    folder = tmp_path / "new" / "folder"
    written = write_report(records, folder, baseline="a")
    assert written == [folder / name for name in ("results.md", "results.csv", "results.png", "results.html")]
    assert sorted(folder.iterdir()) == sorted(written)
    assert (folder / "results.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (folder / "results.csv").read_text() == ResultsTable(records, baseline="a").to_csv()
    table = ResultsTable(records, baseline="a")
    text = (folder / "results.md").read_text()
    assert text.startswith(table.to_markdown())
    assert text.endswith(as_markdown(table2_sheet(Table2(table))))
    shown = (folder / "results.html").read_text()
    assert shown == html_page(table, Table2(table), picture=(folder / "results.png").read_bytes())
    assert [title for title, _ in drawn["panels"]] == ["imagenet-val top1", "fgsm top1"], "mCE is no accuracy"
    assert drawn["panels"][0][1] == {
        "a (baseline)": Dot(60.0, *wilson_interval(60, 100)),
        "b": Dot(40.0, *wilson_interval(40, 100)),
    }
    assert (drawn["labels"], drawn["baseline"]) == (["a (baseline)", "b"], "a (baseline)")


def test_report_without_accuracies_or_matplotlib_has_no_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert [path.suffix for path in write_report([mce("a", 50)], tmp_path)] == [".md", ".csv", ".html"]
    assert not caplog.records
    monkeypatch.setattr(writing.importlib.util, "find_spec", lambda name: None)
    assert len(write_report([make()], tmp_path)) == 3
    assert "matplotlib is not installed" in caplog.text
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        write_report([make()], tmp_path / "file")


@pytest.mark.parametrize("full_at", [1, 3, 5])
def test_a_full_disk_leaves_the_earlier_report_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_at: int
) -> None:
    """Of the four files and a form, whichever is the one that does not fit."""
    form = tmp_path / "form.json"

    def write(correct: int) -> None:
        table = ResultsTable([make("a", correct=correct)])
        writing.write_tables(table, Table2(table), tmp_path, False, (), {form: f"{correct}\n"})

    write(40)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == 5
    synced: list[int] = []

    def fsync(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == full_at:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutputError, match="No space left on device"):
        write(41)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.undo()
    write(41)
    assert not [path for path, content in before.items() if path.read_bytes() == content]


def test_the_home_folder_is_no_folder_called_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    append_record(tmp_path / "r.jsonl", mce("a", 50))
    assert write_report(read_records("~/r.jsonl"), "~/out")[0] == tmp_path / "out" / "results.md"


def test_a_form_does_not_take_the_place_of_the_report(tmp_path: Path) -> None:
    table = ResultsTable([make("a")])
    with pytest.raises(OutputError, match=r"results\.md: expected another file"):
        writing.write_tables(table, Table2(table), tmp_path, False, (), {tmp_path / "results.md": "{}"})
    assert not list(tmp_path.iterdir())


def test_a_figure_too_large_to_draw_is_left_out_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ns_easyrobust.report.figures._MOST_DOTS", 64)
    assert len(write_report([make(f"{number}") for number in range(65)], tmp_path)) == 3
    assert "results.png was not drawn: dot panels: expected at most 64 columns and 64 cells" in caplog.text
    caplog.clear()
    records = [make(f"{number} " + "x" * 9000) for number in range(30)]  # each wrapped into 300 lines
    assert len(write_report(records, tmp_path)) == 3
    assert "results.png was not drawn: figure: expected at most 65535 pixels a side" in caplog.text
