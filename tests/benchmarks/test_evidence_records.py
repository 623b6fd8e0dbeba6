"""docs/evidence.md shows what its reports say, and these what their records say."""

from __future__ import annotations

import importlib
import re
import tarfile
from pathlib import Path

import pytest

from ns_easyrobust.cli import main as cli

ROOT = Path(__file__).parents[2]
EVIDENCE = ROOT / "docs" / "evidence"
STUDIES = sorted(path.parent.name for path in EVIDENCE.glob("*/records.tar.xz"))
RARE = [name for name in STUDIES if name != "normalisation"]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("evidence_tables")


def test_every_table_of_the_page_is_its_reports(script):
    page = (ROOT / "docs" / "evidence.md").read_text()
    assert page.count("<!-- table ") >= 6
    assert script.rendered(page, ROOT / "docs") == page


@pytest.mark.parametrize("name", ["normalisation", *(pytest.param(each, marks=pytest.mark.stress) for each in RARE)])
def test_a_report_is_written_anew_from_its_records(name, tmp_path, monkeypatch):
    with tarfile.open(EVIDENCE / name / "records.tar.xz") as archive:
        archive.extractall(tmp_path / name, filter="data")
    monkeypatch.chdir(tmp_path)
    study = ROOT / "benchmarks" / "studies" / "evidence" / f"{name}.yaml"
    assert cli.main(["experiment", "study", "-c", str(study), "-o", name, "--report-only"]) == 0
    for file in ("report.md", "primary.csv"):
        made, kept = ((folder / file).read_text() for folder in (tmp_path / name, EVIDENCE / name))
        assert _without_machine(made) == _without_machine(kept)


def _without_machine(text: str) -> str:
    return re.sub(r"the table was made on .*", "", text)
