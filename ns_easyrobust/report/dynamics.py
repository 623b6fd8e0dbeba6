"""Tables of ``dynamics``: noise and accuracy by training step, as in Figure 4 and Table 5 of arXiv:2403.10476."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from ..evaluation import CLEAN
from .dynamics_course import TOTAL, Course, Line, mean, rounds
from .dynamics_picture import draw_dynamics
from .figure_report import FigureReport
from .seed_statistics import Interval, interval_of_mean, over_seeds
from .sheet import Cell, Sheet, format_count
from .statistics import holm

_LEVEL = 0.05
_MOST_STEPS = 10  # of Table 5, as in the paper
_PAPERS = "nullspace"  # the label of the paper's method in studies, as --aug names it


def _in_search(run: Line, place: int) -> bool:
    return bool(run["stopped"][place])


def _held_out(run: Line, place: int) -> bool | None:
    influence = run["held_out"][place]
    return None if influence is None else influence < run["eps"][place]


def dynamics_report(protocol: Line, lines: Sequence[Line]) -> FigureReport:
    """The report of the experiment's lines.

    Args:
        protocol: names the ``baseline``.
    """
    course = Course(lines, protocol.get("baseline"))
    sheets = [("", _accuracy(course))]
    if noisy := course.noisy():
        sheets += [("Noises", _noises(course, noisy)), *_table5(course, noisy)]
    return FigureReport(
        "Noise and accuracy during training (Figure 4, Table 5)",
        sheets,
        [*_protocol(course, protocol), *_findings(course, noisy)],
        list(_rows(course)),
        partial(draw_dynamics, course),
    )


def _accuracy(course: Course) -> Sheet:
    last = course.updates[-1]
    headings = [(f"{measure} / start", "") for measure in course.measures]
    if course.baseline is not None:
        headings += [(f"{measure} minus {course.baseline}", "points") for measure in course.measures]
    rows = []
    for label in course.labels:
        cells = [_interval_cell(course.relative(label, last, measure), ".3f") for measure in course.measures]
        if course.baseline is not None:
            own = label != course.baseline
            gains = [course.gain(label, last, measure) if own else {} for measure in course.measures]
            cells += [_interval_cell(gain, "+.2f") for gain in gains]
        rows.append((label, cells))
    note = f"After {last} updates: mean over {format_count(len(course.seeds), 'seed')} [95% interval]."
    return Sheet(headings, rows, [note])


def _interval_cell(values: Mapping[int, float], form: str) -> Cell:
    return Cell(_shown(interval_of_mean(list(values.values())), form)) if values else Cell("", is_number=False)


def _shown(found: Interval, form: str) -> str:
    """A mean with its interval, if it has one."""
    ends = f" [{found.low:{form}}, {found.high:{form}}]" if math.isfinite(found.low) else ""
    return f"{found.mean:{form}}{ends}"


def _noises(course: Course, noisy: Sequence[str]) -> Sheet:
    headings = [("eps", ""), ("under eps in the search", ""), ("under eps held out", ""), ("norm, first", "")]
    headings += [("norm, last", ""), ("norm, later half / earlier half", "")]
    rows = []
    for label in noisy:
        runs = course.of(label)
        norms = list(course.noise(label, "norm").values())
        growth = course.growth(label)
        cells = [
            ", ".join(dict.fromkeys(f"{eps:g}" for run in runs for eps in run["eps"])),
            _share(runs, _in_search) if course.is_searched(label) else "",
            _share(runs, _held_out),
            *((_shown(norm, ".4g") for norm in (norms[0], norms[-1])) if norms else ("", "")),
            _shown(interval_of_mean(growth), ".3f") if growth else "",
        ]
        rows.append((label, [Cell(text) for text in cells]))
    notes = [
        "Rounds of all seeds: in the search, the stop test of Algorithm 1 was under eps within T steps, on the batches "
        "of the search; held out, the influence on other images was under eps. Blank: noise that is not searched for. "
        "In brackets: least to most of a seed, as rounds of one run are not independent; of norms, Student's 95% "
        "interval over seeds."
    ]
    return Sheet(headings, rows, notes)


def _share(runs: Sequence[Line], is_under: Callable[[Line, int], bool | None]) -> str:
    """How many rounds of all runs are under eps, and of one run at least and at most."""
    each = [rounds([run], is_under) for run in runs]
    found, n = (sum(own) for own in zip(*each, strict=True))
    if not n:
        return "not measured"
    counts = [one for one, _ in each]
    spread = f" ({min(counts)} to {max(counts)} of {each[0][1]})" if len(each) > 1 else ""
    return f"{found} of {n}{spread}"


def _table5(course: Course, noisy: Sequence[str]) -> Iterator[tuple[str, Sheet]]:
    """Its title and the table: of many rounds each second, third, ..., the last one among them.

    None where no two methods have a noise of one step.
    """
    steps = sorted(set.intersection(*({*course.noise(label, "mse_probability")} for label in noisy)))
    if not steps:
        return
    shown = steps[:: -math.ceil(len(steps) / _MOST_STEPS)][::-1]
    rows = []
    for label in noisy:
        searched = [("mse_probability", "search")] if course.is_searched(label) else []
        for number, name in (*searched, ("held_out", "held out")):
            means = course.noise(label, number)
            cells = [Cell(f"{means[step].mean:.4f}" if step in means else "") for step in shown]
            rows.append((f"{label}, {name}", cells))
    title = f"Influence of the noises (Table 5): {len(shown)} of {format_count(len(steps), 'round')}"
    notes = ["mse_probability by training step: mean over seeds."]
    yield title, Sheet([(str(step), "") for step in shown], rows, notes)


def _protocol(course: Course, protocol: Line) -> Iterator[str]:
    words = " ".join(protocol.get("benchmark", []))
    yield (
        f"{format_count(len(course.seeds), 'seed')} of each method; checkpoints of {len(course.updates)} moments; "
        f"evaluated by: ns-easyrobust benchmark {words}."
    )
    for measure in course.measures:
        titles = [f"{title} (n={n})" for title, group, n in course.columns if measure in (TOTAL, group)]
        yield f"{measure}: plain mean of {', '.join(titles)}."
    starts = {measure: {run: course.start(*run, measure) for run in course.runs} for measure in course.measures}
    values = ", ".join(f"{measure} {mean(list(own.values())):.2f}%" for measure, own in starts.items())
    yield f"The start: {values}. Figure 4 of the paper divides by these; its Adversarial is FGSM and DamageNet."


def _findings(course: Course, noisy: Sequence[str]) -> Iterator[str]:
    n = format_count(len(course.seeds), "seed")
    if len(course.seeds) > 1:
        yield from _rises(course, n)
    if course.baseline is None or len(course.seeds) < 2:
        yield f"What finetuning alone does is not told apart here: it takes a method without noise and two seeds ({n})."
    else:
        yield from _gains(course, n)
    for label in noisy:
        yield _norm_finding(course, label, n)


def _rises(course: Course, n: str) -> Iterator[str]:
    """What Figure 4 shows: what is above the start in the end, by the whole interval."""
    last = course.updates[-1]
    relative = {
        label: {
            measure: interval_of_mean(list(found.values()))
            for measure in course.measures
            if (found := course.relative(label, last, measure))
        }
        for label in course.labels
    }
    risen = {label: [name for name, own in found.items() if own.low > 1] for label, found in relative.items()}
    if own := relative.get(_PAPERS):
        values = ", ".join(f"{measure} {_shown(found, '.3f')}" for measure, found in own.items() if measure != CLEAN)
        rise = [measure for measure in risen[_PAPERS] if measure != CLEAN]
        verdict = f"is seen in {', '.join(rise)}" if rise else "is not reproduced here: no interval is above the start"
        yield f"Figure 4's rise of accuracy {verdict}. {_PAPERS} over the start after {last} updates: {values} (n={n})."
    named = "; ".join(f"{label} in {', '.join(names) or 'nothing'}" for label, names in risen.items())
    yield f"Above the start after {last} updates by the whole interval, uncorrected for their number: {named} (n={n})."


def _gains(course: Course, n: str) -> Iterator[str]:
    """What each kind of noise adds to finetuning alone."""
    last = course.updates[-1]
    words = _verdicts(course, last)
    for label in sorted(course.labels, key=lambda own: own != _PAPERS):
        if label == course.baseline:
            continue
        found = {m: interval_of_mean(list(course.gain(label, last, m).values())) for m in course.measures}
        ends = ", ".join(f"{measure} {own.high:+.2f}" for measure, own in found.items())
        clear = [f"{measure} {words[measure, label]}" for measure in found if words[measure, label]]
        yield (
            f"{label} against finetuning alone ({course.baseline}) with the same seeds: "
            f"{', '.join(clear) or 'no difference found'} after Holm's correction over {len(words)} tests. "
            f"It adds at most, in points: {ends} (upper ends of the 95% intervals, n={n})."
        )


def _verdicts(course: Course, update: int) -> dict[tuple[str, str], str]:
    """For each measure and method "more" or "less" than the baseline, or "": t over seeds, Holm's correction for all.

    Seeds that all gain the same to the last image, as two may by chance, tell nothing of their spread.
    """
    others = [label for label in course.labels if label != course.baseline]
    gains = {(measure, label): course.gain(label, update, measure) for measure in course.measures for label in others}
    ps = {key: _p_of(list(own.values())) for key, own in gains.items()}
    adjusted = dict(zip(ps, holm(list(ps.values())), strict=True))
    return {
        key: "" if adjusted[key] > _LEVEL else "more" if mean(list(own.values())) > 0 else "less"
        for key, own in gains.items()
    }


def _p_of(gains: Sequence[float]) -> float:
    found = over_seeds({str(place): gain for place, gain in enumerate(gains)}, {str(p): 0.0 for p in range(len(gains))})
    return 1.0 if found is None or found.half_width == 0 else found.p


def _norm_finding(course: Course, label: str, n: str) -> str:
    runs, growth = course.of(label), course.growth(label)
    searched, of = rounds(runs, _in_search)
    under, known = rounds(runs, _held_out)
    parts = [f"{searched} of {of} rounds ended under eps in the search"] if course.is_searched(label) else []
    what = "were under it" if parts else "rounds were under eps"
    parts += [f"{under} of {known} {what} on held-out images"] if known else []
    grown = ""
    if len(growth) > 1:
        ratio = interval_of_mean(growth)
        word = "grows" if ratio.low > 1 else "shrinks" if ratio.high < 1 else "neither grows nor shrinks clearly"
        grown = f" Its norm {word}: later half / earlier half {_shown(ratio, '.3f')} (n={n})."
    return f"{label}: {', and '.join(parts)}.{grown}"


def _rows(course: Course) -> Iterator[Sequence[object]]:
    yield ("kind", "label", "seed", "step", "name", "value", "n")
    for (label, seed), run in course.runs.items():
        for number in ("norm", "mse_probability", "held_out", "stopped"):
            for step, value in zip(run["steps"], run[number], strict=True):
                yield ("noise", label, seed, step, number, value, "")
    for label, update, measure in itertools.product(course.labels, course.updates, course.measures):
        for seed, value in course.relative(label, update, measure).items():
            yield ("relative to the start", label, seed, update, measure, value, "")
    for (label, seed, update), columns in course.points():
        for column in columns:
            yield ("accuracy, %", label, seed, update, column["title"], column["value"], column["n"])
