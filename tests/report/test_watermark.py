"""The report of watermarks: its sentences on numbers unlike the gallery's, its CSV, and the picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from ns_easyrobust.errors import DataError
from ns_easyrobust.report.watermark import watermark_report
from ns_easyrobust.report.watermark_rows import WatermarkKinds, watermark_rows

KINDS = WatermarkKinds
PROTOCOL = {
    "images_from": "30 random ones", "preprocessing": "crop 32", "model": "vit", "patch": 8, "input_dim": 200, "n": 30,
    "nullity": 174, "class_names": ["cat", "dog"], "marked_n": 3, "mark": "N", "style": "texture", "strength": 0.5,
    "covered": 0.25, "false_positive_rate": 0.1, "other_text": "V",
}  # fmt: skip


def lines(lattice=(1e-3, 2e-3, 3e-3), plain=(2e-3, 4e-3, 6e-5)):
    contrast = {name: [0.1, 0.2, 0.3] for name in ("inside", "outside", "relative", "afar")}
    found = []
    for kind in (KINDS.LEAST_SQUARES, *KINDS.CARRIERS.values(), KINDS.LATTICE):
        confidence = {KINDS.LATTICE: lattice, KINDS.PNG: plain}.get(kind, (1e-7, 2e-7, 3e-7))
        line = {"batch": 0, "kind": kind, "n": 3, "unchanged": 2, "confidence": list(confidence), "logits": [0.1] * 3}
        line |= contrast if kind == KINDS.LEAST_SQUARES else {**contrast, "scores": [3.0, 4.0, 1.0], "detected": 2}
        found.append({**line, "residual": [1e-6, 2e-6, 3e-6]} if kind == KINDS.VALID else line)
    for name in KINDS.LOSSY:
        line = {"unchanged": 3, "confidence": [0.1] * 3, "logits": [1.0] * 3, "scores": [0.0] * 3, "detected": 0}
        found.append({"batch": 0, "kind": KINDS.unmarked(KINDS.CARRIERS[name]), "n": 3, **line})
    found.append({"batch": 0, "kind": KINDS.OTHER, "n": 3, "scores": [2.0, 3.0, 1.0], "detected": 1})
    found.append({"batch": 0, "kind": KINDS.SHARES, "n": 3, "texture": [0.99] * 3, "emboss": [0.1, 0.2, 0.3]})
    for part in range(3):
        scores = [-1.0, 0.0, 1.0, 2.5]
        found.append({"unmarked": part, "n": 4, "positives": part, "threshold": 2.0 + part, "scores": scores})
    seen = {kind: [0, 0.9] for kind in KINDS.SHOWN}
    return [*found, {"photograph": "a.jpg", "predictions": {**seen, "jpeg": [1, 0.6]}}]


def text_of(report):
    return " ".join(report.to_text().split())


def test_sentences_follow_the_numbers(tmp_path):
    text = text_of(watermark_report(PROTOCOL, lines(), tmp_path))
    assert "the nullspace has 87% of all directions" in text
    assert "outlines" not in text
    assert f"moves by up to 3.0e-03, and by {(2e-3 + 4e-3 + 6e-5) / 6e-3:.1f} times less on average" in text
    assert "finds one in 3 of 12 unmarked images" in text
    low, high = (100 * bound for bound in stats.binomtest(1, 3).proportion_ci(method="wilson"))
    assert f"Another mark, 'V', is taken for this one in 33.3% [{low:.1f}, {high:.1f}] of the images" in text
    worse = text_of(watermark_report(PROTOCOL, lines(lattice=(4e-3, 8e-3, 12e-5)), tmp_path))
    assert "and by 2.0 times more on average" in worse


def test_the_csv_has_a_cell_for_each_heading(tmp_path):
    rows = watermark_report(PROTOCOL, lines(), tmp_path).rows
    assert {len(row) for row in rows} == {len(rows[0])}
    named = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    third = next(row for row in named if row["stage"] == "unmarked, third 2")
    assert (third["detected"], third["scores"], third["scores_largest"], third["afar"]) == (1, 0.625, 2.5, "")
    photograph = next(row for row in named if row["where"] == "a.jpg" and row["stage"] == "jpeg")
    assert (photograph["class"], photograph["probability"]) == (1, 0.6)


def test_the_picture_shows_photographs_and_refuses_a_missing_one(tmp_path):
    for level, kind in enumerate((*KINDS.SHOWN, "change")):
        Image.fromarray(np.full((32, 32, 3), 50 * level, np.uint8)).save(tmp_path / KINDS.part_name(0, kind))
    report = watermark_report(PROTOCOL, lines(), tmp_path)
    stream = io.BytesIO()
    report.draw(stream)
    assert np.asarray(Image.open(stream).convert("RGB")).std() > 10
    (tmp_path / KINDS.part_name(0, "change")).unlink()
    with pytest.raises(DataError, match=r"0-change\.png: expected an image of the experiment, found none"):
        report.draw(io.BytesIO())
    with pytest.raises(DataError, match="expected lines of batches, found none"):
        watermark_rows([line for line in lines() if "batch" not in line])
