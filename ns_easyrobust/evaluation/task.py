"""What is tried on which images: the words in which the judge is told what to measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..data.image_list import ImageList
from .recorder import Judged, Recorder

# (model, pixels, labels, a seed for each image) to adversarial pixels
Attack = Callable[[nn.Module, torch.Tensor, torch.Tensor, Sequence[int]], torch.Tensor]
Finish = Callable[[Recorder, dict[str, Any], Judged], None]


@dataclass(frozen=True)
class Trial:
    """One measurement on a part's images.

    Attributes:
        suite: the record's.
        protocol: what is particular to it, as an attack's parameters.
        attack: None judges the images as they are.
        clean_first: the attack's first forward is of the untouched images, so that its logits
            can serve the trial without an attack.
        draws: whether the attack draws random numbers, so that the seed is part of the measurement.
        also: top-1 records that ``finish`` adds, each by what it changes in the protocol.
        finish: what is recorded beside top-1.
        title: on the progress bar.
    """

    suite: str
    protocol: Mapping[str, Any] = field(default_factory=dict)
    attack: Attack | None = None
    clean_first: bool = False
    draws: bool = False
    also: Sequence[Mapping[str, Any]] = ()
    finish: Finish | None = None
    title: str = ""

    @property
    def name(self) -> str:
        return self.title or self.suite


@dataclass(frozen=True)
class Part:
    """Images, opened when their turn comes, and the trials on them.

    Attributes:
        open: the list; its own transform is not used.
        transform: RGB image to pixels. It is here, and not in the list, so that data workers inherit it:
            a lambda cannot be sent to them.
        protocol: what its records say beside the transform, the batch size and the trial's own.
    """

    open: Callable[[], ImageList]
    transform: Any
    batch_size: int
    trials: Sequence[Trial]
    protocol: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """A trial's result, measured now or found in the records."""

    n: int
    correct: int

    @property
    def top1(self) -> float:
        """Percent right."""
        return 100 * self.correct / self.n
