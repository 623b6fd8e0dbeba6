"""The verb ``launch``: run an unmodified EasyRobust script with ``--aug``, repaired where newer libraries broke it."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the launcher's own flags; all others belong to the script and the augmentation."""
    parser.usage = "%(prog)s PATH/main.py [--device D] [--downloads DIR] [flags of --aug and of the script]"
    parser.add_argument("script", metavar="PATH/main.py", help="an EasyRobust training script; it is not changed")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto: cuda if there is one")
    parser.add_argument(
        "--downloads", type=Path, metavar="DIR", help="where files that the script would download lie, by their names"
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
    """Run the script."""
    from ..integration import run_script

    run_script(Path(args.script), args.script_flags, device=args.device, downloads=args.downloads)
