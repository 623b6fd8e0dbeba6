"""The verb ``report``: records as text, Markdown, CSV, a plot, one HTML page, and leaderboards' forms."""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import DataError
from ..evaluation.records import Record, read_records
from ..report import published
from ..report.figures import Dot, dot_panels
from ..report.html import page
from ..report.leaderboards import LEADERBOARDS, easyrobust_form, read_about, robustbench_form
from ..report.published import Published
from ..report.sheet import as_markdown, as_text
from ..report.summary_sheet import summary_sheet
from ..report.table2 import Summary
from ..report.views import Table
from ..utils.files import one_line_for_os_errors, write_text

_logger = logging.getLogger(__name__)


def write_report(
    records: Iterable[Record],
    folder: str | Path,
    *,
    baseline: str | None = None,
    best: bool = False,
    preset: str | None = None,
    published_rows: Sequence[Published] = (),
) -> list[Path]:
    """results.md, .csv, .html and, where there are accuracies, results.png; an earlier report is replaced.

    Args:
        baseline: the row that differences refer to.
        best: mark the best of each column.
        preset: of the Table 2 view (:class:`~ns_easyrobust.report.table2.Summary`).
        published_rows: of :mod:`ns_easyrobust.report.published`, set beneath it.

    Raises:
        OptionError: no records, an unknown baseline or preset.
        OutputError: the folder cannot be written.
    """
    table = Table(records, baseline=baseline)
    return _write(table, Summary(table, preset), Path(folder), best, published_rows)


def _write(table: Table, summary: Summary, folder: Path, best: bool, rows: Sequence[Published]) -> list[Path]:
    with one_line_for_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    text = table.to_markdown(best=best)
    if summary.parts or rows:
        text += f"\n## The columns of the paper's Table 2\n\n{as_markdown(summary_sheet(summary, rows))}"
    written = [write_text(folder / "results.md", text), write_text(folder / "results.csv", table.to_csv())]
    picture = _draw(table, folder / "results.png")
    written += [picture] if picture is not None else []
    pixels = picture.read_bytes() if picture is not None else None
    return [*written, write_text(folder / "results.html", page(table, summary, rows, pixels, best=best))]


def _draw(table: Table, path: Path) -> Path | None:
    """The accuracies as dots with their intervals; None where there are none to draw, or nothing to draw with."""
    panels = []
    for column in table.shown:
        if column.unit == "%" and not column.lower_is_better:
            dots = {}
            for row, record in table.held(column):
                dots[table.row_name(row)] = Dot(record.value, *(table.interval(record) or (None, None)))
            panels.append((column.title, dots))
    if panels and importlib.util.find_spec("matplotlib") is None:
        _logger.warning("results.png was not drawn: matplotlib is not installed")
        return None
    if not panels:
        return None
    names = {row: table.row_name(row) for row in table.rows}
    caption = f"bars: {100 * table.confidence:g}% Wilson intervals"
    return dot_panels(panels, list(names.values()), path, caption=caption, baseline=names.get(table.baseline or ""))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``ns-easyrobust report``."""
    parser.add_argument(
        "results", nargs="+", type=Path, metavar="RESULTS.jsonl", help="results files that benchmarks wrote"
    )
    parser.add_argument("--baseline", metavar="NAME", help="the row that differences refer to")
    parser.add_argument("--best", action="store_true", help="mark the best value of each column")
    parser.add_argument(
        "--published",
        nargs="*",
        choices=tuple(published.TABLES),
        metavar="TABLE",
        help=f"add published rows, marked so, of {', '.join(published.TABLES)} (the paper's tables and "
        "EasyRobust's DAT rows; without a name: all)",
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="the protocol of the Table 2 view and of the forms: paper, easyrobust, native or custom "
        "(default: the first of these that the records have)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where results.md, .csv, .png and .html go; an earlier report there is replaced "
        "(default: beside the first results file)",
    )
    forms = parser.add_argument_group("leaderboards")
    forms.add_argument("--submit", type=Path, metavar="FILE", help="write EasyRobust's submission, as JSON")
    forms.add_argument(
        "--leaderboard", choices=LEADERBOARDS, default="ood", help="which of EasyRobust's it is for (default: ood)"
    )
    forms.add_argument("--robustbench", type=Path, metavar="FILE", help="write RobustBench's model info, as JSON")
    forms.add_argument("--row", metavar="NAME", help="the row to submit, where there are several")
    forms.add_argument("--about", type=Path, metavar="FILE", help="JSON with what records do not hold: authors, links")


def run(args: argparse.Namespace) -> None:
    """Print the table of all records in ``args.results``, write the report and the forms that are asked for."""
    records = [record for path in args.results for record in read_records(path)]
    if not records:
        files = ", ".join(map(str, args.results))
        raise DataError(f"{files}: expected records, found none. Run ns-easyrobust benchmark first.")
    table = Table(records, baseline=args.baseline)
    summary = Summary(table, args.preset)
    rows = _published_rows(args.published)
    forms = _forms(args, table, summary)
    width = shutil.get_terminal_size((120, 24)).columns  # 120 where there is no terminal
    written = _write(table, summary, args.output or args.results[0].parent, args.best, rows)
    written += [write_text(path, text) for path, text in forms.items()]
    print(table.to_text(best=args.best, width=width))
    if rows:
        print(f"\n{as_text(summary_sheet(summary, rows), width)}")
    for path in written:
        print(f"wrote {path}")


def _published_rows(tables: list[str] | None) -> tuple[Published, ...]:
    """Rows of the named tables; of all for an empty list, none for None."""
    wanted = published.TABLES if tables == [] else (tables or ())
    return tuple(row for name in wanted for row in published.TABLES[name])


def _forms(args: argparse.Namespace, table: Table, summary: Summary) -> dict[Path, str]:
    """The leaderboards' files by path, made before anything is written."""
    about, found = read_about(args.about), {}
    if args.submit is not None:
        found[args.submit] = easyrobust_form(
            table, args.row, leaderboard=args.leaderboard, preset=summary.preset, about=about
        )
    if args.robustbench is not None:
        found[args.robustbench] = robustbench_form(table, args.row, preset=summary.preset, about=about)
    return {path: json.dumps(form, indent=2, ensure_ascii=False) + "\n" for path, form in found.items()}
