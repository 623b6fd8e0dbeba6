"""A table with what stands beneath it, as text for a terminal and as Markdown."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

# Folded lines keep paths in one piece, to be copied.
_FOLDED: Any = {"subsequent_indent": "    ", "break_long_words": False, "break_on_hyphens": False}


class Cell(NamedTuple):
    """What stands in one place: the value, then pieces that stand under their like in text ("" where there is none).

    ``ran`` is false where the value is a word in place of a number. ``tone`` is "better" or
    "worse" where a difference is one beyond its interval, as far as a page can colour it.
    """

    value: str
    rest: tuple[str, ...] = ()
    best: bool = False
    ran: bool = True
    tone: str = ""


@dataclass(frozen=True)
class Sheet:
    """Rows of cells under headings, notes, and headed lists.

    Attributes:
        heads: (title, what is below it) of each column.
        rows: (name, a cell a column).
        notes: lines right beneath the table.
        lists: (heading, lines).
    """

    heads: Sequence[tuple[str, str]]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    notes: Sequence[str] = ()
    lists: Sequence[tuple[str, Sequence[str]]] = ()


def as_text(sheet: Sheet, width: int | None = None) -> str:
    """Aligned columns; in groups of at most ``width`` characters where that is given. The best carry a star."""
    names = [name for name, _ in sheet.rows]
    side = max(len("label"), *map(len, names))
    stub = [line.ljust(side) for line in ("label", "-" * side, *names)]
    blocks = [
        _block([*textwrap.wrap(title, 30), below], [_pieces(cells[index]) for _, cells in sheet.rows])
        for index, (title, below) in enumerate(sheet.heads)
    ]
    lines = []
    for group in _groups(blocks, None if width is None else width - side):
        lines += [*_beside([stub, *group]), ""]
    below = list(sheet.notes)
    for heading, items in sheet.lists:
        below += ["", heading, *(f"  {item}" for item in items)]
    if width is not None:
        below = [textwrap.fill(line, max(width, 40), **_FOLDED) for line in below]
    return "\n".join([*lines, *below]) + "\n"


def as_markdown(sheet: Sheet) -> str:
    """A GitHub table with the rest beneath it. The best are bold."""
    heads = [escape(", ".join(part for part in head if part)) for head in sheet.heads]
    lines = ["| label | " + " | ".join(heads) + " |", "|:--|" + "--:|" * len(heads)]
    for name, cells in sheet.rows:
        texts = [escape(" ".join(part for part in (cell.value, *cell.rest) if part), brackets=False) for cell in cells]
        marked = [
            text.replace(cell.value, f"**{cell.value}**", 1) if cell.best else text
            for text, cell in zip(texts, cells, strict=True)
        ]
        lines.append(f"| {escape(name)} | " + " | ".join(marked) + " |")
    lines += ["", *(line for note in sheet.notes for line in (escape(note), ""))]
    for heading, items in sheet.lists:
        lines += [f"### {heading}", "", *(f"- {escape(item)}" for item in items), ""]
    return "\n".join(lines[:-1] if lines[-1] == "" else lines) + "\n"


def _pieces(cell: Cell) -> list[str]:
    return [f"{cell.value}*" if cell.best else cell.value, *cell.rest]


def _block(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """One column's lines, all equally wide: heads, a rule, and cells whose pieces stand under each other."""
    full = [pieces for pieces in cells if len(pieces) > 1]
    widths = [max(map(len, pieces)) for pieces in zip(*full, strict=True)]
    texts = [
        " ".join(piece.rjust(width) for piece, width in zip(pieces, widths, strict=False) if width)
        if len(pieces) > 1
        else pieces[0]
        for pieces in cells
    ]
    width = max(map(len, [*heads, *texts]))
    return [line.rjust(width) for line in (*heads, "-" * width, *texts)]


def _groups(blocks: Sequence[list[str]], width: int | None) -> list[list[list[str]]]:
    """The blocks in order, as many in a group as ``width`` characters hold, but one at least."""
    groups: list[list[list[str]]] = [[]]
    used = 0
    for block in blocks:
        used += len(block[0]) + 2
        if groups[-1] and width is not None and used > width:
            groups.append([])
            used = len(block[0]) + 2
        groups[-1].append(block)
    return groups


def _beside(blocks: Sequence[list[str]]) -> list[str]:
    """Blocks side by side, standing on one line."""
    tall = max(map(len, blocks))
    padded = [[" " * len(block[0])] * (tall - len(block)) + block for block in blocks]
    return ["  ".join(parts).rstrip() for parts in zip(*padded, strict=True)]


def escape(text: str, *, brackets: bool = True) -> str:
    """``text`` as Markdown shows it literally, also in a table; underscores inside words stay as they are.

    A pair of brackets is literal by itself unless a link's address follows or defines it, so
    intervals may do without (``brackets=False``).
    """
    text = re.sub(r"([\\|*`<>\[\]~#&])" if brackets else r"([\\|*`<>~#&])", r"\\\1", text)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
