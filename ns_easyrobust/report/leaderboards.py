"""Records in the forms that leaderboards take: EasyRobust's submission and RobustBench's model info, both JSON.

Sources: alibaba/easyrobust, .github/ISSUE_TEMPLATE/submit-model.md; RobustBench/robustbench,
model_info/imagenet/Linf/*.json. What records do not know (authors, links, training data) comes from
the user's file or stays empty.
"""

from __future__ import annotations

import html
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.benchmarks import ROBUSTBENCH, released_images
from ..errors import OptionError
from ..evaluation.per_image import load_right
from ..evaluation.protocols import PRESETS
from ..evaluation.records import Record
from .columns import Column
from .paired import other_task
from .table import Grid, require_rows
from .wording import show

_logger = logging.getLogger(__name__)
_EPSILON = 4 / 255  # of AutoAttack on both leaderboards

# EasyRobust's keys, and the suite and metric behind those that are numbers.
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
# What comes from people; the keys of both forms, so that one file can serve both.
_EASYROBUST_WORDS = ("date", "extra_data", "model", "institution", "paper_link", "code_link", "architecture",
                     "training framework", "files")  # fmt: skip
_ROBUSTBENCH_WORDS = ("link", "name", "authors", "additional_data", "venue", "architecture", "reported", "unreliable")
_SWITCHES = ("advrob_imgcls_leaderboard", "oodrob_imgcls_leaderboard", "advrob_objdet_leaderboard",
             "oodrob_objdet_leaderboard")  # fmt: skip
_SWITCHED_ON = {"ood": "oodrob_imgcls_leaderboard", "adversarial": "advrob_imgcls_leaderboard"}


def easyrobust_form(
    grid: Grid, row: str | None, *, leaderboard: str = "ood", preset: str | None = None, about: Mapping[str, Any]
) -> dict[str, Any]:
    """The submission of one row to an EasyRobust image classification leaderboard, with the template's keys.

    Args:
        row: of the grid; None where it has but one.
        leaderboard: of :data:`LEADERBOARDS`.
        preset: whose records are taken; its leaderboard is of preset "easyrobust".
        about: what records do not hold, by the template's keys.

    Raises:
        OptionError: an unknown row or key, or a number's record is missing or not of the whole released set.
    """
    row = _chosen(grid, row)
    if preset != "easyrobust":
        _logger.warning(
            "--submit: these numbers are of protocol %s; EasyRobust's leaderboard is of its benchmark.py", preset
        )
    found = {key: _find(grid, row, *what, preset, _allowed(what[0])) for key, what in LEADERBOARDS[leaderboard].items()}
    absent = [LEADERBOARDS[leaderboard][key] for key, record in found.items() if record is None]
    if absent := [what for what in absent if what != _OOD["objectnet"]]:  # its own benchmark.py leaves that one out
        raise _missing(row, absent, preset)
    numbers: dict[str, float | None] = {}
    for key, record in found.items():
        if record is not None:
            _require_whole(record, _allowed(record.suite))
        numbers[key] = None if record is None else round(record.value, 2)
    words = dict.fromkeys(_EASYROBUST_WORDS, "")
    words |= {"model": f"<b>{html.escape(row)}</b>", "architecture": grid.of_row(row)[0][1].model}
    switches = {name: name == _SWITCHED_ON[leaderboard] for name in _SWITCHES}
    form = _filled({**words, **numbers}, about, "--submit")
    files = form.pop("files")
    return {**form, "files": files, **switches}


def robustbench_form(
    grid: Grid, row: str | None, *, preset: str | None = None, about: Mapping[str, Any]
) -> dict[str, Any]:
    """RobustBench's model info for ImageNet, L-infinity at 4/255, with clean accuracy on AutoAttack's own images.

    Arguments and errors as :func:`easyrobust_form`; also OptionError where AutoAttack's images are others
    than RobustBench's 5000, or which of them are right without attack is not known.
    """
    row = _chosen(grid, row)
    attacked = _find(grid, row, "autoattack", "top1", preset, ("robustbench",))
    if attacked is None:
        raise _missing(row, [_ADVERSARIAL["autoattack"]], preset)
    _require_whole(attacked, ("robustbench",))
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
        "eps": show(attacked.protocol["epsilon"]),
        "clean_acc": f"{_clean_on_same_images(grid, row, attacked):.2f}",
        "reported": accuracy,
        "autoattack_acc": accuracy,
        "unreliable": None,
    }
    return _filled(blank, about, "--robustbench")


def read_about(path: Path | None) -> dict[str, Any]:
    """The user's JSON object of what records do not hold; {} without a file.

    Raises:
        OptionError: no such file, or no JSON object.
    """
    if path is None:
        return {}
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        found = getattr(error, "strerror", None) or error
        raise OptionError(f"--about {path}: expected a JSON file, found: {found}. Mend it.") from error
    if not isinstance(told, dict):
        raise OptionError(f"--about {path}: expected a JSON object, found {type(told).__name__}. Mend it.")
    return told


def _filled(blank: Mapping[str, Any], about: Mapping[str, Any], flag: str) -> dict[str, Any]:
    """``blank`` with the user's words in it; a log line names what stays empty."""
    unknown = [key for key in about if key not in (*_EASYROBUST_WORDS, *_ROBUSTBENCH_WORDS)]
    if unknown:
        raise OptionError(
            f"--about: expected keys of {', '.join(dict.fromkeys((*_EASYROBUST_WORDS, *_ROBUSTBENCH_WORDS)))}, "
            f"found {unknown[0]!r}. What was measured comes from records; take that key out."
        )
    form = {**blank, **{key: about[key] for key in blank if key in about}}
    empty = ", ".join(key for key, value in form.items() if value in ("", None))
    if empty:
        _logger.warning("%s: left empty, as the records do not hold it: %s. Give --about FILE.json.", flag, empty)
    return form


def _chosen(grid: Grid, row: str | None) -> str:
    if row is not None:
        require_rows([row], grid.rows, "--row")
        return row
    if len(grid.rows) > 1:
        raise OptionError(
            f"leaderboard forms: expected one row, found {', '.join(map(repr, grid.rows))}. Choose one with --row."
        )
    return grid.rows[0]


def _allowed(suite: str) -> tuple[str, ...]:
    """The subsets that EasyRobust's leaderboards take."""
    return ("all", "robustbench") if suite == "autoattack" else ("all",)


def _find(grid: Grid, row: str, suite: str, metric: str, preset: str | None, allowed: tuple[str, ...]) -> Record | None:
    """The row's record of one measurement, a whole one where there is one; of AutoAttack at L-infinity 4/255."""
    found = [
        record
        for column, record in grid.of_row(row)
        if (column.suite, column.metric, column.protocol.get("preset")) == (suite, metric, preset)
        and (suite != "autoattack" or _leaderboards_attack(column))
    ]
    return next((record for record in found if _is_whole(record, allowed)), found[0] if found else None)


def _missing(row: str, absent: Sequence[tuple[str, str]], preset: str | None) -> OptionError:
    radius = {"autoattack": " at L-infinity 4/255 (benchmark --adv)"}
    what = ", ".join(f"{suite} {metric}{radius.get(suite, '')}" for suite, metric in absent)
    flag = f" with --protocol {preset}" if preset in PRESETS else ""
    return OptionError(
        f"{row}: expected records of {what} under protocol {preset}, found none. "
        f"Run ns-easyrobust benchmark{flag} for them."
    )


def _leaderboards_attack(column: Column) -> bool:
    epsilon = column.protocol.get("epsilon")
    near = isinstance(epsilon, float) and abs(epsilon - _EPSILON) < 1e-9
    return near and str(column.protocol.get("norm")).lower() == "linf"


def _subset(record: Record) -> str:
    return str(record.protocol.get("subset", "all"))


def _whole(record: Record) -> int:
    """How many images its subset has in the released set."""
    return ROBUSTBENCH if _subset(record) == "robustbench" else released_images(record.suite)


def _is_whole(record: Record, allowed: tuple[str, ...]) -> bool:
    return _subset(record) in allowed and record.n == _whole(record)


def _require_whole(record: Record, allowed: tuple[str, ...]) -> None:
    if _subset(record) not in allowed:
        raise OptionError(
            f"{record.label}, {record.suite}: expected images {' or '.join(allowed)} for a leaderboard, found a record "
            f"of subset {_subset(record)} (n={record.n}). Measure it on those."
        )
    if not _is_whole(record, allowed):
        raise OptionError(
            f"{record.label}, {record.suite}: expected the {_whole(record)} images of the released set for a "
            f"leaderboard, found a record of {record.n}. Complete the folder (ns-easyrobust doctor counts it) and "
            "measure again."
        )


def _clean_on_same_images(grid: Grid, row: str, attacked: Record) -> float:
    """Clean accuracy in percent on the images of ``attacked``, from the bits of the validation set where need be."""
    seen = ("preset", "resize", "crop", "interpolation", "dtype")
    clean = [
        record
        for column, record in grid.of_row(row)
        if (column.suite, column.metric) == ("imagenet-val", "top1")
        and all(record.protocol.get(name) == attacked.protocol.get(name) for name in seen)
    ]
    for record in clean:
        if record.images == attacked.images and attacked.images is not None and not other_task(record, attacked):
            return record.value
    for record in clean:
        if record.right_path is not None and attacked.right_path is not None:
            right = dict(zip(*load_right(record.right_path), strict=True))
            chosen = load_right(attacked.right_path)[0]
            if all(path in right for path in chosen):
                return 100 * sum(bool(right[path]) for path in chosen) / len(chosen)
    raise OptionError(
        f"{row}: expected clean accuracy on AutoAttack's {attacked.n} images, found no imagenet-val prepared "
        "alike that holds them. Run suite val on all images, or on the same subset."
    )
