"""A study's table: its numbers from the bits by another way, and what it says of what it cannot compare."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.records import judged, make, whole_set
from scipy import stats

from ns_easyrobust.data.benchmarks import ALEXNET_ERROR, SEVERITIES
from ns_easyrobust.errors import OptionError
from ns_easyrobust.report.statistics import correctness_of, difference, holm
from ns_easyrobust.report.study_comparison import Comparison, Measure, StudyComparison
from ns_easyrobust.report.study_runs import MethodRuns, SeedRun
from ns_easyrobust.report.study_table import StudyTable

SUITES = {"imagenet-val": 120, "fgsm": 120, "imagenet-r": 70}
Bits = Mapping[str, Sequence[np.ndarray]]  # of each seed, by suite


def drawn(seeds: int, generator: np.random.Generator, shift: float = 0.0, sizes: Mapping[str, int] = SUITES) -> Bits:
    """Verdicts on images whose difficulty is the same for all methods."""
    found = {}
    for suite, n in sizes.items():
        difficulty = np.random.default_rng(len(suite)).random(n)
        found[suite] = [difficulty + 0.1 * generator.standard_normal(n) < 0.6 + shift for _ in range(seeds)]
    return found


def method(folder: Path, label: str, bits: Bits, seeds: Sequence[int | None], *cost: Any) -> MethodRuns:
    runs = []
    for index, seed in enumerate(seeds):
        name = f"{label} {seed}"
        records = [judged(folder, name, suite, own[index]) for suite, own in bits.items()]
        runs.append(SeedRun(seed, records, *cost))
    return MethodRuns(label, runs)


def measure(table: StudyComparison, title: str) -> Measure:
    (found,) = [each for each in table.measures if each.title == title]
    return found


def compared(table: StudyComparison, label: str, title: str) -> Comparison:
    found = table.comparison(label, measure(table, title))
    assert found is not None
    return found


@pytest.fixture
def bits() -> tuple[Bits, Bits]:
    generator = np.random.default_rng(4)
    return drawn(3, generator, 0.08), drawn(3, generator)


@pytest.fixture
def table(tmp_path: Path, bits: tuple[Bits, Bits]) -> StudyTable:
    plain = method(tmp_path, "plain", bits[1], [0, 1, 2], 800, 2400.0, 30.5)
    return StudyTable([plain, method(tmp_path, "ours", bits[0], [2, 0, 1], 800, 20800.0, 90.0)], baseline="plain")


def extended(values: np.ndarray, reach: float) -> np.ndarray:
    return np.array([*values, reach, -reach])


def test_a_row_is_the_mean_over_seeds_and_the_wider_of_two_intervals(
    table: StudyTable, bits: tuple[Bits, Bits]
) -> None:
    for title, suite in (("imagenet-val top1", "imagenet-val"), ("imagenet-r top1", "imagenet-r")):
        own, base = (100 * np.array(each[suite], float) for each in bits)
        values = own.mean(axis=1)
        assert table.value("ours", measure(table, title)) == pytest.approx(values.mean())
        assert table.deviation("ours", measure(table, title)) == pytest.approx(values.std(ddof=1))
        found = compared(table, "ours", title)
        assert found.delta == pytest.approx(own.mean() - base.mean())
        images = stats.ttest_1samp(extended(own.mean(axis=0) - base.mean(axis=0), 100), 0)
        by_seed = values[[1, 2, 0]]  # "ours" has its seeds in the order 2, 0, 1
        seeds = stats.ttest_rel(by_seed, base.mean(axis=1))
        assert found.images is not None
        assert found.seeds is not None
        assert found.claim is not None
        for each, expected in ((found.images, images), (found.seeds, seeds)):
            interval = expected.confidence_interval()
            assert (each.low, each.high, each.p) == pytest.approx((*interval, expected.pvalue))
        assert found.claim.p == max(found.images.p, found.seeds.p)
        assert found.claim.half_width == max(found.images.half_width, found.seeds.half_width)


def test_mean_robustness_takes_shared_images_together(tmp_path: Path) -> None:
    """FGSM and AutoAttack on the same images: their verdicts on one are one value, those of R another set."""
    generator, sizes = np.random.default_rng(8), {"imagenet-val": 80, "fgsm": 80, "autoattack": 80, "imagenet-r": 50}
    own, base = drawn(2, generator, 0.1, sizes), drawn(2, generator, 0.0, sizes)
    table = StudyTable([method(tmp_path, "a", own, [0, 1]), method(tmp_path, "b", base, [0, 1])], baseline="b")
    assert table.robust_names == "fgsm top1, imagenet-r top1, autoattack top1"
    found = compared(table, "a", "mean robustness")
    change = {suite: 100 * (np.mean(own[suite], axis=0) - np.mean(base[suite], axis=0)) for suite in sizes}
    shared, apart = (change["fgsm"] + change["autoattack"]) / 3, change["imagenet-r"] / 3
    expected = stats.ttest_ind(extended(shared, 200 / 3), -extended(apart, 100 / 3), equal_var=False)
    assert found.images is not None
    interval = expected.confidence_interval()
    assert (found.images.low, found.images.high) == pytest.approx(tuple(interval))
    assert found.images.p == pytest.approx(expected.pvalue)
    assert found.delta == pytest.approx(shared.mean() + apart.mean())
    assert not np.isclose(interval.high, stats.ttest_ind(change["fgsm"] / 3, -apart).confidence_interval().high)


def test_mean_robustness_of_named_suites(tmp_path: Path, bits: tuple[Bits, Bits]) -> None:
    methods = [method(tmp_path, "none", bits[0], [0, 1, 2])]
    whole, fgsm = StudyTable(methods), StudyTable(methods, robust_suites=["fgsm"])
    (column,) = fgsm.robust
    assert len(whole.robust) > 1
    assert column.suite == "fgsm"
    assert fgsm.columns == whole.columns
    assert fgsm.robustness is not None
    expected = 100 * np.mean([own.mean() for own in bits[0]["fgsm"]])
    assert fgsm.value("none", fgsm.robustness) == pytest.approx(expected)


def test_two_single_checkpoints_are_compared_as_in_the_other_tables(tmp_path: Path, bits: tuple[Bits, Bits]) -> None:
    one, other = method(tmp_path, "a", bits[0], [None]), method(tmp_path, "b", bits[1], [None])
    table = StudyTable([other, one], baseline="b")
    expected = difference(one.runs[0].records[1], other.runs[0].records[1])
    assert compared(table, "a", "fgsm top1").difference == expected
    assert compared(table, "a", "fgsm top1").seeds is None
    assert table.deviation("a", measure(table, "fgsm top1")) is None
    assert any("says nothing about other seeds" in note for note in table.sheet().notes)


def test_a_single_checkpoint_counts_as_given(tmp_path: Path, bits: tuple[Bits, Bits]) -> None:
    start = method(tmp_path, "start", {suite: own[:1] for suite, own in bits[1].items()}, [None])
    table = StudyTable([start, method(tmp_path, "a", bits[0], [0, 1, 2])], baseline="start")
    values = [100 * np.mean(own) for own in bits[0]["fgsm"]]
    expected = stats.ttest_1samp(values, 100 * np.mean(bits[1]["fgsm"][0]))
    found = compared(table, "a", "fgsm top1").seeds
    assert found is not None
    assert (found.p, found.df) == pytest.approx((expected.pvalue, 2))


def test_the_same_bits_twice_are_no_difference(tmp_path: Path, bits: tuple[Bits, Bits]) -> None:
    table = StudyTable([method(tmp_path, name, bits[0], [0, 1, 2]) for name in ("a", "b")], baseline="a")
    for found in table.comparisons("b"):
        assert found is not None
        assert found.claim is not None
        assert (found.delta, found.claim.p) == (0.0, 1.0)
        assert found.claim.low < 0 < found.claim.high, "not (0, 0): other images may tell them apart"
    assert not any(table.significant("b"))


def test_holm_is_over_the_columns_of_the_row(table: StudyTable) -> None:
    ps = [found.claim.p for found in table.comparisons("ours") if found is not None and found.claim is not None]
    lines = [line for line in parsed(table) if line["label"] == "ours" and line["seed"] == "mean" and line["p"]]
    assert [float(line["p"]) for line in lines] == ps
    assert [float(line["p_holm"]) for line in lines] == holm(ps)
    assert [line["verdict"] == "better" for line in lines] == [p <= 0.05 for p in holm(ps)]
    cells = dict(table.sheet().rows)["ours"]
    assert [cell.significance for cell in cells][: len(ps)] == [line["verdict"] for line in lines]
    assert {line["verdict"] for line in lines} == {"", "better"}, "the fixture has both"


def whole_studies(folder: Path, **changes: Any) -> StudyTable:
    def run(label: str, seed: int, share: float) -> SeedRun:
        records = [replace(record, **changes) for record in whole_set(folder, f"{label}{seed}", share, seed)]
        return SeedRun(seed, records)

    methods = [
        MethodRuns(label, [run(label, seed + first, share) for seed in (1, 2)])
        for label, first, share in (("base", 0, 0.5), ("new", 10, 0.8))
    ]
    return StudyTable(methods, baseline="base")


def test_mce_gets_its_interval_from_the_folders(tmp_path: Path) -> None:
    table = whole_studies(tmp_path)
    titles = [each.title for each in table.measures]
    assert "imagenet-c mce" in titles
    assert not any("corruption" in title for title in titles), "the folders are inside it"
    found = compared(table, "new", "imagenet-c mce")
    assert found.images is not None
    expected = np.zeros(40)
    for label, sign in (("new", 1), ("base", -1)):
        for run in table.methods[label].runs:
            for record in run.records:
                if "severity" in record.protocol:
                    weight = -100 / ALEXNET_ERROR[record.protocol["corruption"]] / len(ALEXNET_ERROR) / len(SEVERITIES)
                    expected += sign / 2 * weight * correctness_of(record)
    reach = 100 * np.mean([1 / error for error in ALEXNET_ERROR.values()])
    by_hand = stats.ttest_1samp(extended(expected, reach), 0)
    assert found.delta == pytest.approx(expected.mean())
    assert (found.images.low, found.images.high) == pytest.approx(tuple(by_hand.confidence_interval()))
    assert found.delta < 0
    assert measure(table, "imagenet-c mce").lower_is_better
    assert "100 - imagenet-c mce" in table.robust_names
    mean = compared(table, "new", "mean robustness")
    parts = [compared(table, "new", column.title).delta * (-1) ** column.lower_is_better for column in table.robust]
    assert mean.delta == pytest.approx(np.mean(parts))


def test_a_mean_of_other_folders_than_those_recorded_has_no_interval(tmp_path: Path) -> None:
    whole = whole_studies(tmp_path)
    (short, *others) = whole.methods["new"].runs
    fewer = [r for r in short.records if (r.protocol.get("corruption"), r.protocol.get("severity")) != ("fog", 3)]
    table = StudyTable([whole.methods["base"], MethodRuns("new", [replace(short, records=fewer), *others])], "base")
    assert compared(table, "new", "imagenet-c mce").claim is None
    assert compared(table, "new", "fgsm top1").claim is not None


def test_a_mean_over_a_part_of_the_folders_has_its_interval_too(tmp_path: Path) -> None:
    """As it stands in place of mCE for other classes than ImageNet's."""
    generator, runs, bits = np.random.default_rng(3), {}, {}
    for label, share in (("base", 0.5), ("new", 0.6)):
        bits[label] = generator.random((2, 50)) < share
        folders = [
            judged(tmp_path, f"{label}{name}", "imagenet-c", own, protocol={"corruption": name, "severity": 2})
            for name, own in zip(("fog", "snow"), bits[label], strict=True)
        ]
        mean = make(label, "imagenet-c", None, metric="top1_mean", value=100 * float(bits[label].mean()), n=100,
                    protocol={"folders": "fog snow 2 (2 of 75)"})  # fmt: skip
        runs[label] = SeedRun(0, [replace(record, label=label, outputs=10) for record in [*folders, mean]])
    table = StudyTable([MethodRuns(label, [run]) for label, run in runs.items()], baseline="base")
    assert [each.title for each in table.measures] == ["c top1_mean"]
    found = compared(table, "new", "c top1_mean").images
    expected = stats.ttest_1samp(extended(100 * (bits["new"].mean(axis=0) - bits["base"].mean(axis=0)), 100), 0)
    assert found is not None
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))


def test_what_was_not_kept_has_a_difference_alone(tmp_path: Path, bits: tuple[Bits, Bits]) -> None:
    base = method(tmp_path, "plain", bits[1], [0, 1])
    own = method(tmp_path, "ours", bits[0], [0, 1])
    lost = replace(own.runs[1], records=[replace(own.runs[1].records[0], right=None), *own.runs[1].records[1:]])
    table = StudyTable([base, MethodRuns("ours", [own.runs[0], lost])], baseline="plain")
    found = compared(table, "ours", "imagenet-val top1")
    assert found == Comparison(found.delta)
    assert compared(table, "ours", "fgsm top1").claim is not None
    assert "imagenet-val top1, ours: no interval and no p, as not all runs' verdicts" in table.to_markdown()


def test_other_images_are_not_compared_and_it_is_said(tmp_path: Path, bits: tuple[Bits, Bits]) -> None:
    base = method(tmp_path, "plain", bits[1], [0, 1])
    few = {suite: [own[:60] for own in each] if suite == "fgsm" else each for suite, each in bits[0].items()}
    table = StudyTable([base, method(tmp_path, "ours", few, [0, 1])], baseline="plain")
    for title in ("fgsm top1", "mean robustness"):
        assert table.comparison("ours", measure(table, title)) is None
    assert compared(table, "ours", "imagenet-r top1").claim is not None
    text = table.to_text()
    reason = "n differs: 60 (ours seed 0, ours seed 1); 120 (plain seed 0, plain seed 1)."
    assert f"fgsm top1, ours: not compared with plain: {reason}" in text
    assert "mean robustness, ours: not compared with plain: fgsm top1: n differs" in text


def test_other_labels_behind_equal_names_are_not_compared(tmp_path: Path, bits: tuple[Bits, Bits]) -> None:
    base, own = (method(tmp_path, name, each, [0]) for name, each in zip("ab", bits, strict=True))
    turned = SeedRun(0, [replace(record, task="t" * 64) for record in own.runs[0].records])
    known = SeedRun(0, [replace(record, task="u" * 64) for record in base.runs[0].records])
    table = StudyTable([MethodRuns("a", [known]), MethodRuns("b", [turned])], baseline="a")
    assert table.comparisons("b") == [None] * 4
    assert "not compared with a: labels or files differ behind equal names" in table.to_text()


def test_a_run_that_lacks_a_column_is_left_out_of_it(tmp_path: Path, bits: tuple[Bits, Bits]) -> None:
    base, own = method(tmp_path, "plain", bits[1], [0, 1, 2]), method(tmp_path, "ours", bits[0], [0, 1, 2])
    short = SeedRun(2, [record for record in own.runs[2].records if record.suite != "imagenet-r"])
    table = StudyTable([base, MethodRuns("ours", [*own.runs[:2], short])], baseline="plain")
    assert list(table.values("ours", measure(table, "imagenet-r top1"))) == ["seed 0", "seed 1"]
    found = compared(table, "ours", "imagenet-r top1").seeds
    welch = stats.ttest_ind(
        *([100 * np.mean(own) for own in each] for each in (bits[0]["imagenet-r"][:2], bits[1]["imagenet-r"])),
        equal_var=False,
    )
    assert found is not None
    assert found.p == pytest.approx(welch.pvalue)
    text = table.to_text()
    assert "2 of 3 seeds" in text
    assert "ours: without some of its runs in imagenet-r top1 (seed 2); mean robustness (seed 2)." in text


def parsed(table: StudyTable) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table.to_csv())))


def test_the_csv_has_each_run_each_mean_and_the_costs(table: StudyTable, bits: tuple[Bits, Bits]) -> None:
    lines = parsed(table)
    fgsm = [line for line in lines if (line["label"], line["column"]) == ("ours", "fgsm top1")]
    assert [line["seed"] for line in fgsm] == ["2", "0", "1", "mean"]
    assert [float(line["value"]) for line in fgsm[:3]] == pytest.approx([100 * own.mean() for own in bits[0]["fgsm"]])
    assert fgsm[0]["n"] == "120"
    assert float(fgsm[3]["smallest_effect"]) > (float(fgsm[3]["delta_high"]) - float(fgsm[3]["delta_low"])) / 2
    costs = {line["column"]: line["value"] for line in lines if line["label"] == "ours" and line["seed"] == "mean"}
    assert [float(costs[name]) for name in ("updates", "forward_equivalents", "seconds")] == [800, 20800, 90]


def test_cost_stands_beside_gain_and_the_notes_tell_the_protocol(table: StudyTable) -> None:
    text = table.to_markdown()
    heading, _, base, own = text.splitlines()[:4]
    assert heading.endswith("mean robustness, %, of 2 columns | updates | forward-equivalents, per image | seconds |")
    assert "imagenet-r top1, %, n=70" in heading
    assert base.startswith("| plain (baseline) |")
    assert base.endswith("| 800 | 2400 | 30 |")
    assert own.endswith("| 800 | 20800 | 90 |")
    assert "Smallest true difference that would have been found with a probability of 0.8" in text
    assert "- imagenet-val top1: resize=256, crop=224, batch_size=128" in text
    assert "3 runs, trained with seed 0, 1, 2; vit_tiny" in text
    assert "on NVIDIA H200, measured 2026-01-31" in text
    finished = StudyTable([MethodRuns("x", [SeedRun(None, [make("x")])])])
    assert "updates" not in finished.to_markdown()
    assert "difference" not in finished.to_markdown()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: StudyTable([]), "expected methods of different names, found none"),
        (lambda: SeedRun(0, []), "expected records of one checkpoint, found those of 0"),
        (lambda: SeedRun(0, [make("a"), make("b")]), "expected records of one checkpoint, found those of 2"),
        (lambda: SeedRun(0, [make()], updates=-1), "expected updates >= 0, found -1"),
        (lambda: SeedRun(0, [make()], seconds=float("nan")), "expected seconds >= 0, found nan"),
        (lambda: MethodRuns("a", []), "found no runs"),
        (lambda: MethodRuns("a", [SeedRun(1, [make()])] * 2), "each of another seed, found seed 1, seed 1"),
        (lambda: MethodRuns(" ", [SeedRun(1, [make()])]), "expected a name"),
        (lambda: StudyTable([MethodRuns("a", [SeedRun(0, [make()])])] * 2), "different names, found a, a"),
        (lambda: StudyTable([MethodRuns("a", [SeedRun(0, [make()])])], baseline="b"), "unknown baseline"),
        (lambda: StudyTable([MethodRuns("a", [SeedRun(0, [make()])])], confidence=95), "0 < confidence < 1, found 95"),
    ],
)
def test_a_wrong_study_is_refused(call: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        call()
