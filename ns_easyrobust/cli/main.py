"""``ns-easyrobust VERB``: runs a verb; the only place that turns errors into exit codes."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys

from tqdm.contrib.logging import logging_redirect_tqdm

from .. import __version__
from ..errors import UserError
from ..utils import FlagParser, is_first_rank

# Each verb is a module of this folder with add_arguments(parser) and run(args). Whatever imports torch is imported in
# run, so that --help need not wait for it.
VERBS = {
    "demo": "the main job on small real data: pretrain, finetune four ways, attack, compare",
    "train": "finetune with --aug nullspace, an EasyRobust-style training script",
    "launch": "an unmodified EasyRobust script with --aug nullspace, repaired where time has broken it",
    "doctor": "say what a benchmark folder holds, before an evaluation finds out",
    "benchmark": "evaluate a checkpoint: the paper's whole table, EasyRobust's flags",
    "report": "set records beside each other: text, Markdown, CSV, plot",
    "noise": "synthesize nullspace noise for a checkpoint, measure it and save it",
    "nullspace": "exact nullspace of the patch embedding: dimensions, as in Table 1",
    "export": "convert a checkpoint between EasyRobust's and timm's layouts",
}


def _usage() -> str:
    lines = ["usage: ns-easyrobust VERB [flags] | --version    (VERB --help lists its flags)", ""]
    return "\n".join(lines + [f"  {name:10} {summary}" for name, summary in VERBS.items()])


def main(argv: list[str] | None = None) -> int:
    """Run one verb; the exit code is 0, 2 for a user's mistake, 130 for Ctrl-C, 141 for a closed pipe."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _main(argv)
        sys.stdout.flush()  # so that a closed pipe is noticed here, not at exit
    except BrokenPipeError:  # such as `... | head`, which stops reading early
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code


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
    level = logging.INFO if is_first_rank() else logging.WARNING  # only one rank logs under torchrun
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    try:
        verb = importlib.import_module(f"ns_easyrobust.cli.{name}")
        parser = FlagParser(prog=f"ns-easyrobust {name}", description=VERBS[name])
        verb.add_arguments(parser)
        parse = getattr(verb, "parse", argparse.ArgumentParser.parse_args)
        args = parse(parser, flags)
        with logging_redirect_tqdm():  # log lines above the progress bars, not through them
            verb.run(args)
    except UserError as error:
        print(f"ns-easyrobust {name}: {error.line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        resumes = name == "benchmark" and "--again" not in flags
        resume_hint = "; the same command goes on where it stopped" if resumes else ""
        print(f"ns-easyrobust {name}: interrupted{resume_hint}", file=sys.stderr)
        return 130
    return 0
