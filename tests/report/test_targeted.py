"""Rows of transformed images against scipy's intervals and counts by hand, and the picture of triplets."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from ns_easyrobust.errors import DataError
from ns_easyrobust.nullspace.transformed import TransformedKinds
from ns_easyrobust.report.targeted import targeted_report
from ns_easyrobust.report.targeted_rows import UNCHANGED, shown_triplet_name, targeted_rows

KINDS = (*TransformedKinds.ALL, TransformedKinds.LATTICE)
PROTOCOL = {
    "images_from": "3 random ones", "preprocessing": "crop 32", "model": "vit", "patch": 8, "input_dim": 192,
    "rank": 48, "class_names": ["cat", "dog"],
}  # fmt: skip


def lines():
    found = []
    for factor in (1, 2):
        look = {"rms_target": [0.2, 0.3, 0.1], "ssim_target": [0.5, 0.1, 0.2], "afar_target": [0.1, 0.1, 0.9]}
        share = {"unseen_share": [0.1, 0.2, 0.3], "random_share": [0.75] * 3, "residual": [1e-7] * 3}
        found.append({"factor": factor, "start": 0, "kind": UNCHANGED, "n": 3, **look, **share})
        source = {"rms_source": [0.1, 0.1, 0.4], "ssim_source": [0.4, 0.0, 0.6], "afar_source": [0.8, 0.7, 0.6]}
        outputs = {
            "unchanged": [1, 1, 0], "logit": [0.1, 0.2, 0.3], "confidence": [1e-3, 2e-3, 6e-3],
            "clean_confidence": [0.9] * 3, "outside": [0.0] * 3,
        }  # fmt: skip
        found += [{"factor": factor, "start": 0, "kind": kind, "n": 3, **look, **source, **outputs} for kind in KINDS]
        seen = {name: [index % 2, 0.9] for index, name in enumerate(("source", "target"))}
        seen |= {kind: [0, 0.8] for kind in KINDS}
        found.append({"factor": factor, "shown": 0, "names": ["a.jpg", "b.jpg"], "predictions": seen})
    return found


def test_nearer_is_counted_by_each_look():
    row = targeted_rows(lines())[2, TransformedKinds.VALID]
    assert [row.nearer(look) for look in ("rms", "ssim", "afar")] == [1, 2, 1]
    assert row.unchanged == 2
    found = stats.binomtest(2, 3).proportion_ci(method="wilson")
    assert row.share(2) == f"2 of 3 [{100 * found.low:.1f}%, {100 * found.high:.1f}%]"
    with pytest.raises(DataError, match="expected lines of pairs, found none"):
        targeted_rows([line for line in lines() if "shown" in line])


def test_the_report_has_intervals_and_draws_triplets(tmp_path):
    for factor in (1, 2):
        for level, which in enumerate(("source", "target", "transformed")):
            pixels = np.full((32, 32, 3), 90 * level, np.uint8)
            Image.fromarray(pixels).save(tmp_path / shown_triplet_name(0, factor, which))
    report = targeted_report(PROTOCOL, lines(), tmp_path)
    text = " ".join(report.to_text().split())
    low, high = stats.t.interval(0.95, 2, 20, stats.sem([10, 20, 30]))
    assert f"20.00 [{low:.2f}, {high:.2f}]" in text
    assert "20.0% at 8 px (random: 75%), 20.0% at 16 px" in text
    assert "6.0e-03 (8 bits, lattice; prediction unchanged on 2 of 3" in text
    psnr = -20 * (np.log10(0.2) + np.log10(0.3) + np.log10(0.1)) / 3
    assert f"{psnr:.1f}" in text
    assert ("75.0" in text, "93.8" in text) == (True, True)  # 1 - 48 / 192, 1 - 48 / 768
    assert report.rows[1][:4] == [8, 0.75, UNCHANGED, 1]
    assert len(report.rows) == 1 + 2 * 5 * 3
    stream = io.BytesIO()
    report.draw(stream)
    assert np.asarray(Image.open(stream).convert("RGB")).std() > 10
    (tmp_path / shown_triplet_name(0, 2, "target")).unlink()
    with pytest.raises(DataError, match=r"shown-0-2x-target\.jpg: expected an image"):
        report.draw(io.BytesIO())
