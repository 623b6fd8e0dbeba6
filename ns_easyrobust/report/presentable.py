"""Texts that others wrote (labels, paths, machines, settings in results files) as reports show them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from ..errors import printable, without_secrets
from ..evaluation import Record
from ..utils import as_utf8

_TEXTS = (
    *("suite", "metric", "unit", "label", "model", "checkpoint", "checkpoint_sha256"),
    *("weights", "machine", "images", "task"),
)
_SETTINGS = ("protocol", "versions")


def presentable(text: str) -> str:
    """``text`` without what steers a terminal, tells a secret of a URL or cannot be written as UTF-8.

    Example:
        >>> presentable("ViT\\x1b[2J, https://me:secret@example.org/vit.pth")
        'ViT\\\\x1b[2J, https://***@example.org/vit.pth'
    """
    if text.isascii() and text.isprintable() and not any(sign in text for sign in "@?&"):  # most are, and it is quick
        return text
    return as_utf8(printable(without_secrets(text))).decode()


def presentable_record(record: Record) -> Record:
    """The same record with each of its texts :func:`presentable`; which file it came from and its bits stay as is."""
    shown = {name: _presentable_values(getattr(record, name)) for name in (*_TEXTS, *_SETTINGS)}
    if all(getattr(record, name) == value for name, value in shown.items()):
        return record
    changed = copy.copy(record)
    for name, value in shown.items():
        object.__setattr__(changed, name, value)  # an escape may be longer than what a record's field takes
    return changed


def _presentable_values(value: Any) -> Any:
    if isinstance(value, str):
        return presentable(value)
    if isinstance(value, Mapping):
        return {presentable(name): _presentable_values(item) for name, item in value.items()}
    return [_presentable_values(item) for item in value] if isinstance(value, list) else value
