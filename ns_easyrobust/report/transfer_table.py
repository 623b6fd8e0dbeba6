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
_NORMAL = 1.959964  # half-width of a 95% interval, in standard errors
_BOTH = ("noise", "permuted")
TITLES = {"encoder": "encoder, approximate", "patch": "patch, a sample", "valid": "patch, large and valid"}


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
        """Mean over noises and images with a 95% interval.

        Noises and images are crossed, each noise being measured on each image: the squares of the half-widths over
        noises (Student's t) and over images (normal) are summed. What is of neither alone counts in both, so that the
        interval is rather too wide.
        """
        line = self.line(place, control)
        mean = sum(line["influences"]) / len(line["influences"])
        half = math.hypot(_half_over_noises(line["influences"]), _NORMAL * line["error"])
        return Interval(mean, max(0.0, mean - half), mean + half)

    def agreement(self, place: Place, control: str = "noise") -> float:
        """Share of unchanged predictions, over noises and images."""
        line = self.line(place, control)
        return sum(line["unchanged"]) / (line["n"] * len(line["unchanged"]))

    def relative(self, place: Place) -> Interval | None:
        """Geometric mean over noises of the ratio of a noise's influence to its permutation's, with its interval.

        Of the logarithm, as that of :meth:`influence`; over images it is paired. None where an influence is 0.
        """
        own, base = self.line(place), self.line(place, "permuted")
        return _ratio(own["influences"], base["influences"], own["ratio_error"])

    def beside(self, place: Place, images: str) -> Interval | None:
        """As :meth:`relative`, the ratio of a noise's influence to that on other ``images``."""
        own, base = self.line(place), self.line(place._replace(images=images))
        errors = [line["error"] * len(line["influences"]) / (sum(line["influences"]) or 1.0) for line in (own, base)]
        return _ratio(own["influences"], base["influences"], math.hypot(*errors))


def _half_over_noises(values: Sequence[float]) -> float:
    found = interval_of_mean(values)
    return found.high - found.mean if len(values) > 1 else 0.0


def _ratio(values: Sequence[float], others: Sequence[float], error: float | None) -> Interval | None:
    """``error``: the logarithm's over images; None where there is no ratio."""
    if error is None or min(*values, *others) <= 0 or len(values) != len(others):
        return None
    logs = [math.log(value / other) for value, other in zip(values, others, strict=True)]
    mean, half = sum(logs) / len(logs), math.hypot(_half_over_noises(logs), _NORMAL * error)
    return Interval(*(math.exp(mean + sign * half) for sign in (0, -1, 1)))


def shown(interval: Interval) -> str:
    """A mean with its interval, in two digits."""
    return f"{interval.mean:.2g} [{interval.low:.2g}, {interval.high:.2g}]"
