"""Noise and accuracy by training step: lines by hand, whose means, intervals and shares are known."""

from __future__ import annotations

import io

import pytest
from scipy import stats

from ns_easyrobust.report.dynamics import dynamics_report
from ns_easyrobust.report.dynamics_course import Course, mean_of_group, rounds


def columns(clean, fgsm, a, c):
    values = {"val": ("clean", clean), "fgsm": ("Adversarial", fgsm), "a": ("OOD", a), "100 - c": ("OOD", c)}
    return [{"title": title, "group": group, "value": value, "n": 50} for title, (group, value) in values.items()]


def run(label, seed, norm=(), held_out=(), stopped=()):
    steps = [40 * place for place in range(len(norm))]
    return {
        "kind": "run", "label": label, "seed": seed, "start": "s.pth", "eps": [0.03] * len(steps), "steps": steps,
        "norm": list(norm), "mse_probability": [0.02] * len(norm), "stopped": list(stopped), "held_out": list(held_out),
    }  # fmt: skip


def checkpoint(label, seed, update, *values):
    return {"kind": "checkpoint", "label": label, "seed": seed, "update": update, "columns": columns(*values)}


LINES = [
    run("none", 0),
    run("none", 1),
    run("ns", 0, (10.0, 20.0, 40.0, 50.0), (0.01, 0.05, 0.02, 0.03), (True, True, False, True)),
    run("ns", 1, (10.0, 10.0, 5.0, 5.0), (0.01, 0.01, 0.01, 0.01), (True, True, True, True)),
    {"kind": "start", "start": "s.pth", "columns": columns(80, 20, 30, 50)},
    checkpoint("none", 0, 8, 80, 22, 30, 50),
    checkpoint("none", 1, 8, 80, 24, 30, 50),
    checkpoint("ns", 0, 8, 90, 24, 40, 60),
    checkpoint("ns", 1, 8, 70, 20, 20, 60),
]
ALONE = [line for line in LINES if line.get("seed", 0) == 0 and line.get("label") != "none"]
PROTOCOL = {"baseline": "none", "benchmark": ["--suite", "val", "fgsm"]}


def test_the_averages_of_the_paper_are_plain_means_of_their_columns():
    values = columns(80, 20, 30, 50)
    assert {name: mean_of_group(values, name) for name in ("clean", "Adversarial", "OOD", "total")} == {
        "clean": 80, "Adversarial": 20, "OOD": 40, "total": 45,
    }  # fmt: skip


def test_what_is_relative_to_the_start_and_to_the_baseline():
    course = Course(LINES, "none")
    assert course.measures == ["Adversarial", "OOD", "total", "clean"]
    assert course.relative("ns", 8, "Adversarial") == {0: 1.2, 1: 1.0}
    assert course.relative("none", 8, "Adversarial") == {0: 1.1, 1: 1.2}
    assert course.relative("ns", 0, "OOD") == {0: 1.0, 1: 1.0}
    assert course.gain("ns", 8, "Adversarial") == {0: 2.0, 1: -4.0}
    assert course.gain("ns", 8, "OOD") == {0: 10.0, 1: 0.0}
    assert course.gain("ns", 8, "total") == {0: 53.5 - 45.5, 1: 42.5 - 46.0}
    assert Course(LINES, "other").gain("ns", 8, "total") == {}


def test_norms_by_step_and_their_growth():
    course = Course(LINES, "none")
    assert course.noisy() == ["ns"]
    norms = course.noise("ns", "norm")
    assert {step: found.mean for step, found in norms.items()} == {0: 10.0, 40: 15.0, 80: 22.5, 120: 27.5}
    low, high = stats.t.interval(0.95, 1, loc=15.0, scale=stats.sem([20.0, 10.0]))
    assert norms[40][1:] == pytest.approx((low, high))
    assert course.growth("ns") == [45 / 15, 5 / 10]


def test_rounds_count_where_it_is_known():
    runs = Course(LINES, None).of("ns")
    assert rounds(runs, lambda one, place: one["stopped"][place]) == (7, 8)
    assert rounds(runs, lambda one, place: None if place else one["norm"][place] > 0) == (2, 2)


def test_the_report_says_what_the_numbers_say():
    report = dynamics_report(PROTOCOL, LINES)
    shown = report.to_markdown()
    assert "ns: 7 of 8 rounds ended under eps in the search, and 6 of 8 were under it on held-out images." in shown
    assert "ns against finetuning alone (none) with the same seeds: no difference found" in shown
    assert "uncorrected for their number: none in nothing; ns in nothing (n=2 seeds)" in shown
    assert "neither grows nor shrinks clearly" in shown
    low, high = stats.t.interval(0.95, 1, loc=1.1, scale=stats.sem([1.2, 1.0]))
    assert f"1.100 [{low:.3f}, {high:.3f}]" in shown
    assert ["noise", "ns", 0, 40, "held_out", 0.05, ""] in [list(row) for row in report.rows]
    stream = io.BytesIO()
    report.draw(stream)
    assert stream.getvalue().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("gains", "word"),
    [((5, 5.25), "no difference found"), ((5, 5.002), "more"), ((-5, -5.002), "less"), ((5, 5), "no difference found")],
)
def test_more_and_less_survive_holms_correction_and_need_a_spread(gains, word):
    """Of two seeds, p = 2 arctan(1 / t) / pi: 0.016 of the first (t = 41), which is not enough for one of four."""
    own = [checkpoint("ns", seed, 8, 80, 22 + 2 * seed + gain, 30, 50) for seed, gain in enumerate(gains)]
    note = next(one for one in dynamics_report(PROTOCOL, [*LINES[:-2], *own]).notes if one.startswith("ns against"))
    assert f"seeds: {word if word.startswith('no') else f'Adversarial {word}'}" in note


def test_figure_4_is_reproduced_by_an_interval_above_the_start_alone():
    lines = [line for line in LINES if line.get("label") != "ns"] + [run("nullspace", 0), run("nullspace", 1)]
    flat = [checkpoint("nullspace", seed, 8, 80, 20 + 4 * seed, 30, 50) for seed in (0, 1)]
    risen = [checkpoint("nullspace", seed, 8, 80, 24, 30, 50) for seed in (0, 1)]
    assert any("is not reproduced here" in note for note in dynamics_report(PROTOCOL, [*lines, *flat]).notes)
    assert any("is seen in Adversarial, total." in note for note in dynamics_report(PROTOCOL, [*lines, *risen]).notes)


def test_noise_that_is_not_searched_for_has_held_out_rows_alone():
    runs = [run("permuted", seed, (9.0, 9.0), (0.02, 0.02), (False, False)) for seed in (0, 1)]
    ends = [checkpoint("permuted", seed, 8, 80, 20, 30, 50) for seed in (0, 1)]
    shown = dynamics_report(PROTOCOL, [*LINES, *runs, *ends])
    assert "permuted: 4 of 4 rounds were under eps on held-out images." in shown.to_markdown()
    title, sheet = shown.sheets[2]
    assert title.endswith("2 of 2 rounds")
    assert [name for name, _ in sheet.rows] == ["ns, search", "ns, held out", "permuted, held out"]


def test_one_seed_and_no_baseline_is_told():
    report = dynamics_report({"baseline": "none"}, ALONE)
    assert any("not told apart here" in note for note in report.notes)


@pytest.mark.stress
def test_one_seed_and_no_baseline_is_drawn():
    stream = io.BytesIO()
    dynamics_report({"baseline": "none"}, ALONE).draw(stream)
    assert stream.getvalue().startswith(b"\x89PNG")
