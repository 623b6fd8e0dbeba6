"""Where a row's numbers come from, out of its records."""

from __future__ import annotations

from collections.abc import Sequence

from ..evaluation import MODEL_SETTINGS, Record
from .columns import Column
from .sheet import format_value, join_values


def facts_of(records: Sequence[tuple[Column, Record]]) -> dict[str, str]:
    """Model, checkpoint, sha256, weights, normalisation, seed, machine and day of a row, by its cells that were run."""
    column_records = [(column.title, record) for column, record in records]
    first = column_records[0][1]
    facts = {"model": first.model, "checkpoint": first.checkpoint or "no checkpoint file"}
    if first.checkpoint_sha256:
        facts["sha256"] = first.checkpoint_sha256
    if first.weights or first.ema:
        facts["weights"] = f"{'EMA weights' if first.ema else 'weights'} {first.weights or ''}".strip()
    for name in MODEL_SETTINGS:
        pairs = [
            (format_value(record.protocol[name]), title) for title, record in column_records if name in record.protocol
        ]
        if pairs:
            facts[name] = join_values(pairs)
    seeds = [(f"{record.seed}", title) for title, record in column_records if record.seed is not None]
    facts["seed"] = join_values(seeds) or "none drawn"
    facts["machine"] = join_values(
        (record.machine or "a machine not recorded", title) for title, record in column_records
    )
    days = sorted({record.created[:10] for _, record in column_records})
    facts["measured"] = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return facts


def facts_line(facts: dict[str, str]) -> str:
    """The facts on one line."""
    facts = dict(facts)
    sha256 = facts.pop("sha256", None)
    if sha256 is not None:
        facts["checkpoint"] += f" (sha256 {sha256[:12]})"
    unnamed = ("model", "checkpoint", "weights")
    prefixes = {"machine": "on "}
    return ", ".join(
        value if name in unnamed else f"{prefixes.get(name, name + ' ')}{value}" for name, value in facts.items()
    )
