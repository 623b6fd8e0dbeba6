"""An experiment's numbers: lines of JSON beneath the protocol that they were measured by, kept as soon as known."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import evaluation, report
from ..errors import DataError, OptionError, OutputError
from ..utils import os_errors_as_output_errors, parse_json, read_bounded, write_text

_MOST_BYTES = 2**28


class Results:
    """The file ``<name>.jsonl`` of a folder: lines that say how was measured, each above those measured so.

    Args:
        folder: exists.
        name: the experiment's.
        force: begin anew, whatever is there.

    Attributes:
        protocol: all that decides the numbers; plain values. {} before :meth:`begin` where nothing is there yet.
        lines: what has been measured, in that order.

    Raises:
        DataError: the file holds something else.
    """

    def __init__(self, folder: Path, name: str, force: bool = False) -> None:
        self.folder, self.name, self.force = folder, name, force
        self.protocol: dict[str, Any] = {}
        self.lines: list[dict[str, Any]] = []
        self._all: list[dict[str, Any]] = []
        self._was_here = False
        try:
            self._read()
        except DataError:
            if not force:
                raise
        if force:
            self.protocol, self.lines, self._all = {}, [], []

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.jsonl"

    @property
    def parts(self) -> Path:
        """A folder for what lines cannot hold (noises, pictures); it goes when an experiment begins anew."""
        return parts_of(self.folder, self.name)

    def _read(self) -> None:
        try:
            text = read_bounded(self.path, _MOST_BYTES).decode()
            self._all = [parse_json(line) for line in text.splitlines()]
            if not all(isinstance(line, dict) and line.get("experiment") == self.name for line in self._all):
                raise ValueError("a line of another kind")
            self.protocol = dict(next((line["protocol"] for line in self._all if "protocol" in line), {}))
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError) as error:
            raise DataError(
                f"{self.path}: expected the lines of experiment {self.name}, found other things ({error}). Move it "
                "away, or choose another --output."
            ) from error
        self._was_here = True
        self.lines = [line for line in self._all if "protocol" not in line and "seconds" not in line]

    def begin(self, protocol: Mapping[str, Any], device: Any) -> None:
        """Say how everything is measured, before anything is; what is there by the same protocol is gone on with.

        Raises:
            OptionError: there are numbers by another protocol, and no ``force``.
            OutputError: there are files of these names that belong to no such numbers, and no ``force``; or parts of
                no such numbers, which are never deleted.
        """
        now = parse_json(json.dumps(protocol, allow_nan=False))
        for name in self.protocol.keys() | now.keys() if self.protocol else ():
            before, found = self.protocol.get(name), now.get(name)
            if before != found:
                raise OptionError(
                    f"{name}: expected {before}, with which {self.folder} was begun, found {found}. Give the same "
                    "flags and files, another --output, or --force to begin anew."
                )
        others = [] if self._all or self.force else report.files_of(self.folder, self.name)
        if others:
            raise OutputError(
                f"{others[0]} exists: expected numbers beside it ({self.path.name}), or a folder without it, found "
                "neither. Choose another --output, or --force to replace it."
            )
        with os_errors_as_output_errors(self.parts):
            self.parts.mkdir(exist_ok=True)
            if not self._was_here and any(self.parts.iterdir()):
                raise OutputError(
                    f"{self.parts}: expected an empty folder, or the numbers that its files belong to "
                    f"({self.path.name}), found files without them. Move it away, or choose another --output."
                )
            if self.force:
                shutil.rmtree(self.parts)
                self.parts.mkdir()
        head = {"experiment": self.name, "protocol": now, "machine": evaluation.describe_machine(device)}
        head["versions"] = evaluation.collect_versions()
        if next((line for line in reversed(self._all) if "protocol" in line), None) != head:
            self._all.append(head)
            self._write()
        self.protocol, self.force = now, False

    def find(self, **key: Any) -> dict[str, Any] | None:
        """The first line whose fields have these values; None where there is none."""
        return next((line for line in self.lines if all(line.get(name) == key[name] for name in key)), None)

    def add(self, *measured: Mapping[str, Any]) -> None:
        """Keep lines: plain values, all finite."""
        lines = [{"experiment": self.name, **line} for line in measured]
        self._all += lines
        self.lines += lines
        self._write()

    def took(self, seconds: float) -> None:
        """Keep how long a call has measured."""
        self._all.append({"experiment": self.name, "seconds": round(seconds, 1)})
        self._write()

    def origin(self) -> str:
        """A sentence: on which machine, by which versions and how long all of this was measured."""
        heads = [line for line in self._all if "protocol" in line]
        machines = dict.fromkeys(str(head["machine"]) for head in heads)
        names = ("ns_easyrobust", "torch", "timm")
        versions = dict.fromkeys(", ".join(f"{name} {head['versions'][name]}" for name in names) for head in heads)
        seconds = sum(line["seconds"] for line in self._all if "seconds" in line)
        took = f", in {seconds / 60:.1f} minutes" if seconds else ""
        return f"Measured on {' and '.join(machines)}{took}; {' and '.join(versions)}."

    def _write(self) -> None:
        write_text(self.path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in self._all))


def parts_of(folder: Path, name: str) -> Path:
    """Where an experiment of this ``name`` keeps its parts in ``folder``."""
    return folder / f"{name}-parts"
