"""Rows and columns of records, their names and their order."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.records import make, parsed

from ns_easyrobust.errors import OptionError
from ns_easyrobust.evaluation.records import Record
from ns_easyrobust.report.table import ResultsTable


def test_variants_of_a_protocol_are_columns_named_by_what_differs() -> None:
    def fgsm(**protocol: Any) -> Record:
        return make("a", "fgsm", protocol={"resize": 256, **protocol})

    records = [fgsm(epsilon=1 / 255), fgsm(epsilon=4 / 255), fgsm(), make("a")]
    assert [column.title for column in ResultsTable(records).columns] == [
        "imagenet-val top1",
        "fgsm top1 (epsilon=1/255)",
        "fgsm top1 (epsilon=4/255)",
        "fgsm top1 (epsilon=not given)",
    ]
    close = ResultsTable([fgsm(epsilon=0.3), fgsm(epsilon=0.3 + 1e-12)])
    assert len({column.title for column in close.columns}) == 2
    models = [
        fgsm(mean=[0.5, 0.5, 0.5]),
        make("b", "fgsm", protocol={"resize": 256, "mean": [0.4, 0.4, 0.4]}),
    ]
    assert len(ResultsTable(models).columns) == 1, "a model's normalisation is no protocol of its own"


def test_newest_measurement_is_shown() -> None:
    old, new = make(correct=10, created="2026-01-01T00:00:00+00:00"), make(correct=20)
    assert [row["correct"] for row in parsed(ResultsTable([new, old]))] == ["20"]


def test_checkpoints_of_one_label_are_rows_of_their_own() -> None:
    hashes = [{"checkpoint": "best.pth", "checkpoint_sha256": letter * 64} for letter in "ab"]
    table = ResultsTable([make(**hashes[0]), make("DAT", "fgsm", **hashes[1]), make("other")])
    assert table.rows == ("DAT [sha256 aaaaaaaa]", "DAT [sha256 bbbbbbbb]", "other")
    assert ResultsTable([make(), make(ema=True)]).rows == ("DAT [not EMA]", "DAT [EMA]")
    moved = [make(**hashes[0]), make("DAT", "fgsm", checkpoint="moved.pth", checkpoint_sha256="a" * 64)]
    assert ResultsTable(moved).rows == ("DAT",)
    with pytest.raises(OptionError, match="unknown baseline"):
        ResultsTable([make(**hashes[0]), make(**hashes[1])], baseline="DAT")


def test_rows_and_columns_come_as_first_seen_or_as_given() -> None:
    records = [make("b", "z"), make("a", "y"), make("c", "z")]
    table = ResultsTable(records)
    assert table.rows == ("b", "a", "c")
    assert [column.suite for column in table.columns] == ["z", "y"]
    chosen = ResultsTable(records, labels=["c", "b"])
    assert chosen.rows == ("c", "b")
    assert [column.suite for column in chosen.columns] == ["z"]
    with pytest.raises(OptionError, match="unknown label: expected one of 'b', 'a', 'c', found 'd'"):
        ResultsTable(records, labels=["a", "d"])


def test_columns_stand_as_in_the_paper_then_as_first_seen() -> None:
    suites = ["pgd", "imagenet-stylized", "objectnet", "imagenet-sketch", "imagenet-r", "imagenet-v2", "imagenet-c",
              "imagenet-a", "damagenet", "fgsm", "cw", "patchfool", "imagenet-val"]  # fmt: skip
    records = [make("a", suite) for suite in suites]
    wide, narrow = make("a", "fgsm", protocol={"epsilon": 0.5}), make("a", "fgsm", protocol={"epsilon": 0.25})
    columns = ResultsTable([*records, wide, narrow]).columns
    others = ["pgd", "objectnet"]
    paper = [suite for suite in reversed(suites) if suite not in others]
    assert list(dict.fromkeys(column.suite for column in columns)) == [*paper, *others]
    assert [c.protocol.get("epsilon") for c in columns if c.suite == "fgsm"] == [None, 0.5, 0.25]


def test_no_records_make_no_table() -> None:
    with pytest.raises(OptionError, match="expected at least one record"):
        ResultsTable([])
