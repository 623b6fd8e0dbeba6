"""The table of a study as text, Markdown and CSV: means over seeds, differences, and what the training cost."""

from __future__ import annotations

import json
from functools import cached_property

from ..utils import as_csv, np
from .columns import protocol_line
from .seed_statistics import smallest_effect
from .sheet import (
    NOT_RUN,
    Cell,
    Sheet,
    as_markdown,
    as_text,
    describe_difference,
    format_number,
    format_settings,
    group_values,
    significance,
)
from .statistics import holm
from .study_comparison import Comparison, StudyComparison
from .study_measures import Measure
from .study_notes import runs_line, study_notes
from .study_runs import MethodRuns, SeedRun

__all__ = ["MethodRuns", "SeedRun", "StudyTable"]

NOT_GIVEN = "not given"
_COSTS = {  # attribute of a run: heading
    "updates": ("updates", ""),
    "forward_equivalents": ("forward-equivalents", "per image"),
    "seconds": ("seconds", ""),
}
_FIELDS = (
    *("label", "seed", "column", "value", "deviation", "seeds", "n", "delta", "delta_low", "delta_high", "p", "p_holm"),
    *("verdict", "images_low", "images_high", "images_p", "seeds_low", "seeds_high", "seeds_p", "smallest_effect"),
    *("unit", "suite", "metric", "protocol"),
)


class StudyTable(StudyComparison):
    """One row a method: means over seeds, differences from the baseline, and what the training cost.

    Arguments and attributes are those of :class:`~ns_easyrobust.report.study_comparison.StudyComparison`.

    Example:
        >>> runs = [SeedRun(seed, read_records(f"trades-{seed}.jsonl"), 800, 800 * 26.0, 310.0) for seed in (0, 1, 2)]
        >>> start = SeedRun(None, read_records("start.jsonl"))
        >>> table = StudyTable([MethodRuns("start", [start]), MethodRuns("TRADES", runs)], baseline="start")
        >>> print(table.to_text())
    """

    def to_text(self, width: int | None = None) -> str:
        """Aligned columns for a terminal, split into groups of at most ``width`` characters if given."""
        return as_text(self.sheet(), width)

    def to_markdown(self) -> str:
        """A GitHub table with notes, protocols and runs beneath it."""
        return as_markdown(self.sheet())

    def to_csv(self) -> str:
        """A line for each run's number, and one for each mean with its difference, in full precision.

        ``seed`` is "mean" in the latter; a field that does not apply is empty.
        """
        lines: list[dict[str, object]] = []
        for label in self.methods:
            for measure, found, adjusted, verdict in self._judged(label):
                described: dict[str, object] = {"label": label, "column": measure.title, "unit": measure.unit}
                column = measure.column
                if column is not None:
                    protocol = json.dumps(column.protocol, sort_keys=True)
                    described |= {"suite": column.suite, "metric": column.metric, "protocol": protocol}
                for run, value in self.values(label, measure).items():
                    n = None if column is None else self._run(label, run).cells[column.key].n
                    lines.append({**described, "seed": run.removeprefix("seed "), "value": value, "n": n})
                lines.append({**described, **self._mean_line(label, measure, found, adjusted, verdict)})
            lines += self._cost_lines(label)
        return as_csv([_FIELDS, *([line.get(name) for name in _FIELDS] for line in lines)])

    def _run(self, label: str, name: str) -> SeedRun:
        return next(run for run in self.methods[label].runs if run.name == name)

    def _mean_line(
        self, label: str, measure: Measure, found: Comparison | None, adjusted: float | None, verdict: str
    ) -> dict[str, object]:
        line: dict[str, object] = {"seed": "mean", "value": self.value(label, measure)}
        line |= {"deviation": self.deviation(label, measure), "seeds": len(self.values(label, measure))}
        if found is not None:
            line |= {"delta": found.delta, "p_holm": adjusted, "verdict": verdict or None}
            for prefix, each in (("delta_", found.claim), ("images_", found.images), ("seeds_", found.seeds)):
                if each is not None:
                    line |= {f"{prefix}low": each.low, f"{prefix}high": each.high}
                    line["p" if prefix == "delta_" else f"{prefix}p"] = each.p
            if found.claim is not None:
                line["smallest_effect"] = smallest_effect(found.claim, self.confidence)
        return line

    def _cost_lines(self, label: str) -> list[dict[str, object]]:
        lines: list[dict[str, object]] = []
        for name in _COSTS:
            costs = {run.name: getattr(run, name) for run in self.methods[label].runs}
            known = {run: cost for run, cost in costs.items() if cost is not None}
            described: dict[str, object] = {"label": label, "column": name}
            lines += [{**described, "seed": run.removeprefix("seed "), "value": cost} for run, cost in known.items()]
            if known:
                mean = float(np.mean(list(known.values())))
                lines.append({**described, "seed": "mean", "value": mean, "seeds": len(known)})
        return lines

    def _judged(self, label: str) -> list[tuple[Measure, Comparison | None, float | None, str]]:
        """(measure, difference, p by Holm, "better", "worse" or "") of the row's measures."""
        found = self.comparisons(label)
        with_p = [each is not None and each.claim is not None for each in found]
        adjusted = iter(holm([each.claim.p for each in found if each is not None and each.claim is not None]))
        ps = [next(adjusted) if has_p else None for has_p in with_p]
        verdicts = [
            significance(None if each is None else each.difference, is_significant, measure.lower_is_better)
            for each, is_significant, measure in zip(found, self.significant(label), self.measures, strict=True)
        ]
        return list(zip(self.measures, found, ps, verdicts, strict=True))

    @cached_property
    def _costs(self) -> list[str]:
        """The costs that at least one run has."""
        runs = [run for method in self.methods.values() for run in method.runs]
        return [name for name in _COSTS if any(getattr(run, name) is not None for run in runs)]

    def sheet(self) -> Sheet:
        """The measures, then the costs, with notes, protocols, runs and versions."""
        versions = [
            (format_settings(record.versions), label)
            for label, method in self.methods.items()
            for run in method.runs
            for record in run.shown_records
        ]
        return Sheet(
            headings=[*map(self._heading, self.measures), *(_COSTS[name] for name in self._costs)],
            rows=[(self.row_name(label), self._cells(label)) for label in self.methods],
            notes=study_notes(self, bool(self._costs)),
            lists=[
                ("Protocol of each column", [protocol_line(c, self.column_records(c)) for c in self.columns]),
                ("Runs of each method", [f"{label}: {runs_line(method)}" for label, method in self.methods.items()]),
                ("Versions", [line or "not recorded" for line in group_values(versions)]),
            ],
        )

    def row_name(self, label: str) -> str:
        """The method's label as shown, with the baseline marked."""
        return f"{label} (baseline)" if label == self.baseline else label

    def _heading(self, measure: Measure) -> tuple[str, str]:
        if measure.column is None:
            return measure.title, f"{measure.unit}, of {len(measure.terms)} columns"
        counts = {record.n for _, record in self.column_records(measure.column)}
        n = f"n={counts.pop()}" if len(counts) == 1 else "n differs"
        direction = "lower is better" if measure.lower_is_better else ""
        return measure.title, ", ".join(text for text in (measure.unit, n, direction) if text)

    def _cells(self, label: str) -> list[Cell]:
        return [self._cell(label, *judged) for judged in self._judged(label)] + [
            self._cost_cell(label, name) for name in self._costs
        ]

    def _cell(
        self, label: str, measure: Measure, found: Comparison | None, adjusted: float | None, verdict: str
    ) -> Cell:
        value, deviation = self.value(label, measure), self.deviation(label, measure)
        if value is None:
            return Cell(NOT_RUN if measure.column is not None else "incomplete", is_number=False)
        runs, whole = len(self.values(label, measure)), len(self.methods[label].runs)
        rest = (
            "" if deviation is None else f"±{format_number(deviation, measure.unit)}",
            "" if found is None else describe_difference(found.difference, measure.unit),
            verdict,
            "" if runs == whole else f"{runs} of {whole} seeds",
        )
        return Cell(format_number(value, measure.unit), rest, significance=verdict)

    def _cost_cell(self, label: str, name: str) -> Cell:
        costs = [getattr(run, name) for run in self.methods[label].runs if getattr(run, name) is not None]
        if not costs:
            return Cell(NOT_GIVEN, is_number=False)
        mean = float(np.mean(costs))
        return Cell(f"{mean:.0f}" if mean >= 10 else f"{mean:.2g}")
