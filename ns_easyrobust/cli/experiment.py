"""The verb ``experiment``: a figure, table or study, by its name."""

from __future__ import annotations

import argparse
from functools import partial

from ..experiments import Command, experiments
from . import benchmark, train
from .main import parser_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a sub-command with its flags for each experiment."""
    names = parser.add_subparsers(dest="experiment", metavar="NAME", required=True, parser_class=type(parser))
    for name, kind in experiments().items():
        summary = (kind.__doc__ or "").strip().partition("\n")[0]
        kind().add_arguments(names.add_parser(name, help=summary, description=summary))


def run(args: argparse.Namespace) -> None:
    """Carry the experiment out, and print what it yields as it comes."""
    commands = {}
    for name, parse in (("train", train.parse), ("benchmark", benchmark.parse)):
        parser = parser_of(name)
        commands[name] = Command(parser, partial(parse, parser))
    for text in experiments()[args.experiment]().run(args, commands):
        print(text, flush=True)
