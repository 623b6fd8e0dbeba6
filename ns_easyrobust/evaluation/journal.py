"""What an unfinished evaluation has judged so far, a line a batch, so that a killed one goes on from there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO

from ..errors import OutputError
from ..utils.distributed import broadcast_object, rank
from ..utils.files import one_line_for_os_errors

Batch = tuple[list[int], list[float]]  # right or wrong, and the L2 norm of what an attack added, an image each


class Journal:
    """Files ``<folder>/<key>.<rank>.jsonl``: one of each measurement that is under way and each rank.

    A line is written and handed to the system as soon as a batch is judged, so that a killed
    process loses at most the batch it was at. Lines that a kill has torn are skipped when read.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._streams: dict[str, IO[str]] = {}

    def read(self, share: bool = True) -> dict[str, dict[int, Batch]]:
        """Every batch in the folder by key and number; with ``share``, as rank 0 sees it on all ranks."""
        found: dict[str, dict[int, Batch]] = {}
        if self.folder.is_dir() and (rank() == 0 or not share):
            for path in sorted(self.folder.glob("*.jsonl")):
                found.setdefault(path.name.split(".")[0], {}).update(_lines(path))
        return broadcast_object(found) if share else found

    def add(self, key: str, number: int, right: Iterable[int], l2: Iterable[float]) -> None:
        """Keep batch ``number`` of the measurement ``key``."""
        path = self.folder / f"{key}.{rank()}.jsonl"
        with one_line_for_os_errors(path):
            if key not in self._streams:
                self._streams[key] = self._opened(path)
                self._streams[key].write("\n")  # ends what a kill may have torn
            self._streams[key].write(json.dumps([number, list(right), list(l2)]) + "\n")
            self._streams[key].flush()

    def _opened(self, path: Path) -> IO[str]:
        for _ in range(100):
            self.folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # another process has removed the empty folder meanwhile
                return open(path, "a", encoding="utf-8")
        raise OutputError(f"cannot write {path}: its folder is removed again and again. Use another --records.")

    def drop(self, key: str) -> None:
        """Forget a measurement, once its record is on the disk; rank 0 deletes the files of all."""
        if key in self._streams:
            self._streams.pop(key).close()
        if rank() == 0:
            for path in self.folder.glob(f"{key}.*.jsonl"):
                path.unlink(missing_ok=True)
            with suppress(OSError):  # others are under way in it, or it was never made
                os.rmdir(self.folder)


def _lines(path: Path) -> dict[int, Batch]:
    batches: dict[int, Batch] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        with suppress(ValueError, TypeError):
            number, right, l2 = json.loads(line)
            batches[int(number)] = (list(right), list(l2))
    return batches
