"""Transfer of noise through the command line: linear models, on which every influence has a formula."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers.models import LinearViT, numpy_patches, small_vit
from scipy.special import softmax

from ns_easyrobust.cli import main as cli
from ns_easyrobust.models.checkpoint_save import save_model
from ns_easyrobust.models.normalization import with_normalization
from ns_easyrobust.nullspace.config import NoiseConfig
from ns_easyrobust.nullspace.noise import Noise


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Two linear models, and the factory that builds them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "factory.py").write_text(
        "from helpers.models import LinearViT\n\n\ndef linear(num_classes=4):\n    return LinearViT(num_classes)\n"
    )
    found = {}
    for seed, label in enumerate(("one", "other")):
        found[label] = with_normalization(LinearViT(seed=seed + 1), (0.5,) * 3, (0.5,) * 3)
        save_model(found[label], tmp_path / f"{label}.pth.tar", arch="factory.py:linear")
    return found


@pytest.fixture
def command(models, digits_dir):
    return (
        "experiment transfer --models one=one.pth.tar other=other.pth.tar --model factory.py:linear --num-classes 4 "
        f"--data-dir {digits_dir} --crop-pct 1 --images 6 --synthesis-images 8 --noises 2 --valid-images 3 -b 4 -j 0 "
        "--device cpu -o out"
    ).split()


@pytest.fixture
def quick(monkeypatch):
    """Syntheses that return their random start."""
    made = []

    def synthesize(model, batches, config, generator):
        made.append(torch.randn(1, 16, 24, generator=generator))
        return Noise(made[-1], 0.0, 1, True, held_out=None, trace=(), config=NoiseConfig())

    monkeypatch.setattr("ns_easyrobust.nullspace.synthesize", synthesize)
    return made


def read(tmp_path):
    lines = [json.loads(line) for line in (tmp_path / "out" / "transfer.jsonl").read_text().splitlines()[:-1]]
    return lines[0]["protocol"], [line for line in lines if "protocol" not in line]


def test_noise_of_a_model_s_nullspace_is_its_own_and_one_of_all_images(
    command, tmp_path, models, quick, monkeypatch, caplog, draw_no_more
):
    assert cli.main(command) == 0
    protocol, lines = read(tmp_path)
    own = {"found on": protocol["synthesis_pixels"], "held out": protocol["pixels"]}
    assert {name: protocol["sets_pixels"][name] for name in own} == own
    assert len(set(protocol["sets_pixels"].values())) == len(protocol["sets"])
    assert len(lines) == 2 * 2 * 2 * (3 + 3 + 2)
    for line in lines:
        if line["kind"] == "encoder":
            continue
        nothing = line["control"] == "noise" and line["source"] == line["target"]
        assert (max(line["influences"]) < 1e-10) == nothing
        assert (min(line["influences"]) > 1e-4) != nothing
        assert line["n"] == (3 if line["kind"] == "valid" else 8 if line["images"] == "found on" else 6)
    assert "noise and its controls keep each token's mean, as one reads it: head (Linear)" in caplog.text
    assert not any(torch.equal(one, other) for one in quick[:2] for other in quick[2:])
    target = models["other"][1]
    value = quick[0].double().numpy()
    moved = value.reshape(1, -1) @ target.head.weight.detach().double().numpy().T
    clean = logits(models["other"], pixels(command)).astype(float)
    expected = np.square(softmax(clean + moved, axis=1) - softmax(clean, axis=1)).sum(axis=1)
    key = {"source": "one", "target": "other", "images": "held out", "kind": "encoder", "control": "noise"}
    (found,) = (line for line in lines if key.items() <= line.items())
    assert found["influences"][0] == pytest.approx(expected.mean(), rel=1e-4)
    assert (tmp_path / "out" / "transfer.png").stat().st_size > 10_000
    assert "patch, a sample, on its own model: influence" in (tmp_path / "out" / "transfer.md").read_text()

    before = (tmp_path / "out" / "transfer.jsonl").read_bytes()
    monkeypatch.setattr("ns_easyrobust.nullspace.synthesize", None)
    monkeypatch.setattr("ns_easyrobust.nullspace.pixel_change", None)
    draw_no_more()
    assert cli.main(command) == 0
    assert (tmp_path / "out" / "transfer.jsonl").read_bytes() == before


def pixels(command):
    """The images held out, read by hand."""
    from ns_easyrobust.data import Preprocessing, open_image_folder, split_indices

    folder = open_image_folder(command[command.index("--data-dir") + 1] + "/val", Preprocessing(32, 1.0).transform())
    return torch.stack([folder[item][0] for item in split_indices(range(len(folder)), 6, 42)[0]])


def logits(model, images):
    """By numpy."""
    vit = model[1]
    weight, bias = (
        each.detach().double().numpy() for each in (vit.patch_embed.proj.weight.flatten(1), vit.patch_embed.proj.bias)
    )
    tokens = numpy_patches((images.double().numpy() - 0.5) / 0.5) @ weight.T + bias
    return (
        tokens.reshape(len(images), -1) @ vit.head.weight.detach().double().numpy().T
        + vit.head.bias.detach().double().numpy()
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "one=other.pth.tar"], "--models: expected a label of its own for each, found one, other, one"),
        (["--sources", "third"], "--sources: expected some of one, other, found third"),
        (["--models", "third"], "--models: expected LABEL=CKPT or LABEL=CKPT,CKPT,..., found 'third'"),
        (["--other-data", "a/val", "b/val"], "expected folders of different names, found val twice"),
    ],
)
def test_bad_words_are_one_line(command, words, message, capsys, tmp_path, digits_dir):
    for folder in ("a", "b"):
        (tmp_path / folder).symlink_to(digits_dir)
    assert cli.main([*command, *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "transfer.jsonl").exists()


def test_models_that_noise_cannot_pass_between_or_that_have_none_are_one_line(
    digits_dir, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name, options in (("wide", {"embed_dim": 192}), ("one", {"num_classes": 1}), ("ten", {})):
        save_model(small_vit(**options), tmp_path / f"{name}.pth.tar", arch="vit_micro_patch8_32")
    base = (
        f"experiment transfer --data-dir {digits_dir} --crop-pct 1 --images 4 --synthesis-images 4 -j 0 -o out".split()
    )
    kwargs = ["--model-kwargs", "embed_dim=192", "--model", "vit_micro_patch8_32"]
    assert cli.main([*base, "--models", "a=wide.pth.tar", *kwargs]) == 2
    assert (
        "--models a: expected a patch embedding with a nullspace, found rank 192 for 192 numbers"
        in capsys.readouterr().err
    )
    assert cli.main([*base, "--models", "a=one.pth.tar"]) == 2
    assert "--models a: expected two classes at least, found one" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("transfer*"))
