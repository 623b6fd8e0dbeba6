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
}  # fmt: skip
OWN = [0.02, 0.03, 0.025]
PERMUTED = [0.2, 0.25, 0.3]


def lines(kinds=("encoder",), influences=None, error=0.001):
    found = []
    for kind in kinds:
        for source in ("a", "b"):
            for target in ("a", "b"):
                for images in ("found on", "held out"):
                    for control, values in (("noise", influences or OWN), ("permuted", PERMUTED)):
                        scale = 1 if source == target else 5
                        found.append(
                            {"kind": kind, "source": source, "target": target, "images": images, "control": control,
                             "n": 10, "influences": [scale * value for value in values], "unchanged": [9, 8, 7],
                             "error": error, "norms": [1.0] * 3}
                        )  # fmt: skip
    return found


def test_an_influence_has_the_wider_of_two_intervals():
    place = Place("encoder", "a", "a", "held out")
    low, high = stats.t.interval(0.95, 2, np.mean(OWN), stats.sem(OWN))
    assert TransferTable(lines()).influence(place) == pytest.approx((0.025, low, high))
    assert TransferTable(lines(error=0.02)).influence(place) == pytest.approx((0.025, 0, 0.025 + 1.96 * 0.02))
    assert TransferTable(lines()).agreement(place) == pytest.approx(0.8)


def test_a_ratio_is_the_geometric_mean_over_noises():
    table, place = TransferTable(lines()), Place("encoder", "a", "b", "held out")
    logs = np.log(OWN) - np.log(PERMUTED) + np.log(1)
    expected = np.exp([logs.mean(), *stats.t.interval(0.95, 2, logs.mean(), stats.sem(logs))])
    assert table.relative(place) == pytest.approx(tuple(expected))
    own = place._replace(target="a")
    assert table.ratio(place, own) == pytest.approx((5, 5, 5))
    assert TransferTable(lines(influences=[0.0, 0.1, 0.1])).relative(own) is None


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
    assert cells[0].rest == (f"(x{relative.mean:.2g} [{relative.low:.2g}, {relative.high:.2g}]; 80.0%)",)
    text = " ".join(report.to_text(200).split())
    own, other = (np.exp(np.mean(np.log(OWN) - np.log(PERMUTED))) for _ in range(2))
    assert f"{own:.2g} on the model that it is of; on others from {other:.2g} (of a on b) to {other:.2g}" in text
    assert "influence 0.025 on the images that it was found on; 0.025 on held-out ones (times 1) (n=10" in text
    assert len(report.rows) == 1 + 2 * 2 * 2 * 2 * 3
    stream = io.BytesIO()
    report.draw(stream)
    assert np.asarray(Image.open(stream).convert("RGB")).std() > 10
