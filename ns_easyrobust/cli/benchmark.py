"""The verb ``benchmark``: evaluate a checkpoint, with the flags of EasyRobust's benchmark.py."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from ..attacks import known_attacks
from ..data import IMAGENET_CLASSES, Subset, holds_benchmarks, list_folder
from ..errors import DataError, NotRunError, OptionError
from ..evaluation import (
    LARGEST_BATCH,
    MISSING_FOLDER,
    PRESETS,
    add_checkpoint_arguments,
    expand_groups,
    latest,
    read_records,
    suite_groups,
    suites,
)
from ..report import ResultsTable
from ..utils import (
    add_machine_arguments,
    add_model_arguments,
    add_settings,
    file_or_folder,
    flags_of,
    int_from,
    os_errors_as_output_errors,
    pick_device,
    process_group,
    rank,
    settings_from,
)
from .suite_flags import SuiteChoices, expected_folders, split_suites, suite_or_folder, what_fits

if TYPE_CHECKING:
    from ..attacks import Attack

_logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of EasyRobust's benchmark.py, the choice of suites, and the attacks' settings."""
    add_model_arguments(parser)
    add_machine_arguments(parser)
    add_checkpoint_arguments(parser, crop_pct=None, interpolation=None)
    parser.add_argument(
        "--data-dir",
        type=file_or_folder,
        metavar="DIR",
        help="folder with imagenet-val/, imagenet-c/, ..., or with train/ and val/",
    )
    parser.add_argument(
        "-b", "--batch-size", type=int_from(1, LARGEST_BATCH), default=64, metavar="N", help="default: 64"
    )
    parser.add_argument(
        "--suite",
        nargs="+",
        type=suite_or_folder,
        default=["table2"],
        metavar="NAME[=DIR]",
        choices=SuiteChoices(suites(), suite_groups()),
        help=f"of {', '.join(suites())}, or a group: {', '.join(suite_groups())} "
        "(default: table2, the paper's columns); =DIR: where a suite's images lie elsewhere than in --data-dir",
    )
    parser.add_argument("--adv", action="store_true", help="EasyRobust's flag: AutoAttack alone")
    parser.add_argument("--protocol", default="paper", choices=PRESETS, help=_preset_help(PRESETS))
    parser.add_argument(
        "--subset",
        nargs="+",
        default=[],
        metavar="[SUITE=]PART",
        help="all, first:N, random:N, random:N:SEED or robustbench, for all suites or for one",
    )
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="autocast where not float32"
    )
    parser.add_argument(
        "--records",
        type=file_or_folder,
        default="results.jsonl",
        metavar="FILE",
        help="results are added to this file",
    )
    parser.add_argument("--again", action="store_true", help="measure anew what the file holds already")
    parser.add_argument("--label", metavar="NAME", help="the row's name in tables (default: the checkpoint's path)")
    group = parser.add_argument_group("attacks (radii in pixels of [0, 1])")
    for name, attack in known_attacks().items():
        add_settings(group, attack, f"{name}-")


def parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Parse the flags, and check what can be checked before a checkpoint is read.

    Raises:
        OptionError: a suite, subset or attack's setting that there is not. DataError: no such folder.
    """
    args = parser.parse_args(words)
    named, args.folders = split_suites(args.suite)
    args.named = ["autoattack"] if args.adv else named
    args.chosen = expand_groups(args.named)
    _require_folders(args.data_dir, args.chosen, args.folders)
    args.subsets, args.attacks = _parse_subsets(args.subset), _attacks(args)
    return args


def _preset_help(presets: dict[str, str]) -> str:
    return "; ".join(f"{name}: {summary}" for name, summary in presets.items()) + " (default: paper)"


def _parse_subsets(texts: list[str]) -> dict[str, Subset]:
    """Parse the values of ``--subset`` into subsets by suite; the key "" stands for all suites."""
    subsets = {}
    for text in texts:
        suite, equals, subset = text.rpartition("=")
        if equals and suite not in suites():
            raise OptionError(f"--subset {text}: expected one of {', '.join(suites())} before '=', found {suite!r}.")
        subsets[suite] = Subset.parse(subset)
        if subsets[suite].kind == "first":
            _logger.warning("--subset %s: the first folders' images, so of few classes; random:N draws from all", text)
    return subsets


def _attacks(args: argparse.Namespace) -> dict[str, list[Attack]]:
    """Every attack with the settings of its flags: one instance for each combination of those that take several."""
    attacks = {}
    for name, kind in known_attacks().items():
        try:
            attacks[name] = [kind(**settings) for settings in settings_from(args, kind, f"{name}-")]
        except OptionError as error:
            flags = ", ".join(f"--{flag}" for flag, _ in flags_of(kind, f"{name}-"))
            raise OptionError(f"{error.line} Its flags: {flags}.") from error
    return attacks


def _results_file(args: argparse.Namespace) -> Path:
    """The path of ``--records``; refuses now what could not be read or written after hours of evaluation."""
    path = Path(args.records)
    if not path.name:  # "", "." or "/"
        raise OptionError(f"--records {args.records}: expected a file, found a folder. Give a path to a .jsonl file.")
    with os_errors_as_output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for name in (path.name, f"{path.name}.unfinished"):
            with suppress(FileNotFoundError):
                os.stat(path.with_name(name))  # fails for a name too long, a loop of links, a closed folder
    for folder in (path.with_name("right"), path.with_name(f"{path.name}.unfinished")):
        if os.path.lexists(folder) and not os.path.isdir(folder):
            raise OptionError(f"--records {path}: expected a folder {folder} or none, found a file. Move it away.")
    for needed, kind in ((path, "file"), (path.parent, "folder")):
        if os.path.exists(needed) and not os.access(needed, os.W_OK):
            raise OptionError(f"--records {path}: expected a {kind} that can be written, found a read-only one.")
    if os.path.exists(path):
        read_records(path)
    return path


def run(args: argparse.Namespace) -> None:
    """Evaluate the checkpoint of :func:`parse`'s flags, append its records to the results file, print its table."""
    from ..evaluation import evaluate_checkpoint

    path = _results_file(args)
    # Ranks that share the images of slow attacks may wait for each other for hours.
    with process_group(pick_device(args.device), timedelta(days=7)) as device:
        label, done, outputs = evaluate_checkpoint(args, path, device)
        not_run = _not_run_lines(done.not_run, outputs)
        if not done.run:
            raise DataError(f"{' '.join(not_run)} Nothing was evaluated.")
        if rank() == 0:
            own_records = [record for record in latest(read_records(path)) if record.label == label]
            print(ResultsTable(own_records).to_text(width=shutil.get_terminal_size((120, 24)).columns))
            if not_run:
                print("", *not_run, sep="\n")
        if missed := [name for name in args.named if name in done.not_run]:
            raise NotRunError(f"--suite {' '.join(missed)}: asked for by name and not run; all else is in {path}.")


def _require_folders(data_dir: str | None, chosen: list[str], folders: dict[str, Path]) -> None:
    """Raise now what leaves nothing to be evaluated."""
    if data_dir is None:
        images = {name: suites()[name].benchmark.name for name in chosen}
        homeless = dict.fromkeys(own for name, own in images.items() if not {name, own} & folders.keys())
        if homeless:
            raise OptionError(
                f"--data-dir: expected a folder, found none. Give it, or the folder of each suite: "
                f"{' '.join(f'{name}=DIR' for name in homeless)} behind --suite."
            )
        return
    if not os.path.isdir(data_dir):
        raise DataError(
            f"--data-dir {data_dir}: expected a folder with imagenet-val/ and others, found none. "
            "Nothing was evaluated."
        )
    list_folder(data_dir)  # which says what is wrong with one that cannot be read
    if not folders and not holds_benchmarks(data_dir):
        raise DataError(
            f"--data-dir {data_dir}: expected {expected_folders()}, found none. {what_fits(data_dir)} "
            "Nothing was evaluated."
        )


def _not_run_lines(not_run: Mapping[str, str], outputs: int | None) -> list[str]:
    """Which suites were not run, why, and what would help: a line for each reason, one for all missing folders."""
    missing = {name: reason for name, reason in not_run.items() if reason.endswith(MISSING_FOLDER)}
    lines = []
    if missing:
        folders = ", ".join(dict.fromkeys(reason.removesuffix(MISSING_FOLDER).strip() for reason in missing.values()))
        own = "" if outputs == IMAGENET_CLASSES else f"with images of the model's own {outputs} classes, "
        lines.append(f"not run: {', '.join(missing)}: no folder {folders}. Add it, {own}or give --suite NAME=DIR.")
    for reason in dict.fromkeys(reason for name, reason in not_run.items() if name not in missing):
        names = ", ".join(name for name, other in not_run.items() if other == reason)
        lines.append(f"not run: {names}: {reason}")
    return lines
