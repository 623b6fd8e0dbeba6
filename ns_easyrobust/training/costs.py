"""What an update costs, from the flags of a run: in forward-equivalents, before anything is built."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from .augmentations.flags import check_augmentation_args, chosen_names, forward_equivalents
from .augmentations.nullspace import NullspaceAugmentation
from .augmentations.registry import augmentations

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
    all twice with SAM, and as often as ``--grad-accum-steps`` says. A noise's synthesis is shared by ``--ns-interval``
    updates and counts as if it took all its steps.

    Raises:
        OptionError: a companion's setting is out of range.
    """
    check_augmentation_args(args)
    flags = vars(args)
    clean = _CLEAN * max(1, flags.get("aug_splits", 0))
    passes = (2 if flags.get("sam_rho") is not None else 1) * flags.get("grad_accum_steps", 1)
    is_bound = any(issubclass(augmentations()[name], NullspaceAugmentation) for name in chosen_names(args.aug))
    return UpdateCost(passes * (clean + forward_equivalents(args)), is_bound)
