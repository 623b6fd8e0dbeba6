"""Published numbers against the tables they are copied from, typed a second time here."""

from __future__ import annotations

import pytest

from ns_easyrobust.report.published import (
    COLUMNS,
    EASYROBUST,
    ROWS,
    TABLE_2,
    TABLE_3,
    TABLE_4,
    Published,
    average,
    row_notes,
)

# Clean PatchFool CW FGSM DamageNet A C V2 R Sketch Stylized Average, as printed in arXiv:2403.10476.
PRINTED = """
ViT-S	74.19	0.68	4.63	13.79	29.82	16.35	71.13	62.51	34.67	14.26	12.15	26.54
ViT-S + NS	77.47	19.10	9.37	25.95	32.43	20.77	55.98	66.5	41.61	25.67	16.02	34.45
ViT-B	77.68	15.92	12.54	25.65	38.69	23.88	62.16	66.05	41.63	16.31	17.97	34.01
ViT-B + MixUp	77.80	-	-	-	-	12.20	61.80	-	34.90	-	-	-
ViT-B + RandAugment	79.10	-	-	-	-	-	43.60	-	23.00	-	-	-
ViT-B + PR	78.20	-	-	-	-	-	47.60	-	21.40	-	-	-
ViT-B + RandAugment + PR	79.30	-	-	-	-	-	43.60	-	23.80	-	-	-
ViT-B + AugMix	78.80	-	-	-	-	-	42.20	-	24.90	-	-	-
ViT-B + AugMix + PR	79.30	-	-	-	-	-	41.60	-	25.70	-	-	-
ViT-B + SAM	79.90	-	-	-	-	-	43.50	67.50	26.40	-	-	-
RobustViT-B	80.40	-	-	-	-	23.00	-	69.80	35.40	35.80	-	-
ViT-B + NS	81.42	23.52	14.23	36.50	40.44	24.55	47.82	70.25	44.85	26.35	19.02	39.39
ViT-B + DAT	81.47	22.64	23.59	48.80	43.31	23.83	45.95	70.24	48.68	36.94	23.99	43.41
ViT-B + DAT + NS	81.33	24.14	23.61	48.98	43.67	24.22	45.91	70.14	48.48	37.25	23.87	43.61
"""
# clean FGSM DamageNet A C V2 R Sketch Stylized
PRINTED_3 = """
74.19	13.79	29.82	16.35	71.13	62.51	34.67	14.26	12.15
70.53	39.37	49.91	9.37	81.74	58.88	39.04	21.36	10.76
74.02	38.85	36.28	16.53	73.11	63.37	40.86	26.43	13.22
77.47	25.95	32.43	20.77	55.98	66.5	41.61	25.67	16.02
"""
# FGSM DamageNet A C V2 R Sketch Stylized; eps 0.01, 0.03, 0.1, each nullspace, then random
PRINTED_4 = """
26.04	33.65	20.45	56.26	66.47	41.4	23.34	15.85
21.54	28.81	17.07	55.13	61.98	34.97	14.43	12.14
25.95	32.43	20.77	55.98	66.5	41.61	25.67	16.02
23.18	29.61	16.91	54.68	62.2	35.05	14.77	12.34
25.38	33.09	20.16	56.41	66.47	40.42	22.66	15.78
23.93	30.56	16.47	54.52	62.48	34.66	14.99	12.35
"""


def cells(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.strip().splitlines()]


def test_table_2_is_the_printed_one() -> None:
    found = [[row.label, *(row.columns.get(name) for name in COLUMNS), row.average] for row in TABLE_2]
    assert found == [[label, *(None if x == "-" else float(x) for x in rest)] for label, *rest in cells(PRINTED)]


def test_tables_3_and_4_are_the_printed_ones() -> None:
    names = ("val", "fgsm", "damagenet", "a", "c", "v2", "r", "sketch", "stylized")
    for table, printed, columns in ((TABLE_3, PRINTED_3, names), (TABLE_4, PRINTED_4, names[1:])):
        assert [row.columns for row in table] == [
            dict(zip(columns, map(float, line), strict=True)) for line in cells(printed)
        ]
    assert [("nullspace" in row.label, row.label.split("=")[1]) for row in TABLE_4] == [
        (kind == "nullspace", eps) for eps in ("0.01", "0.03", "0.1") for kind in ("nullspace", "random")
    ]


def test_easyrobusts_rows_are_its_readmes() -> None:
    ours, official = EASYROBUST
    assert ours.columns == {
        "val": 81.38, "v2": 69.99, "c": 45.59, "r": 49.64, "a": 24.61, "sketch": 36.46, "stylized": 24.84,
    }  # fmt: skip
    assert official.columns == {
        "val": 81.46, "v2": 70.83, "c": 44.65, "r": 47.34, "a": 30.15, "sketch": 34.77, "stylized": 23.13,
    }  # fmt: skip


def test_average_reproduces_every_printed_one() -> None:
    full = [row for row in TABLE_2 if row.average is not None]
    assert len(full) == 6
    for row in full:
        assert average(row.columns) == pytest.approx(row.average, abs=0.011), row.label
    assert all(average(row.columns) is None for row in ROWS if row not in full)


def test_average_turns_mce_round() -> None:
    assert average(dict.fromkeys(COLUMNS, 40.0) | {"c": 60.0}) == pytest.approx(40.0)
    assert average(dict.fromkeys(COLUMNS, 40.0) | {"c": 5.0}) == pytest.approx((400 + 95) / 11)


def test_every_row_names_its_source() -> None:
    assert all(row.source.startswith(("arXiv:2403.10476, Table ", "alibaba/easyrobust, ")) for row in ROWS)
    assert len({(row.label, row.source) for row in ROWS}) == len(ROWS)


def test_rows_that_are_not_comparable_say_why() -> None:
    """By arithmetic on the sources' numbers (Qin et al. 2022, Tables 1 and 2), typed a second time."""
    noted = {row.label: " ".join(row.notes) for row in ROWS if row.notes}
    of_qin = ["RandAugment", "PR", "RandAugment + PR", "AugMix", "AugMix + PR"]
    assert list(noted) == ["ViT-B + MixUp", *(f"ViT-B + {name}" for name in of_qin), "ViT-B + SAM", "RobustViT-B"]
    top1_on_19 = {"PR": 52.4, "RandAugment": 55.2}
    printed = {row.label: row.columns.get("c", 0.0) for row in TABLE_2}
    assert printed["ViT-B + PR"] == pytest.approx(100 - top1_on_19["PR"])
    assert printed["ViT-B + RandAugment"] != pytest.approx(100 - top1_on_19["RandAugment"])
    assert "44.80" in noted["ViT-B + RandAugment"]
    assert all("19 corruptions" in noted[f"ViT-B + {name}"] and "384" in noted[f"ViT-B + {name}"] for name in of_qin)
    assert "misprint" not in noted["ViT-B + PR"]
    assert all(note.endswith(".") for row in ROWS for note in row.notes)


def test_a_note_that_rows_share_is_told_once_with_their_names() -> None:
    rows = [
        Published(label, "x", {}, notes=notes)
        for label, notes in (("a", ("one.",)), ("b", ()), ("c", ("two.", "one.")))
    ]
    assert row_notes(rows) == ["a, c (published): one.", "c (published): two."]
    assert row_notes(rows[1:2]) == []
