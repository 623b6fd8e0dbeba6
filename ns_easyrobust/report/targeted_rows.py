"""The numbers of ``targeted``, one row a size and kind of transformed images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import DataError
from .seed_statistics import Interval, interval_of_mean
from .statistics import wilson_interval

Lines = Sequence[Mapping[str, Any]]
UNCHANGED = "source as it is"
LOOKS = {"rms": "root mean square", "ssim": "SSIM", "afar": "SSIM from afar"}  # how alike two images are, and its name


def shown_triplet_name(number: int, factor: int, which: str) -> str:
    """File of a shown triplet's source, target or transformed image as the picture shows it."""
    return f"shown-{number}-{factor}x-{which}.jpg"


class TargetedRow:
    """All pairs of one size and kind.

    Attributes:
        factor: how many times as large the images are as the model's own.
        kind: of transformed images, or :data:`UNCHANGED`.
        n: number of pairs.
        names: of the numbers that there are.
    """

    def __init__(self, lines: Lines) -> None:
        self.factor, self.kind = lines[0]["factor"], lines[0]["kind"]
        self.n = sum(line["n"] for line in lines)
        self._lines = lines
        self.names = frozenset(lines[0])

    def values(self, name: str) -> list[float]:
        """A number a pair."""
        return [value for line in self._lines for value in line[name]]

    def draws(self) -> list[float]:
        """Of each draw of random weights, the share of energy that it leaves in the nullspace, mean over pairs."""
        weighted = [[line["n"] * share for share in line["draws_share"]] for line in self._lines]
        return [sum(shares) / self.n for shares in zip(*weighted, strict=True)]

    def mean(self, name: str) -> Interval:
        """With Student's t interval, over pairs."""
        return interval_of_mean(self.values(name))

    @property
    def unchanged(self) -> int:
        return round(sum(self.values("unchanged")))

    def nearer(self, look: str) -> int:
        """On how many pairs the transformed image is nearer the target than the source, by one of :data:`LOOKS`."""
        sign = -1 if look == "rms" else 1
        pairs = zip(self.values(f"{look}_target"), self.values(f"{look}_source"), strict=True)
        return sum(sign * target > sign * source for target, source in pairs)

    def share(self, count: int) -> str:
        """``count`` of n, with Wilson's interval in percent."""
        low, high = wilson_interval(count, self.n)
        return f"{count} of {self.n} [{low:.1f}%, {high:.1f}%]"


def nullity_share(protocol: Mapping[str, Any], factor: int) -> float:
    """Of the numbers of a patch ``factor`` times as large: 1 - rank / (C p^2 factor^2)."""
    return 1 - protocol["rank"] / (protocol["input_dim"] * factor**2)


def targeted_rows(lines: Lines) -> dict[tuple[int, str], TargetedRow]:
    """By size and kind, in the order of the lines.

    Raises:
        DataError: no line is of pairs.
    """
    groups: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        if "start" in line:
            groups.setdefault((line["factor"], line["kind"]), []).append(line)
    if not groups:
        raise DataError("targeted: expected lines of pairs, found none. Run the experiment anew.")
    return {key: TargetedRow(groups[key]) for key in groups}
