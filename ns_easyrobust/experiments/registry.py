"""Registry of the experiments that ``ns-easyrobust experiment`` can name, each a file of this folder."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, NamedTuple, TypeVar

from ..utils import FlagParser, Registry


class Command(NamedTuple):
    """A verb of the command line as an experiment may use it: to check flags before anything is built.

    Attributes:
        parser: has the verb's flags.
        parse: parses words and raises the OptionError or DataError with which the verb would end on them.
    """

    parser: FlagParser
    parse: Callable[[list[str]], argparse.Namespace]


class Experiment(ABC):
    """A figure, table or application of the paper. The first line of a subclass's docstring is its help.

    Its file is imported for ``--help``: it takes ``torch``, ``nn`` and ``np`` from ``utils``, and names of other
    folders that import torch inside its functions.

    Attributes:
        name: under which it is registered.
    """

    name: ClassVar[str]

    @abstractmethod
    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the experiment's flags."""

    @abstractmethod
    def run(self, args: argparse.Namespace, commands: Mapping[str, Command]) -> Iterator[str]:
        """Carry it out; yields what the command line prints, as soon as it is known.

        Args:
            commands: ``train`` and ``benchmark``.

        Raises:
            UserError: a user's mistake, or a part that failed once all others are done.
        """


Kind = TypeVar("Kind", bound=type[Experiment])
_EXPERIMENTS: Registry[type[Experiment]] = Registry("experiment", __package__)


def register_experiment(name: str) -> Callable[[Kind], Kind]:
    """Class decorator: make an :class:`Experiment` available as ``ns-easyrobust experiment NAME``.

    Raises:
        OptionError: the name is taken.
    """
    _EXPERIMENTS.require_name(name)

    def register(cls: Kind) -> Kind:
        _EXPERIMENTS.add(name, cls, f"{cls.__module__}.{cls.__qualname__}")
        cls.name = name
        return cls

    return register


def experiments() -> dict[str, type[Experiment]]:
    """Every experiment by name: those of this folder's files, and others that were registered."""
    return _EXPERIMENTS.complete()
