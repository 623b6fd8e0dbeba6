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
from ns_easyrobust.report.saliency_rows import SaliencyKinds, near_one, nearer, saliency_rows

METHODS = ["rollout", "chefer"]
PROTOCOL = {
    "images_from": "6 random ones", "preprocessing": "crop 32", "model": "vit", "patch": 8, "input_dim": 192,
    "nullity": 128, "methods": METHODS, "enlarge": 2, "rounding": 2.0**-24,
}  # fmt: skip


def line(batch, method, of, and_, correlations, precision="float32", difference=0.5):
    return {
        "batch": batch, "method": method, "of": of, "and": and_, "precision": precision, "n": len(correlations),
        "correlations": correlations, "ssims": [0.5 + 0.1 * batch] * len(correlations),
        "largest_difference": difference,
    }  # fmt: skip


def lines(order=0.9, noise=0.9):
    """Two batches of three pairs; ``noise``: LRP's least correlation by rounding noise."""
    kinds, found = SaliencyKinds, []
    for batch in range(2):
        for method, control in (("rollout", 0.7), ("chefer", 0.1)):
            found.append(line(batch, method, "source", "target", [control, control + 0.1, None]))
            for kind, value in (("least squares", 0.99999), ("valid pixels", 0.9999), ("8 bits", 0.97)):
                shift = 0.01 if kind == "8 bits" else 0
                found.append(line(batch, method, "source", kind, [value, value - shift, 0.9995], difference=0.02))
            found.append(line(batch, method, "source", "another order", [order, order, None]))
            found.append(line(batch, method, "source", "blend", [0.8, 0.8, 0.8]))
            bad = method == "chefer"
            values = [noise, 1, 1] if bad else [1, 1, 1]
            found.append(line(batch, method, "source", "rounding noise", values, difference=0.3 if bad else 2e-6))
            found.append(line(batch, method, "target", "8 bits", [0.2, 0.3, 0.4]))
            found.append(line(batch, method, "source", "least squares", [1.0] * 3, "float64", 3e-13))
            found.append(line(batch, method, "source", "valid pixels", [1.0] * 3, "float64", 2e-5))
            found.append(line(batch, method, "source", "rounding noise", values, "float64", 0.2 if bad else 1e-7))
        for kind, distance in (("source", 0.4), *((kind, 0.3) for kind in (*kinds.CHANGED, *kinds.EQUALLY_LARGE))):
            more = {"largest_residual": 1e-6} if kind == "valid pixels" else {}
            found.append(
                {
                    "batch": batch, "predicted": kind, "n": 3, "unchanged": 3 - batch, "largest_confidence": 0.1,
                    "from_target": [distance - 0.1, distance, distance + 0.1],
                    "from_source": [0.0 if kind == "source" else 0.1] * 3, "outside": 0.1, **more,
                }
            )  # fmt: skip
    return [*found, {"shown": 0, "names": ["a.jpg", "b.jpg"]}]


def text_of(found, folder, protocol=PROTOCOL):
    return " ".join(saliency_report(protocol, found, folder).to_text().split())


def test_rows_join_batches_and_leave_constant_maps_out():
    row = saliency_rows(lines())["chefer", "source", "target", "float32"]
    assert (row.n, row.constant, row.difference) == (6, 2, 0.5)
    values = [0.1, 0.2, 0.1, 0.2]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert tuple(row.correlation) == pytest.approx((0.15, low, high))
    assert (row.median, row.least, row.apart) == (pytest.approx(0.15), 0.1, 4)
    assert row.median_ssim == pytest.approx(0.55)
    with pytest.raises(DataError, match="expected lines of batches, found none"):
        saliency_rows(lines()[-1:])


def test_pairs_are_compared_where_both_have_a_correlation():
    rows = saliency_rows(lines(order=0.965))
    rounded, order = (rows["chefer", "source", kind, "float32"] for kind in ("8 bits", "another order"))
    assert nearer(rounded, order) == (2, 4)  # .97 and not .96, of pairs without the third of each batch
    assert nearer(order, rounded) == (2, 4)


def test_a_correlation_is_1_only_if_it_is():
    assert [near_one(value) for value in (1, 0.9999999, 0.99958, 0.99939, 0.9899, -0.1234)] == [
        "1.000000", "0.999999", "0.999580", "0.9993", "0.989", "-0.124",
    ]  # fmt: skip


def test_findings_are_made_of_the_lines(tmp_path):
    text = text_of(lines(), tmp_path)
    assert "least squares, rollout 3.0e-13, LRP (Chefer) 3.0e-13; valid pixels, which leave a residual of at" in text
    assert "at most 1.0e-06 of what the patch embedding sees, rollout 2.0e-05" in text
    assert "less than 0.999: rollout 4 of 6 [30.0, 90.3]%, the least by 0.960; LRP (Chefer) 4 of 6" in text
    assert "another order within patches: rollout 4 of 4 [51.0, 100.0]%; LRP (Chefer) 4 of 4 [51.0" in text
    assert "So it is the direction of the change that keeps maps, not its size." in text
    values = [0.7, 0.8, 0.7, 0.8]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert f"source and target correlate by rollout 0.750 [{low:.3f}, {high:.3f}] (n=4), LRP" in text
    assert "By rollout any two images have much of their maps in common" in text
    assert "sources lie 0.400 from their targets, transformed images 0.300 (25.0% nearer) and 0.100 from" in text
    assert "(pairs, at most: rollout 2, LRP (Chefer) 2)" in text
    assert "2 times as large" in text
    assert "83.3% [43.6, 97.0]" in text  # Wilson, 5 of 6
    assert "an eye" not in text


def test_a_method_is_called_ill_conditioned_where_rounding_noise_moves_its_maps(tmp_path):
    text = text_of(lines(), tmp_path)
    assert (
        "LRP (Chefer) is ill-conditioned: of the source's pixels changed by rounding noise alone, a patch moves by up "
        "to 3.0e-01 of its map's largest in float32, and 2 of 6 [9.7, 70.0]% of the pairs correlate by less than "
        "0.999, the least by 0.900; the same noise in float64: 2.0e-01, 2 of 6 [9.7, 70.0]% (a likely reason, read "
    ) in text
    assert "By rounding noise alone, a patch moves by at most rollout 2.0e-06" in text
    others = [line | ({"largest_difference": 1e-6} if line.get("and") == "rounding noise" else {}) for line in lines()]
    text = text_of(others, tmp_path)
    assert "ill-conditioned" not in text
    assert "LRP (Chefer) 1.0e-06 of its map's largest" in text
    swapped = {"rollout": "chefer", "chefer": "rollout"}
    others = [line | ({"method": swapped[line["method"]]} if "method" in line else {}) for line in lines()]
    text = text_of(others, tmp_path)
    assert "rollout is ill-conditioned" in text
    assert "a likely reason" not in text  # which is known of LRP's rules alone


def test_a_control_that_agrees_as_much_is_said_and_float64_may_be_missing(tmp_path):
    text = text_of([line for line in lines(order=0.99) if line.get("precision") != "float64"], tmp_path)
    assert "not shown to be more than half of them by rollout (another order) and LRP (Chefer) (another order)." in text
    assert "So it is the direction" not in text
    assert "The model does not run in float64" in text


def test_maps_that_are_all_constant_have_no_correlation_and_one_has_no_interval(tmp_path):
    def emptied(line, kept):
        if "method" not in line or line["method"] != "rollout":
            return line
        values = [0.5] + [None] * 2 if line["batch"] == 0 and kept else [None] * 3
        return line | {"correlations": values, "largest_difference": 0.5 if kept else None}

    for kept in (0, 1):
        found = [emptied(line, kept) for line in lines()]
        text = text_of(found, tmp_path)
        assert "source and target correlate by rollout none, LRP (Chefer) 0.150" in text
        assert ("less than 0.999: rollout 1 of 1" if kept else "less than 0.999: rollout none; LRP") in text
        assert f"rollout {6 - kept}" in text
        assert "inf" not in text.replace("information", "")
        report = saliency_report(PROTOCOL, found, tmp_path)
        assert not {"inf", "-inf", float("inf"), -float("inf")} & {value for row in report.rows for value in row}
        assert next(row[5] for row in report.rows if row[0] == "rollout") == kept
        alone = [line for line in found if "shown" not in line and line.get("method") != "chefer"]
        stream = io.BytesIO()
        saliency_report(PROTOCOL | {"methods": ["rollout"]}, alone, tmp_path).draw(stream)
        assert Image.open(stream).size[0] > 500


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
    assert len(report.rows) == 1 + 2 * 11 + 6
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
