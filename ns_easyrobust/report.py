"""The verb ``report``: records as text, Markdown, CSV and a plot."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path

from .figures import Dot, dot_panels
from .files import one_line_for_os_errors, write_text
from .records import Record, read_records
from .tables import Table

_logger = logging.getLogger(__name__)


def write_report(
    records: Iterable[Record], folder: str | Path, *, baseline: str | None = None, best: bool = False
) -> list[Path]:
    """results.md, results.csv and, where there are accuracies, results.png; an earlier report is replaced.

    Raises:
        OptionError: no records, or an unknown baseline.
        OutputError: the folder cannot be written.
    """
    return _write(Table(records, baseline=baseline), Path(folder), best)


def _write(table: Table, folder: Path, best: bool) -> list[Path]:
    with one_line_for_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    written = [
        write_text(folder / "results.md", table.to_markdown(best=best)),
        write_text(folder / "results.csv", table.to_csv()),
    ]
    panels = []
    for column in table.shown:
        if column.unit == "%" and not column.lower_is_better:
            dots = {}
            for row, record in table.held(column):
                dots[table.row_name(row)] = Dot(record.value, *(table.interval(record) or (None, None)))
            panels.append((column.title, dots))
    if panels and importlib.util.find_spec("matplotlib") is None:
        _logger.warning("results.png was not drawn: matplotlib is not installed")
    elif panels:
        names = {row: table.row_name(row) for row in table.rows}
        caption = f"bars: {100 * table.confidence:g}% Wilson intervals"
        baseline = names.get(table.baseline or "")
        path = folder / "results.png"
        written.append(dot_panels(panels, list(names.values()), path, caption=caption, baseline=baseline))
    return written


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``ns-easyrobust report``."""
    parser.add_argument(
        "results", nargs="+", type=Path, metavar="RESULTS.jsonl", help="results files that benchmarks wrote"
    )
    parser.add_argument("--baseline", metavar="NAME", help="the row that differences refer to")
    parser.add_argument("--best", action="store_true", help="mark the best value of each column")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where results.md, .csv and .png go; an earlier report there is replaced "
        "(default: beside the first results file)",
    )


def run(args: argparse.Namespace) -> None:
    """Print the table of all records in ``args.results`` and write the report."""
    records = [record for path in args.results for record in read_records(path)]
    table = Table(records, baseline=args.baseline)
    width = shutil.get_terminal_size((120, 24)).columns  # 120 where there is no terminal
    print(table.to_text(best=args.best, width=width))
    for path in _write(table, args.output or args.results[0].parent, args.best):
        print(f"wrote {path}")
