"""Command-line flags: a parser with one-line errors, types for flags, and flags that several commands share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

from ..errors import OptionError


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
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> Any:
        raise OptionError(f"{message}. See {self.prog} --help.")


def int_from(least: int) -> Callable[[str], int]:
    """The ``type`` of a flag: a whole number >= ``least``."""

    def parse(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"expected a whole number >= {least}, found {text}")
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


def _dashed(arg: str) -> str:
    if not arg.startswith("--"):
        return arg
    flag, equals, value = arg.partition("=")
    return flag.replace("_", "-") + equals + value


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags with which commands describe a model."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", "-m", required=True, metavar="NAME", help="architecture, by its name in timm")
    group.add_argument("--num-classes", type=int_from(1), default=1000, metavar="N", help="classes of data and model")
    group.add_argument("--mean", type=float, nargs="+", help="normalisation, where the checkpoint has none")
    group.add_argument("--std", type=float, nargs="+", help="normalisation, where the checkpoint has none")


def add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags for device, workers and seed."""
    group = parser.add_argument_group("machine")
    group.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto: cuda if there is one")
    group.add_argument("-j", "--workers", type=int_from(0), default=4, metavar="N", help="data loaders (default: 4)")
    group.add_argument("--seed", type=int_from(0), default=42, metavar="S", help="of everything random (default: 42)")
