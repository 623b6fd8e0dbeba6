"""What is kept and told of the noises of a run: a row for each, and the newest."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...nullspace import Noise
from ...utils import nn, torch, write_text

_logger = logging.getLogger(__name__)


def noise_row(step: int, noise: Noise, previous: Noise | None) -> dict[str, Any]:
    """A noise's numbers, as ``noise.csv`` has them; ``step`` is the training step before which it was made."""
    held_out = noise.held_out
    return {
        "step": step,
        "norm": noise.norm,
        "mse_probability": noise.mse_probability,
        "synthesis_steps": noise.steps,
        "stopped": noise.stopped,
        "cosine": None if previous is None else _cosine(previous.value, noise.value),
        "converged": noise.converged,
        "held_out_mse_probability": None if held_out is None else held_out.mse_probability,
        "held_out_upper": None if held_out is None else held_out.mse_probability_upper,
        "eps": noise.config.eps,
    }


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """Cosine similarity of two noises: near 0 if they are unrelated, near 1 if they are nearly the same."""
    return float(nn.functional.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0))


def log_noise(number: int, noise: Noise) -> None:
    """Log the numbers of a run's noise, counted from 1."""
    held_out = noise.held_out
    _logger.info(
        "noise %d: %d synthesis steps, %s; norm %.4g, mse_probability %.4g%s",
        number,
        noise.steps,
        "stopped under eps" if noise.stopped else "not under eps on its batches",
        noise.norm,
        noise.mse_probability,
        ""
        if held_out is None
        else f"; held out (n={held_out.n}): {held_out.mse_probability:.4g}, at most "
        f"{held_out.mse_probability_upper:.4g} at 95%",
    )


def write_noises(folder: Path, prefix: str, history: Sequence[Mapping[str, Any]], newest: Noise) -> None:
    """Write ``noise.csv``, the rows of all noises, and ``noise.pt``, both names behind ``prefix``."""
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(history[0]))
    writer.writeheader()
    writer.writerows(history)
    write_text(folder / f"{prefix}noise.csv", table.getvalue())
    newest.save(folder / f"{prefix}noise.pt")
