"""Patch noise through the command line: what stays, what changes, what is kept, and what is refused in one line."""

from __future__ import annotations

import json
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from helpers.models import numpy_patches
from PIL import Image
from torch import nn

from ns_easyrobust.cli import main as cli
from ns_easyrobust.errors import ModelError
from ns_easyrobust.experiments.exact_nullspace import in_float64, spectrum_with_nullspace
from ns_easyrobust.experiments.patch_noise import noisy_images
from ns_easyrobust.models.checkpoint_save import save_model
from ns_easyrobust.report.patch_noise_rows import PatchNoiseKinds


@pytest.fixture
def command(tmp_path, trained, digits_dir, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(trained, tmp_path / "last.pth.tar", arch="vit_micro_patch8_32")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 32, 3), np.uint8)).save(tmp_path / "photo.png")
    return (
        f"experiment patch-noise --ckpt-path last.pth.tar --data-dir {digits_dir} --crop-pct 1 --images 6 -b 4 -j 0 "
        "--photographs photo.png --device cpu -o out"
    ).split()


def read(tmp_path):
    lines = [json.loads(line) for line in (tmp_path / "out" / "patch-noise.jsonl").read_text().splitlines()]
    return lines[0]["protocol"], [line for line in lines if "protocol" not in line]


def test_the_nullspace_s_noise_changes_nothing_and_the_same_values_elsewhere_do(
    command, tmp_path, monkeypatch, capsys, draw_no_more
):
    draw_no_more()
    assert cli.main(command) == 0
    protocol, lines = read(tmp_path)
    assert (protocol["nullity"], protocol["n"]) == (128, 6)
    batches = [line for line in lines if "batch" in line]
    assert [line["n"] for line in batches] == [4] * 8 + [2] * 8
    for line in batches:
        largest = line["largest_confidence"]
        if line["kind"] in (PatchNoiseKinds.SAMPLE, PatchNoiseKinds.VALID):
            assert largest < (1e-11 if line["precision"] == "float64" else 1e-6)
            assert line["unchanged"] == line["n"]
        else:
            assert largest > 1e-5
        if line["kind"] not in (PatchNoiseKinds.SAMPLE, PatchNoiseKinds.SAMPLE_PERMUTED):
            assert line["outside"] == 0
    rms = {line["kind"]: line["mean_square"] ** 0.5 for line in batches[:6]}
    assert rms[PatchNoiseKinds.SAMPLE] == pytest.approx(0.3, rel=1e-5)
    assert rms[PatchNoiseKinds.VALID_PERMUTED] == pytest.approx(rms[PatchNoiseKinds.VALID], rel=1e-6)
    photo = np.asarray(Image.open(tmp_path / "out" / "patch-noise-parts" / "0-image.png"))
    assert np.array_equal(photo, np.asarray(Image.open(tmp_path / "photo.png"))[4:36])
    text = " ".join(capsys.readouterr().out.split())
    assert "the prediction stays on 6 of 6 images (agreement 100.0% [61.0, 100.0])" in text  # Wilson: 6 / (6 + 3.84)

    before = (tmp_path / "out" / "patch-noise.jsonl").read_bytes()
    monkeypatch.setattr("ns_easyrobust.experiments.patch_noise.noisy_images", None)
    assert cli.main(command) == 0
    assert (tmp_path / "out" / "patch-noise.jsonl").read_bytes() == before


def test_each_kind_of_noisy_images_is_what_it_says(trained):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    found = {kind: value - images.double() for kind, value in noisy_images(trained, images, 0.2, 7, 0, 8).items()}
    weight = trained[1].patch_embed.proj.weight.flatten(1).detach().double().numpy()
    for kind, noise in found.items():
        embedded = np.abs(numpy_patches(noise.numpy()) @ weight.T).max()
        assert (embedded < 1e-6) == (kind in (PatchNoiseKinds.SAMPLE, PatchNoiseKinds.VALID))
    again = noisy_images(trained, images, 0.2, 7, 0, 8)
    assert all(torch.equal(again[kind] - images.double(), noise) for kind, noise in found.items())
    levels = 255 * (found[PatchNoiseKinds.ROUNDED] + images.double())
    assert float((levels - levels.round()).abs().max()) < 1e-9
    assert float((found[PatchNoiseKinds.ROUNDED] - found[PatchNoiseKinds.VALID]).abs().max()) <= 0.5 / 255 + 1e-9


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--class-names", "a", "b"], "--class-names: expected 10, one a class, found 2. Name all."),
        (["--photographs", *["photo.png"] * 9], "--photographs: expected at most 8, found 9"),
        (
            ["--photographs", "photo.png", "photo.png"],
            "--photographs: expected different names, found photo.png, photo.png",
        ),
        (["--photographs", "none.png"], "none.png"),
        (["--input-size", "40"], "--input-size 40: expected 32"),
    ],
)
def test_bad_words_are_one_line(command, words, message, capsys, tmp_path):
    assert cli.main([*command, *words]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out" / "patch-noise.jsonl").exists()


def test_a_model_that_does_not_run_in_float64_has_no_such_rows(trained, caplog, monkeypatch):
    monkeypatch.setattr("ns_easyrobust.nullspace.float64_copy", Mock(side_effect=ModelError("ConViT: no")))
    assert in_float64(trained, torch.rand(1, 3, 32, 32)) is None
    assert "the rows of float64 are left out: ConViT: no" in caplog.text


def test_an_empty_nullspace_is_one_line(trained):
    trained[1].patch_embed.proj = nn.Conv2d(3, 200, 8, 8)
    with pytest.raises(ModelError, match="wide: expected a patch embedding with a nullspace, found rank 192 for 192"):
        spectrum_with_nullspace("wide", trained)
