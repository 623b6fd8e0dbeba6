"""Influence of one model's nullspace noise on other models and other images (Figure 1 of arXiv:2403.10476)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .figure_report import FigureReport
from .presentable import presentable
from .sheet import Cell, Sheet
from .transfer_notes import transfer_notes
from .transfer_picture import transfer_picture
from .transfer_table import HELD_OUT, TITLES, Lines, Place, TransferTable, shown


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
    """A row for each model whose noise it is; the models that it is measured on, then its own on other images."""
    others = [images for images in table.images if images != HELD_OUT]
    headings = [(f"on {presentable(target)}", HELD_OUT) for target in table.targets]
    headings += [("on itself", presentable(images)) for images in others]
    rows = []
    for source in table.sources:
        places = [Place(kind, source, target, HELD_OUT) for target in table.targets]
        places += [Place(kind, source, source, images) for images in others]
        rows.append((presentable(source), [_cell(table, place) for place in places]))
    return Sheet(headings, rows)


def _cell(table: TransferTable, place: Place) -> Cell:
    if not table.has(place):
        return Cell("-", is_number=False)
    relative = table.relative(place)
    share = f"x{relative.mean:.2g}" if relative else "x0"
    return Cell(shown(table.influence(place)), (f"({share}; {100 * table.agreement(place):.1f}%)",))


def _csv(table: TransferTable) -> list[list[object]]:
    rows: list[list[object]] = [
        ["kind", "source", "target", "images", "control", "n", "noise", "norm", "mse_probability", "unchanged",
         "error_over_images", "log_ratio_error_over_images"],
    ]  # fmt: skip
    for place in table.places:
        for control in ("noise", "permuted", "random"):
            if not table.has(place, control):
                continue
            line = table.line(place, control)
            each = zip(line["norms"], line["influences"], line["unchanged"], strict=True)
            for number, (norm, influence, unchanged) in enumerate(each):
                rows.append(
                    [*place, control, line["n"], number, norm, influence, unchanged, line["error"], line["ratio_error"]]
                )
    return rows
