"""The report of Figure 5: scaling, pairs, the local picture, and what they say of the paper's claims."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .closure_findings import findings, nearest, protocol_notes
from .closure_numbers import NORM_SHARES, ClosureNumbers, are_few, spread_name, spread_of
from .closure_picture import draw_closure
from .figure_report import FigureReport
from .seed_statistics import Interval
from .sheet import Cell, Sheet


def closure_report(protocol: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> FigureReport:
    """The report of the experiment ``closure``."""
    numbers = ClosureNumbers(protocol, lines)
    sheets = [
        ("Mean influence of alpha v", _means_sheet(numbers)),
        ("Mean influence on alpha1 + alpha2 = 1", _line_sheet(numbers)),
    ]
    sheets += [("Single noises", _singles_sheet(numbers)), ("Pairs", _pairs_sheet(numbers))]
    sheets += [("Directions that reach eps, to second order", _local_sheet(numbers))] if numbers.spectrum else []
    sheets += [("The quadratic prediction, checked", _checks_sheet(numbers))] if numbers.checks else []
    return FigureReport(
        "Closure of nullspace noise under scaling and addition",
        sheets,
        [*findings(numbers), *protocol_notes(numbers)],
        list(_rows(numbers)),
        lambda stream: draw_closure(numbers, stream),
    )


def _interval(found: Interval, digits: int = 3) -> Cell:
    if not math.isfinite(found.low):
        return Cell(f"{found.mean:.{digits}g}", ("",))
    return Cell(f"{found.mean:.{digits}g}", (f"[{found.low:.{digits}g}, {found.high:.{digits}g}]",))


def _of(found: tuple[int, int]) -> Cell:
    return Cell(f"{found[0]} of {found[1]}", is_number=False)


def _means_sheet(numbers: ClosureNumbers) -> Sheet:
    places = [place for place, alpha in enumerate(numbers.alphas) if 0 < alpha <= 1]
    headings = [(f"alpha = {numbers.alphas[place]:.2g}", "") for place in places]
    rows = [("alpha eps", [Cell(f"{numbers.alphas[place] * numbers.eps:.3g}") for place in places])]
    rows += [(kind, [_interval(numbers.means(kind)[place]) for place in places]) for kind in numbers.kinds]
    return Sheet(
        headings, rows, [f"mse_probability; [low, high]: {spread_name(numbers.noises, 'noise')}, on the same images."]
    )


def _line_sheet(numbers: ClosureNumbers) -> Sheet:
    headings = [(f"alpha1 = {share:.2g}", "") for share in numbers.shares]
    rows = [(kind, [_interval(found) for found in numbers.line(kind)]) for kind in numbers.kinds]
    spread = spread_name(numbers.drawn_pairs, "pair")
    note = f"mse_probability, eps = {numbers.eps:g}; [low, high]: {spread}, on the same images."
    return Sheet(headings, rows, [note])


def _singles_sheet(numbers: ClosureNumbers) -> Sheet:
    half, last = nearest(numbers.alphas, 0.5), len(numbers.alphas) - 1
    headings = [("norm", "")]
    headings += [
        (f"influence at {numbers.alphas[place]:.2g} / at 1", unit)
        for place in (half, last)
        for unit in ("", "distance unsquared")
    ]
    headings += [("under alpha eps", ""), ("under alpha x own influence", "")]
    headings += [("under alpha x own influence", "distance unsquared")]
    rows = []
    for kind in numbers.kinds:
        squared, plain = numbers.scaled(kind), numbers.scaled(kind, "unsquareds")
        cells = [_interval(spread_of([line["norm"] for line in numbers.singles(kind)]))]
        cells += [_interval(found[place]) for place in (half, last) for found in (squared, plain)]
        rows.append(
            (kind, [*cells, *(_of(numbers.under_share_of(kind, bound)) for bound in ("eps", "own", "unsquared"))])
        )
    note = (
        f"[low, high]: {spread_name(numbers.noises, 'noise')}. Under: noises that are so at each alpha between 0 and 1."
    )
    return Sheet(headings, rows, [note])


def _pairs_sheet(numbers: ClosureNumbers) -> Sheet:
    one = nearest(numbers.alphas, 1.0)
    headings = [
        ("inner points under eps", ""), ("whole line under the chord", ""),
        (f"influence at ({numbers.alphas[one]:.2g}, {numbers.alphas[one]:.2g})", ""),
        ("measured / predicted by the Jacobian", ""), ("measured / (alpha1^2 q1 + alpha2^2 q2)", ""),
        ("cosine of responses", ""),
    ]  # fmt: skip
    rows = []
    for kind in numbers.kinds:
        cells = [_of(numbers.inner_under(kind)), _of(numbers.lines_under(kind, "chord"))]
        cells += [_interval(spread_of([line["grid"][one][one] for line in numbers.pairs(kind)]))]
        cells += [_interval(numbers.ratios(kind, prediction)) for prediction in ("jacobian", "ends")]
        rows.append((kind, [*cells, _interval(numbers.cosine(kind), 2)]))
    by = " (of ratios by their logarithms, of cosines by Fisher's z)" if not are_few(numbers.drawn_pairs) else ""
    notes = [
        f"[low, high]: {spread_name(numbers.drawn_pairs, 'pair')}{by}. Inner "
        "points: on alpha1 + alpha2 = 1, without its ends, of all pairs. Chord: alpha1 q1 + alpha2 q2, of the "
        "influences of the two noises. Measured / predicted: geometric mean over the grid with alpha1, alpha2 > 0. "
        "Cosine: of J v1 and J v2 over all images."
    ]
    return Sheet(headings, rows, notes)


def _local_sheet(numbers: ClosureNumbers) -> Sheet:
    assert numbers.spectrum is not None
    dimension, rank = numbers.spectrum["dimension"], numbers.spectrum["rank"]
    is_bounded = rank < dimension
    headings = [("norm", ""), ("directions that reach eps", f"of at most {rank}" if is_bounded else "")]
    headings += [] if is_bounded else [("directions under eps", "")]
    rows = []
    for share, norm in zip(NORM_SHARES, numbers.norms_counted, strict=True):
        count, open_ended = numbers.noticed(norm)
        cells = [Cell(f"{norm:.3g}"), Cell(f"{count}{' or more' if open_ended else ''}")]
        if not is_bounded:
            most = rank if open_ended else count
            cells.append(Cell(f"{dimension - most}{' or more' if open_ended else ''}"))
        rows.append((f"{share:g} x nullspace noise", cells))
    caveat = (
        f"So few images can show {rank} directions at most, images x (classes - 1): how many of the others stay under "
        "eps on more images, these numbers do not say"
        if is_bounded
        else f"With so many images all {rank} directions can have an eigenvalue other than 0"
    )
    tokens = numbers.spectrum["tokens"][0]
    note = (
        f"Of {dimension} orthogonal directions, the eigenvectors of the mean squared Jacobian over n="
        f"{numbers.protocol['n']} images; the {len(numbers.spectrum['values'])} largest eigenvalues were computed. "
        f"{caveat}. {tokens} of the directions, all-ones on one token, are null for a model whose layers begin with a "
        "LayerNorm, whatever their norm."
    )
    return Sheet(headings, rows, [note])


def _checks_shown(numbers: ClosureNumbers) -> list[Mapping[str, Any]]:
    """Of each shown direction the largest norm: the first eigenvector and the last that was tried, and random ones."""
    by_direction = {line["direction"]: line for line in sorted(numbers.checks, key=lambda line: float(line["norm"]))}
    order = dict.fromkeys(line["direction"] for line in numbers.checks)
    vectors = [name for name in order if name.startswith("eigenvector ")]
    wanted = {*vectors[:1], *vectors[-1:]} | (order.keys() - set(vectors))
    return [by_direction[name] for name in order if name in wanted]


def _checks_sheet(numbers: ClosureNumbers) -> Sheet:
    headings = [
        ("norm", ""), ("predicted", ""), ("measured", ""), ("standard error", ""), ("on other images", ""),
        ("standard error", ""),
    ]  # fmt: skip
    names = ("predicted", "measured", "error", "others", "others_error")
    rows = [
        (line["direction"], [Cell(f"{line['norm']:.3g}"), *(Cell(f"{line[name]:.2g}") for name in names)])
        for line in _checks_shown(numbers)
    ]
    note = (
        "mse_probability, with its standard error over images; where that is as large as the influence, few images "
        "make it. Smaller norms and other eigenvectors are in the CSV."
    )
    return Sheet(headings, rows, [note])


def _rows(numbers: ClosureNumbers) -> Iterator[Sequence[object]]:
    yield "part", "kind", "number", "alpha1", "alpha2", "norm", "influence", "standard error over images", "unsquared"
    for kind in numbers.kinds:
        for line in numbers.singles(kind):
            columns = zip(numbers.alphas, line["influences"], line["errors"], line["unsquareds"], strict=True)
            for alpha, influence, error, plain in columns:
                yield "single", kind, line["number"], alpha, "", alpha * line["norm"], influence, error, plain
    for kind in numbers.kinds:
        for line in numbers.pairs(kind):
            name = "-".join(map(str, line["numbers"]))
            for alpha1, means, errors in zip(numbers.alphas, line["grid"], line["errors"], strict=True):
                for alpha2, mean, error in zip(numbers.alphas, means, errors, strict=True):
                    yield "grid", kind, name, alpha1, alpha2, "", mean, error, ""
            for share, mean, error in zip(numbers.shares, line["line"], line["line_errors"], strict=True):
                yield "line", kind, name, share, 1 - share, "", mean, error, ""
    for place, value in enumerate(numbers.spectrum["values"] if numbers.spectrum else (), 1):
        yield "eigenvalue", "", place, "", "", 1.0, value, "", ""
    for line in numbers.checks:
        yield "check", line["direction"], "", "", "", line["norm"], line["measured"], line["error"], ""
