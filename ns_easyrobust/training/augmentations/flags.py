"""``--aug``, the flags of the methods that it can name, and the companions built from them."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Iterator
from typing import Any

from ...errors import OptionError
from ...nullspace import NoiseConfig
from ...utils import add_settings, flags_of, int_from, nn, settings_from
from .base import Augmentation
from .joined import JoinedAugmentation
from .noise_use import NoiseUse, use_from
from .nullspace import NullspaceAugmentation
from .registry import augmentation_names, augmentations
from .renewed_noise import check_renewal

_logger = logging.getLogger(__name__)


class _Choices(tuple[str, ...]):
    """The values of ``--aug``, which takes several joined by commas too (:func:`_joined_names`)."""

    def __contains__(self, text: object) -> bool:
        return all(super(_Choices, self).__contains__(name.strip()) for name in str(text).split(","))


def _joined_names(text: str) -> str:
    """The ``type`` of ``--aug``."""
    try:
        chosen_names(text)
    except OptionError as error:
        raise argparse.ArgumentTypeError(error.line.removeprefix("aug: ").rstrip(".")) from error
    return ",".join(chosen_names(text)) or text


_joined_names.__name__ = "method"


def chosen_names(aug: str) -> list[str]:
    """The names in a value of ``--aug``, which joins them by commas; none for ``none``.

    Raises:
        OptionError: an unknown name, one twice, or ``none`` beside others.
    """
    names = [] if aug == "none" else [name.strip() for name in aug.split(",")]
    for name in names:
        if name not in augmentations():
            known = ", ".join(augmentation_names())
            raise OptionError(f"aug: expected one of {known}, or several joined by commas, found {name!r}. Correct it.")
    if twice := [name for name in names if names.count(name) > 1]:
        raise OptionError(f"aug: expected each method once, found {twice[0]} twice. Leave one out.")
    return names


def _chosen(args: argparse.Namespace) -> dict[str, type[Augmentation]]:
    return {name: augmentations()[name] for name in chosen_names(args.aug)}


def add_noise_args(parser: argparse.ArgumentParser) -> None:
    """Add one ``--ns-...`` flag for each field of :class:`NoiseConfig`."""
    add_settings(parser.add_argument_group("nullspace noise"), NoiseConfig, "ns-")


def add_nullspace_args(parser: argparse.ArgumentParser) -> None:
    """Add ``--aug``, ``--ns-interval``, and the flags of every method that ``--aug`` can name, to a script's parser.

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
        type=_joined_names,
        choices=_Choices(augmentation_names()),
        metavar="NAME[,NAME]",
        help="what is added to the clean loss: noise on the encoder's input (nullspace), a control (random, permuted, "
        "sensitive), "
        f"or another method; of {', '.join(augmentation_names())}, or several joined by commas (default: none)",
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
    add_settings(parser.add_argument_group("use of the noise"), NoiseUse, NullspaceAugmentation.prefix)
    for prefix, cls in _with_settings():
        if prefix != NullspaceAugmentation.prefix:
            add_settings(parser.add_argument_group(f"--aug {cls.name}"), cls.Settings, prefix)  # type: ignore[arg-type]


def _with_settings() -> Iterator[tuple[str, type[Augmentation]]]:
    """(prefix of its flags, method), once for methods that share their settings."""
    seen = set()
    for cls in augmentations().values():
        if cls.Settings is not None and (cls.prefix, cls.Settings) not in seen:
            seen.add((cls.prefix, cls.Settings))
            yield cls.prefix, cls


def check_augmentation_args(args: argparse.Namespace) -> None:
    """Check the flags of the methods that ``--aug`` names, before anything is built.

    Raises:
        OptionError: one is out of range, or two of the methods each replace the clean loss.
    """
    check_renewal(args.ns_interval, args.ns_warm_start, config_from_args(args).solver)  # also for --aug none, as ever
    use_from(args, NullspaceAugmentation.prefix)
    chosen = _chosen(args)
    for cls in chosen.values():
        try:
            cls.check(args)
        except OptionError as error:
            if cls.prefix == NullspaceAugmentation.prefix:
                raise
            raise OptionError(f"{error.line} Its flags begin with --{cls.prefix}.") from error
    replacing = [name for name, cls in chosen.items() if cls.replaces(cls.config_from(args))]
    if len(replacing) > 1:
        raise OptionError(
            f"aug: expected at most one method that replaces the clean loss, found {' and '.join(replacing)}. "
            "Leave one out, or let it keep the clean loss."
        )
    if replacing and getattr(args, "jsd_loss", False):
        raise OptionError(
            f"--jsd-loss: expected a companion that keeps the clean loss, found {replacing[0]}, which stands in its "
            "place. Leave one out."
        )


def companion_costs(args: argparse.Namespace) -> tuple[float, float]:
    """What the companions cost an image, in forwards: an update, and at most a synthesis.

    See :meth:`Augmentation.cost` and :meth:`Augmentation.synthesis_cost`; a clean loss that is replaced counts -3, and
    its output has to be computed by those that take it (:meth:`Augmentation.output_cost`).
    """
    chosen = list(_chosen(args).values())
    costs = [cls.costs_from(args) for cls in chosen]
    update = sum(cost for cost, _, _ in costs)
    if any(cls.replaces(cls.config_from(args)) for cls in chosen):
        update += sum(output_cost for _, output_cost, _ in costs) - 3
    return update, sum(synthesis_cost for _, _, synthesis_cost in costs)


def config_from_args(args: argparse.Namespace) -> NoiseConfig:
    """The noise settings in parsed flags."""
    config: NoiseConfig = NullspaceAugmentation.config_from(args)
    return config


def augmentation_from_args(
    args: argparse.Namespace, model: nn.Module, batches: Iterable[Any], **options: Any
) -> Augmentation | None:
    """The companion that ``--aug`` names, or several in one, constructed with ``options`` too; None for ``none``."""
    chosen = _chosen(args)
    _warn_of_idle_flags(args, chosen)
    parts = {name: cls.from_args(args, model, batches, **options) for name, cls in chosen.items()}
    if replacing := [name for name, part in parts.items() if part.replaces_clean]:
        _logger.info("--aug %s: %s stands in place of the clean loss", args.aug, replacing[0])
    if len(parts) > 1:
        return JoinedAugmentation(parts)
    return next(iter(parts.values()), None)


def _warn_of_idle_flags(args: argparse.Namespace, chosen: dict[str, type[Augmentation]]) -> None:
    """Warn of the first flag that was given and belongs to a method that ``--aug`` does not name."""
    in_use = {cls.prefix for cls in chosen.values()}
    idle = []
    settings: list[tuple[str, Any]] = [(prefix, cls.Settings) for prefix, cls in _with_settings()]
    for prefix, kind in [*settings, (NullspaceAugmentation.prefix, NoiseUse)]:
        if prefix not in in_use:
            given = settings_from(args, kind, prefix)[0]
            idle += [flag for flag, item in flags_of(kind, prefix) if _differs(given[item.name], item.default)]
    if args.ns_warm_start and NullspaceAugmentation.prefix not in in_use:
        idle.append("ns-warm-start")
    if idle:
        _logger.warning("--%s does nothing with --aug %s", idle[0], args.aug)


def _differs(value: Any, default: Any) -> bool:
    return (tuple(value) if isinstance(value, list) else value) != default
