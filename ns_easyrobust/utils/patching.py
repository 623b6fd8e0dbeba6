"""Attributes of modules and classes of other libraries, set for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced_attributes(owner: Any, **values: Any) -> Iterator[None]:
    """While the body runs, the module or class ``owner`` has these attributes; then those it had before.

    An attribute that ``owner`` lacked, or only inherited, is deleted afterwards.
    """
    previous = {name: vars(owner)[name] for name in values if name in vars(owner)}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name in values:
            if name in previous:
                setattr(owner, name, previous[name])
            elif name in vars(owner):
                delattr(owner, name)
