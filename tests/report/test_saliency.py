"""Rows of saliency against scipy's intervals, sentences made of them, and the picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from ns_easyrobust.errors import DataError
from ns_easyrobust.report.saliency import saliency_report
from ns_easyrobust.report.saliency_picture import heat_overlay
from ns_easyrobust.report.saliency_rows import SaliencyKinds, saliency_rows

METHODS = ["rollout", "chefer"]
PROTOCOL = {
    "images_from": "6 random ones", "preprocessing": "crop 32", "model": "vit", "patch": 8, "input_dim": 192,
    "nullity": 128, "methods": METHODS, "enlarge": 2,
}  # fmt: skip


def line(batch, method, of, and_, correlations, precision="float32", difference=0.5):
    return {
        "batch": batch, "method": method, "of": of, "and": and_, "precision": precision, "n": len(correlations),
        "correlations": correlations, "ssims": [0.5 + 0.1 * batch] * len(correlations),
        "largest_difference": difference,
    }  # fmt: skip


def lines(rollout_control=0.7):
    found = []
    for batch in range(2):
        for method, control in (("rollout", rollout_control), ("chefer", 0.1)):
            found.append(line(batch, method, "source", "target", [control, control + 0.1, None]))
            for kind, value in (("least squares", 0.99999), ("valid pixels", 0.9999), ("8 bits", 0.97)):
                shift = 0.01 if kind == "8 bits" else 0
                found.append(line(batch, method, "source", kind, [value, value - shift, value], difference=0.02))
                found.append(line(batch, method, "target", kind, [0.2, 0.3, 0.4]))
            found.append(line(batch, method, "source", "least squares", [1.0] * 3, "float64", 3e-13))
            found.append(line(batch, method, "source", "valid pixels", [1.0] * 3, "float64", 2e-5))
        for kind in SaliencyKinds.CHANGED:
            more = {"largest_residual": 1e-6} if kind == "valid pixels" else {}
            found.append(
                {
                    "batch": batch, "predicted": kind, "n": 3, "unchanged": 3 - batch, "largest_confidence": 0.1,
                    "from_target": [0.2, 0.3, 0.4], "from_source": [0.1, 0.1, 0.1], "outside": 0.1, **more,
                }
            )  # fmt: skip
    return [*found, {"shown": 0, "names": ["a.jpg", "b.jpg"]}]


def test_rows_join_batches_and_leave_constant_maps_out():
    row = saliency_rows(lines())["chefer", "source", "target", "float32"]
    assert (row.n, row.constant, row.difference) == (6, 2, 0.5)
    values = [0.1, 0.2, 0.1, 0.2]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert tuple(row.correlation) == pytest.approx((0.15, low, high))
    assert row.ssim.mean == pytest.approx(0.55)
    with pytest.raises(DataError, match="expected lines of batches, found none"):
        saliency_rows(lines()[-1:])


def test_findings_are_made_of_the_lines(tmp_path):
    text = " ".join(saliency_report(PROTOCOL, lines(), tmp_path).to_text().split())
    assert "least squares, 2.0e-02 by rollout, 2.0e-02 by the others in float32, and 3.0e-13 by rollout" in text
    assert "is 0.999990 (least squares) and 0.999900 (valid pixels)" in text
    assert "Valid pixels leave a residual of at most 1.0e-06" in text
    assert "So rollout is not stable" in text
    assert "0 of 6 pairs correlate by less than 0.999" in text
    values = [0.97, 0.96, 0.97] * 2
    low, high = stats.t.interval(0.95, 5, np.mean(values), stats.sem(values))
    assert f"rollout {np.mean(values):.3f} [{low:.3f}, {high:.3f}]" in text
    assert "the least correlation of a pair is 0.9600 (rollout)" in text
    assert "By rollout, LRP (Chefer), that is less than source and transformed image" in text
    assert "But by rollout any two images have much of their maps in common" in text
    assert "(pairs, at most: rollout 2, LRP (Chefer) 2)" in text
    assert "2 times as large" in text
    assert "83.3% [43.6, 97.0]" in text  # Wilson, 5 of 6


def test_a_control_that_agrees_as_much_is_said_and_float64_may_be_missing(tmp_path):
    found = [line for line in lines(rollout_control=0.9) if line.get("precision") != "float64"]
    text = " ".join(saliency_report(PROTOCOL, found, tmp_path).to_text().split())
    assert "By rollout, it is not less than that of source and transformed image in 8 bits." in text
    assert "The model does not run in float64" in text
    assert "not stable" not in text


def test_the_picture_shows_maps_over_images(tmp_path):
    generator = np.random.default_rng(0)
    for kind in SaliencyKinds.SHOWN:
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(
            tmp_path / SaliencyKinds.part_name(0, kind, "image")
        )
        for method in METHODS:
            pixels = generator.integers(0, 256, (32, 32), np.uint8)
            Image.fromarray(pixels).save(tmp_path / SaliencyKinds.part_name(0, kind, method))
    report = saliency_report(PROTOCOL, lines(), tmp_path)
    stream = io.BytesIO()
    report.draw(stream)
    assert np.asarray(Image.open(stream).convert("RGB")).std() > 10
    assert len(report.rows) == 1 + 2 * 9 + 3
    (tmp_path / "0-target-chefer.png").unlink()
    with pytest.raises(DataError, match=r"0-target-chefer\.png: expected an image of the experiment"):
        report.draw(io.BytesIO())


def test_an_overlay_is_grey_where_colours_are_black_and_bright_where_the_map_is():
    image = np.zeros((2, 2, 3), np.uint8)
    image[0] = [30, 60, 90]
    heat = np.array([[0, 255], [0, 255]], np.uint8)
    found = heat_overlay(image, heat).astype(int)
    assert found[0, 0].tolist() == pytest.approx([23, 23, 24], abs=2)  # inferno begins with black
    assert found[1, 1].tolist() == pytest.approx([156, 158, 102], abs=3)  # and ends with a pale yellow
    assert found[0, 1].min() > found[1, 1].min()
