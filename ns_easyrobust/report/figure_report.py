"""The report of a figure or table: tables and notes as text and Markdown, a CSV and a picture."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..errors import OptionError
from ..utils import as_csv, as_utf8, write_together
from .sheet import Sheet, as_markdown, as_text, wrapped

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FigureReport:
    """What an experiment shows of its numbers.

    Attributes:
        title: of the report.
        sheets: (heading, table) of each table; an only one may have the heading "".
        notes: sentences beneath the tables: the protocol, and findings with their n and intervals.
        rows: of the CSV, in full precision, the header first.
        draw: writes the picture, a PNG, to a stream.
    """

    title: str
    sheets: Sequence[tuple[str, Sheet]]
    notes: Sequence[str]
    rows: Sequence[Sequence[object]]
    draw: Callable[[IO[bytes]], object]

    def to_text(self, width: int | None = None) -> str:
        """For a terminal of ``width`` characters."""
        tables = (f"{heading}\n\n{as_text(sheet, width)}".lstrip() for heading, sheet in self.sheets)
        return "\n".join([*tables, *(f"{wrapped(note, width)}\n" for note in self.notes)])

    def to_markdown(self, picture: str | None = None, level: int = 2) -> str:
        """As GitHub's Markdown.

        Args:
            picture: its address, if it is to be shown.
            level: of the tables' headings.
        """
        parts = [f"![{self.title}]({picture})\n"] if picture else []
        for heading, sheet in self.sheets:
            parts += [f"{'#' * level} {heading}\n"] if heading else []
            parts.append(as_markdown(sheet))
        parts += [f"{note}\n" for note in self.notes]
        return "\n".join(parts)

    def write(self, folder: Path, name: str, *, markdown: bool = True) -> list[Path]:
        """Write ``name``.md, .csv and .png into an existing ``folder``: all of them are replaced, or none.

        Without ``markdown``, only the others.

        A picture that has too many parts to be drawn is left out, and a warning says so.

        Returns:
            The paths written.

        Raises:
            OutputError: the folder cannot be written.
        """
        stream = io.BytesIO()
        try:
            self.draw(stream)
        except OptionError as error:
            _logger.warning("%s.png was not drawn: %s", name, error)
        picture = f"{name}.png" if stream.getvalue() else None
        contents = {folder / f"{name}.csv": as_utf8(as_csv(self.rows))}
        if markdown:
            contents[folder / f"{name}.md"] = as_utf8(f"# {self.title}\n\n{self.to_markdown(picture)}")
        if picture:
            contents[folder / picture] = stream.getvalue()
        else:
            (folder / f"{name}.png").unlink(missing_ok=True)  # of other numbers than the table's
        return write_together({path: _writes(content) for path, content in contents.items()})


def _writes(content: bytes) -> Callable[[Path], int]:
    return lambda temporary: temporary.write_bytes(content)


def files_of(folder: Path, name: str) -> list[Path]:
    """The files of :meth:`FigureReport.write` that are there."""
    return [path for suffix in ("md", "csv", "png") if os.path.lexists(path := folder / f"{name}.{suffix}")]
