"""Which methods differ in a number alone."""

from __future__ import annotations

import pytest

from ns_easyrobust.report.study_series import series_of


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["ns 1", "none", "ns 0.03", "ns .1"], [("ns", ["ns 0.03", "ns .1", "ns 1"]), ("none", ["none"])]),
        (["a eps 0.1", "a eps 2", "a 3"], [("a eps", ["a eps 0.1", "a eps 2"]), ("a 3", ["a 3"])]),
        (["pgd 8/255", "pgd 2/255", "pgd 1e-3"], [("pgd", ["pgd 1e-3", "pgd 2/255", "pgd 8/255"])]),
        (["ns", "ns 1", "ns 2"], [("ns", ["ns"]), ("ns", ["ns 1", "ns 2"])]),
        (["ns 1", "ns 1 (EMA)", "ns 2 (EMA)"], [("ns 1", ["ns 1"]), ("ns (EMA)", ["ns 1 (EMA)", "ns 2 (EMA)"])]),
        (["1", "2", "v1", "v2", "x 1/0", "x 2/0", "y 1 b", "y 2 b"],
         [(label, [label]) for label in ("1", "2", "v1", "v2", "x 1/0", "x 2/0", "y 1 b", "y 2 b")]),
    ],
)  # fmt: skip
def test_series(labels: list[str], expected: list[tuple[str, list[str]]]) -> None:
    assert [(each.name, list(each.members)) for each in series_of(labels)] == expected


def test_numbers_are_as_they_were_written() -> None:
    (series,) = series_of(["ns .10", "ns 3e-2"])
    assert series.members == {"ns 3e-2": "3e-2", "ns .10": ".10"}
