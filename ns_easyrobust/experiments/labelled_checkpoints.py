"""Checkpoints that are named one by one on the command line, as LABEL=CKPT."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence

from ..errors import OptionError
from ..utils import file_or_folder


def labelled_checkpoints(
    flag: str, words: Sequence[str], reserved: Collection[str] = (), form: str = "LABEL=CKPT"
) -> list[tuple[str, str]]:
    """(label, path) of each checkpoint of ``LABEL=a.pth,b.pth``, in their order; a label may come again.

    Args:
        flag: whose words they are.
        reserved: labels that are none.
        form: of a word, for the message.

    Raises:
        OptionError: a word of another form, or a path that is none.
    """
    found = []
    for word in words:
        label, equals, paths = word.partition("=")
        if not equals or not label.strip() or not label.isprintable() or label in reserved or not paths.strip(","):
            but = "".join(f", any label but {name}" for name in reserved)
            raise OptionError(f"{flag}: expected {form}{but}, found {word[:200]!r}.")
        for path in filter(None, paths.split(",")):
            try:
                found.append((label, file_or_folder(path)))
            except argparse.ArgumentTypeError as error:
                raise OptionError(f"{flag} {label}: {error}.") from error
    return found
