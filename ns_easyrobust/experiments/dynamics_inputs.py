"""The runs whose course ``dynamics`` shows: named one by one, or those of a finished study."""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import training
from ..errors import DataError, OptionError, without_secrets
from ..models import is_url
from ..utils import read_settings
from .feasible_norm_inputs import named_paths, study_runs
from .noise_rows import NoiseRow, read_noise_rows

_FLAGS = "args.yaml"


@dataclass(frozen=True)
class TrainedRun:
    """A run of ``train`` that has kept checkpoints.

    Attributes:
        label: its method's.
        seed: of the training.
        folder: of its files.
        start: the checkpoint that it was trained from.
        checkpoints: its weights, by the updates done.
        noises: that it was trained on; empty of a run without any.
        eps: of each noise, its own or else the flag's.
    """

    label: str
    seed: int
    folder: Path
    start: str
    checkpoints: Mapping[int, Path]
    noises: Sequence[NoiseRow]
    eps: Sequence[float | None]

    @property
    def name(self) -> str:
        """Of the run, for people and in records."""
        return f"{self.label}, seed {self.seed}"


def find_runs(args: argparse.Namespace) -> list[TrainedRun]:
    """The runs of ``--runs``, or of ``--study`` and ``--methods``, each with all that is shown of it.

    Raises:
        OptionError: neither or both of the flags, a word that is no LABEL=FOLDER, an unknown method, or methods of
            other seeds or checkpoints than the rest.
        DataError: a folder of no run, or of one without checkpoints, a start or noises that are not there.
    """
    if bool(args.study) == bool(args.runs):
        raise OptionError(
            "expected the runs, --runs LABEL=FOLDER ... or --study FOLDER, found both or neither. Give one."
        )
    if args.study:
        named = [(one.label, Path(one.path).parent) for one in study_runs(Path(args.study), args.methods)[0]]
    elif args.methods:
        raise OptionError("--methods: expected with --study alone, found with --runs. Leave it out.")
    else:
        named = [(label, Path(path)) for label, path in named_paths(args.runs, "--runs", "FOLDER")]
    runs = [_run(label, folder, args.before, args.every) for label, folder in named]
    _require_alike(runs)
    return runs


def _run(label: str, folder: Path, before: str | None, every: int) -> TrainedRun:
    if not (folder / _FLAGS).is_file():
        raise DataError(
            f"{folder}: expected the folder of a run of train, with {_FLAGS}, found none. Correct the path."
        )
    flags = read_settings(folder / _FLAGS, "a run's flags")
    kept = {step: path for step, path in training.kept_checkpoints(folder).items() if step % every == 0}
    if not kept:
        multiples = f" at multiples of {every} (--every)" if every > 1 else ""
        raise DataError(
            f"{folder}: expected checkpoints kept every N updates (train --keep-interval N){multiples}, found none."
        )
    from ..models import is_hub_name

    start = before or flags.get("initial_checkpoint") or ""
    if not start or not (is_url(start) or is_hub_name(start) or os.path.isfile(start)):
        raise DataError(
            f"{folder}: expected the checkpoint that it was trained from, found "
            f"{f'none at {without_secrets(str(start))}' if start else 'none named'}. Give --before, or run this in the "
            "folder in which it was trained."
        )
    noises = _noises(folder)
    eps = [flags.get("ns_eps") if row.eps is None else row.eps for row in noises]
    return TrainedRun(label, int(flags.get("seed", 0)), folder, str(start), kept, noises, eps)


def _noises(folder: Path) -> list[NoiseRow]:
    """Those of ``noise.csv``; of several companions with noises, each has a file of its own, and they are refused."""
    paths = sorted(folder.glob("*noise.csv"))
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        raise DataError(f"{folder}: expected the noises of one companion, found {names}. Leave the run out.")
    try:
        return [row for path in paths for row in read_noise_rows(path)]
    except (OSError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{paths[0]}: expected a run's noises, found other things ({error}). Leave the run out."
        ) from error


def _require_alike(runs: Sequence[TrainedRun]) -> None:
    """Raise OptionError for a run that is named twice, and for methods of other seeds or checkpoints than the first."""
    seeds: dict[str, list[int]] = {}
    for run in runs:
        if run.seed in seeds.setdefault(run.label, []):
            raise OptionError(f"{run.name}: expected each seed of a method once, found it again in {run.folder}.")
        seeds[run.label].append(run.seed)
    first = next(iter(seeds))
    for label, own in seeds.items():
        if sorted(own) != sorted(seeds[first]):
            raise OptionError(
                f"{label}: expected the seeds of {first}, {_listed(seeds[first])}, found {_listed(own)}. Leave the "
                "method out, or train what is missing."
            )
    for run in runs:
        if run.checkpoints.keys() != runs[0].checkpoints.keys():
            raise OptionError(
                f"{run.folder}: expected checkpoints of the same updates as in {runs[0].folder}, "
                f"{_listed(runs[0].checkpoints)}, found {_listed(run.checkpoints)}. Leave it out, or give --every."
            )


def _listed(numbers: Any) -> str:
    return ", ".join(map(str, sorted(numbers)))
