"""What counts as one column of a table, how it is called and where it stands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..evaluation.records import Record, column_settings
from .wording import settings

# The paper's Table 2 from left to right; suites it does not have follow as first seen.
SUITES = (
    "imagenet-val",
    "patchfool",
    "cw",
    "fgsm",
    "damagenet",
    "imagenet-a",
    "imagenet-c",
    "imagenet-v2",
    "imagenet-r",
    "imagenet-sketch",
    "imagenet-stylized",
)
_LOWER_IS_BETTER = re.compile(r"(^|_)(mce|mfr|error|mse|ece|loss)(_|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Column:
    """What is measured alike in every row; ``title`` names the settings that tell it from its like."""

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
    """Equal for records that belong into one column."""
    what = (record.suite, record.metric, record.unit, column_settings(record))
    return json.dumps(what, sort_keys=True)


def columns_of(records: Sequence[Record]) -> tuple[Column, ...]:
    """The columns by :data:`SUITES`, then as first seen; titles of variants name the settings in which they differ."""
    firsts: dict[str, Record] = {}
    for record in records:
        firsts.setdefault(column_key(record), record)
    seen = dict.fromkeys([*SUITES, *(record.suite for record in records)])
    place = {suite: index for index, suite in enumerate(seen)}
    columns = [
        Column(key, _title(r, firsts.values()), r.suite, r.metric, r.unit, column_settings(r))
        for key, r in firsts.items()
    ]
    return tuple(sorted(columns, key=lambda column: place[column.suite]))


def _title(record: Record, others: Iterable[Record]) -> str:
    peers = [
        {"unit": other.unit, **column_settings(other)}
        for other in others
        if (other.suite, other.metric) == (record.suite, record.metric)
    ]
    names = dict.fromkeys(name for peer in peers for name in peer)
    padded = [{name: peer.get(name, "not given") for name in names} for peer in peers]
    differing = [name for name in names if len({json.dumps(peer[name]) for peer in padded}) > 1]
    own = {"unit": record.unit, **column_settings(record)}
    mine = {name: own.get(name, "not given") for name in differing}
    variant = settings(mine)
    if [settings({name: peer[name] for name in differing}) for peer in padded].count(variant) > 1:
        variant = json.dumps(mine)  # they differ beyond the digits that are shown
    title = f"{record.suite} {record.metric}"
    return f"{title} ({variant})" if variant else title
