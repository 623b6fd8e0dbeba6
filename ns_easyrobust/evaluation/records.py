"""The result record: one measured number with everything needed to measure it again."""

from __future__ import annotations

import json
import math
import numbers
import os
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields
from datetime import datetime, timedelta, timezone
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any

from .. import __version__
from ..data import IMAGENET_CLASSES
from ..errors import OptionError, printable
from ..utils import np, parse_json, require_bounded, torch, world_size

_PACKAGES = ("torch", "torchvision", "timm", "torchattacks", "easyrobust", "numpy")
_REQUIRED_IN_FILE = ("versions", "created")  # their defaults are today's, wrong for an old line
_LONGEST_TEXT = 10_000  # characters
_DEEPEST = 16  # lists and settings within one another
_MOST_VALUES = 10_000  # of a line
_GREATEST_COUNT = 2**53  # beyond, a float is no longer exact
_GREATEST_NUMBER = 1e100  # differences and sums of such numbers are finite


def collect_versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on; "absent" if not installed."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    versions["ns_easyrobust"] = __version__  # metadata of an editable installation may be older
    return versions


def describe_machine(device: torch.device | str) -> str:
    """The hardware, e.g. "2 x NVIDIA H200" or "AMD EPYC 7B13, 16 logical cores"; without the host name."""
    device = torch.device(device)
    ranks = f"{world_size()} x " if world_size() > 1 else ""
    if device.type == "cuda":
        return ranks + torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{ranks}{device.type} device, {platform.machine()}"
    name = platform.processor() or platform.machine()
    with suppress(OSError):  # only Linux has this file, and only Linux needs it
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        name = match[1].strip() if match else name
    return f"{ranks}{name}, {os.cpu_count()} logical cores"


def now() -> str:
    """The current UTC time, as :attr:`Record.created` holds it."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


# Protocol settings that make no table column of their own: the model's are shown with its row; the run's change
# only a result's last digits, so a difference in them is a note.
MODEL_SETTINGS = ("mean", "std", "normalization_from", "model_kwargs")
RUN_SETTINGS = ("batch_size", "dtype")
TEXT_SETTINGS = ("preset", "subset", "corruption")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One measured number with everything needed to measure it again.

    Attributes:
        suite, metric: what was measured, as "imagenet-val" and "top1".
        value, unit: the number, at most 1e100; "%" for accuracies, "" for a number without a unit.
        n: number of images it was measured on, 1 <= n <= 2^53.
        correct: number of images counted as correct, if ``value`` is 100 * correct / n in percent; None for
            other values (mCE), which then have no confidence interval either.
        protocol: plain values by name: resize, crop, interpolation, attack parameters, batch_size, dtype. The names
            in :data:`TEXT_SETTINGS` have texts (or None), as tables choose their columns by them.
        model, label: the architecture, and the row's name in tables.
        checkpoint, checkpoint_sha256: path or URL of the file, and the hash of its bytes.
        ema, weights: whether averaged weights were used, and the checkpoint's entry they came from.
        seed: of attacks and noise; None if nothing was drawn.
        revision: of the suite, raised when it counts otherwise than before; 1 where a file does not say it.
        outputs: number of the model's outputs; None where a file of version 0.1.0 does not say it.
        images: :func:`images_digest` of the images used.
        task: digest of the images' labels and allowed predictions, and of the sizes of a sample of their files.
        right: file of the per-image bits (:func:`save_correctness`), below the results file's folder.
        versions, machine, created: software, hardware, and the UTC time in ISO 8601.
        folder: folder of the results file that this was read from; not itself written.

    Raises:
        OptionError: a value outside its range; the message names it.
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
    revision: int = 1
    outputs: int | None = None
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
            # Half a surrogate pair stands for a byte of a checkpoint's path that is no UTF-8, so it may be there.
            is_one_line = _is_text(text) and text.strip() != "" and (text.isprintable() or printable(text) == text)
            self._require(is_one_line, name, "one line of text", text)
        for name in ("unit", "machine"):
            self._require(_is_text(getattr(self, name)), name, "text", getattr(self, name))
        for name in ("checkpoint", "checkpoint_sha256", "weights", "images", "task", "right"):
            if isinstance(getattr(self, name), Path):
                self._set(name, str(getattr(self, name)))
            text = getattr(self, name)
            self._require(text is None or _is_text(text), name, "text or None", text)
        if self.right is not None:
            path = PurePath(self.right)
            is_below = not path.is_absolute() and ".." not in path.parts and "\0" not in self.right
            self._require(is_below, "right", "a path below the results file's folder", self.right)
        self._require(isinstance(self.ema, bool), "ema", "true or false", self.ema)
        for name in ("protocol", "versions"):
            mapping = getattr(self, name)
            self._require(isinstance(mapping, Mapping), name, "values by name", mapping)
            self._set(name, self._as_read_back(mapping, name))
        for name in TEXT_SETTINGS:
            text = self.protocol.get(name)
            self._require(text is None or isinstance(text, str), f"protocol[{name!r}]", "text or None", text)
        try:
            in_utc = datetime.fromisoformat(self.created).utcoffset() == timedelta(0)
        except (TypeError, ValueError):
            in_utc = False
        self._require(in_utc, "created", "a UTC time as 2026-01-31T12:00:00+00:00", self.created)
        self._check_numbers()

    def _check_numbers(self) -> None:
        ranges = {"n": (1, _GREATEST_COUNT), "correct": (0, _GREATEST_COUNT), "seed": (0, 2**64 - 1)}
        ranges |= {"revision": (1, _GREATEST_COUNT), "outputs": (1, _GREATEST_COUNT)}
        for name, (least, most) in ranges.items():
            number = getattr(self, name)
            if number is None and name in ("correct", "seed", "outputs"):
                continue
            is_whole = isinstance(number, numbers.Integral) and not isinstance(number, bool)
            self._require(is_whole and number >= least, name, f"a whole number >= {least}", number)
            self._require(number <= most, name, f"at most {most}", number)
            self._set(name, int(number))
        is_number = _is_finite(self.value) and not isinstance(self.value, bool)
        self._require(is_number, "value", "a finite number", self.value)
        self._require(abs(self.value) <= _GREATEST_NUMBER, "value", f"at most {_GREATEST_NUMBER:g}", self.value)
        self._set("value", float(self.value))
        if self.correct is not None:
            self._require(self.correct <= self.n, "correct", f"at most n={self.n}", self.correct)
            self._require(self.unit == "%", "unit", "'%' beside a count of correct images", self.unit)
            percent = 100 * self.correct / self.n
            # 0.001 accepts rounding in float32 means, but not a miscount of one in 100 000 images (0.001 percent).
            matches = abs(self.value - percent) < 0.001
            self._require(matches, "value", f"100 * correct / n = {percent:.4f}", self.value)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @staticmethod
    def _require(holds: bool, name: str, expected: str, found: object) -> None:
        if not holds:
            raise OptionError(
                f"record's {name}: expected {expected}, found {_shown(found)}. Correct what made this record."
            )

    @classmethod
    def _as_read_back(cls, value: object, name: str, depth: int = 0) -> Any:
        """``value`` as JSON reads it back, so that a record equals itself after writing and reading."""
        if isinstance(value, Mapping | list | tuple):
            cls._require(depth < _DEEPEST, name[:80], f"values at most {_DEEPEST} deep", "deeper ones")
            if isinstance(value, Mapping):
                for key in value:
                    cls._require(_is_text(str(key)), name, f"names of at most {_LONGEST_TEXT} characters", key)
                return {str(key): cls._as_read_back(item, f"{name}[{key!r}]", depth + 1) for key, item in value.items()}
            return [cls._as_read_back(item, f"{name}[{index}]", depth + 1) for index, item in enumerate(value)]
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            cls._require(_is_text(value), name, f"at most {_LONGEST_TEXT} characters", value)
            return value
        if isinstance(value, np.bool_):
            return bool(value)
        expected = f"a plain value (text, finite number up to {_GREATEST_NUMBER:g}, true/false, None, list)"
        is_number = _is_finite(value) and abs(float(value)) <= _GREATEST_NUMBER  # type: ignore[arg-type]
        cls._require(is_number, name, expected, value)
        return int(value) if isinstance(value, numbers.Integral) else float(value)  # type: ignore[arg-type]

    @property
    def row(self) -> tuple[object, ...]:
        """What identifies a table's row: the label and the exact weights behind it."""
        return (self.label, self.model, self.checkpoint_sha256 or self.checkpoint, self.weights, self.ema)

    @property
    def of_own_classes(self) -> bool:
        """Whether the model is known to have other classes than ImageNet's 1000."""
        return self.outputs not in (None, IMAGENET_CLASSES)

    @property
    def key(self) -> str:
        """Equal for two records of the same quantity; the seed is not included."""
        quantity = (self.suite, self.metric, self.unit, self.protocol)
        return json.dumps([*self.row, *quantity], sort_keys=True)

    @property
    def cell(self) -> str:
        """Equal for two records that share a cell of a table, which shows the newer one."""
        return json.dumps([*self.row, self.suite, self.metric, self.unit, column_settings(self)], sort_keys=True)

    @property
    def time(self) -> datetime:
        """:attr:`created` as a datetime, for comparisons."""
        return datetime.fromisoformat(self.created)

    @property
    def right_path(self) -> Path | None:
        """Path of the per-image bits, by way of the results file's folder; None if none were kept."""
        return None if self.right is None else (self.folder or Path()) / self.right

    def to_json(self) -> str:
        """The record as one line of JSON, without a newline."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "folder"}
        return json.dumps(values, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str | bytes) -> Record:
        """The record that a line of JSON holds.

        Raises:
            ValueError: not a JSON object, too large or too deep a one, or a field is missing or unknown.
            OptionError: a value outside its range.
        """
        values = parse_json(line)
        if not isinstance(values, dict):
            raise ValueError("JSON, but no object")
        require_bounded(values, _MOST_VALUES)
        known = [item for item in fields(cls) if item.name != "folder"]
        unknown = [name for name in values if name not in {item.name for item in known}]
        if unknown:
            raise ValueError(f"the unknown field {_shown(unknown[0])} (of a newer version?)")
        needed = [f.name for f in known if f.default is f.default_factory is MISSING] + list(_REQUIRED_IN_FILE)
        missing = [name for name in needed if name not in values]
        if missing:
            raise ValueError(f"a record without {missing[0]!r}")
        return cls(**values)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_TEXT


def _is_finite(value: object) -> bool:
    """Whether ``value`` is a real number that a float can hold."""
    try:
        return isinstance(value, numbers.Real) and math.isfinite(value)
    except OverflowError:
        return False


def _shown(value: object) -> str:
    """``value`` for an error's line, shortened."""
    try:
        text = repr(value)
    except ValueError:  # Python prints no number of more than 4300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= 200 else f"{text[:200]}..."


def column_settings(record: Record) -> dict[str, Any]:
    """The protocol settings that give a record a table column of its own."""
    return {name: value for name, value in record.protocol.items() if name not in (*MODEL_SETTINGS, *RUN_SETTINGS)}
