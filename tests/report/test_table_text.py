"""Tables of records against scipy, csv and counting by hand."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.records import make, mce, parsed
from scipy.stats import binomtest

from ns_easyrobust.errors import OptionError
from ns_easyrobust.evaluation.per_image import images_digest, save_correctness
from ns_easyrobust.evaluation.records import Record
from ns_easyrobust.report.table import ResultsTable


def markdown_rows(text: str) -> list[list[str]]:
    """The cells of a Markdown table, as a renderer splits and unescapes them."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    cells = [re.split(r"(?<!\\)\|", row)[1:-1] for row in rows]
    return [[re.sub(r"\\([^\w\s])", r"\1", cell.strip()).replace("\\_", "_") for cell in row] for row in cells]


def test_csv_gives_the_records_back() -> None:
    records = [make('a, "b" | c', correct=7), make("b", correct=93), make("b", "fgsm", 12), mce("b", 61.25)]
    rows = parsed(ResultsTable(records))
    assert [(row["label"], row["suite"], row["metric"]) for row in rows] == [
        (record.label, record.suite, record.metric) for record in records
    ]
    for row, record in zip(rows, records, strict=True):
        assert float(row["value"]) == record.value
        assert json.loads(row["protocol"]) == record.protocol
        assert (int(row["n"]), row["unit"]) == (record.n, record.unit)
        if record.correct is None:
            assert (row["correct"], row["low"], row["high"]) == ("", "", "")
        else:
            ends = binomtest(record.correct, record.n).proportion_ci(0.95, method="wilson")
            assert [float(row["low"]), float(row["high"])] == pytest.approx([100 * ends.low, 100 * ends.high])
            assert int(row["correct"]) == record.correct


def test_text_is_aligned_and_says_what_was_not_run() -> None:
    text = ResultsTable(
        [make("short", correct=5), make("a longer label", correct=100), make("short", "fgsm")]
    ).to_text()
    lines = text.splitlines()
    head, count, rule, first, second = lines[:5]
    assert "imagenet-val top1" in head
    assert "fgsm top1" in head
    assert count.split() == ["label", "%,", "n=100", "%,", "n=100"]
    assert first.split() == ["short", "5.00", "[2.15,", "11.18]", "60.00", "[50.20,", "69.06]"]
    assert second.split() == ["a", "longer", "label", "100.00", "[96.30,", "100.00]", "not", "run"]
    assert len(first) == len(second) == len(rule)
    assert first.index(".") == second.index(".")
    assert first.index("]") == second.index("]")


def test_every_cell_has_a_value_or_says_not_run() -> None:
    table = ResultsTable([make("a"), make("b", "fgsm"), mce("c", 50)])
    cells = [row[1:] for row in markdown_rows(table.to_markdown())[2:]]
    interval = "60.00 [50.20, 69.06]"
    assert cells == [
        [interval, "not run", "not run"],
        ["not run", interval, "not run"],
        ["not run", "not run", "50.00"],
    ]


def test_markdown_escapes_what_would_break_it() -> None:
    labels = ["a | b", "*bold* `code` <b>", "_x_ [link](y) vit_base_16", "back\\slash | #1"]
    text = ResultsTable([make(label) for label in labels]).to_markdown()
    rows = markdown_rows(text)
    assert {len(row) for row in rows} == {2}
    assert [row[0] for row in rows[2:]] == labels
    assert "vit_base_16" in text
    assert not re.search(r"(?<!\\)[*`<>]", text)


def test_best_is_marked_only_when_asked_and_by_its_direction() -> None:
    records = [
        make("a", correct=60),
        make("b", correct=70),
        make("c", correct=70),
        mce("a", 50.0),
        mce("b", 60.0),
    ]
    table = ResultsTable([*records, make("a", "cw")])
    assert "*" not in table.to_text()
    assert "**" not in table.to_markdown()
    assert re.findall(r"(\S+)\*(?=[ \n])", table.to_text(best=True).split("[low, high]")[0]) == [
        "50.00",
        "70.00",
        "70.00",
    ]
    assert re.findall(r"\*\*(\S+)\*\*", table.to_markdown(best=True)) == ["50.00", "70.00", "70.00"]


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"n": 50}, "n differs: 100 (a, c); 50 (b); not comparable image by image"),
        (
            {"images": "f" * 64},
            f"the images differ: set {'e' * 12} (a, c); set {'f' * 12} (b); not comparable",
        ),
    ],
)
def test_rows_that_saw_other_images_are_flagged(changes: dict[str, Any], note: str) -> None:
    def records(**changes: Any) -> list[Record]:
        same = {"images": "e" * 64}
        return [make("a", **same), make("b", correct=40, **{**same, **changes}), make("c", **same)]

    flagged, plain = ResultsTable([*records(**changes), make("a", "fgsm")]), ResultsTable(records())
    for text in (flagged.to_text(best=True), flagged.to_markdown(best=True)):
        assert f"(1) imagenet-val top1: {note}" in text
        assert "(2)" not in text
    assert re.search(r"(n=100|n differs) \(1\)", flagged.to_text())
    assert flagged.best(flagged.columns[0]) == set(), "no best among numbers of other images"
    assert ("n=50" in flagged.to_text()) is ("n" in changes)
    assert "(1)" not in plain.to_text()
    assert plain.best(plain.columns[0]) == {"a", "c"}


def test_batch_size_is_a_note_and_no_column() -> None:
    other = {"resize": 256, "crop": 224, "batch_size": 64}
    table = ResultsTable([make("a"), make("b", protocol=other)])
    assert [column.title for column in table.columns] == ["imagenet-val top1"]
    assert "(1) imagenet-val top1: batch_size differs: 128 (a); 64 (b)." in table.to_text()
    newer = make("a", correct=61, protocol=other, created="2026-02-01T00:00:00+00:00")
    for records in ([make("a"), newer], [newer, make("a")]):
        assert [row["value"] for row in parsed(ResultsTable(records))] == ["61.0"]


def test_a_metric_of_many_variants_is_left_to_the_csv() -> None:
    corruptions = [make("a", "imagenet-c", protocol={"severity": severity}) for severity in range(75)]
    table = ResultsTable([make("a"), *corruptions])
    assert len(parsed(table)) == 76
    assert [column.suite for column in table.shown] == ["imagenet-val"]
    assert "imagenet-c top1: 75 variants, each in the CSV." in table.to_text()
    assert len(ResultsTable(corruptions).shown) == 75, "but never an empty table"


def test_baseline_gives_differences_in_points() -> None:
    records = [
        make("base", correct=50),
        make("x", correct=47),
        make("y", "fgsm"),
        mce("base", 60),
        mce("x", 58.5),
    ]
    table = ResultsTable(records, baseline="base")
    assert [(row["label"], row["suite"], row["delta"]) for row in parsed(table)] == [
        ("base", "imagenet-val", ""),
        ("base", "imagenet-c", ""),
        ("x", "imagenet-val", "-3.0"),
        ("x", "imagenet-c", "-1.5"),
        ("y", "fgsm", ""),
    ]
    rows = {row[0]: row[1:] for row in markdown_rows(table.to_markdown())[2:]}
    assert rows["x"][0].startswith("47.00 (-3.00) [")
    assert rows["base (baseline)"][0].startswith("50.00 [")
    assert "difference to base, in points" in table.to_text()
    with pytest.raises(OptionError, match="unknown baseline: expected one of 'base', 'x', 'y', found 'z'"):
        ResultsTable(records, baseline="z")


def with_bits(folder: Path, label: str, right: list[bool], images: str = "") -> Record:
    paths = [f"{images}{index}.png" for index in range(len(right))]
    name = save_correctness(folder, label, paths, np.array(right))
    record = make(label, correct=sum(right), n=len(right), images=images_digest(paths), right=name)
    return replace(record, folder=folder)


def test_paired_differences_stand_in_every_form(tmp_path: Path) -> None:
    base = with_bits(tmp_path, "base", [True] * 20 + [False] * 30)
    mine = with_bits(tmp_path, "mine", [False] * 2 + [True] * 33 + [False] * 15)
    moved = with_bits(tmp_path, "moved", [True] * 35 + [False] * 15, "elsewhere/")
    table = ResultsTable([base, mine, moved], baseline="base")
    p = binomtest(2, 17).pvalue
    rows = {row["label"]: row for row in parsed(table)}
    assert float(rows["mine"]["delta"]) == pytest.approx(26)
    assert float(rows["mine"]["mcnemar_p"]) == pytest.approx(p)
    low, high = float(rows["mine"]["delta_low"]), float(rows["mine"]["delta_high"])
    error = 100 * ((17 / 50 - 0.26**2) / 50) ** 0.5
    assert (low, high) == pytest.approx((26 - 1.96 * error, 26 + 1.96 * error), abs=0.15 * error)
    assert [rows["moved"][name] for name in ("delta_low", "delta_high", "mcnemar_p")] == [""] * 3
    assert [rows["base"][name] for name in ("delta", "delta_low", "mcnemar_p")] == [""] * 3
    written = f"66.00 (+26.00 [{low:.2f}, {high:.2f}], p=0.0023)"
    assert p == pytest.approx(0.0023, abs=5e-5)
    cells = {row[0]: row[1] for row in markdown_rows(table.to_markdown())[2:]}
    assert cells["mine"].startswith(written + " [")
    assert cells["moved"].startswith("70.00 (+30.00) [")
    assert re.search(re.escape(written), re.sub(" +", " ", table.to_text()))
    assert "McNemar's exact p" in table.to_text()
    assert "McNemar" not in ResultsTable([base, moved], baseline="base").to_text()
    assert "mcnemar_p" not in ResultsTable([base, mine]).to_csv()


def test_tiny_p_values_need_no_zeros(tmp_path: Path) -> None:
    base, mine = with_bits(tmp_path, "base", [False] * 40), with_bits(tmp_path, "mine", [True] * 40)
    table = ResultsTable([base, mine], baseline="base")
    low = 100 - 2**0.5 * 100 * 3.8415 / (40 + 3.8415)  # Wilson's interval of none of 40, up to z^2 / (n + z^2)
    assert f"(+100.00 [{low:.2f}, 100.00], p<0.001)" in table.to_text()
    assert r"p\<0.001" in table.to_markdown()


def test_what_stands_below_the_table_lets_one_measure_again() -> None:
    first = make(
        "a",
        "fgsm",
        checkpoint="runs/a.pth",
        checkpoint_sha256="0123456789abcdef" * 4,
        weights="state_dict_ema",
        ema=True,
        seed=7,
        protocol={
            "resize": 256,
            "epsilon": 2 / 255,
            "mean": [0.5, 0.25, 0.5],
            "batch_size": 16,
            "masked": False,
        },
    )
    table = ResultsTable([first, make("b", versions={"torch": "1.0"}, machine="", created="2026-02-03T00:00:00+00:00")])
    for text in (table.to_text(), table.to_markdown().replace("\\", "")):
        assert "fgsm top1: resize=256, epsilon=2/255, masked=no, batch_size=16" in text
        assert (
            "a: vit_tiny, runs/a.pth (sha256 0123456789ab), EMA weights state_dict_ema, "
            "mean (0.5, 0.25, 0.5), seed 7, on NVIDIA H200, measured 2026-01-31"
        ) in text
        assert (
            "b: vit_tiny, no checkpoint file, seed none drawn, on a machine not recorded, measured 2026-02-03" in text
        )
        assert "torch=2.11.0 (a)" in text
        assert "torch=1.0 (b)" in text


@pytest.mark.parametrize("width", [40, 80, 120])
def test_text_folds_into_groups_that_fit(width: int) -> None:
    suites = [f"suite-{index}" for index in range(9)]
    text = ResultsTable([make("label", suite) for suite in suites]).to_text(width=width)
    assert max(map(len, text.splitlines())) <= width
    assert re.findall(r"suite-\d(?= top1 )|suite-\d(?= top1$)", text.split("[low")[0], re.MULTILINE) == suites
    assert text.split("[low")[0].count("60.00 [50.20, 69.06]") == 9


def test_long_names_are_folded_and_wide_ones_aligned() -> None:
    names = ["runs/" + 40 * "deep/" + "last.pth.tar", "日本語のモデル", "e\u0301" * 9, "b"]
    text = ResultsTable([make(name) for name in names]).to_text(width=80).split("[low")[0]
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "".join(line[:40].strip() for line in lines if line[:40].strip("-e")).count("deep/") == 40
    starts = [line.index("60.00") for line in lines if "60.00" in line]
    # Counted by hand: seven letters of two columns each, nine accents of none.
    assert [start - starts[0] for start in starts] == [0, -7, 9, 0]
