"""The experiment ``study``: methods from one start at equal budgets, over seeds, in one table."""

from __future__ import annotations

import argparse
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from .. import training
from ..errors import DataError, TrainingError
from ..utils import FileLock, file_or_folder, int_from, os_errors_as_output_errors
from .registry import Command, Experiment, register_experiment
from .study_file import StudyFile, read_study
from .study_plan import Run, plan_runs
from .study_record import require_unchanged
from .study_report import write_study
from .study_run import carry_out
from .study_slots import find_slots


@register_experiment("study")
class Study(Experiment):
    """train methods from one start at equal budgets, over seeds; evaluate and compare them"""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the study's file, its folder, where it runs, and what may differ from the file."""
        parser.add_argument(
            "-c", "--config", type=file_or_folder, required=True, metavar="FILE", help="YAML file, see docs/study.md"
        )
        parser.add_argument(
            "-o",
            "--output",
            type=file_or_folder,
            metavar="FOLDER",
            help="where everything goes; what is done there already is not done again (default: output/FILE's name)",
        )
        parser.add_argument("--dry-run", action="store_true", help="print the commands and costs, and do nothing")
        parser.add_argument(
            "--report-only",
            action="store_true",
            help="write the report of what is done in the folder, which needs neither the start nor the data",
        )
        parser.add_argument("--start", type=file_or_folder, metavar="PATH", help="instead of the file's")
        parser.add_argument("--data-dir", type=file_or_folder, metavar="DIR", help="instead of the file's")
        parser.add_argument(
            "--seeds", type=int_from(0, 2**32 - 1), nargs="+", metavar="S", help="instead of the file's"
        )
        parser.add_argument(
            "--devices",
            nargs="+",
            default=[],
            metavar="NAME",
            help="cuda:0 cuda:1 ..., or cpu (default: every GPU, else cpu)",
        )
        parser.add_argument(
            "--processes",
            type=int_from(1, 1024),
            default=1,
            metavar="N",
            help="at a time on each device, which share its memory and all cores (default: 1)",
        )

    def run(self, args: argparse.Namespace, commands: Mapping[str, Command]) -> Iterator[str]:
        """Check everything, carry out what is not done yet, write the report.

        Yields:
            The commands and costs for a dry run; else the table, and where the files are.

        Raises:
            OptionError, DataError: the file, a flag or a folder is not what it should be; nothing was begun.
            TrainingError: runs failed; all others are done.
        """
        study = _with_flags(read_study(args.config), args)
        folder = Path(args.output or Path("output") / study.path.stem)
        runs = plan_runs(study, folder, commands, with_files=not args.report_only)
        require_unchanged(runs, training.defaults())
        slots = [] if args.report_only else find_slots(args.devices, args.processes)
        if args.dry_run:
            yield from _dry_lines(study, runs)
            return
        if args.report_only and not any(run.folder.is_dir() for run in runs):
            raise DataError(f"--output: expected the folder of a study, found no run of it in {folder}. Correct it.")
        with os_errors_as_output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", "this study"):
            failed = carry_out(runs, slots) if slots else {}
            text = write_study(study, runs, folder, shutil.get_terminal_size((120, 24)).columns)
        if text:
            yield text
            yield f"report: {folder / 'report.md'}"
        if failed:
            reasons = " ".join(f"{name}: {reason}" for name, reason in failed.items())
            raise TrainingError(
                f"{len(failed)} of {len(runs)} runs failed. Later seeds of a method that fails are not begun; all else "
                f"is done, and the same command tries again what is missing. {reasons}"
            )


def _with_flags(study: StudyFile, args: argparse.Namespace) -> StudyFile:
    """The study with what the command line gives instead."""
    return replace(
        study,
        start=args.start or study.start,
        data_dir=args.data_dir or study.data_dir,
        seeds=tuple(dict.fromkeys(args.seeds)) if args.seeds else study.seeds,
    )


def _dry_lines(study: StudyFile, runs: Sequence[Run]) -> Iterator[str]:
    """The commands in their order, then a line a method: updates, and forward-equivalents of each and of all."""
    for run in runs:
        for step in ([run.train] if run.train else []) + list(run.measuring.values()):
            yield f"ns-easyrobust {step.verb} {shlex.join(step.words)}"
    yield ""
    width = max(map(len, study.methods))
    for label in study.methods:
        run = next(run for run in runs if run.label == label)
        if run.cost is not None:
            total = f"{'at most ' * bool(run.cost.synthesis)}{run.cost.of(run.updates):g}"
            yield f"{label:{width}}  {run.updates} updates; forward-equivalents: {run.cost}, {total} in all"
