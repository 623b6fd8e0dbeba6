"""The report of Figure 5: scaling, pairs, the local picture, and what they say of the paper's claims."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .. import nullspace
from ..utils import np
from .closure_numbers import NORM_SHARES, NULLSPACE, ClosureNumbers
from .closure_picture import draw_closure
from .figure_report import FigureReport
from .seed_statistics import Interval, interval_of_mean
from .sheet import Cell, Sheet, format_count
from .statistics import wilson_interval


def closure_report(protocol: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> FigureReport:
    """The report of the experiment ``closure``."""
    numbers = ClosureNumbers(protocol, lines)
    sheets = [("Single noises", _singles_sheet(numbers)), ("Pairs", _pairs_sheet(numbers))]
    sheets += [("Directions that reach eps, to second order", _local_sheet(numbers))] if numbers.spectrum else []
    sheets += [("The quadratic prediction, checked", _checks_sheet(numbers))] if numbers.checks else []
    return FigureReport(
        "Closure of nullspace noise under scaling and addition",
        sheets,
        [*_findings(numbers), *_protocol_notes(numbers)],
        list(_rows(numbers)),
        lambda stream: draw_closure(numbers, stream),
    )


def _interval(found: Interval, digits: int = 3) -> Cell:
    if not math.isfinite(found.low):
        return Cell(f"{found.mean:.{digits}g}", ("",))
    return Cell(f"{found.mean:.{digits}g}", (f"[{found.low:.{digits}g}, {found.high:.{digits}g}]",))


def _of(found: tuple[int, int]) -> Cell:
    return Cell(f"{found[0]} of {found[1]}", is_number=False)


def _nearest(values: Sequence[float], wanted: float) -> int:
    return min(range(len(values)), key=lambda place: abs(values[place] - wanted))


def _singles_sheet(numbers: ClosureNumbers) -> Sheet:
    half, last = _nearest(numbers.alphas, 0.5), len(numbers.alphas) - 1
    headings = [("norm", ""), ("influence", "mse_probability")]
    headings += [
        (f"alpha {numbers.alphas[place]:.2g} / alpha 1", unit) for place in (half, last) for unit in ("", "unsquared")
    ]
    headings += [("under alpha eps", "alpha < 1"), ("under alpha x own influence", "alpha < 1")]
    headings += [("under alpha x own influence", "unsquared")]
    rows = []
    for kind in numbers.kinds:
        own = numbers.singles(kind)
        squared, plain = numbers.scaled(kind), numbers.scaled(kind, "unsquareds")
        cells = [_interval(interval_of_mean([line[name] for line in own])) for name in ("norm", "influence")]
        cells += [_interval(found[place]) for place in (half, last) for found in (squared, plain)]
        rows.append(
            (kind, [*cells, *(_of(numbers.under_share_of(kind, bound)) for bound in ("eps", "own", "unsquared"))])
        )
    note = (
        f"[low, high]: 95% interval over {format_count(len(numbers.singles(numbers.kinds[0])), 'noise')}, Student's t."
    )
    return Sheet(headings, rows, [note])


def _pairs_sheet(numbers: ClosureNumbers) -> Sheet:
    one = _nearest(numbers.alphas, 1.0)
    headings = [
        ("middle of the line", "mse_probability"), ("whole line under eps", ""), ("under the chord", ""),
        (f"at ({numbers.alphas[one]:.2g}, {numbers.alphas[one]:.2g})", "mse_probability"),
        ("measured / predicted", "Jacobian"), ("measured / predicted", "q1, q2"), ("cosine of responses", ""),
    ]  # fmt: skip
    middle = _nearest(numbers.shares, 0.5)
    rows = []
    for kind in numbers.kinds:
        pairs = numbers.pairs(kind)
        cells = [_interval(numbers.line(kind)[middle])]
        cells += [_of(numbers.lines_under(kind, bound)) for bound in ("eps", "chord")]
        cells += [_interval(interval_of_mean([line["grid"][one][one] for line in pairs]))]
        cells += [_interval(numbers.ratios(kind, prediction)) for prediction in ("jacobian", "ends")]
        cosines = [nullspace.PairForm(*line["form"]).cosine for line in pairs]
        rows.append((kind, [*cells, _interval(interval_of_mean(cosines), 2)]))
    notes = [
        f"[low, high]: 95% interval over {format_count(len(numbers.pairs(numbers.kinds[0])), 'pair')}, Student's t. "
        f"Middle of the line: alpha1 = {numbers.shares[middle]:g}, alpha2 = {1 - numbers.shares[middle]:g}. Chord: "
        "alpha1 q1 + alpha2 q2, of the influences of the two noises. Measured / predicted: geometric mean over the "
        "grid with alpha1, alpha2 > 0, by the Jacobian's quadratic form, and by alpha1^2 q1 + alpha2^2 q2. Cosine: of "
        "J v1 and J v2 over all images.",
    ]
    return Sheet(headings, rows, notes)


def _local_sheet(numbers: ClosureNumbers) -> Sheet:
    assert numbers.spectrum is not None
    dimension, rank = numbers.spectrum["dimension"], numbers.spectrum["rank"]
    rows = []
    for share, norm in zip(NORM_SHARES, numbers.norms_counted, strict=True):
        count, open_ended = numbers.noticed(norm)
        most = rank if open_ended else count
        cells = [Cell(f"{norm:.3g}"), Cell(f"{count}{' or more' if open_ended else ''}")]
        rows.append(
            (f"{share:g} x nullspace noise", [*cells, Cell(f"{dimension - most}{' or more' if open_ended else ''}")])
        )
    tokens = numbers.spectrum["tokens"][0]
    notes = [
        f"Of {dimension} orthogonal directions, the eigenvectors of the mean squared Jacobian over n="
        f"{numbers.protocol['n']} images, which has at most {rank} eigenvalues other than 0 (images x (classes - 1), "
        f"or all directions); the {len(numbers.spectrum['values'])} largest were computed. {tokens} of the directions, "
        "all-ones on one token, are null for a model whose layers begin with a LayerNorm, whatever their norm.",
    ]
    return Sheet([("norm", ""), ("directions that reach eps", ""), ("directions under eps", "")], rows, notes)


def _checks_sheet(numbers: ClosureNumbers) -> Sheet:
    headings = [("norm", ""), ("predicted", ""), ("measured", ""), ("on other images", "")]
    rows = []
    for line in numbers.checks:
        cells = [Cell(f"{line['norm']:.3g}"), Cell(f"{line['predicted']:.3g}")]
        for name, error in (("measured", "error"), ("others", "others_error")):
            cells.append(Cell(f"{line[name]:.3g}", (f"+/- {1.96 * line[error]:.2g}",)))
        rows.append((line["direction"], cells))
    return Sheet(headings, rows, ["mse_probability; +/-: half of a 95% interval over images, normal approximation."])


def _wilson(found: tuple[int, int]) -> str:
    low, high = wilson_interval(*found)
    return f"{found[0]} of {found[1]} (95% interval {low:.0f}% to {high:.0f}%)"


def _said(found: Interval) -> str:
    """A mean with its interval, where there is one."""
    ends = f" [{found.low:.3g}, {found.high:.3g}]" if math.isfinite(found.low) else ""
    return f"{found.mean:.3g}{ends}"


def _findings(numbers: ClosureNumbers) -> Iterator[str]:
    def each(counted: Any) -> str:
        return "; ".join(f"{kind} {_wilson(counted(kind))}" for kind in numbers.kinds)

    found = numbers.singles(NULLSPACE)
    under, _ = nullspace.share_under([line["influence"] for line in found], [numbers.eps] * len(found))
    yield (
        f"{under} of {len(found)} nullspace noises have an influence under eps = {numbers.eps:g} on the images "
        f"measured on; {sum(line['stopped'] for line in found)} of {len(found)} syntheses ended under eps."
    )
    yield (
        "Scaling. The paper says: for alpha < 1 the influence is less than alpha eps. Noises of which that holds at "
        f"all alphas: {each(lambda kind: numbers.under_share_of(kind, 'eps'))}. With their own influence at alpha = 1 "
        f"in place of eps: {each(lambda kind: numbers.under_share_of(kind, 'own'))}."
    )
    half = _nearest(numbers.alphas, 0.5)
    alpha = numbers.alphas[half]
    squared = ", ".join(f"{kind} {numbers.scaled(kind)[half].mean:.3f}" for kind in numbers.kinds)
    plain = ", ".join(f"{kind} {numbers.scaled(kind, 'unsquareds')[half].mean:.3f}" for kind in numbers.kinds)
    yield (
        f"At alpha = {alpha:.2g}, influence over that at 1 is {squared}; a quadratic gives {alpha**2:.3f}. In the "
        f"unsquared L2 distance of Eq. 5 it is {plain}; a linear model gives {alpha:.3f}; under alpha times their own "
        f"at all alphas: {each(lambda kind: numbers.under_share_of(kind, 'unsquared'))}."
    )
    yield (
        "Convex combinations. The paper says: alpha1 + alpha2 = 1 is well within the contour of eps. Pairs whose whole "
        f"line is under eps: {each(lambda kind: numbers.lines_under(kind, 'eps'))}. Under the chord between their own "
        f"ends: {each(lambda kind: numbers.lines_under(kind, 'chord'))}."
    )
    middle = _nearest(numbers.shares, 0.5)
    share = numbers.shares[middle]
    shapes = "; ".join(f"{kind} {_said(numbers.line_shape(kind)[middle])}" for kind in numbers.kinds)
    yield (
        f"At alpha1 = {share:g}, alpha2 = {1 - share:g}, influence over the mean of both ends, mean over "
        f"n={len(numbers.pairs(NULLSPACE))} pairs: {shapes}; a quadratic whose two noises have orthogonal responses "
        f"gives {share**2 + (1 - share) ** 2:.3g}, and any quadratic at most 1 where both ends are alike."
    )
    norms = ", ".join(
        f"{kind} {np.mean([line['norm'] for line in numbers.singles(kind)]):.3g}" for kind in numbers.kinds
    )
    yield (
        "Random and permuted noise was scaled to the influence of the nullspace noise of its number: what holds of it "
        "too is no property of nullspace noise, but of noise of that influence. The mean norms at which that is "
        f"reached: {norms}."
    )
    if numbers.quadratic:
        ratios = []
        for kind in numbers.kinds:
            logs = [
                math.log(line["influence"] / numbers.quadratic[kind, line["number"]]) for line in numbers.singles(kind)
            ]
            ratio = Interval(*np.exp(interval_of_mean(logs)))
            ratios.append(f"{kind} {_said(ratio)}")
        yield (
            "Measured influence at alpha = 1 over the Jacobian's quadratic prediction, geometric mean over noises: "
            f"{'; '.join(ratios)}. Where that is far from 1, the noise is too large for the local picture."
        )


def _protocol_notes(numbers: ClosureNumbers) -> Iterator[str]:
    protocol = numbers.protocol
    limit = protocol["limit"]
    start = f"uniform in (-{limit:g}, {limit:g}), learning rate {protocol['lr']:g}"
    if nullspace.known_solvers()[protocol["solver"]].gaussian:
        start = "Gaussian"
    yield (
        f"Influence: mse_probability, the mean over n={protocol['n']} images ({protocol['images_from']}) of the "
        "squared L2 distance between softmax outputs, as Algorithm 1's code tests it; Eq. 5 has it unsquared. Noises: "
        f"solver {protocol['solver']}, eps {protocol['eps']:g}, starts {start}, at most {protocol['max_steps']} steps "
        f"on batches of {protocol['synthesis_batch_size']} of {protocol['synthesis_n']} other images "
        f"({protocol['synthesis_from']}); random: Gaussian; permuted: a nullspace noise's elements in another order; "
        "all centred per token. Standard errors over images are in the CSV."
    )


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
