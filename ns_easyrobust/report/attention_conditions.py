"""Proposition 1 of arXiv:2403.10476 on real heads: which conditions they meet, layer by layer, and what follows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..utils import np
from .attention_findings import (
    Line,
    changes_of,
    constructed_findings,
    findings,
    mean_change,
    middle,
    pooled,
    values_of,
)
from .attention_picture import attention_figure
from .figure_report import FigureReport
from .sheet import Cell, Sheet

_COLUMNS = (
    ("symmetric share of Q K'", "share"),
    ("the same with LayerNorm's gain", "share_gained"),
    ("root mean square cosine of V and K", "inside"),
    ("cosine of a row with another head's rows", "row"),
    ("smallest / largest singular value of all K", "keys"),
    ("of all Q, K and V", "common"),
    ("of all Q and V", "same"),
)
_SIZES = (0.1, 1.0, 3.0)  # that the table shows; the others are in the CSV


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
        notes += findings(name, found)
    notes += constructed_findings(constructed)
    return FigureReport(
        "Proposition 1: do attention heads have a common nullspace?", sheets, notes, list(_rows(layers, constructed)),
        lambda stream: attention_figure(stream, layers, _caption(protocol, layers)),
    )  # fmt: skip


def _conditions(lines: Sequence[Line]) -> Sheet:
    rows = [(f"layer {line['layer']}", [_cell(values_of(line, name)) for _, name in _COLUMNS]) for line in lines]
    rows.append(("random, all layers", [_cell(pooled(lines, name, True)) for _, name in _COLUMNS]))
    note = (
        "Of several heads: median [smallest, largest]; of rows the largest cosine. Random: of all draws. Condition 1 "
        "needs a share of 1, condition 2 cosines of 1, condition 3 a row's cosine of 1 and a singular value of 0."
    )
    return Sheet([(title, "") for title, _ in _COLUMNS], rows, [note])


def _cell(values: Sequence[float]) -> Cell:
    if not values:
        return Cell("-", is_number=False)
    if len(values) == 1:
        return Cell(f"{values[0]:.3g}", ("",))
    return Cell(f"{np.median(values):.3g}", (f"[{min(values):.3g}, {max(values):.3g}]",))


def _changes(layers: Mapping[str, Sequence[Line]]) -> Sheet:
    rows = []
    for name, lines in layers.items():
        for noise, shown in (("same", "one w on all tokens"), ("other", "another amount on each token")):
            for kind in ("least", "random"):
                cells = []
                for size in _SIZES:
                    means = [mean_change(change, kind) for _, change in changes_of(lines, noise, size)]
                    cells.append(Cell(f"{np.median(means):.3g}", (f"[{min(means):.3g}, {max(means):.3g}]",)))
                direction = "least seen w" if kind == "least" else "random w"
                rows.append((f"{name}, {shown}, {direction}", cells))
    note = (
        "Size: norm of a token's noise over that of the normalised token, before the gain. Median [smallest, largest] "
        "over layers of the mean over images. Least seen: w of the smallest singular value of all Q and V, for one w "
        "on all tokens, and of all Q, K and V for other amounts. The residual branch still carries the noise."
    )
    return Sheet([(f"size {size:g}", "") for size in _SIZES], rows, [note])


def _constructed(lines: Sequence[Line]) -> Sheet:
    headings = [
        ("least symmetric share of a head", ""), ("smallest cosine of V and K", ""),
        ("largest cosine of a row with another head's rows", ""), ("directions that no K sees", ""),
        ("change by the proof's W", ""), ("change by a random W", ""),
    ]  # fmt: skip
    rows = []
    for line in lines:
        name = "all conditions met" if not line["without"] else f"condition {line['without']} dropped"
        plain = [f"{line[key]:.3g}" for key in ("share", "inside", "row", "dimension", "proof", "random")]
        rows.append((name, [Cell(text) for text in plain]))
    return Sheet(headings, rows, ["Changes are relative, of all heads' outputs."])


def _how(protocol: Mapping[str, Any], layers: Mapping[str, Sequence[Line]]) -> str:
    models = protocol["models"]
    images = "; ".join(f"{name}: {models[name]['n']} images, {models[name]['images_from']}" for name in layers)
    return (
        "Everything in float64, but the changes by noise, which run in the model's own precision. Random: "
        f"{protocol['draws']} independent Gaussian layers of the same sizes for each layer, with that "
        "layer's gain. What rounding of the stored weights (half precision: relatively 2^-11, "
        "single: 2^-24) may make of an exact 0 is the tolerance, by Weyl's inequality. Noise was added to what "
        f"attention reads of images ({images}). Seed {protocol['seed']}."
    )


def _caption(protocol: Mapping[str, Any], layers: Mapping[str, Sequence[Line]]) -> str:
    counts = ", ".join(f"{name}: n={len(pooled(lines, 'share'))} heads" for name, lines in layers.items())
    return (
        f"{counts}. Random: matrices of the same sizes, {protocol['draws']} draws for each layer: the middle 95% of "
        "all; with a gain (all Q, K, V; all Q, V) the range of that layer's. Bottom: one w on all tokens alike, added "
        "to what attention reads; lines: median over layers of the mean over images, shades: the layers' range."
    )


def _rows(layers: Mapping[str, Sequence[Line]], constructed: Sequence[Line]) -> Iterator[list[object]]:
    yield ["model", "layer", "head", "quantity", "value", "random_mean", "random_low", "random_high"]
    for name, lines in layers.items():
        for line in lines:
            for quantity, control in line["control"].items():
                values = values_of(line, quantity)
                ends = middle(control)
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
