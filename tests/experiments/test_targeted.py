"""Transformed images through the command line: what stays, what is written, and what is refused in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ns_easyrobust.cli import main as cli
from ns_easyrobust.models.checkpoint_save import save_model
from ns_easyrobust.nullspace.transformed import TransformedKinds
from ns_easyrobust.report.targeted_rows import UNCHANGED


@pytest.fixture
def command(tmp_path, trained, digits_dir, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(trained, tmp_path / "last.pth.tar", arch="vit_micro_patch8_32")
    for name in ("one.png", "two.png"):
        pixels = np.random.default_rng(len(name + name[0])).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels if name == "one.png" else 255 - pixels).save(tmp_path / name)
    return (
        f"experiment targeted --ckpt-path last.pth.tar --data-dir {digits_dir} --crop-pct 1 --images 5 -b 12 -j 0 "
        "--enlarge 2 1 --photographs one.png two.png --device cpu -o out"
    ).split()


def test_outputs_stay_and_the_user_gets_the_images(command, tmp_path, trained, monkeypatch, capsys, draw_no_more):
    draw_no_more()
    assert cli.main(command) == 0
    path = tmp_path / "out" / "targeted.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0]["protocol"]["factors"] == [1, 2]
    pairs = [line for line in lines if "start" in line]
    assert [(line["factor"], line["start"]) for line in pairs[::5]] == [(1, 0), (2, 0), (2, 3)]
    for line in pairs:
        if line["kind"] == UNCHANGED:
            assert min(line["rms_target"]) > 0.05
            assert all(0 < share < 1 for share in line["unseen_share"])
            # Of what pooling passes, random weights leave what the model's own dimensions promise.
            within = np.array(line["within_share"])
            assert (within > 0.01).all() if line["factor"] == 2 else np.allclose(within, 0, atol=1e-9)
            assert len(line["draws_share"]) == 20
            expected = (within + (1 - within) * (1 - 64 / 192)).mean()
            assert np.mean(line["draws_share"]) == pytest.approx(expected, abs=0.04)
            assert np.ptp(line["draws_share"]) > 0.01
            continue
        exact = line["kind"] in (TransformedKinds.LEAST_SQUARES, TransformedKinds.VALID)
        assert max(line["confidence"]) < (1e-5 if exact else 0.05)
        assert line["unchanged"] == [1] * line["n"]
        assert min(line["rms_source"]) > 0.02
        if line["kind"] != TransformedKinds.LEAST_SQUARES:
            assert max(line["outside"]) == 0
    # Least squares: ||z - t||^2 = (1 - share) ||x - t||^2, by Pythagoras.
    for plain, least in zip(pairs[::5], pairs[1::5], strict=True):
        expected = np.array(plain["rms_target"]) * np.sqrt(1 - np.array(plain["unseen_share"]))
        assert np.allclose(least["rms_target"], expected, rtol=1e-3)
    images = tmp_path / "out" / "targeted-parts" / "images"
    source, transformed = (np.asarray(Image.open(images / f"0-1x-{which}.png")) for which in ("source", "transformed"))
    exact = np.load(images / "0-1x-transformed.npy")
    assert exact.shape == (3, 32, 32)
    assert ((exact >= 0) & (exact <= 1)).all()
    assert np.abs(255 * exact.transpose(1, 2, 0) - transformed).max() <= 8.5
    assert np.abs(source.astype(int) - transformed).mean() > 20
    logits = [
        trained(torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None] / 255) for pixels in (source, transformed)
    ]
    assert torch.allclose(*logits, atol=0.1)
    text = " ".join(capsys.readouterr().out.split())
    assert "5 of 5 [56.6%, 100.0%]" in text  # Wilson: 5 / (5 + 3.84)

    before = path.read_bytes()
    monkeypatch.setattr("ns_easyrobust.experiments.targeted.TripletMeasure", None)
    assert cli.main(command) == 0
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--class-names", "a", "b"], "--class-names: expected 10, one a class, found 2. Name all."),
        (["--photographs", "one.png"], "--photographs: expected pairs of source and target, at most 4, found 1 files"),
        (["--photographs", "none.png", "one.png"], "none.png"),
        (["--enlarge", "0"], "expected a whole number >= 1, found 0"),
        (["--images", "1"], "expected a whole number >= 2, found 1"),
    ],
)
def test_bad_words_are_one_line(command, words, message, capsys, tmp_path):
    assert cli.main([*command, *words]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out" / "targeted.jsonl").exists()


def test_one_predicted_class_is_one_line(command, tmp_path, trained, capsys):
    nn.init.constant_(trained[1].head.bias[3:4], 1e4)
    save_model(trained, tmp_path / "last.pth.tar", arch="vit_micro_patch8_32")
    assert cli.main(command) == 2
    assert "found class 3 predicted for all 5" in capsys.readouterr().err.splitlines()[-1]
