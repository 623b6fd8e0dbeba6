"""The flag ``--suite``: names of suites, some with a folder of their own; and what to say where none is found."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..data import benchmark_folder, holds_benchmarks, known_benchmarks, list_folder
from ..errors import DataError, OptionError, UserError
from ..utils import file_or_folder


class SuiteChoices(tuple[str, ...]):
    """The values of ``--suite``; one of a suite, ``groups`` excepted, may have ``=PATH`` behind it."""

    groups: frozenset[str]

    def __new__(cls, suites: Iterable[str], groups: Iterable[str] = ()) -> SuiteChoices:
        choices = super().__new__(cls, (*groups, *suites))
        choices.groups = frozenset(groups)
        return choices

    def __contains__(self, text: object) -> bool:
        name, equals, _ = str(text).partition("=")
        return super().__contains__(name) and not (equals and name in self.groups)


def suite_or_folder(text: str) -> str:
    """The ``type`` of ``--suite``: ``SUITE`` or ``SUITE=PATH``."""
    name, equals, path = text.partition("=")
    return f"{name}={file_or_folder(path)}" if equals else text


suite_or_folder.__name__ = "suite"


def split_suites(texts: Iterable[str]) -> tuple[list[str], dict[str, Path]]:
    """The names of ``--suite``, and the folders of those that have one, which must be there.

    Raises:
        OptionError: a suite with two folders. DataError: no such folder.
    """
    names: list[str] = []
    folders: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        names.append(name)
        if not equals:
            continue
        if Path(path) != folders.get(name, Path(path)):
            raise OptionError(f"--suite {text}: expected one folder of {name}, found another, {folders[name]}.")
        if not path or not os.path.isdir(path):
            raise DataError(f"--suite {text}: expected a folder, found none. Nothing was evaluated; check the path.")
        folders[name] = Path(path)
        list_folder(path)  # which says what is wrong with one that cannot be read
    return list(dict.fromkeys(names)), folders


def what_fits(data_dir: str | Path) -> str:
    """What is in a folder without evaluation sets, and how it would be taken."""
    data_dir = Path(data_dir).absolute()
    own = {benchmark.folder: name for name, benchmark in known_benchmarks().items()}
    if data_dir.name in own:
        return f"It is called as one of them: give {data_dir.parent}, or --suite {own[data_dir.name]}={data_dir}."
    names = list_folder(data_dir)[0]
    for name in known_benchmarks()["val"].beside_train:
        if name in names:
            return f"It has {name}/ without train/: give --suite val={data_dir / name}."
    for name in names[:20]:
        try:
            if holds_benchmarks(data_dir / name):
                return f"Its {name}/ would fit: give {data_dir / name}."
        except UserError:  # a folder that cannot be read
            continue
    shown = f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else "no folders"
    if len(names) > 1 and "train" not in names:
        return f"It has {shown}: if these are classes, give --suite val={data_dir}."
    return f"It has {shown}."


def expected_folders() -> str:
    """The folders that a data folder may hold, in words."""
    folders = ", ".join(f"{benchmark.folder}/" for benchmark in known_benchmarks().values())
    beside = " or ".join(f"{name}/" for name in known_benchmarks()["val"].beside_train)
    return f"some of {folders}, or a training folder ({beside} beside train/)"


def shown_folder(data_dir: str | Path, suite: str, folders: dict[str, Path]) -> str:
    """The folder of a benchmark as a user would call it: within ``data_dir``, or the path that was given."""
    return str(folders.get(suite) or benchmark_folder(data_dir, known_benchmarks()[suite]).relative_to(data_dir))
