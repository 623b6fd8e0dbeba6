"""The verb ``report``: write records as text, Markdown, CSV, a plot, an HTML page, and forms for leaderboards."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from pathlib import Path

from ..errors import DataError, OptionError
from ..evaluation import read_records
from ..report import (
    LEADERBOARDS,
    PUBLISHED_TABLES,
    Published,
    ResultsTable,
    Table2,
    as_text,
    easyrobust_form,
    read_about,
    robustbench_form,
    table2_sheet,
    write_tables,
)
from ..utils import file_or_folder

_logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``ns-easyrobust report``."""
    parser.add_argument(
        "results", nargs="+", type=file_or_folder, metavar="RESULTS.jsonl", help="results files that benchmarks wrote"
    )
    parser.add_argument("--baseline", metavar="NAME", help="the row that differences refer to")
    parser.add_argument("--best", action="store_true", help="mark the best value of each column")
    parser.add_argument(
        "--published",
        nargs="*",
        choices=tuple(PUBLISHED_TABLES),
        metavar="TABLE",
        help=f"add published rows, marked so, of {', '.join(PUBLISHED_TABLES)} (the paper's tables and "
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
        type=file_or_folder,
        metavar="FOLDER",
        help="where results.md, .csv, .png and .html go; an earlier report there is replaced "
        "(default: beside the first results file)",
    )
    forms = parser.add_argument_group("leaderboards")
    forms.add_argument("--submit", type=file_or_folder, metavar="FILE", help="write EasyRobust's submission, as JSON")
    forms.add_argument(
        "--leaderboard", choices=LEADERBOARDS, default="ood", help="which of EasyRobust's it is for (default: ood)"
    )
    forms.add_argument(
        "--robustbench", type=file_or_folder, metavar="FILE", help="write RobustBench's model info, as JSON"
    )
    forms.add_argument("--row", metavar="NAME", help="the row to submit, where there are several")
    forms.add_argument(
        "--about", type=file_or_folder, metavar="FILE", help="JSON with what records do not hold: authors, links"
    )


def run(args: argparse.Namespace) -> None:
    """Print the table of all records in ``args.results``; write the report and any leaderboard forms asked for."""
    records = [record for path in args.results for record in read_records(path)]
    if not records:
        files = ", ".join(args.results)
        raise DataError(f"{files}: expected records, found none. Run ns-easyrobust benchmark first.")
    table = ResultsTable(records, baseline=args.baseline)
    summary = Table2(table, args.preset)
    rows = _published_rows(args.published)
    forms = _forms(args, table, summary)
    width = shutil.get_terminal_size((120, 24)).columns  # 120 without a terminal
    folder = Path(args.output or Path(args.results[0]).parent)
    sources = [*args.results, *([args.about] if args.about else [])]
    written = write_tables(table, summary, folder, args.best, rows, forms, sources)
    print(table.to_text(best=args.best, width=width))
    if rows:
        print(f"\n{as_text(table2_sheet(summary, rows), width)}")
    for path in written:
        print(f"wrote {path}")


def _published_rows(tables: list[str] | None) -> tuple[Published, ...]:
    """The rows of the named tables: of all tables for an empty list, of none for None."""
    wanted = PUBLISHED_TABLES if tables == [] else (tables or ())
    return tuple(row for name in wanted for row in PUBLISHED_TABLES[name])


def _forms(args: argparse.Namespace, table: ResultsTable, summary: Table2) -> dict[Path, str]:
    """The text of each leaderboard form, by the path to write it to; nothing is written yet."""
    about, forms = read_about(args.about and Path(args.about)), {}
    if args.submit is not None:
        forms[Path(args.submit)] = easyrobust_form(
            table, args.row, leaderboard=args.leaderboard, preset=summary.preset, about=about
        )
    if args.robustbench is not None:
        if Path(args.robustbench) in forms:
            raise OptionError("--submit and --robustbench: expected two files, found one path. Choose another for one.")
        forms[Path(args.robustbench)] = robustbench_form(table, args.row, preset=summary.preset, about=about)
    return {path: json.dumps(form, indent=2, ensure_ascii=False) + "\n" for path, form in forms.items()}
