"""What follows from Proposition 1's conditions (arXiv:2403.10476) as measured: sentences, with n and intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..utils import np
from .seed_statistics import interval_of_mean

Line = Mapping[str, Any]
_ROUNDING = 1e-12  # of float64, in which everything is computed


def values_of(line: Line, name: str) -> list[float]:
    """Of each head, or of the layer; of all Q, K, V for ``condition``; [] where there are none (one head alone)."""
    if name == "condition":
        return [value for each in ("query", "key", "value") for value in line[f"condition_{each}"]]
    value = line.get(name)
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def pooled(lines: Sequence[Line], name: str, control: bool = False) -> list[float]:
    """Of all layers; with ``control`` of the random ones."""
    return [value for line in lines for value in values_of(line["control"] if control else line, name)]


def middle(values: Sequence[float]) -> tuple[float, float]:
    """Where the middle 95% lie."""
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def changes_of(lines: Sequence[Line], noise: str, size: float) -> Iterator[tuple[int, Line]]:
    """(layer, change) of each layer."""
    for line in lines:
        for change in line["changes"]:
            if change["noise"] == noise and change["size"] == size:
                yield line["layer"], change


def mean_change(change: Line, kind: str) -> float:
    """Mean over images; of ``random`` over the directions too."""
    return float(change["least"][0] if kind == "least" else np.mean(change["random"]))


def met(line: Line) -> tuple[list[bool], list[bool], bool]:
    """Conditions 1 and 2 of each head, and whether 3 is possible in the layer, up to the rounding of the weights."""
    one = [share >= 1 - least - _ROUNDING for share, least in zip(line["share"], line["share_tolerance"], strict=True)]
    two = [
        math.sqrt(max(0.0, 1 - least**2)) <= tolerance + math.sqrt(_ROUNDING)
        for least, tolerance in zip(line["inside_least"], line["inside_tolerance"], strict=True)
    ]
    return one, two, line.get("row") is not None and line["keys_dimension"] > 0


def findings(name: str, lines: Sequence[Line]) -> Iterator[str]:
    """Of the model ``name``: which conditions are met, what no head sees, and what noise there does."""
    verdicts, heads = [met(line) for line in lines], len(pooled(lines, "share"))
    whole = sum(all(one) and all(two) and three for one, two, three in verdicts)
    counts = [sum(sum(one) for one, _, _ in verdicts), sum(sum(two) for _, two, _ in verdicts)]
    third = sum(verdict[2] for verdict in verdicts)
    yield (
        f"{name}: {_number(whole)} of {len(lines)} layers meets the conditions of Proposition 1. Condition 1 is met by "
        f"{_number(counts[0])} of {heads} heads, condition 2 by {_number(counts[1])}; condition 3 is possible in "
        f"{_number(third)} of {len(lines)} layers."
    )
    yield f"{name}, condition 1: {_symmetry(lines)}"
    inside = pooled(lines, "inside")
    yield (
        f"{name}, condition 2: between the column spaces of V and K, all of whose cosines would be 1, the root mean "
        f"square cosine has median {np.median(inside):.3f} and lies in {_ends(inside)}; of random spaces, 95% lie in "
        f"{_shown(middle(pooled(lines, 'inside', True)))}. The smallest cosine of a head is "
        f"{max(pooled(lines, 'inside_least')):.3f} at most (n={heads} heads)."
    )
    yield f"{name}, condition 3: {_collinearity(lines)}"
    for part, title in (("common", "all Q, K and V"), ("same", "all Q and V (one w on all tokens)")):
        dimensions = [line[f"{part}_dimension"] for line in lines]
        values, random = pooled(lines, part), pooled(lines, part, True)
        shown = f"{dimensions[0]} in every layer" if len(set(dimensions)) == 1 else f"{dimensions}, by layer"
        yield (
            f"{name}, directions beside all-ones that no head sees, by {title}: the exact nullspace has dimension "
            f"{shown}. Smallest over largest singular value: {min(values):.2g} to {max(values):.2g} (n={len(lines)} "
            f"layers; rounding explains at most {max(line[f'{part}_tolerance'] for line in lines):.1g}), of random "
            f"matrices with the same gain {min(random):.2g} to {max(random):.2g}."
        )
    yield f"{name}, {_seen(lines)}"


def _symmetry(lines: Sequence[Line]) -> str:
    shares, gained, others = (pooled(lines, name) for name in ("share", "share_gained", "share_others"))
    low, high = middle(pooled(lines, "share", True))
    mean = interval_of_mean(shares)
    above, below = sum(value > high for value in shares), sum(value < low for value in shares)
    best = max(lines, key=lambda line: float(max(line["share"])))
    text = (
        f"the symmetric share of Q K' (1 where it is symmetric) has mean {mean.mean:.3f} {_shown(mean[1:])} (95%, "
        f"Student's t over n={len(shares)} heads), median {np.median(shares):.3f}, and lies in {_ends(shares)}, the "
        f"largest in layer {best['layer']}. Of random matrices 95% lie in {_shown((low, high))}: {_number(above)} of "
        f"the heads above it, {_number(below)} below. "
    )
    if others:
        text += f"With another head's keys the share has mean {np.mean(others):.3f}. "
    return text + (
        f"With LayerNorm's gain the median is {np.median(gained):.3f}, the largest {max(gained):.3f}. The paper cites "
        "Yeh et al. (2023) for Q K' being empirically symmetric, by correlation of parameters: between an entry and "
        f"its mirror image (2 share - 1) it is {2 * np.median(shares) - 1:.2f} in the median head here and "
        f"{2 * max(shares) - 1:.2f} at most; {_number(sum(value > 0.75 for value in shares))} of {len(shares)} heads "
        "have more than 0.5."
    )


def _collinearity(lines: Sequence[Line]) -> str:
    keys = pooled(lines, "keys")
    text = (
        f"it needs a singular [K_1 ... K_h]. Smallest over largest singular value: at least {min(keys):.2g} (median "
        f"{np.median(keys):.2g}, n={len(lines)} layers), of which rounding explains at most "
        f"{max(line['keys_tolerance'] for line in lines):.1g}; of random matrices 95% lie in "
        f"{_shown(middle(pooled(lines, 'keys', True)), '.2g')}."
    )
    if rows := pooled(lines, "row"):
        text += (
            " The largest cosine of a row of a Q_m K_m' with another head's row space, which would be 1, is "
            f"{max(rows):.3f}; of random matrices {max(pooled(lines, 'row', True)):.3f}."
        )
    return text


def _seen(lines: Sequence[Line]) -> str:
    parts = []
    for noise, shown in (("same", "one w on all tokens"), ("other", "other amounts of w on each token")):
        found = [change for _, change in changes_of(lines, noise, 1.0)]
        ratios = [mean_change(change, "random") / mean_change(change, "least") for change in found]
        ends = [choose((change["least"] for change in found), key=lambda each: float(each[0])) for choose in (min, max)]
        texts = [f"{mean:.2g} {_shown((low, high), '.2g')}" for mean, low, high in ends]
        parts.append(
            f"{shown}, {texts[0]} in the layer that changes least and {texts[1]} in the one that changes most; random "
            f"directions change {np.median(ratios):.2g} times as much (median over layers, {min(ratios):.2g} to "
            f"{max(ratios):.2g})"
        )
    n = lines[0]["changes"][0]["n"]
    return (
        "noise as large as the normalised token (size 1), along the direction that heads see least, changes their "
        f"outputs by, relatively: {'; '.join(parts)}. 95% intervals: Student's t over n={n} images."
    )


def constructed_findings(lines: Sequence[Line]) -> Iterator[str]:
    """Of the layer that meets the conditions, and of those that lack one."""
    found = {line["without"]: line for line in lines}
    if set(found) != set(range(4)):
        return
    own = found[0]
    yield (
        f"A layer constructed by Remark 1 ({own['heads']} heads, width {own['width']}, {own['tokens']} Gaussian "
        "tokens, float64) meets all three conditions, and the proof's W, as large as the tokens, changes its heads "
        f"relatively by {own['proof']:.1g} (rounding), a random W by {own['random']:.2g}: the proposition holds. With "
        f"another Q of one head (condition 1 dropped) such a W changes them by {found[1]['proof']:.2g}, with another "
        f"V (condition 2) by {found[2]['proof']:.2g}. Without the shared row (condition 3) no exact w is left; the "
        f"least seen one changes them by {found[3]['proof']:.2g}."
    )


def _number(count: int) -> str:
    return "none" if count == 0 else str(count)


def _ends(values: Sequence[float]) -> str:
    return _shown((min(values), max(values)))


def _shown(ends: Sequence[float], digits: str = ".3f") -> str:
    return f"[{ends[0]:{digits}}, {ends[1]:{digits}}]"
