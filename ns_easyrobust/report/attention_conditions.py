"""Proposition 1 of arXiv:2403.10476 on real heads: which conditions they meet, layer by layer, and what follows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..utils import np
from .attention_picture import attention_figure
from .figure_report import FigureReport
from .seed_statistics import interval_of_mean
from .sheet import Cell, Sheet

_ROUNDING = 1e-12  # of float64, in which everything is computed
_COLUMNS = (
    ("1: symmetric share", "of Q K'", "share"),
    ("1: with LayerNorm's gain", "of Q K'", "share_gained"),
    ("2: V in K", "root mean square cosine", "inside"),
    ("2: V in K", "smallest cosine", "inside_least"),
    ("3: row in another head", "largest cosine", "row"),
    ("3: all K", "smallest/largest singular value", "keys"),
    ("all Q, K, V", "smallest/largest singular value", "common"),
    ("all Q, V", "smallest/largest singular value", "same"),
    ("condition of Q, K, V", "largest", "condition"),
)
Line = Mapping[str, Any]


def attention_report(protocol: Mapping[str, Any], lines: Sequence[Line]) -> FigureReport:
    """The tables, findings, CSV and picture of the experiment ``attention``."""
    layers = {name: [line for line in lines if line.get("model") == name] for name in protocol["models"]}
    layers = {name: found for name, found in layers.items() if found}
    constructed = [line for line in lines if "without" in line]
    sheets = [(f"Conditions of Proposition 1: {name}", _conditions(found)) for name, found in layers.items()]
    sheets.append(("Relative change of the heads' outputs by noise on the LayerNorm's output", _changes(layers)))
    sheets.append(("A constructed layer", _constructed(constructed)))
    notes = [_how(protocol, layers)]
    for name, found in layers.items():
        notes += _findings(name, found)
    notes += _constructed_notes(constructed)
    return FigureReport(
        "Proposition 1: do attention heads have a common nullspace?", sheets, notes, list(_rows(layers, constructed)),
        lambda stream: attention_figure(stream, layers, _caption(protocol, layers)),
    )  # fmt: skip


def values_of(line: Line, name: str) -> list[float]:
    """Of each head, or of the layer; of all Q, K, V for ``condition``; [] where there are none (one head alone)."""
    if name == "condition":
        return [value for each in ("query", "key", "value") for value in line[f"condition_{each}"]]
    value = line.get(name)
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def _pooled(lines: Sequence[Line], name: str, control: bool = False) -> list[float]:
    return [value for line in lines for value in values_of(line["control"] if control else line, name)]


def _middle(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _conditions(lines: Sequence[Line]) -> Sheet:
    rows = [
        (f"layer {line['layer']}", [_cell(values_of(line, name), name) for _, _, name in _COLUMNS]) for line in lines
    ]
    rows.append(("random, all layers", [_cell(_pooled(lines, name, True), name) for _, _, name in _COLUMNS]))
    note = "Of several heads: median [smallest, largest]; of condition numbers the largest. Random: of all draws."
    return Sheet([(title, unit) for title, unit, _ in _COLUMNS], rows, [note])


def _cell(values: Sequence[float], name: str) -> Cell:
    if not values:
        return Cell("-", is_number=False)
    if name == "condition":
        return Cell(f"{max(values):.3g}")
    if len(values) == 1:
        return Cell(f"{values[0]:.3g}", ("",))
    return Cell(f"{np.median(values):.3g}", (f"[{min(values):.3g}, {max(values):.3g}]",))


def _changes(layers: Mapping[str, Sequence[Line]]) -> Sheet:
    sizes = [change["size"] for change in next(iter(layers.values()))[0]["changes"] if change["noise"] == "same"]
    rows = []
    for name, lines in layers.items():
        for noise, shown in (("same", "one w on all tokens"), ("other", "w, other amounts")):
            for kind in ("least", "random"):
                cells = []
                for size in sizes:
                    means = [mean_change(change, kind) for _, change in changes_of(lines, noise, size)]
                    cells.append(Cell(f"{np.median(means):.3g}", (f"[{min(means):.3g}, {max(means):.3g}]",)))
                direction = "least seen" if kind == "least" else "random w"
                rows.append((f"{name}, {shown}, {direction}", cells))
    note = (
        "Size: norm of a token's noise over that of the normalised token, before the gain. Median [smallest, largest] over "
        "layers of the mean over images. Least seen: w of the smallest singular value of all Q and V, for one w on all "
        "tokens, and of all Q, K and V for other amounts. The residual branch still carries the noise."
    )
    return Sheet([("size", f"{size:g}") for size in sizes], rows, [note])


def changes_of(lines: Sequence[Line], noise: str, size: float) -> Iterator[tuple[int, Line]]:
    """(layer, change) of each layer."""
    for line in lines:
        for change in line["changes"]:
            if change["noise"] == noise and change["size"] == size:
                yield line["layer"], change


def mean_change(change: Line, kind: str) -> float:
    """Mean over images; of ``random`` over the directions too."""
    return float(change["least"][0] if kind == "least" else np.mean(change["random"]))


def _constructed(lines: Sequence[Line]) -> Sheet:
    headings = [
        ("1: symmetric share", "smallest of a head"), ("2: V in K", "smallest cosine"),
        ("3: row in another head", "largest cosine"), ("dimension", "of what all K ignore"),
        ("change by the proof's W", "relative"), ("by a random W", "relative"),
    ]  # fmt: skip
    rows = []
    for line in lines:
        name = "all conditions met" if not line["without"] else f"condition {line['without']} dropped"
        plain = [f"{line[key]:.3g}" for key in ("share", "inside", "row", "dimension", "proof", "random")]
        rows.append((name, [Cell(text) for text in plain]))
    return Sheet(headings, rows)


def _how(protocol: Mapping[str, Any], layers: Mapping[str, Sequence[Line]]) -> str:
    images = "; ".join(f"{name}: {protocol['models'][name]['n']} images, {protocol['models'][name]['images_from']}"
                       for name in layers)  # fmt: skip
    return (
        f"Everything in float64. Random: {protocol['draws']} independent Gaussian layers of the same sizes for each layer, "
        "with that layer's gain. What rounding of the stored weights (half precision: relatively 2^-11, single: 2^-24) "
        "may make of an exact 0 is the tolerance, by Weyl's inequality. Noise was added to what attention reads of "
        f"images ({images}). Seed {protocol['seed']}."
    )


def met(line: Line) -> tuple[list[bool], list[bool], bool]:
    """Conditions 1 and 2 of each head, and 3 of the layer, up to the rounding of the stored weights."""
    one = [share >= 1 - least - _ROUNDING for share, least in zip(line["share"], line["share_tolerance"], strict=True)]
    two = [
        math.sqrt(max(0.0, 1 - least**2)) <= tolerance + math.sqrt(_ROUNDING)
        for least, tolerance in zip(line["inside_least"], line["inside_tolerance"], strict=True)
    ]
    return one, two, line.get("row") is not None and line["keys_dimension"] > 0


def _findings(name: str, lines: Sequence[Line]) -> Iterator[str]:
    shares, control = _pooled(lines, "share"), _pooled(lines, "share", True)
    heads, verdicts = len(shares), [met(line) for line in lines]
    whole = sum(all(one) and all(two) and three for one, two, three in verdicts)
    counts = [sum(sum(verdict[index]) for verdict in verdicts) for index in (0, 1)]
    third = sum(verdict[2] for verdict in verdicts)
    yield (
        f"{name}: {_number(whole)} of {len(lines)} layers meets the conditions of Proposition 1. Condition 1 is met by "
        f"{_number(counts[0])} of {heads} heads, condition 2 by {_number(counts[1])}, condition 3 is possible in "
        f"{_number(third)} of {len(lines)} layers."
    )
    low, high = _middle(control)
    mean = interval_of_mean(shares)
    above, below = sum(value > high for value in shares), sum(value < low for value in shares)
    others = _pooled(lines, "share_others")
    best = max(lines, key=lambda line: max(line["share"]))
    yield (
        f"{name}, condition 1: the symmetric share of Q K' (1 where it is symmetric) has mean {mean.mean:.3f} "
        f"[{mean.low:.3f}, {mean.high:.3f}] (95%, Student's t over n={heads} heads), median {np.median(shares):.3f}, and "
        f"lies in [{min(shares):.3f}, {max(shares):.3f}], the largest in layer {best['layer']}; of random matrices 95% lie "
        f"in [{low:.3f}, {high:.3f}]. {above} heads lie above that band and {below} below. The correlation between an entry "
        f"and its mirror image, 2 share - 1, is {2 * np.median(shares) - 1:.2f} in the median head and "
        f"{2 * max(shares) - 1:.2f} at most"
        + (f"; with another head's keys the share has mean {np.mean(others):.3f}. " if others else ". ")
        + f"With LayerNorm's gain the median is {np.median(_pooled(lines, 'share_gained')):.3f}. The paper cites Yeh et al. "
        f"(2023) for Q K' being empirically symmetric: of these heads {_number(sum(value > 0.95 for value in shares))} has a "
        f"share above 0.95, and {_number(sum(value > 0.75 for value in shares))} above 0.75."
    )
    inside, inside_control = _pooled(lines, "inside"), _pooled(lines, "inside", True)
    yield (
        f"{name}, condition 2: between the column spaces of V and K, all of whose cosines would be 1, the root mean square "
        f"cosine has median {np.median(inside):.3f} and lies in [{min(inside):.3f}, {max(inside):.3f}]; random spaces: "
        f"95% in {_shown(_middle(inside_control))}. The smallest cosine of a head is {max(_pooled(lines, 'inside_least')):.3f} at "
        f"most (n={heads} heads)."
    )
    keys = [(line["keys"], line["keys_tolerance"]) for line in lines]
    text = (
        f"{name}, condition 3: it needs a singular [K_1 ... K_h]. Smallest over largest singular value: at least "
        f"{min(keys)[0]:.2g} (median {np.median([one for one, _ in keys]):.2g}, n={len(lines)} layers), where rounding "
        f"explains at most {max(tolerance for _, tolerance in keys):.1g}; random: 95% in "
        f"{_shown(_middle(_pooled(lines, 'keys', True)), '.2g')}."
    )
    if rows := _pooled(lines, "row"):
        text += (
            f" The largest cosine of a row of a Q_m K_m' with another head's row space, which would be 1, is {max(rows):.3f}; "
            f"random: at most {max(_pooled(lines, 'row', True)):.3f}."
        )
    yield text
    for part, title in (("common", "all Q, K and V"), ("same", "all Q and V (one w on all tokens)")):
        dimensions = [line[f"{part}_dimension"] for line in lines]
        values, random = _pooled(lines, part), _pooled(lines, part, True)
        yield (
            f"{name}, directions orthogonal to all-ones that no head sees, by {title}: the exact nullspace has dimension "
            + (f"{max(dimensions)} in every layer" if len(set(dimensions)) == 1 else f"{dimensions} by layer")
            + f". Smallest over largest singular value: {min(values):.2g} to {max(values):.2g} (n={len(lines)} layers; tolerance "
            f"{max(line[f'{part}_tolerance'] for line in lines):.1g}), of random matrices with the same gain "
            f"{min(random):.2g} to {max(random):.2g}."
        )
    yield _change_finding(name, lines)


def _change_finding(name: str, lines: Sequence[Line]) -> str:
    parts = []
    for noise, shown in (("same", "one w on all tokens"), ("other", "other amounts of w on each token")):
        pairs = [(change["least"], mean_change(change, "random")) for _, change in changes_of(lines, noise, 1.0)]
        ratios = [random / least[0] for least, random in pairs]
        smallest, largest = min(least for least, _ in pairs), max(least for least, _ in pairs)
        parts.append(
            f"{shown}: {smallest[0]:.2g} [{smallest[1]:.2g}, {smallest[2]:.2g}] in the layer that changes least, "
            f"{largest[0]:.2g} [{largest[1]:.2g}, {largest[2]:.2g}] in that which changes most (95%, Student's t over "
            f"n={lines[0]['changes'][0]['n']} images); random directions change {np.median(ratios):.2g} times as much "
            f"(median over layers, {min(ratios):.2g} to {max(ratios):.2g})"
        )
    return (
        f"{name}, noise as large as the normalised token (size 1) along the direction that heads see least changes their outputs "
        f"relatively by: {'; '.join(parts)}. No direction is invisible, but some are seen much less."
    )


def _constructed_notes(lines: Sequence[Line]) -> Iterator[str]:
    found = {line["without"]: line for line in lines}
    if set(found) != set(range(4)):
        return
    all_met = found[0]
    yield (
        f"A layer constructed by Remark 1 ({all_met['heads']} heads, width {all_met['width']}, {all_met['tokens']} Gaussian "
        f"tokens, float64) meets all three conditions, and the proof's W, as large as the tokens, changes its heads "
        f"relatively by {all_met['proof']:.1g} (rounding), a random W by {all_met['random']:.2g}: the proposition holds. "
        f"With another Q of one head (condition 1 dropped) the same W changes them by {found[1]['proof']:.2g}, with another V "
        f"(condition 2) by {found[2]['proof']:.2g}. Without the shared row (condition 3) no exact w is left; the least seen one "
        f"changes them by {found[3]['proof']:.2g}."
    )


def _number(count: int) -> str:
    return "none" if count == 0 else str(count)


def _shown(ends: tuple[float, float], digits: str = ".3f") -> str:
    return f"[{ends[0]:{digits}}, {ends[1]:{digits}}]"


def _caption(protocol: Mapping[str, Any], layers: Mapping[str, Sequence[Line]]) -> str:
    counts = ", ".join(f"{name}: n={len(_pooled(lines, 'share'))} heads" for name, lines in layers.items())
    return (
        f"{counts}. Bands: middle 95% of random matrices of the same sizes, {protocol['draws']} draws for each layer. Bottom: lines are "
        "medians over layers, shades their range; one w on all tokens, w least seen by all Q and V."
    )


def _rows(layers: Mapping[str, Sequence[Line]], constructed: Sequence[Line]) -> Iterator[list[object]]:
    yield ["model", "layer", "head", "quantity", "value", "random_mean", "random_low", "random_high"]
    for name, lines in layers.items():
        for line in lines:
            for quantity, control in line["control"].items():
                values = values_of(line, quantity)
                ends = _middle(control)
                for head, value in enumerate(values):
                    shown = head if isinstance(line[quantity], list) else ""
                    yield [name, line["layer"], shown, quantity, value, float(np.mean(control)), *ends]
            for change in line["changes"]:
                quantity = f"change, {change['noise']}, size {change['size']:g}"
                random = [float(np.mean(change["random"])), min(change["random"]), max(change["random"])]
                yield [name, line["layer"], "", quantity, change["least"][0], *random]
    for line in constructed:
        name = f"constructed, without {line['without'] or 'none'}"
        for quantity in ("share", "inside", "row", "keys", "proof", "random"):
            yield [name, "", "", quantity, line[quantity], "", "", ""]
