"""The flags of ``train``: EasyRobust's and timm's names, a YAML file that sets them, and their checks."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from ..data.transforms import INTERPOLATIONS
from ..errors import OptionError
from .augmentations.nullspace import add_nullspace_args

_SWITCH: Any = {"action": argparse.BooleanOptionalAction, "default": False}  # --flag and --no-flag
SELECTIONS = ("train-holdout", "val", "last")


class Dashes(argparse.ArgumentParser):
    """A parser that takes ``--data_dir`` for ``--data-dir`` and ends in one line on a mistake.

    EasyRobust spells some flags with underscores and timm most with dashes; both are taken.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.allow_abbrev = False  # --aug must not mean --aug-repeats

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if args is not None:
            args = [_dashed(arg) for arg in args]
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> Any:
        raise OptionError(f"{message}. See {self.prog} --help.")


def whole(least: int) -> Callable[[str], int]:
    """A flag's type: a whole number of at least ``least``."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"expected a whole number >= {least}, found {text}")
        return value

    number.__name__ = "whole number"
    return number


def within(low: float, high: float = math.inf) -> Callable[[str], float]:
    """A flag's type: a finite number in [low, high], or a fraction such as 1/255."""

    def number(text: str) -> float:
        top, _, bottom = text.partition("/")
        value = float(top) / (float(bottom or 1) or math.nan)
        if not (math.isfinite(value) and low <= value <= high):
            bounds = f"between {low:g} and {high:g}" if high < math.inf else f">= {low:g}"
            raise argparse.ArgumentTypeError(f"expected a number {bounds}, found {text}")
        return value

    number.__name__ = "number"
    return number


def _dashed(arg: str) -> str:
    if not arg.startswith("--"):
        return arg
    flag, equals, value = arg.partition("=")
    return flag.replace("_", "-") + equals + value


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags by which every command names a model."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", "-m", required=True, metavar="NAME", help="architecture, by its name in timm")
    group.add_argument("--num-classes", type=whole(1), default=1000, metavar="N", help="classes of data and model")
    group.add_argument("--mean", type=float, nargs="+", help="normalisation, where the checkpoint has none")
    group.add_argument("--std", type=float, nargs="+", help="normalisation, where the checkpoint has none")


def add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    """Device, workers and seed."""
    group = parser.add_argument_group("machine")
    group.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto: cuda if there is one")
    group.add_argument("-j", "--workers", type=whole(0), default=4, metavar="N", help="data loaders (default: 4)")
    group.add_argument("--seed", type=whole(0), default=42, metavar="S", help="of everything random (default: 42)")


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags, beside :func:`add_model_arguments`, of commands that load weights and read images."""
    parser.add_argument("--ckpt-path", required=True, metavar="FILE_OR_URL", help="checkpoint, any form")
    parser.add_argument("--sha256", metavar="HASH", help="refuse any other file")
    parser.add_argument("--use-ema", action="store_true", help="take the checkpoint's moving average")
    parser.add_argument("--img-size", type=whole(1), metavar="N", help="build the model for images of this size")
    parser.add_argument("--input-size", type=whole(1), metavar="N", help="image side (default: the model's)")
    parser.add_argument("--crop-pct", type=within(0.01, 1), default=0.875, metavar="F", help="crop (default: 0.875)")
    parser.add_argument(
        "--interpolation", type=_interpolation, default="bicubic", metavar="NAME", help="default: bicubic"
    )


def _interpolation(text: str) -> str:
    name = {"2": "bilinear", "3": "bicubic"}.get(text, text)  # EasyRobust passes PIL's numbers
    if name not in INTERPOLATIONS:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(INTERPOLATIONS)}, found {text!r}")
    return name


def build_parser(parser: argparse.ArgumentParser | None = None) -> argparse.ArgumentParser:
    """The parser of ``ns-easyrobust train``; flags go into ``parser`` if one is given."""
    parser = parser or Dashes(prog="ns-easyrobust train")
    parser.add_argument("-c", "--config", metavar="FILE", help="YAML file that sets flags; the command line wins")
    add_model_arguments(parser)
    add_machine_arguments(parser)
    add_nullspace_args(parser)

    data = parser.add_argument_group("data")
    data.add_argument("--data-dir", required=True, metavar="DIR", help="holds train/ and val/, one folder a class")
    data.add_argument("--train-split", default="train", metavar="NAME")
    data.add_argument("--val-split", default="val", metavar="NAME", help="EasyRobust's 'validation' means val/")
    data.add_argument("-b", "--batch-size", type=whole(1), default=128, metavar="N", help="images a process and step")
    data.add_argument("-vb", "--validation-batch-size", type=whole(1), metavar="N", help="default: the training batch")
    data.add_argument("--img-size", type=whole(1), metavar="N", help="image side (default: the model's)")
    data.add_argument("--crop-pct", type=within(0.01, 1), metavar="F", help="validation crop (default: the model's)")
    data.add_argument("--interpolation", choices=tuple(INTERPOLATIONS), help="validation (default: the model's)")
    data.add_argument(
        "--bad-images",
        default="stop",
        choices=("stop", "replace"),
        help="training images that cannot be decoded: stop, or take the next one and count (default: stop)",
    )
    data.add_argument(
        "--pin-mem",
        **_SWITCH,
        help="pin host memory for the copy to the GPU",
    )

    start = parser.add_argument_group("start")
    start.add_argument("--initial-checkpoint", default="", metavar="PATH", help="file or URL to finetune from")
    start.add_argument("--pretrained", action="store_true", help="timm's weights, where there is no checkpoint")

    optim = parser.add_argument_group("optimizer and schedule (timm's)")
    optim.add_argument("--opt", default="adamw", metavar="NAME")
    optim.add_argument("--opt-eps", type=within(0), metavar="F")
    optim.add_argument("--opt-betas", type=within(0, 1), nargs=2, metavar="F")
    optim.add_argument("--momentum", type=within(0), default=0.9, metavar="F")
    optim.add_argument("--weight-decay", type=within(0), default=0.05, metavar="F")
    optim.add_argument(
        "--decay-tokens",
        **_SWITCH,
        help="decay class token and position embedding too",
    )
    optim.add_argument("--clip-grad", type=within(0), metavar="NORM")
    optim.add_argument("--clip-mode", default="norm", choices=("norm", "value", "agc"))
    optim.add_argument("--sched", default="cosine", choices=("cosine", "tanh", "step", "poly"))
    optim.add_argument("--lr", type=within(0, 1e30), default=1e-5, metavar="F")
    optim.add_argument("--min-lr", type=within(0, 1e30), default=1e-6, metavar="F")
    optim.add_argument("--warmup-lr", type=within(0, 1e30), default=1e-6, metavar="F")
    optim.add_argument("--warmup-epochs", type=whole(0), default=0, metavar="N")
    optim.add_argument("--cooldown-epochs", type=whole(0), default=0, metavar="N")
    optim.add_argument("--decay-epochs", type=within(0.01), default=30, metavar="N")
    optim.add_argument("--decay-rate", "--dr", type=within(0), default=0.1, metavar="F")
    optim.add_argument("--epochs", type=whole(1), default=20, metavar="N")
    optim.add_argument(
        "--epoch-steps", type=whole(0), default=0, metavar="N", help="steps of an epoch; 0: all images once"
    )
    optim.add_argument("--max-steps", type=whole(0), default=0, metavar="N", help="end after N; 0: after --epochs")

    aug = parser.add_argument_group("image augmentation (timm's)")
    aug.add_argument("--no-aug", action="store_true", help="no image augmentation at all")
    aug.add_argument("--scale", type=within(0, 1), nargs=2, default=(0.08, 1.0), metavar="F")
    aug.add_argument("--ratio", type=within(0.01), nargs=2, default=(3 / 4, 4 / 3), metavar="F")
    aug.add_argument("--hflip", type=within(0, 1), default=0.5, metavar="P")
    aug.add_argument("--vflip", type=within(0, 1), default=0.0, metavar="P")
    aug.add_argument("--color-jitter", type=within(0), default=0.4, metavar="F")
    aug.add_argument("--aa", metavar="POLICY", help="e.g. rand-m9-mstd0.5-inc1")
    aug.add_argument("--train-interpolation", default="random", choices=("random", *INTERPOLATIONS))
    aug.add_argument("--reprob", type=within(0, 1), default=0.0, metavar="P", help="random erasing")
    aug.add_argument("--remode", default="pixel", choices=("const", "rand", "pixel"))
    aug.add_argument("--recount", type=whole(1), default=1, metavar="N")
    aug.add_argument(
        "--erase-outside",
        **_SWITCH,
        help="let erased pixels leave [0, 1], as the paper's code",
    )
    aug.add_argument("--mixup", type=within(0), default=0.0, metavar="ALPHA")
    aug.add_argument("--cutmix", type=within(0), default=0.0, metavar="ALPHA")
    aug.add_argument("--cutmix-minmax", type=within(0, 1), nargs=2, metavar="F")
    aug.add_argument("--mixup-prob", type=within(0, 1), default=1.0, metavar="P")
    aug.add_argument("--mixup-switch-prob", type=within(0, 1), default=0.5, metavar="P")
    aug.add_argument("--mixup-mode", default="batch", choices=("batch", "pair", "elem"))
    aug.add_argument("--mixup-off-epoch", type=whole(0), default=0, metavar="N")
    aug.add_argument("--smoothing", type=within(0, 1), default=0.0, metavar="F")
    aug.add_argument("--drop", type=within(0, 1), default=0.0, metavar="P")
    aug.add_argument("--drop-path", type=within(0, 1), metavar="P")

    run = parser.add_argument_group("run")
    run.add_argument(
        "--model-ema",
        **_SWITCH,
        help="keep and evaluate a moving average of the weights",
    )
    run.add_argument("--model-ema-decay", type=within(0, 1), default=0.9998, metavar="F")
    run.add_argument("--amp", **_SWITCH, help="mixed precision")
    run.add_argument("--amp-dtype", default="float16", choices=("float16", "bfloat16"))
    run.add_argument("--channels-last", **_SWITCH)
    run.add_argument("--output", default="output/train", metavar="DIR")
    run.add_argument("--experiment", default="", metavar="NAME", help="folder in --output (default: date and model)")
    run.add_argument(
        "--resume",
        choices=("auto",),
        help="go on from the newest whole state in --output/--experiment, exactly; start anew where there is none",
    )
    run.add_argument(
        "--recovery-interval", type=whole(0), default=0, metavar="N", help="steps between two states; 0: an epoch's end"
    )
    run.add_argument("--log-interval", type=whole(1), default=50, metavar="N")
    run.add_argument("--log-tensorboard", **_SWITCH, help="numbers for TensorBoard in the run's folder")
    run.add_argument("--log-wandb", **_SWITCH, help="numbers for Weights & Biases")
    run.add_argument("--wandb-project", default="ns_easyrobust", metavar="NAME")
    run.add_argument("--val-interval", type=whole(1), default=1, metavar="N", help="epochs between evaluations")
    run.add_argument(
        "--select",
        default="train-holdout",
        choices=SELECTIONS,
        help="images that choose model_best: some kept out of training, val/ (the test set, as EasyRobust and the "
        "paper's code), or none (default: train-holdout)",
    )
    run.add_argument("--holdout", type=within(0, 1), default=0.05, metavar="F", help="share kept out, 10000 at most")
    return parser


def parse_args(argv: list[str]) -> argparse.Namespace:
    """Flags of ``train`` from YAML (``-c``) and ``argv``, which wins.

    Raises:
        OptionError: an unknown flag or key, or values that exclude each other.
    """
    return parse_with(build_parser(), argv)


def parse_with(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """:func:`parse_args` for a parser that holds the flags already."""
    first = Dashes(add_help=False)
    first.add_argument("-c", "--config")
    config = first.parse_known_args(argv)[0].config
    args: argparse.Namespace = parser.parse_args([*(_yaml_flags(Path(config), parser) if config else []), *argv])
    _check(args)
    return args


def _yaml_flags(path: Path, parser: argparse.ArgumentParser) -> list[str]:
    """A YAML file's settings as flags, so that they pass the same checks."""
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise OptionError(f"{path}: expected a YAML file of flags, found none that can be read ({error}).") from error
    if not isinstance(settings, dict):
        raise OptionError(f"{path}: expected 'flag: value' lines, found a {type(settings).__name__}.")
    known = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    settings = {str(key).replace("-", "_"): value for key, value in settings.items()}
    if unknown := sorted(set(settings) - set(known)):
        raise OptionError(f"{path}: expected names of flags, found {', '.join(unknown)}. See train --help.")
    flags: list[str] = []
    for key, value in settings.items():
        names = known[key].option_strings  # --amp and --no-amp, or one name and its short forms
        if value is False and len(names) == 2 and names[1].startswith("--no-"):
            flags.append(names[1])
        elif value is not None and value is not False:
            flags.append(max(names, key=len) if value is not True else names[0])
            flags += [] if value is True else [str(item) for item in (value if isinstance(value, list) else [value])]
    return flags


def _check(args: argparse.Namespace) -> None:
    if args.pretrained and args.initial_checkpoint:
        raise OptionError("--pretrained and --initial-checkpoint exclude each other: expected one start, found two.")
    if not 0 < args.holdout < 1:
        raise OptionError(f"--holdout: expected a share between 0 and 1, found {args.holdout}.")
    if (args.mean is None) != (args.std is None):
        raise OptionError("--mean and --std: expected both or neither.")
    for name in ("scale", "ratio", "cutmix_minmax"):
        pair = getattr(args, name)
        if pair is not None and pair[0] > pair[1]:
            raise OptionError(f"--{name.replace('_', '-')}: expected the smaller number first, found {list(pair)}.")
    mixes = args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None
    if mixes and args.batch_size % 2:
        raise OptionError(f"--batch-size: expected an even number for mixup and cutmix, found {args.batch_size}.")
    if args.val_split == "validation":
        args.val_split = "val"
