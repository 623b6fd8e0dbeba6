"""A run's state on disk, written atomically with the previous one kept, for ``--resume auto``; SIGTERM handling."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import torch

from ..errors import CheckpointError, TrainingError, without_secrets
from ..models import read_file
from ..utils import is_plain, os_errors_as_output_errors, save_tensors

_logger = logging.getLogger(__name__)
PREVIOUS_STATE = "state-before.pth.tar"
# Oldest first. "next" is complete once it has its name; then "state" is renamed to "before", and "next" to "state".
STATE_FILES = (PREVIOUS_STATE, "state.pth.tar", "state-next.pth.tar")
_SIZES_HASHED = 100  # a dataset's digest covers the sizes of at least this many files, or of all
# Flags that may change on resuming, as they do not affect training (data_dir's images are compared by digest).
MAY_CHANGE_ON_RESUME = (
    "resume",
    "output",
    "experiment",
    "config",
    "workers",
    "log_interval",
    "recovery_interval",
    "keep_interval",
    "device",
    "pin_mem",
    "log_tensorboard",
    "log_wandb",
    "wandb_project",
    "validation_batch_size",
    "data_dir",
    "dataset_download",
    "relevance_images",
    "relevance_masks",
    "relevance_cache",
)


def save_state(folder: Path, content: dict[str, Any]) -> None:
    """Write ``content`` (tensors and plain values); the last good state stays until the new one is on disk.

    Raises:
        OutputError: the folder cannot be written, or the disk is full; earlier states are kept.
    """
    previous, current, fresh = (folder / name for name in STATE_FILES)
    save_tensors(fresh, content)
    with os_errors_as_output_errors(current):
        if current.exists():
            os.replace(current, previous)
        os.replace(fresh, current)


def find_state(folder: Path) -> dict[str, Any] | None:
    """The newest state in ``folder`` that can be used, or None if there are no states; others are logged.

    Raises:
        CheckpointError: there are states, but none of them can be used.
    """
    paths = [folder / name for name in reversed(STATE_FILES) if os.path.lexists(folder / name)]
    lines = []
    for path in paths:
        try:
            return _checked(read_file(path, str(path))[1], path)
        except CheckpointError as error:
            lines.append(error.line)
            _logger.warning("%s%s", error.line, " The one before is taken." if path != paths[-1] else "")
    if lines:
        raise CheckpointError(
            f"{folder}: expected a state to resume from, found {len(lines)} damaged or of another kind "
            f"(the newest: {lines[0].rstrip('.')}). Start another --experiment, from last.pth.tar by "
            "--initial-checkpoint if it is good."
        )
    return None


# What Run._state saves, with the types of what is read before the rest is given to timm's and torch's objects.
_STATE_TYPES: dict[str, Any] = {
    "identity": {"args": dict, "data": str, "batch": int},
    "at": dict.fromkeys(("step", "epoch", "epoch_step"), int)
    | dict.fromkeys(("clean", "companion", "best"), (int, float))
    | {"summary": str},
    "state_dict": dict,
    "state_dict_ema": (dict, type(None)),
    "optimizer": dict,
    "scaler": dict,
    "scheduler": dict,
    "augmentation": (dict, type(None)),
    "random": list,
}


def _checked(content: Any, path: Path) -> dict[str, Any]:
    """``content`` if it is a run's state, as far as its types say; else raise CheckpointError."""
    odd = list(_odd_entries(content, _STATE_TYPES))
    if not odd and not all(
        isinstance(name, str) and is_plain(value) for name, value in content["identity"]["args"].items()
    ):
        odd = ["identity.args"]
    if odd:
        weights = isinstance(content, dict) and "state_dict" in content and "at" not in content
        found = "a checkpoint, whose weights --initial-checkpoint takes" if weights else f"none or an odd {odd[0]}"
        raise CheckpointError(f"{path}: expected the state of a training run, found {found}.")
    assert isinstance(content, dict)
    return content


def _odd_entries(content: Any, types: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """Names of the entries that ``content`` lacks or has of another type, and of counts that are negative."""
    if not isinstance(content, dict):
        yield where or "content"
        return
    for name, kind in types.items():
        value = content.get(name)
        if isinstance(kind, dict):
            yield from _odd_entries(value, kind, name)
        elif not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
            yield f"{where}.{name}" if where else name


def random_state(device: torch.device) -> dict[str, Any]:
    """State of the global generators of Python, numpy, torch and this rank's GPU, as tensors and plain values."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Restore what :func:`random_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def dataset_digest(samples: Sequence[tuple[str, int]], root: str | Path) -> str:
    """SHA-256 of the paths (relative to ``root``) and labels of ``samples``, and of some of the files' sizes."""
    digest = hashlib.sha256()
    for path, label in samples:
        digest.update(os.fsencode(os.path.relpath(path, root)) + f"\t{label}\n".encode())  # a name need not be UTF-8
    for path, _ in samples[:: max(1, len(samples) // _SIZES_HASHED)]:
        digest.update(f"{_size(path)}\n".encode())
    return digest.hexdigest()


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:  # a link that leads nowhere: it is told, or replaced, when it is read
        return None


def require_same_run(
    saved: Mapping[str, Any], now: Mapping[str, Any], folder: Path, defaults: Mapping[str, Any]
) -> None:
    """Raise TrainingError if a run would be resumed with other flags or data than it began with.

    Args:
        saved, now: ``{"args": flags by name, "data": digest, "batch": images per step over all processes}``.
        defaults: of the flags by name. What a version without a flag did is what its default does.
    """
    old, new = {**defaults, **saved["args"]}, {**defaults, **now["args"]}
    if saved["batch"] == now["batch"]:  # fewer processes with larger batches see the same images
        old.pop("batch_size", None)
        new.pop("batch_size", None)
    for name in sorted(set(old) | set(new)):
        if name not in MAY_CHANGE_ON_RESUME and _comparable(old.get(name)) != _comparable(new.get(name)):
            raise TrainingError(
                f"--{name.replace('_', '-')}: expected {old.get(name)}, with which the run in {folder} began, found "
                f"{new.get(name)}. Give the same flags, or another --experiment."
            )
    if saved["data"] != now["data"]:
        name = "data_dir" if now["args"].get("dataset") is None else "dataset"
        where = f"--{name.replace('_', '-')} {now['args'].get(name)}"
        raise TrainingError(
            f"{where}: expected the images that the run in {folder} began with, found "
            "others (names, labels or sizes). Restore them, or start another --experiment."
        )


def _comparable(value: Any) -> Any:
    if isinstance(value, str):  # a state of an earlier version holds an address with its secrets
        return without_secrets(value)
    if isinstance(value, dict):
        return {name: _comparable(item) for name, item in value.items()}
    return [_comparable(item) for item in value] if isinstance(value, list | tuple) else value


class RunStopped(TrainingError):
    """The run was stopped by SIGTERM and can be resumed."""

    exit_code = 128 + signal.SIGTERM


class StopSignal:
    """Context manager: SIGTERM sets ``asked`` instead of ending the process; does nothing outside the main thread.

    Attributes:
        asked: whether this process received SIGTERM.
        agreed: whether any rank did; updated, alike on all ranks, in each step.
        saved: step of the newest saved state, -1 if there is none.
    """

    def __init__(self) -> None:
        self.asked = self.agreed = False
        self.saved = -1
        self._previous_handler: Any = None

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGTERM, self._on_sigterm)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def error(self, folder: Path) -> RunStopped:
        """The exception that ends the run, once its state is saved."""
        return RunStopped(
            f"stopped by SIGTERM: the state of step {self.saved} is saved in {folder}. "
            f"The same command with --experiment {folder.name} --resume auto goes on."
        )
