"""What stands beneath a study's table: how to read it, what it could not have seen, and where its numbers come from."""

from __future__ import annotations

from .columns import column_notes, columns_of
from .provenance import facts_line, facts_of
from .seed_statistics import POWER, smallest_effect
from .sheet import format_count, format_number, join_values
from .study_comparison import StudyComparison
from .study_runs import MethodRuns, SeedRun


def study_notes(study: StudyComparison, has_costs: bool) -> list[str]:
    """The notes beneath the table."""
    notes = []
    if any(len(method.runs) > 1 for method in study.methods.values()):
        notes.append("Values are means over seeds; ±: the standard deviation over seeds.")
    notes += _robustness_notes(study)
    if study.baseline is not None:
        notes += [*_difference_notes(study), *_effect_notes(study), *_gap_notes(study)]
    if has_costs:
        notes.append(
            "Costs are of the training, means over seeds. forward-equivalents: forward passes that the whole training "
            "cost for each image of a batch, a backward pass to weights counted as 2 and one to the input alone as 1."
        )
    for column in study.columns:
        notes += [f"{column.title}: {note}." for note in column_notes(study.column_records(column))]
    for label, method in study.methods.items():
        short = [
            f"{measure.title} ({', '.join(run.name for run in method.runs if run.name not in values)})"
            for measure in study.measures
            if 0 < len(values := study.values(label, measure)) < len(method.runs)
        ]
        if short:
            notes.append(f"{label}: without some of its runs in {'; '.join(short)}.")
    return notes


def _robustness_notes(study: StudyComparison) -> list[str]:
    measure = study.robustness
    if measure is None or measure not in study.measures:
        return []
    return [
        f"{measure.title}: plain mean of {study.robust_names}. Of images that several of these share, all verdicts "
        "count together; sets that differ count as drawn independently, which makes the interval over images too "
        "narrow where one is a part of another, as a subset is."
    ]


def _difference_notes(study: StudyComparison) -> list[str]:
    level, percent = f"{1 - study.confidence:.2g}", f"{100 * study.confidence:g}%"
    found = [each for label in study.methods for each in study.comparisons(label) if each is not None]
    notes = [f"(+x): difference to {study.baseline}, in points where the unit is %."]
    if not any(each.claim is not None for each in found):
        return notes
    notes.append(
        f"(+x [low, high], p): with the wider of two {percent} intervals and the larger of two p, not corrected. Over "
        "images: paired t of each image's mean over seeds, with two images added, one for either side (Bonett and "
        "Price 2012); of one accuracy of two single checkpoints, the score interval (Newcombe 1998, method 10) and "
        "McNemar's exact p. Over seeds: Student's t, paired by seed where both have the same ones, Welch's where "
        "they have others; a finished checkpoint counts as given, and a single trained run as spread like the other's."
    )
    if any(each.claim is not None and each.seeds is None for each in found):
        single = [label for label, method in study.methods.items() if len(method.runs) == 1]
        notes.append(
            f"One run each, which says nothing about other seeds where two such are compared: {', '.join(single)}."
        )
    notes.append(
        f"better, worse: p of at most {level} after Holm's correction for the {len(study.measures)} columns of the row "
        "that have one; other differences may be chance."
    )
    return notes


def _effect_notes(study: StudyComparison) -> list[str]:
    """What the study could not have seen, by column: over its rows, from the least to the greatest."""
    parts = []
    for measure in study.measures:
        claims = [each.claim for label in study.methods if (each := study.comparison(label, measure)) and each.claim]
        effects = [format_number(smallest_effect(found, study.confidence), measure.unit) for found in claims]
        if effects:
            ends = sorted(effects, key=float)
            parts.append(f"{measure.title} {ends[0]}" + (f" to {ends[-1]}" if ends[0] != ends[-1] else ""))
    if not parts:
        return []
    return [
        f"Smallest true difference that would have been found with a probability of {POWER:g} at level "
        f"{1 - study.confidence:.2g}, before Holm, by the spread of each row (least to greatest): {'; '.join(parts)}. "
        "That a smaller one was not found is no sign that there is none."
    ]


def _gap_notes(study: StudyComparison) -> list[str]:
    """Which comparisons there are not, or without an interval, and why."""
    notes = []
    for measure in study.measures:
        unread = []
        for label in study.methods:
            found = study.comparison(label, measure)
            if found is not None and found.claim is None:
                unread.append(label)
            elif found is None and label != study.baseline:
                reason = study.mismatch(measure, [label, str(study.baseline)])
                both_there = study.values(label, measure) and study.values(str(study.baseline), measure)
                if reason and both_there:
                    notes.append(f"{measure.title}, {label}: not compared with {study.baseline}: {reason}.")
        if unread:
            notes.append(
                f"{measure.title}, {', '.join(unread)}: no interval and no p, as not all runs' verdicts on each image "
                "were kept."
            )
    return notes


def runs_line(method: MethodRuns) -> str:
    """Seeds of a method and where its numbers come from: one value, or each with its seeds."""
    facts: dict[str, list[tuple[str, str]]] = {}
    for run in method.runs:
        for name, value in _run_facts(run).items():
            facts.setdefault(name, []).append((value, run.name))
    seeds = [str(run.seed) for run in method.runs if run.seed is not None]
    trained = f"{format_count(len(method.runs), 'run')}" + (f", trained with seed {', '.join(seeds)}" if seeds else "")
    return f"{trained}; {facts_line({name: join_values(pairs) for name, pairs in facts.items()})}"


def _run_facts(run: SeedRun) -> dict[str, str]:
    records = list(run.cells.values())
    by_key = {column.key: column for column in columns_of(records)}
    facts = facts_of([(by_key[key], record) for key, record in run.cells.items()])
    sha256 = facts.pop("sha256", None)
    if sha256 is not None:
        facts["checkpoint"] += f" (sha256 {sha256[:12]})"
    return {"evaluation seed" if name == "seed" else name: value for name, value in facts.items()}
