"""``--aug``, the flags of the noise, and the augmentation built from them."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from ...nullspace import NoiseConfig
from ...utils import add_settings, int_from, nn, settings_from
from .nullspace import NullspaceAugmentation, check_augmentation
from .registry import augmentation_names, augmentations

_logger = logging.getLogger(__name__)


def add_noise_args(parser: argparse.ArgumentParser) -> None:
    """Add one ``--ns-...`` flag for each field of :class:`NoiseConfig`."""
    add_settings(parser.add_argument_group("nullspace noise"), NoiseConfig, "ns-")


def add_nullspace_args(parser: argparse.ArgumentParser) -> None:
    """Add ``--aug``, ``--ns-interval`` and the noise's flags to a training script's parser.

    Example:
        >>> import argparse
        >>> parser = argparse.ArgumentParser()
        >>> add_nullspace_args(parser)
        >>> args = parser.parse_args(["--aug", "nullspace", "--ns-eps", "0.05"])
        >>> args.aug, args.ns_eps, args.ns_interval
        ('nullspace', 0.05, 40)
    """
    parser.add_argument(
        "--aug",
        default="none",
        choices=augmentation_names(),
        help="noise on the encoder's input: nullspace, or a baseline to compare it with (default: none)",
    )
    parser.add_argument(
        "--ns-interval",
        type=int_from(1),
        default=40,
        metavar="N",
        help="steps that share one noise; S in App. C (default: 40)",
    )
    parser.add_argument(
        "--ns-warm-start", action="store_true", help="begin each synthesis with the last noise: sooner, but less varied"
    )
    add_noise_args(parser)


def check_noise_args(args: argparse.Namespace) -> None:
    """Raise OptionError if a flag of the noise is out of range, before anything is built."""
    cls = augmentations().get(args.aug, NullspaceAugmentation)
    check_augmentation(args.ns_interval, args.ns_warm_start, cls.solver or config_from_args(args).solver)


def config_from_args(args: argparse.Namespace) -> NoiseConfig:
    """The noise settings in parsed flags."""
    return NoiseConfig(**settings_from(args, NoiseConfig, "ns-")[0])


def augmentation_from_args(
    args: argparse.Namespace, model: nn.Module, batches: Iterable[Any], **options: Any
) -> NullspaceAugmentation | None:
    """The augmentation that ``--aug`` names, constructed with ``options`` too; None for ``none``."""
    if args.aug == "none":
        ignored = [f.name for f in fields(NoiseConfig) if getattr(args, f"ns_{f.name}") != f.default]
        ignored += ["warm_start"] * args.ns_warm_start
        if ignored:
            _logger.warning("--ns-%s does nothing with --aug none", ignored[0].replace("_", "-"))
        return None
    cls, config = augmentations()[args.aug], config_from_args(args)
    return cls(model, batches, config, interval=args.ns_interval, warm_start=args.ns_warm_start, **options)
