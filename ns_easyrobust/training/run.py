"""The objects of a training run, the files it writes, and how it is resumed from them."""

from __future__ import annotations

import argparse
import logging
import math
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.data import Mixup
from timm.utils import ModelEmaV2, update_summary
from torch import nn
from torch.amp.grad_scaler import GradScaler

from ..errors import CheckpointError, TrainingError
from ..models import save_model, unwrap
from ..utils import Interval, gather_objects, is_plain, on_first_rank, rank, shown_flags, world_size, write_text
from .augmentations.base import Augmentation
from .resume import MAY_CHANGE_ON_RESUME, StopSignal, random_state, save_state, set_random_state
from .run_folder import kept_name
from .sam import SamSettings
from .setup import Data
from .trackers import Trackers

_logger = logging.getLogger(__name__)


@dataclass
class Position:
    """How far a run has come.

    Attributes:
        step: updates done.
        epoch: the current epoch, from 0.
        epoch_step: updates done in this epoch.
        clean, companion: sums of this epoch's clean and companion losses.
        best: highest score so far.
        summary: text of summary.csv.
    """

    step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    clean: float = 0.0
    companion: float = 0.0
    best: float = -math.inf
    summary: str = ""


def identity(args: argparse.Namespace, data: Data) -> dict[str, Any]:
    """What must be the same when a run is resumed: flags, data and global batch size."""
    flags = {name: value for name, value in shown_flags(args).items() if is_plain(value)}
    return {"args": flags, "data": data.digest, "batch": args.batch_size * world_size()}


def _deciding_flags(args: argparse.Namespace, arch: str) -> dict[str, Any]:
    """The flags that decide the weights, without the places where files lie: equal runs write equal checkpoints.

    ``--model`` is the architecture ``arch``, also where a hub's model was given, whose weights these no longer are.
    """
    flags = {name: value for name, value in shown_flags(args).items() if name not in MAY_CHANGE_ON_RESUME}
    return flags | {"model": arch, "initial_checkpoint": Path(flags["initial_checkpoint"]).name}


@dataclass
class Run:
    """The objects of a run; ``model`` is the module being trained, wrapped in DDP if there are several processes."""

    args: argparse.Namespace
    device: torch.device
    model: nn.Module
    ema: ModelEmaV2 | None
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    scheduler: Any
    mixup: Mixup | None
    loss_fn: nn.Module
    augmentation: Augmentation | None
    sam: SamSettings
    data: Data
    folder: Path
    last_step: int
    stop: StopSignal
    log_time: Interval  # until another line of the log, where no bar is shown
    trackers: Trackers | None  # None except on rank 0
    at: Position = field(default_factory=Position)
    started: float = field(default_factory=time.monotonic)
    began_at: int = 0  # step at which this process began or resumed the run

    @property
    def judged(self) -> nn.Module:
        """The module to evaluate: the EMA if there is one, otherwise the model."""
        return self.ema.module if self.ema is not None else unwrap(self.model)

    @property
    def seconds_to_go(self) -> float:
        done = max(1, self.at.step - self.began_at)
        return (time.monotonic() - self.started) / done * (self.last_step - self.at.step)

    def autocast(self) -> Any:
        dtype = getattr(torch, self.args.amp_dtype)
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.args.amp)

    def track(self, numbers: dict[str, float]) -> None:
        """Log ``numbers`` and :attr:`companion_numbers` at the current step, if there are trackers."""
        if self.trackers is not None:
            self.trackers.log(numbers | self.companion_numbers, self.at.step)

    @property
    def companion_numbers(self) -> dict[str, float]:
        """The companion's own numbers, such as the noise's norm; empty if there is no companion."""
        return {} if self.augmentation is None else self.augmentation.numbers

    @property
    def companion_name(self) -> str:
        """The companion's column in ``summary.csv``."""
        return "noisy_loss" if self.augmentation is None else self.augmentation.loss_name

    @property
    def companion_word(self) -> str:
        """The companion in the lines of a log."""
        return self.companion_name.removesuffix("_loss")

    @property
    def replaces_clean(self) -> bool:
        """Whether the companion loss stands in place of the clean one."""
        return self.augmentation is not None and self.augmentation.replaces_clean

    def diverged(self, what: str) -> TrainingError:
        """The error to raise for losses or weights that are not finite."""
        return TrainingError(
            f"{what}. Lower --lr in a new --experiment, or check data and checkpoint. {self.saved_so_far}."
        )

    @property
    def saved_so_far(self) -> str:
        """Where the last good weights are, as text for error messages."""
        good = [name for name in ("last.pth.tar", "state.pth.tar") if (self.folder / name).exists()]
        return f"Weights saved before that: {self.folder / good[0]}" if good else "Nothing was saved"

    def save_state(self) -> None:
        """Save everything that :meth:`restore` needs; all ranks must call it together.

        Raises:
            TrainingError: the weights are not finite.
            OutputError: the state cannot be written; the last good one is kept.
        """
        self._require_finite()
        generators = gather_objects(random_state(self.device))
        on_first_rank(lambda: save_state(self.folder, self._state(generators)), self.device)
        self.stop.saved = self.at.step

    @property
    def _optimizer_generator(self) -> torch.Generator | None:
        """The optimizer's own source of random numbers, as AdaHessian has one."""
        generator = getattr(self.optimizer, "generator", None)
        return generator if isinstance(generator, torch.Generator) else None

    def _require_finite(self) -> None:
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise self.diverged(f"step {self.at.step}: expected finite weights, found nan or inf")

    def _state(self, generators: list[Any]) -> dict[str, Any]:
        return {
            "identity": identity(self.args, self.data),
            "at": vars(self.at),
            "state_dict": unwrap(self.model).state_dict(),
            "state_dict_ema": None if self.ema is None else self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "optimizer_random": own.get_state() if (own := self._optimizer_generator) is not None else None,
            "scaler": self.scaler.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "augmentation": None if self.augmentation is None else self.augmentation.state_dict(),
            "random": generators,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`save_state` saved, except the random generators (see :meth:`restore_random`).

        Raises:
            CheckpointError: an entry does not fit this run's model, optimizer, schedule or augmentation.
        """
        try:
            self._restore_objects(state)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{self.folder}: expected the state that this run saved, found one that does not fit it "
                f"({type(error).__name__}: {reason}). Start another --experiment."
            ) from error
        on_first_rank(self._restore_summary, self.device)

    def _restore_objects(self, state: dict[str, Any]) -> None:
        self.at = Position(**state["at"])
        self.began_at = self.stop.saved = self.at.step
        unwrap(self.model).load_state_dict(state["state_dict"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["state_dict_ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        drawn = state.get("optimizer_random")  # states of earlier versions have none
        if drawn is not None and self._optimizer_generator is not None:
            self._optimizer_generator.set_state(drawn)
        self.scaler.load_state_dict(state["scaler"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.augmentation is not None:
            self.augmentation.load_state_dict(state["augmentation"])

    def restore_random(self, state: dict[str, Any]) -> None:
        """Restore the global generators; to be called when nothing else draws from them before the next step."""
        if len(state["random"]) != world_size():
            _logger.warning(
                "resumed on %d processes, begun on %d: the same batches, but dropout and mixup draw anew",
                world_size(), len(state["random"]),
            )  # fmt: skip
            return
        try:
            set_random_state(state["random"][rank()], self.device)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.folder}: expected the states of random generators, found others ({type(error).__name__}). "
                "Start another --experiment."
            ) from error

    def _restore_summary(self) -> None:
        """Reset summary.csv to the saved state: rows written since then will be written again."""
        if self.at.summary:
            write_text(self.folder / "summary.csv", self.at.summary)
        else:
            (self.folder / "summary.csv").unlink(missing_ok=True)

    def write(self, trained: dict[str, float], judged: dict[str, float], score: float | None) -> None:
        """Write an epoch's files: last weights and the companion's always, summary and best only after an evaluation.

        Args:
            trained: mean losses and other numbers of training.
            judged: metrics of the evaluation; empty if this epoch had none.
            score: what the best weights are chosen by, higher is better; None if it was not measured.

        Raises:
            TrainingError: the weights are not finite.
            OutputError: a file cannot be written.
        """
        epoch = self.at.epoch
        self._require_finite()
        extra = {"epoch": epoch, "metric": score, "selected_on": self.args.select}
        self._save_weights("last.pth.tar", **extra)
        if self.augmentation is not None:
            self.augmentation.write(self.folder)
        path = self.folder / "summary.csv"
        if judged:
            update_summary(epoch, trained, judged, path, write_header=not path.exists())
            self.at.summary = path.read_text(encoding="utf-8")
        if score is not None and score > self.at.best and judged:
            self._save_weights("model_best.pth.tar", **extra)

    def keep_weights(self) -> None:
        """Write the weights of this step into a file of their own; all ranks must call it together.

        Raises:
            TrainingError: the weights are not finite.
            OutputError: the file cannot be written.
        """
        self._require_finite()
        on_first_rank(partial(self._save_weights, kept_name(self.at.step), epoch=self.at.epoch), self.device)

    def _save_weights(self, name: str, **extra: Any) -> None:
        ema = self.ema.module if self.ema is not None else None
        arch = str(unwrap(self.model).arch)
        common: dict[str, Any] = {"arch": arch, "args": _deciding_flags(self.args, arch), "step": self.at.step}
        save_model(unwrap(self.model), self.folder / name, ema=ema, **common, **extra)
