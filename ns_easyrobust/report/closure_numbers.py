"""The numbers of Figure 5, taken from the lines of the experiment ``closure``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from .. import nullspace
from ..utils import np
from .seed_statistics import Interval, interval_of_mean

NULLSPACE = "nullspace"
NORM_SHARES = (0.25, 0.5, 1.0, 2.0)  # of the nullspace noises' mean norm, at which directions are counted


class ClosureNumbers:
    """What lines of the experiment ``closure`` say, by kind of noise."""

    def __init__(self, protocol: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
        self.protocol = protocol
        self.eps: float = protocol["eps"]
        self.alphas: list[float] = protocol["alphas"]
        self.shares: list[float] = protocol["shares"]
        parts: dict[str, list[Mapping[str, Any]]] = {}
        for line in lines:
            parts.setdefault(line["part"], []).append(line)
        self.checks = parts.get("check", [])
        self.spectrum: Mapping[str, Any] | None = next(iter(parts.get("spectrum", [])), None)
        self.quadratic = {(line["kind"], line["number"]): line["predicted"] for line in parts.get("quadratic", [])}
        self._singles, self._pairs = parts.get("single", []), parts.get("pair", [])

    @cached_property
    def kinds(self) -> list[str]:
        return list(dict.fromkeys(line["kind"] for line in self._singles))

    def singles(self, kind: str) -> list[Mapping[str, Any]]:
        """Single noises of a kind."""
        return [line for line in self._singles if line["kind"] == kind]

    def pairs(self, kind: str) -> list[Mapping[str, Any]]:
        """Pairs of noises of a kind."""
        return [line for line in self._pairs if line["kind"] == kind]

    def grid(self, kind: str) -> np.ndarray:
        """(alphas, alphas): mean influence over pairs; alpha1 by row."""
        return np.mean([line["grid"] for line in self.pairs(kind)], axis=0)

    def scaled(self, kind: str, name: str = "influences") -> list[Interval]:
        """Influence at each alpha over its value at 1 (by name squared or not), mean over noises and its interval."""
        at_1 = "influence" if name == "influences" else "unsquared"
        rows = np.array([np.array(line[name]) / line[at_1] for line in self.singles(kind) if line[at_1] > 0])
        return [interval_of_mean(column) for column in rows.T]

    def line(self, kind: str) -> list[Interval]:
        """Influence on alpha1 + alpha2 = 1 at each share of the first noise, mean over pairs and its interval."""
        return [interval_of_mean(column) for column in np.array([line["line"] for line in self.pairs(kind)]).T]

    def line_shape(self, kind: str) -> list[Interval]:
        """As :meth:`line`, each pair's divided by the mean of its two ends, so that pairs may differ in influence."""
        rows = np.array([line["line"] for line in self.pairs(kind)])
        rows = rows / ((rows[:, :1] + rows[:, -1:]) / 2)
        return [interval_of_mean(column) for column in rows.T]

    def under_share_of(self, kind: str, bound: str) -> tuple[int, int]:
        """How many noises have at every alpha in (0, 1) at most alpha times a bound.

        Args:
            bound: ``eps``; ``own``, their influence at 1; or ``unsquared``, that in the distance of Eq. 5.
        """
        places = [place for place, alpha in enumerate(self.alphas) if 0 < alpha < 1]
        scaled, at_1 = ("unsquareds", "unsquared") if bound == "unsquared" else ("influences", "influence")
        good = 0
        for line in self.singles(kind):
            most = self.eps if bound == "eps" else line[at_1]
            found, _ = nullspace.share_under(
                [line[scaled][place] for place in places], [self.alphas[place] * most for place in places]
            )
            good += found == len(places)
        return good, len(self.singles(kind))

    def lines_under(self, kind: str, bound: str) -> tuple[int, int]:
        """How many pairs' lines stay under ``eps``, or under the ``chord`` between the influences of both ends."""
        good = 0
        for line in self.pairs(kind):
            ends = line["line"][-1], line["line"][0]  # of the first noise, of the second
            bounds = [share * ends[0] + (1 - share) * ends[1] for share in self.shares]
            found, count = nullspace.share_under(line["line"], bounds if bound == "chord" else [self.eps] * len(bounds))
            good += found == count
        return good, len(self.pairs(kind))

    def ratios(self, kind: str, prediction: str) -> Interval:
        """Measured / predicted influence, geometric mean over the grid where both alphas are > 0, and over pairs.

        Args:
            prediction: ``jacobian``, or ``ends``: alpha1^2 q1 + alpha2^2 q2 of the measured influences of both noises.
        """
        alphas = np.array(self.alphas[1:])
        logs = []
        for line in self.pairs(kind):
            form = nullspace.PairForm(*line["form"])
            if prediction == "ends":
                form = nullspace.PairForm(line["line"][-1], line["line"][0], 0.0)
            expected = form.influence(alphas[:, None], alphas[None, :])
            logs.append(float(np.mean(np.log(np.array(line["grid"])[1:, 1:] / expected))))
        return Interval(*np.exp(interval_of_mean(logs)))

    def noticed(self, norm: float) -> tuple[int, bool]:
        """How many directions reach eps at ``norm``, to second order, and whether there may be more than were found."""
        assert self.spectrum is not None
        values = np.array(self.spectrum["values"])
        count = int((values * norm**2 >= self.eps).sum())
        return count, count == len(values) < self.spectrum["rank"]

    @property
    def norms_counted(self) -> list[float]:
        """Norms at which directions are counted: shares and multiples of the nullspace noises' mean norm."""
        mean = float(np.mean([line["norm"] for line in self.singles(NULLSPACE)]))
        return [share * mean for share in NORM_SHARES]
