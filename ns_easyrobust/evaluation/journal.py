"""The journal of unfinished work: the batches that a killed run has judged."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..utils import broadcast_object, open_regular, os_errors_as_output_errors, parse_json, rank, require_regular

_logger = logging.getLogger(__name__)
_LARGEST_NORM = 1e6  # no images are so large that pixels in [0, 1] could be further apart
Batch = tuple[list[int], list[float]]  # per image: 1 if correct, else 0; L2 norm of the attack's perturbation


class Journal:
    """The unfinished work: one file ``<folder>/<key>.<rank>.jsonl`` for each unfinished measurement and rank.

    A line is written and flushed to the operating system as soon as a batch is judged, so that a killed
    process loses at most its current batch, and two processes may write to one file. On reading, whatever is no batch
    (a line torn by a kill, what others wrote) is skipped.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._streams: dict[str, io.FileIO] = {}

    def read(self, share: bool = True) -> dict[str, dict[int, Batch]]:
        """Every batch in the folder, by key and batch number; with ``share``, all ranks get what rank 0 reads."""
        batches: dict[str, dict[int, Batch]] = {}
        if self.folder.is_dir() and (rank() == 0 or not share):
            for path in sorted(self.folder.glob("*.jsonl")):
                batches.setdefault(path.name.split(".")[0], {}).update(_read_batches(path))
        return broadcast_object(batches) if share else batches

    def add(self, key: str, number: int, right: Iterable[int], l2: Iterable[float]) -> None:
        """Write batch ``number`` of the measurement ``key``."""
        path = self.folder / f"{key}.{rank()}.jsonl"
        with os_errors_as_output_errors(path):
            if key not in self._streams:
                self._streams[key] = self._open_stream(path)
            # Behind a line that a kill may have torn, and at once, so that no other process writes in between.
            line = f"\n{json.dumps([number, list(right), list(map(float, l2))])}\n".encode()
            while line:
                line = line[self._streams[key].write(line) :]

    def _open_stream(self, path: Path) -> io.FileIO:
        for _ in range(100):
            self.folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # another process has just removed the empty folder
                require_regular(path)  # opening a pipe would wait for a reader
                return open(path, "ab", buffering=0)
        raise OutputError(f"cannot write {path}: its folder is removed again and again. Write to another results file.")

    def drop(self, key: str) -> None:
        """Drop a measurement whose record is on disk; rank 0 deletes the files of all ranks."""
        if key in self._streams:
            self._streams.pop(key).close()
        if rank() == 0:
            for path in self.folder.glob(f"{key}.*.jsonl"):
                with suppress(OSError):  # a folder of that name, which nobody of us made
                    path.unlink(missing_ok=True)
            with suppress(OSError):  # it holds other measurements, or was never made
                os.rmdir(self.folder)


def _read_batches(path: Path) -> dict[int, Batch]:
    """The batches of one file; of several with one number, the last."""
    try:
        with open_regular(path) as stream:
            lines = stream.read().split(b"\n")
    except OSError as error:
        _logger.warning("%s: left out of the unfinished work: %s", path, error.strerror)
        return {}
    batches: dict[int, Batch] = {}
    for line in lines:
        with suppress(ValueError):
            value = parse_json(line)
            if _is_numbered_batch(value):
                batches[value[0]] = (value[1], value[2])
    return batches


def _is_numbered_batch(value: Any) -> bool:
    """Whether a journal's line holds what :meth:`Journal.add` writes, and nothing else.

    True and 1.0 equal 1 in Python, so the types are compared, too; NaN is in no range.
    """
    if not (isinstance(value, list) and len(value) == 3 and isinstance(value[1], list) and isinstance(value[2], list)):
        return False
    number, right, l2 = value
    return (
        type(number) is int
        and 0 <= number < 2**53
        and 0 < len(right) == len(l2)
        and all(type(bit) is int and bit in (0, 1) for bit in right)
        and all(type(norm) is float and 0 <= norm < _LARGEST_NORM for norm in l2)
    )
