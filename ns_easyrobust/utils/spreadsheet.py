"""CSV that a spreadsheet shows and does not run."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

# With which Excel and LibreOffice begin a formula, the full-width ones in Japanese and Chinese versions too.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def as_csv(rows: Iterable[Sequence[object]]) -> str:
    """The rows as CSV: numbers in full precision, None as an empty cell.

    A text that a spreadsheet would take for a formula (it begins with =, +, -, @, a tab or a line's end) gets an
    apostrophe in front, so that a label in somebody's results file cannot run a command where the table is opened.

    Example:
        >>> as_csv([("label", "value"), ("=1+1", -0.5)])
        "label,value\\n'=1+1,-0.5\\n"
    """
    return "".join(f"{_line(row)}\n" for row in rows)


def _line(row: Sequence[object]) -> str:
    stream, end = io.StringIO(), "\r\n"  # with this end, csv quotes a cell that holds either of its characters
    csv.writer(stream, lineterminator=end).writerow([_harmless(cell) for cell in row])
    return stream.getvalue().removesuffix(end)


def _harmless(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA_STARTS) else cell
