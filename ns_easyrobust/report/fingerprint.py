"""The report of ``fingerprint``: how well row spaces tell derived models from independent ones (section 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .figure_report import FigureReport
from .fingerprint_findings import findings, how
from .fingerprint_numbers import METRICS, FingerprintNumbers, Lines, Tested, span
from .fingerprint_picture import fingerprint_picture
from .presentable import presentable
from .sheet import Cell, Sheet


def fingerprint_report(protocol: Mapping[str, Any], lines: Lines) -> FigureReport:
    """Tables, findings and picture.

    Args:
        protocol, lines: of the experiment ``fingerprint``.
    """
    numbers = FingerprintNumbers(protocol, lines)
    sheets = [("Called derived", _kinds(numbers))]
    sheets += [(f"Hidden noise: {presentable(name)}", _attack(numbers, name)) for name in numbers.attacks]
    return FigureReport(
        title="Fingerprints by the patch embedding's row space",
        sheets=sheets,
        notes=[*findings(numbers), how(protocol, numbers)],
        rows=_csv(numbers),
        draw=lambda stream: fingerprint_picture(numbers, stream),
    )


def _kinds(numbers: FingerprintNumbers) -> Sheet:
    headings = [("accuracy", "points, mean")]
    for name in METRICS.values():
        headings += [(name, "likeness, mean (range)"), (name, "called derived")]
    rows = []
    for kind in numbers.kinds:
        changes = numbers.accuracy_changes(kind)
        cells = [Cell(f"{sum(changes) / len(changes):+.1f}" if changes else "-")]
        for metric in METRICS:
            cells += _cells(numbers, numbers.tested(kind, metric))
        rows.append((presentable(kind), cells))
    empty = Cell("-", is_number=False)
    independent = [cell for metric in METRICS for cell in _cells(numbers, numbers.falsely_tested(metric))]
    rows.append(("independent", [empty, *independent]))
    copies = [cell for metric in METRICS for cell in (Cell(span(numbers.copies(metric))), empty)]
    rows.append(("own symmetric copies", [empty, *copies]))
    return Sheet(headings, rows)


def _cells(numbers: FingerprintNumbers, tests: Sequence[Tested]) -> list[Cell]:
    told = numbers.told(tests)
    rate = Cell("cannot be said", is_number=False) if told is None else Cell(str(told))
    return [Cell(span([test.likeness for test in tests])), rate]


def _attack(numbers: FingerprintNumbers, name: str) -> Sheet:
    headings = [("accuracy", "%"), ("same prediction", "%")]
    headings += [(metric, "likeness, rank p") for metric in METRICS.values()]
    rows = []
    for step in numbers.attacks[name]:
        right = "-" if step["right"] is None else f"{100 * step['right'] / step['n']:.1f}"
        cells = [Cell(right), Cell(f"{100 * step['unchanged'] / step['n']:.1f}")]
        for metric in METRICS:
            test = numbers.attack_tested(name, step["likeness"][metric], metric)
            cells.append(Cell(f"{test.likeness:.3f}, {'-' if test.p is None else f'{test.p:.3f}'}"))
        rows.append((f"{100 * step['strength']:g}% of the embedding's rms", cells))
    return Sheet(headings, rows)


def _csv(numbers: FingerprintNumbers) -> list[list[object]]:
    table: list[list[object]] = [["what", "kind", "claimed", "suspect", "metric", "likeness", "rank_p", "t_p",
                                  "least_p", "accuracy", "same_prediction"]]  # fmt: skip
    for metric, title in METRICS.items():
        for kind in numbers.kinds:
            for test in numbers.tested(kind, metric):
                table.append(_row("derived", kind, test, title, numbers.accuracy(test.suspect)))
        for test in numbers.falsely_tested(metric):
            table.append(_row("independent", numbers.models[test.suspect]["kind"], test, title, None))
        for name, steps in numbers.attacks.items():
            for step in steps:
                test = numbers.attack_tested(name, step["likeness"][metric], metric)
                right = None if step["right"] is None else 100 * step["right"] / step["n"]
                row = _row("hidden noise", f"{step['strength']:g}", test, title, right)
                table.append([*row[:-1], 100 * step["unchanged"] / step["n"]])
    return table


def _row(what: str, kind: str, test: Tested, metric: str, accuracy: float | None) -> list[object]:
    ps = [None if p is None else float(f"{p:.6g}") for p in (test.p, test.p_t, test.least)]
    values = [test.likeness, *ps, accuracy]
    return [what, kind, test.claimed, test.suspect, metric, *("" if each is None else each for each in values), ""]
