"""``ns-easyrobust VERB``: the only place that prints and that turns errors into exit codes."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from typing import NamedTuple

from tqdm.contrib.logging import logging_redirect_tqdm

from ..errors import UserError
from ..training import options
from ..utils.distributed import is_first


class _Verb(NamedTuple):
    module: str  # holds add_arguments(parser) and run(args); imported when the verb is used
    help: str


VERBS = {
    "demo": _Verb("cli.demo", "the main job on small real data: pretrain, finetune four ways, attack, compare"),
    "train": _Verb("training.trainer", "finetune with --aug nullspace, an EasyRobust-style training script"),
    "launch": _Verb(
        "integration.launch", "an unmodified EasyRobust script with --aug nullspace, repaired where time has broken it"
    ),
    "doctor": _Verb("cli.doctor", "say what a benchmark folder holds, before an evaluation finds out"),
    "benchmark": _Verb("cli.benchmark", "evaluate a checkpoint: the paper's whole table, EasyRobust's flags"),
    "report": _Verb("cli.report", "set records beside each other: text, Markdown, CSV, plot"),
    "noise": _Verb("cli.noise", "synthesize nullspace noise for a checkpoint, measure it and save it"),
    "nullspace": _Verb("cli.nullspace", "exact nullspace of the patch embedding: dimensions, as in Table 1"),
    "export": _Verb("cli.export", "convert a checkpoint between EasyRobust's and timm's layouts"),
}


def _usage() -> str:
    lines = ["usage: ns-easyrobust VERB [flags]    (VERB --help lists its flags)", ""]
    return "\n".join(lines + [f"  {name:10} {verb.help}" for name, verb in VERBS.items()])


def main(argv: list[str] | None = None) -> int:
    """Run one verb; the exit code is 0, 2 for a user's mistake, 130 for Ctrl-C, 141 for a closed pipe."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _main(argv)
        sys.stdout.flush()  # or a reader that has gone would be noticed at exit alone
    except BrokenPipeError:  # ... | head: it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code


def _main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0
    name, *flags = argv
    if name not in VERBS:
        print(f"ns-easyrobust: expected a verb ({', '.join(VERBS)}), found {name!r}. See --help.", file=sys.stderr)
        return UserError.exit_code
    level = logging.INFO if is_first() else logging.WARNING  # each line once under torchrun
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    try:
        verb = importlib.import_module(f"ns_easyrobust.{VERBS[name].module}")
        parser = options.Dashes(prog=f"ns-easyrobust {name}", description=VERBS[name].help)
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
        goes_on = "; the same command goes on where it stopped" if resumes else ""
        print(f"ns-easyrobust {name}: interrupted{goes_on}", file=sys.stderr)
        return 130
    return 0
