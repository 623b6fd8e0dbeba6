"""Tests made of lines, against counts by hand and scipy's intervals; words, and the picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from ns_easyrobust.errors import DataError
from ns_easyrobust.report.fingerprint import fingerprint_report
from ns_easyrobust.report.fingerprint_numbers import ROWS, WEIGHTED, FingerprintNumbers

PROTOCOL = {
    "alpha": 0.2, "input_dim": 192, "patch": 8, "space": "pixel", "n": 10, "images_from": "10 random ones",
    "preprocessing": "crop 32", "synthesis_n": 20, "synthesis_from": "20 others",
}  # fmt: skip


def model(name, group, kind, origin="", **more):
    line = {"what": "model", "name": name, "group": group, "kind": kind, "origin": origin, "k": 64}
    return line | {"low_pass": 0.6, "start": 0.5, "n": 10, "right": 6} | more


def lines(independent=6):
    found = [model("claimed/a", "claimed", "a", copies=[[0.5, 0.6, 0.7]] * 3, rotated=[1.0, 1.0, 0.999])]
    found += [model(f"derived/tuned/{i}", "derived", "tuned", "a", right=5) for i in range(2)]
    others = [f"independent/r{i % 2}/{i}" for i in range(independent)]
    found += [model(name, "independent", name.split("/")[1]) for name in others]
    null = {name: [0.40 + i / 100, 0.5 + i / 100, 0.8] for i, name in enumerate(others)}
    derived = {"derived/tuned/0": [0.9, 0.99, 1.0], "derived/tuned/1": [0.435, 0.99, 0.7]}
    found.append({"what": "pairs", "name": "claimed/a", "likeness": {**null, **derived}})
    for i, one in enumerate(others):
        likeness = {other: [0.3 + (i + j) / 100, 0.6, 0.8] for j, other in enumerate(others) if j != i}
        found.append({"what": "pairs", "name": one, "likeness": likeness})
    steps = [
        {"strength": strength, "likeness": [value, 1.0, 1.0], "n": 10, "right": 6, "unchanged": 10 - place}
        for place, (strength, value) in enumerate([(0.0, 1.0), (0.01, 0.5), (0.1, 0.41)])
    ]
    return [*found, {"what": "attack", "name": "claimed/a", "steps": steps}]


def test_p_values_are_counted_over_other_models():
    numbers = FingerprintNumbers(PROTOCOL, lines())
    first, second = numbers.tested("tuned", ROWS)
    assert (first.p, first.least) == (1 / 7, 1 / 7)
    assert second.p == 3 / 7  # .44 and .45 are above .435
    null = np.log(np.array([0.40, 0.41, 0.42, 0.43, 0.44, 0.45]) / (1 - np.array([0.40, 0.41, 0.42, 0.43, 0.44, 0.45])))
    score = (np.log(0.9 / 0.1) - null.mean()) / (null.std(ddof=1) * np.sqrt(7 / 6))
    assert first.p_t == pytest.approx(stats.t.sf(score, 5))
    told = numbers.told([first, second])
    assert (told.hits, told.n) == (1, 2)
    assert [test.p for test in numbers.tested("tuned", WEIGHTED)] == [1 / 7, 1 / 7]
    assert numbers.accuracy_changes("tuned") == [-10.0, -10.0]
    assert len(numbers.independent_likenesses(ROWS)) == 15


def test_false_positives_are_counted_against_other_recipes():
    numbers = FingerprintNumbers(PROTOCOL, lines())
    tests = {(test.claimed, test.suspect): test for test in numbers.falsely_tested(ROWS)}
    assert len(tests) == 30
    one = tests["independent/r0/0", "independent/r1/5"]  # .35 against .32 and .34, of r0
    assert (one.likeness, one.p) == (0.35, 1 / 3)
    assert tests["independent/r0/0", "independent/r1/1"].p == 1  # .31
    assert numbers.told(list(tests.values())) is None  # a third is not under .2
    told = FingerprintNumbers({**PROTOCOL, "alpha": 0.34}, lines()).told(list(tests.values()))
    assert (told.hits, told.n) == (sum(test.p <= 0.34 for test in tests.values()), 30)


def test_the_report_says_what_was_found():
    report = fingerprint_report(PROTOCOL, lines())
    text = " ".join(report.to_text(400).split())
    low, high = stats.binomtest(1, 2).proportion_ci(method="wilson")
    assert f"row space, by rank at 0.2: some of tuned (1/2 [{100 * low:.0f}, {100 * high:.0f}]%)" in text
    assert "Called derived by weighted, by rank at 0.2: all of tuned (2/2" in text
    assert "15 pairs of independently trained models have S/k = " in text
    assert "no two of 6 share it (largest S/k 0.390 of 15 pairs)" in text
    assert "row space is lost at 10%, where the prediction stays on 8/10" in text
    assert "weighted is not lost by any" in text
    assert "accuracy goes from 60.0 to 60.0%" in text
    assert "1 - S/k at most 0.0e+00, n=1 models" in text
    assert "at most 1.0e-03" in text
    header, *rows = report.rows
    assert all(len(row) == len(header) for row in rows)
    derived = [row for row in rows if row[0] == "derived" and row[4] == "row space"]
    assert [row[5:7] for row in derived] == [
        [0.9, pytest.approx(1 / 7, rel=1e-5)],
        [0.435, pytest.approx(3 / 7, rel=1e-5)],
    ]
    stream = io.BytesIO()
    report.draw(stream)
    assert np.asarray(Image.open(stream).convert("RGB")).std() > 10


def test_too_few_independent_models_are_told():
    text = " ".join(fingerprint_report({**PROTOCOL, "alpha": 0.05}, lines()).to_text(400).split())
    assert "By row space nothing can be said at 0.05, as no rank p-value can be below 0.143 here" in text
    assert "derived/tuned/0 0.900 to claimed/a (rank p 0.143, Student's t" in text
    with pytest.raises(DataError, match="expected lines of claimed and independent models"):
        FingerprintNumbers(PROTOCOL, [])
