"""Methods that differ in one number alone, told by their names: "nullspace 0.03", "nullspace 0.1"."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple

_NUMBERED = re.compile(
    r"(?P<name>.*\S)\s+(?P<number>[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,2})?(/[1-9]\d*)?)(?P<rest> \(EMA\))?", re.ASCII
)


class Series(NamedTuple):
    """Methods of one name.

    Attributes:
        name: that they share; the whole label where there is only one.
        members: label: number as it is written, in the numbers' order; "" where there is only one.
    """

    name: str
    members: dict[str, str]


def series_of(labels: Iterable[str]) -> list[Series]:
    """The labels in series, in the order in which each first appears.

    Labels whose last word is a number (also a fraction, and also before " (EMA)") and which are otherwise the same are
    a series; any other label is one by itself.

    Example:
        >>> [(each.name, list(each.members.values())) for each in series_of(["no", "ns 0.1", "ns 0.03", "pgd 7"])]
        [('no', ['']), ('ns', ['0.03', '0.1']), ('pgd 7', [''])]
    """
    found: dict[tuple[str, bool], dict[str, str]] = {}
    for label in labels:
        match = _NUMBERED.fullmatch(label)
        key = (label, False) if match is None else (match["name"] + (match["rest"] or ""), True)
        found.setdefault(key, {})[label] = "" if match is None else match["number"]
    series = []
    for (name, _), members in found.items():
        if len(members) == 1:
            series.append(Series(next(iter(members)), dict.fromkeys(members, "")))
        else:
            series.append(Series(name, dict(sorted(members.items(), key=lambda item: _value(item[1])))))
    return series


def _value(number: str) -> Fraction:
    above, _, below = number.partition("/")
    return Fraction(above) / int(below or 1)
