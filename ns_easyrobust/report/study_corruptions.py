"""A study by corruption: what the mean over ImageNet-C hides, by group with intervals and by corruption without."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from ..utils import as_csv
from .columns import Column
from .sheet import NOT_RUN, escape, format_number, format_settings
from .study_comparison import StudyComparison
from .study_measures import FOLDER_GROUPS, NOT_NOISE, Measure, corruption_of, mean_of, of_group, settings_of

_FIELDS = (
    *("kind", "name", "folders", "method", "value", "runs", "delta", "low", "high", "p"),
    *("images_low", "images_high", "images_p", "seeds_low", "seeds_high", "seeds_p", "settings"),
)


class _Part(NamedTuple):
    """A corruption or a group of them, and the mean over its folders."""

    kind: str
    name: str
    measure: Measure

    @property
    def heading(self) -> str:
        if self.kind == "corruption":
            return self.name.replace("_", " ")
        count = len({corruption_of(column) for _, column in self.measure.terms})
        return f"{'all but noise' if self.name == NOT_NOISE else self.name} (of {count})"


def _parts(folders: Sequence[Column]) -> list[_Part]:
    """The groups, then the corruptions in the groups' order, those of none of them last."""
    grouped = [folder for group in FOLDER_GROUPS if group != NOT_NOISE for folder in of_group(folders, group)]
    own = {("group", group): of_group(folders, group) for group in FOLDER_GROUPS}
    for name in dict.fromkeys(map(corruption_of, [*grouped, *folders])):
        own["corruption", name] = [folder for folder in folders if corruption_of(folder) == name]
    means = [(key, mean_of(key[1], each)) for key, each in own.items()]
    return [_Part(*key, mean) for key, mean in means if mean is not None]


def corruptions_markdown(study: StudyComparison) -> str:
    """A section of two tables, a row a method: of ImageNet-C's groups, and of its corruptions; "" without its folders.

    The groups are those of Hendrycks and Dietterich 2019, arXiv:1903.12261. The baseline's row has means over seeds and
    folders, the others' the difference to it; without a baseline all rows have means.
    """
    if not study.folders:
        return ""
    lines = ["## By corruption", "", escape(_note(study)), ""]
    for folders in study.folders:
        severities = sorted({str(folder.protocol["severity"]) for folder in folders})
        settings = f" {format_settings(settings_of(folders[0]))}." if len(study.folders) > 1 else ""
        lines += [escape(f"Severity {', '.join(severities)}.{settings}"), ""]
        parts = _parts(folders)
        for kind in ("group", "corruption"):
            if own := [part for part in parts if part.kind == kind]:
                lines += [*_table(study, own), ""]
    return "\n".join(lines)


def _note(study: StudyComparison) -> str:
    if study.baseline is None:
        rows = "Mean accuracy in percent over seeds and folders."
    else:
        rows = (
            f"{study.baseline}: mean accuracy in percent over seeds and folders. Other rows: the difference to it in "
            f"points; of groups with the wider of the two {100 * study.confidence:g}% intervals (over images, over "
            "seeds), as above. These describe: they are not corrected for their number."
        )
    return (
        f"{rows} The groups are ImageNet-C's (Hendrycks and Dietterich 2019, arXiv:1903.12261), each of as many "
        "corruptions as are there. all but noise: those of the other three groups, for training on noise may help "
        "against noise alone. corruptions.csv has the interval of each corruption."
    )


def _table(study: StudyComparison, parts: Sequence[_Part]) -> list[str]:
    lines = [
        f"| method | {' | '.join(escape(part.heading) for part in parts)} |",
        f"|:--|{'--:|' * len(parts)}",
    ]
    for label in study.methods:
        name = f"{label} (baseline)" if label == study.baseline else label
        cells = " | ".join(escape(_cell(study, label, part), brackets=False) for part in parts)
        lines.append(f"| {escape(name)} | {cells} |")
    return lines


def _cell(study: StudyComparison, label: str, part: _Part) -> str:
    value, runs = study.value(label, part.measure), len(study.values(label, part.measure))
    if value is None:
        keys = {column.key for _, column in part.measure.terms}
        return "not all folders" if any(keys & run.cells.keys() for run in study.methods[label].runs) else NOT_RUN
    if study.baseline in (label, None):
        text = _number(value, part)
    elif (found := study.comparison(label, part.measure)) is None:
        text = "not compared"
    else:
        text = _number(found.delta, part, "+")
        if found.claim is not None and part.kind == "group":
            text += f" [{_number(found.claim.low, part)}, {_number(found.claim.high, part)}]"
    whole = len(study.methods[label].runs)
    return text if runs == whole else f"{text} ({runs} of {whole} seeds)"


def _number(value: float, part: _Part, sign: str = "") -> str:
    """One digit after the point of a corruption, so that fifteen of them stand side by side."""
    return format_number(value, "%", sign) if part.kind == "group" else f"{value:{sign}.1f}"


def corruptions_csv(study: StudyComparison) -> str:
    """A line for each group and corruption and each method, in full precision; a field that does not apply is empty."""
    lines: list[dict[str, object]] = []
    for folders in study.folders:
        settings, parts = json.dumps(settings_of(folders[0]), sort_keys=True), _parts(folders)
        for label in study.methods:  # one after the other, so that the bits of its folders are read once
            for part in parts:
                runs, found = study.values(label, part.measure), study.comparison(label, part.measure)
                line: dict[str, object] = {"kind": part.kind, "name": part.name, "folders": len(part.measure.terms)}
                line |= {"method": label, "value": study.value(label, part.measure), "runs": len(runs)}
                lines.append({**line, **({} if found is None else found.fields), "settings": settings})
    return as_csv([_FIELDS, *([line.get(name) for name in _FIELDS] for line in lines)])
