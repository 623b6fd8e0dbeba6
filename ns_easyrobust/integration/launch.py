"""The verb ``launch``: an EasyRobust script, unmodified, with ``--aug`` and with what time has broken repaired."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import re
import sys
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import OptionError
from ..training.augmentations.nullspace import add_nullspace_args
from ..training.setup import pick_device
from ..utils.distributed import is_first
from .companion_loss import add_script_args, nullspace_augmented
from .compat import mend, repaired
from .registration import register
from .without_cuda import without_cuda

_NAME = "easyrobust_script"  # as a module, so that what it defines can be pickled


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The launcher's own flags; all others are the script's and the augmentation's."""
    parser.usage = "%(prog)s PATH/main.py [--device D] [--downloads DIR] [flags of --aug and of the script]"
    parser.add_argument("script", metavar="PATH/main.py", help="an EasyRobust training script; it is not changed")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto: cuda if there is one")
    parser.add_argument(
        "--downloads", type=Path, metavar="DIR", help="where files that the script would download lie, by their names"
    )


def parse(parser: argparse.ArgumentParser, flags: list[str]) -> argparse.Namespace:
    """The launcher's flags; the others, as they are, in ``script_flags``."""
    script, own, rest = flags[:1], [], []
    words = iter(flags[1:])
    for word in words:
        if word.split("=")[0] in ("--device", "--downloads"):
            own += [word] if "=" in word else [word, *([value] if (value := next(words, None)) else [])]
        else:
            rest.append(word)
    args = parser.parse_args([*own, *script])
    args.script_flags = rest
    return args


def load_script(path: Path) -> ModuleType:
    """The script as a module; its ``if __name__ == "__main__"`` does not run.

    Raises:
        OptionError: no such file, or it has not the shape of EasyRobust's: ``parser``, ``main``, ``train_one_epoch``.
    """
    if not path.is_file():
        raise OptionError(f"{path}: expected an EasyRobust training script, found no file. Check the path.")
    spec = importlib.util.spec_from_file_location(_NAME, path)
    if spec is None or spec.loader is None:
        raise OptionError(f"{path}: expected an EasyRobust training script, found no Python file. Check the path.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = module
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise OptionError(
            f"{path}: expected its imports to be installed, found no module {error.name!r}. pip install it."
        ) from error
    missing = [name for name in ("parser", "main", "train_one_epoch") if not hasattr(module, name)]
    if missing:
        raise OptionError(
            f"{path}: expected parser, main and train_one_epoch at its top level, found no {', '.join(missing)}. "
            "Use nullspace_augmented or NullspaceAugmentation in the script itself."
        )
    return module


def _add_flags(parser: argparse.ArgumentParser) -> None:
    """Ours, but for those of a script that has them already, from the three lines of the docs."""
    present = parser._option_string_actions
    if "--ns-interval" not in present:
        add_nullspace_args(parser)
    if "--ns-branch" not in present:
        add_script_args(parser)


def launch(script: Path, flags: list[str], *, device: str = "auto", downloads: Path | None = None) -> None:
    """Run ``script`` with ``flags``, our augmentation's among them, as ``python script ...`` would.

    Args:
        device: "cpu" makes what the script asks of CUDA harmless.
        downloads: folder with files that the script would download.

    Raises:
        UserError: about the script, the device, the model, the noise, or files that its flags name; the script's
            other errors come as they are.
    """
    argv, path = sys.argv, list(sys.path)
    with ExitStack() as undo:
        if pick_device(device).type == "cpu":
            undo.enter_context(without_cuda())
        undo.enter_context(repaired(downloads))
        undo.callback(sys.modules.pop, _NAME, None)
        undo.callback(setattr, sys, "path", path)
        undo.callback(setattr, sys, "argv", argv)
        sys.path.insert(0, str(script.resolve().parent))
        sys.argv = [str(script), *flags]
        module: Any = load_script(script)
        register()
        _add_flags(module.parser)
        mend(module)
        module.train_one_epoch = nullspace_augmented(module.train_one_epoch)
        _leave_logging_to_the_script()
        try:
            module.main()
        except (OSError, RuntimeError, IndexError) as error:
            if (mistake := _in_words(script, error)) is not None:
                raise mistake from error
            raise


# What a script's own errors mean for its flags: type, pattern, message.
_SAYINGS: tuple[tuple[type[Exception], str, str], ...] = (
    (RuntimeError, r"^Unknown model \((.*)\)", "--model: expected a name that timm knows, found {0}. Correct it."),
    (
        IndexError,
        r"^Target (\d+) is out of bounds",
        "--num-classes: expected more classes than the label {0} of the images, found no more. Give their number.",
    ),
)


def _in_words(script: Path, error: Exception) -> OptionError | None:
    """A user's mistake as one line; None for what may be a fault of the script's, whose traceback helps."""
    if isinstance(error, FileNotFoundError) or (isinstance(error, OSError) and error.filename is not None):
        reason = (error.strerror or "no such file or directory").lower()
        found = f"{reason}: {error.filename or 'its log names it above'}"
        return OptionError(f"{script}: expected the files of its flags, found {found}. Correct the flag.")
    for kind, pattern, message in _SAYINGS:
        if type(error) is kind and (match := re.search(pattern, str(error))):
            return OptionError(message.format(*match.groups()))
    return None


def _leave_logging_to_the_script() -> None:
    """It sets up its own; each of our lines comes once, and once for all ranks."""
    for handler in list(logging.root.handlers):
        logging.root.removeHandler(handler)
    logging.getLogger("ns_easyrobust").setLevel(logging.INFO if is_first() else logging.WARNING)


def run(args: argparse.Namespace) -> None:
    """The verb ``launch``."""
    launch(Path(args.script), args.script_flags, device=args.device, downloads=args.downloads)
