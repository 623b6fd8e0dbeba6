"""The noises that a study's methods were trained on, from the ``noise.csv`` of each run."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from .. import report
from ..utils import as_csv
from .noise_rows import read_noise_rows
from .study_plan import Run

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NoiseNumbers:
    """What the report tells of the noises of one or more runs, each a list with a value for each noise.

    Attributes:
        runs: how many noises each run had.
        norms: L2 norms.
        held_out: ``mse_probability`` on images kept out of the synthesis; empty where there were none.
        eps: the thresholds that they were made for.
        feasible: whether the upper bound on held-out images was under eps; empty where there were none.
    """

    runs: list[int]
    norms: list[float]
    held_out: list[float]
    eps: list[float]
    feasible: list[bool]

    @classmethod
    def joined(cls, parts: Sequence[NoiseNumbers]) -> NoiseNumbers:
        """The noises of several runs together."""
        return cls(*([value for part in parts for value in getattr(part, each.name)] for each in fields(cls)))


def read_noises(runs: Sequence[Run]) -> dict[str, dict[str, NoiseNumbers]]:
    """The noises of each method by the name of its run; of several companions with noises, each by itself.

    A file that cannot be read is left out, with a warning.
    """
    found: dict[str, dict[str, NoiseNumbers]] = {}
    for run in runs:
        for path in sorted(run.folder.glob("*noise.csv")) if run.train is not None else ():
            companion = path.name.removesuffix("noise.csv").rstrip("-")
            try:
                numbers = _numbers(path, run.flags)
            except (OSError, csv.Error, KeyError, TypeError, ValueError) as error:
                _logger.warning("%s: left out of the table of noises, as it cannot be read: %s", path, error)
                continue
            label = f"{run.label}: {companion}" if companion else run.label
            found.setdefault(label, {})[str(run.seed)] = numbers
    return found


def _numbers(path: Path, flags: Mapping[str, object]) -> NoiseNumbers:
    """Raises what :func:`read_noise_rows` does."""
    rows = read_noise_rows(path)
    eps = [row.eps for row in rows if row.eps is not None]  # of noises whose eps is not the flag's
    if not eps and isinstance(flag := flags.get("ns_eps"), int | float):
        eps = [float(flag)]
    held_out = [row.held_out for row in rows if row.held_out is not None]
    feasible = [row.converged for row in rows if row.converged is not None]
    return NoiseNumbers([len(rows)], [row.norm for row in rows], held_out, eps, feasible)


def noises_markdown(found: Mapping[str, Mapping[str, NoiseNumbers]]) -> str:
    """A section with a line for each method, over the noises of all its seeds; "" where no method has any."""
    if not found:
        return ""
    lines = [
        "## Noises\n",
        "What each method was trained on, over the noises of all its seeds: mean (least to greatest). Norms are L2; "
        "mse_probability is the noise's influence on images kept out of its synthesis, for the model of that moment; "
        "feasible: its upper 95% bound is under eps.\n",
        "| method | noises a run | norm | held-out mse_probability | eps | feasible |",
        "|:--|--:|--:|--:|--:|--:|",
    ]
    for label, runs in found.items():
        own = NoiseNumbers.joined(list(runs.values()))
        feasible = f"{sum(own.feasible)} of {len(own.feasible)}" if own.feasible else "not measured"
        cells = [_range(own.runs), _mean_and_range(own.norms), _mean_and_range(own.held_out), _range(own.eps), feasible]
        lines.append(f"| {report.escape(label)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def noises_csv(found: Mapping[str, Mapping[str, NoiseNumbers]]) -> str:
    """A line for each run, and one for all noises of a method, whose seed is "all"."""
    names = [f"{name}_{part}" for name in ("norm", "held_out", "eps") for part in ("mean", "least", "greatest")]
    lines: list[Sequence[object]] = [("method", "seed", "noises", *names, "feasible", "measured")]
    for label, runs in found.items():
        for seed, own in (*runs.items(), ("all", NoiseNumbers.joined(list(runs.values())))):
            numbers = [number for values in (own.norms, own.held_out, own.eps) for number in _summary(values)]
            lines.append((label, seed, sum(own.runs), *numbers, sum(own.feasible), len(own.feasible)))
    return as_csv(lines)


def _summary(values: Sequence[float]) -> Iterator[float | None]:
    """Mean, least and greatest."""
    yield from (math.fsum(values) / len(values), min(values), max(values)) if values else (None, None, None)


def _range(values: Sequence[float]) -> str:
    ends = [f"{end:.4g}" for end in (min(values), max(values))] if values else ["not recorded"]
    return " to ".join(dict.fromkeys(ends))


def _mean_and_range(values: Sequence[float]) -> str:
    return f"{math.fsum(values) / len(values):.4g} ({_range(values)})" if values else "not measured"
