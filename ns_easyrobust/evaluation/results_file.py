"""The results file: one record per line, as JSON.

Lines are only ever added, so every record stays in the file; a table takes the newest of each (:func:`latest`).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

from ..errors import DataError, OptionError
from ..utils import os_errors_as_output_errors, parse_json, rank, read_bounded, require_regular
from .records import Record

_logger = logging.getLogger(__name__)
_LINE_START = b'{"suite": '  # how every line of a results file begins
_MOST_BYTES = 2**28  # of a results file: hundreds of thousands of records


def _is_torn(tail: bytes) -> bool:
    """Whether a last line without a newline is the start of a record torn by a kill (trailing NULs: by a power cut)."""
    written = tail.rstrip(b"\0")
    return written.startswith(_LINE_START) or _LINE_START.startswith(written)


def _is_json(line: bytes) -> bool:
    try:
        parse_json(line)
    except ValueError:
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    """``path`` open for reading and appending, locked against other processes that append to it."""
    require_regular(path)
    with open(path, "ab+") as stream:
        # Windows has no fcntl and some network file systems have no locks; rather no lock than no result.
        with suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream


def append_record(path: str | Path, record: Record) -> None:
    """Append ``record`` to the results file ``path`` and sync it to disk; only rank 0 writes.

    A last line torn by a kill is cut off first, with a logged warning. Nothing else in the file is changed.

    Raises:
        OutputError: the folder is missing, not writable, or the disk is full.
    """
    if rank() != 0:
        return
    path = Path(path)
    with os_errors_as_output_errors(path), _locked(path) as stream:
        stream.seek(0)
        content = stream.read()
        tail = content[content.rfind(b"\n") + 1 :]
        line = record.to_json().encode("utf-8", "surrogatepass") + b"\n"  # "surrogatepass" as json.loads decodes
        if tail and _is_torn(tail) and not _is_json(tail):
            _logger.warning("%s: cut off a torn last line of %d bytes", path, len(tail))
            stream.truncate(len(content) - len(tail))
        elif tail:  # a record that lacks only its newline, or text of unknown origin: keep it
            line = b"\n" + line
        stream.write(line)
        stream.flush()
        os.fsync(stream.fileno())


def read_records(path: str | Path) -> list[Record]:
    """All records of a results file, in the order they were added.

    A last line torn by a kill is skipped with a logged warning.

    Raises:
        DataError: the file cannot be read, is no regular file or larger than 256 MiB, or a line is not a record; the
            message gives the line's number.

    Example:
        >>> recorder = Recorder("results.jsonl", {"label": "ViT", "model": "vit_micro_patch8_32"})
        >>> top1 = evaluate_imagenet_val(model, data_dir / "val", records=recorder, workers=0)
        >>> (record,) = read_records("results.jsonl")
        >>> record.value == top1, 100 * record.correct / record.n == top1
        (True, True)
    """
    path = Path(os.path.expanduser(path))
    return _parse(_read(path), path)


class ResultsFile:
    """A results file for many reads: what it held at the last one is not parsed again.

    Each read finds what any process has appended since; a file that was changed otherwise is parsed anew.

    Raises:
        DataError: by each read, as by :func:`read_records`; but a missing file holds no records.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parsed = b""
        self._records: list[Record] = []
        self._newest: dict[str, Record] = {}  # by Record.cell

    def records(self) -> Sequence[Record]:
        """All records, in the order they were added."""
        self._update()
        return self._records

    def newest(self, cell: str) -> Record | None:
        """The record of a table's ``cell`` (:attr:`Record.cell`) that was added last; None if there is none."""
        self._update()
        return self._newest.get(cell)

    def _update(self) -> None:
        content = _read(self.path) if os.path.lexists(self.path) else b""
        # A last line without its end may be cut off or completed by the next append.
        if not (self._parsed.endswith(b"\n") and content.startswith(self._parsed)):
            self._parsed, self._records, self._newest = b"", [], {}
        added = _parse(content[len(self._parsed) :], self.path, lines_before=self._parsed.count(b"\n"))
        self._parsed = content
        self._records.extend(added)
        self._newest.update((record.cell, record) for record in added)


def _read(path: Path) -> bytes:
    try:
        return read_bounded(path, _MOST_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a NUL in its name
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"cannot read {path}: expected a results file (.jsonl), found: {reason}. "
            "Give the file that a benchmark wrote."
        ) from error


def _parse(content: bytes, path: Path, lines_before: int = 0) -> list[Record]:
    """The records in ``content``, the end of the file ``path`` after ``lines_before`` lines."""
    records = []
    lines = content.split(b"\n")
    for number, line in enumerate(lines, start=lines_before + 1):
        if not line.strip():
            continue
        if number == lines_before + len(lines) and _is_torn(line) and not _is_json(line):
            _logger.warning("%s: skipped line %d, the torn end of a killed run", path, number)
            continue
        try:
            records.append(replace(Record.from_json(line), folder=path.parent))
        except (ValueError, OptionError) as error:
            found = "no JSON" if isinstance(error, json.JSONDecodeError | UnicodeError) else str(error)
            raise DataError(
                f"{path}, line {number}: expected a result record, found {found.rstrip('.')}. "
                "Mend or delete that line (the others are untouched), or give a file that a benchmark wrote."
            ) from error
    return records


def latest(records: Iterable[Record]) -> list[Record]:
    """The newest record of each :attr:`Record.key`, in the order in which the keys first appear."""
    newest: dict[str, Record] = {}
    for record in records:
        if record.key not in newest or record.time >= newest[record.key].time:
            newest[record.key] = record
    return list(newest.values())
