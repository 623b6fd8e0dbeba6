"""What Figure 5's numbers say of the paper's claims: sentences, the means first, as the paper reports them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from .. import nullspace
from ..utils import np
from .closure_numbers import NULLSPACE, ClosureNumbers, are_few, spread_name
from .seed_statistics import Interval
from .statistics import wilson_interval

_PLACES = ("under at", "over at", "undecided at")


def nearest(values: Sequence[float], wanted: float) -> int:
    """Place of the value nearest to ``wanted``."""
    return min(range(len(values)), key=lambda place: abs(values[place] - wanted))


def findings(numbers: ClosureNumbers) -> Iterator[str]:
    """Means over noises and pairs, then counts, shapes, and how far the quadratic goes."""
    yield _mean_scaling(numbers)
    yield _mean_lines(numbers)
    yield from _counts(numbers)
    yield from _shapes(numbers)
    norms = ", ".join(
        f"{kind} {np.mean([line['norm'] for line in numbers.singles(kind)]):.3g}" for kind in numbers.kinds
    )
    yield (
        "Random and permuted noise was scaled to the influence of the nullspace noise of its number: what holds of it "
        "too is no property of nullspace noise, but of noise of that influence. The mean norms at which that is "
        f"reached: {norms}."
    )
    if numbers.quadratic:
        ratios = "; ".join(f"{kind} {_said(numbers.gain_over_quadratic(kind))}" for kind in numbers.kinds)
        yield (
            "Measured influence at alpha = 1 over the Jacobian's quadratic prediction, geometric mean over "
            f"noises ({spread_name(numbers.noises, 'noise')}): {ratios}. Where that is far from 1, "
            "the noise is too large for the local picture."
        )


def _mean_scaling(numbers: ClosureNumbers) -> str:
    claim = (
        "Scaling, in the mean. The paper reports the mean influence of alpha v, and that it is less than alpha eps for "
        "alpha < 1."
    )
    places = numbers.places_below_1
    if not places:
        return f"{claim} No alpha between 0 and 1 is in this grid."
    bounds = {f"{numbers.alphas[place]:.2g}": numbers.alphas[place] * numbers.eps for place in places}
    last = places[-1]
    parts, means, errors = [], [], []
    for kind in numbers.kinds:
        found = numbers.means(kind)
        parts.append(f"{kind} {_beside([found[place] for place in places], bounds, numbers.noises)}")
        means.append(f"{kind} {_said(found[last])}")
        errors.append(f"{numbers.image_error(kind, last):.2g} ({kind})")
    alpha = numbers.alphas[last]
    return (
        f"{claim} Here the means ({spread_name(numbers.noises, 'noise')}) are, beside alpha eps and by alpha: "
        f"{'; '.join(parts)}. At alpha = {alpha:.2g}: {'; '.join(means)}, against alpha eps = "
        f"{alpha * numbers.eps:.3g}. That is over noises, on the same images; over images the standard error of these "
        f"means is up to {', '.join(errors)}, so that other images may decide a difference of that size otherwise."
    )


def _mean_lines(numbers: ClosureNumbers) -> str:
    bounds = {f"{share:.2g}": numbers.eps for share in numbers.shares}
    middle = nearest(numbers.shares, 0.5)
    parts = "; ".join(f"{kind} {_beside(numbers.line(kind), bounds, numbers.drawn_pairs)}" for kind in numbers.kinds)
    means = "; ".join(f"{kind} {_said(numbers.line(kind)[middle])}" for kind in numbers.kinds)
    return (
        "Convex combinations, in the mean. The paper averages over pairs, and finds the line alpha1 + alpha2 = 1 well "
        f"within the contour of eps. Here the means ({spread_name(numbers.drawn_pairs, 'pair')}) are, beside eps = "
        f"{numbers.eps:g} and by alpha1: {parts}. At alpha1 = {numbers.shares[middle]:g}: {means}."
    )


def _beside(found: Sequence[Interval], bounds: dict[str, float], count: int) -> str:
    """Where a mean of ``count`` is under its bound with both of its ends, where over it, and where neither."""
    words = ("all under at", "all over at", "not all under at") if are_few(count) else _PLACES
    groups: dict[str, list[str]] = {word: [] for word in words}
    for each, (name, bound) in zip(found, bounds.items(), strict=True):
        groups[words[0 if each.high < bound else 1 if each.low > bound else 2]].append(name)
    return ", ".join(f"{word} {', '.join(names)}" for word, names in groups.items() if names)


def _counts(numbers: ClosureNumbers) -> Iterator[str]:
    found = numbers.singles(NULLSPACE)
    over, under = numbers.beside_eps(NULLSPACE)
    yield (
        f"{sum(line['stopped'] for line in found)} of {len(found)} syntheses ended under eps = {numbers.eps:g}, on the "
        f"minibatch that they ended with. On the images measured on, {over} of {len(found)} nullspace noises are over "
        f"eps by more than their own standard error allows (95%, normal approximation over images), {under} under it, "
        f"and {len(found) - over - under} undecided."
    )
    if untouched := sum(bool(line["untouched"]) for line in found):
        yield (
            f"{untouched} of {len(found)} nullspace noises are their random starts, which were under eps already: "
            "nothing was optimised. A larger --limit makes longer starts, a lower --eps asks more of them."
        )
    yield (
        "Noise by noise, those under alpha eps at each alpha between 0 and 1: "
        f"{_each(numbers, lambda kind: numbers.under_share_of(kind, 'eps'))}. Under alpha times their own influence at "
        f"alpha = 1: {_each(numbers, lambda kind: numbers.under_share_of(kind, 'own'))}."
    )
    both = {kind: numbers.pairs_with_ends_under(kind) for kind in numbers.kinds}
    inner = ", ".join(f"{_of(numbers.inner_under(kind))} ({kind})" for kind in numbers.kinds)
    if not any(both.values()):
        ends = (
            "Pair by pair. The ends themselves are over eps on these images, at least one of every pair's, as the "
            "synthesis stops at the first minibatch under eps and the controls are scaled to its noise: so no whole "
            f"line can be under it. Of the lines' inner points {inner} are."
        )
    else:
        whole = ", ".join(f"{numbers.lines_under(kind, 'eps')[0]} of {both[kind]} {kind}" for kind in numbers.kinds)
        ends = (
            f"Pair by pair, whole lines under eps, of the pairs that have both ends under it: {whole}. Of all lines' "
            f"inner points, {inner} are."
        )
    chord = _each(numbers, lambda kind: numbers.lines_under(kind, "chord"))
    yield f"{ends} Whole lines under the chord between their own ends: {chord}."


def _shapes(numbers: ClosureNumbers) -> Iterator[str]:
    half = nearest(numbers.alphas, 0.5)
    alpha = numbers.alphas[half]
    squared = ", ".join(f"{kind} {_said(numbers.scaled(kind)[half])}" for kind in numbers.kinds)
    plain = ", ".join(f"{kind} {_said(numbers.scaled(kind, 'unsquareds')[half])}" for kind in numbers.kinds)
    yield (
        f"At alpha = {alpha:.2g}, influence over that at 1, in the mean ({spread_name(numbers.noises, 'noise')}), is "
        f"{squared}; a quadratic gives {alpha**2:.3g}. In the unsquared L2 distance of Eq. 5 it is {plain}; a linear "
        f"model gives {alpha:.3g}; under alpha times their own at each alpha between 0 and 1: "
        f"{_each(numbers, lambda kind: numbers.under_share_of(kind, 'unsquared'))}."
    )
    middle = nearest(numbers.shares, 0.5)
    share = numbers.shares[middle]
    shapes = "; ".join(f"{kind} {_said(numbers.line_shape(kind)[middle])}" for kind in numbers.kinds)
    yield (
        f"At alpha1 = {share:g}, alpha2 = {1 - share:g}, influence over the mean of both ends, in the mean "
        f"({spread_name(numbers.drawn_pairs, 'pair')}): {shapes}; a quadratic whose two noises have orthogonal "
        f"responses gives {share**2 + (1 - share) ** 2:.3g}, and any quadratic at most 1 where both ends are alike."
    )


def _each(numbers: ClosureNumbers, counted: Callable[[str], tuple[int, int]]) -> str:
    """Counts of each kind with Wilson's interval, once where they are equal."""
    counts = {kind: counted(kind) for kind in numbers.kinds}
    if len(set(counts.values())) == 1:
        return f"{_wilson(counts[numbers.kinds[0]])} of each kind"
    return "; ".join(f"{kind} {_wilson(found)}" for kind, found in counts.items())


def _of(found: tuple[int, int]) -> str:
    return f"{found[0]} of {found[1]}"


def _wilson(found: tuple[int, int]) -> str:
    low, high = wilson_interval(*found)
    return f"{_of(found)} (95% interval {low:.0f}% to {high:.0f}%)"


def _said(found: Interval) -> str:
    """A mean with its interval, where there is one."""
    ends = f" [{found.low:.3g}, {found.high:.3g}]" if math.isfinite(found.low) else ""
    return f"{found.mean:.3g}{ends}"


def protocol_notes(numbers: ClosureNumbers) -> Iterator[str]:
    """How influence was measured and the noises were made."""
    protocol = numbers.protocol
    if numbers.paired_noises < 2 * numbers.drawn_pairs:
        yield (
            f"The {numbers.drawn_pairs} pairs share noises, as they are of {numbers.paired_noises} noises: they are "
            "not independent, as intervals over pairs take them to be, which are too narrow."
        )
    limit = protocol["limit"]
    start = f"uniform in (-{limit:g}, {limit:g}), learning rate {protocol['lr']:g}"
    if nullspace.known_solvers()[protocol["solver"]].gaussian:
        start = "Gaussian"
    centring = "all centred per token"
    if reader := protocol.get("reader"):
        centring = f"none centred per token, as {reader} reads tokens without a LayerNorm"
    yield (
        f"Influence: mse_probability, the mean over n={protocol['n']} images ({protocol['images_from']}) of the "
        "squared L2 distance between softmax outputs, as Algorithm 1's code tests it; Eq. 5 has it unsquared. Noises: "
        f"solver {protocol['solver']}, eps {protocol['eps']:g}, starts {start}, at most {protocol['max_steps']} steps "
        f"on batches of {protocol['synthesis_batch_size']} of {protocol['synthesis_n']} other images "
        f"({protocol['synthesis_from']}); random: Gaussian; permuted: a nullspace noise's elements in another order; "
        f"{centring}. Standard errors over images are in the CSV."
    )
