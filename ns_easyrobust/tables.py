"""Records as a table: text, Markdown and CSV, each number with its interval and protocol."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from .errors import OptionError
from .records import Record, latest

_logger = logging.getLogger(__name__)
NOT_RUN = "not run"
# Settings that belong to a row's model, and those of the run, which move a number in its last digits.
# Neither makes a column of its own: the first stand with the row, a difference in the second is a note.
_OF_THE_MODEL = ("mean", "std", "normalization_from")
_OF_THE_RUN = ("batch_size", "dtype")
_MANY = 8  # variants of one suite's metric; more (ImageNet-C's 75) go to the CSV alone
_LOWER_IS_BETTER = re.compile(r"(^|_)(mce|mfr|error|mse|ece|loss)(_|$)", re.IGNORECASE)
_CSV = ("label", "column", "value", "low", "high", "n", "correct", "unit", "suite", "metric", "protocol")
# Folded lines keep paths in one piece, to be copied.
_FOLDED: Any = {"subsequent_indent": "    ", "break_long_words": False, "break_on_hyphens": False}


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of the share ``correct / n``, both ends in percent.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical
    inference", JASA 22 (1927). It stays in [0, 100] and has width at 0 and n correct too.

    Raises:
        OptionError: not 0 <= correct <= n with n >= 1, or confidence not in (0, 1).
    """
    if not (0 <= correct <= n and n >= 1 and 0 < confidence < 1):
        raise OptionError(
            f"interval: expected 0 <= correct <= n, n >= 1 and 0 < confidence < 1, found correct={correct}, "
            f"n={n}, confidence={confidence}. Correct the counts."
        )
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, weight = correct / n, z * z / n
    centre = (share + weight / 2) / (1 + weight)
    half = z * (share * (1 - share) / n + weight / n / 4) ** 0.5 / (1 + weight)
    low = 0.0 if correct == 0 else max(0.0, centre - half)  # exact where rounding would miss the end
    high = 1.0 if correct == n else min(1.0, centre + half)
    return 100 * low, 100 * high


def _show(value: Any) -> str:
    """A protocol's value as people write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        steps = value * 255  # an attack's radius in steps of 8-bit pixels
        whole = 0.5 < steps < 16.5 and abs(steps - round(steps)) < 1e-6
        return f"{round(steps)}/255" if whole else f"{value:.6g}"
    if isinstance(value, list):
        return "(" + ", ".join(map(_show, value)) + ")"
    if isinstance(value, Mapping):
        return "{" + _settings(value) + "}"
    return "none" if value is None else " ".join(str(value).split())


def _settings(protocol: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_show(value)}" for name, value in protocol.items())


def _number(value: float, unit: str, sign: str = "") -> str:
    return f"{value:{sign}.2f}" if unit == "%" else f"{value:{sign}.4g}"


def _spread(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """The one value that (value, where) pairs share, or each value with where it holds."""
    places: dict[str, dict[str, None]] = {}
    for value, where in pairs:
        places.setdefault(value, {})[where] = None
    if len(places) == 1:
        return list(places)
    return [f"{value} ({', '.join(where)})" for value, where in places.items()]


def _told(pairs: Iterable[tuple[str, str]]) -> str:
    return "; ".join(_spread(pairs))


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


class Table:
    """A row a label, a column a (suite, metric, protocol); of repeated measurements the newest.

    Args:
        records: in the order of rows and columns.
        labels: the rows to show, in this order; None: all, as first seen.
        baseline: the row that the others' differences refer to.
        confidence: of the intervals.

    Attributes:
        rows: row names, top to bottom: the labels, and where one label stands for several
            checkpoints, the label with what tells them apart.
        columns: left to right.
        cells: (row, column's key) to its record; what was not run has none.

    Raises:
        OptionError: no records, or a label or baseline that none of them has.
    """

    def __init__(
        self,
        records: Iterable[Record],
        *,
        labels: Sequence[str] | None = None,
        baseline: str | None = None,
        confidence: float = 0.95,
    ) -> None:
        records = latest(records)
        if not records:
            raise OptionError("table: expected at least one record, found none. Run a benchmark first.")
        row_of = _row_names(records)
        label_of = {row_of[record.row]: record.label for record in records}
        rows = list(label_of)
        if labels is not None:
            _require_rows(labels, [*rows, *label_of.values()], "label")
            rows = list(dict.fromkeys(r for label in labels for r in rows if label in (r, label_of[r])))
            records = [record for record in records if row_of[record.row] in rows]
        if baseline is not None:
            _require_rows([baseline], rows, "baseline")
        # Runs that differ in batch size or dtype alone share a cell, so the newest goes in last.
        by_age = sorted(records, key=lambda record: record.time)
        self.cells = {(row_of[record.row], _column_key(record)): record for record in by_age}
        self.rows, self.columns = tuple(rows), _columns(records)
        self.baseline, self.confidence = baseline, confidence

    @property
    def shown(self) -> tuple[Column, ...]:
        """The columns of text, Markdown and plot: without a metric of many variants, if others are left."""
        variants = Counter((column.suite, column.metric) for column in self.columns)
        shown = tuple(c for c in self.columns if variants[c.suite, c.metric] <= _MANY)
        return shown or self.columns

    def cell(self, row: str, column: Column) -> Record | None:
        return self.cells.get((row, column.key))

    def held(self, column: Column) -> list[tuple[str, Record]]:
        """(row, record) of each cell of ``column`` that was run."""
        found = [(row, self.cell(row, column)) for row in self.rows]
        return [(row, record) for row, record in found if record is not None]

    def interval(self, record: Record) -> tuple[float, float] | None:
        """Both ends in percent, or None where the value is no share of right images."""
        if record.correct is None:
            return None
        return wilson_interval(record.correct, record.n, self.confidence)

    def delta(self, row: str, column: Column) -> float | None:
        """Difference to the baseline in the column's unit; None on its own row or without both."""
        record = self.cell(row, column)
        base = self.cell(self.baseline, column) if self.baseline is not None else None
        return None if record is None or base is None or row == self.baseline else record.value - base.value

    def mismatch(self, column: Column) -> str | None:
        """Why the column's rows are not comparable image by image, as far as the records tell."""
        held = self.held(column)
        if len({record.n for _, record in held}) > 1:
            return "n differs: " + _told((f"{record.n}", row) for row, record in held)
        known = [(record.images[:12], row) for row, record in held if record.images is not None]
        if len({images for images, _ in known}) > 1:
            return "the images differ: " + _told((f"set {images}", row) for images, row in known)
        return None

    def best(self, column: Column) -> set[str]:
        """Rows with the column's best value; none where there is but one, or a :meth:`mismatch`."""
        held = self.held(column)
        if len(held) < 2 or self.mismatch(column):
            return set()
        best = (min if column.lower_is_better else max)(record.value for _, record in held)
        return {row for row, record in held if record.value == best}

    def notes(self, column: Column) -> list[str]:
        """What a reader has to know before comparing the column's rows."""
        mismatch = self.mismatch(column)
        notes = [f"{mismatch}; not comparable image by image"] if mismatch else []
        for name in _OF_THE_RUN:
            pairs = self._run_setting(name, column)
            if len({value for value, _ in pairs}) > 1:
                notes.append(f"{name} differs: {_told(pairs)}")
        return notes

    def _run_setting(self, name: str, column: Column) -> list[tuple[str, str]]:
        """(value, row) of one of ``_OF_THE_RUN`` in each cell of ``column``."""
        return [(_show(record.protocol.get(name, "not given")), row) for row, record in self.held(column)]

    def row_name(self, row: str) -> str:
        """The row as it is shown."""
        return f"{row} (baseline)" if row == self.baseline else row

    def to_text(self, *, best: bool = False, width: int | None = None) -> str:
        """Aligned columns for a terminal; in groups of at most ``width`` characters where that is given."""
        names = [self.row_name(row) for row in self.rows]
        side = max(len("label"), *map(len, names))
        stub = [line.ljust(side) for line in ("label", "-" * side, *names)]
        blocks = [
            _block(
                [*textwrap.wrap(column.title, 30), self._subtitle(column)],
                [self._pieces(row, column, "{}*", best) for row in self.rows],
            )
            for column in self.shown
        ]
        lines = []
        for group in _groups(blocks, None if width is None else width - side):
            lines += [*_beside([stub, *group]), ""]
        below = [*self._legend("*", best), "", *self._protocol_lines(str, "{}", "  ")]
        if width is not None:
            below = [textwrap.fill(line, max(width, 40), **_FOLDED) for line in below]
        return "\n".join([*lines, *below]) + "\n"

    def to_markdown(self, *, best: bool = False) -> str:
        """A GitHub table with the protocols beneath it."""
        heads = [_escape(f"{column.title}, {self._subtitle(column)}") for column in self.shown]
        lines = ["| label | " + " | ".join(heads) + " |", "|:--|" + "--:|" * len(heads)]
        for row in self.rows:
            cells = [self._pieces(row, column, "**{}**", best) for column in self.shown]
            texts = [" ".join(piece for piece in pieces if piece) for pieces in cells]
            lines.append(f"| {_escape(self.row_name(row))} | " + " | ".join(texts) + " |")
        legend = [line for text in self._legend("bold", best) for line in (_escape(text), "")]
        return "\n".join([*lines, "", *legend, *self._protocol_lines(_escape, "### {}\n", "- ")]) + "\n"

    def to_csv(self) -> str:
        """A line a measurement, in full precision; what was not run has no line.

        A field that does not apply (no interval, no baseline's number) is empty; ``delta`` is
        the last one where there is a baseline.
        """
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow((*_CSV, "delta") if self.baseline is not None else _CSV)
        for row in self.rows:
            for column in self.columns:
                record = self.cell(row, column)
                if record is not None:
                    low, high = self.interval(record) or (None, None)
                    numbers = (record.value, low, high, record.n, record.correct, record.unit)
                    protocol = json.dumps(record.protocol, sort_keys=True)
                    line = (row, column.title, *numbers, record.suite, record.metric, protocol)
                    delta = (self.delta(row, column),) if self.baseline is not None else ()
                    writer.writerow((*line, *delta))  # csv writes None as an empty field
        return stream.getvalue()

    def _numbered(self) -> dict[str, int]:
        """Numbers of the columns that have notes, by key."""
        noted = [column.key for column in self.shown if self.notes(column)]
        return {key: number for number, key in enumerate(noted, start=1)}

    def _subtitle(self, column: Column) -> str:
        counts = {record.n for _, record in self.held(column)}
        n = f"n={counts.pop()}" if len(counts) == 1 else "n differs"
        number = self._numbered().get(column.key)
        return ", ".join(part for part in (column.unit, n) if part) + (f" ({number})" if number else "")

    def _pieces(self, row: str, column: Column, mark: str, best: bool) -> list[str]:
        """A cell's value, difference, interval and, where the heading has none, n; what it lacks is ""."""
        record = self.cell(row, column)
        if record is None:
            return [NOT_RUN]
        value = _number(record.value, record.unit)
        delta, ends = self.delta(row, column), self.interval(record)
        same_n = len({other.n for _, other in self.held(column)}) == 1
        return [
            mark.format(value) if best and row in self.best(column) else value,
            "" if delta is None else f"({_number(delta, record.unit, '+')})",
            "" if ends is None else f"[{ends[0]:.2f}, {ends[1]:.2f}]",
            "" if same_n else f"n={record.n}",
        ]

    def _legend(self, mark: str, best: bool) -> list[str]:
        lines = []
        if any(record.correct is not None for record in self.cells.values()):
            lines.append(f"[low, high]: {100 * self.confidence:g}% Wilson interval; n: images.")
        if best:
            lines.append(f"{mark}: best of its column; none where the rows are not comparable.")
        if self.baseline is not None:
            lines.append(f"(+x): difference to {self.baseline}, in points where the unit is %.")
        numbers = self._numbered()
        for column in self.shown:
            lines += [f"({numbers[column.key]}) {column.title}: {note}." for note in self.notes(column)]
        hidden = Counter(f"{c.suite} {c.metric}" for c in self.columns if c not in self.shown)
        return lines + [f"{name}: {count} variants, each in the CSV." for name, count in hidden.items()]

    def _protocol_lines(self, escape: Callable[[str], str], heading: str, bullet: str) -> list[str]:
        """Everything needed to measure the numbers again, under three headings."""
        lines = [heading.format("Protocol of each column")]
        for column in self.shown:
            run = {name: _told(self._run_setting(name, column)) for name in _OF_THE_RUN}
            given = {name: told for name, told in run.items() if told != "not given"}
            told = _settings({**column.protocol, **given}) or "no settings recorded"
            lines.append(bullet + escape(f"{column.title}: {told}"))
        lines += ["", heading.format("Model of each row")]
        for row in self.rows:
            cells = [(column.title, self.cell(row, column)) for column in self.columns]
            told = _row_line([(title, record) for title, record in cells if record is not None])
            lines.append(bullet + escape(f"{row}: {told}"))
        lines += ["", heading.format("Versions")]
        versions = [(_settings(record.versions), row) for (row, _), record in self.cells.items()]
        return [*lines, *(bullet + escape(told or "not recorded") for told in _spread(versions))]


def _row_line(held: Sequence[tuple[str, Record]]) -> str:
    """Model, checkpoint, weights, normalisation, seed, machine and date of one row's records."""
    first = held[0][1]
    checkpoint = first.checkpoint or "no checkpoint file"
    if first.checkpoint_sha256:
        checkpoint += f" (sha256 {first.checkpoint_sha256[:12]})"
    parts = [first.model, checkpoint]
    if first.weights or first.ema:
        parts.append(f"{'EMA weights' if first.ema else 'weights'} {first.weights or ''}".strip())
    for name in _OF_THE_MODEL:
        pairs = [(_show(record.protocol[name]), title) for title, record in held if name in record.protocol]
        if pairs:
            parts.append(f"{name} {_told(pairs)}")
    seeds = [(f"{record.seed}", title) for title, record in held if record.seed is not None]
    parts.append("seed " + (_told(seeds) or "none"))
    parts.append("on " + _told((record.machine or "a machine not recorded", title) for title, record in held))
    days = sorted({record.created[:10] for _, record in held})
    parts.append("measured " + (days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"))
    return ", ".join(parts)


def _require_rows(names: Sequence[str], rows: Sequence[str], what: str) -> None:
    unknown = [name for name in names if name not in rows]
    if unknown:
        raise OptionError(
            f"unknown {what}: expected one of {', '.join(map(repr, dict.fromkeys(rows)))}, "
            f"found {unknown[0]!r}. Give a label as it stands in the table."
        )


def _row_names(records: Sequence[Record]) -> dict[tuple[object, ...], str]:
    """A name for each :attr:`Record.row`: the label, with what tells rows of one label apart."""
    firsts: dict[tuple[object, ...], Record] = {}
    for record in records:
        firsts.setdefault(record.row, record)
    names = {}
    for row, record in firsts.items():
        peers = [_traits(other) for other in firsts.values() if other.label == record.label]
        apart = [index for index, seen in enumerate(zip(*peers, strict=True)) if len(set(seen)) > 1]
        traits = ", ".join(_traits(record)[index] for index in apart)
        names[row] = f"{record.label} [{traits}]" if traits else record.label
    return names


def _traits(record: Record) -> tuple[str, ...]:
    checkpoint = record.checkpoint or "no checkpoint"
    sha256 = f"sha256 {record.checkpoint_sha256[:8]}" if record.checkpoint_sha256 else "no hash"
    weights = record.weights or "weights not named"
    return (record.model, checkpoint, sha256, weights, "EMA" if record.ema else "not EMA")


def _column_settings(record: Record) -> dict[str, Any]:
    return {k: v for k, v in record.protocol.items() if k not in (*_OF_THE_MODEL, *_OF_THE_RUN)}


def _column_key(record: Record) -> str:
    what = (record.suite, record.metric, record.unit, _column_settings(record))
    return json.dumps(what, sort_keys=True)


def _columns(records: Sequence[Record]) -> tuple[Column, ...]:
    """The columns as first seen; titles of variants name the settings in which they differ."""
    firsts: dict[str, Record] = {}
    for record in records:
        firsts.setdefault(_column_key(record), record)
    columns = []
    for key, record in firsts.items():
        suite, metric, unit, settings = record.suite, record.metric, record.unit, _column_settings(record)
        peers = [
            {"unit": peer.unit, **_column_settings(peer)}
            for peer in firsts.values()
            if (peer.suite, peer.metric) == (suite, metric)
        ]
        names = dict.fromkeys(name for peer in peers for name in peer)
        padded = [{name: peer.get(name, "not given") for name in names} for peer in peers]
        differing = [name for name in names if len({json.dumps(peer[name]) for peer in padded}) > 1]
        mine = {name: {"unit": unit, **settings}.get(name, "not given") for name in differing}
        variant = _settings(mine)
        if [_settings({name: peer[name] for name in differing}) for peer in padded].count(variant) > 1:
            variant = json.dumps(mine)  # they differ beyond the digits that are shown
        title = f"{suite} {metric} ({variant})" if variant else f"{suite} {metric}"
        columns.append(Column(key, title, suite, metric, unit, settings))
    return tuple(columns)


def _block(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """One column's lines, all equally wide: heads, a rule, and cells whose pieces stand under each other."""
    full = [pieces for pieces in cells if len(pieces) > 1]
    widths = [max(map(len, pieces)) for pieces in zip(*full, strict=True)]
    texts = [
        " ".join(piece.rjust(width) for piece, width in zip(pieces, widths, strict=False) if width) for pieces in cells
    ]
    width = max(map(len, [*heads, *texts]))
    return [line.rjust(width) for line in (*heads, "-" * width, *texts)]


def _groups(blocks: Sequence[list[str]], width: int | None) -> list[list[list[str]]]:
    """The blocks in order, as many in a group as ``width`` characters hold, but one at least."""
    groups: list[list[list[str]]] = [[]]
    used = 0
    for block in blocks:
        used += len(block[0]) + 2
        if groups[-1] and width is not None and used > width:
            groups.append([])
            used = len(block[0]) + 2
        groups[-1].append(block)
    return groups


def _beside(blocks: Sequence[list[str]]) -> list[str]:
    """Blocks side by side, standing on one line."""
    tall = max(map(len, blocks))
    padded = [[" " * len(block[0])] * (tall - len(block)) + block for block in blocks]
    return ["  ".join(parts).rstrip() for parts in zip(*padded, strict=True)]


def _escape(text: str) -> str:
    """``text`` as Markdown shows it literally, also in a table; underscores inside words stay as they are."""
    text = re.sub(r"([\\|*`<>\[\]~#&])", r"\\\1", text)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
