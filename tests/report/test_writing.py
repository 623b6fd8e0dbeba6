"""A report's files, and what is handed to the plot and the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.records import make, mce

from ns_easyrobust.errors import OutputError
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

    def spy(panels: Any, labels: Any, path: Path, **options: Any) -> Path:
        drawn.update(panels=panels, labels=labels, **options)
        return draw(panels, labels, path, **options)

    monkeypatch.setattr(writing, "dot_panels", spy)
    records = [make("a"), make("b", correct=40), mce("a", 50), make("b", "fgsm")]
    folder = tmp_path / "new" / "folder"
    written = write_report(records, folder, baseline="a")
    assert written == [folder / name for name in ("results.md", "results.csv", "results.png", "results.html")]
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
