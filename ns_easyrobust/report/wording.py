"""How values, settings and differences are written in tables and pages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

NOT_RUN = "not run"


def show(value: Any) -> str:
    """A protocol's value as people write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        steps = value * 255  # an attack's radius in steps of 8-bit pixels
        whole = 0.5 < steps < 16.5 and abs(steps - round(steps)) < 1e-6
        return f"{round(steps)}/255" if whole else f"{value:.6g}"
    if isinstance(value, list):
        return "(" + ", ".join(map(show, value)) + ")"
    if isinstance(value, Mapping):
        return "{" + settings(value) + "}"
    return "none" if value is None else " ".join(str(value).split())


def settings(protocol: Mapping[str, Any]) -> str:
    """A protocol as "name=value, name=value"."""
    return ", ".join(f"{name}={show(value)}" for name, value in protocol.items())


def number(value: float, unit: str, sign: str = "") -> str:
    """A result: two decimals of a percentage, four digits of anything else; ``sign="+"`` for a difference."""
    return f"{value:{sign}.2f}" if unit == "%" else f"{value:{sign}.4g}"


def counted(n: int, noun: str) -> str:
    """As "1 model", "2 models"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def chance(p: float) -> str:
    """A p-value as "p=0.03", "p=0.0021" or "p<0.001"."""
    if p < 0.001:
        return "p<0.001"
    return f"p={p:.2f}" if p >= 0.0995 else f"p={p:.2g}"


def spread(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """The one value that (value, where) pairs share, or each value with where it holds."""
    places: dict[str, dict[str, None]] = {}
    for value, where in pairs:
        places.setdefault(value, {})[where] = None
    if len(places) == 1:
        return list(places)
    return [f"{value} ({', '.join(where)})" for value, where in places.items()]


def told(pairs: Iterable[tuple[str, str]]) -> str:
    """:func:`spread` in one line."""
    return "; ".join(spread(pairs))
