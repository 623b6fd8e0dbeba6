"""The verb report: which files it writes, and what it hands to the plot and the page."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.records import make, mce, of_released_size, whole

from ns_easyrobust.cli import report
from ns_easyrobust.cli.report import write_report
from ns_easyrobust.errors import DataError, OptionError, OutputError
from ns_easyrobust.evaluation.records import append_record, read_records
from ns_easyrobust.report.figures import Dot
from ns_easyrobust.report.html import page
from ns_easyrobust.report.sheet import as_markdown
from ns_easyrobust.report.statistics import wilson_interval
from ns_easyrobust.report.summary_sheet import summary_sheet
from ns_easyrobust.report.table2 import Summary
from ns_easyrobust.report.views import Table


def test_report_writes_four_files_and_the_plot_shows_the_numbers(
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
    assert written == [folder / name for name in ("results.md", "results.csv", "results.png", "results.html")]
    assert (folder / "results.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (folder / "results.csv").read_text() == Table(records, baseline="a").to_csv()
    table = Table(records, baseline="a")
    text = (folder / "results.md").read_text()
    assert text.startswith(table.to_markdown())
    assert text.endswith(as_markdown(summary_sheet(Summary(table))))
    shown = (folder / "results.html").read_text()
    assert shown == page(table, Summary(table), picture=(folder / "results.png").read_bytes())
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
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None)
    assert len(write_report([make()], tmp_path)) == 3
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
    for name in ("results.md", "results.csv", "results.png", "results.html"):
        assert f"wrote {files[0].parent / name}\n" in printed
    report.run(parser.parse_args([str(files[1]), "--output", str(tmp_path / "out")]))
    assert (tmp_path / "out" / "results.md").exists()
    with pytest.raises(DataError, match="cannot read"):
        report.run(parser.parse_args([str(tmp_path / "none.jsonl")]))


def test_published_rows_and_forms_are_written_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, form = tmp_path / "results.jsonl", tmp_path / "form.json"
    for record in of_released_size(whole(tmp_path, "mine", 0.5, 0, preset="easyrobust")):
        append_record(results, record)
    (tmp_path / "about.json").write_text('{"institution": "X", "authors": "Y"}')
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    flags = ["--published", "--submit", str(form), "--robustbench", str(tmp_path / "bench.json")]
    report.run(parser.parse_args([str(results), *flags, "--about", str(tmp_path / "about.json")]))
    printed = capsys.readouterr().out
    assert f"wrote {form}\n" in printed
    assert "ViT-B + DAT + NS (published, arXiv:2403.10476, Table 2)" in printed
    assert json.loads(form.read_text())["institution"] == "X"
    assert json.loads((tmp_path / "bench.json").read_text())["authors"] == "Y"
    for name in ("results.md", "results.html"):
        assert "arXiv:2403.10476, Table 4" in (tmp_path / name).read_text()
    assert "arXiv" not in (tmp_path / "results.csv").read_text(), "records only"

    report.run(parser.parse_args([str(results), "--published", "table3", "easyrobust"]))
    told = (tmp_path / "results.md").read_text()
    assert "Table 3)" in told
    assert "dat/README.md" in told
    assert "Table 2)" not in told
    assert "Table 4)" not in told

    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match=r"empty\.jsonl: expected records, found none"):
        report.run(parser.parse_args([str(tmp_path / "empty.jsonl")]))

    fresh = tmp_path / "fresh"
    with pytest.raises(OptionError, match="found 'native'"):
        report.run(parser.parse_args([str(results), "--preset", "native", "--output", str(fresh)]))
    with pytest.raises(OptionError, match="expected records of autoattack"):
        rest = [record for record in read_records(results) if record.suite != "autoattack"]
        for record in rest:
            append_record(tmp_path / "rest.jsonl", record)
        flags = ["--robustbench", str(fresh / "b.json"), "--output", str(fresh)]
        report.run(parser.parse_args([str(tmp_path / "rest.jsonl"), *flags]))
    assert not fresh.exists(), "a form that cannot be made leaves nothing behind"


def test_a_reader_who_has_seen_enough(tmp_path: Path) -> None:
    for record in whole(tmp_path, "mine", 0.5, 0):
        append_record(tmp_path / "r.jsonl", record)
    command = [sys.executable, "-m", "ns_easyrobust", "report", str(tmp_path / "r.jsonl")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        told = process.stderr.read()
    assert (process.returncode, b"Traceback" in told) == (141, False)
    assert (tmp_path / "results.html").exists()
