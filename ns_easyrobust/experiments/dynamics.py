"""The experiment ``dynamics``: Figure 4 and Table 5 of arXiv:2403.10476, and what of them is finetuning's own."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import evaluation, report
from ..errors import DataError, OptionError, without_secrets
from ..utils import add_machine_arguments, file_or_folder, int_from, pick_device, sha256_of
from .dynamics_inputs import TrainedRun, find_runs
from .feasible_norm_inputs import add_study_arguments
from .figure import FigureExperiment
from .registry import Command, register_experiment
from .results import Results

if TYPE_CHECKING:
    from ..report import FigureReport

_logger = logging.getLogger(__name__)
_OWN = ("--ckpt-path", "--records", "--label", "--data-dir", "--device", "--seed", "--workers")


@register_experiment("dynamics")
class DynamicsExperiment(FigureExperiment):
    """noise and accuracy by training step, of several methods and seeds (Figure 4, Table 5)"""

    _benchmark: Command

    def add_inputs(self, parser: argparse.ArgumentParser) -> None:
        """Add the runs, and how their checkpoints are evaluated."""
        runs = parser.add_argument_group("runs of train --keep-interval N")
        runs.add_argument(
            "--runs", nargs="+", action="extend", default=[], metavar="LABEL=FOLDER",
            help="their folders; several seeds of a method as LABEL=FOLDER,FOLDER or by repeating the label",
        )  # fmt: skip
        add_study_arguments(runs)
        runs.add_argument(
            "--baseline", default="none", metavar="LABEL", help="trained without noise (default: none, if there)"
        )
        runs.add_argument(
            "--before", type=file_or_folder, metavar="CKPT", help="the start of all (default: what each run recorded)"
        )
        runs.add_argument(
            "--every", type=int_from(1), default=1, metavar="N",
            help="of the kept checkpoints, those whose updates are a multiple of N (default: 1, all)",
        )  # fmt: skip
        accuracy = parser.add_argument_group("accuracy of the checkpoints")
        accuracy.add_argument(
            "--data-dir", type=file_or_folder, required=True, metavar="DIR",
            help="folder with imagenet-val/, imagenet-c/, ..., or with train/ and val/",
        )  # fmt: skip
        accuracy.add_argument(
            "--benchmark", default="--suite val fgsm c", metavar="WORDS",
            help="flags of ns-easyrobust benchmark, in one word: suites, subsets, attacks, preprocessing "
            "(default: '--suite val fgsm c')",
        )  # fmt: skip
        add_machine_arguments(parser)

    def run(self, args: argparse.Namespace, commands: Mapping[str, Command]) -> Iterator[str]:
        """Evaluate what is not evaluated yet, and write the report."""
        self._benchmark = commands["benchmark"]
        yield from super().run(args, commands)

    def measure(self, args: argparse.Namespace, results: Results) -> None:
        """Read the runs' noises, and evaluate the start and the checkpoints."""
        from tqdm.auto import tqdm

        runs = find_runs(args)
        device = pick_device(args.device)
        self._parse(args, runs[0].start, results, "start")
        results.begin(
            {
                "benchmark": _words(args.benchmark), "data_dir": str(args.data_dir), "seed": args.seed,
                "baseline": args.baseline, "every": args.every, "runs": [[run.label, run.seed] for run in runs],
                "starts": [without_secrets(start) for start in dict.fromkeys(run.start for run in runs)],
            },
            device,
        )  # fmt: skip
        for run in runs:
            line = _run_line(run)
            if results.find(**line) is None:
                results.add(line)
        for name, path, key in tqdm(_parts(runs), desc="checkpoints", unit="checkpoint", disable=None):
            digest = sha256_of(path) if os.path.isfile(path) else ""
            if results.find(**key, sha256=digest) is None:
                columns = self._evaluate(args, path, results, f"{name} {digest[:8]}")
                results.add({**key, "sha256": digest, "columns": columns})
                _logger.info("%s: evaluated", name)

    def _parse(self, args: argparse.Namespace, path: str, results: Results, label: str) -> argparse.Namespace:
        """The flags of ``benchmark`` for a checkpoint.

        Raises:
            OptionError, DataError: as ``benchmark`` itself, or a flag that this experiment sets.
        """
        words = _words(args.benchmark)
        if own := [word for word in words if word.partition("=")[0] in _OWN]:
            raise OptionError(f"--benchmark: expected flags that are not this experiment's own, found {own[0]}.")
        words += [f"--ckpt-path={path}", f"--data-dir={args.data_dir}", f"--records={_records(results)}"]
        words += [f"--label={label}", f"--seed={args.seed}", f"--workers={args.workers}"]
        return self._benchmark.parse(words)

    def _evaluate(self, args: argparse.Namespace, path: str, results: Results, label: str) -> list[dict[str, Any]]:
        """The columns of a checkpoint: value in percent, higher is better, and n of each."""
        flags = self._parse(args, path, results, label)
        done = evaluation.evaluate_checkpoint(flags, _records(results), pick_device(args.device)).done
        if not done.run:
            reason = next(iter(done.not_run.values()), "no suite was named")
            raise DataError(f"--data-dir {args.data_dir}: expected images of a suite, found none ({reason}).")
        records = [one for one in evaluation.read_records(_records(results)) if one.label == label]
        run = report.SeedRun(None, records)
        table = report.StudyTable([report.MethodRuns(label, [run])])
        groups = {suite.record: suite.group for suite in evaluation.suites().values()}
        return [
            {
                "title": f"100 - {column.title}" if column.lower_is_better else column.title,
                "group": groups[column.suite],
                "value": 100 - cell.value if column.lower_is_better else cell.value,
                "n": cell.n,
            }
            for column in table.columns
            if column.unit == "%" and (cell := run.cells[column.key])
        ]

    def report(self, protocol: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], parts: Path) -> FigureReport:
        """Tables and picture of the lines."""
        return report.dynamics_report(protocol, lines)


def _words(benchmark: str) -> list[str]:
    try:
        return shlex.split(benchmark)
    except ValueError as error:
        raise OptionError(f"--benchmark: expected words, found {benchmark!r} ({error}). Correct the quotes.") from error


def _records(results: Results) -> Path:
    return results.parts / "results.jsonl"


def _parts(runs: Sequence[TrainedRun]) -> list[tuple[str, str, dict[str, Any]]]:
    """What is evaluated, the starts first: a name, the checkpoint, and what tells its line apart."""
    parts: list[tuple[str, str, dict[str, Any]]] = [
        (f"start {without_secrets(start)}", start, {"kind": "start", "start": without_secrets(start)})
        for start in dict.fromkeys(run.start for run in runs)
    ]
    for run in runs:
        for step, path in run.checkpoints.items():
            key = {"kind": "checkpoint", "label": run.label, "seed": run.seed, "update": step}
            parts.append((f"{run.name}, {step} updates", str(path), key))
    return parts


def _run_line(run: TrainedRun) -> dict[str, Any]:
    """A run's noises, a list of each of their numbers."""
    noises = run.noises
    return {
        "kind": "run",
        "label": run.label,
        "seed": run.seed,
        "start": without_secrets(run.start),
        "eps": list(run.eps),
        "steps": [noise.step for noise in noises],
        "norm": [noise.norm for noise in noises],
        "mse_probability": [noise.mse_probability for noise in noises],
        "stopped": [noise.stopped for noise in noises],
        "held_out": [noise.held_out for noise in noises],
    }
