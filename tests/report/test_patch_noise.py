"""Rows of patch noise against sums by hand and scipy's intervals, and the picture of photographs."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from ns_easyrobust.errors import DataError
from ns_easyrobust.report.patch_noise import patch_noise_report
from ns_easyrobust.report.patch_noise_rows import PatchNoiseKinds, patch_noise_rows

KINDS = (
    PatchNoiseKinds.SAMPLE, PatchNoiseKinds.CLIPPED, PatchNoiseKinds.SAMPLE_PERMUTED, PatchNoiseKinds.VALID,
    PatchNoiseKinds.ROUNDED, PatchNoiseKinds.VALID_PERMUTED,
)  # fmt: skip
PROTOCOL = {
    "n": 6, "images_from": "6 random ones", "preprocessing": "crop 32", "model": "vit", "patch": 8, "input_dim": 192,
    "nullity": 128, "rms": 0.3, "class_names": ["cat", "dog"],
}  # fmt: skip


def batch(number, kind, precision="float32", n=4, unchanged=3):
    return {
        "batch": number, "kind": kind, "precision": precision, "n": n, "unchanged": unchanged,
        "distances": [0.1 * (number + index) for index in range(n)], "largest_distance": 0.5,
        "largest_confidence": 0.2 + number, "largest_logit": 1.5, "largest_clean_logit": 7.0,
        "mean_square": 0.04 + 0.05 * number, "outside": 0.1 * number,
    }  # fmt: skip


def lines():
    found = [batch(0, kind) for kind in KINDS] + [batch(0, kind, "float64") for kind in KINDS[::3]]
    found += [batch(1, kind, n=2, unchanged=1) for kind in KINDS]
    found += [batch(1, kind, "float64", n=2, unchanged=1) for kind in KINDS[::3]]
    shown = {"image": [1, 0.9], KINDS[0]: [1, 0.9], KINDS[3]: [1, 0.89], KINDS[5]: [0, 0.6]}
    return [*found, {"photograph": "a.jpg", "predictions": shown}]


def test_batches_are_joined():
    row = patch_noise_rows(lines())[PatchNoiseKinds.VALID, "float32"]
    assert (row.n, row.unchanged, row.confidence) == (6, 4, 1.2)
    assert row.rms == pytest.approx(((4 * 0.04 + 2 * 0.09) / 6) ** 0.5)
    assert row.outside == pytest.approx(0.2 / 6)
    found = stats.binomtest(4, 6).proportion_ci(method="wilson")
    assert row.agreement == f"66.7% [{100 * found.low:.1f}, {100 * found.high:.1f}]"
    with pytest.raises(DataError, match="expected lines of batches, found none"):
        patch_noise_rows(lines()[-1:])


def test_the_report_shows_photographs_and_intervals(tmp_path):
    for number, kind in enumerate(("image", "noise", KINDS[0], KINDS[3], KINDS[5])):
        pixels = np.full((32, 32, 3), 40 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / PatchNoiseKinds.part_name(0, kind))
    report = patch_noise_report(PROTOCOL, lines(), tmp_path)
    distances = [0.0, 0.1, 0.2, 0.3, 0.1, 0.2]
    low, high = stats.t.interval(0.95, 5, np.mean(distances), stats.sem(distances))
    assert f"0.15 [{low:.2g}, {high:.2g}]" in report.to_text()
    assert "dog, 89.00%" in report.to_text()
    assert "cat, 60.00%" in report.to_text()
    assert report.rows[-1][:3] == ["a.jpg", "large, valid, permuted", "float32"]
    assert "1.2e+00 (sample) and 1.2e+00 (large, valid) in float64" in " ".join(report.to_text().split())
    stream = io.BytesIO()
    report.draw(stream)
    assert np.asarray(Image.open(stream).convert("RGB")).std() > 10
    (tmp_path / PatchNoiseKinds.part_name(0, "noise")).unlink()
    with pytest.raises(DataError, match=r"0-noise\.png: expected an image"):
        report.draw(io.BytesIO())


def test_without_float64_the_report_says_so(tmp_path):
    found = [line for line in lines() if line.get("precision") != "float64"]
    text = " ".join(patch_noise_report(PROTOCOL, found, tmp_path).to_text().split())
    assert "The model does not run in float64" in text
