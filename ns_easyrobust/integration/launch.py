"""Runs an unmodified EasyRobust script with ``--aug``, repaired where newer libraries have broken it."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import re
import sys
from contextlib import ExitStack
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ..errors import OptionError
from ..training import add_nullspace_args, recipe_path
from ..utils import import_package, is_first_rank, pick_device, replaced_attributes, timm
from .compat import repair_script, script_repairs
from .registration import register
from .training_function import add_script_args, nullspace_augmented
from .without_cuda import without_cuda

_MODULE_NAME = "easyrobust_script"  # the script's name in sys.modules, so that what it defines can be pickled


def load_script(path: Path) -> ModuleType:
    """Import the script as a module; its ``if __name__ == "__main__"`` block does not run.

    Raises:
        OptionError: no such file, not a Python file, an import that is not installed, or no ``parser``, ``main`` and
            ``train_one_epoch`` at its top level, as EasyRobust's scripts have.
    """
    if not path.is_file():
        raise OptionError(f"{path}: expected an EasyRobust training script, found no file. Check the path.")
    spec = importlib.util.spec_from_file_location(_MODULE_NAME, path)
    if spec is None or not isinstance(spec.loader, SourceFileLoader):  # None, or compiled
        raise OptionError(f"{path}: expected an EasyRobust training script, found no Python file. Check the path.")
    try:
        spec.loader.get_code(_MODULE_NAME)
    except (SyntaxError, ValueError) as error:  # ValueError: bytes that are no text
        raise OptionError(
            f"{path}: expected an EasyRobust training script, found no Python in it ({error}). Check the path."
        ) from error
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE_NAME] = module
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise OptionError(
            f"{path}: expected its imports to be installed, found no module {error.name!r}. pip install it."
        ) from error
    missing = [name for name in ("main", "train_one_epoch") if not callable(getattr(module, name, None))]
    if not isinstance(getattr(module, "parser", None), argparse.ArgumentParser):
        missing.insert(0, "parser")
    if missing:
        raise OptionError(
            f"{path}: expected parser, main and train_one_epoch at its top level, found no {', '.join(missing)}. "
            "Use nullspace_augmented or NullspaceAugmentation in the script itself."
        )
    return module


def _add_flags(parser: argparse.ArgumentParser) -> None:
    """Add this package's flags, except those that the script has already added itself (:func:`nullspace_augmented`).

    Raises:
        OptionError: the script has a flag of the same name, or one that sets the same attribute.
    """
    for add, last in ((add_nullspace_args, "--ns-interval"), (add_script_args, "--ns-branch")):
        if last in parser._option_string_actions:
            continue
        ours = argparse.ArgumentParser(add_help=False)
        add(ours)
        theirs = {action.dest: action for action in parser._actions}
        taken = [name for action in ours._actions for name in action.option_strings]
        clash = [name for name in taken if name in parser._option_string_actions]
        clash += [
            (theirs[dest].option_strings or [dest])[0] for action in ours._actions if (dest := action.dest) in theirs
        ]
        if clash:
            raise OptionError(
                f"{parser.prog}: expected a script without flags of this package's names, found its own {clash[0]}. "
                "Rename it there; or call NullspaceAugmentation.loss(input, target, loss_fn) in the script instead."
            )
        add(parser)


def _with_recipes(flags: list[str]) -> list[str]:
    """``flags``, with the path of the recipe of this package that the script's ``-c`` names."""
    is_recipe = [False, *(word in ("-c", "--config") for word in flags)]
    return [recipe_path(word) if is_recipe[place] else word for place, word in enumerate(flags)]


def run_script(script: Path, flags: list[str], *, device: str = "auto", downloads: Path | None = None) -> None:
    """Run ``script`` as ``python script ...`` would, with ``flags`` that may include the augmentation's.

    Args:
        device: "auto", "cpu" or "cuda"; on the CPU the script's calls of CUDA are made harmless.
        downloads: folder whose files are read instead of downloading files of the same name.

    Raises:
        MissingPackageError: easyrobust is not installed.
        UserError: timm 1.x, or a mistake in the script's path or shape, the device, the model, the noise, or the files
            that its flags name; other errors of the script are raised unchanged.
    """
    import_package("easyrobust", f"{script}")
    _require_timm_of_the_scripts(script)
    folder = os.path.dirname(os.path.realpath(script))  # Path.resolve() raises for links in a circle
    with ExitStack() as undo:
        if pick_device(device).type == "cpu":
            undo.enter_context(without_cuda())
        undo.enter_context(script_repairs(downloads))
        undo.callback(sys.modules.pop, _MODULE_NAME, None)
        words = [str(script), *_with_recipes(flags)]
        undo.enter_context(replaced_attributes(sys, argv=words, path=[folder, *sys.path]))
        module: Any = load_script(script)
        register()
        _add_flags(module.parser)
        repair_script(module)
        module.train_one_epoch = nullspace_augmented(module.train_one_epoch)
        _leave_logging_to_the_script()
        try:
            module.main()
        except (OSError, RuntimeError, IndexError) as error:
            mistake = _as_user_error(script, error)
            if mistake is None:
                raise
            raise mistake from error


def _require_timm_of_the_scripts(script: Path) -> None:
    """Raise OptionError under timm 1.x, which has other names and other meanings for much that the scripts import."""
    if not timm.__version__.startswith("0."):
        raise OptionError(
            f"{script}: expected timm 0.5.4, which EasyRobust's scripts are written for, found timm {timm.__version__}."
            " Run them where pip install timm==0.5.4 easyrobust==0.2.4 has been run; train works under this timm."
        )


class _KnownError(NamedTuple):
    """An error of a script that comes from a mistake in its flags."""

    error_type: type[Exception]
    pattern: str  # of its text
    message: str  # for the user, with the pattern's groups


_KNOWN_ERRORS = (
    _KnownError(
        RuntimeError, r"^Unknown model \((.*)\)", "--model: expected a name that timm knows, found {0}. Correct it."
    ),
    _KnownError(
        IndexError,
        r"^Target (\d+) is out of bounds",
        "--num-classes: expected more classes than the label {0} of the images, found no more. Give their number.",
    ),
)


def _as_user_error(script: Path, error: Exception) -> OptionError | None:
    """The one-line error if the user made a mistake; None if it may be a bug in the script, whose traceback helps."""
    if isinstance(error, OSError) and (isinstance(error, FileNotFoundError) or error.filename is not None):
        reason = (error.strerror or "no such file or directory").lower()
        found = f"{reason}: {error.filename or 'its log names it above'}"
        return OptionError(f"{script}: expected the files of its flags, found {found}. Correct the flag.")
    for known in _KNOWN_ERRORS:
        match = re.search(known.pattern, str(error))
        if match is not None and type(error) is known.error_type:
            return OptionError(known.message.format(*match.groups()))
    return None


def _leave_logging_to_the_script() -> None:
    """Avoid duplicate lines: the script adds its own log handlers, and only the first rank logs below warnings."""
    for handler in list(logging.root.handlers):
        logging.root.removeHandler(handler)
    logging.getLogger("ns_easyrobust").setLevel(logging.INFO if is_first_rank() else logging.WARNING)
