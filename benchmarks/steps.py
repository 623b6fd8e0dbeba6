"""Commands of a longer job, each printed as one would type it, in their order; what is done is not done again."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
_SPACE = re.compile(r"""('[^']*'|"(?:\\.|[^"\\])*"|\\.)|\s+""")  # what is quoted first, to be left as it is


def steps(text: str) -> Iterator[tuple[str, str | None]]:
    """Commands, and the file that each leaves when it is done: ``COMMAND  # makes FILE``.

    Lines that end with a backslash go on. A command that makes nothing sees for itself what it has done before.
    """
    for line in filter(None, re.sub(r"\\\n[ \t]*", "", text).split("\n")):
        command, _, made = line.partition("  # makes ")
        yield _SPACE.sub(lambda found: found[1] or " ", command.strip()), made or None


def carry_out(text: str, folder: Path, dry_run: bool = False) -> None:
    """Run the commands in ``folder``, with this Python's programs before others; SystemExit after one that fails."""
    print(f"$ mkdir -p {shlex.quote(str(folder))} && cd {shlex.quote(str(folder))}")
    if not dry_run:
        folder.mkdir(parents=True, exist_ok=True)
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    environment = os.environ | {"PATH": programs}
    for command, made in steps(text):
        if made is not None and (folder / made).exists():
            print(f"# {made} is there, so not again: {command}", flush=True)
            continue
        print(f"$ {command}", flush=True)
        if dry_run:
            continue
        with subprocess.Popen(shlex.split(command), cwd=folder, env=environment) as process:
            try:
                code = process.wait()
            except KeyboardInterrupt:  # the command has it too, and saves its state
                code = process.wait() or 130
        if code:
            sys.exit(f"ended with exit code {code}: {command}\nThe same call goes on there.")


def link_to_benchmarks(folder: Path) -> str:
    """The step that makes this folder ``benchmarks`` below ``folder`` too, as studies name it from where they run."""
    return f"ln -s {shlex.quote(os.path.relpath(HERE, folder.resolve()))} benchmarks  # makes benchmarks\n"
