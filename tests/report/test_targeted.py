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
        share = {"unseen_share": [0.1, 0.2, 0.3], "within_share": [0.1] * 3, "residual": [1e-7] * 3}
        share["draws_share"] = [0.7, 0.8] if factor == 1 else [0.1, 0.4]
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


def test_draws_are_means_over_all_pairs():
    found = lines()
    more = {name: value[:1] if isinstance(value, list) else value for name, value in found[0].items()}
    more |= {"n": 1, "start": 3, "draws_share": [0.3, 0.8]}
    draws = targeted_rows([*found, more])[1, UNCHANGED].draws()
    assert draws == pytest.approx([(3 * 0.7 + 0.3) / 4, 0.8])


def test_what_is_said_of_pooling_needs_some(tmp_path):
    text = targeted_report(PROTOCOL, [line for line in lines() if line["factor"] == 1], tmp_path).to_text()
    assert "behind average pooling of squares" not in " ".join(text.split())


def test_the_report_has_intervals_and_draws_triplets(tmp_path):
    for factor in (1, 2):
        for level, which in enumerate(("source", "target", "transformed")):
            pixels = np.full((32, 32, 3), 90 * level, np.uint8)
            Image.fromarray(pixels).save(tmp_path / shown_triplet_name(0, factor, which))
    report = targeted_report(PROTOCOL, lines(), tmp_path)
    text = " ".join(report.to_text().split())
    low, high = stats.t.interval(0.95, 2, 20, stats.sem([10, 20, 30]))
    assert f"20.00 [{low:.2f}, {high:.2f}]" in text
    assert "20.0% at 8 px (random weights 75.0 [70.0, 80.0]; pooling alone 10.0%; of the dimensions 75.0%); 20." in text
    assert "these are below all 2 at 8 px, within the range of all 2 at 16 px." in text
    assert "8 bits, lattice: 6.0e-03 at 8 px, 6.0e-03 at 16 px" in text
    assert "of every size and kind, the prediction is unchanged on 2 of 3 [" in text
    for claim in ("outputs do stay", "trained one sees more"):  # which these numbers contradict, or do not show
        assert claim not in text
    assert "on 1 / 2 / 1 at 8 px, 1 / 2 / 1 at 16 px, of 3 pairs each; the most is 2 of 3 [" in text
    psnr = -20 * (np.log10(0.2) + np.log10(0.3) + np.log10(0.1)) / 3
    assert f"{psnr:.1f}" in text
    assert ("75.0" in text, "93.8" in text) == (True, True)  # 1 - 48 / 192, 1 - 48 / 768
    assert report.rows[1][:4] == [8, 0.75, UNCHANGED, 1]
    assert len(report.rows) == 1 + 2 * (5 * 3 + 2)
    column = report.rows[0].index("unseen_share")
    assert [row[column] for row in report.rows if row[2] == "random weights"] == pytest.approx([0.7, 0.8, 0.1, 0.4])
    stream = io.BytesIO()
    report.draw(stream)
    assert np.asarray(Image.open(stream).convert("RGB")).std() > 10
    (tmp_path / shown_triplet_name(0, 2, "target")).unlink()
    with pytest.raises(DataError, match=r"shown-0-2x-target\.jpg: expected an image"):
        report.draw(io.BytesIO())
