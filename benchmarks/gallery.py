"""Renders docs/gallery anew: each experiment's table and picture from its records, and its block of its page.

python benchmarks/gallery.py            # write them
python benchmarks/gallery.py --check    # exit code 1 if a page or table would differ; pictures are not compared

docs/gallery/NAME.md is a page by hand with blocks, from <!-- records NAME --> or <!-- records NAME FOLDER --> to
<!-- end -->; each is the report of docs/gallery/NAME/NAME.jsonl or docs/gallery/FOLDER/NAME.jsonl.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from ns_easyrobust.experiments import FigureExperiment, experiments

GALLERY = Path(__file__).parents[1] / "docs" / "gallery"
_BLOCK = re.compile(
    r"(<!-- records (?P<name>[\w-]+)(?: (?P<folder>[\w-]+))? -->\n)(?:(?!<!-- ).)*?(<!-- end -->)", re.DOTALL
)


def rendered(page: Path, write: bool) -> str:
    """The page with its blocks as their records have them; with ``write``, their files are written too."""

    def replaced(block: re.Match[str]) -> str:
        name = block["name"]
        experiment = experiments()[name]()
        assert isinstance(experiment, FigureExperiment)
        folder = page.parent / (block["folder"] or name)
        report = experiment.render(folder)
        if write:
            report.write(folder, name, markdown=False)
        return f"{block[1]}\n{report.to_markdown(f'{folder.name}/{name}.png', level=3)}\n{block[4]}"

    shown, count = _BLOCK.subn(replaced, page.read_text(encoding="utf-8"))
    if not count:
        raise SystemExit(f"{page}: expected <!-- records NAME --> and <!-- end -->, found none")
    return shown


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page would change")
    check = parser.parse_args().check
    changed = []
    for path in sorted(GALLERY.glob("*.md")):
        before, after = path.read_text(encoding="utf-8"), rendered(path, not check)
        if before != after:
            changed.append(path.name)
            if not check:
                path.write_text(after, encoding="utf-8")
    if check and changed:
        sys.exit(f"docs/gallery: run make gallery, which would change {', '.join(changed)}")
