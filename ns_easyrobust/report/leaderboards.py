"""Leaderboard forms filled in from records: EasyRobust's submission and RobustBench's model info, both JSON.

Sources: alibaba/easyrobust, .github/ISSUE_TEMPLATE/submit-model.md; RobustBench/robustbench,
model_info/imagenet/Linf/*.json. What records do not hold (authors, links, training data) comes from
the user's file or stays empty.
"""

from __future__ import annotations

import html
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data import IMAGENET_CLASSES, ROBUSTBENCH
from ..errors import OptionError
from ..evaluation import PRESETS, Record, load_correctness, released_images
from ..utils import parse_json, read_bounded, require_bounded
from .columns import Column, require_rows
from .presentable import presentable
from .sheet import format_value
from .statistics import tasks_differ
from .table import ResultsTable

_logger = logging.getLogger(__name__)
_LONGEST_ABOUT = 2**20  # bytes
_EPSILON = 4 / 255  # L-infinity radius of AutoAttack on both leaderboards

# EasyRobust's keys that take numbers, with the (suite, metric) that gives each.
_CLEAN = {"ImageNet-val": ("imagenet-val", "top1")}
_OOD = {
    **_CLEAN,
    "imagenet-v2": ("imagenet-v2", "top1"),
    "imagenet-c": ("imagenet-c", "mce"),
    "imagenet-r": ("imagenet-r", "top1"),
    "imagenet-a": ("imagenet-a", "top1"),
    "imagenet-sketch": ("imagenet-sketch", "top1"),
    "stylized-imagenet": ("imagenet-stylized", "top1"),
    "objectnet": ("objectnet", "top1"),
}
_ADVERSARIAL = {**_CLEAN, "autoattack": ("autoattack", "top1")}
LEADERBOARDS = {"ood": _OOD, "adversarial": _ADVERSARIAL}
# Keys that the user's file may fill in; those of both forms are accepted, so that one file can serve both.
_EASYROBUST_ABOUT = ("date", "extra_data", "model", "institution", "paper_link", "code_link", "architecture",
                     "training framework", "files")  # fmt: skip
_ROBUSTBENCH_ABOUT = ("link", "name", "authors", "additional_data", "venue", "architecture", "reported", "unreliable")
_SWITCHES = ("advrob_imgcls_leaderboard", "oodrob_imgcls_leaderboard", "advrob_objdet_leaderboard",
             "oodrob_objdet_leaderboard")  # fmt: skip
_LEADERBOARD_SWITCH = {"ood": "oodrob_imgcls_leaderboard", "adversarial": "advrob_imgcls_leaderboard"}


def easyrobust_form(
    table: ResultsTable,
    row: str | None,
    *,
    leaderboard: str = "ood",
    preset: str | None = None,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """The submission of one row to an EasyRobust image classification leaderboard, with the template's keys.

    Args:
        row: a row of the table; None if the table has only one.
        leaderboard: a key of :data:`LEADERBOARDS`.
        preset: the preset whose records are used; the leaderboard's own is "easyrobust".
        about: what records do not hold, by the template's keys.

    Raises:
        OptionError: an unknown row or key, or the record of a number is missing or not of the whole released set.
    """
    row = _choose_row(table, row)
    _require_imagenet(table, row)
    if preset != "easyrobust":
        _logger.warning(
            "--submit: these numbers are of protocol %s; EasyRobust's leaderboard is of its benchmark.py", preset
        )
    records = {
        key: _find_record(table, row, *quantity, preset, _allowed_subsets(quantity[0]))
        for key, quantity in LEADERBOARDS[leaderboard].items()
    }
    absent = [LEADERBOARDS[leaderboard][key] for key, record in records.items() if record is None]
    # EasyRobust's own benchmark.py leaves ObjectNet out.
    if absent := [quantity for quantity in absent if quantity != _OOD["objectnet"]]:
        raise _missing_error(row, absent, preset)
    numbers: dict[str, float | None] = {}
    for key, record in records.items():
        if record is not None:
            _require_complete(record, _allowed_subsets(record.suite))
        numbers[key] = None if record is None else round(record.value, 2)
    fields = dict.fromkeys(_EASYROBUST_ABOUT, "")
    fields |= {"model": f"<b>{html.escape(row)}</b>", "architecture": table.row_records(row)[0][1].model}
    switches = {name: name == _LEADERBOARD_SWITCH[leaderboard] for name in _SWITCHES}
    form = _fill_in({**fields, **numbers}, about, "--submit")
    files = form.pop("files")
    return {**form, "files": files, **switches}


def robustbench_form(
    table: ResultsTable, row: str | None, *, preset: str | None = None, about: Mapping[str, Any]
) -> dict[str, Any]:
    """RobustBench's model info for ImageNet, L-infinity at 4/255; its clean accuracy is on the attacked images.

    Arguments and errors as in :func:`easyrobust_form`; OptionError is also raised if AutoAttack's images are
    not RobustBench's 5000, or if it is not known which of them are correct without the attack.
    """
    row = _choose_row(table, row)
    _require_imagenet(table, row)
    attacked = _find_record(table, row, "autoattack", "top1", preset, ("robustbench",))
    if attacked is None:
        raise _missing_error(row, [_ADVERSARIAL["autoattack"]], preset)
    _require_complete(attacked, ("robustbench",))
    accuracy = f"{attacked.value:.2f}"
    blank = {
        "link": "",
        "name": "",
        "authors": "",
        "additional_data": None,
        "number_forward_passes": 1,
        "dataset": "imagenet",
        "venue": "",
        "architecture": attacked.model,
        "eps": format_value(attacked.protocol["epsilon"]),
        "clean_acc": f"{_clean_on_same_images(table, row, attacked):.2f}",
        "reported": accuracy,
        "autoattack_acc": accuracy,
        "unreliable": None,
    }
    return _fill_in(blank, about, "--robustbench")


def read_about(path: Path | None) -> dict[str, Any]:
    """The user's JSON object with what records do not hold; {} if ``path`` is None.

    Raises:
        OptionError: the file cannot be read, or does not hold a JSON object of reasonable size and finite numbers.
    """
    if path is None:
        return {}
    try:
        content = parse_json(read_bounded(path, _LONGEST_ABOUT))
        require_bounded(content)
        json.dumps(content, allow_nan=False)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OptionError(f"--about {path}: expected a JSON file, found: {reason}. Mend it.") from error
    if not isinstance(content, dict):
        raise OptionError(f"--about {path}: expected a JSON object, found {type(content).__name__}. Mend it.")
    return content


def _fill_in(blank: Mapping[str, Any], about: Mapping[str, Any], flag: str) -> dict[str, Any]:
    """``blank`` with the user's values filled in; a warning names the fields that stay empty."""
    unknown = [key for key in about if key not in (*_EASYROBUST_ABOUT, *_ROBUSTBENCH_ABOUT)]
    if unknown:
        raise OptionError(
            f"--about: expected keys of {', '.join(dict.fromkeys((*_EASYROBUST_ABOUT, *_ROBUSTBENCH_ABOUT)))}, "
            f"found {unknown[0]!r}. What was measured comes from records; take that key out."
        )
    form = {**blank, **{key: about[key] for key in blank if key in about}}
    empty = ", ".join(key for key, value in form.items() if value in ("", None))
    if empty:
        _logger.warning("%s: left empty, as the records do not hold it: %s. Give --about FILE.json.", flag, empty)
    return form


def _choose_row(table: ResultsTable, row: str | None) -> str:
    if row is not None:
        row = presentable(row)
        require_rows([row], table.rows, "--row")
        return row
    if len(table.rows) > 1:
        raise OptionError(
            f"leaderboard forms: expected one row, found {', '.join(map(repr, table.rows))}. Choose one with --row."
        )
    return table.rows[0]


def _require_imagenet(table: ResultsTable, row: str) -> None:
    for _, record in table.row_records(row):
        if record.of_own_classes:
            raise OptionError(
                f"{row}: expected a model of ImageNet's {IMAGENET_CLASSES} classes for a leaderboard, found one of "
                f"{record.outputs}."
            )


def _allowed_subsets(suite: str) -> tuple[str, ...]:
    """The subsets of a suite that EasyRobust's leaderboards accept."""
    return ("all", "robustbench") if suite == "autoattack" else ("all",)


def _find_record(
    table: ResultsTable, row: str, suite: str, metric: str, preset: str | None, allowed: tuple[str, ...]
) -> Record | None:
    """The row's record of this suite and metric, preferably a complete one; of AutoAttack only at L-infinity 4/255."""
    candidates = [
        record
        for column, record in table.row_records(row)
        if (column.suite, column.metric, column.protocol.get("preset")) == (suite, metric, preset)
        and (suite != "autoattack" or _is_leaderboard_attack(column))
    ]
    return next(
        (record for record in candidates if _is_complete(record, allowed)), candidates[0] if candidates else None
    )


def _missing_error(row: str, absent: Sequence[tuple[str, str]], preset: str | None) -> OptionError:
    radius = {"autoattack": " at L-infinity 4/255 (benchmark --adv)"}
    measurements = ", ".join(f"{suite} {metric}{radius.get(suite, '')}" for suite, metric in absent)
    flag = f" with --protocol {preset}" if preset in PRESETS else ""
    return OptionError(
        f"{row}: expected records of {measurements} under protocol {preset}, found none. "
        f"Run ns-easyrobust benchmark{flag} for them."
    )


def _is_leaderboard_attack(column: Column) -> bool:
    epsilon = column.protocol.get("epsilon")
    same_radius = isinstance(epsilon, float) and abs(epsilon - _EPSILON) < 1e-9
    return same_radius and str(column.protocol.get("norm")).lower() == "linf"


def _subset(record: Record) -> str:
    return str(record.protocol.get("subset", "all"))


def _released_count(record: Record) -> int:
    """The number of images in the released set, or in its RobustBench subset if the record is of that."""
    return ROBUSTBENCH if _subset(record) == "robustbench" else released_images(record.suite)


def _is_complete(record: Record, allowed: tuple[str, ...]) -> bool:
    return _subset(record) in allowed and record.n == _released_count(record)


def _require_complete(record: Record, allowed: tuple[str, ...]) -> None:
    if _subset(record) not in allowed:
        raise OptionError(
            f"{record.label}, {record.suite}: expected images {' or '.join(allowed)} for a leaderboard, found a record "
            f"of subset {_subset(record)} (n={record.n}). Measure it on those."
        )
    if not _is_complete(record, allowed):
        raise OptionError(
            f"{record.label}, {record.suite}: expected the {_released_count(record)} images of the released set for a "
            f"leaderboard, found a record of {record.n}. Complete the folder (ns-easyrobust doctor counts it) and "
            "measure again."
        )


def _clean_on_same_images(table: ResultsTable, row: str, attacked: Record) -> float:
    """Clean accuracy in percent on the images of ``attacked``, if need be from the bits of the validation set."""
    shared_settings = ("preset", "resize", "crop", "interpolation", "dtype")
    clean_records = [
        record
        for column, record in table.row_records(row)
        if (column.suite, column.metric) == ("imagenet-val", "top1")
        and all(record.protocol.get(name) == attacked.protocol.get(name) for name in shared_settings)
    ]
    for record in clean_records:
        if record.images == attacked.images and attacked.images is not None and not tasks_differ(record, attacked):
            return record.value
    for record in clean_records:
        if record.right_path is not None and attacked.right_path is not None:
            bits = dict(zip(*load_correctness(record.right_path), strict=True))
            attacked_paths = load_correctness(attacked.right_path)[0]
            if all(path in bits for path in attacked_paths):
                return 100 * sum(bool(bits[path]) for path in attacked_paths) / len(attacked_paths)
    raise OptionError(
        f"{row}: expected clean accuracy on AutoAttack's {attacked.n} images, found no imagenet-val prepared "
        "alike that holds them. Run suite val on all images, or on the same subset."
    )
