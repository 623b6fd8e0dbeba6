"""The report of ``encoder-noise``: Figure 3 of arXiv:2403.10476 in numbers, and what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .encoder_noise_picture import encoder_noise_figure
from .encoder_noise_points import CONTROLS, KINDS, StrengthPoint, points_of
from .figure_report import FigureReport
from .seed_statistics import Interval
from .sheet import Cell, Sheet, format_count
from .statistics import wilson_interval

_NAMES = {"permuted": "permutation", "within": "permutation within each token"}
_BENIGN = 95.0  # percent of predictions that stay: what is called benign here
_HEADER = (
    "lambda", "seed", "norm", "norm of start", "J, learned on", "<v, grad J>", "largest token's share of norm^2",
    *(f"{kind}: {name}" for kind in KINDS for name in (
        "unchanged", "n", "mse_probability", "low", "high", "J, held out", "low", "high")),
)  # fmt: skip


def encoder_noise_report(protocol: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> FigureReport:
    """Table, findings, CSV and picture.

    Args:
        protocol, lines: of the experiment.
    """
    points = points_of(lines)
    return FigureReport(
        title="Noise learned by Eq. 4, and its permutations",
        sheets=[("", _sheet(points))],
        notes=[_protocol(protocol, points), *_findings(points), *_all_ones(lines)],
        rows=[_HEADER, *(_row(line) for point in points for line in point.lines)],
        draw=lambda stream: encoder_noise_figure(stream, points, _caption(protocol, points)),
    )


def _sheet(points: Sequence[StrengthPoint]) -> Sheet:
    headings = [("norm", ""), ("agreement", "%, learned")]
    for name in ("permuted", "within tokens"):
        headings += [("agreement", f"%, {name}"), (f"learned - {name}", "points")]
    headings += [("mse_probability", "learned"), ("mse_probability", "permuted"), ("J", "held out")]
    headings += [("<v, grad J> / lambda", "learned on"), ("largest token", "% of norm²")]
    rows = []
    for point in points:
        cells = [
            _cell(point.number("norm"), ".3g"),
            _cell(point.agreement("learned"), ".1f"),
            *(
                cell
                for control in CONTROLS
                for cell in (_cell(point.agreement(control), ".1f"), _cell(point.lead(control), "+.1f"))
            ),
            *(_cell(point.mse(kind), ".2g") for kind in ("learned", "permuted")),
            _cell(point.logit_distance("learned"), ".3g"),
            Cell(f"{point.number('radial').mean / point.strength:.2f}"),
            Cell(f"{100 * point.number('token_share').mean:.0f}"),
        ]
        rows.append((f"lambda {point.strength:g}" + (f" ({point.state})" if point.state else ""), cells))
    return Sheet(headings, rows)


def _cell(found: Interval, form: str) -> Cell:
    ends = "" if found.low != found.low else f"[{found.low:{form}}, {found.high:{form}}]"  # nan: none
    return Cell(f"{found.mean:{form}}", (ends,))


def _intervals(points: Sequence[StrengthPoint]) -> str:
    seeds = max((len(point.lines) for point in points), default=0)
    if seeds > 1:
        return (
            f"95% t intervals of means (of norms geometric ones) over {seeds} noises, each from a start of its own and "
            "measured on the same images"
        )
    return "95% intervals over images of one noise for each lambda: Wilson's of agreement, Newcombe's of its difference"


def _protocol(protocol: Mapping[str, Any], points: Sequence[StrengthPoint]) -> str:
    n = points[0].n if points else 0
    return (
        f"{protocol['model']}, {protocol['checkpoint']}: {format_count(n, 'image')} to measure on "
        f"({protocol['images_from']}), others to learn on ({protocol['synthesis_from']}); {protocol['steps']} steps of "
        f"{format_count(protocol['minibatch'], 'image')}, the first of {protocol['step_length']:g} norms of the noise, "
        f"falling linearly to 0; start uniform in (-{protocol['limit']:g}, {protocol['limit']:g}). "
        f"Intervals: {_intervals(points)}; of mse_probability and J Student's."
    )


def _caption(protocol: Mapping[str, Any], points: Sequence[StrengthPoint]) -> str:
    shaded = " Shaded: the noise ran away." if any(point.ran_away for point in points) else ""
    return (
        f"{protocol['model']}, n = {points[0].n if points else 0} held-out images; learned on "
        f"{protocol['synthesis_n']} others. Bars: {_intervals(points)}.{shaded}"
    )


def _findings(points: Sequence[StrengthPoint]) -> list[str]:
    notes = []
    settled = [point for point in points if not point.ran_away]
    benign = [point for point in settled if point.agreement("learned").low >= _BENIGN]
    if benign:
        point = max(benign, key=lambda each: each.number("norm").mean)
        notes.append(
            f"The largest noise whose agreement is at least {_BENIGN:g}% (lower end of the interval) has norm "
            f"{point.number('norm').mean:.3g}, at lambda {point.strength:g}: {_compared(point, 'permuted')}"
        )
    elif settled and not settled[0].over_seeds and wilson_interval(settled[0].n, settled[0].n)[0] < _BENIGN:
        notes.append(f"{format_count(settled[0].n, 'image')}: too few to say of any noise that {_BENIGN:g}% stay.")
    elif settled:
        notes.append(f"At no lambda is the lower end of the learned noise's agreement {_BENIGN:g}% or more.")
    if settled:
        notes += [_ahead(settled, control) for control in CONTROLS]
    worse = [point for point in settled if point.agreement("learned").high < _BENIGN]
    if worse:
        listed = ", ".join(
            f"lambda {each.strength:g}, norm {each.number('norm').mean:.3g}: "
            f"{_shown(each.agreement('learned'), '.1f')}%"
            for each in worse
        )
        notes.append(
            f"The paper calls its noises fairly benign, without a number, and names no lambdas. If {_BENIGN:g}% have "
            f"to stay, these are not ({listed}; n = {format_count(worse[0].n, 'image')})."
        )
    away = [point for point in points if point.ran_away]
    if away:
        noises = ", ".join(
            f"lambda {point.strength:g}: {point.ran_away} of {len(point.lines)}, norm {point.number('norm').mean:.2g}, "
            f"J {point.number('distance').mean:.3g}"
            for point in away
        )
        notes.append(
            "Eq. 4 has no lower bound even without the all-ones direction: layer norms make J bounded, and the "
            "logarithm is not. Where lambda is larger than <v, grad J> gets on the way, the noise runs away, J at "
            f"its ceiling ({noises})."
        )
    if settled:
        shares = [line["radial"] / point.strength for point in settled for line in point.lines]
        notes.append(
            f"At a stationary point <v, grad J> is lambda. Measured, on the images learned on, it is {min(shares):.2f} "
            f"to {max(shares):.2f} times lambda (of {format_count(len(shares), 'noise')} that did not run away): below "
            "1, the norm would still have grown with more steps, above 1 shrunk. Not settled: less than 0.75 or more "
            "than 1.35 times lambda, of some noise."
        )
    given_up = [point for point in settled if point.gives_up_a_token]
    if given_up:
        listed = ", ".join(
            f"lambda {each.strength:g}: {100 * each.number('token_share').mean:.0f}%" for each in given_up
        )
        notes.append(
            f"More than half of the squared norm lies in a single token ({listed}): what layer norms bound for all "
            "tokens they bound for each, so that one may grow for ever at the price of that token. A permutation "
            "spreads it over all of them, and is no fair control there; one within each token is. "
            + " ".join(f"Lambda {each.strength:g}: {_compared(each, 'within')}" for each in given_up)
        )
    return notes


def _ahead(settled: Sequence[StrengthPoint], control: str) -> str:
    fair = [point for point in settled if control != "permuted" or not point.gives_up_a_token]
    ahead = [point for point in fair if point.lead(control).low > 0]
    most = ""
    if ahead:
        point = max(ahead, key=lambda each: each.lead(control).mean)
        norm = point.number("norm").mean
        most = f", by most at lambda {point.strength:g} (norm {norm:.3g}): {_compared(point, control)}"
    without = "" if fair == settled else ", without those that give up a token"
    return (
        f"More predictions stay than with the {_NAMES[control]}, by an interval above 0 (not corrected for their "
        f"number), at {len(ahead)} of {format_count(len(fair), 'lambda')}{without}{most or '.'}"
    )


def _compared(point: StrengthPoint, control: str) -> str:
    learned, other = (_shown(point.agreement(kind), ".1f") for kind in ("learned", control))
    return (
        f"{learned}% of predictions stay, with the {_NAMES[control]} {other}%; difference "
        f"{_shown(point.lead(control), '+.1f')} points, n = {format_count(point.n, 'image')}, "
        f"{format_count(len(point.lines), 'noise')}."
    )


def _shown(found: Interval, form: str) -> str:
    return f"{found.mean:{form}} [{found.low:{form}}, {found.high:{form}}]"


def _all_ones(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"The direction that is projected out: noise that is 1 everywhere (norm {line['norm']:.3g}) moves the logits "
        f"by {line['logit_distance'][0]:.2g} on average, n = {format_count(line['n'], 'image')}."
        for line in lines
        if line["kind"] == "ones"
    ]


def _row(line: Mapping[str, Any]) -> list[object]:
    row = [line[name] for name in ("strength", "noise_seed", "norm", "start_norm", "distance", "radial", "token_share")]
    for kind in KINDS:
        found = line[kind]
        row += [found["unchanged"], line["n"], *found["mse_probability"], *found["logit_distance"]]
    return row
