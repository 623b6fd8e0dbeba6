"""Tables of records against scipy, csv and counting by hand."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
from test_tables import make, mce

from ns_easyrobust import report
from ns_easyrobust.errors import DataError, OutputError
from ns_easyrobust.figures import Dot
from ns_easyrobust.records import append_record
from ns_easyrobust.report import write_report
from ns_easyrobust.tables import Table, wilson_interval


def test_report_writes_three_files_and_the_plot_shows_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Any] = {}
    draw = report.dot_panels

    def spy(panels: Any, labels: Any, path: Path, **options: Any) -> Path:
        drawn.update(panels=panels, labels=labels, **options)
        return draw(panels, labels, path, **options)

    monkeypatch.setattr(report, "dot_panels", spy)
    records = [make("a"), make("b", correct=40), mce("a", 50), make("b", "fgsm")]
    folder = tmp_path / "new" / "folder"
    written = write_report(records, folder, baseline="a")
    assert written == [folder / name for name in ("results.md", "results.csv", "results.png")]
    assert (folder / "results.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (folder / "results.csv").read_text() == Table(records, baseline="a").to_csv()
    assert (folder / "results.md").read_text() == Table(records, baseline="a").to_markdown()
    assert [title for title, _ in drawn["panels"]] == ["imagenet-val top1", "fgsm top1"], "mCE is no accuracy"
    assert drawn["panels"][0][1] == {
        "a (baseline)": Dot(60.0, *wilson_interval(60, 100)),
        "b": Dot(40.0, *wilson_interval(40, 100)),
    }
    assert (drawn["labels"], drawn["baseline"]) == (["a (baseline)", "b"], "a (baseline)")


def test_report_without_accuracies_or_matplotlib_has_no_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert [path.suffix for path in write_report([mce("a", 50)], tmp_path)] == [".md", ".csv"]
    assert not caplog.records
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None)
    assert len(write_report([make()], tmp_path)) == 2
    assert "matplotlib is not installed" in caplog.text
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        write_report([make()], tmp_path / "file")


def test_verb_prints_the_table_and_the_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "one" / "results.jsonl", tmp_path / "two.jsonl"]
    files[0].parent.mkdir()
    append_record(files[0], make("a"))
    append_record(files[1], make("b", correct=75))
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    report.run(parser.parse_args([*map(str, files), "--baseline", "a", "--best"]))
    printed = capsys.readouterr().out
    assert "75.00* (+15.00)" in printed
    for name in ("results.md", "results.csv", "results.png"):
        assert f"wrote {files[0].parent / name}\n" in printed
    report.run(parser.parse_args([str(files[1]), "--output", str(tmp_path / "out")]))
    assert (tmp_path / "out" / "results.md").exists()
    with pytest.raises(DataError, match="cannot read"):
        report.run(parser.parse_args([str(tmp_path / "none.jsonl")]))
