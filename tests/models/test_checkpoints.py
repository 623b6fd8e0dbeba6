"""Every checkpoint form in, safely; two forms out, atomically."""

import argparse
import os
import pickle
import re
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from helpers.checkpoints import (
    ARCH,
    CLASSES,
    MEAN,
    STD,
    logits,
    make_model,
    make_vit,
    one_line,
    same_states,
    timm_checkpoint,
)

from ns_easyrobust.errors import CheckpointError
from ns_easyrobust.models import architectures as models
from ns_easyrobust.models import checkpoints
from ns_easyrobust.models.checkpoint_save import export_checkpoint
from ns_easyrobust.models.checkpoints import load_model, read_checkpoint
from ns_easyrobust.models.normalization import with_normalization

# ---- in: forms ----


def wrap_state_dict(state):
    return {"state_dict": state, "epoch": 3}


CONTAINERS = {
    "raw": lambda state: state,
    "state_dict": wrap_state_dict,
    "model": lambda state: {"model": state},
    "model_state_dict": lambda state: {"model_state_dict": state, "model_name": ARCH},
}


PREFIXES = ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module._orig_mod._orig_mod."]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_bare_state_dicts_in_all_containers(tmp_path, container, prefix):
    vit = make_vit()
    state = OrderedDict((prefix + name, value) for name, value in vit.state_dict().items())
    torch.save(CONTAINERS[container](state), tmp_path / "c.pth")
    model = load_model(ARCH, tmp_path / "c.pth", num_classes=CLASSES, mean=MEAN, std=STD)
    assert torch.equal(logits(model), logits(with_normalization(vit, MEAN, STD)))
    assert model.weights_name == container
    assert model.normalization_origin == "caller"


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("outer", PREFIXES)
@pytest.mark.parametrize("inner", ["", "_orig_mod.", "module."])
def test_easyrobusts_form_brings_its_own_normalisation(tmp_path, container, outer, inner):
    model = make_model()
    state = {outer + re.sub(r"^1\.", f"1.{inner}", name): value for name, value in model.state_dict().items()}
    torch.save(CONTAINERS[container](state), tmp_path / "c.pth")
    weights = read_checkpoint(tmp_path / "c.pth").weights()
    assert same_states(weights.state, model[1].state_dict())
    assert weights.mean == pytest.approx(MEAN)
    assert weights.std == pytest.approx(STD)


def test_legacy_torch_file_loads(tmp_path):
    model = make_model()
    torch.save(model.state_dict(), tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    loaded = load_model(ARCH, tmp_path / "c.pth", num_classes=CLASSES)
    assert torch.equal(logits(loaded), logits(model))


def test_safetensors_loads(tmp_path):
    from safetensors.torch import save_file

    model = make_model()
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "c.safetensors")
    loaded = load_model(ARCH, tmp_path / "c.safetensors", num_classes=CLASSES)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.weights_name == "raw"
    whole = (tmp_path / "c.safetensors").read_bytes()
    (tmp_path / "c.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged") as caught:
        read_checkpoint(tmp_path / "c.safetensors")
    one_line(caught)


def test_timms_own_training_checkpoint_loads(tmp_path):
    path, model, ema = timm_checkpoint(tmp_path)
    with pytest.raises(pickle.UnpicklingError):  # what EasyRobust and timm 0.5.4 meet on torch >= 2.6
        torch.load(path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.entries == ("state_dict", "state_dict_ema")
    assert checkpoint.has_ema
    assert checkpoint.arch == ARCH
    assert checkpoint.metadata["metric"] == 81.5
    assert type(checkpoint.metadata["metric"]) is float
    assert checkpoint.metadata["epoch"] == 7
    assert checkpoint.metadata["args"] == {
        "model": ARCH, "lr": 0.1, "drop": None, "aug_splits": 0, "betas": [0.9, 0.99],
    }  # fmt: skip
    assert set(checkpoint.metadata) == {"arch", "args", "epoch", "metric", "version"}
    raw = load_model(ARCH, checkpoint, num_classes=CLASSES)
    averaged = load_model(ARCH, path, ema=True, num_classes=CLASSES)
    assert torch.equal(logits(raw), logits(model))
    assert torch.equal(logits(averaged), logits(ema))
    assert not torch.allclose(logits(raw), logits(averaged))
    assert (raw.weights_name, averaged.weights_name) == ("state_dict", "state_dict_ema")


@pytest.mark.parametrize("value", [np.float64(1.5), np.float32(1.5), np.int64(3), np.bool_(True)])
@pytest.mark.parametrize("module", [b"numpy.core", b"numpy._core"])
def test_numpy_scalars_of_either_spelling_load(tmp_path, value, module):
    path, changed = tmp_path / "c.pth", tmp_path / "d.pth"
    torch.save({"state_dict": {"a": torch.ones(1)}, "metric": value}, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            new.writestr(name, re.sub(rb"numpy\._?core", module, old.read(name)))
    assert module + b".multiarray" in changed.read_bytes()
    assert read_checkpoint(changed).metadata["metric"] == value


def test_metric_of_none_and_model_ema_entry(tmp_path):
    state = make_vit().state_dict()
    torch.save({"model": {}, "state_dict": state, "model_ema": state, "state_dict_ema": None}, tmp_path / "c.pth")
    checkpoint = read_checkpoint(tmp_path / "c.pth")
    assert checkpoint.entries == ("state_dict", "model_ema")
    assert checkpoint.weights(ema=True).name == "model_ema"


def test_pretrained_weights_are_read_as_safely_as_any(tmp_path, monkeypatch):
    vit = models.build(ARCH, num_classes=CLASSES)
    torch.save({"model": vit.state_dict()}, tmp_path / "good.pth")
    monkeypatch.setattr(checkpoints, "published_url", lambda _: f"file://{tmp_path}/good.pth")
    model = load_model(ARCH, num_classes=CLASSES, pretrained=True)
    assert model.weights_name == "pretrained"
    assert torch.equal(model[1].head.weight, vit.head.weight)
    other = load_model(ARCH, num_classes=CLASSES + 2, pretrained=True)  # as timm: a new head, the rest as published
    assert other[1].head.weight.shape[0] == CLASSES + 2
    assert torch.equal(other[1].blocks[0].attn.qkv.weight, vit.blocks[0].attn.qkv.weight)
    ran = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(ran),))

    torch.save({"model": Payload()}, tmp_path / "bad.pth")
    monkeypatch.setattr(checkpoints, "published_url", lambda _: f"file://{tmp_path}/bad.pth")
    with pytest.raises(CheckpointError, match="mkdir"):
        load_model(ARCH, num_classes=CLASSES, pretrained=True)
    assert not ran.exists()


def test_a_checkpoint_makes_pretrained_weights_needless(tmp_path):
    torch.save({"model": {"name": "config"}, "model_state_dict": make_vit().state_dict()}, tmp_path / "c.pth")
    model = load_model(ARCH, tmp_path / "c.pth", num_classes=CLASSES, pretrained=True)
    assert model.weights_name == "model_state_dict"


def test_missing_ema_lists_what_is_there(tmp_path):
    torch.save({"state_dict": make_vit().state_dict(), "state_dict_ema": None}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"expected EMA weights .*found state_dict\. ") as caught:
        load_model(ARCH, tmp_path / "c.pth", ema=True, num_classes=CLASSES)
    one_line(caught)
    torch.save({"state_dict_ema": make_vit().state_dict()}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="found state_dict_ema"):
        load_model(ARCH, tmp_path / "c.pth", num_classes=CLASSES)


# ---- in: augreg npz ----


# ---- in: safety ----


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([torch.zeros(1)], "expected a dict of weights, found list"),
        ({"epoch": 3, "lr": 0.1}, "found none among epoch, lr"),
        ({"state_dict": {"a": torch.zeros(1), "b": 3.0}}, "expected only tensors in state_dict, found 'b'"),
        ({"a": torch.zeros(1), "b": [1]}, "expected only tensors in raw, found 'b' of type list"),
        ({"a": torch.zeros(1), "b.c": torch.tensor([0.0, float("nan")])}, "NaN or infinity in b.c"),
        ({"state_dict": {"z": torch.tensor(float("inf"))}}, "NaN or infinity in z"),
        ({"0.mean": torch.zeros(3), "0.std": torch.ones(3)}, "expected weights in raw, found none"),
        (
            {"0.mean": torch.full((3,), torch.nan), "0.std": torch.ones(3), "1.a": torch.ones(1)},
            "NaN .* in mean",
        ),
    ],
)
def test_content_that_is_no_weights(tmp_path, content, match):
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=match) as caught:
        read_checkpoint(tmp_path / "c.pth").weights()
    one_line(caught)


@pytest.mark.parametrize(
    ("beside", "warns"),
    [
        ({"args": argparse.Namespace(mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4])}, True),
        ({"args": argparse.Namespace(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5])}, False),
        ({"args": argparse.Namespace(mean=None, std=None)}, False),
        ({"mean": 0.1307, "std": 0.3081}, True),
        ({"mean": 0.5, "std": 0.5}, False),
    ],
)
def test_a_normalisation_that_is_not_used_is_named(tmp_path, caplog, beside, warns):
    torch.save({"state_dict": make_model()[1].state_dict(), **beside}, tmp_path / "c.pth")
    given = load_model(ARCH, tmp_path / "c.pth", num_classes=CLASSES, mean=[0.1], std=[0.2])
    assert given.normalization_origin == "caller"
    assert "not used" not in caplog.text
    assert load_model(ARCH, tmp_path / "c.pth", num_classes=CLASSES).mean == [0.5] * 3
    assert ("which are not used" in caplog.text) == warns
    caplog.clear()
    export_checkpoint(tmp_path / "c.pth", tmp_path / "out.pth", "timm", arch=ARCH)
    assert ("which are not used" in caplog.text) == warns
