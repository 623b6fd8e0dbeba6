"""The runs of a study: the commands of each, with their flags checked and their cost known before anything is built."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import training
from ..errors import DataError, OptionError, without_secrets
from ..models import is_url
from ..utils import is_plain, shown_flags, words_of
from .registry import Command
from .study_file import StudyFile

LAST = "last.pth.tar"


@dataclass(frozen=True)
class Step:
    """A command of a run: ``ns-easyrobust VERB WORDS``; ``--device`` is added where it is started."""

    verb: str
    words: tuple[str, ...]

    @property
    def shown(self) -> list[str]:
        """The words as files and logs may show them: without the secrets of addresses."""
        return [without_secrets(word) for word in self.words]


@dataclass(frozen=True)
class Run:
    """A method trained with one seed and evaluated, or a finished checkpoint evaluated.

    Attributes:
        label: the method's or the checkpoint's.
        seed: None for a checkpoint.
        folder: of its files, its own.
        flags: that decide the weights, as plain values; for a checkpoint its own ones, as the study's file has them.
        updates, cost: of the training; 0 and None for a checkpoint.
        train: None for a checkpoint.
        measuring: an evaluation by the label of its records.
    """

    label: str
    seed: int | None
    folder: Path
    flags: Mapping[str, Any]
    updates: int
    cost: training.TrainingCost | None
    train: Step | None
    measuring: Mapping[str, Step]

    @property
    def name(self) -> str:
        """Of the run, for people."""
        return self.label if self.seed is None else f"{self.label}, seed {self.seed}"

    @property
    def results(self) -> Path:
        """The file of its records."""
        return self.folder / "results.jsonl"


def plan_runs(study: StudyFile, folder: Path, commands: Mapping[str, Command], *, with_files: bool = True) -> list[Run]:
    """All runs of a study whose files go into ``folder``: seed by seed, each method; then the checkpoints.

    Args:
        with_files: whether the start, the checkpoints and the data have to be there, without which nothing can be
            carried out.

    Raises:
        OptionError: a flag, value or budget that cannot be, named with the file, the part and the method.
        DataError: a file or folder that is not there.
    """
    _require_distinct_labels(study)
    methods = {label: _Method(study, label, commands["train"], with_files) for label in study.methods}
    if study.ema and not any(method.args.model_ema for method in methods.values()):
        raise OptionError(f"{study.path}: ema: expected a method with model_ema, found none. Take ema out.")
    with _naming(f"{study.path}: benchmark"):
        evaluation = _evaluation(study, study.benchmark, commands["benchmark"], with_files)
    for seed in study.seeds if with_files else ():
        _require_file(study.start and study.start.replace("{seed}", str(seed)), f"{study.path}: start")
    runs = [method.run(seed, folder, evaluation) for seed in study.seeds for method in methods.values()]
    command = commands["benchmark"]
    return runs + [_checkpoint_run(study, label, folder, command, with_files) for label in study.checkpoints]


def slug(label: str) -> str:
    """A folder's name for a label."""
    return re.sub(r"[^\w.+-]+", "_", label).strip("_.").lower()[:60]  # at most 240 bytes


def _ema_label(label: str) -> str:
    """The row of a method's moving averages."""
    return f"{label} (EMA)"


def _require_distinct_labels(study: StudyFile) -> None:
    """Raise OptionError for two rows of one name, or with one folder."""
    labels: dict[str, str] = {}
    for label in (*study.methods, *study.checkpoints):
        first = labels.setdefault(slug(label), label)
        if first != label or not slug(label):
            raise OptionError(
                f"{study.path}: {label!r}: expected names that differ in letters and digits, found {first!r}."
            )
    if study.ema and (taken := {_ema_label(label) for label in study.methods} & {*study.methods, *study.checkpoints}):
        raise OptionError(
            f"{study.path}: {min(taken)!r}: expected another name, as ema gives it to the moving averages of a method."
        )


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Put ``where`` before the line of what is wrong with a command's flags."""
    try:
        yield
    except (OptionError, DataError) as error:
        raise type(error)(error.line if error.line.startswith(where) else f"{where}: {error.line}") from error


def _require_file(path: str | None, where: str) -> None:
    """Raise DataError unless ``path`` is None, a file, or an address or a hub's model, which may be there."""
    from ..models import is_hub_name

    if path is not None and not is_url(path) and not is_hub_name(path) and not os.path.isfile(path):
        raise DataError(f"{where}: expected a checkpoint, found none at {path}. Paths are those of the working folder.")


class _Method:
    """A method's training: its flags, their parsed values, its cost and its updates."""

    def __init__(self, study: StudyFile, label: str, command: Command, with_files: bool) -> None:
        self.study, self.label, self.command = study, label, command
        where = f"{study.path}: methods: {label}"
        flags = dict(study.methods[label])
        recipe = flags.pop("config", None)
        if not (recipe is None or (isinstance(recipe, str) and recipe)):
            raise OptionError(f"{where}: config: expected a recipe's name or file, found {recipe!r}.")
        with _naming(f"{study.path}: train"):
            common = words_of(study.train, command.parser, f"{study.path}: train")
        # The recipe first: what the study gives to every method is stronger, and the method's own flags are strongest.
        self.words = [*(["-c", recipe] if recipe else []), *common]
        with _naming(where):
            self.words += words_of(flags, command.parser, where)
            self.words += [f"--model={study.model}"] if study.model else []
            self.words += [f"--data-dir={study.data_dir}"] if study.data_dir else []
            self.args = command.parse([*self.words, "--max-steps=1"])
            if study.start is None and not self.args.pretrained:
                raise OptionError("expected a start (or pretrained: true below train), found none.")
            if with_files and not (self.args.dataset or os.path.isdir(self.args.data_dir or "")):
                raise DataError(f"data_dir: expected a folder, found none at {self.args.data_dir}.")
            self.cost = training.training_cost(self.args, with_files=with_files)
        self.updates = self._updates(where)

    def _updates(self, where: str) -> int:
        if self.study.budget_unit == "updates":
            return int(self.study.budget)
        updates = self.cost.updates_within(self.study.budget)
        if not updates:
            raise OptionError(
                f"{where}: expected a budget of {self.cost.of(1):g} forward-equivalents, the cost of an update, "
                f"found {self.study.budget:g}. Raise it."
            )
        return updates

    def run(self, seed: int, folder: Path, evaluation: Sequence[str]) -> Run:
        study, own = self.study, folder / "methods" / slug(self.label) / f"seed{seed}"
        words = [*self.words, f"--max-steps={self.updates}", f"--seed={seed}"]
        if study.start is not None:
            words.append(f"--initial-checkpoint={study.start.replace('{seed}', str(seed))}")
        flags = _deciding(self.command.parse(words))
        words += [f"--output={own.parent}", f"--experiment={own.name}", "--resume=auto"]
        name = f"{self.label}, seed {seed}"
        labels: dict[str, list[str]] = {name: []}
        if study.ema and self.args.model_ema:
            labels[f"{_ema_label(self.label)}, seed {seed}"] = ["--use-ema"]
        first = [f"--ckpt-path={own / LAST}", *self._model_words(), *evaluation]
        measuring = {label: Step("benchmark", (*first, *more, *_into(own, label))) for label, more in labels.items()}
        return Run(self.label, seed, own, flags, self.updates, self.cost, Step("train", tuple(words)), measuring)

    def _model_words(self) -> list[str]:
        """What an evaluation has to be told of the model: the code that builds it, which no checkpoint may choose."""
        from ..models import is_factory, is_hub_name

        if not (self.args.model and (is_factory(self.args.model) or is_hub_name(self.args.model))):
            return []
        given = {"model": self.args.model, "model_kwargs": self.args.model_kwargs or None}
        return words_of(given, self.command.parser, f"{self.study.path}: methods: {self.label}")


def _deciding(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that decide a run's weights, as JSON gives them back."""
    flags = {name: value for name, value in shown_flags(args).items() if is_plain(value)}
    return json.loads(json.dumps({k: v for k, v in flags.items() if k not in training.MAY_CHANGE_ON_RESUME}))


def _evaluation(study: StudyFile, flags: Mapping[str, Any], command: Command, with_files: bool) -> list[str]:
    """The words of an evaluation but for what names the checkpoint and its records."""
    words = [f"--data-dir={study.data_dir}"] if study.data_dir else []
    words += words_of(flags, command.parser, f"{study.path}: benchmark")
    if with_files:  # which are checked together with the flags
        _require_measured(study, command.parse([*words, f"--ckpt-path={LAST}"]).chosen)
    return words


def _require_measured(study: StudyFile, suites: Sequence[str]) -> None:
    """Raise OptionError if an endpoint names a suite that is not among the evaluation's; no suites stand for all."""
    for endpoint in filter(None, (study.primary, *study.secondary)):
        named = () if isinstance(endpoint.columns, str) else endpoint.columns
        if suites and (missing := [name for name in named if name.partition(":")[0] not in suites]):
            raise OptionError(
                f"suite: expected {missing[0].partition(':')[0]} too, as an endpoint's columns have {missing[0]}, "
                f"found {', '.join(suites)}. Add it, or take it out there."
            )


def _into(folder: Path, label: str) -> list[str]:
    return [f"--records={folder / 'results.jsonl'}", f"--label={label}"]


def _checkpoint_run(study: StudyFile, label: str, folder: Path, command: Command, with_files: bool) -> Run:
    where, own = f"{study.path}: checkpoints: {label}", folder / "checkpoints" / slug(label)
    flags = dict(study.checkpoints[label])
    path = flags.pop("path")
    if with_files:
        _require_file(path, f"{where}: path")
    with _naming(where):
        words_of(flags, command.parser, where)  # so that what is wrong here is not said of benchmark
        words = _evaluation(study, {**study.benchmark, **flags}, command, with_files)
    step = Step("benchmark", (f"--ckpt-path={path}", *words, *_into(own, label)))
    own_flags = {name: without_secrets(value) if isinstance(value, str) else value for name, value in flags.items()}
    return Run(label, None, own, {"path": without_secrets(path), **own_flags}, 0, None, None, {label: step})
