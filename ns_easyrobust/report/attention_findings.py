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
    """Of each head, or of the layer; [] where there are none (one head alone)."""
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


def verdicts_of(lines: Sequence[Line]) -> tuple[list[str], list[str], list[str]]:
    """Conditions 1 and 2 of each head and 3 of each layer: "met", "excluded" or "open", up to the weights' rounding.

    Open: rounding is so large there that it excludes nothing, as a random matrix would not be excluded either. Of
    condition 3 only what it needs is tested, a singular matrix of all keys: it is "open" or "excluded".
    """
    random_share = max(pooled(lines, "share", True))
    random_sine = math.sqrt(1 - min(1.0, max(pooled(lines, "inside_least", True))) ** 2)
    one, two, three = [], [], []
    for line in lines:
        for share, tolerance in zip(line["share"], line["share_tolerance"], strict=True):
            one.append(_verdict(1 - share, tolerance + _ROUNDING, 1 - random_share))
        for least, tolerance in zip(line["inside_least"], line["inside_tolerance"], strict=True):
            sine = math.sqrt(max(0.0, 1 - least**2))
            two.append(_verdict(sine, tolerance + math.sqrt(_ROUNDING), random_sine))
        three.append("open" if line.get("row") is not None and line["keys_dimension"] > 0 else "excluded")
    return one, two, three


def _verdict(distance: float, tolerance: float, of_random: float) -> str:
    if distance > tolerance:
        return "excluded"
    return "open" if of_random <= tolerance else "met"


def findings(name: str, lines: Sequence[Line]) -> Iterator[str]:
    """Of the model ``name``: which conditions are met, what no head sees, and what noise there does."""
    yield f"{name}: {_conditions_said(lines)}"
    yield f"{name}, condition 1: {_symmetry(lines)}"
    inside = pooled(lines, "inside")
    yield (
        f"{name}, condition 2: between the column spaces of V and K, all of whose cosines would be 1, the root mean "
        f"square cosine has median {np.median(inside):.3f} and lies in {_ends(inside)}; of random spaces, 95% lie in "
        f"{_shown(middle(pooled(lines, 'inside', True)))}. The smallest cosine of a head is "
        f"{max(pooled(lines, 'inside_least')):.3f} at most (n={len(inside)} heads)."
    )
    yield f"{name}, condition 3: {_collinearity(lines)}"
    for part, title in (("common", "all Q, K and V"), ("same", "all Q and V (one w on all tokens)")):
        values, random = pooled(lines, part), pooled(lines, part, True)
        dimensions = {line["layer"]: line[f"{part}_dimension"] for line in lines}
        tolerance = max(line[f"{part}_tolerance"] for line in lines)
        yield (
            f"{name}, directions beside all-ones that no head sees, by {title}: the exact nullspace has dimension "
            f"{_dimensions_said(dimensions)}. Smallest over largest singular value: {min(values):.2g} to "
            f"{max(values):.2g} (n={len(lines)} layers; rounding explains at most {tolerance:.1g}), of random matrices "
            f"with the same gain {min(random):.2g} to {max(random):.2g}."
        )
    yield f"{name}, {_seen(lines)}"


def _conditions_said(lines: Sequence[Line]) -> str:
    one, two, three = verdicts_of(lines)
    heads = [line["layer"] for line in lines for _ in line["share"]]
    refuted = {layer for each in (one, two) for layer, found in zip(heads, each, strict=True) if found == "excluded"}
    refuted |= {line["layer"] for line, found in zip(lines, three, strict=True) if found == "excluded"}
    third = f"is excluded in {three.count('excluded')} of {len(lines)} layers"
    if "excluded" not in three:
        third = "is not excluded in any layer"
    return (
        "up to the rounding of the stored weights, the conditions of Proposition 1 are excluded in "
        f"{len(refuted)} of {len(lines)} layers. Condition 1 "
        f"{_heads_said(one, 'where rounding is as large as what is measured')}. Condition 2 "
        f"{_heads_said(two, 'whose keys or values are singular up to rounding')}. "
        f"Condition 3 {third}. The numbers below are of the weights as they are stored."
    )


def _heads_said(found: Sequence[str], why_open: str) -> str:
    text = f"is excluded for {found.count('excluded')} of {len(found)} heads"
    if count := found.count("met"):
        text += f", and met by {count}"
    if count := found.count("open"):
        text += f"; of {count}, {why_open}, nothing can be said"
    return text


def _dimensions_said(dimensions: Mapping[int, int]) -> str:
    """By layer: "0 in every layer", or "at most 1 in layer 0 and 0 elsewhere"."""
    if not any(dimensions.values()):
        return "0 in every layer"
    parts = []
    for dimension in sorted(set(dimensions.values()) - {0}, reverse=True):
        layers = [str(layer) for layer, found in dimensions.items() if found == dimension]
        parts.append(f"{dimension} in {'layer' if len(layers) == 1 else 'layers'} {', '.join(layers)}")
    rest = " and 0 elsewhere" if 0 in dimensions.values() else ""
    return f"at most {', '.join(parts)}{rest}"


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
    own, ratio = found[0], float(f"{found[3]['random'] / found[3]['proof']:.2g}")
    yield (
        f"A layer constructed by Remark 1 ({own['heads']} heads, width {own['width']}, {own['tokens']} Gaussian "
        "tokens, float64) meets all three conditions, and the proof's W, as large as the tokens, changes its heads "
        f"relatively by {own['proof']:.1g} (rounding), a random W by {own['random']:.2g}: the proposition holds in "
        f"this construction. With another Q of one head (condition 1 dropped) such a W changes them by "
        f"{found[1]['proof']:.2g}, with another V (condition 2) by {found[2]['proof']:.2g}. Without the shared row "
        "(condition 3) no exact w is left, but the one that the keys see least changes them by no more than "
        f"{found[3]['proof']:.2g}, {ratio:g} times less than a random W: conditions 1 and 2 carry the effect."
    )


def _number(count: int) -> str:
    return "none" if count == 0 else str(count)


def _ends(values: Sequence[float]) -> str:
    return _shown((min(values), max(values)))


def _shown(ends: Sequence[float], digits: str = ".3f") -> str:
    return f"[{ends[0]:{digits}}, {ends[1]:{digits}}]"
