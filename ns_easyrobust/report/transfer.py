"""Influence of one model's nullspace noise on other models and other images (Figure 1 of arXiv:2403.10476)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .figure_report import FigureReport
from .presentable import presentable
from .sheet import Cell, Sheet
from .transfer_notes import transfer_notes
from .transfer_picture import transfer_picture
from .transfer_table import HELD_OUT, TITLES, Lines, TransferTable, shown


def transfer_report(protocol: Mapping[str, Any], lines: Lines) -> FigureReport:
    """Tables, findings and picture of the experiment ``transfer``."""
    table = TransferTable(lines)
    sheets = [(TITLES[kind], _sheet(table, kind)) for kind in table.kinds]
    return FigureReport(
        title="Nullspace noise on other models and images",
        sheets=sheets,
        notes=transfer_notes(protocol, table),
        rows=_csv(table),
        draw=lambda stream: transfer_picture(table, stream),
    )


def _sheet(table: TransferTable, kind: str) -> Sheet:
    headings = [
        ("noise", "mse_probability [95%]"), ("permuted", "mse_probability [95%]"), ("random", "mse_probability [95%]"),
        ("noise / permuted", "[95%]"), ("unchanged", "%, noise"), ("unchanged", "%, permuted"),
    ]  # fmt: skip
    rows = []
    for place in table.places:
        if place.kind != kind or (place.source != place.target and place.images != HELD_OUT):
            continue  # the CSV has them
        relative = table.relative(place)
        cells = [
            Cell(shown(table.influence(place, name))) if table.has(place, name) else Cell("-", is_number=False)
            for name in ("noise", "permuted", "random")
        ]
        cells.append(Cell(shown(relative)) if relative else Cell("0"))
        cells += [Cell(f"{100 * table.agreement(place, name):.1f}") for name in ("noise", "permuted")]
        rows.append((presentable(f"of {place.source}, on {place.target}: {place.images}"), cells))
    return Sheet(headings, rows)


def _csv(table: TransferTable) -> list[list[object]]:
    rows: list[list[object]] = [
        ["kind", "source", "target", "images", "control", "n", "noise", "norm", "mse_probability", "unchanged",
         "error_over_images"],
    ]  # fmt: skip
    for place in table.places:
        for control in ("noise", "permuted", "random"):
            if not table.has(place, control):
                continue
            line = table.line(place, control)
            each = zip(line["norms"], line["influences"], line["unchanged"], strict=True)
            for number, (norm, influence, unchanged) in enumerate(each):
                rows.append([*place, control, line["n"], number, norm, influence, unchanged, line["error"]])
    return rows
