"""Influences of transferred noise: intervals and ratios against scipy, sentences, and the picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from ns_easyrobust.errors import DataError
from ns_easyrobust.report.transfer import transfer_report
from ns_easyrobust.report.transfer_table import Place, TransferTable

PROTOCOL = {
    "sets": {"found on": "10 of train/", "held out": "10 of val/"}, "solver": "sphere", "eps": 0.03, "max_steps": 5,
    "rms": 0.3, "valid_images": 4, "architecture": "vit", "preprocessing": "crop 32",
    "uncentred": {},
}  # fmt: skip
OWN = [0.02, 0.03, 0.025]
PERMUTED = [0.2, 0.25, 0.3]


def lines(kinds=("encoder",), influences=None, error=0.001):
    found = []
    for kind in kinds:
        for source in ("a", "b"):
            for target in ("a", "b"):
                for images in ("found on", "held out"):
                    for control, values in (("noise", influences or OWN), ("permuted", PERMUTED), ("random", PERMUTED)):
                        scale = 1 if source == target else 5
                        found.append(
                            {"kind": kind, "source": source, "target": target, "images": images, "control": control,
                             "n": 10, "influences": [scale * value for value in values], "unchanged": [9, 8, 7],
                             "error": error, "ratio_error": 0.05, "norms": [1.0] * 3}
                        )  # fmt: skip
    return found


def half_over_noises(values):
    return stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)


def test_an_influence_s_interval_is_over_noises_and_over_images():
    place = Place("encoder", "a", "a", "held out")
    for error in (0.0, 0.001, 0.002):
        half = np.hypot(half_over_noises(OWN), stats.norm.ppf(0.975) * error)
        found = TransferTable(lines(error=error)).influence(place)
        assert found == pytest.approx((0.025, 0.025 - half, 0.025 + half))
    assert TransferTable(lines(error=0.2)).influence(place).low == 0
    one = TransferTable(lines(influences=[0.02])).influence(place)
    assert one == pytest.approx((0.02, 0.02 - stats.norm.ppf(0.975) * 0.001, 0.02 + stats.norm.ppf(0.975) * 0.001))
    assert TransferTable(lines()).agreement(place) == pytest.approx(0.8)


def test_a_ratio_is_the_geometric_mean_over_noises():
    table, place = TransferTable(lines()), Place("encoder", "a", "b", "held out")
    logs = np.log(OWN) - np.log(PERMUTED)
    half = np.hypot(half_over_noises(logs), stats.norm.ppf(0.975) * 0.05)
    assert table.relative(place) == pytest.approx(tuple(np.exp([logs.mean(), logs.mean() - half, logs.mean() + half])))
    half = stats.norm.ppf(0.975) * np.sqrt(2) * 0.001 / (5 * 0.025)  # the same on both images, whose errors are apart
    assert table.beside(place, "found on") == pytest.approx((1, np.exp(-half), np.exp(half)))
    assert TransferTable(lines(influences=[0.0, 0.1, 0.1])).relative(place) is None


def test_places_under_eps_and_models_that_read_a_token_s_mean_are_named():
    report = transfer_report(PROTOCOL | {"eps": 0.2, "uncentred": {"b": "pool (BatchNorm2d)"}}, lines())
    text = " ".join(report.to_text(200).split())
    assert "at 2 of 2 places off the diagonal. Of these the share is the largest for noise of a on b: influence" in text
    assert "not centred, and its controls neither, as pool (BatchNorm2d) of b reads a token's mean" in text


def test_a_noise_without_its_permutation_is_refused():
    with pytest.raises(DataError, match="expected noises with their permutations"):
        TransferTable([line for line in lines() if line["control"] == "noise"])
    with pytest.raises(DataError, match="expected noises with their permutations"):
        TransferTable([])


def test_the_report_says_what_the_numbers_are_and_draws_them():
    report = transfer_report(PROTOCOL, lines())
    ((heading, sheet),) = report.sheets
    assert heading == "encoder, approximate"
    assert sheet.headings == [("on a", "held out"), ("on b", "held out"), ("on itself", "found on")]
    table = TransferTable(lines())
    influence, relative = (find(Place("encoder", "b", "a", "held out")) for find in (table.influence, table.relative))
    (name, cells) = sheet.rows[1]
    assert name == "b"
    assert cells[0].value == f"{influence.mean:.2g} [{influence.low:.2g}, {influence.high:.2g}]"
    assert cells[0].rest == (f"(x{relative.mean:.2g}; 80.0%)",)
    text = " ".join(report.to_text(200).split())
    own, other = (np.exp(np.mean(np.log(OWN) - np.log(PERMUTED))) for _ in range(2))
    assert (
        f"{own:.2g} on its own model; on others from {other:.2g} [{relative.low:.2g}, {relative.high:.2g}] (of" in text
    )
    assert "influence 0.025 on the images that it was found on; 0.025 on held-out ones (times 1; all intervals" in text
    assert "Predictions that change: 20.0% on the images that it was found on; 20.0% on held-out ones (n=10" in text
    assert "under eps (0.03), encoder noise is nullspace noise of the other model too at 0 of 2 places" in text
    assert "centred per token, as are its controls" in text
    assert len(report.rows) == 1 + 2 * 2 * 2 * 3 * 3
    stream = io.BytesIO()
    report.draw(stream)
    assert np.asarray(Image.open(stream).convert("RGB")).std() > 10
