"""What a training costs, from its flags: in forward-equivalents, before anything is built."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from .augmentations.flags import check_augmentation_args, companion_costs
from .image_flags import clean_forward_equivalents
from .sam import sam_from_args


@dataclass(frozen=True)
class TrainingCost:
    """Forward passes for each image of a batch: a backward to the weights counts 2, one to the input alone 1.

    Attributes:
        update: of an update.
        synthesis: of what precedes the first of every ``interval`` updates, at most: a search may end sooner.

    Example:
        >>> cost = TrainingCost(6, synthesis=300, interval=40)
        >>> cost.of(41), cost.updates_within(cost.of(41) - 1)
        (846, 40)
    """

    update: float
    synthesis: float = 0.0
    interval: int = 1

    def of(self, updates: int) -> float:
        """The cost of so many updates, with the syntheses that they need at most."""
        return self.update * updates + self.synthesis * math.ceil(updates / self.interval)

    def updates_within(self, budget: float) -> int:
        """The most updates whose cost is within ``budget``."""
        interval = self.update * self.interval + self.synthesis
        whole = math.floor(budget / interval + 1e-9)
        rest = math.floor((budget - whole * interval - self.synthesis) / self.update + 1e-9)
        return whole * self.interval + max(0, rest)

    def __str__(self) -> str:
        synthesis = f" and at most {self.synthesis:g} every {self.interval}" if self.synthesis else ""
        return f"{self.update:g} an update{synthesis}"


def training_cost(args: argparse.Namespace, *, with_files: bool = True) -> TrainingCost:
    """The cost of ``train`` with the parsed flags ``args``.

    An update is the clean loss, 3, once for each of AugMix's views; and the companions' own, less 3 where one replaces
    the clean loss; all twice with SAM, and as often as ``--grad-accum-steps`` says.

    Args:
        with_files: whether the companions' files have to be there, which cost nothing but may be lacking.

    Raises:
        OptionError: a companion's setting is out of range.
        DataError: a companion's folder is missing.
    """
    if with_files:
        check_augmentation_args(args)
    companion, synthesis = companion_costs(args)
    passes = sam_from_args(args).passes * args.grad_accum_steps
    update = (clean_forward_equivalents(args) + companion) * passes
    return TrainingCost(update, synthesis, args.ns_interval if synthesis else 1)
