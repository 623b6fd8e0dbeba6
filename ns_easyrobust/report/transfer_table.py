"""The numbers of ``transfer``: influences of noises and controls, and their ratios."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from ..errors import DataError
from .seed_statistics import Interval, interval_of_mean

Lines = Sequence[Mapping[str, Any]]
FOUND_ON, HELD_OUT = "found on", "held out"
_BOTH = ("noise", "permuted")
TITLES = {"encoder": "encoder, approximate", "patch": "patch, a sample", "valid": "patch, largest valid"}


class Place(NamedTuple):
    """Whose noise of which kind, on which model and images."""

    kind: str
    source: str
    target: str
    images: str


class TransferTable:
    """Influences of noises and their controls.

    Args:
        lines: of the experiment ``transfer``.

    Raises:
        DataError: a noise without its permutation.
    """

    def __init__(self, lines: Lines) -> None:
        self._lines = {
            (Place(line["kind"], line["source"], line["target"], line["images"]), line["control"]): line
            for line in lines
        }
        self.places = list(dict.fromkeys(place for place, _ in self._lines))
        if not self.places or any((place, name) not in self._lines for place in self.places for name in _BOTH):
            raise DataError("transfer: expected noises with their permutations, found some without. Run it anew.")

    @cached_property
    def kinds(self) -> list[str]:
        return list(dict.fromkeys(place.kind for place in self.places))

    @cached_property
    def sources(self) -> list[str]:
        return list(dict.fromkeys(place.source for place in self.places))

    @cached_property
    def targets(self) -> list[str]:
        return list(dict.fromkeys(place.target for place in self.places))

    @cached_property
    def images(self) -> list[str]:
        return list(dict.fromkeys(place.images for place in self.places))

    def has(self, place: Place, control: str = "noise") -> bool:
        return (place, control) in self._lines

    def line(self, place: Place, control: str = "noise") -> Mapping[str, Any]:
        return self._lines[place, control]

    def influence(self, place: Place, control: str = "noise") -> Interval:
        """Mean over noises and images with the wider of two 95% intervals: over noises, and over images."""
        line = self.line(place, control)
        found = interval_of_mean(line["influences"])
        half = 1.96 * line["error"]
        if len(line["influences"]) > 1:
            half = max(half, found.high - found.mean)
        return Interval(found.mean, max(0.0, found.mean - half), found.mean + half)

    def agreement(self, place: Place, control: str = "noise") -> float:
        """Share of unchanged predictions, over noises and images."""
        line = self.line(place, control)
        return sum(line["unchanged"]) / (line["n"] * len(line["unchanged"]))

    def ratio(self, own: Place, base: Place, control: str = "noise", base_control: str = "noise") -> Interval | None:
        """Geometric mean over noises of the ratio of two influences of the same noise, with its interval.

        Infinite ends of a single noise; None where an influence is 0.
        """
        values, others = (
            self.line(place, name)["influences"] for place, name in ((own, control), (base, base_control))
        )
        if min(*values, *others) <= 0 or len(values) != len(others):
            return None
        logs = [math.log(value / other) for value, other in zip(values, others, strict=True)]
        mean, low, high = interval_of_mean(logs)
        return Interval(math.exp(mean), math.exp(low), math.inf if math.isinf(high) else math.exp(high))

    def relative(self, place: Place) -> Interval | None:
        """:meth:`ratio` of a noise to its permutation."""
        return self.ratio(place, place, base_control="permuted")


def shown(interval: Interval) -> str:
    """A mean with its interval, in two digits."""
    ends = [f"{end:.2g}" for end in (interval.low, interval.high)]
    return f"{interval.mean:.2g}" + ("" if math.isinf(interval.high) else f" [{', '.join(ends)}]")
