"""Optional logging of a run's numbers to TensorBoard and Weights & Biases, besides its log and CSV files."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import OptionError
from ..utils import import_package

_logger = logging.getLogger(__name__)


def require_trackers(tensorboard: bool, wandb: bool) -> None:
    """Raise MissingPackageError if one that is wanted is not installed."""
    if tensorboard:
        import_package("tensorboard", "--log-tensorboard")
    if wandb:
        import_package("wandb", "--log-wandb")


class Trackers:
    """Logs numbers by step to the trackers that are switched on.

    Args:
        folder: the run's folder; TensorBoard's events go to its ``tensorboard/``, wandb's files to its ``wandb/``.
        tensorboard: whether to log to TensorBoard.
        wandb: project in Weights & Biases, or None to do without.
        settings: the run's flags, for wandb's config.
        step: where a resumed run goes on; TensorBoard hides what was logged there or later. 0 for a new run.

    Raises:
        MissingPackageError: a tracker is not installed. OptionError: one cannot start.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tensorboard: bool = False,
        wandb: str | None = None,
        settings: Mapping[str, Any] | None = None,
        step: int = 0,
    ) -> None:
        self._writer: Any = None
        self._wandb: Any = None
        require_trackers(tensorboard, wandb is not None)
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            try:
                self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step or None)
            except (OSError, ValueError) as error:  # ValueError: a folder's name that is not UTF-8
                raise OptionError(
                    f"--log-tensorboard: expected to write to {folder}, found {type(error).__name__}. Choose another "
                    "--output and --experiment, or leave it out."
                ) from error
        if wandb is not None:
            import wandb as package

            run_id = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]  # stays the same on resuming
            try:
                self._wandb = package.init(
                    project=wandb,
                    name=folder.name,
                    id=run_id,
                    resume="allow",
                    dir=str(folder),
                    config=dict(settings or {}),
                )
            except Exception as error:  # wandb raises many kinds: no login, no network
                reason = str(error).rstrip(".")
                raise OptionError(
                    f"--log-wandb: expected to start a run, found {type(error).__name__}: {reason}. "
                    "Log in (wandb login), or set WANDB_MODE=offline."
                ) from error

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Log ``numbers``, by name, at ``step``."""
        if self._writer is not None:
            for name, value in numbers.items():
                self._writer.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(numbers), step=step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        if self._wandb is not None:
            self._wandb.finish()
