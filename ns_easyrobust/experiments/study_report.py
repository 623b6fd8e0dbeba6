"""The report of a study: the table, its CSV, the picture, and what each method costs as JSON."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import evaluation, report
from ..errors import UserError, printable, without_secrets
from ..utils import write_text
from .study_file import StudyFile
from .study_noises import noises_csv, noises_markdown, read_noises
from .study_plan import Run
from .study_record import record_of

if TYPE_CHECKING:
    from ..evaluation import Record
    from ..report import SeedRun

_logger = logging.getLogger(__name__)


def write_study(study: StudyFile, runs: Sequence[Run], folder: Path, width: int) -> str:
    """Write report.md, report.csv, costs.json, and what else there is something to show in.

    That is study.png, primary.csv, secondary_1.csv and so on, corruptions.csv, and noises.csv.
    A row that lacks one of its seeds is left out, with a warning, and so are differences from a baseline that is.

    Returns:
        The table as text, at most ``width`` characters wide; "" where no row is whole.
    """
    write_text(folder / "costs.json", json.dumps(_costs(runs), indent=1) + "\n")
    rows = _rows(runs)
    if not rows:
        return ""
    baseline = study.baseline if study.baseline in rows else None
    if baseline != study.baseline:
        _logger.warning("no differences are shown: the baseline %s is not there", study.baseline)
    methods = [report.MethodRuns(label, seeds) for label, seeds in rows.items()]
    table = report.StudyTable(methods, baseline, robust_suites=_robust_suites(study))
    picture = "![clean accuracy against mean robustness](study.png)\n\n"
    try:
        report.study_figure(table, folder / "study.png")
    except UserError as error:
        _logger.warning("study.png was not drawn: %s", error)
        picture = ""
    noises = read_noises([run for run in runs if run.label in rows])
    text = str(table.to_text(width))
    trained = list(dict.fromkeys(_row(run, label) for run in runs if run.train is not None for label in run.measuring))
    endpoints: dict[str, report.Endpoint] = {}
    if study.primary is not None:
        primary = report.PrimaryEndpoint(table, trained, study.primary.against, study.primary.columns)
        endpoints["primary.csv"] = primary
        text += f"\n{primary.conclusion()}\n" if primary.conclusion() else ""
    for number, each in enumerate(study.secondary, 1):
        endpoints[f"secondary_{number}.csv"] = report.SecondaryEndpoint(table, trained, each.against, each.columns)
    for name, endpoint in endpoints.items():
        write_text(folder / name, endpoint.to_csv())
    parts = [_heading(study), f"{picture}{table.to_markdown()}", *(each.to_markdown() for each in endpoints.values())]
    parts += [report.corruptions_markdown(table), noises_markdown(noises), _methods(study, runs)]
    if table.folders:
        write_text(folder / "corruptions.csv", report.corruptions_csv(table))
    write_text(folder / "report.md", "\n\n".join(part.rstrip() for part in parts if part) + "\n")
    write_text(folder / "report.csv", table.to_csv())
    if noises:
        write_text(folder / "noises.csv", noises_csv(noises))
    return text


def _robust_suites(study: StudyFile) -> list[str] | None:
    """The suites whose mean is called robustness: those that the primary endpoint names, but the clean one; or None."""
    if study.primary is None or isinstance(study.primary.columns, str):
        return None
    return [name for name in study.primary.columns if name in evaluation.suites() and name != "val"] or None


def _row(run: Run, label: str) -> str:
    """The row of the records of this label."""
    return label.removesuffix(f", seed {run.seed}")


def _rows(runs: Sequence[Run]) -> dict[str, list[SeedRun]]:
    """The runs of each row that are there for all of its seeds, in the file's order; moving averages below the raw."""
    rows: dict[str, list[SeedRun | None]] = {}
    for run in runs:
        record = record_of(run)
        found = evaluation.read_records(run.results) if run.results.exists() else []
        for label in run.measuring:
            row = _row(run, label)
            own = _of_newest_weights([one for one in found if one.label == label])
            if record is None or not own:
                rows.setdefault(row, []).append(None)
                continue
            found_run = report.SeedRun(run.seed, own)
            if run.train is not None:
                costs = (record.updates, record.forward_equivalents, record.seconds)
                found_run = report.SeedRun(run.seed, own, *costs)
            rows.setdefault(row, []).append(found_run)
    whole = {row: [one for one in seeds if one is not None] for row, seeds in rows.items()}
    if left_out := [row for row, seeds in rows.items() if None in seeds]:
        _logger.warning("left out of the table, as not all of it is done: %s", ", ".join(left_out))
    return {row: seeds for row, seeds in whole.items() if row not in left_out}


def _of_newest_weights(records: Sequence[Record]) -> list[Record]:
    """The records of the weights that were measured last: a run that was trained anew leaves older ones in its file."""
    if not records:
        return []
    newest = max(records, key=lambda record: record.time)
    return [record for record in records if record.row == newest.row]


def _costs(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each training: its flags as words, its updates, their cost, and the seconds it took."""
    found = []
    for run in runs:
        record = record_of(run)
        if run.train is None or run.cost is None:
            continue
        found.append(
            {
                "method": run.label,
                "seed": run.seed,
                "updates": run.updates,
                "forward_equivalents_an_update": run.cost.update,
                "forward_equivalents_a_synthesis_at_most": run.cost.synthesis,
                "updates_a_synthesis": run.cost.interval,
                "forward_equivalents_at_most": run.cost.of(run.updates),
                "seconds": None if record is None or not record.trained else round(record.seconds, 1),
                "flags": run.train.shown,
            }
        )
    return found


def _heading(study: StudyFile) -> str:
    """The file's name, its question and protocol, and from what each method was trained for how long."""
    start = "timm's weights" if study.start is None else without_secrets(study.start)
    machine = evaluation.describe_machine("cpu")
    seeds = ", ".join(map(str, study.seeds))
    budget = f"{study.budget:g} {study.budget_unit.replace('_', '-')}"
    said = {"Question": study.question, "Protocol": study.protocol}
    parts = [f"## {title}\n\n{report.escape_text(text)}\n" for title, text in said.items() if text]
    parts += ["## Results\n"] * bool(parts)
    made = f"with seeds {seeds}; the table was made on {machine}.\n"
    trained = f"Each method was trained from {report.escape(start)} for {budget}, {made}"
    return "\n".join([f"# {report.escape(study.path.name)}\n", *parts, trained])


def _methods(study: StudyFile, runs: Sequence[Run]) -> str:
    """Which flags each method is, and the cost of an update."""
    first = {run.label: run for run in reversed(runs) if run.cost is not None}
    lines = [
        "## Methods\n",
        f"Of every method: {_shown(study.train) or 'the defaults of train'}. An update's forward-equivalents, for each "
        "image: a forward counts 1, a backward to the weights 2, one to the input alone 1; a noise's synthesis counts "
        "as if it took all its steps.\n",
        "| method | flags | updates | forward-equivalents |",
        "|:--|:--|--:|--:|",
    ]
    for label, flags in study.methods.items():
        run = first[label]
        lines.append(f"| {report.escape(label)} | {_shown(flags)} | {run.updates} | {run.cost} |")
    return "\n".join(lines) + "\n"


def _shown(flags: Mapping[str, Any]) -> str:
    return report.escape(
        without_secrets("; ".join(printable(f"{key}: {_as_yaml(value)}") for key, value in flags.items()))
    )


def _as_yaml(value: Any) -> str:
    """A flag's value as a study's file may have it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_as_yaml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_as_yaml(item)}' for key, item in value.items())}}}"
    return {None: "null", True: "true", False: "false"}[value] if isinstance(value, bool | None) else str(value)
