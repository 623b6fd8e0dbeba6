"""Rows and columns of a table: which records share one, what it is called and in which order it appears."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import OptionError
from ..evaluation import RUN_SETTINGS, Record, column_settings, table2_suites
from ..evaluation import suites as suites_by_name
from .sheet import format_settings, format_value, join_values

_LOWER_IS_BETTER = re.compile(r"(^|_)(mce|mfr|error|mse|ece|loss)(_|$)", re.IGNORECASE)
_MAX_VARIANTS = 8  # columns of one suite and metric; more than this (ImageNet-C's 75) appear only in the CSV


@dataclass(frozen=True)
class Column:
    """One metric, measured alike in every row; ``title`` names the settings that distinguish it from its variants."""

    key: str
    title: str
    suite: str
    metric: str
    unit: str
    protocol: Mapping[str, Any]

    @property
    def lower_is_better(self) -> bool:
        return _LOWER_IS_BETTER.search(self.metric) is not None


def column_key(record: Record) -> str:
    """A key that is equal for records that belong in the same column."""
    identity = (record.suite, record.metric, record.unit, column_settings(record))
    return json.dumps(identity, sort_keys=True)


def columns_of(records: Sequence[Record]) -> tuple[Column, ...]:
    """The columns in Table 2's order, then of first appearance; variants are titled by how they differ."""
    first_records: dict[str, Record] = {}
    for record in records:
        first_records.setdefault(column_key(record), record)
    suites = dict.fromkeys([*(suite.record for suite in table2_suites()), *(record.suite for record in records)])
    position = {suite: index for index, suite in enumerate(suites)}
    imagenets = {column_key(record) for record in records if not record.of_own_classes}
    # Named after ImageNet's sets only where these were used.
    own_names = {suite.record: suite.name for suite in suites_by_name().values()}
    names = {key: r.suite if key in imagenets else own_names.get(r.suite, r.suite) for key, r in first_records.items()}
    variants: dict[tuple[str, str], dict[str, Record]] = {}
    for key, record in first_records.items():
        variants.setdefault((names[key], record.metric), {})[key] = record
    titles = {
        key: title for (name, _), of_metric in variants.items() for key, title in _titles(name, of_metric).items()
    }
    columns = [
        Column(key, titles[key], r.suite, r.metric, r.unit, column_settings(r)) for key, r in first_records.items()
    ]
    return tuple(sorted(columns, key=lambda column: position[column.suite]))


def shown_columns(columns: Sequence[Column]) -> tuple[Column, ...]:
    """Those of text, Markdown and plots: without metrics of many variants, unless no others exist."""
    variants = Counter((column.suite, column.metric) for column in columns)
    shown = tuple(column for column in columns if variants[column.suite, column.metric] <= _MAX_VARIANTS)
    return shown or tuple(columns)


def _titles(suite: str, variants: Mapping[str, Record]) -> dict[str, str]:
    """Titles by key of all columns of one metric of the suite that is shown by this name."""
    settings = {key: {"unit": record.unit, **column_settings(record)} for key, record in variants.items()}
    names = dict.fromkeys(name for own in settings.values() for name in own)
    differing = [
        name for name in names if len({json.dumps(own.get(name, "not given")) for own in settings.values()}) > 1
    ]
    shown = {key: {name: own.get(name, "not given") for name in differing} for key, own in settings.items()}
    suffixes = {key: format_settings(own) for key, own in shown.items()}
    shared = Counter(suffixes.values())
    titles = {}
    for key, record in variants.items():
        # Some variants differ only beyond the digits that format_settings shows.
        suffix = suffixes[key] if shared[suffixes[key]] == 1 else json.dumps(shown[key])
        titles[key] = f"{suite} {record.metric}" + (f" ({suffix})" if suffix and differing else "")
    return titles


def require_rows(names: Sequence[str], rows: Sequence[str], what: str) -> None:
    """Raise OptionError, listing the available rows, if one of ``names`` is not among them."""
    unknown = [name for name in names if name not in rows]
    if unknown:
        raise OptionError(
            f"unknown {what}: expected one of {', '.join(map(repr, dict.fromkeys(rows)))}, "
            f"found {unknown[0]!r}. Give a label as it stands in the table."
        )


def row_names(records: Sequence[Record]) -> dict[tuple[object, ...], str]:
    """A name for each :attr:`Record.row`: its label and, where several rows share that, the traits that differ."""
    first_records: dict[tuple[object, ...], Record] = {}
    for record in records:
        first_records.setdefault(record.row, record)
    traits_by_label: dict[str, list[tuple[str, ...]]] = {}
    for record in first_records.values():
        traits_by_label.setdefault(record.label, []).append(_traits(record))
    differing = {
        label: [index for index, values in enumerate(zip(*rows, strict=True)) if len(set(values)) > 1]
        for label, rows in traits_by_label.items()
    }
    names = {}
    for row, record in first_records.items():
        traits = ", ".join(_traits(record)[index] for index in differing[record.label])
        names[row] = f"{record.label} [{traits}]" if traits else record.label
    return names


def _traits(record: Record) -> tuple[str, ...]:
    checkpoint = record.checkpoint or "no checkpoint"
    sha256 = f"sha256 {record.checkpoint_sha256[:8]}" if record.checkpoint_sha256 else "no hash"
    weights = record.weights or "weights not named"
    return (record.model, checkpoint, sha256, weights, "EMA" if record.ema else "not EMA")


def mismatch(column_records: Sequence[tuple[str, Record]]) -> str | None:
    """Why the (row, record) pairs are not comparable image by image; None if the records show no reason."""
    if len({record.n for _, record in column_records}) > 1:
        return "n differs: " + join_values((f"{record.n}", row) for row, record in column_records)
    images = [(record.images[:12], row) for row, record in column_records if record.images is not None]
    if len({digest for digest, _ in images}) > 1:
        return "the images differ: " + join_values((f"set {digest}", row) for digest, row in images)
    tasks = [(record.task[:12], row) for row, record in column_records if record.task is not None]
    if len({task for task, _ in tasks}) > 1:
        return "labels or files differ behind equal names: " + join_values((f"task {task}", row) for task, row in tasks)
    return None


def run_setting(name: str, column_records: Sequence[tuple[str, Record]]) -> list[tuple[str, str]]:
    """(value, row) of the run's setting ``name`` for each of the (row, record) pairs."""
    return [(format_value(record.protocol.get(name, "not given")), row) for row, record in column_records]


def column_notes(column_records: Sequence[tuple[str, Record]]) -> list[str]:
    """What a reader must know before comparing a column's (row, record) pairs."""
    reason = mismatch(column_records)
    notes = [f"{reason}; not comparable image by image"] if reason else []
    for name in RUN_SETTINGS:
        pairs = run_setting(name, column_records)
        if len({value for value, _ in pairs}) > 1:
            notes.append(f"{name} differs: {join_values(pairs)}")
    return notes


def protocol_line(column: Column, column_records: Sequence[tuple[str, Record]]) -> str:
    """The column's protocol, with the runs' settings: one value, or each with its rows."""
    run = {name: join_values(run_setting(name, column_records)) for name in RUN_SETTINGS}
    given = {name: value for name, value in run.items() if value != "not given"}
    return f"{column.title}: {format_settings({**column.protocol, **given}) or 'no settings recorded'}"
