"""Records compared image by image, against counting by hand."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.records import make
from scipy.stats import binomtest

from ns_easyrobust.errors import DataError
from ns_easyrobust.evaluation.per_image import images_digest, save_correctness
from ns_easyrobust.evaluation.records import Record
from ns_easyrobust.report.columns import mismatch
from ns_easyrobust.report.statistics import (
    Difference,
    combined_interval,
    correctness_of,
    difference,
    paired_interval,
)


def kept(folder: Path, label: str, right: np.ndarray, paths: list[str] | None = None, **changes: Any) -> Record:
    """A record with its bits."""
    paths = [f"c/{index:03d}.png" for index in range(len(right))] if paths is None else paths
    name = save_correctness(folder, label, paths, right)
    record = make(label, correct=int(right.sum()), n=len(right), images=images_digest(paths), right=name, **changes)
    return replace(record, folder=folder)


def two(folder: Path, n: int = 80, seed: int = 0) -> tuple[Record, Record, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    a, b = generator.random(n) < 0.7, generator.random(n) < 0.5
    return kept(folder, "a", a), kept(folder, "b", b), a, b


def test_difference_counts_disagreements(tmp_path: Path) -> None:
    record, base, a, b = two(tmp_path)
    only_a, only_b = sum(a & ~b), sum(b & ~a)
    found = difference(record, base)
    assert found.delta == pytest.approx(100 * (only_a - only_b) / 80)
    assert found.p == pytest.approx(binomtest(only_a, only_a + only_b).pvalue)
    assert (found.low, found.high) == paired_interval(sum(a & b), sum(a & ~b), sum(b & ~a), sum(~a & ~b))
    narrow = difference(record, base, confidence=0.5)
    assert found.low < narrow.low < found.delta < narrow.high < found.high  # type: ignore[operator]


def test_images_are_matched_by_path_whatever_their_order(tmp_path: Path) -> None:
    paths, order = [f"c/{i}.png" for i in range(9)], np.random.default_rng(2).permutation(9)
    right = np.arange(9) < 4
    record = kept(tmp_path, "a", right, paths)
    shuffled = kept(tmp_path, "b", right[order], [paths[i] for i in order])
    np.testing.assert_array_equal(correctness_of(record), correctness_of(shuffled))
    found = difference(record, shuffled)
    assert (found.delta, found.p) == (0.0, 1.0)
    assert (found.low, found.high) == paired_interval(4, 0, 0, 5)


@pytest.mark.parametrize("change", [{"right": None}, {"images": None}, {"images": "f" * 64}])
def test_what_is_not_comparable_has_a_delta_alone(tmp_path: Path, change: dict[str, Any]) -> None:
    record, base, *_ = two(tmp_path)
    for pair in ((replace(record, **change), base), (record, replace(base, **change))):
        assert difference(*pair) == Difference(record.value - base.value)
        assert combined_interval([(1.0, *pair)]) is None


def test_other_labels_behind_equal_names_are_not_paired(tmp_path: Path) -> None:
    one, other, *_ = two(tmp_path)
    assert difference(replace(one, task="a"), replace(other, task="a")).p is not None
    assert difference(replace(one, task="a"), other).p is not None, "unknown in older records"
    found = difference(replace(one, task="a"), replace(other, task="b"))
    assert (found.p, found.low) == (None, None)
    assert mismatch([("x", replace(one, task="a")), ("y", replace(other, task="b"))]) == (
        "labels or files differ behind equal names: task a (x); task b (y)"
    )


def test_bits_that_are_gone_or_anothers_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record, base, *_ = two(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert difference(replace(record, right="right/gone.npz"), base) == Difference(record.value - base.value)
        assert difference(replace(record, right=base.right), base) == Difference(record.value - base.value)
    assert "gone.npz" in caplog.messages[0]
    assert "found other ones" in caplog.messages[1]
    with pytest.raises(DataError, match="expected per-image bits, found none"):
        correctness_of(replace(record, right=None))


def test_combination_over_one_set_resamples_images_together(tmp_path: Path) -> None:
    """Two verdicts that always agree: together they vary twice as much as one, independently only sqrt(2) times."""
    generator = np.random.default_rng(4)
    a, b = generator.random(4000) < 0.6, generator.random(4000) < 0.5
    terms = [(0.5, kept(tmp_path, f"a{i}", a), kept(tmp_path, f"b{i}", b)) for i in range(2)]
    d = a.astype(float) - b
    error = 100 * d.std() / 4000**0.5
    expected = (100 * d.mean() - 1.96 * error, 100 * d.mean() + 1.96 * error)
    assert combined_interval(terms, draws=4000) == pytest.approx(expected, abs=0.12 * error)
    other = [f"other/{i}.png" for i in range(4000)]
    apart = [terms[0], (0.5, kept(tmp_path, "a", a, other), kept(tmp_path, "b", b, other))]
    low, high = combined_interval(apart, draws=4000)  # type: ignore[misc]
    assert (high - low) / 2 == pytest.approx(1.96 * error / 2**0.5, rel=0.08)
