"""The checkpoints whose feasible norms are compared: named one by one, or those of a finished study."""

from __future__ import annotations

import argparse
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError, OptionError
from ..models import is_url
from ..utils import file_or_folder, parse_json, read_bounded
from .study_plan import LAST, Run, slug
from .study_record import record_of

_logger = logging.getLogger(__name__)
_RESERVED = "before"  # the start's label
_MOST_BYTES = 2**26  # of costs.json


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes:
        label: its method's.
        seed: of the training; of checkpoints that were named one by one, their place among the label's, from 0.
        path: its checkpoint.
        noise: file of the noise that it was trained on last; None where there is none.
    """

    label: str
    seed: int
    path: str
    noise: Path | None


def add_study_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the flags that name a finished study's runs in place of single ones."""
    group.add_argument("--study", type=file_or_folder, metavar="FOLDER", help="instead: of a finished study")
    group.add_argument("--methods", nargs="+", default=[], metavar="LABEL", help="of the study (default: all)")


class Inputs(NamedTuple):
    """The start that all were trained from, and the trained models, method by method."""

    start: str
    trained: list[Trained]


def find_inputs(args: argparse.Namespace) -> Inputs:
    """What ``--before`` and ``--after``, or ``--study`` and ``--methods``, name.

    Raises:
        OptionError: neither or both, a word of ``--after`` that is no LABEL=CKPT, an unknown method, or a study of
            several starts without ``--before``.
        DataError: no finished run in the study's folder, or its start is not there.
    """
    if bool(args.study) == bool(args.after):
        raise OptionError(
            "expected the trained models, --after LABEL=CKPT ... or --study FOLDER, found both or neither. Give one."
        )
    if args.after:
        if args.before is None or args.methods:
            wrong = "--before, the start" if args.before is None else "--methods with --study alone"
            raise OptionError(f"--after: expected {wrong}, found {'none' if args.before is None else 'both'}.")
        return Inputs(args.before, _named(args.after))
    trained, starts = study_runs(Path(args.study), args.methods)
    start = args.before or next(iter(starts))
    if args.before is None and (len(starts) > 1 or not start):
        found = ", ".join(sorted(starts - {""})) or "none"
        raise OptionError(
            f"--study {args.study}: expected one start of all its runs, found {found[:200]}. Give --before."
        )
    if args.before is None and not is_url(start) and not os.path.exists(start):
        raise DataError(
            f"--study {args.study}: expected its start, found none at {start}. Give --before, or run this in the "
            "folder in which the study ran."
        )
    return Inputs(start, trained)


def _named(words: Sequence[str]) -> list[Trained]:
    """Those of ``LABEL=a.pth,b.pth``; a label may come again.

    Raises:
        OptionError: the start's label.
    """
    trained: list[Trained] = []
    for label, path in named_paths(words, "--after", "CKPT"):
        if label == _RESERVED:
            raise OptionError(f"--after: expected any label but {_RESERVED}, the start's, found it. Choose another.")
        seed = sum(one.label == label for one in trained)
        trained.append(Trained(label, seed, path, None if is_url(path) else _noise_in(Path(path).parent)))
    labels = dict.fromkeys(one.label for one in trained)
    return [one for label in labels for one in trained if one.label == label]


def named_paths(words: Sequence[str], flag: str, what: str) -> Iterator[tuple[str, str]]:
    """The label and the path of each of ``LABEL=a,b``.

    Args:
        flag, what: of what kind the paths are, in words of an error's line.

    Raises:
        OptionError: a word without a label or a path, or a path that cannot be one.
    """
    for word in words:
        label, equals, paths = word.partition("=")
        if not equals or not label.strip() or not label.isprintable() or not paths.strip(","):
            raise OptionError(f"{flag}: expected LABEL={what} or LABEL={what},{what},..., found {word[:200]!r}.")
        for path in filter(None, paths.split(",")):
            try:
                yield label, file_or_folder(path)
            except argparse.ArgumentTypeError as error:
                raise OptionError(f"{flag} {label}: {error}.") from error


def _noise_in(folder: Path) -> Path | None:
    """The newest noise in a run's folder; None where there is none."""
    path = folder / "noise.pt"
    return path if path.is_file() else None


def study_runs(folder: Path, methods: Sequence[str], *, weights: bool = True) -> tuple[list[Trained], set[str]]:
    """The finished runs in a study's folder, in the order of its report, and the starts that they were trained from.

    Args:
        methods: labels of those that are wanted; all if it is empty.
        weights: whether the weights have to be there, which records that were handed on lack.

    Raises:
        OptionError: an unknown method.
        DataError: no finished run.
    """
    labels = _labels(folder)
    trained, starts, unfinished = [], set(), []
    for run_folder in folder.glob("methods/*/seed*"):
        found = re.fullmatch(r"seed([0-9]{1,10})", run_folder.name)
        if found is None:
            continue
        label = labels.get(run_folder.parent.name, run_folder.parent.name)
        run = Run(label, int(found[1]), run_folder, {}, 0, None, None, {})
        record = record_of(run)
        if record is None or not record.trained or (weights and not (run_folder / LAST).is_file()):
            unfinished.append(run.name)
            continue
        if methods and label not in methods:
            continue
        if label == _RESERVED:
            raise OptionError(
                f"--study {folder}: expected methods of any name but {_RESERVED}, found it. Leave it out."
            )
        starts.add(str(record.flags.get("initial_checkpoint") or ""))
        trained.append(Trained(label, int(found[1]), str(run_folder / LAST), _noise_in(run_folder)))
    if unfinished:
        _logger.warning("left out, as their training is not finished: %s", ", ".join(sorted(unfinished)))
    if missing := [method for method in methods if method not in {one.label for one in trained}]:
        raise OptionError(
            f"--methods: expected finished methods of {folder}, some of {', '.join(labels.values()) or 'none'}, found "
            f"{missing[0]}."
        )
    if not trained:
        raise DataError(f"--study {folder}: expected methods/*/seed*/{LAST} of a study, found none that is finished.")
    order = {label: place for place, label in enumerate(labels.values())}
    return sorted(trained, key=lambda one: (order.get(one.label, len(order)), one.label, one.seed)), starts


def _labels(folder: Path) -> dict[str, str]:
    """The methods' names as the study's file has them, by their folders; from costs.json, {} without it."""
    path = folder / "costs.json"
    try:
        names = [entry["method"] for entry in parse_json(read_bounded(path, _MOST_BYTES))]
        return {slug(name): name for name in names}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: expected a study's costs, found other things ({error}). Move it away.") from error
