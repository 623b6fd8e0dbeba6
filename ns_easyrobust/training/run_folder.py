"""The folder of a run: held by one process at a time, and found new, or with a state to go on from."""

from __future__ import annotations

import argparse
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from ..errors import OptionError, OutputError
from ..utils import (
    FileLock,
    broadcast_object,
    new_run_folder,
    on_first_rank,
    os_errors_as_output_errors,
    remove_temporaries,
)
from .resume import STATE_FILES, find_state

_logger = logging.getLogger(__name__)
RUN_FILES = ("summary.csv", "last.pth.tar", "model_best.pth.tar", "noise.csv", "noise.pt", *STATE_FILES)
_KEPT = re.compile(r"checkpoint-([0-9]{1,10})\.pth\.tar")


def kept_name(step: int) -> str:
    """The file of the weights after ``step`` updates, which ``--keep-interval`` keeps."""
    return f"checkpoint-{step}.pth.tar"


def kept_checkpoints(folder: Path) -> dict[int, Path]:
    """The weights that a run has kept, by the updates done, in their order; {} where there are none."""
    found = [(int(name[1]), path) for path in folder.glob("checkpoint-*") if (name := _KEPT.fullmatch(path.name))]
    return dict(sorted(found))


@contextmanager
def held_run_folder(args: argparse.Namespace, device: torch.device) -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """While the body runs, no other process trains in the folder ``--output/--experiment``; all ranks call it.

    Rank 0 holds the folder, from before anything in it is read until the run has ended, however it ends. What killed
    runs left half written is deleted, unless the file system has no locks; so is a new folder that stays empty.

    Yields:
        The folder, and the state that ``--resume auto`` goes on from, alike on all ranks; None to start a new run.

    Raises:
        OptionError: ``--resume auto`` without ``--experiment``.
        OutputError: another process trains there, named by host and process number; the folder holds a run that is
            not to be resumed, or one without a state; or it cannot be written.
        CheckpointError: there are states, but none that can be used.
    """
    if args.resume == "auto" and not args.experiment:
        raise OptionError("--resume auto: expected --experiment, the run's folder in --output, found none. Name it.")
    model = re.sub(r"[^\w.-]+", "_", args.model)[-100:]  # no path, whatever it is called
    name = broadcast_object(args.experiment or f"{time.strftime('%Y%m%d-%H%M%S')}-{model}")
    folder = Path(args.output) / name
    with ExitStack() as held:
        states: list[dict[str, Any] | None] = [None]

        def hold_and_look() -> None:
            with os_errors_as_output_errors(folder):
                held.callback(_remove_empty, [place for place in (folder, *folder.parents) if not place.exists()])
                folder.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context(FileLock(folder / ".lock", "this run"))
            states[0] = _state_to_resume(folder) if args.resume == "auto" else None
            if states[0] is None:
                # A run that was killed before its first state begins anew, and writes the same weights again.
                kept = () if args.resume == "auto" else (path.name for path in kept_checkpoints(folder).values())
                new_run_folder(folder, (*RUN_FILES, *kept))
            if lock.is_held:  # else another process may be writing them
                remove_temporaries(folder)

        on_first_rank(hold_and_look, device)
        yield folder, broadcast_object(states[0])


def _remove_empty(folders: list[Path]) -> None:
    """Remove the folders, inner ones first, that a run made which failed before it wrote anything."""
    with suppress(OSError):  # not empty, or another run's by now
        for folder in folders:
            folder.rmdir()


def _state_to_resume(folder: Path) -> dict[str, Any] | None:
    state = find_state(folder)
    if state is None and any(os.path.lexists(folder / name) for name in RUN_FILES):
        raise OutputError(
            f"--resume auto: expected a state in {folder}, found a run without one. Choose another --experiment, and "
            "--initial-checkpoint last.pth.tar to go on from its weights."
        )
    if state is None:
        _logger.info("--resume auto: %s holds no state yet, starting anew", folder)
    return state
