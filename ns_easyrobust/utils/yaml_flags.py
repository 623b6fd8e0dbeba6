"""Settings of a YAML file as command-line words, so that a command's own parser checks them like any others."""

from __future__ import annotations

import argparse
import datetime
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import OptionError
from .files import read_bounded
from .parsing import parse_yaml

_LONGEST = 2**18  # bytes of a file: two seconds of parsing


def read_settings(path: str | Path, what: str = "flags", remedy: str = "Mend it.") -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty one.

    Raises:
        OptionError: no file, no YAML, or something other than ``name: value`` lines. ``what`` and ``remedy`` are words
            of that line.
    """
    try:
        settings = parse_yaml(read_bounded(path, _LONGEST).decode("utf-8-sig"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        remedy = remedy if isinstance(error, FileNotFoundError) else "Mend it."
        raise OptionError(f"{path}: expected a YAML file of {what}, found: {reason}. {remedy}") from error
    settings = {} if settings is None else settings
    if not isinstance(settings, dict):
        raise OptionError(f"{path}: expected 'name: value' lines, found a {type(settings).__name__}.")
    return settings


def words_of(settings: Mapping[Any, Any], parser: argparse.ArgumentParser, where: str | Path) -> list[str]:
    """Flags by name, with dashes or underscores, as words for ``parser``.

    Args:
        where: what names the settings' place in errors.

    Raises:
        OptionError: an unknown flag, one in two spellings, or a value that no word can stand for.

    Example:
        >>> parser = build_parser()
        >>> words_of({"lr": 1e-4, "opt_betas": [0.9, 0.99], "amp": False}, parser, "a recipe")
        ['--lr=0.0001', '--opt-betas', '0.9', '0.99', '--no-amp']
    """
    spellings = Counter(str(key).replace("-", "_") for key in settings)
    if twice := [key for key, count in spellings.items() if count > 1]:
        raise OptionError(f"{where}: expected each flag once, found {twice[0]} in two spellings. Take one out.")
    known = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    plain = {str(key).replace("-", "_"): value for key, value in settings.items()}
    if unknown := sorted(set(plain) - set(known)):
        shown = ", ".join(name[:100] for name in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise OptionError(f"{where}: expected names of flags, found {shown}. See {parser.prog} --help.")
    return [word for key, value in plain.items() for word in _words(known[key], value, where)]


def _words(action: argparse.Action, value: Any, where: str | Path) -> list[str]:
    """A setting as words; none where it leaves the flag out."""
    name = max(action.option_strings, key=len)
    if action.nargs == 0:  # --amp and --no-amp, or a switch alone
        if not isinstance(value, bool | None):
            raise OptionError(f"{where}: {action.dest}: expected true or false, found {value!r}.")
        return list(action.option_strings[:1] if value else action.option_strings[1:] if value is False else [])
    if value is None or (value is False and action.default in (None, "")):
        return []
    if value is False and isinstance(action.default, int | float):
        value = 0  # as in timm's scripts
    if isinstance(value, dict) and isinstance(action.default, dict):
        value = [f"{key}={item!r}" for key, item in value.items()]
    values = value if isinstance(value, list) else [value]
    if odd := [item for item in values if not _is_word(item)]:
        raise OptionError(
            f"{where}: {action.dest}: expected numbers or text, found {odd[0]!r}. Put text such as yes into quotes."
        )
    if action.nargs is not None:
        return [name, *map(str, values)]
    if len(values) != 1:
        raise OptionError(f"{where}: {action.dest}: expected one value, found {len(values)}.")
    return [f"{name}={values[0]}"]  # one word, for it may begin with a hyphen


def _is_word(value: Any) -> bool:
    """Whether ``value`` can be given on a command line: a number, a date, or text that could be a file's name."""
    if type(value) is not str:
        return type(value) in (int, float, datetime.date)
    try:
        os.fsencode(value)
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    return True
