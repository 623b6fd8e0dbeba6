"""Flags of ``train`` that augment images, named as timm's, and the methods that they add up to."""

from __future__ import annotations

import argparse
import re
from typing import Any

from ..data import INTERPOLATIONS, AugMix
from ..errors import OptionError
from ..utils import float_in, int_from

_MOST_SPLITS = 16
_STEP = 3.0  # forward-equivalents of an update of one image: a forward, and a backward of twice its cost


def add_image_args(parser: argparse.ArgumentParser) -> None:
    """Add the group "image augmentation" to ``parser``."""
    switch: Any = {"action": argparse.BooleanOptionalAction, "default": False}
    aug = parser.add_argument_group("image augmentation (timm's)")
    aug.add_argument("--no-aug", action="store_true", help="no image augmentation at all")
    aug.add_argument("--scale", type=float_in(0, 1), nargs=2, default=(0.08, 1.0), metavar="F")
    aug.add_argument("--ratio", type=float_in(0.01, 100), nargs=2, default=(3 / 4, 4 / 3), metavar="F")
    aug.add_argument("--hflip", type=float_in(0, 1), default=0.5, metavar="P")
    aug.add_argument("--vflip", type=float_in(0, 1), default=0.0, metavar="P")
    aug.add_argument("--color-jitter", type=float_in(0, 10), default=0.4, metavar="F")
    aug.add_argument(
        "--aa", metavar="POLICY", help="timm's, e.g. rand-m9-mstd0.5-inc1 or augmix-m3-w3; or trivial, TrivialAugment"
    )
    aug.add_argument(
        "--augmix-ops",
        default="timm",
        choices=("timm", "published"),
        help="operations of --aa augmix: timm's, four of which overlap with ImageNet-C, or the published ones, "
        "which do not (default: timm)",
    )
    aug.add_argument(
        "--aug-splits",
        type=int_from(0, _MOST_SPLITS),
        default=0,
        metavar="N",
        help="views of an image in a step, for --jsd-loss: a clean one and N - 1 augmented ones; 0: the image alone",
    )
    aug.add_argument(
        "--jsd-loss",
        **switch,
        help="AugMix's loss: of the clean view, and 12 times the Jensen-Shannon divergence of all views' outputs",
    )
    aug.add_argument("--train-interpolation", default="random", choices=("random", *INTERPOLATIONS))
    aug.add_argument("--reprob", type=float_in(0, 1), default=0.0, metavar="P", help="random erasing")
    aug.add_argument("--remode", default="pixel", choices=("const", "rand", "pixel"))
    aug.add_argument("--recount", type=int_from(1, 100), default=1, metavar="N")
    aug.add_argument("--resplit", **switch, help="do not erase from the clean view of --aug-splits")
    aug.add_argument("--erase-outside", **switch, help="let erased pixels leave [0, 1], as the paper's code")
    aug.add_argument("--mixup", type=float_in(0, 100), default=0.0, metavar="ALPHA")
    aug.add_argument("--cutmix", type=float_in(0, 100), default=0.0, metavar="ALPHA")
    aug.add_argument("--cutmix-minmax", type=float_in(0, 1), nargs=2, metavar="F")
    aug.add_argument("--mixup-prob", type=float_in(0, 1), default=1.0, metavar="P")
    aug.add_argument("--mixup-switch-prob", type=float_in(0, 1), default=0.5, metavar="P")
    aug.add_argument("--mixup-mode", default="batch", choices=("batch", "pair", "elem"))
    aug.add_argument("--mixup-off-epoch", type=int_from(0), default=0, metavar="N")
    aug.add_argument("--smoothing", type=float_in(0, 1), default=0.0, metavar="F")
    aug.add_argument("--drop", type=float_in(0, 1), default=0.0, metavar="P")
    aug.add_argument("--drop-path", type=float_in(0, 1), metavar="P")


def mixes(args: argparse.Namespace) -> bool:
    """Whether images are mixed with others of their batch."""
    return args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None


def check_image_args(args: argparse.Namespace) -> None:
    """Raise OptionError for values that exclude each other, or whose meaning is not what they say."""
    for name in ("scale", "ratio", "cutmix_minmax"):
        pair = getattr(args, name)
        if pair is not None and pair[0] > pair[1]:
            raise OptionError(f"--{name.replace('_', '-')}: expected the smaller number first, found {list(pair)}.")
    if mixes(args) and args.batch_size % 2:
        raise OptionError(f"--batch-size: expected an even number for mixup and cutmix, found {args.batch_size}.")
    _check_splits(args)
    _check_policy(args)


def _check_splits(args: argparse.Namespace) -> None:
    if args.aug_splits == 1:
        raise OptionError("--aug-splits: expected 2 views or more, or 0 for the image alone, found 1. AugMix takes 3.")
    if args.jsd_loss and not args.aug_splits:
        raise OptionError("--jsd-loss: expected --aug-splits, views to compare, found 0. AugMix takes --aug-splits 3.")
    if args.aug_splits and not args.jsd_loss:
        raise OptionError(
            f"--aug-splits {args.aug_splits}: expected --jsd-loss, which trains on the views, found none. Give both."
        )
    if args.resplit and not args.aug_splits:
        raise OptionError("--resplit: expected --aug-splits, whose clean view is not erased from, found 0.")
    if args.aug_splits and mixes(args):
        raise OptionError(
            f"--aug-splits {args.aug_splits}: expected no --mixup, --cutmix or --cutmix-minmax, which mix labels, "
            "while --jsd-loss takes one label an image; found one of them. Leave it out."
        )
    if args.aug_splits and (args.no_aug or not (args.aa or args.color_jitter or args.reprob)):
        raise OptionError(
            f"--aug-splits {args.aug_splits}: expected an augmentation that tells the views apart, found none. "
            "Give --aa augmix, and no --no-aug."
        )


def _check_policy(args: argparse.Namespace) -> None:
    """Refuse what timm takes for something else, or passes over without a word."""
    policy = args.aa or ""
    if args.augmix_ops == "published":
        if not policy.startswith("augmix"):
            raise OptionError(f"--augmix-ops published: expected --aa augmix, found --aa {policy[:100] or 'missing'}.")
        AugMix.from_policy(policy)
    elif switched_off := re.findall(r"-(inc|b)0+(?=-|$)", policy):
        raise OptionError(
            f"--aa {policy[:100]}: expected {switched_off[0]}1 or nothing, found {switched_off[0]}0, which timm 0.5.4 "
            "takes for on, and later versions for off. Leave it out."
        )
    if re.search(r"-[nwd]\d{3}", policy):
        raise OptionError(f"--aa {policy[:100]}: expected at most 99 operations an image (n, w, d), found more.")


def clean_forward_equivalents(args: argparse.Namespace) -> float:
    """Cost of the clean loss's part of an update, in forwards an image: 3, times the views of ``--aug-splits``.

    A forward counts 1, the backward that makes the weights' gradients 2. AugMix with three views counts 9.
    """
    return _STEP * max(1, args.aug_splits)
