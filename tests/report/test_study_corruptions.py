"""What a study's methods gain by corruption: from the bits by another way, of whole sets and of parts."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.records import judged, make
from scipy import stats

from ns_easyrobust.report.study_corruptions import corruptions_csv, corruptions_markdown
from ns_easyrobust.report.study_primary import PrimaryEndpoint
from ns_easyrobust.report.study_runs import MethodRuns, SeedRun
from ns_easyrobust.report.study_table import StudyTable

GROUPS = {  # Hendrycks and Dietterich 2019, arXiv:1903.12261
    "noise": ["gaussian_noise", "shot_noise", "impulse_noise"],
    "blur": ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur"],
    "weather": ["snow", "frost", "fog", "brightness"],
    "digital": ["contrast", "elastic_transform", "pixelate", "jpeg_compression"],
}
OTHERS = [name for group, names in GROUPS.items() if group != "noise" for name in names]
ALL = GROUPS["noise"] + OTHERS
SEVERITIES = (2, 4)
Bits = Mapping[str, Mapping[str, np.ndarray]]  # (severities, seeds, images) by method and corruption


def drawn(names: Sequence[str] = ALL) -> Bits:
    """ "ours" is better by much under noise, and worse under other corruptions."""
    generator = np.random.default_rng(8)
    ease = generator.random(60)
    shifts = {"none": (0.0, 0.0), "ours": (0.3, -0.06)}
    return {
        label: {
            name: ease + 0.2 * generator.standard_normal((2, 3, 60)) < 0.5 + shift[name not in GROUPS["noise"]]
            for name in names
        }
        for label, shift in shifts.items()
    }


def study(folder: Path, bits: Bits, baseline: str | None = "none") -> StudyTable:
    methods = []
    for label, own in bits.items():
        runs = []
        for seed in range(3):
            name = f"{label}{seed}"
            records = [
                judged(folder, f"{name}{corruption}{severity}", "imagenet-c", right[index, seed],
                       protocol={"corruption": corruption, "severity": severity, "crop": 32})
                for corruption, right in own.items()
                for index, severity in enumerate(SEVERITIES)
            ]  # fmt: skip
            clean = judged(folder, name, "imagenet-val", np.arange(60) < 50 + seed)
            runs.append(SeedRun(seed, [replace(record, label=name) for record in [clean, *records]]))
        methods.append(MethodRuns(label, runs))
    return StudyTable(methods, baseline)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bits, StudyTable]:
    bits = drawn()
    return bits, study(tmp_path_factory.mktemp("whole"), bits)


def by_hand(bits: Bits, label: str, names: Sequence[str]) -> tuple[float, float, float, float]:
    """(difference, low, high, p) to none of the mean over these corruptions: what is wider, over images or seeds."""
    own, base = (100 * np.mean([bits[each][name] for name in names], axis=(0, 1)) for each in (label, "none"))
    change = own.mean(axis=0) - base.mean(axis=0)
    images = stats.ttest_1samp([*change, 100, -100], 0)
    seeds = stats.ttest_rel(own.mean(axis=1), base.mean(axis=1))
    ends = max((each.confidence_interval() for each in (images, seeds)), key=lambda each: each.high - each.low)
    return float(change.mean()), ends.low, ends.high, max(images.pvalue, seeds.pvalue)


def rows_of(table: StudyTable) -> dict[tuple[str, str], dict[str, str]]:
    return {(row["name"], row["method"]): row for row in csv.DictReader(io.StringIO(corruptions_csv(table)))}


def cells_of(text: str, start: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith(start)
    ]


def test_groups_and_corruptions_from_the_bits(whole: tuple[Bits, StudyTable]) -> None:
    bits, table = whole
    rows = rows_of(table)
    parts = {**GROUPS, "not-noise": OTHERS, **{name: [name] for name in ALL}}
    assert list(rows) == [(name, label) for label in bits for name in parts]
    for (name, label), row in rows.items():
        expected = 100 * np.mean([bits[label][each] for each in parts[name]])
        assert float(row["value"]) == pytest.approx(expected)
        assert (row["folders"], row["runs"]) == (str(2 * len(parts[name])), "3")
        if label == "none":
            assert row["delta"] == ""
            continue
        found = [float(row[field]) for field in ("delta", "low", "high", "p")]
        assert found == pytest.approx(by_hand(bits, label, parts[name]))
    assert float(rows["noise", "ours"]["low"]) > 0 > float(rows["not-noise", "ours"]["high"]), "which a mean hides"


def test_the_section_has_both_tables_with_methods_as_rows(whole: tuple[Bits, StudyTable]) -> None:
    bits, table = whole
    text = corruptions_markdown(table)
    assert text.startswith("## By corruption\n")
    assert "Severity 2, 4." in text
    groups, single = cells_of(text, "| method")
    assert groups[1:] == [
        "noise (of 3)", "blur (of 4)", "weather (of 4)", "digital (of 4)", "all but noise (of 12)",
    ]  # fmt: skip
    assert single[1:] == [name.replace("_", " ") for name in ALL]
    ours = cells_of(text, "| ours")
    for cell, names in zip(ours[0][1:], [*GROUPS.values(), OTHERS], strict=True):
        delta, low, high, _ = by_hand(bits, "ours", names)
        assert cell == f"{delta:+.2f} [{low:.2f}, {high:.2f}]"
    assert ours[1][1:] == [f"{by_hand(bits, 'ours', [name])[0]:+.1f}" for name in ALL]
    base = cells_of(text, "| none (baseline)")
    assert base[1][1:] == [f"{100 * bits['none'][name].mean():.1f}" for name in ALL]
    assert "+" not in "".join(base[0][1:])


def test_a_part_of_the_corruptions_and_no_baseline(tmp_path: Path) -> None:
    bits = drawn(["fog", "shot_noise", "snow"])
    text = corruptions_markdown(study(tmp_path, bits, baseline=None))
    assert cells_of(text, "| method") == [
        ["method", "noise (of 1)", "weather (of 2)", "all but noise (of 2)"],
        ["method", "shot noise", "fog", "snow"],
    ]
    values = cells_of(text, "| ours")[0][1:]
    expected = [[bits["ours"][name] for name in names] for names in (["shot_noise"], ["fog", "snow"], ["fog", "snow"])]
    assert values == [f"{100 * np.mean(own):.2f}" for own in expected]
    assert "difference" not in text


def test_runs_without_a_folder_and_other_settings_are_told(tmp_path: Path) -> None:
    table = study(tmp_path, drawn(["fog", "snow"]))
    (first, *rest), base = table.methods["ours"].runs, table.methods["none"]
    short = replace(first, records=[each for each in first.records if each.protocol.get("corruption") != "fog"])
    other = [
        make("other", "imagenet-c", 30, n=60, protocol={"corruption": "fog", "severity": 5, "crop": 64}),
        make("other", "imagenet-val", 30, n=60),
    ]
    methods = [base, MethodRuns("ours", [short, *rest]), MethodRuns("other", [SeedRun(None, other)])]
    mixed = StudyTable(methods, "none")
    text = corruptions_markdown(mixed)
    (weather, fog), (there, *_) = (row[1:] for row in cells_of(text, "| ours")[:2]), cells_of(text, "| other")[2:]
    assert weather[0].endswith("(2 of 3 seeds)")
    assert fog[0].endswith("(2 of 3 seeds)")
    assert "seeds" not in fog[1], "of snow all are there"
    assert "Severity 5. crop=64." in text, "a table of its own, as these numbers are of other images"
    assert there[1] == "not compared"
    few = [replace(each, protocol={**each.protocol, "severity": 5}) for each in first.records[-1:]]
    part = StudyTable([base, MethodRuns("few", [SeedRun(0, [first.records[0], *few])])], "none")
    assert cells_of(corruptions_markdown(part), "| few")[0][1:] == ["not all folders"] * 2


def test_without_folders_there_is_no_section() -> None:
    table = StudyTable([MethodRuns("a", [SeedRun(0, [make("a")])])])
    assert corruptions_markdown(table) == ""
    assert rows_of(table) == {}


def test_a_group_counts_as_one_column_of_an_endpoint(whole: tuple[Bits, StudyTable]) -> None:
    bits, table = whole
    found = PrimaryEndpoint(table, ["ours"], ["none"], ["val", "c:noise", "c:not-noise"])
    (pair,) = found.pairs
    parts = [np.mean([bits["ours"][n] for n in names], axis=(0, 1)) for names in (GROUPS["noise"], OTHERS)]
    base = [np.mean([bits["none"][n] for n in names], axis=(0, 1)) for names in (GROUPS["noise"], OTHERS)]
    change = 100 / 3 * sum(own - other for own, other in zip(parts, base, strict=True))  # clean: the same in both
    assert pair.found is not None
    assert pair.found.images is not None
    assert pair.found.seeds is not None
    assert pair.found.delta == pytest.approx(change.mean())
    images, seeds = stats.ttest_1samp([*change.mean(axis=0), 100, -100], 0), stats.ttest_1samp(change.mean(axis=1), 0)
    assert (pair.found.images.p, pair.found.seeds.p) == pytest.approx((images.pvalue, seeds.pvalue))
    assert "val top1, c:noise (mean of its 6 folders), c:not-noise (mean of its 24 folders)" in found.to_markdown()
    alone = PrimaryEndpoint(table, ["ours"], ["none"], ["c:blur"]).pairs[0]
    assert alone.found is not None
    assert alone.found.delta == pytest.approx(by_hand(bits, "ours", GROUPS["blur"])[0])


def test_a_group_that_was_not_measured_is_no_endpoint(tmp_path: Path) -> None:
    found = PrimaryEndpoint(study(tmp_path, drawn(["fog"])), ["ours"], ["none"], ["val", "c:noise"])
    assert (found.measure, found.pairs[0].verdict) == (None, "not compared")
