"""The experiment ``attention`` from the command line: numbers, report, what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.models import small_vit

from ns_easyrobust.cli.main import main
from ns_easyrobust.errors import ModelError
from ns_easyrobust.experiments import attention, attention_measures
from ns_easyrobust.experiments.attention_measures import (
    SIZES,
    constructed_measures,
    control_measures,
    layer_line,
    layer_measures,
    noise_changes,
    require_heads,
)
from ns_easyrobust.experiments.results import Results
from ns_easyrobust.models.checkpoint_save import save_model
from ns_easyrobust.models.projections import attention_inputs, head_projections
from ns_easyrobust.nullspace.attention_nullspace import head_invariant_directions
from ns_easyrobust.nullspace.constructed_attention import constructed_layer
from ns_easyrobust.utils import FlagParser, derive_seed


def run(*words: object) -> int:
    return main(["experiment", "attention", *map(str, words), "--device", "cpu", "-j", "0"])


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of random weights; the constructed layer beside it is small."""
    monkeypatch.setattr(attention, "_CONSTRUCTED", (3, 8, 9))
    path = tmp_path / "random.pth"
    save_model(small_vit(), path, arch="vit_micro_patch8_32")
    return path


def test_random_weights_lie_in_the_random_band_and_meet_nothing(checkpoint, tmp_path, capsys, draw_no_more):
    out = tmp_path / "out"
    draw_no_more()
    assert run("--ckpt-path", checkpoint, "--images", 2, "--draws", 4, "-o", out) == 0
    lines = [json.loads(line) for line in (out / "attention.jsonl").read_text().splitlines()]
    layers, built = [line for line in lines if "layer" in line], [line for line in lines if "without" in line]
    assert len(layers) == 3
    assert len(built) == 4
    for line in layers:
        assert line["common_dimension"] == line["same_dimension"] == line["keys_dimension"] == 0
        for name in ("share", "inside"):
            control = line["control"][name]
            assert len(control) == 4 * 4
            assert np.mean(line[name]) == pytest.approx(np.mean(control), abs=5 * np.std(control) / 2)
        assert line["share"] == pytest.approx([0.5] * 4, abs=0.06)
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "the conditions of Proposition 1 are excluded in 3 of 3 layers. Condition 1 is excluded for 12 of 12" in text
    assert "random pixels" in text
    assert "float64, but the changes by noise, which run in the model's own precision." in text
    assert "the proposition holds in this construction" in text
    assert {path.name for path in out.iterdir()} >= {"attention.md", "attention.csv"}
    before = (out / "attention.jsonl").read_bytes()
    assert run("--ckpt-path", checkpoint, "--images", 2, "--draws", 4, "-o", out) == 0
    assert (out / "attention.jsonl").read_bytes() == before


def test_a_constructed_layer_is_measured_to_meet_the_conditions():
    layer = constructed_layer(3, 4, torch.Generator().manual_seed(0))
    found = layer_measures(layer, 1e-14)
    assert found["share"] == pytest.approx([1] * 3)
    assert found["inside_least"] == pytest.approx([1] * 3)
    assert found["row"] == pytest.approx(1)
    assert found["keys_dimension"] == 1
    assert max(control_measures(layer, 4, 0)["share"]) < 0.95
    met, first, second, third = (constructed_measures(3, 4, 7, 0, without) for without in range(4))
    assert met["proof"] < 1e-12 < 1e-2 < met["random"]
    assert min(first["proof"], second["proof"], third["proof"]) > 1e-4
    assert [line["dimension"] for line in (met, first, second, third)] == [1, 1, 1, 0]


def test_a_direction_that_no_head_sees_changes_nothing_and_others_do():
    model = small_vit().eval()
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    norm, weight = model[1].blocks[0].norm1, model[1].blocks[0].attn.qkv.weight
    hidden = torch.zeros(64)
    hidden[0], hidden[1] = 1, -1  # orthogonal to all-ones; the gain below is one on these
    with torch.no_grad():
        norm.weight[2:] = torch.rand(62, generator=torch.Generator().manual_seed(1)) + 0.5
        weight -= torch.outer(weight @ hidden, hidden) / 2
    (layer, *_), (tokens, *_) = head_projections(model), attention_inputs(model, images)
    state = torch.random.get_rng_state()
    changes = list(noise_changes(model, 0, tokens.split(2), layer, 2**-24, 2, 0))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [(change["noise"], change["size"]) for change in changes] == [
        (noise, size) for noise in ("same", "other") for size in SIZES
    ]
    for change in changes:
        mean, low, high = change["least"]
        assert low <= mean <= high < 1e-4 * max(1, change["size"])
        assert min(change["random"]) > 1e-3
        assert change["n"] == 3
        assert len(change["random"]) == 2
    whole = list(noise_changes(model, 0, [tokens], layer, 2**-24, 2, 0))
    for change, same in zip(changes[6:], whole[6:], strict=True):
        assert change["random"] == pytest.approx(same["random"], rel=1e-4)


def test_images_run_in_batches(checkpoint, tmp_path, monkeypatch):
    sizes = []

    def spied(model, images):
        sizes.append(len(images))
        return attention_inputs(model, images)

    monkeypatch.setattr("ns_easyrobust.models.attention_inputs", spied)
    monkeypatch.setattr(attention_measures, "layer_line", lambda *given: {"n": sum(map(len, given[4]))})
    parser, results = FlagParser(), Results(tmp_path, "attention")
    attention.AttentionExperiment().add_arguments(parser)
    words = ["--ckpt-path", str(checkpoint), "--images", "5", "-b", "2", "--device", "cpu"]
    attention.AttentionExperiment().measure(parser.parse_args(words), results)
    assert sizes == [1, 2, 2, 1]  # the first for its refusals
    assert [line["n"] for line in results.lines[:3]] == [5, 5, 5]


def test_random_layers_and_directions_have_seeds_of_their_own_and_one_roundoff_is_of_all_weights(monkeypatch):
    model = small_vit().eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        weight = model[1].blocks[1].attn.qkv.weight
        weight[:128] = weight[:128].half().float()  # values alone are of single precision
    layer, tokens = head_projections(model)[1], attention_inputs(model, images)[1]
    used, given = [], []

    def seeded(*uses):
        used.append(uses)
        return derive_seed(*uses)

    def directions(projections, roundoff):
        given.append(roundoff)
        return head_invariant_directions(projections, roundoff)

    monkeypatch.setattr(attention_measures, "derive_seed", seeded)
    monkeypatch.setattr("ns_easyrobust.nullspace.head_invariant_directions", directions)
    line = layer_line("vit", model, 1, layer, [tokens], 2, 7)
    assert len(used) == len(set(used)) == 3  # two random layers, and the random directions
    assert line["roundoff"] == 2**-24
    assert set(given) == {2**-24, 0.0}


def test_a_pruned_head_is_refused_by_name_and_a_singular_one_is_no_infinity(tmp_path, capsys):
    model, path = small_vit(), tmp_path / "pruned.pth"
    with torch.no_grad():
        model[1].blocks[1].attn.qkv.weight[32:48] = 0  # queries of head 2
    save_model(model, path, arch="vit_micro_patch8_32")
    assert run("--ckpt-path", path, "-o", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "expected heads whose Q K' and V are not 0, found layer 1, head 2, where one of them is" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out" / "attention.jsonl").exists()
    layer = constructed_layer(3, 4, torch.Generator().manual_seed(0), 3)
    layer.value[1] = 0
    with pytest.raises(ModelError, match=r"vit: .* found layer 1, head 1"):
        require_heads("vit", [constructed_layer(3, 4, torch.Generator()), layer])
    layer.value[1, :2, 0] = 1  # of rank 1
    require_heads("vit", [layer])
    found = layer_measures(layer, 1e-14)
    json.dumps(found, allow_nan=False)
    assert [value is None for value in found["condition_value"]] == [False, True, False]
    assert found["inside_tolerance"][1] == 1


def test_further_checkpoints_are_shown_beside_it_and_other_settings_refused(checkpoint, tmp_path, digits_dir, capsys):
    out, words = tmp_path / "out", ("--ckpt-path", checkpoint, "--images", 2, "--draws", 2)
    assert run(*words, "--also", f"other={checkpoint}", "--data-dir", digits_dir, "-o", out) == 0
    text = capsys.readouterr().out
    assert "Conditions of Proposition 1: other" in text
    assert "2 random ones of val/" in text
    assert (out / "attention.png").stat().st_size > 20_000
    kept = (out / "attention.jsonl").read_bytes()
    assert run(*words, "-o", out) == 2
    assert (out / "attention.jsonl").read_bytes() == kept
    capsys.readouterr()
    for also, found in (
        (["x"], "expected NAME=CKPT, found 'x'"),
        (["a=1", "a=2"], "each of its own name"),
        (["a=1", "b=2", "c=3"], "at most 2 checkpoints"),
        ([f"vit_micro_patch8_32={checkpoint}"], "expected other names than vit_micro_patch8_32"),
    ):
        assert run(*words, "--also", *also, "-o", tmp_path / "none") == 2
        error = capsys.readouterr().err
        assert found in error
        assert error.count("\n") == 1


def test_a_model_without_heads_is_refused_before_anything_is_written(tmp_path, capsys):
    path = tmp_path / "swin.pth"
    save_model(small_vit(arch="swin_micro_patch2_32"), path, arch="swin_micro_patch2_32")
    assert run("--ckpt-path", path, "-o", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "has no blocks whose attention can be read" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out" / "attention.jsonl").exists()
