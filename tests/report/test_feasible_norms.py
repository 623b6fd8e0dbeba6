"""Ratios of feasible norms: against scipy's t tests on logarithms, and Holm's correction by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ns_easyrobust.errors import OptionError
from ns_easyrobust.report.feasible_norms import NormChanges

KINDS = ("nullspace", "random")
GENERATOR = np.random.default_rng(17)
# Norms by label, (seeds, kinds, directions).
NORMS = {label: GENERATOR.lognormal(3, 0.2, (4, 2, 3)) for label in ("none", "nullspace", "random")}
BEFORE = GENERATOR.lognormal(3, 0.2, (2, 3))


def line(
    label: str, seed: int | None, kind: str, direction: object, norm: float, censored: bool = False
) -> dict[str, Any]:
    return {"label": label, "seed": seed, "kind": kind, "direction": str(direction), "norm": norm, "censored": censored}


def lines(seeds: int = 4) -> list[dict[str, Any]]:
    found = [line("before", None, kind, d, BEFORE[k, d]) for k, kind in enumerate(KINDS) for d in range(3)]
    for label, norms in NORMS.items():
        found += [
            line(label, seed, kind, d, norms[seed, k, d])
            for seed in range(seeds) for k, kind in enumerate(KINDS) for d in range(3)
        ]  # fmt: skip
    return found


def changes_of(label: str, kind: int) -> np.ndarray:
    return np.log(NORMS[label][:, kind] / BEFORE[kind]).mean(axis=1)


@pytest.mark.parametrize("label", NORMS)
@pytest.mark.parametrize("kind", [0, 1])
def test_ratios_and_their_intervals_are_scipys_of_logarithms(label: str, kind: int) -> None:
    changes = NormChanges(lines(), "none")
    own = changes_of(label, kind)
    found = changes.change(label, KINDS[kind])
    assert found.value == pytest.approx(math.exp(own.mean()))
    interval = stats.ttest_1samp(own, 0).confidence_interval()
    assert [found.low, found.high] == pytest.approx(np.exp([interval.low, interval.high]))
    if label == "none":
        assert changes.comparison(label, KINDS[kind]) is None
        return
    against = changes.comparison(label, KINDS[kind])
    test = stats.ttest_rel(own, changes_of("none", kind))
    assert against.value == pytest.approx(math.exp(own.mean() - changes_of("none", kind).mean()))
    assert against.p == pytest.approx(test.pvalue)
    assert [against.low, against.high] == pytest.approx(np.exp(list(test.confidence_interval())))


def test_p_is_adjusted_for_all_cells() -> None:
    changes = NormChanges(lines(), "none")
    cells = [(label, kind) for label in ("nullspace", "random") for kind in KINDS]
    ps = {cell: changes.comparison(*cell).p for cell in cells}
    by_hand: dict[tuple[str, str], float] = {}
    for rank, cell in enumerate(sorted(cells, key=ps.__getitem__)):
        by_hand[cell] = max([(4 - rank) * ps[cell], *by_hand.values()])
    assert changes.adjusted == pytest.approx({cell: min(1, p) for cell, p in by_hand.items()})
    assert "for all 4 comparisons" in changes.to_markdown()


def test_the_baseline_is_measured_along_the_very_noise_that_a_run_was_trained_on() -> None:
    runs = ["nullspace, seed 0", "nullspace, seed 1", "random, seed 0", "random, seed 1"]
    found = [line("before", None, "trained on", run, 10.0 * (1 + place)) for place, run in enumerate(runs)]
    factors = {"nullspace, seed 0": 2.0, "nullspace, seed 1": 3.0, "random, seed 0": 1.1, "random, seed 1": 1.2}
    for seed in (0, 1):
        found.append(line("nullspace", seed, "trained on", f"nullspace, seed {seed}", 10.0 * (1 + seed) * (2 + seed)))
        for place, run in enumerate(runs):
            if run.endswith(str(seed)):
                found.append(line("none", seed, "trained on", run, 10.0 * (1 + place) * factors[run] / 2))
        found.append(
            line(
                "random",
                seed,
                "trained on",
                f"random, seed {seed}",
                10.0 * (3 + seed) * factors[f"random, seed {seed}"],
            )
        )
    changes = NormChanges(found, "none")
    assert changes.change("none", "trained on") is None
    assert changes.change("nullspace", "trained on").value == pytest.approx(math.sqrt(6))
    for label in ("nullspace", "random"):
        assert changes.comparison(label, "trained on").value == pytest.approx(2)
    assert "| none (baseline) | - |" in changes.to_markdown()


def test_one_seed_has_no_interval_and_censored_norms_are_counted() -> None:
    found = lines(1)
    found[0]["censored"] = found[7]["censored"] = True
    changes = NormChanges(found, "none")
    ratio = changes.change("nullspace", "random")
    assert (ratio.low, ratio.p) == (None, None)
    assert changes.adjusted == {}
    text = changes.to_text(200, ["a note"])
    assert "One seed a method: no interval" in text
    assert "a note" in text
    assert text.count("1 censored") == 2
    assert f"{ratio.value:.3f}" in text


def test_a_baseline_of_one_seed_varies_as_the_others_do() -> None:
    found = [one for one in lines() if (one["label"], one["seed"]) not in {("none", seed) for seed in (1, 2, 3)}]
    against = NormChanges(found, "none").comparison("nullspace", "random")
    assert against.p == pytest.approx(stats.ttest_ind(changes_of("nullspace", 1), changes_of("none", 1)[:1]).pvalue)


def test_equal_norms_give_a_ratio_of_exactly_1() -> None:
    same = [{**one, "label": "same", "seed": 0} for one in lines() if one["label"] == "before"]
    changes = NormChanges([*lines(), *same])
    assert [changes.change("same", kind).value for kind in KINDS] == [1.0, 1.0]


def test_a_run_without_all_directions_does_not_count() -> None:
    short = [one for one in lines() if (one["label"], one["seed"], one["direction"]) != ("random", 2, "1")]
    assert set(NormChanges(short).logs("random", "nullspace")) == {"seed 0", "seed 1", "seed 3"}


def test_what_cannot_be_compared_is_one_line() -> None:
    with pytest.raises(OptionError, match="nobody among them, found none, nullspace, random"):
        NormChanges(lines(), "nobody")
    with pytest.raises(OptionError, match="found no trained model"):
        NormChanges([one for one in lines() if one["label"] == "before"])
