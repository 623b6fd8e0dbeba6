"""The report of learned noise: intervals against scipy's, findings, and the picture read back."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

from ns_easyrobust.report.encoder_noise import encoder_noise_report
from ns_easyrobust.report.encoder_noise_points import points_of

PROTOCOL = {
    "model": "m", "checkpoint": "c", "images_from": "val/", "synthesis_from": "train/", "synthesis_n": 9, "steps": 3,
    "minibatch": 2, "step_length": 0.2, "limit": 0.1,
}  # fmt: skip
ONES = {"kind": "ones", "norm": 8.0, "logit_distance": [1e-6, 0.0, 2e-6], "n": 100}


def noise(
    strength: float, seed: int = 0, learned: int = 99, permuted: int = 60, within: int = 65, radial: float = 0.9
) -> dict[str, Any]:
    def of(unchanged: int) -> dict[str, Any]:
        only = {"only_learned": max(0, learned - unchanged), "only_control": max(0, unchanged - learned)}
        measured = {"mse_probability": [0.1, -0.01, 0.2], "logit_distance": [1.0, 0.5, 1.5]}
        return {"unchanged": unchanged, **measured, **only}

    return {
        "kind": "noise", "strength": strength, "noise_seed": seed, "norm": 10.0 * strength * 2**seed, "start_norm": 1.0,
        "token_share": 0.1, "distance": strength, "radial": radial * strength, "learned": of(learned),
        "permuted": of(permuted), "within": of(within), "n": 100,
    }  # fmt: skip


def test_of_one_noise_the_intervals_are_over_images():
    (point,) = points_of([ONES, noise(1.0)])
    found = stats.binomtest(99, 100).proportion_ci(method="wilson")
    assert point.agreement("learned") == pytest.approx((99, 100 * found.low, 100 * found.high))
    assert point.mse("learned") == (0.1, 0.0, 0.2)  # a squared distance is not negative
    lead = point.lead("permuted")
    assert lead.mean == 39
    assert 0 < lead.low < 39 < lead.high < 60
    assert point.lead("within").mean == 34
    (behind,) = points_of([noise(1.0, learned=60, within=99)])
    other = behind.lead("within")
    assert tuple(-end for end in other) == pytest.approx((lead.mean, lead.high, lead.low))


def test_of_several_noises_they_are_over_seeds():
    lines = [noise(1.0, seed, 90 + seed, 50 + 2 * seed) for seed in range(4)]
    (point,) = points_of(lines)
    shares = [90.0, 91, 92, 93]
    low, high = stats.t.interval(0.95, 3, np.mean(shares), stats.sem(shares))
    assert point.agreement("learned") == pytest.approx((91.5, low, high))
    leads = [40.0, 39, 38, 37]
    low, high = stats.t.interval(0.95, 3, np.mean(leads), stats.sem(leads))
    assert point.lead("permuted") == pytest.approx((38.5, low, high))
    logs = np.log([line["norm"] for line in lines])
    low, high = stats.t.interval(0.95, 3, logs.mean(), stats.sem(logs))
    assert point.number("norm") == pytest.approx(np.exp([logs.mean(), low, high]))


def test_findings_say_which_noise_is_benign_which_is_not_and_which_ran_away():
    lines = [
        ONES,
        noise(0.1),
        noise(1.0, learned=98, permuted=10),
        noise(3.0, 0, 70, within=72),
        noise(9.0, radial=0.001),
    ]
    notes = " ".join(encoder_noise_report(PROTOCOL, lines).notes)
    assert "these are not (lambda 3, norm 30: " in notes
    assert "at 3 of 3 lambdas, by most at lambda 1 (norm 10)" in notes
    assert "98.0 [93.0, 99.4]% of predictions stay, with the permutation 10.0 [5.5, 17.4]%" in notes
    assert "permutation within each token, by an interval above 0 (not corrected for their number), at 2 of 3" in notes
    assert "at 2 of 3 lambdas, by most at lambda 0.1 (norm 1)" in notes
    assert "lambda 9: 1 of 1, norm 90" in notes
    assert "0.90 to 0.90 times lambda (of 3 noises" in notes
    assert "single token" not in notes
    one = noise(1.0) | {"token_share": 0.73}
    given_up = " ".join(encoder_noise_report(PROTOCOL, [one]).notes)
    assert "in a single token (lambda 1: 73%)" in given_up
    assert "Lambda 1: 99.0 [94.6, 99.8]% of predictions stay, with the permutation within each token 65.0 [" in given_up
    assert "difference +34.0 [" in given_up
    assert "moves the logits by 1e-06 on average, n = 100" in notes
    text = encoder_noise_report(PROTOCOL, lines).to_text(200)
    assert "lambda 9 (ran away)" in text
    benign = " ".join(encoder_noise_report(PROTOCOL, [noise(0.1, learned=100), noise(1.0, learned=99)]).notes)
    assert "at least 95% (lower end of the interval) has norm 1, at lambda 0.1" in benign  # of 99 the end is below
    assert "stay from" not in benign
    assert "ran away" not in benign


def test_the_picture_has_the_learned_noise_solid_and_its_permutation_dashed(saved: list[Figure]):
    report = encoder_noise_report(PROTOCOL, [noise(0.1, learned=100), noise(1.0, learned=80), noise(3.0, radial=0.001)])
    stream = io.BytesIO()
    report.draw(stream)
    assert stream.getvalue().startswith(b"\x89PNG")
    agreement, mse, norm, stationary = saved[0].axes
    solid, dashed, dotted = (each.lines[0] for each in agreement.containers)
    assert list(solid.get_xdata()) == [0.1, 1.0, 3.0]
    assert list(solid.get_ydata()) == [100, 80, 99]
    assert list(dashed.get_ydata()) == [60, 60, 60]
    assert list(dotted.get_ydata()) == [65, 65, 65]
    assert [line.get_linestyle() for line in (solid, dashed, dotted)] == ["-", "--", ":"]
    assert len(mse.containers) == 3
    assert list(norm.containers[0].lines[0].get_ydata()) == [1.0, 10.0, 30.0]
    assert list(stationary.containers[0].lines[0].get_ydata()) == pytest.approx([0.09, 0.9, 0.003])
    labels = [text.get_text() for axes in saved[0].axes for text in (*axes.get_xticklabels(), *axes.get_yticklabels())]
    assert "0.1" in labels
    assert not any("$" in label for label in labels)
    assert {"1", "2", "5"} <= {text.get_text() for text in norm.get_yticklabels()}  # fewer than two decades
    assert agreement.get_ylim()[0] == pytest.approx(50.2 - 15, abs=0.1)  # of 60 of 100
    for axes in saved[0].axes:
        (shade,) = axes.patches  # of the one that ran away
        assert shade.get_x() < 3 < shade.get_x() + shade.get_width()


def test_rows_hold_all_numbers():
    header, *rows = encoder_noise_report(PROTOCOL, [noise(0.1), noise(1.0)]).rows
    assert [len(row) for row in rows] == [len(header)] * 2
    assert rows[1][:3] == [1.0, 0, 10.0]
