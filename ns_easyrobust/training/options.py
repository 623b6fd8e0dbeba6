"""Flags of ``train``, named as in EasyRobust and timm; a YAML file that sets them; and their checks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..data import INTERPOLATIONS
from ..errors import OptionError
from ..utils import (
    FlagParser,
    add_machine_arguments,
    add_model_arguments,
    add_settings,
    file_or_folder,
    float_in,
    int_from,
    read_settings,
    words_of,
)
from .augmentations.flags import add_nullspace_args
from .dataset_flags import add_dataset_args, check_dataset_args
from .image_flags import add_image_args, check_image_args
from .recipes import recipe_names, recipe_path
from .sam import SAM_PREFIX, SamSettings

_SWITCH: Any = {"action": argparse.BooleanOptionalAction, "default": False}  # --flag and --no-flag
SELECTIONS = ("train-holdout", "val", "last")
# Beyond these no run makes sense; what is far beyond them would fail later, or without a word.
_LARGEST_IMAGE = 4096  # pixels of a side
_GREATEST_LR = 1000
_MOST = 10**9  # steps or epochs
_BELOW_ONE = ("smoothing", "drop", "drop_path", "model_ema_decay", "momentum")  # at 1, nothing is learned or kept


def build_parser(parser: argparse.ArgumentParser | None = None) -> argparse.ArgumentParser:
    """The parser of ``ns-easyrobust train``: ``parser`` with the flags added, or a new one."""
    parser = parser or FlagParser(prog="ns-easyrobust train")
    parser.add_argument(
        "-c",
        "--config",
        type=file_or_folder,
        metavar="FILE",
        help=f"YAML file that sets flags, or a recipe: {', '.join(recipe_names())}; the command line wins",
    )
    add_model_arguments(parser)
    add_machine_arguments(parser)
    add_nullspace_args(parser)

    data = parser.add_argument_group("data")
    add_dataset_args(data)
    data.add_argument(
        "-b", "--batch-size", type=int_from(1), default=128, metavar="N", help="images a process and step"
    )
    data.add_argument(
        "-vb", "--validation-batch-size", type=int_from(1), metavar="N", help="default: the training batch"
    )
    data.add_argument(
        "--img-size", type=int_from(1, _LARGEST_IMAGE), metavar="N", help="image side (default: the model's)"
    )
    data.add_argument("--crop-pct", type=float_in(0.01, 1), metavar="F", help="validation crop (default: the model's)")
    data.add_argument("--interpolation", choices=tuple(INTERPOLATIONS), help="validation (default: the model's)")
    data.add_argument(
        "--bad-images",
        default="stop",
        choices=("stop", "replace"),
        help="training images that cannot be decoded: stop, or take the next one and count (default: stop)",
    )
    data.add_argument("--pin-mem", **_SWITCH, help="pin host memory for the copy to the GPU")

    start = parser.add_argument_group("start")
    start.add_argument(
        "--initial-checkpoint", type=file_or_folder, default="", metavar="PATH", help="file or URL to finetune from"
    )
    start.add_argument("--pretrained", action="store_true", help="timm's weights, where there is no checkpoint")

    optim = parser.add_argument_group("optimizer and schedule (timm's)")
    optim.add_argument("--opt", default="adamw", metavar="NAME")
    optim.add_argument("--opt-eps", type=float_in(0, 1), metavar="F")
    optim.add_argument("--opt-betas", type=float_in(0, 1), nargs="+", metavar="F")
    optim.add_argument("--momentum", type=float_in(0, 1), default=0.9, metavar="F")
    optim.add_argument("--weight-decay", type=float_in(0, 100), default=0.05, metavar="F")
    optim.add_argument("--decay-tokens", **_SWITCH, help="decay class token and position embedding too")
    optim.add_argument("--clip-grad", type=float_in(0), metavar="NORM")
    optim.add_argument("--clip-mode", default="norm", choices=("norm", "value", "agc"))
    optim.add_argument(
        "--grad-accum-steps",
        type=int_from(1, _MOST),
        default=1,
        metavar="N",
        help="batches a step: the gradients of N batches make one update (default: 1)",
    )
    optim.add_argument("--sched", default="cosine", choices=("cosine", "tanh", "step", "poly"))
    optim.add_argument("--lr", type=float_in(0, _GREATEST_LR), default=1e-5, metavar="F")
    optim.add_argument("--min-lr", type=float_in(0, _GREATEST_LR), default=1e-6, metavar="F")
    optim.add_argument("--warmup-lr", type=float_in(0, _GREATEST_LR), default=1e-6, metavar="F")
    optim.add_argument("--warmup-epochs", type=int_from(0, _MOST), default=0, metavar="N")
    optim.add_argument("--cooldown-epochs", type=int_from(0, _MOST), default=0, metavar="N")
    optim.add_argument("--decay-epochs", type=float_in(0.01, _MOST), default=30, metavar="N")
    optim.add_argument("--decay-rate", "--dr", type=float_in(0, 10), default=0.1, metavar="F")
    optim.add_argument("--epochs", type=int_from(1, _MOST), default=20, metavar="N")
    optim.add_argument(
        "--epoch-steps", type=int_from(0, _MOST), default=0, metavar="N", help="steps of an epoch; 0: all images once"
    )
    optim.add_argument(
        "--max-steps", type=int_from(0, _MOST), default=0, metavar="N", help="end after N; 0: after --epochs"
    )
    add_settings(parser.add_argument_group("sharpness-aware minimisation"), SamSettings, SAM_PREFIX)

    add_image_args(parser)

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
    run.add_argument("--output", type=file_or_folder, default="output/train", metavar="DIR")
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
    run.add_argument(
        "--keep-interval",
        type=int_from(0, _MOST),
        default=0,
        metavar="N",
        help="keep the weights of every Nth step, as checkpoint-STEP.pth.tar; 0: none (default: 0)",
    )
    run.add_argument(
        "--log-interval",
        type=int_from(1),
        default=50,
        metavar="N",
        help="steps between two lines of the log where there is no terminal; after 30 s one comes anyway",
    )
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


def defaults() -> dict[str, Any]:
    """The flags' defaults by name, which count for the flags that a run of an earlier version does not know."""
    return {action.dest: action.default for action in build_parser()._actions if action.dest != "help"}


def parse_args(argv: list[str]) -> argparse.Namespace:
    """Parse the flags of ``train`` from a YAML file (``-c``) and from ``argv``, which takes precedence.

    Raises:
        OptionError: an unknown flag or key, or values that exclude each other.
    """
    return parse_with(build_parser(), argv)


def parse_with(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """:func:`parse_args` with a parser that already has the flags of :func:`build_parser`."""
    config_parser = FlagParser(add_help=False)
    config_parser.add_argument("-c", "--config", type=file_or_folder)
    config = config_parser.parse_known_args(argv)[0].config
    recipe = _recipe_words(Path(recipe_path(config)), parser) if config else []
    args: argparse.Namespace = parser.parse_args([*recipe, *argv])
    _check(args)
    return args


def _recipe_words(path: Path, parser: argparse.ArgumentParser) -> list[str]:
    return words_of(read_settings(path, remedy=f"Recipes: {', '.join(recipe_names())}."), parser, path)


def _check(args: argparse.Namespace) -> None:
    """Raise OptionError for values that exclude each other or learn nothing."""
    if args.pretrained and args.initial_checkpoint:
        raise OptionError("--pretrained and --initial-checkpoint exclude each other: expected one start, found two.")
    for name in _BELOW_ONE:
        if getattr(args, name) == 1:
            raise OptionError(f"--{name.replace('_', '-')}: expected a number below 1, found 1.")
    if args.clip_grad == 0:
        raise OptionError("--clip-grad: expected a number > 0, found 0, which clips all to nothing. Leave it out.")
    if "\0" in args.experiment:
        raise OptionError("--experiment: expected the name of a folder, found a NUL character in it.")
    if args.experiment.startswith("~"):
        raise OptionError(
            f"--experiment: expected a name within --output, found {args.experiment}. Put the home in --output."
        )
    if not 0 < args.holdout < 1:
        raise OptionError(f"--holdout: expected a share between 0 and 1, found {args.holdout}.")
    if (args.mean is None) != (args.std is None):
        raise OptionError("--mean and --std: expected both or neither.")
    check_image_args(args)
    check_dataset_args(args)
