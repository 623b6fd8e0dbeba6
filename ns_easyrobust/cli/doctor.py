"""The verb ``doctor``: check that a data folder holds what the benchmark expects."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence

from ..data import LEVELS, Finding, examine, known_benchmarks
from ..errors import DataError, printable
from ..utils import file_or_folder, int_from


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``ns-easyrobust doctor``."""
    parser.add_argument(
        "data_dir", type=file_or_folder, metavar="DATA_DIR", help="folder that holds imagenet-val, imagenet-c, ..."
    )
    names = list(known_benchmarks())
    parser.add_argument("--suite", nargs="+", choices=names, default=names, metavar="NAME",
                        help=f"of {', '.join(names)} (default: all)")  # fmt: skip
    parser.add_argument("--images", type=_sample_size, default=200, metavar="N",
                        help="images to decode of each suite, or all (default: 200)")  # fmt: skip
    parser.add_argument("--num-classes", type=int_from(1), default=1000, metavar="N", help="outputs of the model")
    parser.add_argument(
        "-j", "--workers", type=int_from(0, 1024), default=4, metavar="N", help="decoding threads (default: 4)"
    )


def _sample_size(text: str) -> int | None:
    return None if text == "all" else int_from(1)(text)


_sample_size.__name__ = "whole number or 'all'"


def report(findings: Sequence[Finding]) -> str:
    """The findings as aligned lines, followed by their number at each level."""
    width = max(len(known_benchmarks()[finding.suite].folder) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(
            f"{known_benchmarks()[finding.suite].folder:{width}}  {finding.level:7}  {printable(finding.text)}"
        )
        if finding.effect:
            lines.append(f"{'':{width}}  {'':7}  -> {printable(finding.effect)}")
    counts = Counter(finding.level for finding in findings)
    return "\n".join([*lines, "", ", ".join(f"{counts[level]} {level}" for level in LEVELS)])


def run(args: argparse.Namespace) -> None:
    """Examine the folder and print the findings.

    Raises:
        DataError: no such folder, no suite in it, or problems (raised after they are printed).
    """
    findings = examine(
        args.data_dir, args.num_classes, suites=args.suite, sample=args.images, workers=args.workers
    )  # fmt: skip
    print(report(findings))
    problems = sum(finding.level == "problem" for finding in findings)
    if problems:
        raise DataError(
            f"{args.data_dir}: expected no problems, found {problems}, listed above. Mend them or leave the suites out."
        )
