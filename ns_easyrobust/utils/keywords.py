"""``--model-kwargs``: the further arguments of an architecture, and those that are not given by it."""

from __future__ import annotations

import argparse
import ast
from typing import Any

# Arguments that would make timm read another file, with code in it, or another model; neither files nor
# --model-kwargs give them.
KEPT_ARGUMENTS = {
    "arch": "give --model",
    "num_classes": "give --num-classes",
    "pretrained": "give --pretrained",
    **dict.fromkeys(("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"), "give the checkpoint's own flag"),
    "cache_dir": "set TORCH_HOME or HF_HOME",
}
# Those that have a flag in some verbs, where --model-kwargs does not give them too.
FLAGGED_ARGUMENTS = {
    "img_size": "--img-size",
    "drop_rate": "--drop",
    "drop_path_rate": "--drop-path",
    "mean": "--mean",
    "std": "--std",
}


def is_plain(value: Any) -> bool:
    """Whether ``value`` is None, text or a number, or a list of those, or a dict of those by text."""
    if isinstance(value, dict):
        return all(isinstance(name, str) and is_plain(item) for name, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, str | int | float | bool)


class _Keywords(argparse.Action):
    """Collects ``name=value`` words in a dict, as timm 1.x's ``ParseKwargs``: Python literals, or else text."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        keywords: dict[str, Any] = {}
        for word in filter(None, values):
            name, equals, text = word.partition("=")
            if not equals or not name.isidentifier():
                parser.error(f"argument {option_string}: expected name=value, found {word[:100]!r}")
            remedy = KEPT_ARGUMENTS.get(name)
            if remedy is None and (flag := FLAGGED_ARGUMENTS.get(name)) in parser._option_string_actions:
                remedy = f"give {flag}"
            if remedy is not None:
                parser.error(f"argument {option_string}: {name} is not for it; {remedy}")
            try:
                value = ast.literal_eval(text)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                value = text
            keywords[name] = value if is_plain(value) else text
        setattr(namespace, self.dest, keywords)


def add_model_kwargs(parser: Any) -> None:
    """Add ``--model-kwargs``, the further arguments of an architecture, to a parser or a group of flags."""
    parser.add_argument(
        "--model-kwargs", nargs="*", default={}, action=_Keywords, metavar="NAME=VALUE",
        help="arguments for the architecture or factory (default: the checkpoint's)",
    )  # fmt: skip
