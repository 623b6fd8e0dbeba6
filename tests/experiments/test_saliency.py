"""Saliency through the command line: what agrees, what differs, what is kept and written, and what is refused."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from helpers.models import unequal
from PIL import Image
from scipy.stats import pearsonr

from ns_easyrobust.cli import main as cli
from ns_easyrobust.experiments.saliency import agreement_of, write_maps
from ns_easyrobust.experiments.triplets import Pairs
from ns_easyrobust.models import Saliency, all_saliency_maps
from ns_easyrobust.models.checkpoint_save import save_model
from ns_easyrobust.models.saliency import SALIENCY_METHODS
from ns_easyrobust.nullspace.transformed import TransformedKinds
from ns_easyrobust.report.saliency_picture import heat_overlay
from ns_easyrobust.report.saliency_rows import SaliencyKinds


def test_names_are_those_of_the_methods_and_of_transformed_images():
    assert tuple(SALIENCY_METHODS) == SaliencyKinds.METHODS == tuple(SaliencyKinds.TITLES)
    assert TransformedKinds.ALL == SaliencyKinds.CHANGED


@pytest.fixture
def command(tmp_path, trained, digits_dir, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(trained, tmp_path / "last.pth.tar", arch="vit_micro_patch8_32")
    for name in ("a", "b"):
        pixels = np.random.default_rng(ord(name)).integers(0, 256, (40, 32, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return (
        f"experiment saliency --ckpt-path last.pth.tar --data-dir {digits_dir} --crop-pct 1 --images 6 -b 4 -j 0 "
        "--photographs a.png b.png --maps 1 --device cpu -o out"
    ).split()


def test_transformed_images_have_their_sources_maps_and_targets_have_others(
    command, tmp_path, monkeypatch, capsys, draw_no_more
):
    draw_no_more()
    assert cli.main(command) == 0
    path = tmp_path / "out" / "saliency.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    protocol, lines = lines[0]["protocol"], [line for line in lines if "protocol" not in line]
    assert (protocol["nullity"], protocol["n"], protocol["shown"]) == (128, 6, [["a.png", "b.png"]])
    agreements = [line for line in lines if "method" in line]
    assert {line["batch"] for line in agreements} == {0, 1}
    assert len(agreements) == 2 * 5 * (7 + 2)
    assert len(agreements[0]["ssims"]) == len(agreements[0]["correlations"]) == 4
    for line in agreements:
        if line["of"] == "source" and line["and"] == "least squares":
            assert line["largest_difference"] < (1e-6 if line["precision"] == "float64" else 0.05)
            assert min(value for value in line["correlations"] if value is not None) > 0.999
        if line["and"] == "target":
            assert line["largest_difference"] > 0.05
            assert min(line["ssims"]) < 0.95
    exact, rounded = (
        max(line["largest_difference"] for line in agreements if line["and"] == kind and line["method"] == "rollout"
            and line["of"] == "source" and line["precision"] == "float32")
        for kind in ("least squares", "8 bits")
    )  # fmt: skip
    assert exact < 1e-4 < rounded
    predicted = {line["predicted"]: line for line in lines if "predicted" in line}
    assert predicted["least squares"]["outside"] > 0
    assert (predicted["valid pixels"]["outside"], predicted["8 bits"]["outside"]) == (0, 0)

    parts = tmp_path / "out" / "saliency-parts"
    assert np.array_equal(np.asarray(Image.open(parts / "0-source-image.png")), np.asarray(Image.open("a.png"))[4:36])
    assert np.asarray(Image.open(parts / "0-transformed-chefer.png")).shape == (32, 32)
    assert len(list((parts / "maps").iterdir())) == 2 * 3 * 6  # a pair and the photographs', of three images each
    assert "Grad-CAM" in capsys.readouterr().out

    before = path.read_bytes()
    monkeypatch.setattr("ns_easyrobust.experiments.saliency.batch_lines", None)
    monkeypatch.setattr("ns_easyrobust.experiments.saliency.maps_of_pair", None)
    assert cli.main(command) == 0
    assert path.read_bytes() == before


def saliency(tokens: torch.Tensor, maps: torch.Tensor) -> Saliency:
    return Saliency(maps, tokens, torch.zeros(len(tokens), 2))


def test_agreement_is_scipy_s_and_scikit_image_s():
    from skimage.metrics import structural_similarity

    generator = torch.Generator().manual_seed(0)
    tokens = torch.rand(2, 3, 4, 4, generator=generator)
    maps = torch.rand(2, 3, 1, 32, 32, generator=generator)
    tokens[1, 2] = 0.25  # a constant one
    tokens[1, 1] = tokens[0, 1]
    found = agreement_of(saliency(tokens[0], maps[0]), saliency(tokens[1], maps[1]))
    expected = pearsonr(tokens[0, 0].flatten(), tokens[1, 0].flatten()).statistic
    assert found["correlations"] == [pytest.approx(expected, rel=1e-5), 1, None]
    assert found["ssims"][1] == pytest.approx(
        structural_similarity(maps[0, 1, 0].double().numpy(), maps[1, 1, 0].double().numpy(), data_range=1), rel=1e-6
    )
    largest = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*tokens, strict=True))
    assert found["largest_difference"] == pytest.approx(largest, rel=1e-6)
    zero = agreement_of(saliency(torch.zeros(1, 4, 4), maps[0, :1]), saliency(tokens[0, :1], maps[1, :1]))
    assert (zero["correlations"], zero["largest_difference"]) == ([None], None)


def test_written_maps_are_those_of_the_images_that_were_written(tmp_path, digits):
    images, model = digits[0][:4], unequal()
    pairs = Pairs(images[:2], images[2:], [("a", "b"), ("c", "d")])
    write_maps(tmp_path / "maps", "pair", model, pairs, ["rollout"])
    assert len(list((tmp_path / "maps").iterdir())) == 12
    path = tmp_path / "maps" / "pair-2-transformed-rollout.png"
    image = np.asarray(Image.open(tmp_path / "maps" / "pair-2-transformed-image.png"))
    assert not np.array_equal(image, np.asarray(Image.open(tmp_path / "maps" / "pair-2-source-image.png")))
    pixels = torch.tensor(image / 255, dtype=torch.float32).permute(2, 0, 1)[None]
    heat = all_saliency_maps(model, pixels, ["rollout"])["rollout"].maps[0, 0]
    expected = heat_overlay(image, np.round(255 * heat.numpy()).astype(np.uint8))
    assert np.abs(np.asarray(Image.open(path)).astype(int) - expected).max() <= 3
    path.write_bytes(b"mine")
    (tmp_path / "maps" / "pair-1-source-image.png").unlink()
    write_maps(tmp_path / "maps", "pair", model, pairs, ["rollout"])
    assert path.read_bytes() == b"mine"  # of a pair whose files are all there
    assert (tmp_path / "maps" / "pair-1-source-image.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "rollout", "rollout"], "--methods: expected different ones, found rollout rollout"),
        (["--photographs", "a.png"], "--photographs: expected pairs of source and target"),
        (["--methods", "lime"], "lime"),
        (["--maps", "-1"], "-1"),
    ],
)
def test_bad_words_are_one_line(command, words, message, capsys, tmp_path):
    assert cli.main([*command, *words]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out" / "saliency.jsonl").exists()


def test_without_scikit_image_one_line_says_what_installs_it(command, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    assert cli.main(command) == 2
    assert "pip install 'ns_easyrobust[experiments]'" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
