"""A study's YAML file: its keys and values, checked one by one."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import evaluation, report
from ..errors import OptionError
from ..utils import file_or_folder, read_settings

_KEYS = (
    "question", "protocol", "start", "model", "data_dir", "seeds", "budget", "train", "ema", "baseline", "primary",
    "secondary", "methods", "benchmark", "checkpoints",
)  # fmt: skip
_BUDGETS = ("updates", "forward_equivalents")
_GREATEST_SEED = 2**32 - 1
_MOST = 10**9  # updates
_LONGEST_LABEL = 200
# Flags that the study gives itself, and what sets them.
_OF_TRAIN = {
    "initial_checkpoint": "start",
    "data_dir": "data_dir",
    "model": "model",
    "seed": "seeds",
    "max_steps": "budget",
    "epochs": "budget (and epoch_steps, the length of an epoch)",
    "device": "the flag --devices",
    **dict.fromkeys(("output", "experiment", "resume"), "the flag --output"),
}
_OF_BENCHMARK = {
    "ckpt_path": "methods and checkpoints",
    "use_ema": "ema",
    "device": "the flag --devices",
    **dict.fromkeys(("records", "label", "again"), "the study itself"),
}
_OF_CHECKPOINTS = _OF_BENCHMARK | {"ckpt_path": "path", "suite": "benchmark"}
del _OF_CHECKPOINTS["use_ema"]


@dataclass(frozen=True)
class NamedEndpoint:
    """An endpoint as a file names it: the ``columns`` of whose mean, and the labels to compare with.

    Attributes:
        columns: ``all``, ``robust``, or names of suites and of ImageNet-C's groups.
    """

    columns: str | tuple[str, ...]
    against: tuple[str, ...]


@dataclass(frozen=True)
class StudyFile:
    """What a study's file says; flags are settings by name, not yet checked by their commands.

    Attributes:
        start: the checkpoint that each method finetunes; ``{seed}`` stands for the seed. None: ``train`` says it.
        seeds: distinct, in the file's order.
        budget: of each method and seed, in ``budget_unit``, ``updates`` or ``forward_equivalents`` (an image's).
        train, benchmark: flags of every training and every evaluation.
        ema: whether the moving averages that trainings keep are rows too.
        baseline: the label that differences refer to; None for none.
        methods: flags of ``train`` by label.
        checkpoints: flags of ``benchmark`` by label, with ``path``, the file.
        primary: what the study is to be judged by; None for no such section.
        secondary: what is told beside it in the same way.
        question, protocol: what the study asks, and what was laid down before it ran, in the author's words.
    """

    path: Path
    start: str | None
    model: str | None
    data_dir: str | None
    seeds: tuple[int, ...]
    budget_unit: str
    budget: float
    train: Mapping[str, Any]
    benchmark: Mapping[str, Any]
    ema: bool
    baseline: str | None
    methods: Mapping[str, Mapping[str, Any]]
    checkpoints: Mapping[str, dict[str, Any]]
    question: str | None = None
    protocol: str | None = None
    primary: NamedEndpoint | None = None
    secondary: tuple[NamedEndpoint, ...] = ()


def read_study(path: str | Path) -> StudyFile:
    """The study in a YAML file.

    Raises:
        OptionError: it cannot be read, or a key or value is not one of a study's; the line names the file and the key.
    """
    path = Path(path)
    content = read_settings(path, "a study")
    if unknown := [str(key)[:100] for key in content if key not in _KEYS]:
        raise OptionError(f"{path}: expected {', '.join(_KEYS)}, found {unknown[0]}. Flags go below train or a method.")
    reader = _Reader(path, content)
    unit, amount = reader.budget()
    study = StudyFile(
        path=path,
        start=reader.file("start", content.get("start")),
        model=reader.text("model"),
        data_dir=reader.text("data_dir"),
        seeds=reader.seeds(),
        budget_unit=unit,
        budget=amount,
        train=reader.flags("train", content.get("train"), _OF_TRAIN),
        benchmark=reader.flags("benchmark", content.get("benchmark"), _OF_BENCHMARK),
        ema=reader.switch("ema"),
        baseline=reader.text("baseline"),
        methods=reader.rows("methods", _OF_TRAIN),
        checkpoints=reader.rows("checkpoints", _OF_CHECKPOINTS),
        question=reader.text("question"),
        protocol=reader.text("protocol"),
        primary=reader.primary(),
        secondary=reader.secondary(),
    )
    if not study.methods:
        raise OptionError(f"{path}: methods: expected one at least, found none.")
    if twice := study.methods.keys() & study.checkpoints.keys():
        raise OptionError(f"{path}: checkpoints: expected other names than methods have, found {min(twice)}.")
    labels = [*study.methods, *study.checkpoints]
    named: dict[str, tuple[str, ...]] = {"baseline": () if study.baseline is None else (study.baseline,)}
    endpoints = {} if study.primary is None else {"primary": study.primary}
    endpoints |= {f"secondary: {number}": each for number, each in enumerate(study.secondary, 1)}
    named |= {f"{key}: against": each.against for key, each in endpoints.items()}
    for key, values in named.items():
        if odd := [value for value in values if value not in labels]:
            raise OptionError(f"{path}: {key}: expected some of {', '.join(labels)}, found {odd[0]}.")
    for key, each in endpoints.items():
        if not any({*each.against} - {label} for label in study.methods):
            raise reader.wrong(f"{key}: against", "another method than the only one", ", ".join(each.against))
    for label, flags in study.checkpoints.items():
        if (file := reader.file(f"checkpoints: {label}: path", flags.get("path"))) is None:
            raise OptionError(f"{path}: checkpoints: {label}: path: expected a file, found none.")
        flags["path"] = file
    return study


class _Reader:
    """Takes values of the right kind out of a file's content."""

    def __init__(self, path: Path, content: Mapping[str, Any]) -> None:
        self.path, self.content = path, content

    def wrong(self, key: str, expected: str, found: object) -> OptionError:
        return OptionError(f"{self.path}: {key}: expected {expected}, found {str(found)[:200]}.")

    def text(self, key: str) -> str | None:
        value = self.content.get(key)
        if not (value is None or (isinstance(value, str) and value)):
            raise self.wrong(key, "text", repr(value))
        return value

    def file(self, key: str, value: Any) -> str | None:
        """A path or an address, with ``~`` as the home folder, as a flag takes it."""
        if value is None:
            return None
        if not (isinstance(value, str) and value):
            raise self.wrong(key, "a file", repr(value))
        try:
            return file_or_folder(value)
        except argparse.ArgumentTypeError as error:
            raise OptionError(f"{self.path}: {key}: {error}.") from error

    def primary(self) -> NamedEndpoint | None:
        value = self.content.get("primary")
        return None if value is None else self.endpoint("primary", value)

    def secondary(self) -> tuple[NamedEndpoint, ...]:
        values = self.content.get("secondary")
        if values is None:
            return ()
        if not (isinstance(values, list) and values):
            raise self.wrong("secondary", "a list such as [{columns: [val], against: [none]}]", repr(values))
        if self.content.get("primary") is None:
            raise self.wrong("secondary", "a primary endpoint beside it", "none")
        return tuple(self.endpoint(f"secondary: {number}", value) for number, value in enumerate(values, 1))

    def endpoint(self, key: str, value: Any) -> NamedEndpoint:
        if not (isinstance(value, dict) and value.keys() == {"columns", "against"}):
            found = ", ".join(map(str, value)) or "none" if isinstance(value, dict) else repr(value)
            raise self.wrong(key, "columns and against, such as {columns: all, against: [none]}", found)
        columns, against = value["columns"], value["against"]
        if not _is_list_of_names(against):
            raise self.wrong(f"{key}: against", "a list of methods, each once, such as [none, random]", repr(against))
        if isinstance(columns, str) and columns in report.ENDPOINTS:
            return NamedEndpoint(columns, tuple(against))
        names = (*evaluation.suites(), *report.GROUP_NAMES)
        if not (_is_list_of_names(columns) and {*columns} <= {*names}):
            expected = f"{' or '.join(report.ENDPOINTS)}, or a list of suites ({', '.join(names)})"
            raise self.wrong(f"{key}: columns", expected, repr(columns))
        return NamedEndpoint(tuple(columns), tuple(against))

    def switch(self, key: str) -> bool:
        value = self.content.get(key, False)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false", repr(value))
        return value

    def seeds(self) -> tuple[int, ...]:
        values = self.content.get("seeds", [0])
        if not (isinstance(values, list) and values):
            raise self.wrong("seeds", "a list such as [0, 1, 2]", repr(values))
        for value in values:
            if type(value) is not int or not 0 <= value <= _GREATEST_SEED:
                raise self.wrong("seeds", f"whole numbers from 0 to {_GREATEST_SEED}", repr(value))
        if len(set(values)) < len(values):
            raise self.wrong("seeds", "each once", values)
        return tuple(values)

    def budget(self) -> tuple[str, float]:
        value = self.content.get("budget")
        if not (isinstance(value, dict) and len(value) == 1 and next(iter(value)) in _BUDGETS):
            found = ", ".join(map(str, value)) or "none" if isinstance(value, dict) else repr(value)
            raise self.wrong("budget", "updates or forward_equivalents, such as {updates: 200}", found)
        ((unit, amount),) = value.items()
        kinds = (int,) if unit == "updates" else (int, float)
        if type(amount) not in kinds or not 1 <= amount <= _MOST:
            raise self.wrong(f"budget: {unit}", f"a {'whole ' * (unit == 'updates')}number from 1 to {_MOST}", amount)
        return unit, amount

    def flags(self, where: str, value: Any, own: Mapping[str, str]) -> dict[str, Any]:
        """A mapping of flags, none of which is the study's ``own``; nothing stands for an empty one."""
        value = {} if value is None else value
        if not isinstance(value, dict):
            raise self.wrong(where, "'flag: value' lines", repr(value))
        for key in value:
            if (name := str(key).replace("-", "_")) in own:
                raise OptionError(f"{self.path}: {where}: {name}: set by {own[name]} in a study. Take it out here.")
        return value

    def rows(self, key: str, own: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        value = self.content.get(key)
        value = {} if value is None else value
        if not isinstance(value, dict):
            raise self.wrong(key, "'name: {flag: value, ...}' lines", repr(value))
        if odd := [label for label in value if not (isinstance(label, str) and label.strip())]:
            raise self.wrong(key, "text as a name (no and 1 need quotes)", repr(odd[0]))
        if odd := [label for label in value if len(label) > _LONGEST_LABEL or not label.isprintable()]:
            raise self.wrong(key, f"names of a line and at most {_LONGEST_LABEL} characters", repr(odd[0][:50]))
        return {label: self.flags(f"{key}: {label}", flags, own) for label, flags in value.items()}


def _is_list_of_names(value: Any) -> bool:
    """Whether ``value`` is a list of texts, one at least and each once."""
    is_texts = isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)
    return is_texts and len(set(value)) == len(value)
