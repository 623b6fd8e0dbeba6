"""What a study keeps in a run's folder: the flags that made the run, its costs, and what of it is done."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import DataError, OptionError
from ..utils import parse_json, read_bounded, write_text
from .study_plan import LAST, Run

_NAME = "study.json"
_MOST_BYTES = 2**20


@dataclass
class RunRecord:
    """The state of a run.

    Attributes:
        flags: that decide its weights.
        updates, forward_equivalents: of the whole training; the latter at most, for each image of a batch.
        seconds: of the training, once the model was built, with those whose work was lost in a kill.
        trained: whether the training has ended.
        measured: the words of the evaluations that have ended.
    """

    flags: dict[str, Any] = field(default_factory=dict)
    updates: int = 0
    forward_equivalents: float = 0.0
    seconds: float = 0.0
    trained: bool = False
    measured: list[list[str]] = field(default_factory=list)

    def write(self, run: Run) -> None:
        """Write it into the run's folder, atomically."""
        write_text(run.folder / _NAME, json.dumps(asdict(self), indent=1, sort_keys=True) + "\n")

    def lacks(self, run: Run) -> list[str]:
        """What is still to be done: ``train``, and the labels of evaluations."""
        to_train = run.train is not None and not (self.trained and (run.folder / LAST).is_file())
        done = [] if not run.results.exists() else self.measured
        return ["train"] * to_train + [label for label, step in run.measuring.items() if list(step.words) not in done]


def record_of(run: Run) -> RunRecord | None:
    """The record in a run's folder; None where it has not begun.

    Raises:
        DataError: the file holds something else.
    """
    path = run.folder / _NAME
    try:
        content = parse_json(read_bounded(path, _MOST_BYTES))
        record = RunRecord(**content)
        for name, value in asdict(RunRecord()).items():
            if not isinstance(getattr(record, name), (int, float) if isinstance(value, float) else type(value)):
                raise ValueError(f"an odd {name}")
    except FileNotFoundError:
        return None
    except (OSError, TypeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{path}: expected a study's record of a run, found: {reason}. Move {run.folder} away to begin anew."
        ) from error
    return record


def require_unchanged(runs: Sequence[Run], defaults: Mapping[str, Any]) -> None:
    """Raise OptionError if a run would go on, or count, that was begun with other flags.

    Args:
        defaults: of the flags: what a version that did not know a flag did is what its default does.
    """
    for run in runs:
        record = record_of(run)
        if record is None or run.train is None:
            continue
        for name in sorted({*record.flags, *run.flags}):
            before, now = (flags.get(name, defaults.get(name)) for flags in (record.flags, run.flags))
            if before != now:
                raise OptionError(
                    f"{run.name}: {name}: expected {before}, with which the run in {run.folder} began, found {now}. "
                    "Give the study the same flags, the method another name, or another --output."
                )
