"""A study's endpoints: methods against several others on one mean of columns, each one family of tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import OptionError
from ..utils import as_csv
from .presentable import presentable
from .seed_statistics import POWER, Finding, smallest_effect
from .sheet import escape, format_number, format_p
from .statistics import holm
from .study_comparison import Comparison, StudyComparison
from .study_measures import Measure

ENDPOINTS = ("all", "robust")
_NOT_COMPARED = "not compared"
_OPEN = ({_NOT_COMPARED}, {_NOT_COMPARED, "better"})
_GREATEST = 100  # points, which no difference of two percentages exceeds
_FIELDS = (
    *("method", "against", "delta", "low", "high", "p", "p_holm", "verdict", "smallest_effect"),
    *("smallest_effect_holm", "images_low", "images_high", "images_p", "seeds_low", "seeds_high", "seeds_p"),
    *("method_value", "against_value", "method_runs", "against_runs"),
)


@dataclass(frozen=True)
class Pair:
    """A method minus another.

    Attributes:
        found: None where they cannot be compared, for the ``reason``.
        p_holm: corrected for all pairs of the endpoint.
        verdict: "better", "worse", "not distinguished" or "not compared".
    """

    method: str
    against: str
    found: Comparison | None
    p_holm: float
    verdict: str
    reason: str = ""

    @property
    def claim(self) -> Finding | None:
        return None if self.found is None else self.found.claim


class Endpoint:
    """Each of ``methods`` minus each of ``against``, on the mean of the columns.

    All pairs that were asked for are one family of tests, by Holm's correction, those too that lack a p: they count as
    p = 1, so that a study of which a part is missing claims no more than the whole one could. Of two that are both in
    ``against`` the later one is taken minus the earlier one, once.

    Args:
        study: with the rows that are there.
        methods, against: labels of rows, there or not.
        columns: ``all`` for the mean of all columns in percent, clean accuracy included; ``robust`` for the others';
            or names of suites and of ImageNet-C's groups, for that of theirs
            (:meth:`~ns_easyrobust.report.study_comparison.StudyComparison.mean_over`).

    Attributes:
        measure: None where no column is in percent, or a suite that is named has none.

    Raises:
        OptionError: no pair, another word for ``columns``, or an unknown suite.
    """

    kind: str
    standing: str  # of its pairs, as a family of tests

    def __init__(
        self, study: StudyComparison, methods: Sequence[str], against: Sequence[str], columns: str | Sequence[str]
    ) -> None:
        self.study = study
        self.columns = columns if isinstance(columns, str) else ", ".join(columns)
        self.methods = tuple(dict.fromkeys(map(presentable, methods)))
        self.against = tuple(dict.fromkeys(map(presentable, against)))
        names = [pair for method in self.methods for pair in self._pairs_of(method)]
        if not names or (isinstance(columns, str) and columns not in ENDPOINTS):
            raise OptionError(
                f"{self.kind} endpoint: expected columns of {', '.join(ENDPOINTS)} and a method to compare with "
                f"another, found {columns} and {len(names)} pairs. Correct the study."
            )
        self.measure = self._measure_of(columns)
        found = [self._compared(*pair) for pair in names]
        ps = [1.0 if each is None or each.claim is None else each.claim.p for each in found]
        self.pairs = [self._judged(*each) for each in zip(names, found, holm(ps), strict=True)]

    def _measure_of(self, columns: str | Sequence[str]) -> Measure | None:
        if not isinstance(columns, str):
            return self.study.mean_over(columns)
        return self.study.overall if columns == "all" else self.study.robustness

    def _pairs_of(self, method: str) -> list[tuple[str, str]]:
        rank = self.against.index(method) if method in self.against else len(self.against)
        return [
            (method, other) for index, other in enumerate(self.against) if index < rank or other not in self.methods
        ]

    def _compared(self, method: str, other: str) -> Comparison | None:
        if self.measure is None or not {method, other} <= self.study.methods.keys():
            return None
        return self.study.compare(method, other, self.measure)

    def _judged(self, names: tuple[str, str], found: Comparison | None, p_holm: float) -> Pair:
        if found is None or found.claim is None:
            return Pair(*names, found, p_holm, _NOT_COMPARED, self._reason(names, found))
        if p_holm > 1 - self.study.confidence:
            return Pair(*names, found, p_holm, "not distinguished")
        return Pair(*names, found, p_holm, "better" if found.delta > 0 else "worse")

    def _reason(self, names: tuple[str, str], found: Comparison | None) -> str:
        if found is not None:
            return "not all runs' verdicts on each image were kept"
        if self.measure is None:
            return "there is no such column in percent"
        for name in names:
            if name not in self.study.methods:
                return f"{name} is not done"
            if not self.study.values(name, self.measure):
                return f"{name} lacks some of the columns"
        return self.study.mismatch(self.measure, names) or "they are of other images"

    @property
    def title(self) -> str:
        return f"{self.kind.capitalize()} endpoint"

    def conclusion(self) -> str:
        """Which of the methods that are not in ``against`` are better than all that are; "" where there are none."""
        verdicts = {
            label: {pair.verdict for pair in self.pairs if pair.method == label}
            for label in self.methods
            if label not in self.against
        }
        if not verdicts:
            return ""
        better = ", ".join(label for label, own in verdicts.items() if own == {"better"})
        unknown = ", ".join(label for label, own in verdicts.items() if own in _OPEN)
        others = ", ".join(self.against)
        said = f"better than {others}: {better}" if better else f"no method is better than all of {others}"
        single = any(p.found and p.found.seeds is None for p in self.pairs if verdicts.get(p.method) == {"better"})
        of_seeds = " This is of single runs and says nothing of other seeds." if single else ""
        return f"After correction, {said}{f'; not known yet of {unknown}' if unknown else ''}.{of_seeds}"

    def to_markdown(self) -> str:
        """A section with a line for each pair, how to read it, and :meth:`conclusion`."""
        study, count = self.study, len(self.pairs)
        level, percent = f"{1 - study.confidence:.2g}", f"{100 * study.confidence:g}%"
        title = "The endpoint" if self.measure is None else f"{self.measure.title}: plain mean of {self.measure.names}"
        lines = [
            f"## {self.title}",
            "",
            escape(
                f"{title}. Each line is a method minus another, means over seeds, with the wider of the two intervals "
                "(over images, over seeds) and the larger p, as above. better, worse: p of at most "
                f"{level} after Holm's correction for all {count} pairs, {self.standing} "
                "Intervals are not corrected. Smallest effect: the true difference that is found with a probability "
                f"of {POWER:g} at level {level} for this pair alone, and at {level}/{count}, the strictest step of the "
                "correction."
            ),
            "",
            f"| method | against | difference | {percent} interval | p | p after Holm | verdict | smallest effect | "
            "after correction |",
            "|:--|:--|--:|--:|--:|--:|:--|--:|--:|",
            *map(self._line, self.pairs),
            "",
            *(f"{escape(note)}\n" for note in self._notes()),
        ]
        conclusion = self.conclusion()
        return "\n".join([*lines, f"**{escape(conclusion)}**"] if conclusion else lines).rstrip() + "\n"

    def _line(self, pair: Pair) -> str:
        cells = [pair.method, pair.against]
        cells.append("" if pair.found is None else format_number(pair.found.delta, "%", "+"))
        if pair.claim is None:
            cells += ["", "", "", pair.verdict, "", ""]
        else:
            effects = (smallest_effect(pair.claim, self.study.confidence, tests=n) for n in (1, len(self.pairs)))
            cells += [
                f"[{format_number(pair.claim.low, '%')}, {format_number(pair.claim.high, '%')}]",
                *(format_p(p).removeprefix("p=").removeprefix("p") for p in (pair.claim.p, pair.p_holm)),
                pair.verdict,
                *(format_number(effect, "%") if effect < _GREATEST else f"over {_GREATEST}" for effect in effects),
            ]
        return f"| {' | '.join(escape(cell, brackets=False) for cell in cells)} |"

    def _notes(self) -> list[str]:
        """Which pairs lack what."""
        notes = [
            f"{pair.method} and {pair.against}: not compared, as {pair.reason}." for pair in self.pairs if pair.reason
        ]
        single = [f"{p.method} and {p.against}" for p in self.pairs if p.found and p.claim and p.found.seeds is None]
        if single:
            notes.append(f"One run each, so over images alone, which says nothing of other seeds: {'; '.join(single)}.")
        if self.measure is not None:
            for label in dict.fromkeys([*self.methods, *self.against]):
                runs = self.study.methods[label].runs if label in self.study.methods else ()
                values = self.study.values(label, self.measure) if runs else {}
                if short := [run.name for run in runs if run.name not in values]:
                    notes.append(f"{label}: without {', '.join(short)}, which lacks some of the columns.")
        return notes

    def to_csv(self) -> str:
        """A line for each pair, in full precision; a field that does not apply is empty."""
        return as_csv([_FIELDS, *([self._fields(pair).get(name) for name in _FIELDS] for pair in self.pairs)])

    def _fields(self, pair: Pair) -> dict[str, object]:
        fields: dict[str, object] = {"method": pair.method, "against": pair.against, "verdict": pair.verdict}
        if self.measure is not None:
            for name, label in (("method", pair.method), ("against", pair.against)):
                if label in self.study.methods:
                    fields[f"{name}_value"] = self.study.value(label, self.measure)
                    fields[f"{name}_runs"] = len(self.study.values(label, self.measure))
        if pair.found is not None:
            fields |= pair.found.fields
        if pair.claim is not None:
            fields["p_holm"] = pair.p_holm
            for name, tests in (("smallest_effect", 1), ("smallest_effect_holm", len(self.pairs))):
                fields[name] = smallest_effect(pair.claim, self.study.confidence, tests=tests)
        return fields


class PrimaryEndpoint(Endpoint):
    """:class:`Endpoint` that the study is judged by."""

    kind = "primary"
    standing = "which are the one family of tests that the study is judged by."


class SecondaryEndpoint(Endpoint):
    """:class:`Endpoint` that stands beside the primary one, and does not decide."""

    kind = "secondary"
    standing = (
        "a family of its own. This endpoint is secondary: it describes, the study is not judged by it, and the "
        "correction does not count the other endpoints."
    )

    @property
    def title(self) -> str:
        return f"Secondary endpoint: {escape(self.columns)}"
