"""A run's state on the disk: saved whole or not at all, the one before kept, found again by ``--resume auto``."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import CheckpointError, TrainingError
from ..models.safe_load import read_file
from ..utils.files import one_line_for_os_errors, write_atomically

_logger = logging.getLogger(__name__)
BEFORE = "state-before.pth.tar"
# The newest last: "next" is whole as soon as it has its name, and becomes "state" when that one is "before".
FILES = (BEFORE, "state.pth.tar", "state-next.pth.tar")
_SIZES = 100  # files of a dataset whose size stands for all
# Flags that may change between a run's parts: they move no number.
FREE = ("resume", "output", "experiment", "config", "workers", "log_interval", "recovery_interval", "device",
        "pin_mem", "log_tensorboard", "log_wandb", "wandb_project", "validation_batch_size", "data_dir")  # fmt: skip


def save_state(folder: Path, content: dict[str, Any]) -> None:
    """Write ``content`` (tensors and plain values); the last good one stays until the new one is on the disk.

    Raises:
        OutputError: the folder cannot be written, or the disk is full; nothing is lost.
    """
    before, state, fresh = (folder / name for name in FILES)
    for torn in folder.glob(f".{fresh.name}.*.tmp"):  # what a kill while saving has left
        torn.unlink(missing_ok=True)
    write_atomically(fresh, partial(torch.save, content))
    with one_line_for_os_errors(state):
        if state.exists():
            os.replace(state, before)
        os.replace(fresh, state)


def find_state(folder: Path) -> dict[str, Any] | None:
    """The newest whole state in ``folder``, or None where there is none; a damaged one is named in the log.

    Raises:
        CheckpointError: there are some, and none of them can be read.
    """
    found = [folder / name for name in reversed(FILES) if (folder / name).exists()]
    for path in found:
        try:
            _require_undamaged(path)
            return read_file(path, str(path))[1]
        except CheckpointError as error:
            _logger.warning("%s", error.line)
    if found:
        raise CheckpointError(
            f"{folder}: expected a state to resume from, found {len(found)} damaged. Start another --experiment, from "
            "last.pth.tar by --initial-checkpoint if it is good."
        )
    return None


def _require_undamaged(path: Path) -> None:
    """Compare the checksums that ``torch.save`` has written; ``torch.load`` does not look at them."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
        broken = str(error)
    if broken is not None:
        raise CheckpointError(
            f"{path}: expected a whole state, found a damaged one ({broken}). The one before is taken."
        )


def random_state(device: torch.device) -> dict[str, Any]:
    """Python's, numpy's and torch's global generators, and this rank's GPU's, as plain values."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Put :func:`random_state` back."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def dataset_digest(samples: Sequence[tuple[str, int]], root: str | Path) -> str:
    """A hash of an image folder's paths and labels, and of the sizes of some of its files."""
    digest = hashlib.sha256()
    for path, label in samples:
        digest.update(f"{os.path.relpath(path, root)}\t{label}\n".encode())
    for path, _ in samples[:: max(1, len(samples) // _SIZES)]:
        digest.update(f"{os.stat(path).st_size}\n".encode())
    return digest.hexdigest()


def require_same(saved: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Raise TrainingError where a run would go on with other flags or data than it began with.

    Args:
        saved, now: ``{"args": flags by name, "data": digest, "batch": images a step over all processes}``.
    """
    old, new = dict(saved["args"]), dict(now["args"])
    if saved["batch"] == now["batch"]:  # fewer processes with larger batches see the same images
        old.pop("batch_size", None)
        new.pop("batch_size", None)
    for name in sorted(set(old) | set(new)):
        if name not in FREE and _plain(old.get(name)) != _plain(new.get(name)):
            raise TrainingError(
                f"--{name.replace('_', '-')}: expected {old.get(name)}, with which the run in {folder} began, found "
                f"{new.get(name)}. Give the same flags, or another --experiment."
            )
    if saved["data"] != now["data"]:
        raise TrainingError(
            f"--data-dir {now['args'].get('data_dir')}: expected the images that the run in {folder} began with, found "
            "others (names, labels or sizes). Restore them, or start another --experiment."
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
