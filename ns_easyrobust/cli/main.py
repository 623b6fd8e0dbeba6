"""``ns-easyrobust VERB``: runs a verb; the only place that turns errors into exit codes."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import logging
import os
import sys

from .. import __version__
from ..errors import UserError, printable
from ..utils import FlagParser, is_first_rank
from .failures import failure_of_system, stdout_failed
from .foreign_warnings import silence_foreign_warnings
from .interrupts import Interrupted, Interrupts, Terminated

# Each verb is a module of this folder with add_arguments(parser) and run(args). Whatever imports torch is imported in
# run, so that --help need not wait for it.
VERBS = {
    "demo": "the main job on small real data: pretrain, finetune four ways, attack, compare",
    "train": "finetune with --aug nullspace, an EasyRobust-style training script",
    "launch": "an unmodified EasyRobust script with --aug nullspace, repaired where time has broken it",
    "doctor": "say what a benchmark folder holds, before an evaluation finds out",
    "corrupt": "ImageNet-C's corruptions of one's own images, for benchmark",
    "benchmark": "evaluate a checkpoint: the paper's whole table, EasyRobust's flags",
    "experiment": "a figure, table or study of the paper's kind: experiment --help lists them",
    "report": "set records beside each other: text, Markdown, CSV, plot",
    "noise": "synthesize nullspace noise for a checkpoint, measure it and save it",
    "nullspace": "exact nullspace of the patch embedding: dimensions, as in Table 1",
    "fingerprint": "whether a model is derived from another: make a fingerprint, compare two",
    "export": "convert a checkpoint between EasyRobust's and timm's layouts",
}


def _usage() -> str:
    lines = ["usage: ns-easyrobust VERB [flags] | --version    (VERB --help lists its flags)", ""]
    return "\n".join(lines + [f"  {name:10} {summary}" for name, summary in VERBS.items()])


def main(argv: list[str] | None = None) -> int:
    """Run one verb.

    Returns:
        The exit code: 0; 2 for a user's mistake, or where the system failed (a full disk or memory); 130 for Ctrl-C,
        143 for SIGTERM, 141 for a closed pipe.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    name = "".join(argv[:1])
    _replace_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a label that the terminal cannot show
    interrupts = Interrupts(insist=name != "launch")
    try:
        with interrupts:
            try:
                return _main(argv)
            finally:  # so that a closed pipe or a full disk is noticed here, not at exit
                if sys.stdout is not None and not sys.stdout.closed:
                    sys.stdout.flush()
    except KeyboardInterrupt:
        return _ended(argv, Interrupted)
    except Terminated:
        return _ended(argv, Terminated)
    except Exception as error:
        if interrupts.received is not None:  # an import that is interrupted fails in many ways
            return _ended(argv, interrupts.received)
        if isinstance(error, UserError):
            return _said(name, error.line, error.exit_code)
        if stdout_failed(error):  # `... | head`, which stops reading early
            _discard_output()
            return 141
        line = failure_of_system(error)
        if line is None:
            raise
        _discard_output()
        return _said(name, line, UserError.exit_code)


def _replace_closed_streams() -> None:
    """Let a stream that the caller has closed (``2>&-``) lead nowhere.

    The next file to be opened would get its number, and what C++ code says would go into that file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def _ended(argv: list[str], how: type[Interrupted | Terminated]) -> int:
    """Say once, not on each rank, that a signal has ended the verb; returns the exit code."""
    if not is_first_rank():
        return how.exit_code
    name = "".join(argv[:1])
    resumes = name in ("corrupt", "experiment") or (name == "benchmark" and "--again" not in argv)
    line = "interrupted" if how is Interrupted else "ended by SIGTERM"
    return _said(name, line + "; the same command goes on where it stopped" * resumes, how.exit_code)


def _said(name: str, line: str, code: int) -> int:
    """Say on stderr why the verb has ended; returns ``code``."""
    with contextlib.suppress(OSError):  # nobody reads it
        print(f"ns-easyrobust{f' {name}' * (name in VERBS)}: {line}", file=sys.stderr)
    return code


def _discard_output() -> None:
    """Let nothing more be written to stdout, where writing failed: Python would try again at its exit."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # there is none, or it is no file
        sys.stdout.flush()
        return
    with contextlib.suppress(AttributeError, OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _LogLines(logging.Formatter):
    """Messages alone; the paths and labels in them steer no terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, record.message.split("\n")))


def parser_of(name: str) -> FlagParser:
    """The parser with the flags of a verb."""
    parser = FlagParser(prog=f"ns-easyrobust {name}", description=VERBS[name])
    importlib.import_module(f"ns_easyrobust.cli.{name}").add_arguments(parser)
    return parser


def _main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if argv[0] == "--version":
        print(f"ns-easyrobust {__version__}")
        return 0
    name, *flags = argv
    if name not in VERBS:
        print(f"ns-easyrobust: expected a verb ({', '.join(VERBS)}), found {name!r}. See --help.", file=sys.stderr)
        return UserError.exit_code
    from tqdm.contrib.logging import logging_redirect_tqdm

    level = logging.INFO if is_first_rank() else logging.WARNING  # only one rank logs under torchrun
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LogLines())
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("torch").setLevel(logging.WARNING)  # it logs its caches' statistics at exit, if interrupted early
    if name != "launch":  # whose scripts' warnings are their own
        silence_foreign_warnings()
    verb = importlib.import_module(f"ns_easyrobust.cli.{name}")
    parse = getattr(verb, "parse", argparse.ArgumentParser.parse_args)
    args = parse(parser_of(name), flags)
    with logging_redirect_tqdm():  # log lines above the progress bars, not through them
        verb.run(args)
    return 0
