"""The verb report: which files it writes, and what it hands to the plot and the page."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.records import make, of_released_size, whole_set

from ns_easyrobust.cli import report
from ns_easyrobust.errors import DataError, OptionError, OutputError
from ns_easyrobust.evaluation.results_file import append_record, read_records
from ns_easyrobust.report.leaderboards import read_about


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


def test_published_rows_and_forms_are_written_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # no label is folded
    results, form = tmp_path / "results.jsonl", tmp_path / "form.json"
    for record in of_released_size(whole_set(tmp_path, "mine", 0.5, 0, preset="easyrobust")):
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
        text = (tmp_path / name).read_text()
        assert "arXiv:2403.10476, Table 4" in text
        assert "C is a misprint" in text, "a row's own note"
    assert "ViT-B + RandAugment (published): C is a misprint" in printed
    assert "arXiv" not in (tmp_path / "results.csv").read_text(), "records only"

    report.run(parser.parse_args([str(results), "--published", "table3", "easyrobust"]))
    told = (tmp_path / "results.md").read_text()
    assert "Table 3)" in told
    assert "dat/README.md" in told
    assert "Table 2)" not in told
    assert "Table 4)" not in told
    assert "misprint" not in told, "of a row that is not shown"

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


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"[" * 5000, "nested too deeply"),
        (b'{"a":' * 600 + b"1" + b"}" * 600, "nested too deeply"),
        (b'{"authors": NaN}', "not JSON compliant"),
        (b'{"authors": 1, "authors": 2}', "'authors' twice"),
        (b"\xff", "decode"),
        (b"[]", "found list"),
        (b" " * (2**20 + 1), "more than 1048576 bytes"),
    ],
    ids=lambda value: str(value[:20]),
)
def test_a_hostile_file_about_authors_is_one_line(tmp_path: Path, content: bytes, found: str) -> None:
    (tmp_path / "about.json").write_bytes(content)
    with pytest.raises(OptionError, match=found):
        read_about(tmp_path / "about.json")


def test_two_forms_in_one_file_are_refused(tmp_path: Path) -> None:
    for record in of_released_size(whole_set(tmp_path, "mine", 0.5, 0, preset="easyrobust")):
        append_record(tmp_path / "r.jsonl", record)
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    with pytest.raises(OptionError, match="expected two files, found one path"):
        report.run(parser.parse_args([str(tmp_path / "r.jsonl"), "--submit", "x.json", "--robustbench", "./x.json"]))
    assert not (tmp_path / "results.md").exists()


def test_what_the_report_is_made_from_is_never_replaced(tmp_path: Path) -> None:
    results, about = tmp_path / "results.csv", tmp_path / "about.json"  # the report has a results.csv of its own
    for record in of_released_size(whole_set(tmp_path, "mine", 0.5, 0, preset="easyrobust")):
        append_record(results, record)
    about.write_text('{"institution": "X"}')
    os.link(results, tmp_path / "other.jsonl")
    before = results.read_bytes()
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    out = ["--output", str(tmp_path / "out"), "--about", str(about), "--submit"]
    for flags in ([], [*out, str(results)], [*out, str(tmp_path / "other.jsonl")], [*out, str(about)]):
        with pytest.raises(OutputError, match="the report is made from this file"):
            report.run(parser.parse_args([str(results), *flags]))
    assert results.read_bytes() == before
    assert about.read_text() == '{"institution": "X"}'
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["about.json", "other.jsonl", "results.csv"]


def test_a_reader_who_has_seen_enough(tmp_path: Path) -> None:
    for record in whole_set(tmp_path, "mine", 0.5, 0):
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
