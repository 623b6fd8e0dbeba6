"""Saliency through the command line: what agrees, what differs, what is kept and written, and what is refused."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from helpers.models import matrix_of, numpy_patches, unequal
from PIL import Image
from scipy.stats import pearsonr

from ns_easyrobust.cli import main as cli
from ns_easyrobust.experiments import saliency as experiment
from ns_easyrobust.experiments.saliency import agreement_of, equally_large, rounding_noise, write_maps
from ns_easyrobust.experiments.triplets import Pairs
from ns_easyrobust.models import Saliency, all_saliency_maps
from ns_easyrobust.models.checkpoint_save import save_model
from ns_easyrobust.models.saliency import SALIENCY_METHODS
from ns_easyrobust.nullspace import nearest_valid
from ns_easyrobust.nullspace.transformed import TransformedKinds
from ns_easyrobust.report.saliency_picture import heat_overlay
from ns_easyrobust.report.saliency_rows import SaliencyKinds


def test_names_are_those_of_the_methods_and_of_transformed_images():
    assert tuple(SALIENCY_METHODS) == tuple(SaliencyKinds.TITLES)
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
    assert len(agreements) == 2 * 5 * (8 + 3)
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
    nearest = {
        kind: [value for line in agreements if (line["of"], line["and"], line["method"], line["precision"]) ==
               ("source", kind, "rollout", "float32") for value in line["correlations"]]
        for kind in ("8 bits", "another order", "blend", "rounding noise")
    }  # fmt: skip
    assert np.median(nearest["another order"]) < np.median(nearest["8 bits"]) < min(nearest["rounding noise"])
    assert np.median(nearest["blend"]) < np.median(nearest["8 bits"])
    predicted = {line["predicted"]: line for line in lines if "predicted" in line}
    assert list(predicted) == ["source", *SaliencyKinds.CHANGED, *SaliencyKinds.EQUALLY_LARGE]
    for kind in ("another order", "blend"):
        assert predicted[kind]["from_source"] == pytest.approx(predicted["valid pixels"]["from_source"], rel=1e-6)
        assert predicted[kind]["outside"] == 0
    assert max(predicted["source"]["from_source"]) == 0
    assert np.mean(predicted["valid pixels"]["from_target"]) < np.mean(predicted["source"]["from_target"])
    assert predicted["least squares"]["outside"] > 0
    assert (predicted["valid pixels"]["outside"], predicted["8 bits"]["outside"]) == (0, 0)

    parts = tmp_path / "out" / "saliency-parts"
    assert np.array_equal(np.asarray(Image.open(parts / "0-source-image.png")), np.asarray(Image.open("a.png"))[4:36])
    assert np.asarray(Image.open(parts / "0-transformed-chefer.png")).shape == (32, 32)
    assert len(list((parts / "maps").iterdir())) == 2 * 3 * 6  # a pair and the photographs', of three images each
    assert "Grad-CAM" in capsys.readouterr().out

    before = path.read_bytes()
    monkeypatch.setattr("ns_easyrobust.experiments.saliency.batch_lines", None)
    monkeypatch.setattr(experiment.nullspace, "nearest_valid", None, raising=False)
    assert cli.main(command) == 0
    assert path.read_bytes() == before


@pytest.mark.stress
def test_a_run_that_was_broken_off_goes_on_and_ends_the_same(command, tmp_path, monkeypatch, draw_no_more):
    draw_no_more()
    command = [*command, "--methods", "rollout", "grad-cam", "--maps", "0"]
    assert cli.main(command) == 0
    path = tmp_path / "out" / "saliency.jsonl"
    whole = [json.loads(line) for line in path.read_text().splitlines()]
    first = [line for line in whole if line.get("batch") != 1 and "shown" not in line and "seconds" not in line]
    path.write_text("".join(json.dumps(line) + "\n" for line in first))
    measured = []
    again = experiment.batch_lines
    monkeypatch.setattr(experiment, "batch_lines", lambda *args: measured.append(args) or again(*args))
    assert cli.main(command) == 0
    assert len(measured) == 1
    ended = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line for line in ended if "seconds" not in line] == [line for line in whole if "seconds" not in line]


def test_controls_change_as_much_within_the_pixels_and_their_direction_is_another(digits):
    images, model = digits[0][:4], unequal()
    images[0, :, :8, :8], images[1, :, :8, :8] = 0, 1  # at the bounds, which sums must not cross
    pairs = Pairs(images[:2], images[2:], [("a", "b"), ("c", "d")])
    sources, targets = (each.double() for each in (pairs.sources, pairs.targets))
    valid = nearest_valid(model, pairs.sources, pairs.targets).images
    found = equally_large(pairs, valid, 8, torch.Generator().manual_seed(0))
    seen = np.abs(numpy_patches((valid - sources).numpy()) @ matrix_of(model, "pixel").T).max()
    for kind, pixels in found.items():
        assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 1
        changes = [each.flatten(1) for each in (pixels - sources, valid - sources)]
        torch.testing.assert_close(changes[0].norm(dim=1), changes[1].norm(dim=1))
        assert np.abs(numpy_patches((pixels - sources).numpy()) @ matrix_of(model, "pixel").T).max() > 100 * seen
        along = torch.cosine_similarity(changes[0], (targets - sources).flatten(1))
        assert (along > 1 - 1e-9).tolist() == [kind == "blend"] * 2
    patches = [np.sort(numpy_patches((each - sources).numpy())) for each in (found["another order"], valid)]
    np.testing.assert_allclose(*patches, atol=1e-12)
    # a target that is the source moves nothing
    same = Pairs(pairs.sources, pairs.sources, pairs.names)
    for pixels in equally_large(same, sources, 8, torch.Generator().manual_seed(0)).values():
        assert torch.equal(pixels, sources)


def test_rounding_noise_is_as_large_as_float32_s_rounding():
    sources = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) + 0.1
    share = rounding_noise(sources, torch.Generator().manual_seed(1)) / sources.double() - 1
    assert float(share.std()) == pytest.approx(np.finfo(np.float32).eps / 2, rel=0.02)


def saliency(tokens: torch.Tensor, maps: torch.Tensor) -> Saliency:
    return Saliency(maps, tokens, torch.zeros(len(tokens), 2))


def numpy_ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Of (H, W) in [0, 1]: Wang et al. 2004, equation 13, mean over all windows of 7 x 7; C1 = .01^2, C2 = .03^2."""
    windows = [np.lib.stride_tricks.sliding_window_view(each.astype(float), (7, 7)) for each in (one, other)]
    (x, y), n = (each.reshape(*each.shape[:2], -1) for each in windows), 49
    mean_x, mean_y = x.mean(-1), y.mean(-1)
    covariance = ((x - mean_x[..., None]) * (y - mean_y[..., None])).sum(-1) / (n - 1)
    above = (2 * mean_x * mean_y + 1e-4) * (2 * covariance + 9e-4)
    return float((above / ((mean_x**2 + mean_y**2 + 1e-4) * (x.var(-1, ddof=1) + y.var(-1, ddof=1) + 9e-4))).mean())


def test_agreement_is_scipy_s_and_ssim_is_its_definition_s():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.rand(2, 3, 4, 4, generator=generator)
    maps = torch.rand(2, 3, 1, 32, 32, generator=generator)
    maps[1, 1] = 0.7 * maps[0, 1] + 0.3 * maps[1, 1]
    tokens[1, 2] = 0.25  # a constant one
    tokens[1, 1] = tokens[0, 1]
    found = agreement_of(saliency(tokens[0], maps[0]), saliency(tokens[1], maps[1]))
    expected = pearsonr(tokens[0, 0].flatten(), tokens[1, 0].flatten()).statistic
    assert found["correlations"] == [pytest.approx(expected, rel=1e-5), 1, None]
    for number in range(3):
        ssim = numpy_ssim(maps[0, number, 0].numpy(), maps[1, number, 0].numpy())
        assert found["ssims"][number] == pytest.approx(ssim, abs=1e-6)
    assert found["ssims"][1] > found["ssims"][0] + 0.3
    largest = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*tokens, strict=True))
    assert found["largest_difference"] == pytest.approx(largest, rel=1e-6)
    zero = agreement_of(saliency(torch.zeros(1, 4, 4), maps[0, :1]), saliency(tokens[0, :1], maps[1, :1]))
    assert (zero["correlations"], zero["largest_difference"]) == ([None], None)


def test_written_maps_are_those_of_the_images_that_were_written(tmp_path, digits):
    images, model = digits[0][:4], unequal()
    pairs = Pairs(images[:2], images[2:], [("a", "b"), ("c", "d")])
    write_maps(tmp_path / "maps", "pair", model, pairs, ["rollout"], 8)
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
    write_maps(tmp_path / "maps", "pair", model, pairs, ["rollout"], 8)
    assert path.read_bytes() == b"mine"  # of a pair whose files are all there
    assert (tmp_path / "maps" / "pair-1-source-image.png").exists()


def test_photographs_are_checked_before_images_run_through_the_model(command, monkeypatch, capsys):
    monkeypatch.setattr(experiment, "pair_images", None)
    assert cli.main([*command, "--photographs", "a.png", "a.png"]) == 2
    assert "--photographs: expected pairs of different pictures" in capsys.readouterr().err.splitlines()[-1]


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
