"""Command-line flags: a parser with one-line errors, types for flags, and flags that several commands share."""

from __future__ import annotations

import argparse
import errno
import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import Field, field, fields
from itertools import product
from typing import Any

from ..errors import OptionError, without_secrets
from .keywords import add_model_kwargs

_GREATEST_SEED = 2**32 - 1  # numpy takes no greater one


class FlagParser(argparse.ArgumentParser):
    """A parser that reads ``--data_dir`` as ``--data-dir`` and raises a one-line :class:`OptionError`.

    EasyRobust spells some flags with underscores, timm most of its own with dashes; both are accepted.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.allow_abbrev = False  # --aug must not mean --aug-repeats

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if args is not None:
            args = [_dashed(arg) for arg in args]
        parsed, others = super().parse_known_args(args, namespace)
        for action in self._actions:
            value = getattr(parsed, action.dest, None)
            if action.type is file_or_folder and action.default != "" and "" in (value, *(value or ())):
                self.error(f"argument {'/'.join(action.option_strings) or action.metavar}: expected a path, found none")
        return parsed, others

    def error(self, message: str) -> Any:
        raise OptionError(f"{message}. See {self.prog} --help.")


def int_from(least: int, most: int = 2**63 - 1) -> Callable[[str], int]:
    """The ``type`` of a flag: a whole number in [least, most]."""

    def parse(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            bounds = f">= {least}" if value < least else f"<= {most}"
            raise argparse.ArgumentTypeError(f"expected a whole number {bounds}, found {text}")
        return value

    parse.__name__ = "whole number"  # argparse names the type by it in errors
    return parse


def float_in(low: float, high: float = math.inf) -> Callable[[str], float]:
    """The ``type`` of a flag: a finite number in [low, high], also written as a fraction such as 1/255."""

    def parse(text: str) -> float:
        numerator, _, denominator = text.partition("/")
        value = float(numerator) / (float(denominator or 1) or math.nan)
        if not (math.isfinite(value) and low <= value <= high):
            bounds = f"between {low:g} and {high:g}" if high < math.inf else f">= {low:g}"
            raise argparse.ArgumentTypeError(f"expected a number {bounds}, found {text}")
        return value

    parse.__name__ = "number"
    return parse


def file_or_folder(text: str) -> str:
    """The ``type`` of a flag: a path, with ``~`` and ``~user`` as the home folder; a URL stays as it is."""
    expanded = os.path.expanduser(text)
    if re.match(r"\w+://", expanded):
        return expanded
    try:
        os.stat(expanded)
    except PermissionError as error:  # pathlib's exists() and is_dir() would raise it
        raise argparse.ArgumentTypeError(f"expected a path, found {text}, but no permission to look there") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise argparse.ArgumentTypeError(
                f"expected a path, found too long a name ({len(text)} characters)"
            ) from error
        if expanded.startswith("~") and not os.path.lexists(expanded):
            raise argparse.ArgumentTypeError(
                f"expected a path, found {text}, but no such user's home. Write ./{text} for a name that begins with ~"
            ) from error
    except ValueError as error:  # a NUL, or what no file system's encoding has
        raise argparse.ArgumentTypeError(f"expected a path, found {text!r}, which no file can be called") from error
    return expanded


def _dashed(arg: str) -> str:
    flag, equals, value = arg.partition("=")
    if not arg.startswith("--") or any(map(str.isspace, flag)):  # words of another command, in one
        return arg
    return flag.replace("_", "-") + equals + value


def setting(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    most: float | None = None,
    choices: Collection[str] | Callable[[], Collection[str]] = (),
    flag: str | None = None,
    each: bool = False,
    path: bool = False,
    metavar: str = "X",
) -> Any:
    """A field of a settings dataclass that is also a flag (:func:`add_settings`).

    Its type is that of the default; a tuple is one of numbers, None a number that is not given.

    Args:
        help: what it is, with its unit.
        least, most: the smallest and the largest value that the flag takes; None: any.
        choices: the values of a text, or a function that gives them when they are needed.
        flag: its name without dashes; None: the field's, behind the dataclass's prefix.
        each: the flag takes several values, each of which makes one instance.
        path: a text that names a file or folder.
    """
    more: dict[str, Any] = {
        "path": path,
        "metavar": metavar,
        "least": least,
        "most": most,
        "choices": choices,
        "flag": flag,
        "each": each,
    }
    return field(default=default, metadata={"help": help, **more})


def flags_of(settings: type, prefix: str) -> Iterator[tuple[str, Field[Any]]]:
    """(flag without dashes, field) for each :func:`setting` of a dataclass; flags' names are not inherited."""
    inherited = [vars(base).get("__dataclass_fields__", {}) for base in settings.__mro__[1:]]
    for item in fields(settings):
        if "help" in item.metadata:
            is_own = not any(of_base.get(item.name) is item for of_base in inherited)
            yield (is_own and item.metadata["flag"]) or (prefix + item.name).replace("_", "-"), item


def choices_of(settings: type, name: str) -> tuple[str, ...]:
    """The values that the :func:`setting` ``name`` takes, if it is a text with choices; else ()."""
    choices = next(item.metadata["choices"] for item in fields(settings) if item.name == name)
    return tuple(choices() if callable(choices) else choices)


def add_settings(group: Any, settings: type, prefix: str) -> None:
    """Add a flag for each :func:`setting` of a dataclass to a parser or a group of flags."""
    for flag, item in flags_of(settings, prefix):
        how, default, choices = item.metadata, item.default, choices_of(settings, item.name)
        options: dict[str, Any] = {
            "help": how["help"].replace("%", "%%"),
            "default": [default] if how["each"] else default,
        }
        if isinstance(default, bool):
            options["action"] = argparse.BooleanOptionalAction
        elif choices:
            options["choices"] = choices
        else:
            options |= {"metavar": how["metavar"], "type": _flag_type(default, how)}
        if isinstance(default, tuple):
            options |= {"nargs": "*", "default": list(default)}
        elif how["each"]:
            options["nargs"] = "+"
        if default is not None and default != ():
            options["help"] += f" (default: {_as_fraction(default)})"
        try:
            group.add_argument(f"--{flag}", **options)
        except argparse.ArgumentError as error:
            raise OptionError(
                f"{settings.__name__}.{item.name}: expected a new flag, found --{flag}, which is taken. Rename it."
            ) from error


def settings_from(args: argparse.Namespace, settings: type, prefix: str) -> list[dict[str, Any]]:
    """Keyword arguments from the flags that :func:`add_settings` added, for each combination of flags of ``each``."""
    values = {}
    for flag, item in flags_of(settings, prefix):
        value = getattr(args, flag.replace("-", "_"))
        values[item.name] = value if item.metadata["each"] else [value]
    return [dict(zip(values, combination, strict=True)) for combination in product(*values.values())]


def _flag_type(default: Any, how: Mapping[str, Any]) -> Callable[[str], Any]:
    least, most = how["least"], how["most"]
    if isinstance(default, str):
        return file_or_folder if how["path"] else str
    if isinstance(default, int):
        return int_from(-(2**63) if least is None else int(least), 2**63 - 1 if most is None else int(most))
    return float if least is None else float_in(least, math.inf if most is None else most)


def _as_fraction(value: Any) -> str:
    """A radius of pixels as people write it, 1/255."""
    steps = 255 * value if isinstance(value, float) else 0
    return f"{round(steps)}/255" if 0 < steps < 17 and abs(steps - round(steps)) < 1e-9 else str(value)


def shown_flags(args: argparse.Namespace) -> dict[str, Any]:
    """The flags as files and logs may show them: without the user and password of a URL.

    Example:
        >>> shown_flags(argparse.Namespace(lr=0.1, initial_checkpoint="https://me:secret@example.org/vit.pth"))
        {'lr': 0.1, 'initial_checkpoint': 'https://***@example.org/vit.pth'}
    """
    return {name: without_secrets(value) if isinstance(value, str) else value for name, value in vars(args).items()}


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags with which commands describe a model."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        "-m",
        metavar="NAME",
        help="architecture, by its name in timm, or a factory of your own, pkg.module:function or file.py:function "
        "(default: the checkpoint's)",
    )
    add_model_kwargs(group)
    group.add_argument(
        "--num-classes",
        type=int_from(1, 10**6),
        metavar="N",
        help="classes (default: the checkpoint's); train makes a new head for another number",
    )
    group.add_argument("--mean", type=float, nargs="+", help="normalisation, where the checkpoint has none")
    group.add_argument("--std", type=float, nargs="+", help="normalisation, where the checkpoint has none")


def default_workers(most: int = 4) -> int:
    """``most`` data loaders, or one for each core that this process may use, if there are fewer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(most, cores)


def add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags for device, workers and seed."""
    group = parser.add_argument_group("machine")
    group.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto: cuda if there is one")
    group.add_argument(
        "-j",
        "--workers",
        type=int_from(0, 1024),
        default=default_workers(),
        metavar="N",
        help="data loaders (default: 4, or the number of cores if that is less)",
    )
    group.add_argument(
        "--seed", type=int_from(0, _GREATEST_SEED), default=42, metavar="S", help="of everything random (default: 42)"
    )
