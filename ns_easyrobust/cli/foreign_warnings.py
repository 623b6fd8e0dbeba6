"""Warnings of other packages that concern nobody who runs a verb: each is silenced by its own words."""

from __future__ import annotations

import warnings

_SILENCED: tuple[tuple[str, type[Warning]], ...] = (
    # torch, of more data workers than cores; the default is capped, and who asks for more knows it
    ("This DataLoader will create [0-9]+ worker processes in total", UserWarning),
)


def silence_foreign_warnings() -> None:
    """Silence them for the rest of this process and its data workers."""
    for message, category in _SILENCED:
        warnings.filterwarnings("ignore", message, category)
