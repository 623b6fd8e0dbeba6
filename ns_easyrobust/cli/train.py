"""The verb ``train``: finetune a model, with noise if ``--aug`` asks for it."""

from __future__ import annotations

import argparse

from ..errors import printable
from ..training import build_parser as add_arguments
from ..training import parse_with as parse
from ..utils import is_first_rank

__all__ = ["add_arguments", "parse", "run"]


def run(args: argparse.Namespace) -> None:
    """Train, and print the path of the run folder."""
    from ..training import train

    folder = train(args)
    if is_first_rank():
        print(f"run folder: {printable(str(folder))}")
