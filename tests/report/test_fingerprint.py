"""Tests made of lines, against counts by hand and scipy's intervals; words, and the picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from ns_easyrobust.errors import DataError
from ns_easyrobust.report.fingerprint import fingerprint_report
from ns_easyrobust.report.fingerprint_numbers import ROWS, WEIGHTED, FingerprintNumbers, Rate
from ns_easyrobust.report.fingerprint_numbers import Tested as OneTest  # pytest collects what is called Test...

PROTOCOL = {
    "alpha": 0.2, "input_dim": 192, "patch": 8, "space": "pixel", "n": 10, "images_from": "10 random ones",
    "preprocessing": "crop 32", "synthesis_n": 20, "synthesis_from": "20 others",
}  # fmt: skip


def model(name, group, kind, origin="", **more):
    line = {"what": "model", "name": name, "group": group, "kind": kind, "origin": origin, "k": 64}
    return line | {"low_pass": 0.6, "start": 0.5, "n": 10, "right": 6} | more


def lines(independent=6):
    found = [model("claimed/a", "claimed", "a", copies=[[0.5, 0.6, 0.7]] * 3, mixed=[0.0, 4e-13, 1e-3])]
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
    assert (told.hits, told.n, told.clusters) == (1, 2, 1)
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


def one_of_two_by_wilson(n):
    """By the closed form, at p = 1/2 of an effective n."""
    z = stats.norm.ppf(0.975)
    half = z * np.sqrt(0.25 / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return 0.5 - half, 0.5 + half


def test_the_interval_is_of_as_many_tests_as_origins():
    for clusters in (1, 2, 40):
        wanted = one_of_two_by_wilson(clusters)
        assert Rate(20, 40, clusters).interval == pytest.approx([100 * end for end in wanted])
    assert Rate(60, 60, 4).interval == pytest.approx(
        [100 * end for end in stats.binomtest(4, 4).proportion_ci(method="wilson")]
    )


def test_what_cannot_reject_does_not_count():
    found = FingerprintNumbers({**PROTOCOL, "alpha": 0.2}, lines())
    able, unable = OneTest("a", "b", 0.9, 0.2, 0.01, 0.2, "b"), OneTest("a", "c", 0.9, 0.25, None, 0.25, "c")
    assert found.told([able, unable]) == (1, 1, 1)
    assert found.told([able, unable], parametric=True) == (1, 1, 1)
    assert found.told([unable]) is None
    assert found.told([unable], parametric=True) is None
    text = " ".join(fingerprint_report(PROTOCOL, lines(independent=4)).to_text(400).split())
    assert "False positives by row space: no test of 12 can tell by rank, no test of 12 can tell by t" in text


def test_a_pool_of_unequal_recipes_says_how_many_could_not_reject():
    some = lines()
    for line in some:
        if line.get("kind") == "r1" and not line["name"].endswith("/5"):
            line["kind"] = "r0"  # 5 of r0 have a null of one, and the one of r1 of four
    text = " ".join(fingerprint_report(PROTOCOL, some).to_text(400).split())
    assert "(25 of 30 tests could not reject, and do not count)" in text


def test_haar_is_of_each_pair_s_dimensions():
    some = lines()
    some[3]["k"] = 32
    numbers = FingerprintNumbers(PROTOCOL, some)
    narrow, wide = some[3]["name"], some[4]["name"]
    n, k1, k2 = 192, 32, 64
    variance = 2 * k1 * (n - k1) * k2 * (n - k2) / (n**2 * (n - 1) * (n + 2))
    assert numbers.haar(narrow, wide) == pytest.approx(((k1 * k2) ** 0.5 / n, (variance / (k1 * k2)) ** 0.5))
    assert numbers.haar(wide, some[5]["name"]).mean == pytest.approx(64 / 192)
    text = " ".join(fingerprint_report(PROTOCOL, some).to_text(400).split())
    assert "(Haar) have 0.236 to 0.333 with a standard deviation" in text
    assert "k=32 to 64" in text


def test_shared_row_spaces_are_counted():
    some = lines()
    next(line for line in some if line["name"] == "independent/r0/0" and line["what"] == "pairs")["likeness"][
        "independent/r1/1"
    ][0] = 1.0
    text = " ".join(fingerprint_report(PROTOCOL, some).to_text(400).split())
    assert "1 of 15 share it (S/k above 0.999; the largest is 1.000)" in text


def test_a_claimed_model_s_own_origin_is_no_stranger():
    some = lines()
    some[0]["digest"] = "d"
    some.append(model("claimed/b", "claimed", "b", copies=[[0.5, 0.6, 0.7]], mixed=[0.0] * 3, digest="e"))
    some.append(model("derived/tuned/a", "derived", "tuned", "b"))
    likeness = next(line for line in some if line["name"] == "claimed/a" and line["what"] == "pairs")["likeness"]
    some.append({"what": "pairs", "name": "claimed/b", "likeness": {**likeness, "derived/tuned/a": [0.99] * 3}})
    assert len(FingerprintNumbers(PROTOCOL, some).crossed("tuned", ROWS)) == 2  # those of a against b
    next(line for line in some if line["name"] == "derived/tuned/a")["digest"] = "d"  # a was made from b
    assert FingerprintNumbers(PROTOCOL, some).crossed("tuned", ROWS) == []


def test_the_report_says_what_was_found():
    report = fingerprint_report(PROTOCOL, lines())
    text = " ".join(report.to_text(400).split())
    low, high = one_of_two_by_wilson(1)  # both are of one origin
    assert f"row space, by rank at 0.2: some of tuned (1/2 [{100 * low:.0f}, {100 * high:.0f}]%)" in text
    assert "Called derived by weighted, by rank at 0.2: all of tuned (2/2" in text
    assert "15 pairs of independently trained models have S/k = " in text
    assert "0 of 15 share it (S/k above 0.999; the largest is 0.390)" in text
    assert "15 of 15 pairs lie more than 4 of them above" not in text  # 0.31 is below Haar's mean
    assert "no test of 30 can tell by rank" in text  # least p of a third
    assert "By row space a model's own 3 symmetric copies" in text
    for count in (3, 0):  # .5 above the null's .45, .7 below .8
        assert f"; {count} of 3 are more alike to it than each independent model is." in text
    assert "No more alike to the claimed model than the most alike of its copies: tuned 1/2." in text
    for verdict in ("low-pass", "wrong null", "Unique", "Evade", "no matter"):
        assert verdict not in text
    assert "row space is lost at 10%, where the prediction stays on 8/10" in text
    assert "weighted is not lost by any" in text
    assert "accuracy goes from 60.0 to 60.0%" in text
    assert "1 - S/k is at most 2e-16 (n=1 models)" in text
    assert "1 less the weighted likeness is at most 1e-03" in text
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
