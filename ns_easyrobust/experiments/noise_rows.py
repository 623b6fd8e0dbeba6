"""The rows of a run's ``noise.csv``: a noise each."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path

from ..utils import read_bounded

_MOST_BYTES = 2**26
_TRUE_OR_FALSE = {"True": True, "False": False}


@dataclass(frozen=True)
class NoiseRow:
    """A noise, and what it was when it was made.

    Attributes:
        step: updates of the model before it.
        norm: L2.
        mse_probability: of its last test, on the batches of its synthesis.
        stopped: whether that was under eps.
        held_out: ``mse_probability`` on images kept out of the synthesis; None where there were none.
        converged: whether the upper bound of ``held_out`` was under eps; None where there were none.
        eps: None in files of earlier versions.
    """

    step: int
    norm: float
    mse_probability: float
    stopped: bool
    held_out: float | None
    converged: bool | None
    eps: float | None


def read_noise_rows(path: Path) -> list[NoiseRow]:
    """The rows of a file.

    Raises:
        OSError: it is not there, or cannot be read.
        csv.Error, KeyError, TypeError, ValueError: it is no such file, or a number of it is not finite.
    """
    rows = [_row(row) for row in csv.DictReader(io.StringIO(read_bounded(path, _MOST_BYTES).decode()))]
    if not rows:
        raise ValueError("expected noises, found none")
    return rows


def _row(row: dict[str, str]) -> NoiseRow:
    held_out, converged = row["held_out_mse_probability"], row["converged"]
    numbers = [float(row["norm"]), *(float(text) for text in (held_out, row.get("eps")) if text)]
    if not all(map(math.isfinite, numbers)):
        raise ValueError("expected noises with finite numbers")
    return NoiseRow(
        step=int(row["step"]),
        norm=float(row["norm"]),
        mse_probability=float(row["mse_probability"]),
        stopped=_TRUE_OR_FALSE[row["stopped"]],
        held_out=float(held_out) if held_out else None,
        converged=_TRUE_OR_FALSE[converged] if converged else None,
        eps=float(row["eps"]) if row.get("eps") else None,
    )
