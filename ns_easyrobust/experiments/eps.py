"""The experiment ``eps``: Table 4 of arXiv:2403.10476, from the records of a study."""

from __future__ import annotations

import argparse
import csv
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import evaluation, report
from ..errors import DataError, OptionError
from ..utils import file_or_folder
from .feasible_norm_inputs import study_runs
from .figure import FigureExperiment
from .noise_rows import NoiseRow, read_noise_rows
from .registry import register_experiment
from .results import Results
from .study_plan import Run
from .study_record import record_of

if TYPE_CHECKING:
    from ..report import FigureReport, SeedRun, StudyTable

_NULLSPACE = "nullspace"
_TOTAL = "total"


class _Method(NamedTuple):
    """A method of the study.

    Attributes:
        kind: of its noise, as ``--aug``; "none" without noise.
        eps: of its noise; None without.
        runs: a seed each.
        noises: of all runs.
    """

    kind: str
    eps: float | None
    runs: list[SeedRun]
    noises: list[NoiseRow]


@register_experiment("eps")
class EpsExperiment(FigureExperiment):
    """accuracy against eps of the noise, for each kind of noise in a study (Table 4)"""

    def add_inputs(self, parser: argparse.ArgumentParser) -> None:
        """Add the study."""
        study = parser.add_argument_group("study")
        study.add_argument(
            "--study", type=file_or_folder, required=True, metavar="FOLDER",
            help="of a finished study, or its unpacked records: its methods are told apart by their --aug and --ns-eps",
        )  # fmt: skip
        study.add_argument("--methods", nargs="+", default=[], metavar="LABEL", help="of the study (default: all)")
        study.add_argument(
            "--kinds", nargs="+", default=[], metavar="NAME", help="of noise, as --aug names them (default: all)"
        )

    def measure(self, args: argparse.Namespace, results: Results) -> None:
        """Compare the methods of the study, with the one without noise and with nullspace noise."""
        methods, digest = _methods(Path(args.study), args.methods, args.kinds)
        results.begin({"records": digest, "methods": list(methods)}, "cpu")
        if not results.lines:
            results.add(*_lines(methods))

    def report(self, protocol: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], parts: Path) -> FigureReport:
        """Tables and picture of the lines."""
        return report.eps_report(lines)


def _methods(folder: Path, wanted: Sequence[str], kinds: Sequence[str]) -> tuple[dict[str, _Method], str]:
    """The methods by label, and a digest of their records.

    Raises:
        OptionError: an unknown method, none or several without noise, or two of one kind and eps.
        DataError: no finished run, one without records, or no method with noise.
    """
    methods: dict[str, _Method] = {}
    digest = hashlib.sha256()
    for one in study_runs(folder, wanted, weights=False)[0]:
        run = Run(one.label, one.seed, Path(one.path).parent, {}, 0, None, None, {})
        record = record_of(run)
        flags = {} if record is None else record.flags
        kind, eps = str(flags.get("aug", "none")), float(flags.get("ns_eps") or 0)
        if kinds and kind not in ("none", *kinds):
            continue
        noises = _noises(run.folder)
        records = evaluation.read_records(run.results) if run.results.is_file() else []
        if not records:
            raise DataError(f"{run.folder}: expected the records of an evaluation, found none. Let the study end.")
        digest.update("".join(sorted(each.to_json() for each in records)).encode())
        method = methods.setdefault(one.label, _Method(kind, eps if noises else None, [], []))
        method.runs.append(report.SeedRun(one.seed, records))
        method.noises.extend(noises)
    _require_comparable(folder, methods)
    if missing := [kind for kind in kinds if kind not in {method.kind for method in methods.values()}]:
        raise OptionError(f"--kinds: expected kinds of noise of {folder}, found {missing[0]}, which it does not have.")
    return methods, digest.hexdigest()


def _noises(folder: Path) -> list[NoiseRow]:
    path = folder / "noise.csv"
    try:
        return read_noise_rows(path)
    except FileNotFoundError:
        return []
    except (OSError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: expected a run's noises, found other things ({error}). Leave the run out.") from error


def _require_comparable(folder: Path, methods: Mapping[str, _Method]) -> None:
    plain = [label for label, method in methods.items() if method.kind == "none"]
    if len(plain) != 1:
        raise OptionError(
            f"--study {folder}: expected one method without noise (aug none), to compare the others with, found "
            f"{', '.join(plain) or 'none'}. Choose by --methods."
        )
    noisy = [label for label, method in methods.items() if method.eps is not None]
    if not noisy:
        raise DataError(f"--study {folder}: expected methods with noise of some eps (--aug, --ns-eps), found none.")
    first: dict[tuple[str, float | None], str] = {}
    for label in noisy:
        before = first.setdefault((methods[label].kind, methods[label].eps), label)
        if before != label:
            raise OptionError(
                f"--study {folder}: expected one method of each kind of noise and eps, found {before} and {label}. "
                "Choose by --methods."
            )


def _lines(methods: Mapping[str, _Method]) -> Iterator[dict[str, Any]]:
    """What each method's noises were, its difference from the plain one, and nullspace noise's from the others'."""
    plain = next(label for label, method in methods.items() if method.kind == "none")
    shown = {
        label if method.eps is None else f"{method.kind}, eps {method.eps:g}": method
        for label, method in methods.items()
        if label == plain or method.eps is not None
    }
    table = report.StudyTable([report.MethodRuns(label, own.runs) for label, own in shown.items()], plain)
    by_noise = {(method.kind, method.eps): label for label, method in shown.items()}
    measures = list(_measures(table))
    for label, method in shown.items():
        named = {"label": label, "aug": method.kind, "eps": method.eps, "seeds": len(method.runs)}
        if method.noises:
            held_out = [noise.held_out for noise in method.noises if noise.held_out is not None]
            norms = [noise.norm for noise in method.noises]
            means = {"norm": _mean(norms), "held_out": _mean(held_out) if held_out else None}
            yield {"kind": "noise", **named, "noises": len(norms), **means}
        for name, measure, n in measures:
            found = table.comparison(label, measure)
            value = table.value(label, measure)
            if value is not None:
                yield {
                    "kind": "accuracy", **named, "measure": name, "value": value, "n": n,
                    **({} if found is None else found.fields),
                }  # fmt: skip
    for (kind, eps), label in by_noise.items():
        own = by_noise.get((_NULLSPACE, eps))
        if eps is None or own is None or kind == _NULLSPACE:
            continue
        for name, measure, n in measures:
            if (found := table.compare(own, label, measure)) is not None:
                named = {"aug": _NULLSPACE, "other": kind, "eps": eps, "seeds": len(shown[label].runs)}
                yield {"kind": "contrast", **named, "measure": name, "n": n, **found.fields}


def _measures(table: StudyTable) -> Iterator[tuple[str, Any, int]]:
    """Clean, Adversarial, OOD and total as in Figure 4, each a plain mean of its columns, with the least n of them."""
    shown = {column.suite for column in table.columns if column.unit == "%"}
    present = [suite for suite in evaluation.suites().values() if suite.record in shown]
    for group in (evaluation.CLEAN, evaluation.ADVERSARIAL, evaluation.OOD, _TOTAL):
        names = [suite.name for suite in present if group in (_TOTAL, suite.group)]
        measure = table.mean_over(names) if names else None
        if measure is not None:
            counts = [record.n for _, column in measure.terms for _, record in table.column_records(column)]
            yield f"{group}: {measure.names}", measure, min(counts)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
