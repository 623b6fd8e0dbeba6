"""What an update costs, from the flags of a run: in forward-equivalents, before anything is built."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from .augmentations.flags import check_noise_args, config_from_args

_CLEAN = 3.0  # a forward, and a backward to the weights, which counts 2


@dataclass(frozen=True)
class UpdateCost:
    """The forward passes that an update is worth, for each image of its batch.

    Attributes:
        forwards: a forward of the model counts 1, a backward to the weights 2, one to the input alone 1.
        is_bound: they are the most that it can be: a synthesis of noise may end before its last step.
    """

    forwards: float
    is_bound: bool = False

    def __str__(self) -> str:
        return f"{'at most ' * self.is_bound}{self.forwards:g}"


def update_cost(args: argparse.Namespace) -> UpdateCost:
    """The cost of an update of ``train`` with the parsed flags ``args``.

    The clean loss 3, once for each of AugMix's splits; the companions' own, less 3 where one replaces the clean loss;
    all twice with SAM. A noise's synthesis is shared by ``--ns-interval`` updates and counts as if it took all steps.

    Raises:
        OptionError: a companion's setting is out of range.
    """
    check_noise_args(args)
    total = _CLEAN
    if args.aug != "none":
        total += 3.0 + 3.0 * config_from_args(args).max_steps / args.ns_interval
    return UpdateCost(total, is_bound=args.aug != "none")
