"""A table with notes and lists beneath it, as text for a terminal and as Markdown."""

from __future__ import annotations

import itertools
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..evaluation import Record
from .presentable import presentable
from .statistics import Difference, wilson_interval

NOT_RUN = "not run"


def format_value(value: Any) -> str:
    """A protocol's value as text: "yes" for True, "4/255" for an attack's radius, "none" for None."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        steps = round(4 * 255 * value) / 4  # radii are usually whole 8-bit pixel steps, or quarters of one
        simple = 0 < steps < 16.5 and (steps < 1 or steps == round(steps)) and abs(255 * value - steps) < 1e-6
        return f"{steps:g}/255" if simple else f"{value:.6g}"
    if isinstance(value, list):
        return "(" + ", ".join(map(format_value, value)) + ")"
    if isinstance(value, Mapping):
        return "{" + format_settings(value) + "}"
    return "none" if value is None else " ".join(str(value).split())


def format_settings(protocol: Mapping[str, Any]) -> str:
    """A protocol as "name=value, name=value"."""
    return ", ".join(f"{name}={format_value(value)}" for name, value in protocol.items())


def format_number(value: float, unit: str, sign: str = "") -> str:
    """A result: percentages with two decimals, others with four significant digits; ``sign="+"`` for a difference."""
    return f"{value:{sign}.2f}" if unit == "%" else f"{value:{sign}.4g}"


def format_count(n: int, noun: str) -> str:
    """A count with its noun, as "1 model" or "2 models"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def format_p(p: float) -> str:
    """A p-value as "p=0.03", "p=0.0021" or "p<0.001"."""
    if p < 0.001:
        return "p<0.001"
    return f"p={p:.2f}" if p >= 0.0995 else f"p={p:.2g}"


def group_values(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """The one value that all (value, place) pairs share, or else each value with its places in parentheses."""
    places_by_value: dict[str, dict[str, None]] = {}
    for value, place in pairs:
        places_by_value.setdefault(value, {})[place] = None
    if len(places_by_value) == 1:
        return list(places_by_value)
    return [f"{value} ({', '.join(places)})" for value, places in places_by_value.items()]


def join_values(pairs: Iterable[tuple[str, str]]) -> str:
    """:func:`group_values` joined into one line."""
    return "; ".join(group_values(pairs))


# Paths are never broken across lines, so that they can be copied.
_WRAP_OPTIONS: Any = {"subsequent_indent": "    ", "break_long_words": False, "break_on_hyphens": False}


class Cell(NamedTuple):
    """One cell of a table.

    ``value`` comes first, then the pieces of ``rest``, which line up down the column in text ("" where a
    piece is missing). ``best`` marks the best value of a column. ``is_number`` is false where ``value`` is a word
    in place of a number. ``significance`` is "better" or "worse" where the difference is more than chance
    (:func:`~ns_easyrobust.report.statistics.are_significant`), for output that can show colour.
    """

    value: str
    rest: tuple[str, ...] = ()
    best: bool = False
    is_number: bool = True
    significance: str = ""


@dataclass(frozen=True)
class Sheet:
    """Rows of cells under headings, notes, and headed lists.

    Attributes:
        headings: (title, subtitle) of each column.
        rows: (name, one cell per column) of each row.
        notes: lines directly beneath the table.
        lists: (heading, lines) of each list beneath the notes.
    """

    headings: Sequence[tuple[str, str]]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    notes: Sequence[str] = ()
    lists: Sequence[tuple[str, Sequence[str]]] = ()


def as_text(sheet: Sheet, width: int | None = None) -> str:
    """Aligned columns, split into groups of at most ``width`` characters if given. The best values carry a star.

    Where ``width`` is given, a name takes at most half of it; the rest of a longer one stands beneath.
    """
    names = [_folded(name, len(name) if width is None else max(width // 2, 30)) for name, _ in sheet.rows]
    stub_width = max(_columns(line) for line in ("label", *itertools.chain(*names)))
    stub = [_padded(line, stub_width) for line in ("label", "-" * stub_width, *itertools.chain(*names))]
    blocks = [
        _block([*textwrap.wrap(title, 30), subtitle], [_pieces(cells[index]) for _, cells in sheet.rows])
        for index, (title, subtitle) in enumerate(sheet.headings)
    ]
    lines = []
    for group in _groups(blocks, None if width is None else width - stub_width):
        lines += [*_side_by_side([stub, *(_beside(block, names) for block in group)]), ""]
    footer = list(sheet.notes)
    for heading, items in sheet.lists:
        footer += ["", heading, *(f"  {item}" for item in items)]
    return "\n".join([*lines, *(wrapped(line, width) for line in footer)]) + "\n"


def wrapped(line: str, width: int | None) -> str:
    """``line`` in lines of at most ``width`` characters (at least 40) if given, those after the first indented."""
    return line if width is None else textwrap.fill(line, max(width, 40), **_WRAP_OPTIONS)


def as_markdown(sheet: Sheet) -> str:
    """A GitHub table with the notes and lists beneath it. The best values are bold."""
    headings = [escape(", ".join(piece for piece in head if piece)) for head in sheet.headings]
    lines = ["| label | " + " | ".join(headings) + " |", "|:--|" + "--:|" * len(headings)]
    for name, cells in sheet.rows:
        texts = [
            escape(" ".join(piece for piece in (cell.value, *cell.rest) if piece), brackets=False) for cell in cells
        ]
        marked = [
            text.replace(cell.value, f"**{cell.value}**", 1) if cell.best else text
            for text, cell in zip(texts, cells, strict=True)
        ]
        lines.append(f"| {escape(name)} | " + " | ".join(marked) + " |")
    lines += ["", *(line for note in sheet.notes for line in (_escape_line(note), ""))]
    for heading, items in sheet.lists:
        lines += [f"### {heading}", "", *(f"- {_escape_line(item)}" for item in items), ""]
    return "\n".join(lines[:-1] if lines[-1] == "" else lines) + "\n"


def _columns(text: str) -> int:
    """How many columns of a terminal ``text`` takes: 2 for a wide character, 0 for an accent, else 1."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _columns(text))


def _folded(name: str, width: int) -> list[str]:
    """The lines of a name, each of at most ``width`` characters."""
    return [name[start : start + width] for start in range(0, len(name), width)]


def _beside(block: list[str], names: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a column, with empty ones where a name takes more than one."""
    head = len(block) - len(names)
    blank = " " * len(block[0])
    lines = block[:head]
    for line, name in zip(block[head:], names, strict=True):
        lines += [line, *[blank] * (len(name) - 1)]
    return lines


def _pieces(cell: Cell) -> list[str]:
    return [f"{cell.value}*" if cell.best else cell.value, *cell.rest]


def _block(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """The lines of one column, all equally wide: headings, a rule, and cells whose pieces are aligned."""
    full = [pieces for pieces in cells if len(pieces) > 1]
    widths = [max(map(len, pieces)) for pieces in zip(*full, strict=True)]
    texts = [
        " ".join(piece.rjust(width) for piece, width in zip(pieces, widths, strict=False) if width)
        if len(pieces) > 1
        else pieces[0]
        for pieces in cells
    ]
    width = max(map(len, [*headings, *texts]))
    return [line.rjust(width) for line in (*headings, "-" * width, *texts)]


def _groups(blocks: Sequence[list[str]], width: int | None) -> list[list[list[str]]]:
    """The blocks in order, as many per group as fit into ``width`` characters, but at least one."""
    groups: list[list[list[str]]] = [[]]
    used = 0
    for block in blocks:
        used += len(block[0]) + 2
        if groups[-1] and width is not None and used > width:
            groups.append([])
            used = len(block[0]) + 2
        groups[-1].append(block)
    return groups


def _side_by_side(blocks: Sequence[list[str]]) -> list[str]:
    """The lines of the blocks set side by side, aligned at the bottom."""
    height = max(map(len, blocks))
    padded = [[" " * len(block[0])] * (height - len(block)) + block for block in blocks]
    return ["  ".join(pieces).rstrip() for pieces in zip(*padded, strict=True)]


def escape(text: str, *, brackets: bool = True) -> str:
    """``text`` escaped so that Markdown shows it literally, also in a table; underscores inside words stay as they are.

    A pair of brackets is shown literally anyway unless a link's address follows or is defined for it,
    so intervals need no escape (``brackets=False``).
    """
    text = re.sub(r"([\\|*`<>\[\]~#&$])" if brackets else r"([\\|*`<>~#&$])", r"\\\1", text)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)


def _escape_line(text: str) -> str:
    """:func:`escape` for a whole line, which must not begin a list or be a rule either."""
    text = re.sub(r"^(\s*)([-+=])(?=\s|[-=\s]*$)", r"\1\\\2", escape(text))
    return re.sub(r"^(\s*\d+)([.)])(?=\s|$)", r"\1\\\2", text)


def escape_text(text: str) -> str:
    """:func:`escape` for a text of several lines, :func:`presentable`: its line breaks and paragraphs are kept."""
    lines = [_escape_line(presentable(line.strip())) for line in text.strip().splitlines()]
    ends = ["\\" if line and after else "" for line, after in itertools.pairwise([*lines, ""])]
    return "\n".join(line + end for line, end in zip(lines, ends, strict=True))


def describe_difference(found: Difference, unit: str) -> str:
    """A difference as "(+1.20 [0.31, 2.09], p=0.03)"; without interval or p where it has none."""
    pieces = [format_number(found.delta, unit, "+")]
    if found.low is not None and found.high is not None:
        pieces[0] += f" [{format_number(found.low, unit)}, {format_number(found.high, unit)}]"
    if found.p is not None:
        pieces.append(format_p(found.p))
    return f"({', '.join(pieces)})"


def significance(found: Difference | None, is_significant: bool, lower_is_better: bool = False) -> str:
    """The direction of a difference that is significant: "better" or "worse"; "" for any other."""
    if found is None or not is_significant:
        return ""
    return "worse" if (found.delta > 0) == lower_is_better else "better"


def colour_note(confidence: float) -> str:
    """The line of a legend that says what the colours of differences mean."""
    level = f"{1 - confidence:.2g}"
    return (
        f"Green (better) and red (worse) in results.html: p of at most {level} after Holm's correction for the columns "
        "of the row that are shown here; where there is no p, an interval without 0. Other differences have no colour."
    )


def measured_cell(
    record: Record,
    found: Difference | None,
    same_n: bool,
    confidence: float,
    lower_is_better: bool,
    is_significant: bool = False,
) -> Cell:
    """The cell of a record: value, difference from the baseline, Wilson interval and, unless ``same_n``, n."""
    ends = None if record.correct is None else wilson_interval(record.correct, record.n, confidence)
    rest = (
        "" if found is None else describe_difference(found, record.unit),
        "" if ends is None else f"[{ends[0]:.2f}, {ends[1]:.2f}]",
        "" if same_n else f"n={record.n}",
    )
    direction = significance(found, is_significant, lower_is_better)
    return Cell(format_number(record.value, record.unit), rest, significance=direction)
