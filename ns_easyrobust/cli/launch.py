"""The verb ``launch``: run an unmodified EasyRobust script with ``--aug``, repaired where newer libraries broke it."""

from __future__ import annotations

import argparse
import os
import traceback
from pathlib import Path

from ..errors import UserError, is_full_memory
from ..utils import file_or_folder
from .failures import stdout_failed, worker_failure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the launcher's own flags; all others belong to the script and the augmentation."""
    parser.usage = "%(prog)s PATH/main.py [--device D] [--downloads DIR] [flags of --aug and of the script]"
    parser.add_argument(
        "script", type=file_or_folder, metavar="PATH/main.py", help="an EasyRobust training script; it is not changed"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto: cuda if there is one")
    parser.add_argument(
        "--downloads",
        type=file_or_folder,
        metavar="DIR",
        help="where files that the script would download lie, by their names",
    )


def parse(parser: argparse.ArgumentParser, flags: list[str]) -> argparse.Namespace:
    """Parse the launcher's flags; all others are left unchanged in ``script_flags``."""
    script, launcher_flags, script_flags = flags[:1], [], []
    words = iter(flags[1:])
    for word in words:
        if word.split("=")[0] in ("--device", "--downloads"):
            launcher_flags += [word] if "=" in word else [word, *([value] if (value := next(words, None)) else [])]
        else:
            script_flags.append(word)
    args = parser.parse_args([*launcher_flags, *script])
    args.script_flags = script_flags
    return args


def run(args: argparse.Namespace) -> None:
    """Run the script. Its exit code is its own; so are its errors, which are shown from its own lines on."""
    from ..integration import run_script

    script, downloads = Path(args.script), Path(args.downloads) if args.downloads else None
    try:
        run_script(script, args.script_flags, device=args.device, downloads=downloads)
    except Exception as error:
        trace = error.__traceback__
        while trace is not None and not _is_same(trace.tb_frame.f_code.co_filename, script):
            trace = trace.tb_next
        is_ours = isinstance(error, UserError) or trace is None
        if is_ours or is_full_memory(error) or worker_failure(error) or stdout_failed(error):
            raise
        traceback.print_exception(error.with_traceback(trace))
        raise SystemExit(1) from None


def _is_same(one: str, other: Path) -> bool:
    """Whether two paths lead to one place; of links that lead in a circle neither leads anywhere."""
    return os.path.realpath(one) == os.path.realpath(other)
