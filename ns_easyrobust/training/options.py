"""Flags of ``train``, named as in EasyRobust and timm; a YAML file that sets them; and their checks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from ..data import INTERPOLATIONS
from ..errors import OptionError
from ..utils import FlagParser, add_machine_arguments, add_model_arguments, float_in, int_from
from .augmentations.flags import add_nullspace_args

_SWITCH: Any = {"action": argparse.BooleanOptionalAction, "default": False}  # --flag and --no-flag
SELECTIONS = ("train-holdout", "val", "last")


def build_parser(parser: argparse.ArgumentParser | None = None) -> argparse.ArgumentParser:
    """The parser of ``ns-easyrobust train``: ``parser`` with the flags added, or a new one."""
    parser = parser or FlagParser(prog="ns-easyrobust train")
    parser.add_argument("-c", "--config", metavar="FILE", help="YAML file that sets flags; the command line wins")
    add_model_arguments(parser)
    add_machine_arguments(parser)
    add_nullspace_args(parser)

    data = parser.add_argument_group("data")
    data.add_argument("--data-dir", required=True, metavar="DIR", help="holds train/ and val/, one folder a class")
    data.add_argument("--train-split", default="train", metavar="NAME")
    data.add_argument("--val-split", default="val", metavar="NAME", help="EasyRobust's 'validation' means val/")
    data.add_argument(
        "-b", "--batch-size", type=int_from(1), default=128, metavar="N", help="images a process and step"
    )
    data.add_argument(
        "-vb", "--validation-batch-size", type=int_from(1), metavar="N", help="default: the training batch"
    )
    data.add_argument("--img-size", type=int_from(1), metavar="N", help="image side (default: the model's)")
    data.add_argument("--crop-pct", type=float_in(0.01, 1), metavar="F", help="validation crop (default: the model's)")
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
    optim.add_argument("--opt-eps", type=float_in(0), metavar="F")
    optim.add_argument("--opt-betas", type=float_in(0, 1), nargs=2, metavar="F")
    optim.add_argument("--momentum", type=float_in(0), default=0.9, metavar="F")
    optim.add_argument("--weight-decay", type=float_in(0), default=0.05, metavar="F")
    optim.add_argument(
        "--decay-tokens",
        **_SWITCH,
        help="decay class token and position embedding too",
    )
    optim.add_argument("--clip-grad", type=float_in(0), metavar="NORM")
    optim.add_argument("--clip-mode", default="norm", choices=("norm", "value", "agc"))
    optim.add_argument("--sched", default="cosine", choices=("cosine", "tanh", "step", "poly"))
    optim.add_argument("--lr", type=float_in(0, 1e30), default=1e-5, metavar="F")
    optim.add_argument("--min-lr", type=float_in(0, 1e30), default=1e-6, metavar="F")
    optim.add_argument("--warmup-lr", type=float_in(0, 1e30), default=1e-6, metavar="F")
    optim.add_argument("--warmup-epochs", type=int_from(0), default=0, metavar="N")
    optim.add_argument("--cooldown-epochs", type=int_from(0), default=0, metavar="N")
    optim.add_argument("--decay-epochs", type=float_in(0.01), default=30, metavar="N")
    optim.add_argument("--decay-rate", "--dr", type=float_in(0), default=0.1, metavar="F")
    optim.add_argument("--epochs", type=int_from(1), default=20, metavar="N")
    optim.add_argument(
        "--epoch-steps", type=int_from(0), default=0, metavar="N", help="steps of an epoch; 0: all images once"
    )
    optim.add_argument("--max-steps", type=int_from(0), default=0, metavar="N", help="end after N; 0: after --epochs")

    aug = parser.add_argument_group("image augmentation (timm's)")
    aug.add_argument("--no-aug", action="store_true", help="no image augmentation at all")
    aug.add_argument("--scale", type=float_in(0, 1), nargs=2, default=(0.08, 1.0), metavar="F")
    aug.add_argument("--ratio", type=float_in(0.01), nargs=2, default=(3 / 4, 4 / 3), metavar="F")
    aug.add_argument("--hflip", type=float_in(0, 1), default=0.5, metavar="P")
    aug.add_argument("--vflip", type=float_in(0, 1), default=0.0, metavar="P")
    aug.add_argument("--color-jitter", type=float_in(0), default=0.4, metavar="F")
    aug.add_argument("--aa", metavar="POLICY", help="e.g. rand-m9-mstd0.5-inc1")
    aug.add_argument("--train-interpolation", default="random", choices=("random", *INTERPOLATIONS))
    aug.add_argument("--reprob", type=float_in(0, 1), default=0.0, metavar="P", help="random erasing")
    aug.add_argument("--remode", default="pixel", choices=("const", "rand", "pixel"))
    aug.add_argument("--recount", type=int_from(1), default=1, metavar="N")
    aug.add_argument(
        "--erase-outside",
        **_SWITCH,
        help="let erased pixels leave [0, 1], as the paper's code",
    )
    aug.add_argument("--mixup", type=float_in(0), default=0.0, metavar="ALPHA")
    aug.add_argument("--cutmix", type=float_in(0), default=0.0, metavar="ALPHA")
    aug.add_argument("--cutmix-minmax", type=float_in(0, 1), nargs=2, metavar="F")
    aug.add_argument("--mixup-prob", type=float_in(0, 1), default=1.0, metavar="P")
    aug.add_argument("--mixup-switch-prob", type=float_in(0, 1), default=0.5, metavar="P")
    aug.add_argument("--mixup-mode", default="batch", choices=("batch", "pair", "elem"))
    aug.add_argument("--mixup-off-epoch", type=int_from(0), default=0, metavar="N")
    aug.add_argument("--smoothing", type=float_in(0, 1), default=0.0, metavar="F")
    aug.add_argument("--drop", type=float_in(0, 1), default=0.0, metavar="P")
    aug.add_argument("--drop-path", type=float_in(0, 1), metavar="P")

    run = parser.add_argument_group("run")
    run.add_argument(
        "--model-ema",
        **_SWITCH,
        help="keep and evaluate a moving average of the weights",
    )
    run.add_argument("--model-ema-decay", type=float_in(0, 1), default=0.9998, metavar="F")
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
        "--recovery-interval",
        type=int_from(0),
        default=0,
        metavar="N",
        help="steps between two states; 0: an epoch's end",
    )
    run.add_argument("--log-interval", type=int_from(1), default=50, metavar="N")
    run.add_argument("--log-tensorboard", **_SWITCH, help="numbers for TensorBoard in the run's folder")
    run.add_argument("--log-wandb", **_SWITCH, help="numbers for Weights & Biases")
    run.add_argument("--wandb-project", default="ns_easyrobust", metavar="NAME")
    run.add_argument("--val-interval", type=int_from(1), default=1, metavar="N", help="epochs between evaluations")
    run.add_argument(
        "--select",
        default="train-holdout",
        choices=SELECTIONS,
        help="images that choose model_best: some kept out of training, val/ (the test set, as EasyRobust and the "
        "paper's code), or none (default: train-holdout)",
    )
    run.add_argument("--holdout", type=float_in(0, 1), default=0.05, metavar="F", help="share kept out, 10000 at most")
    return parser


def parse_args(argv: list[str]) -> argparse.Namespace:
    """Parse the flags of ``train`` from a YAML file (``-c``) and from ``argv``, which takes precedence.

    Raises:
        OptionError: an unknown flag or key, or values that exclude each other.
    """
    return parse_with(build_parser(), argv)


def parse_with(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """:func:`parse_args` with a parser that already has the flags of :func:`build_parser`."""
    config_parser = FlagParser(add_help=False)
    config_parser.add_argument("-c", "--config")
    config = config_parser.parse_known_args(argv)[0].config
    args: argparse.Namespace = parser.parse_args([*(_yaml_flags(Path(config), parser) if config else []), *argv])
    _check(args)
    return args


def _yaml_flags(path: Path, parser: argparse.ArgumentParser) -> list[str]:
    """A YAML file's settings as command-line words, so that the parser checks them like any others."""
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
        names = known[key].option_strings  # --amp and --no-amp, or one flag and its aliases
        if value is False and len(names) == 2 and names[1].startswith("--no-"):
            flags.append(names[1])
        elif value is not None and value is not False:
            flags.append(max(names, key=len) if value is not True else names[0])
            flags += [] if value is True else [str(item) for item in (value if isinstance(value, list) else [value])]
    return flags


def _check(args: argparse.Namespace) -> None:
    """Raise OptionError for values that exclude each other; turn EasyRobust's ``validation`` split into ``val``."""
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
