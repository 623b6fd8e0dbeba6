"""The numbers of docs/evidence.md that stand in no report are those that its script prints."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("evidence_numbers")


@pytest.fixture(scope="module")
def page():
    return " ".join((ROOT / "docs" / "evidence.md").read_text().split())


def test_growth_of_the_noises(script, page):
    for method in ("nullspace", "permuted"):
        logs = script.noise_growth(method)
        assert len(logs) == 8
        ratio, low, high = (f"{100 * (value - 1):.1f}" for value in script.with_interval(logs))
        assert f"{ratio}% [{low}, {high}]" in page


def test_differences_are_the_reports_and_seeds_those_of_the_page(script, page):
    differences = script.endpoint_differences("nullspace")
    assert len(differences) == 3
    assert f"{differences.mean():+.2f} [" in page
    deviation = float(differences.std(ddof=1))
    assert f"deviates by {deviation:.2f} points" in page
    alone, corrected = (script.seeds_needed(deviation, level) for level in (0.05, 0.05 / 6))
    assert f"{alone} for one comparison, {corrected} as one of six" in page


def test_seeds_needed_find_the_gain_in_drawn_studies(script):
    """By simulation: with so many seeds the t test finds the gain four times in five."""
    seeds, draw = script.seeds_needed(0.4, 0.05), np.random.default_rng(0)
    samples = draw.normal(0.3, 0.4, (20000, seeds))
    t = samples.mean(1) / (samples.std(1, ddof=1) / np.sqrt(seeds))
    share = float((np.abs(t) > script.stats.t.ppf(0.975, seeds - 1)).mean())
    assert 0.79 < share < 0.85
