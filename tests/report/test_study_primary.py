"""The primary endpoint of a study: its tests from the bits by another way, and what it says where parts are missing."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from helpers.records import judged, make
from scipy import stats

from ns_easyrobust.errors import OptionError
from ns_easyrobust.report.study_primary import Pair, PrimaryEndpoint, SecondaryEndpoint
from ns_easyrobust.report.study_runs import MethodRuns, SeedRun
from ns_easyrobust.report.study_table import StudyTable

SUITES = ("imagenet-val", "fgsm", "pgd")
SHIFTS = {"none": 0.0, "random": 0.02, "ours": 0.18, "weak": 0.05}
Bits = Mapping[str, np.ndarray]  # (suites, seeds, images) by method


def study(folder: Path, bits: Bits) -> StudyTable:
    methods = []
    for label, own in bits.items():
        runs = [
            SeedRun(
                seed, [judged(folder, f"{label}{seed}", suite, own[index, seed]) for index, suite in enumerate(SUITES)]
            )
            for seed in range(own.shape[1])
        ]
        methods.append(MethodRuns(label, runs))
    return StudyTable(methods, baseline="none")


@pytest.fixture
def bits() -> Bits:
    generator = np.random.default_rng(5)
    difficulty = generator.random(300)
    return {
        label: difficulty + 0.1 * generator.standard_normal((3, 3, 300)) < 0.5 + shift
        for label, shift in SHIFTS.items()
    }


def by_hand(own: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """(difference, larger p) of the mean of the suites, by scipy: over images with two added, and paired by seed."""
    change = 100 * (own.mean(axis=(0, 1)) - other.mean(axis=(0, 1)))
    images = stats.ttest_1samp([*change, 100, -100], 0)
    seeds = stats.ttest_rel(100 * own.mean(axis=(0, 2)), 100 * other.mean(axis=(0, 2)))
    return float(change.mean()), max(images.pvalue, seeds.pvalue)


def names(pairs: Sequence[Pair]) -> list[tuple[str, str]]:
    return [(pair.method, pair.against) for pair in pairs]


def test_one_family_over_all_pairs(tmp_path: Path, bits: Bits) -> None:
    found = PrimaryEndpoint(study(tmp_path, bits), list(bits), ["none", "random"], "all")
    expected = [("random", "none"), *((own, other) for own in ("ours", "weak") for other in ("none", "random"))]
    assert names(found.pairs) == expected, "the two controls are compared once"
    ps = []
    for pair in found.pairs:
        delta, p = by_hand(bits[pair.method], bits[pair.against])
        assert pair.found is not None
        assert pair.claim is not None
        assert (pair.found.delta, pair.claim.p) == pytest.approx((delta, p))
        ps.append(p)
    for pair, p in zip(found.pairs, ps, strict=True):
        # Holm by its definition: the greatest of (number of hypotheses not smaller) * p over those not larger.
        adjusted = max(min(1, sum(other >= q for other in ps) * q) for q in ps if q <= p)
        assert pair.p_holm == pytest.approx(adjusted)
        assert (pair.verdict == "better") == (adjusted <= 0.05)
    assert {pair.verdict for pair in found.pairs} == {"better", "not distinguished"}, "the fixture has both"
    assert found.conclusion() == "After correction, better than none, random: ours."


def test_worse_and_better_than_none(tmp_path: Path, bits: Bits) -> None:
    found = PrimaryEndpoint(study(tmp_path, bits), ["none", "random", "weak"], ["ours"], "all")
    assert {pair.verdict for pair in found.pairs} == {"worse"}
    assert found.conclusion() == "After correction, no method is better than all of ours."
    assert PrimaryEndpoint(study(tmp_path, bits), ["none", "ours"], ["none", "ours"], "all").conclusion() == ""


def test_mean_robustness_leaves_the_clean_column_out(tmp_path: Path, bits: Bits) -> None:
    found = PrimaryEndpoint(study(tmp_path, bits), ["ours"], ["none"], "robust")
    delta, p = by_hand(bits["ours"][1:], bits["none"][1:])
    (pair,) = found.pairs
    assert pair.found is not None
    assert pair.claim is not None
    assert (pair.found.delta, pair.p_holm) == pytest.approx((delta, p)), "one test needs no correction"


def test_what_is_missing_counts_in_the_family_and_nothing_is_claimed_of_it(tmp_path: Path, bits: Bits) -> None:
    """Of 5 pairs 3 are there, whose least p is multiplied by 5, not by 3."""
    there = {label: bits[label] for label in ("none", "ours")}
    whole = PrimaryEndpoint(study(tmp_path, there), list(bits), ["none", "random"], "all")
    compared = [pair for pair in whole.pairs if pair.claim is not None]
    assert names(compared) == [("ours", "none")]
    assert compared[0].p_holm == pytest.approx(5 * by_hand(bits["ours"], bits["none"])[1])
    assert (
        whole.conclusion()
        == "After correction, no method is better than all of none, random; not known yet of ours, weak."
    )
    text = whole.to_markdown()
    assert "random and none: not compared, as random is not done." in text
    assert "| weak | none |  |  |  |  | not compared |  |  |" in text


def test_text_and_csv(tmp_path: Path, bits: Bits) -> None:
    found = PrimaryEndpoint(study(tmp_path, bits), list(bits), ["none", "random"], "all")
    text = found.to_markdown()
    assert "mean of all columns: plain mean of imagenet-val top1, fgsm top1, pgd top1." in text
    assert "for all 5 pairs" in text
    assert text.endswith("**After correction, better than none, random: ours.**\n")
    line = next(line for line in text.splitlines() if line.startswith("| ours | none |"))
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [(row["method"], row["against"]) for row in rows] == names(found.pairs)
    row = next(row for row in rows if (row["method"], row["against"]) == ("ours", "none"))
    assert f"| {float(row['delta']):+.2f} | [{float(row['low']):.2f}, {float(row['high']):.2f}] |" in line
    assert line.endswith(f"| better | {float(row['smallest_effect']):.2f} | {float(row['smallest_effect_holm']):.2f} |")
    assert float(row["smallest_effect_holm"]) > float(row["smallest_effect"]) > 0
    assert float(row["method_value"]) - float(row["against_value"]) == pytest.approx(float(row["delta"]))
    assert (row["method_runs"], row["against_runs"]) == ("3", "3")


def test_single_runs_say_nothing_of_other_seeds(tmp_path: Path, bits: Bits) -> None:
    single = {label: own[:, :1] for label, own in bits.items() if label in ("none", "ours")}
    text = PrimaryEndpoint(study(tmp_path, single), ["ours"], ["none"], "all").to_markdown()
    assert "One run each, so over images alone, which says nothing of other seeds: ours and none." in text
    assert text.endswith("better than none: ours. This is of single runs and says nothing of other seeds.**\n")


@pytest.mark.parametrize("seed", [0, None])
def test_one_run_left_of_several_is_spread_as_the_others_and_a_checkpoint_is_given(
    tmp_path: Path, bits: Bits, seed: int | None
) -> None:
    whole = study(tmp_path, {label: bits[label] for label in ("none", "ours")}).methods
    first = whole["none"].runs[0]
    others = [SeedRun(1, first.records[:1])] if seed is not None else []
    table = StudyTable([MethodRuns("none", [SeedRun(seed, first.records), *others]), whole["ours"]])
    (pair,) = PrimaryEndpoint(table, ["ours"], ["none"], "all").pairs
    own, one = 100 * bits["ours"].mean(axis=(0, 2)), 100 * bits["none"][:, 0].mean()
    expected = stats.ttest_1samp(own, one) if seed is None else stats.ttest_ind(own, [one])
    assert pair.found is not None
    assert pair.found.seeds is not None
    assert pair.found.seeds.p == pytest.approx(expected.pvalue)


def test_bits_that_were_not_kept_and_no_column_in_percent() -> None:
    rows = [MethodRuns(label, [SeedRun(0, [make(label), make(label, "fgsm")])]) for label in ("a", "b")]
    found = PrimaryEndpoint(StudyTable(rows), ["a"], ["b"], "all")
    assert (found.pairs[0].verdict, found.pairs[0].p_holm) == ("not compared", 1.0)
    assert "a and b: not compared, as not all runs' verdicts on each image were kept." in found.to_markdown()
    clean = [MethodRuns(label, [SeedRun(0, [make(label)])]) for label in ("a", "b")]
    assert (
        "as there is no such column in percent"
        in PrimaryEndpoint(StudyTable(clean), ["a"], ["b"], "robust").to_markdown()
    )


def test_columns_of_named_suites_are_the_endpoint(tmp_path: Path, bits: Bits) -> None:
    found = PrimaryEndpoint(table := study(tmp_path, bits), ["ours"], ["none"], ["val", "pgd"])
    assert found.measure is not None
    assert [column.suite for _, column in found.measure.terms] == ["imagenet-val", "pgd"]
    values = {column.suite: table.value("ours", table.measures[i]) for i, column in enumerate(table.columns)}
    assert table.value("ours", found.measure) == pytest.approx((values["imagenet-val"] + values["pgd"]) / 2)
    lacking = PrimaryEndpoint(table, ["ours"], ["none"], ["val", "cw"])
    assert (lacking.measure, lacking.pairs[0].verdict) == (None, "not compared")
    with pytest.raises(OptionError, match=r"suite: expected some of val, .*, found nothing"):
        PrimaryEndpoint(table, ["ours"], ["none"], ["nothing"])


@pytest.mark.parametrize(("methods", "columns"), [(["none"], "all"), (["ours"], "clean")])
def test_no_pair_and_unknown_columns_are_refused(tmp_path: Path, bits: Bits, methods: list[str], columns: str) -> None:
    with pytest.raises(OptionError, match="primary endpoint: expected columns of all, robust and a method"):
        PrimaryEndpoint(study(tmp_path, bits), methods, ["none"], columns)


def test_a_secondary_endpoint_is_the_same_but_for_what_it_is_called(tmp_path: Path, bits: Bits) -> None:
    table, controls = study(tmp_path, bits), ["none", "random"]
    primary = PrimaryEndpoint(table, list(bits), controls, ["val", "pgd"])
    secondary = SecondaryEndpoint(table, list(bits), controls, ["val", "pgd"])
    assert secondary.to_csv() == primary.to_csv()
    assert secondary.to_markdown().startswith("## Secondary endpoint: val, pgd\n")
    assert "for all 5 pairs, a family of its own. This endpoint is secondary" in secondary.to_markdown()
    assert primary.to_markdown().startswith("## Primary endpoint\n")
    assert "secondary" not in primary.to_markdown()
    with pytest.raises(OptionError, match="secondary endpoint: expected columns"):
        SecondaryEndpoint(table, list(bits), controls, "clean")


def test_endpoints_on_other_columns_are_not_taken_for_one_another(tmp_path: Path, bits: Bits) -> None:
    """Both are called "mean"."""
    table = study(tmp_path, bits)
    for columns, index in ((["fgsm"], [1]), (["pgd"], [2]), (["val", "fgsm"], [0, 1])):
        (pair,) = SecondaryEndpoint(table, ["ours"], ["none"], columns).pairs
        assert pair.found is not None
        assert pair.claim is not None
        expected = by_hand(bits["ours"][index], bits["none"][index])
        assert (pair.found.delta, pair.claim.p) == pytest.approx(expected)
