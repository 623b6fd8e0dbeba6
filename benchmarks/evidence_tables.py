"""Puts the tables of studies' reports into docs/evidence.md, between the comments that name them.

python benchmarks/evidence_tables.py            # write them
python benchmarks/evidence_tables.py --check    # exit code 1 if one differs from its report

A comment is <!-- table REPORT | SECTION --> or <!-- table REPORT | SECTION | COLUMNS -->, with columns counted from 1,
and the table ends at <!-- end -->.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "evidence.md"
_START = "<!-- table "
_BLOCK = re.compile(rf"({_START}(?P<named>[^>]+?) -->\n)(?:(?!{_START}).)*?(<!-- end -->)", re.DOTALL)
_CELL = re.compile(r"(?<!\\)\|")  # a bar that is no part of a name


def table_of(report: str, section: str, columns: list[int]) -> str:
    """The first table below the heading ``section`` of a report, with these columns or all."""
    lines = iter(report.splitlines())
    if not any(re.fullmatch(f"#+ {re.escape(section)}.*", line) for line in lines):
        raise SystemExit(f"expected a section {section!r} in the report, found none")
    table: list[str] = []
    for line in lines:
        if line.startswith("|"):
            table.append(line)
        elif table or line.startswith("## "):
            break
    if not table:
        raise SystemExit(f"expected a table below {section!r}, found none")
    return "".join(f"{_chosen(line, columns)}\n" for line in table)


def _chosen(line: str, columns: list[int]) -> str:
    cells = _CELL.split(line)[1:-1]
    return f"|{'|'.join(cells[column - 1] for column in columns)}|" if columns else line


def rendered(page: str, folder: Path) -> str:
    """``page`` with each named table as its report in ``folder`` has it."""

    def replaced(block: re.Match[str]) -> str:
        name, section, *columns = (part.strip() for part in block["named"].split("|"))
        numbers = [int(number) for number in " ".join(columns).split()]
        return f"{block[1]}\n{table_of((folder / name).read_text(), section, numbers)}\n{block[3]}"

    shown, count = _BLOCK.subn(replaced, page)
    if count != page.count(_START):
        raise SystemExit(f"expected <!-- end --> below each of {page.count(_START)} tables' names, found {count}")
    return shown


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a table would change")
    check = parser.parse_args().check
    before = PAGE.read_text()
    after = rendered(before, PAGE.parent)
    if check:
        sys.exit(f"{PAGE}: run python benchmarks/evidence_tables.py" if before != after else 0)
    PAGE.write_text(after)
