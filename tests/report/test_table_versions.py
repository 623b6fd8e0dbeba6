"""Results files of both timms, as ``benchmark --suite val fgsm --subset first:40`` wrote them: read in either."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ns_easyrobust.cli import main as cli
from ns_easyrobust.evaluation.results_file import read_records
from ns_easyrobust.report.table import ResultsTable

WRITTEN = Path(__file__).parent / "timm"


def test_a_report_of_what_was_measured_under_either(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    shutil.copytree(WRITTEN, tmp_path / "timm")
    files = [str(tmp_path / "timm" / name) for name in ("0.5.4.jsonl", "1.x.jsonl")]
    assert cli.main(["report", *files, "--baseline", "under timm 0.5.4", "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "7.50" in printed
    assert "(+0.00" in printed, "the verdicts on the same images are compared"
    assert "timm=0.5.4" in printed
    assert "timm=1.0.31" in printed
    assert (tmp_path / "out" / "results.html").exists()


@pytest.mark.parametrize(("name", "timm"), [("0.5.4.jsonl", "0.5.4"), ("1.x.jsonl", "1.0.31")])
def test_a_record_says_under_which_timm_it_was_measured(name, timm):
    clean, attacked = read_records(WRITTEN / name)
    assert (clean.correct, clean.n, attacked.correct, attacked.suite) == (3, 40, 0, "fgsm")
    assert clean.versions["timm"] == attacked.versions["timm"] == timm
    assert f"timm={timm}" in ResultsTable([clean, attacked]).to_text()
