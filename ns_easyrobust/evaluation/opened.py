"""A part whose images are known: what is judged already, and what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..data.transforms import describe_transform, is_described
from ..errors import OptionError
from .journal import Batch
from .recorder import Judged, Recorder
from .records import Record
from .task import Part, Trial


class Opened:
    """The state of one part while it is judged.

    Args:
        finished: records that the results file holds, by identity.
        journaled: batches that a killed run has judged, by identity and number.

    Attributes:
        keys: a trial's identity; "" where nothing of it can be taken up again.
        records: a trial's finished record, or None.
    """

    def __init__(
        self,
        part: Part,
        recorder: Recorder | None,
        finished: Mapping[str, Record],
        journaled: Mapping[str, Mapping[int, Batch]],
    ) -> None:
        self.part, self.images = part, part.open()
        if part.batch_size < 1:
            raise OptionError(f"batch size: expected at least 1, found {part.batch_size}.")
        n = len(self.images)
        self.batches = [range(i, min(i + part.batch_size, n)) for i in range(0, n, part.batch_size)]
        self.protocols = [self._protocol(trial) for trial in part.trials]
        self.task = self.images.task()
        identities = [self._identities(trial, recorder) for trial in range(len(part.trials))]
        self.keys = [found[0] if found else "" for found in identities]
        self.records = [
            finished[found[0]] if found and all(key in finished for key in found) else None for found in identities
        ]
        self.done = [self._fitting(journaled.get(key, {})) if key else {} for key in self.keys]
        self.right = torch.zeros(len(part.trials), n, dtype=torch.float64)
        self.l2 = torch.zeros(len(part.trials), n, dtype=torch.float64)

    def _protocol(self, trial: Trial) -> dict[str, Any]:
        images = self.images
        special = {"classes": len(images.classes)} if images.classes is not None else {}
        special |= {"border": images.border} if images.border else {}
        seen = describe_transform(self.part.transform) | special | {"batch_size": self.part.batch_size}
        return {**self.part.protocol, **seen, **trial.protocol}

    def _identities(self, trial: int, recorder: Recorder | None) -> list[str]:
        """Of the trial's own record first; none where words do not say all of the transform."""
        if recorder is None or not is_described(self.part.transform):
            return []
        settings, protocol = self.part.trials[trial], self.protocols[trial]
        return [
            recorder.identity(settings.suite, protocol | dict(other), self.images.paths, self.task, settings.draws)
            for other in ({}, *settings.also)
        ]

    def _fitting(self, batches: Mapping[int, Batch]) -> dict[int, Batch]:
        sizes = {number: len(members) for number, members in enumerate(self.batches)}
        return {n: b for n, b in batches.items() if len(b[0]) == len(b[1]) == sizes.get(n)}

    def waiting(self, number: int) -> list[int]:
        """Trials that batch ``number`` still has to go through."""
        return [i for i, record in enumerate(self.records) if record is None and number not in self.done[i]]

    def left(self) -> list[int]:
        """Batches with a trial to go; the same on all ranks."""
        return [number for number in range(len(self.batches)) if self.waiting(number)]

    def keep(self, trial: int, number: int, right: Sequence[int], l2: Sequence[float]) -> None:
        """Enter a batch's result."""
        members = self.batches[number]
        self.right[trial, members.start : members.stop] = torch.tensor(right, dtype=torch.float64)
        self.l2[trial, members.start : members.stop] = torch.tensor(l2, dtype=torch.float64)

    def judged(self, trial: int) -> Judged:
        """All of its images, once every batch is in."""
        for number, batch in self.done[trial].items():
            self.keep(trial, number, *batch)
        return Judged(self.images.paths, self.right[trial] > 0.5, self.l2[trial], self.task)
