"""The result record, its file, and the bits that say which images were right.

A results file holds one record a line as JSON. Lines are only ever added, so every
measurement stays in the file; a table takes the newest of each (:func:`latest`).
"""

from __future__ import annotations

import json
import logging
import math
import numbers
import os
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass, field, fields, replace
from datetime import datetime, timedelta, timezone
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from ..errors import DataError, OptionError
from ..utils.distributed import rank, world_size
from ..utils.files import one_line_for_os_errors

_logger = logging.getLogger(__name__)
_PACKAGES = ("torch", "torchvision", "timm", "torchattacks", "easyrobust", "numpy", "ns_easyrobust")
_LINE_START = b'{"suite": '  # how every line of a results file begins
_IN_EVERY_LINE = ("versions", "created")  # a default here would date an old line today


def collect_versions() -> dict[str, str]:
    """Versions of Python and of the packages a number depends on; "absent" where not installed."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    return versions


def describe_machine(device: torch.device | str) -> str:
    """What computed the numbers, as "2 x NVIDIA H200" or "AMD EPYC 7B13, 16 logical cores"; no host name."""
    device = torch.device(device)
    ranks = f"{world_size()} x " if world_size() > 1 else ""
    if device.type == "cuda":
        return ranks + torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{ranks}{device.type} device, {platform.machine()}"
    name = platform.processor() or platform.machine()
    with suppress(OSError):  # Linux alone has this file, and only there is the name above no name
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        name = found[1].strip() if found else name
    return f"{ranks}{name}, {os.cpu_count()} logical cores"


def now() -> str:
    """The UTC time for :attr:`Record.created`."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


# Settings that belong to a row's model, and those of the run, which move a number in its last digits.
# Neither makes a column of its own: the first stand with the row, a difference in the second is a note.
OF_THE_MODEL = ("mean", "std", "normalization_from")
OF_THE_RUN = ("batch_size", "dtype")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One measured number with everything needed to measure it again.

    Attributes:
        suite, metric: what was measured, as "imagenet-val" and "top1".
        value, unit: the number; "%" for accuracies, "" for a number without a unit.
        n: images it was measured on, n >= 1.
        correct: images counted, where ``value`` is 100 * correct / n in percent; None where
            it is no such share (mCE), and then there is no interval either.
        protocol: plain values by name: resize, crop, interpolation, attack parameters, batch_size, dtype.
        model, label: the architecture, and the row's name in tables.
        checkpoint, checkpoint_sha256: path or URL of the file, and the hash of its bytes.
        ema, weights: whether averaged weights were used, and the checkpoint's entry they came from.
        seed: of attacks and noise; None where nothing was drawn.
        images: :func:`images_digest` of the images seen.
        task: a digest of what was asked of them (labels, answers allowed) and of a sample of their sizes.
        right: file of the per-image bits (:func:`save_right`), relative to the results file's folder.
        versions, machine, created: software, hardware, and the UTC time in ISO 8601.
        folder: where the results file lies this was read from; not written to it.

    Raises:
        OptionError: a value outside its range; the line names it.
    """

    suite: str
    metric: str
    value: float
    unit: str = "%"
    n: int
    correct: int | None = None
    label: str
    model: str
    checkpoint: str | None = None
    checkpoint_sha256: str | None = None
    weights: str | None = None
    ema: bool = False
    seed: int | None = None
    protocol: Mapping[str, Any]
    images: str | None = None
    task: str | None = None
    right: str | None = None
    machine: str = ""
    versions: Mapping[str, str] = field(default_factory=collect_versions)
    created: str = field(default_factory=now)
    folder: Path | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("suite", "metric", "label", "model"):
            text = getattr(self, name)
            one_line = isinstance(text, str) and text.strip() != "" and text.isprintable()
            self._require(one_line, name, "one line of text", text)
        for name in ("unit", "machine"):
            self._require(isinstance(getattr(self, name), str), name, "text", getattr(self, name))
        for name in ("checkpoint", "checkpoint_sha256", "weights", "images", "task", "right"):
            text = getattr(self, name)
            if isinstance(text, Path):
                self._set(name, str(text))
            else:
                self._require(text is None or isinstance(text, str), name, "text or None", text)
        self._require(isinstance(self.ema, bool), "ema", "true or false", self.ema)
        for name in ("protocol", "versions"):
            mapping = getattr(self, name)
            self._require(isinstance(mapping, Mapping), name, "values by name", mapping)
            self._set(name, self._plain(mapping, name))
        try:
            in_utc = datetime.fromisoformat(self.created).utcoffset() == timedelta(0)
        except (TypeError, ValueError):
            in_utc = False
        self._require(in_utc, "created", "a UTC time as 2026-01-31T12:00:00+00:00", self.created)
        self._check_numbers()

    def _check_numbers(self) -> None:
        for name, lowest in (("n", 1), ("correct", 0), ("seed", 0)):
            number = getattr(self, name)
            if number is None and name != "n":
                continue
            whole = isinstance(number, numbers.Integral) and not isinstance(number, bool)
            self._require(whole and number >= lowest, name, f"a whole number >= {lowest}", number)
            self._set(name, int(number))
        finite = isinstance(self.value, numbers.Real) and math.isfinite(self.value)
        self._require(finite and not isinstance(self.value, bool), "value", "a finite number", self.value)
        self._set("value", float(self.value))
        if self.correct is not None:
            self._require(self.correct <= self.n, "correct", f"at most n={self.n}", self.correct)
            self._require(self.unit == "%", "unit", "'%' beside a count of correct images", self.unit)
            share = 100 * self.correct / self.n
            # 0.001 lets float32 means pass; a miscount by one in 100 000 images does not.
            matches = abs(self.value - share) < 0.001
            self._require(matches, "value", f"100 * correct / n = {share:.4f}", self.value)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @staticmethod
    def _require(holds: bool, name: str, expected: str, found: object) -> None:
        if not holds:
            raise OptionError(f"record's {name}: expected {expected}, found {found!r}. Correct what made this record.")

    @classmethod
    def _plain(cls, value: object, name: str) -> Any:
        """``value`` as JSON gives it back, so that a record equals itself after the file."""
        if isinstance(value, Mapping):
            return {str(key): cls._plain(item, f"{name}[{key!r}]") for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [cls._plain(item, f"{name}[{index}]") for index, item in enumerate(value)]
        if value is None or isinstance(value, str | bool):
            return value
        if isinstance(value, np.bool_):
            return bool(value)
        if isinstance(value, numbers.Integral):
            return int(value)
        finite = isinstance(value, numbers.Real) and math.isfinite(value)
        cls._require(finite, name, "a plain value (text, finite number, true/false, None, list)", value)
        return float(value)  # type: ignore[arg-type]

    @property
    def row(self) -> tuple[object, ...]:
        """What makes it a row of its own: the label and the very weights behind it."""
        return (self.label, self.model, self.checkpoint_sha256 or self.checkpoint, self.weights, self.ema)

    @property
    def key(self) -> str:
        """Equal for two measurements of the same thing; the seed is not part of it."""
        what = (self.suite, self.metric, self.unit, self.protocol)
        return json.dumps([*self.row, *what], sort_keys=True)

    @property
    def cell(self) -> str:
        """Equal for two measurements that stand in one cell of a table, where the newer one is shown."""
        return json.dumps([*self.row, self.suite, self.metric, self.unit, column_settings(self)], sort_keys=True)

    @property
    def time(self) -> datetime:
        """:attr:`created`, to compare."""
        return datetime.fromisoformat(self.created)

    @property
    def right_path(self) -> Path | None:
        """The per-image bits' file, found from the results file's folder; None where none was kept."""
        return None if self.right is None else (self.folder or Path()) / self.right

    def to_json(self) -> str:
        """The record as one line of JSON, without the line's end."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "folder"}
        return json.dumps(values, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str | bytes) -> Record:
        """The record in one line of JSON.

        Raises:
            ValueError: no JSON object, or a field is missing or unknown.
            OptionError: a value outside its range.
        """
        values = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError("JSON, but no object")
        known = [item for item in fields(cls) if item.name != "folder"]
        unknown = [name for name in values if name not in {item.name for item in known}]
        if unknown:
            raise ValueError(f"the unknown field {unknown[0]!r} (of a newer version?)")
        needed = [f.name for f in known if f.default is f.default_factory is MISSING] + list(_IN_EVERY_LINE)
        missing = [name for name in needed if name not in values]
        if missing:
            raise ValueError(f"a record without {missing[0]!r}")
        return cls(**values)


def column_settings(record: Record) -> dict[str, Any]:
    """The part of a record's protocol that makes a column of its own."""
    return {k: v for k, v in record.protocol.items() if k not in (*OF_THE_MODEL, *OF_THE_RUN)}


def _is_torn(tail: bytes) -> bool:
    """Whether a last line without its end is what a kill leaves of a record (NULs: of a power cut)."""
    written = tail.rstrip(b"\0")
    return written.startswith(_LINE_START) or _LINE_START.startswith(written)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    """``path`` open for reading and appending, alone among the processes that append to it."""
    with open(path, "ab+") as stream:
        # Windows has no fcntl and some network file systems no locks; a result outweighs a lock.
        with suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream


def append_record(path: str | Path, record: Record) -> None:
    """Add ``record`` to the results file ``path`` and see it onto the disk; rank 0 writes.

    A last line torn by a kill is cut off first, with a logged warning. Nothing else in the
    file is touched.

    Raises:
        OutputError: the folder is missing, not writable, or the disk is full.
    """
    if rank() != 0:
        return
    path = Path(path)
    with one_line_for_os_errors(path), _locked(path) as stream:
        stream.seek(0)
        content = stream.read()
        tail = content[content.rfind(b"\n") + 1 :]
        line = record.to_json().encode("utf-8", "surrogatepass") + b"\n"  # as json.loads decodes it
        if tail and _is_torn(tail) and not _is_json(tail):
            _logger.warning("%s: cut off a torn last line of %d bytes", path, len(tail))
            stream.truncate(len(content) - len(tail))
        elif tail:  # whole but for its end, or not ours to delete
            line = b"\n" + line
        stream.write(line)
        stream.flush()
        os.fsync(stream.fileno())


def read_records(path: str | Path) -> list[Record]:
    """All records of a results file, in the order they were added.

    A last line torn by a kill is skipped with a logged warning.

    Raises:
        DataError: no such file, or a line that is no record; the message has its number.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(
            f"cannot read {path}: expected a results file (.jsonl), found: {error.strerror or error}. "
            "Give the file that a benchmark wrote."
        ) from error
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if number == len(lines) and _is_torn(line) and not _is_json(line):
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
    """The newest record of each :attr:`Record.key`, in the order the keys first appear."""
    newest: dict[str, Record] = {}
    for record in records:
        if record.key not in newest or record.time >= newest[record.key].time:
            newest[record.key] = record
    return list(newest.values())
