"""The report of Figure 5 on lines made by hand: counts, ratios, the quadratic, the picture."""

from __future__ import annotations

import copy
import io
import math

import numpy as np
import pytest

from ns_easyrobust.report.closure import closure_report
from ns_easyrobust.report.closure_numbers import ClosureNumbers

ALPHAS, SHARES, EPS = [0.0, 0.5, 1.0, 2.0], [0.0, 0.5, 1.0], 0.033
PROTOCOL = {
    "eps": EPS, "alphas": ALPHAS, "shares": SHARES, "n": 8, "images_from": "8 random ones of val/", "solver": "paper",
    "limit": 3.0, "lr": 0.1, "max_steps": 9, "synthesis_batch_size": 4, "synthesis_n": 16,
    "synthesis_from": "16 random ones of train/", "model": "vit",
}  # fmt: skip


def single(kind, number, influence, power):
    """Influence of alpha v: alpha^power times that of v."""
    influences = [influence * alpha**power for alpha in ALPHAS]
    roots = [math.sqrt(value) for value in influences]
    line = {"part": "single", "kind": kind, "number": number, "norm": 10.0 * (1 + number), "influence": influence}
    line |= {"unsquared": math.sqrt(influence), "influences": influences, "errors": [0.0] * 4, "unsquareds": roots}
    return line | {"stopped": True, "untouched": False, "error": 0.002}


def pair(kind, index, scale, lift=0.0):
    """scale (a1^2 + a2^2), of orthogonal responses; ``lift`` more in the middle of the line."""
    grid = [[scale * (one**2 + other**2) for other in ALPHAS] for one in ALPHAS]
    line = [scale * (share**2 + (1 - share) ** 2) + lift * (share == 0.5) for share in SHARES]
    found = {"part": "pair", "kind": kind, "index": index, "numbers": [2 * index, 2 * index + 1], "grid": grid}
    return found | {"errors": grid, "line": line, "line_errors": [0.0] * 3, "form": [2 * scale, 2 * scale, 0.0]}


LINES = [
    *(single("nullspace", number, influence, 0.5) for number, influence in enumerate((0.01, 0.02, 0.04))),
    *(single("random", number, influence, 2.0) for number, influence in enumerate((0.01, 0.02, 0.04))),
    {"part": "spectrum", "values": [1.0, 0.01, 1e-5], "trace": 1.1, "dimension": 1024, "rank": 72, "tokens": [16, 64]},
    {
        "part": "check", "direction": "eigenvector 1", "norm": 0.1, "predicted": 0.01, "measured": 0.011,
        "error": 0.001, "others": 0.02, "others_error": 0.001,
    },
    *({"part": "quadratic", "kind": "nullspace", "number": number, "predicted": 0.02} for number in range(3)),
    *({"part": "quadratic", "kind": "random", "number": number, "predicted": 0.02} for number in range(3)),
    pair("nullspace", 0, 0.03, lift=0.02), pair("nullspace", 1, 0.02),
    pair("random", 0, 0.03), pair("random", 1, 0.04),
]  # fmt: skip


@pytest.fixture
def numbers():
    return ClosureNumbers(PROTOCOL, copy.deepcopy(LINES))


def test_what_stays_under_its_bound_is_counted(numbers):
    """sqrt(1/2) times .01 is under half of .033, that of .04 is not; and never under half of itself."""
    assert numbers.under_share_of("nullspace", "eps") == (2, 3)
    assert numbers.under_share_of("nullspace", "own") == (0, 3)
    assert numbers.under_share_of("random", "eps") == (3, 3)
    assert numbers.under_share_of("random", "own") == (3, 3)
    assert numbers.under_share_of("random", "unsquared") == (3, 3)  # exactly alpha
    assert numbers.under_share_of("nullspace", "unsquared") == (0, 3)
    assert numbers.lines_under("nullspace", "eps") == (1, 2)
    assert numbers.lines_under("nullspace", "chord") == (1, 2)
    assert numbers.lines_under("random", "eps") == (1, 2)  # an end of 0.04
    assert numbers.lines_under("random", "chord") == (2, 2)


def test_ratios_are_to_the_quadratics_and_to_the_noise_itself(numbers):
    assert [found.mean for found in numbers.scaled("random")] == pytest.approx([0, 0.25, 1, 4])
    assert [found.mean for found in numbers.scaled("random", "unsquareds")] == pytest.approx([0, 0.5, 1, 2])
    assert numbers.ratios("random", "jacobian") == pytest.approx((0.5, 0.5, 0.5))
    assert numbers.ratios("random", "ends") == pytest.approx((1, 1, 1))
    assert [found.mean for found in numbers.line_shape("random")] == pytest.approx([1, 0.5, 1])
    np.testing.assert_allclose(numbers.grid("random")[2, 3], 0.035 * 5)


def test_directions_are_counted_at_a_norm(numbers):
    assert numbers.noticed(0.1) == (0, False)
    assert numbers.noticed(1.0) == (1, False)
    assert numbers.noticed(1e4) == (3, True)  # of 72 that may not be 0
    assert numbers.norms_counted == pytest.approx([5, 10, 20, 40])


def test_the_report_says_so():
    lines = copy.deepcopy(LINES)
    report = closure_report(PROTOCOL, lines)
    text = report.to_markdown()
    assert "random starts" not in text
    next(line for line in lines if line["part"] == "single" and line["kind"] == "nullspace")["untouched"] = True
    assert "1 of 3 nullspace noises are their random starts, which were" in closure_report(PROTOCOL, lines).to_text()
    assert "each alpha between 0 and 1: nullspace 2 of 3 (95% interval" in text
    assert "alpha = 1: nullspace 0 of 3" in text
    assert "nullspace not all under at 0.5; random all under at 0.5." in text  # 0.5 eps = 0.0165
    assert "eps, of the pairs that have both ends under it: 1 of 2 nullspace, 1 of 1 random." in text
    assert "2 (nullspace), 2 of 2 (random) are" in text
    assert "minibatch that they ended with. On the images measured on, 1 of 3 nullspace noises are over" in text
    assert "directions under eps" not in text  # 72 of 1024 can be seen by so few images
    assert "reached: nullspace 20, random 20." in text
    assert "of 2 pairs): nullspace 0.833 [" in text  # (0.015 + 0.02) / 0.03 and 1/2, in the mean
    assert "random 0.5 [0.5, 0.5]; a quadratic" in text
    rows = list(report.rows)
    assert {len(row) for row in rows} == {9}
    assert ("grid", "random", "0-1", 0.5, 2.0, "", pytest.approx(0.03 * 4.25), pytest.approx(0.03 * 4.25), "") in rows


def test_pairs_that_share_noises_and_noise_that_is_not_centred_are_named():
    plain = closure_report(PROTOCOL, copy.deepcopy(LINES)).to_markdown()
    assert "share noises" not in plain
    assert "all centred per token" in plain
    lines = copy.deepcopy(LINES)
    for line in lines:
        if line["part"] == "pair" and line["index"] == 1:
            line["numbers"] = [1, 2]
    text = closure_report(PROTOCOL | {"reader": "norm1 (RmsNorm)"}, lines).to_markdown()
    assert "The 2 pairs share noises, as they are of 3 noises: they are not independent" in text
    assert "none centred per token, as norm1 (RmsNorm) reads tokens without a LayerNorm" in text


@pytest.mark.stress  # lines that were measured are drawn by the experiment's own test
def test_it_is_drawn():
    stream = io.BytesIO()
    closure_report(PROTOCOL, copy.deepcopy(LINES)).draw(stream)
    assert len(stream.getvalue()) > 20_000
