"""Checkpoints that say what they are for: name, size, mean and std, before timm's and after the caller's."""

from __future__ import annotations

import argparse
import json
import logging

import numpy as np
import pytest
import timm
import torch
from helpers.checkpoints import ARCH, CLASSES, MEAN, STD, jax_arrays, logits, make_model, make_vit, one_line
from safetensors.torch import save_file

from ns_easyrobust.errors import CheckpointError, ModelError
from ns_easyrobust.models import hub
from ns_easyrobust.models.checkpoint_save import export_checkpoint, save_model
from ns_easyrobust.models.checkpoints import load_model, read_checkpoint
from ns_easyrobust.models.description import Description, describe
from ns_easyrobust.models.hub import required_arch

OLD = timm.__version__.startswith("0.")


def stored(tmp_path, state=None, **beside):
    torch.save({"state_dict": make_vit().state_dict() if state is None else state, **beside}, tmp_path / "c.pth")
    return tmp_path / "c.pth"


def test_name_classes_mean_and_std_are_read_and_said(tmp_path, caplog):
    path = stored(tmp_path, args=argparse.Namespace(model=ARCH, mean=list(MEAN), std=list(STD)))
    with caplog.at_level(logging.INFO):
        model = load_model(None, path)
    assert (model.arch, model.num_classes, model.normalization_origin) == (ARCH, CLASSES, "checkpoint args")
    assert model.mean == pytest.approx(MEAN)
    assert "from the checkpoint args" in caplog.text
    assert torch.equal(logits(model), logits(make_model()))
    given = load_model(None, path, mean=[0.5], std=[0.5])
    assert (given.mean, given.normalization_origin) == ([0.5] * 3, "caller")
    exported = export_checkpoint(path, tmp_path / "out.pth", "easyrobust")
    assert exported.normalization_origin == "checkpoint args"


def test_a_normalisation_in_the_weights_wins_as_before(tmp_path):
    save_model(make_model(), tmp_path / "c.pth", arch=ARCH, args={"mean": [0.1] * 3, "std": [0.2] * 3})
    model = load_model(None, tmp_path / "c.pth")
    assert model.normalization_origin == "checkpoint"
    assert model.mean == pytest.approx(MEAN)
    assert model.described == {}


@pytest.mark.parametrize(
    "args",
    [
        {"mean": [123.7, 116.3, 103.5], "std": [58.4, 57.1, 57.4]},
        {"mean": [0.1]},
        {"mean": "x", "std": "y"},
        {"mean": [[0.1]], "std": [[0.1]]},
        {"img_size": True, "input_size": [3, 32]},
        {"img_size": -5, "model_kwargs": 3},
        {"img_size": 10**9},
        {"model_kwargs": {"checkpoint_path": "x", "pretrained": True, "a b": 1, "num_classes": 3}},
        {"model_kwargs": {"arch": "x", None: 1, "drop_rate": 0.3}},
    ],
)
def test_what_cannot_be_meant_is_as_if_it_was_not_there(args):
    assert describe({"args": args}) == Description()


def test_the_weights_alone_say_nothing_but_the_name(tmp_path):
    """What a run saved by a version that read no args goes on with."""
    args = {"model": ARCH, "mean": [0.1] * 3, "std": [0.2] * 3, "img_size": 48, "model_kwargs": {"depth": 2}}
    alone = read_checkpoint(stored(tmp_path, arch=ARCH, args=args)).without_args
    assert alone.description == Description(arch=ARCH)
    assert load_model(ARCH, alone).mean == [0.5] * 3


def test_neither_a_flag_nor_the_file_names_the_model(tmp_path):
    with pytest.raises(ModelError, match=r"found none in .*c\.pth\. Name the model") as caught:
        load_model(None, stored(tmp_path))
    one_line(caught)
    with pytest.raises(ModelError, match="found no checkpoint that names one"):
        load_model()


def test_arguments_of_the_architecture_are_read(tmp_path):
    vit = make_vit(depth=2)
    path = stored(tmp_path, vit.state_dict(), args={"model": ARCH, "model_kwargs": {"depth": 2}})
    model = load_model(None, path)
    assert len(model[1].blocks) == 2
    assert model.described == {"model_kwargs": {"depth": 2}}
    assert len(load_model(f"somewhere/{ARCH}".rsplit("/", 1)[-1], path)[1].blocks) == 2
    with pytest.raises(CheckpointError, match="does not fit"):
        load_model(None, path, depth=3)


@pytest.mark.parametrize("say", [True, False])
def test_the_size_is_the_files_or_its_position_embeddings(tmp_path, say, caplog):
    vit = make_vit(img_size=48)
    path = stored(tmp_path, vit.state_dict(), args={"img_size": 48 if say else None})
    with caplog.at_level(logging.INFO):
        model = load_model(ARCH, path)
    assert (model.image_size, model.described["img_size"]) == (48, 48)
    assert "for images of 48 x 48 pixels" in caplog.text
    assert "resized" not in caplog.text
    assert torch.equal(model[1].pos_embed, vit.pos_embed)
    np.savez(tmp_path / "c.npz", **jax_arrays(vit))
    assert torch.equal(load_model(ARCH, tmp_path / "c.npz")[1].pos_embed, vit.pos_embed)


def test_a_size_without_tensors_of_it_builds_the_model_for_it(tmp_path):
    """A Swin's weights are the same for every size (but for the masks of timm 0.5.4), so the file must say it."""
    from ns_easyrobust.models import architectures as models

    swin = models.build("swin_micro_patch2_32", num_classes=3, img_size=64)
    path = stored(tmp_path, swin.state_dict(), args={"img_size": 64})
    assert load_model("swin_micro_patch2_32", path).image_size == 64
    assert logits(load_model("swin_micro_patch2_32", path), torch.rand(1, 3, 64, 64)).shape == (1, 3)


@pytest.mark.parametrize("form", ["pth", "npz"])
def test_another_size_that_is_given_resizes_by_timms_own_function(tmp_path, form, caplog):
    vit = make_vit()
    path = stored(tmp_path, vit.state_dict())
    if form == "npz":
        path = tmp_path / "c.npz"
        np.savez(path, **jax_arrays(vit))
    with caplog.at_level(logging.INFO):
        model = load_model(ARCH, path, img_size=48)
    assert "position embedding resized by timm from 4 x 4 patches to 6 x 6" in caplog.text
    own = load_model(ARCH, num_classes=CLASSES, img_size=48)[1]
    if OLD:
        from timm.models.vision_transformer import resize_pos_embed

        expected = resize_pos_embed(vit.pos_embed, own.pos_embed, 1, (6, 6))
    else:
        expected = timm.models.vision_transformer.checkpoint_filter_fn(dict(vit.state_dict()), own)["pos_embed"]
    assert torch.allclose(model[1].pos_embed, expected, atol=1e-7)
    assert torch.allclose(model[1].head.weight, vit.head.weight)
    assert logits(model, torch.rand(1, 3, 48, 48)).shape == (1, CLASSES)


def test_what_is_no_vit_is_not_resized(tmp_path):
    from ns_easyrobust.models import architectures as models

    path = stored(tmp_path, models.build("vit_micro_patch4_32", num_classes=3).state_dict())
    with pytest.raises(CheckpointError, match="does not fit"):
        load_model(ARCH, path, img_size=48)


def folder(tmp_path, **more):
    """A folder as timm's ``save_for_hf`` leaves it."""
    place = tmp_path / "hub"
    place.mkdir()
    save_file({name: value.clone() for name, value in make_vit().state_dict().items()}, place / "model.safetensors")
    config = {
        "architecture": ARCH,
        "num_classes": CLASSES,
        "model_args": {"img_size": [32, 32], "num_classes": CLASSES},
        "pretrained_cfg": {"mean": MEAN, "std": STD, "crop_pct": 0.7, "input_size": [3, 32, 32], "url": "http://x/y"},
    }
    (place / "config.json").write_text(json.dumps(config | more))
    return place


@pytest.mark.skipif(not OLD, reason="timm 1.x takes them")
@pytest.mark.parametrize("name", ["hub", "local-dir:hub", "hf-hub:owner/name", "hf_hub:owner/name"])
def test_hub_names_are_refused_in_one_line_under_timm_0_5(tmp_path, monkeypatch, name):
    folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    for use in (lambda: load_model(name, pretrained=True), lambda: read_checkpoint(name)):
        with pytest.raises(CheckpointError, match=r"expected timm 1\.0 or newer") as caught:
            use()
        one_line(caught)


@pytest.mark.skipif(OLD, reason="refused under timm 0.5.4")
@pytest.mark.parametrize("prefix", ["", "local-dir:", "hf-hub:", "hf_hub:"])
def test_a_folder_and_a_hub_name_load_with_their_config(tmp_path, monkeypatch, prefix):
    place = folder(tmp_path)
    asked = []

    def download(repository, file, revision=None):
        asked.append((repository, file, revision))
        return str(place / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    name = f"{prefix}owner/name@v1" if prefix.startswith("hf") else f"{prefix}hub"
    for model in (load_model(None, name), load_model(name, pretrained=True)):
        assert (model.arch, model.num_classes, model.normalization_origin) == (ARCH, CLASSES, "config.json")
        assert model.mean == pytest.approx(MEAN)
        assert model[1].pretrained_cfg["crop_pct"] == 0.7
        assert torch.equal(logits(model), logits(make_model()))
    assert load_model(name, num_classes=3).num_classes == 3  # the architecture alone, with random weights
    assert read_checkpoint(name).sha256() == read_checkpoint(place / "model.safetensors").sha256()
    if prefix.startswith("hf"):
        assert {one[::2] for one in asked} == {("owner/name", "v1")}


@pytest.mark.skipif(OLD, reason="refused under timm 0.5.4")
def test_a_folder_that_timm_wrote_gives_timms_logits(tmp_path):
    from timm.models import save_for_hf

    torch.manual_seed(0)
    save_for_hf(timm.create_model("test_vit", num_classes=4, img_size=96), tmp_path, safe_serialization=True)
    model, reference = load_model(None, tmp_path), timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert (model.image_size, model.num_classes) == (96, 4)
    images = torch.rand(2, 3, 96, 96)
    mean, std = (torch.tensor(model[1].pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        assert torch.allclose(logits(model, images), reference((images - mean) / std), atol=1e-6)


@pytest.mark.skipif(OLD, reason="refused under timm 0.5.4")
def test_a_pickle_in_a_hubs_folder_is_read_without_running_it(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    place = folder(tmp_path)
    (place / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors or pytorch_model\.bin beside"):
        read_checkpoint(place)
    torch.save(make_vit().state_dict(), place / "pytorch_model.bin")
    assert load_model(None, place).num_classes == CLASSES
    torch.save({"x": Evil()}, place / "pytorch_model.bin")
    with pytest.raises(CheckpointError):
        read_checkpoint(place)
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(OLD, reason="refused under timm 0.5.4")
@pytest.mark.parametrize("text", ["", "[]", "{", '{"architectures": ["ViTModel"]}', '{"architecture": 3}'])
def test_another_config_is_one_line(tmp_path, text):
    place = folder(tmp_path)
    (place / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json: expected") as caught:
        load_model(None, place)
    one_line(caught)


@pytest.mark.skipif(OLD, reason="refused under timm 0.5.4")
@pytest.mark.parametrize("odd", [{"mean": 5}, {"std": "abc"}, {"input_size": [3]}, {"input_size": "x", "crop_pct": []}])
def test_what_a_config_cannot_mean_is_as_if_it_was_not_there(tmp_path, odd):
    place = folder(tmp_path, pretrained_cfg=odd)
    model = load_model(None, place)
    assert (model.image_size, model.mean) == (32, [0.5] * 3)


@pytest.mark.skipif(OLD, reason="refused under timm 0.5.4")
def test_a_file_does_not_name_a_folder_that_happens_to_be_here(tmp_path, monkeypatch):
    folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    path = stored(tmp_path, args={"model": "hub"})
    with pytest.raises(ModelError, match=r"found 'hub' in .*c\.pth, which is never run"):
        required_arch(read_checkpoint(path).description, str(path))


def test_a_factory_gets_no_text_from_a_file(caplog):
    told = Description(
        arch="a/mine.py:vit", model_kwargs={"depth": 2, "wide": True, "none": None, "path": "x", "l": [1]}
    )
    assert told.kwargs_for("b/mine.py:vit") == {"depth": 2, "wide": True, "none": None}
    assert "['l', 'path'] are not used" in caplog.text
    assert told.kwargs_for("mine.py:other") == {}


def test_which_names_are_the_hubs(tmp_path, monkeypatch):
    folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert all(map(hub.is_hub_name, ("hf-hub:a/b", "HF_HUB:a", "local-dir:x", "hub", "./hub/")))
    (tmp_path / ARCH).mkdir()
    (tmp_path / ARCH / "config.json").write_text("{}")
    assert not any(map(hub.is_hub_name, (ARCH, "x.pth", "http://hf-hub:a", "\0", "n" * 5000, ".")))
