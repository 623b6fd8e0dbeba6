"""The verb ``doctor``: check that a data folder holds what the benchmark expects."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Mapping, Sequence

from ..data import (
    IMAGENET_CLASSES,
    LEVELS,
    Finding,
    benchmark_folder,
    examine,
    holds_benchmarks,
    known_benchmarks,
    outputs_meant,
)
from ..errors import DataError, printable
from ..utils import default_workers, file_or_folder, int_from
from .suite_flags import SuiteChoices, expected_folders, shown_folder, split_suites, suite_or_folder, what_fits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``ns-easyrobust doctor``."""
    parser.add_argument(
        "data_dir",
        type=file_or_folder,
        metavar="DATA_DIR",
        help="folder that holds imagenet-val, imagenet-c, ..., or train and val",
    )
    names = list(known_benchmarks())
    parser.add_argument("--suite", nargs="+", type=suite_or_folder, choices=SuiteChoices(names), default=names,
                        metavar="NAME[=DIR]",
                        help=f"of {', '.join(names)} (default: all); =DIR: where it lies elsewhere")  # fmt: skip
    parser.add_argument("--images", type=_sample_size, default=200, metavar="N",
                        help="images to decode of each suite, or all (default: 200)")  # fmt: skip
    parser.add_argument("--num-classes", type=int_from(1), metavar="N",
                        help="outputs of the model (default: what the validation set is for)")  # fmt: skip
    parser.add_argument(
        "-j", "--workers", type=int_from(0, 1024), default=default_workers(), metavar="N",
        help="decoding threads (default: 4, or the number of cores if that is less)",
    )  # fmt: skip


def _sample_size(text: str) -> int | None:
    return None if text == "all" else int_from(1)(text)


_sample_size.__name__ = "whole number or 'all'"


def report(findings: Sequence[Finding], folders: Mapping[str, str]) -> str:
    """The findings as aligned lines, each behind its suite's folder, followed by their number at each level."""
    width = max(len(folders[finding.suite]) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{folders[finding.suite]:{width}}  {finding.level:7}  {printable(finding.text)}")
        if finding.effect:
            lines.append(f"{'':{width}}  {'':7}  -> {printable(finding.effect)}")
    counts = Counter(finding.level for finding in findings)
    return "\n".join([*lines, "", ", ".join(f"{counts[level]} {level}" for level in LEVELS)])


def run(args: argparse.Namespace) -> None:
    """Examine the folder and print the findings.

    Raises:
        DataError: no such folder, no suite in it, or problems (raised after they are printed).
    """
    suites, folders = split_suites(args.suite)
    if not folders and os.path.isdir(args.data_dir) and not holds_benchmarks(args.data_dir):
        raise DataError(f"{args.data_dir}: expected {expected_folders()}, found none. {what_fits(args.data_dir)}")
    outputs = args.num_classes
    if outputs is None:
        outputs = outputs_meant(folders.get("val") or benchmark_folder(args.data_dir, known_benchmarks()["val"]))
        if outputs != IMAGENET_CLASSES:
            print(f"for a model of {outputs} classes, as the validation set has (another: --num-classes N)\n")
    findings = examine(
        args.data_dir, outputs, suites=suites, folders=folders, sample=args.images, workers=args.workers
    )  # fmt: skip
    print(report(findings, {suite: printable(shown_folder(args.data_dir, suite, folders)) for suite in suites}))
    problems = sum(finding.level == "problem" for finding in findings)
    if problems:
        raise DataError(
            f"{args.data_dir}: expected no problems, found {problems}, listed above. Mend them or leave the suites out."
        )
