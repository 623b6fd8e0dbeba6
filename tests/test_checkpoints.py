"""Every checkpoint form in, safely; two forms out, atomically."""

import argparse
import errno
import hashlib
import http.server
import io
import logging
import os
import pickle
import re
import threading
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import timm
import timm.models
import torch
from timm.utils import CheckpointSaver, ModelEmaV2
from torch import nn

from ns_easyrobust import checkpoints, models
from ns_easyrobust.checkpoints import (
    export_checkpoint,
    load_model,
    read_checkpoint,
    resolve_normalization,
    save_model,
)
from ns_easyrobust.errors import CheckpointError, ModelError, OptionError, OutputError, UserError
from ns_easyrobust.vit import with_normalization
from ns_easyrobust.weights import check_finite, weights_from

ARCH, CLASSES = "vit_micro_patch8_32", 5
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def make_vit(seed=0, **kwargs):
    """A bare ViT with a head that is not zero, as timm 0.5.4 leaves it."""
    vit = models.build(ARCH, num_classes=CLASSES, **kwargs).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return vit


def make_model(seed=0):
    return with_normalization(make_vit(seed), MEAN, STD).eval()


def logits(model, images=IMAGES):
    with torch.no_grad():
        return model.eval()(images)


def same_states(first, second):
    return list(first) == list(second) and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def one_line(caught):
    text = str(caught.value)
    assert "\n" not in text
    assert "\x1b" not in text
    return text


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


def test_a_compiled_part_inside_is_found():
    state = {f"blocks.{i}._orig_mod.{name}": torch.zeros(1) for i in range(2) for name in ("a", "b")}
    names = list(weights_from(state, "state_dict", "x").state)
    assert names == ["blocks.0.a", "blocks.0.b", "blocks.1.a", "blocks.1.b"]


def test_a_name_that_is_there_twice_is_refused(tmp_path):
    torch.save({"a._orig_mod.b": torch.zeros(1), "a.b": torch.ones(1)}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="each name once") as caught:
        read_checkpoint(tmp_path / "c.pth").weights()
    one_line(caught)


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


def timm_checkpoint(folder):
    """A real training checkpoint: timm's saver, an optimizer with state, ModelEmaV2, a Namespace."""
    model, ema_source = make_model(), make_model(seed=1)
    ema = ModelEmaV2(model, decay=0.5)
    ema.module.load_state_dict(ema_source.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), 0.0)
    model(IMAGES).sum().backward()
    optimizer.step()
    args = argparse.Namespace(model=ARCH, lr=0.1, drop=None, aug_splits=0, betas=[0.9, 0.99])
    saver = CheckpointSaver(model, optimizer, args=args, model_ema=ema, checkpoint_dir=str(folder))
    saver.save_checkpoint(7, np.float64(81.5))
    return folder / "model_best.pth.tar", model, ema.module


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
    ran = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(ran),))

    torch.save({"model": Payload()}, tmp_path / "bad.pth")
    monkeypatch.setattr(checkpoints, "published_url", lambda _: f"file://{tmp_path}/bad.pth")
    with pytest.raises(CheckpointError, match="mkdir"):
        load_model(ARCH, num_classes=CLASSES, pretrained=True)
    assert not ran.exists()


@pytest.mark.parametrize("value", [torch.ones(2, 2).to_sparse(), torch.ones(2, device="meta")])
def test_tensors_without_plain_numbers_are_one_line(value):
    with pytest.raises(CheckpointError, match=r"expected dense weights, found head\.weight"):
        check_finite({"head.weight": value}, "file")


def test_nan_in_an_eight_bit_float_is_found():
    with pytest.raises(CheckpointError, match=r"NaN or infinity in head\.weight"):
        check_finite({"head.weight": torch.tensor([float("nan")]).to(torch.float8_e4m3fn)}, "file")


def test_metadata_that_holds_itself_is_refused(tmp_path):
    loop: dict = {}
    loop["loop"] = loop
    with pytest.raises(OptionError, match="nested 50 deep"):
        save_model(with_normalization(models.build(ARCH), (0.5,) * 3, (0.5,) * 3), tmp_path / "c.pth", extra=loop)


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


def jax_arrays(vit, prefix=""):
    """The augreg layout of a timm ViT, after the reading code in timm's vision_transformer.py."""
    state = {name: value.numpy() for name, value in vit.state_dict().items()}
    heads, width = 4, 64
    arrays = {
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for i in range(len(vit.blocks)):
        block, ours = f"Transformer/encoderblock_{i}/", f"blocks.{i}."
        weights = np.split(state[ours + "attn.qkv.weight"], 3)
        biases = np.split(state[ours + "attn.qkv.bias"], 3)
        for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            arrays[f"{block}MultiHeadDotProductAttention_1/{name}/kernel"] = weight.T.reshape(width, heads, -1)
            arrays[f"{block}MultiHeadDotProductAttention_1/{name}/bias"] = bias.reshape(heads, -1)
        out = state[ours + "attn.proj.weight"].T.reshape(heads, -1, width)
        arrays[f"{block}MultiHeadDotProductAttention_1/out/kernel"] = out
        arrays[f"{block}MultiHeadDotProductAttention_1/out/bias"] = state[ours + "attn.proj.bias"]
        for r in (0, 1):
            arrays[f"{block}MlpBlock_3/Dense_{r}/kernel"] = state[f"{ours}mlp.fc{r + 1}.weight"].T
            arrays[f"{block}MlpBlock_3/Dense_{r}/bias"] = state[f"{ours}mlp.fc{r + 1}.bias"]
            arrays[f"{block}LayerNorm_{2 * r}/scale"] = state[f"{ours}norm{r + 1}.weight"]
            arrays[f"{block}LayerNorm_{2 * r}/bias"] = state[f"{ours}norm{r + 1}.bias"]
    return {prefix + name: array for name, array in arrays.items()}


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_augreg_npz_loads_through_timm(tmp_path, prefix):
    vit = make_vit()
    np.savez(tmp_path / "augreg.npz", **jax_arrays(vit, prefix))
    model = load_model(ARCH, tmp_path / "augreg.npz", num_classes=CLASSES)
    assert torch.allclose(logits(model), logits(with_normalization(vit, (0.5,) * 3, (0.5,) * 3)), atol=1e-6)
    assert (model.weights_name, model.normalization_origin) == ("npz", "timm config")
    with pytest.raises(CheckpointError, match="expected EMA weights"):
        load_model(ARCH, tmp_path / "augreg.npz", ema=True, num_classes=CLASSES)
    with pytest.raises(CheckpointError, match="load_model"):
        read_checkpoint(tmp_path / "augreg.npz").weights()


@pytest.mark.parametrize(
    ("arch", "kwargs", "match"),
    [
        (ARCH, {"num_classes": 7}, "checkpoint has 5 classes, the model 7: pass --num-classes 5"),
        (ARCH, {"img_size": 48}, "another image size.*nothing is resized"),
        (ARCH, {"patch_size": 16, "img_size": 64}, "does not fit"),
        (ARCH, {"depth": 2}, "does not fit vit_micro_patch8_32: expected .* numbers"),
        (ARCH, {"depth": 4}, "does not fit"),
        ("vit_micro_patch4_32", {}, "another image size|does not fit"),
        ("swin_micro_patch2_32", {}, "has no loader|does not fit"),
    ],
)
def test_npz_for_another_model_is_refused_where_timm_would_bend_it(tmp_path, arch, kwargs, match):
    np.savez(tmp_path / "augreg.npz", **jax_arrays(make_vit()))
    with pytest.raises(CheckpointError, match=match) as caught:
        load_model(arch, tmp_path / "augreg.npz", **{"num_classes": CLASSES} | kwargs)
    one_line(caught)


def test_npz_with_nan_or_another_layout_is_refused(tmp_path):
    arrays = jax_arrays(make_vit())
    arrays["cls"] = arrays["cls"] * np.nan
    np.savez(tmp_path / "nan.npz", **arrays)
    with pytest.raises(CheckpointError, match="NaN or infinity in cls"):
        load_model(ARCH, tmp_path / "nan.npz", num_classes=CLASSES)
    np.savez(tmp_path / "other.npz", weight=np.zeros(3))
    with pytest.raises(CheckpointError, match="no embedding/kernel"):
        load_model(ARCH, tmp_path / "other.npz", num_classes=CLASSES)


# ---- in: safety ----


class Payload:
    """Writes a file as soon as it is unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return open, (self.target, "w")


class System:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def hostile_files(folder, proof):
    state = make_vit().state_dict()
    torch.save({"state_dict": state, "metric": Payload(proof)}, folder / "zip.pth")
    torch.save({"state_dict": state, "x": System(proof)}, folder / "system.pth")
    torch.save({"state_dict": state, "args": argparse.Namespace(x=Payload(proof))}, folder / "args.pth")
    torch.save(
        {"state_dict": state, "x": Payload(proof)},
        folder / "legacy.pth",
        _use_new_zipfile_serialization=False,
    )
    (folder / "plain.pth").write_bytes(pickle.dumps(Payload(proof), protocol=2))
    np.savez(folder / "object.npz", **{"embedding/kernel": np.array([Payload(proof)], dtype=object)})
    return {
        "zip.pth": r"Python object (_io|io)\.open",
        "system.pth": r"Python object (posix|nt)\.system",
        "args.pth": r"Python object (_io|io)\.open",
        "legacy.pth": r"Python object (_io|io)\.open",
        "plain.pth": r"Python object (_io|io)\.open",
        "object.npz": "Python objects in the .npz",
    }


def test_code_in_a_pickle_never_runs(tmp_path):
    proof = tmp_path / "ran"
    files = hostile_files(tmp_path, proof)
    for name, match in files.items():
        with pytest.raises(CheckpointError, match=match) as caught:
            load_model(ARCH, tmp_path / name, num_classes=CLASSES)
        one_line(caught)
        assert not proof.exists(), name
    torch.load(tmp_path / "zip.pth", weights_only=False)  # the payload is a real one
    assert proof.exists()


def test_the_allow_list_is_put_back(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    torch.save({"a": torch.ones(1)}, tmp_path / "c.pth")
    read_checkpoint(tmp_path / "c.pth")
    assert set(torch.serialization.get_safe_globals()) == before


def broken_files(folder):
    whole = io.BytesIO()
    torch.save(make_vit().state_dict(), whole)
    legacy = io.BytesIO()
    torch.save(make_vit().state_dict(), legacy, _use_new_zipfile_serialization=False)
    contents = {
        "half.pth": (whole.getvalue()[: len(whole.getvalue()) // 2], "damaged"),
        "legacy.pth": (legacy.getvalue()[: len(legacy.getvalue()) // 2], "damaged"),
        "page.pth": (b"\xef\xbb\xbf\r\n <!DOCTYPE html><html>404</html>", "web page"),
        "empty.pth": (b"", "empty file"),
        "lfs.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
        "text.pth": (b"hello world " * 100, "damaged"),
        "zeros.pth": (b"\0" * 4096, "damaged"),
        "half.npz": (b"PK\x03\x04" + b"\0" * 500, "damaged"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    return {name: match for name, (_, match) in contents.items()}


def test_broken_files_are_one_line_errors(tmp_path):
    for name, match in broken_files(tmp_path).items():
        with pytest.raises(CheckpointError, match=match) as caught:
            read_checkpoint(tmp_path / name)
        assert name in one_line(caught)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*gone\.pth"):
        read_checkpoint(tmp_path / "gone.pth")
    with pytest.raises(CheckpointError, match="found a folder"):
        read_checkpoint(tmp_path)


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


def test_torchscript_is_named(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="TorchScript"):
        read_checkpoint(tmp_path / "c.pt")


# ---- in: strictness ----


def test_other_class_count_says_what_to_pass(tmp_path):
    torch.save(make_model().state_dict(), tmp_path / "c.pth")
    with pytest.raises(
        CheckpointError, match="checkpoint has 5 classes, the model 1000: pass --num-classes 5 "
    ) as caught:
        load_model(ARCH, tmp_path / "c.pth")
    one_line(caught)


def test_other_image_size_is_not_resized(tmp_path):
    torch.save(make_model().state_dict(), tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"another image size.*\(1, 37, 64\).*\(1, 17, 64\)"):
        load_model(ARCH, tmp_path / "c.pth", num_classes=CLASSES, img_size=48)


@pytest.mark.parametrize("arch", ["vit_micro_patch4_32", "swin_micro_patch2_32"])
def test_other_architecture_names_a_few_tensors(tmp_path, arch):
    torch.save(make_model().state_dict(), tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=rf"does not fit {arch}: expected its \d+ tensors, found \d+ ") as caught:
        load_model(arch, tmp_path / "c.pth", num_classes=CLASSES)
    assert len(one_line(caught)) < 700 + len(str(tmp_path))


def test_missing_and_unexpected_names_are_counted(tmp_path):
    state = make_vit().state_dict()
    state["spare"] = state.pop("head.bias")
    torch.save(state, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"1 missing \(head.bias\), 1 unexpected \(spare\)"):
        load_model(ARCH, tmp_path / "c.pth", num_classes=CLASSES)


# ---- in: normalisation ----


def test_checkpoints_normalisation_wins_with_a_warning(tmp_path, caplog):
    torch.save(make_model().state_dict(), tmp_path / "c.pth")
    with caplog.at_level(logging.INFO):
        model = load_model(ARCH, tmp_path / "c.pth", num_classes=CLASSES, mean=(0.1,) * 3, std=(0.9,) * 3)
    assert model[0].mean.tolist() == pytest.approx(MEAN)
    assert model[0].std.tolist() == pytest.approx(STD)
    assert model.normalization_origin == "checkpoint"
    assert [record.levelname for record in caplog.records if "were given" in record.message] == ["WARNING"]
    caplog.clear()
    load_model(ARCH, tmp_path / "c.pth", num_classes=CLASSES, mean=MEAN, std=STD)  # the same up to float32
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_without_one_the_callers_then_timms_is_used(tmp_path, caplog):
    torch.save(make_vit().state_dict(), tmp_path / "c.pth")
    model = load_model(ARCH, tmp_path / "c.pth", num_classes=CLASSES, mean=MEAN, std=STD)
    assert (model[0].mean.tolist(), model.normalization_origin) == (pytest.approx(MEAN), "caller")
    with caplog.at_level(logging.INFO):
        model = load_model(ARCH, tmp_path / "c.pth", num_classes=CLASSES)
    assert (model[0].mean.tolist(), model.normalization_origin) == ([0.5] * 3, "timm config")
    assert "from the timm config" in caplog.text
    assert "loaded raw" in caplog.text
    model = load_model("deit_tiny_patch16_224", num_classes=3)
    assert model[0].mean.tolist() == pytest.approx((0.485, 0.456, 0.406))
    assert (model.weights_name, model.normalization_origin) == ("random", "timm config")


def test_model_that_timm_has_no_config_for_gets_imagenets(caplog):
    mean, _, origin = resolve_normalization(nn.Conv2d(3, 1, 1))
    assert mean == pytest.approx((0.485, 0.456, 0.406))
    assert origin == "ImageNet default"
    assert "timm has no mean and std" in caplog.text


def test_mean_and_std_are_checked(tmp_path):
    with pytest.raises(OptionError, match="both or neither"):
        load_model(ARCH, num_classes=CLASSES, mean=MEAN)
    with pytest.raises(OptionError, match="expected 3 numbers each"):
        load_model(ARCH, num_classes=CLASSES, mean=(0.5, 0.5), std=(0.5, 0.5))
    with pytest.raises(OptionError, match="std > 0"):
        load_model(ARCH, num_classes=CLASSES, mean=(0.5,), std=(0.0,))
    assert load_model(ARCH, num_classes=CLASSES, mean=(0.3,), std=(0.7,))[0].mean.tolist() == pytest.approx([0.3] * 3)
    assert load_model(ARCH, num_classes=CLASSES, in_chans=1)[0].mean.tolist() == [0.5]
    with pytest.raises(OptionError, match="expected 1 numbers each"):
        load_model(ARCH, num_classes=CLASSES, in_chans=1, mean=MEAN, std=STD)
    with pytest.raises(OptionError, match="ema and sha256"):
        load_model(ARCH, ema=True)


# ---- in: addresses ----


@pytest.fixture
def server(tmp_path, monkeypatch):
    """``server.pages[path] = body`` on 127.0.0.1; the cache is a folder of its own."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.split("?")[0]
            self.server.requests.append(path)
            body = self.server.pages.get(path)
            self.send_response(404 if body is None else 200)
            body = b"<html>not here</html>" if body is None else body
            self.send_header("Content-Length", str(len(body) + (100 if "short" in path else 0)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.pages, running.requests = {}, []
        running.url = f"http://127.0.0.1:{running.server_port}"
        running.cache = tmp_path / "torch" / "hub" / "checkpoints"
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def saved(content):
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def test_two_addresses_with_one_basename_are_two_files(server):
    first, second = make_model(seed=1), make_model(seed=2)
    server.pages = {
        "/a/model_best.pth.tar": saved(first.state_dict()),
        "/b/model_best.pth.tar": saved(second.state_dict()),
    }
    for _ in range(2):
        for folder, model in (("a", first), ("b", second)):
            loaded = load_model(ARCH, f"{server.url}/{folder}/model_best.pth.tar", num_classes=CLASSES)
            assert torch.equal(logits(loaded), logits(model))
    assert server.requests == ["/a/model_best.pth.tar", "/b/model_best.pth.tar"]  # each downloaded once
    names = sorted(path.name for path in server.cache.iterdir())
    assert len(names) == 2
    assert all(name.endswith("-model_best.pth.tar") for name in names)
    read_checkpoint(f"{server.url}/a/model_best.pth.tar?token=x/y")  # the whole address counts
    assert len(list(server.cache.iterdir())) == 3


def test_failed_downloads_leave_nothing_in_the_cache(server):
    server.pages = {"/short.pth": saved({"a": torch.ones(1)}), "/page.pth": b"<html>log in</html>"}
    for path, match in (
        ("/none.pth", "cannot download .*404"),
        ("/short.pth", "cannot download .*closed after"),
        ("/page.pth", "web page"),
    ):
        with pytest.raises(CheckpointError, match=match) as caught:
            read_checkpoint(server.url + path)
        assert server.url + path in one_line(caught)
        assert list(server.cache.iterdir()) == []
    server.pages["/page.pth"] = saved({"a": torch.ones(1)})  # and mends by itself
    assert read_checkpoint(server.url + "/page.pth").weights().state["a"] == 1
    with pytest.raises(CheckpointError, match="cannot download"):
        read_checkpoint("http://127.0.0.1:1/c.pth")
    with pytest.raises(CheckpointError, match="expected a http, https or file address, found s3"):
        read_checkpoint("s3://bucket/c.pth")


def test_sha256_is_checked_of_downloads_and_files(server, tmp_path):
    body = saved({"a": torch.ones(1)})
    right, wrong = hashlib.sha256(body).hexdigest(), "0" * 64
    server.pages = {"/c.pth": body}
    checkpoint = read_checkpoint(server.url + "/c.pth", sha256=right.upper())
    assert checkpoint.sha256() == right
    with pytest.raises(CheckpointError, match=rf"expected SHA-256 {wrong}, found {right}.*removed") as caught:
        read_checkpoint(server.url + "/c.pth", sha256=wrong)
    one_line(caught)
    assert list(server.cache.iterdir()) == []
    local = tmp_path / "c.pth"
    local.write_bytes(body)
    for source in (local, local.as_uri()):
        assert read_checkpoint(source, sha256=right).path == local
        with pytest.raises(CheckpointError, match="expected SHA-256"):
            read_checkpoint(source, sha256=wrong)
        assert local.exists()
    with pytest.raises(CheckpointError, match="expected SHA-256"):
        load_model(ARCH, read_checkpoint(local), sha256=wrong)
    with pytest.raises(OptionError, match="64 hexadecimal digits"):
        read_checkpoint(local, sha256="abc")


# ---- out ----


class NormalizeByChannelMeanStd(nn.Module):
    """As in EasyRobust's benchmarks/benchmark.py:51-68."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, tensor):
        return tensor.sub(self.mean[None, :, None, None]).div(self.std[None, :, None, None])


def easyrobust_benchmark_model(ckpt_path, use_ema, arch=ARCH, classes=CLASSES):
    """benchmarks/benchmark.py:74-101 at its defaults, statement by statement, without .cuda()."""
    model = timm.models.create_model(arch, pretrained=False, num_classes=classes)
    normalize = NormalizeByChannelMeanStd(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    ckpt = torch.load(ckpt_path)
    if use_ema:
        assert ckpt.get("state_dict_ema") is not None, "no ema state_dict found!"
        state_dict = ckpt["state_dict_ema"]
    elif "state_dict" in ckpt:
        state_dict = ckpt["state_dict"]
    else:
        state_dict = ckpt
    if "0.mean" in state_dict and "0.std" in state_dict:
        model = nn.Sequential(normalize, model)
        model.load_state_dict(state_dict)
    else:
        model.load_state_dict(ckpt)
        model = nn.Sequential(normalize, model)
    return model.eval()


EXTRA = {
    "arch": ARCH,
    "epoch": np.int64(3),
    "metric": np.float64(77.5),
    "args": argparse.Namespace(
        data_dir=Path("a") / "b", lr=1e-5, device=torch.device("cpu"), betas=(0.9, np.float32(0.5))
    ),
    "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
}


def test_easyrobusts_benchmark_loads_what_is_saved_raw_and_ema(tmp_path):
    model, ema = make_model(seed=1), make_model(seed=2)
    save_model(model, tmp_path / "c.pth.tar", ema=ema, **EXTRA)
    raw = easyrobust_benchmark_model(tmp_path / "c.pth.tar", use_ema=False)
    averaged = easyrobust_benchmark_model(tmp_path / "c.pth.tar", use_ema=True)
    assert torch.equal(logits(raw), logits(model))
    assert torch.equal(logits(averaged), logits(ema))
    assert not torch.allclose(logits(raw), logits(averaged), atol=1e-3)
    content = torch.load(tmp_path / "c.pth.tar")
    assert list(content["state_dict"])[:2] == ["0.mean", "0.std"]
    assert all(name.startswith(("0.", "1.")) for name in content["state_dict_ema"])
    assert content["args"] == {
        "data_dir": os.path.join("a", "b"),
        "lr": 1e-5,
        "device": "cpu",
        "betas": (0.9, 0.5),
    }
    assert (type(content["epoch"]), type(content["metric"])) == (int, float)
    assert content["optimizer"]["state"][0]["exp_avg"].tolist() == [1, 1]
    checkpoint = read_checkpoint(tmp_path / "c.pth.tar")
    assert checkpoint.arch == ARCH
    assert checkpoint.metadata["epoch"] == 3
    assert torch.equal(logits(load_model(ARCH, checkpoint, ema=True, num_classes=CLASSES)), logits(ema))


def test_timm_loads_the_other_layout_raw_and_ema(tmp_path):
    model, ema = make_model(seed=1), make_model(seed=2)
    path = tmp_path / "c.pth.tar"
    save_model(model, path, ema=ema, layout="timm", **EXTRA)
    for use_ema, expected in ((False, model), (True, ema)):
        vit = timm.create_model(ARCH, num_classes=CLASSES)
        timm.models.load_checkpoint(vit, str(path), use_ema=use_ema)
        assert torch.equal(logits(with_normalization(vit, MEAN, STD)), logits(expected))
        ours = load_model(ARCH, path, ema=use_ema, num_classes=CLASSES)
        assert torch.equal(logits(ours), logits(expected))
        assert ours.normalization_origin == "checkpoint"
    content = torch.load(path)
    assert content["mean"] == pytest.approx(MEAN)
    assert type(content["mean"]) is list
    assert "mean_ema" not in content
    vit = timm.create_model(ARCH, num_classes=CLASSES, checkpoint_path=str(path))
    assert isinstance(vit, nn.Module)


def test_bare_model_saves_in_timms_layout_only(tmp_path):
    vit = make_vit()
    save_model(vit, tmp_path / "c.pth", layout="timm")
    assert same_states(torch.load(tmp_path / "c.pth")["state_dict"], vit.state_dict())
    with pytest.raises(ModelError, match="input normalisation in front"):
        save_model(vit, tmp_path / "d.pth")
    assert not (tmp_path / "d.pth").exists()


def test_wrapped_models_are_saved_unwrapped(tmp_path):
    model = make_model()
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = {
            "ddp": nn.parallel.DistributedDataParallel(model),
            "dp": nn.DataParallel(model),
            "compiled": torch.compile(model),
            "both": torch.compile(nn.DataParallel(model)),
            "inside": with_normalization(torch.compile(model[1]), MEAN, STD),
            "ema": ModelEmaV2(model),
            "channels_last": make_model().to(memory_format=torch.channels_last),
        }
        for name, module in wrapped.items():
            save_model(module, tmp_path / name, ema=module)
            content = torch.load(tmp_path / name)
            for entry in ("state_dict", "state_dict_ema"):
                assert same_states(content[entry], model.state_dict()), name
                assert all(value.is_contiguous() for value in content[entry].values())
    finally:
        torch.distributed.destroy_process_group()


def test_saving_copies_no_more_than_the_tensors(tmp_path):
    model = make_model()
    storage = torch.zeros(1_000_000)
    model[1].head.bias.data = storage[:CLASSES]
    save_model(model, tmp_path / "c.pth")
    assert (tmp_path / "c.pth").stat().st_size < 2_000_000
    assert next(model.parameters()).requires_grad


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        ({"args": {"fn": print}}, r"args\.fn: expected tensors and plain values .* found builtin_function"),
        ({"module": nn.Linear(1, 1)}, "module: .*found Linear"),
        ({"state_dict_ema": {}}, "names beside the weights, found state_dict_ema"),
        ({"mean": [0.5]}, "names beside the weights, found mean"),
    ],
)
def test_extra_that_cannot_be_plain_is_refused(tmp_path, extra, match):
    with pytest.raises(OptionError, match=match):
        save_model(make_model(), tmp_path / "c.pth", **extra)
    with pytest.raises(OptionError, match="layout: expected easyrobust or timm, found 'torch'"):
        save_model(make_model(), tmp_path / "c.pth", layout="torch")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("write failed\nat")])
def test_full_disk_keeps_the_old_file(tmp_path, monkeypatch, error):
    path = tmp_path / "c.pth"
    save_model(make_model(seed=1), path)
    before = path.read_bytes()

    def save_half(content, target):
        Path(target).write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", save_half)
    with pytest.raises(OutputError, match="cannot write") as caught:
        save_model(make_model(seed=2), path)
    one_line(caught)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folder_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        save_model(make_model(), tmp_path / "none" / "c.pth")


# ---- export ----


def test_round_trip_is_bit_equal(tmp_path):
    model, ema = make_model(seed=1), make_model(seed=2)
    ema[0].mean += 1e-7  # as averaging leaves the buffers
    save_model(model, tmp_path / "a", ema=ema, **EXTRA)
    there = export_checkpoint(tmp_path / "a", tmp_path / "b", "timm")
    export_checkpoint(tmp_path / "b", tmp_path / "c", "easyrobust")
    first, second = torch.load(tmp_path / "a"), torch.load(tmp_path / "c")
    for entry in ("state_dict", "state_dict_ema"):
        assert same_states(first[entry], second[entry])
    assert set(torch.load(tmp_path / "b")["state_dict"]) == set(model[1].state_dict())
    assert {key: second[key] for key in ("arch", "epoch", "metric", "args")} == {
        key: first[key] for key in ("arch", "epoch", "metric", "args")
    }
    assert "optimizer" not in second
    assert there.entries == ("state_dict", "state_dict_ema")
    assert there.normalization_origin == "checkpoint"


def test_export_of_timms_training_checkpoint_mends_easyrobusts_benchmark(tmp_path):
    path, model, ema = timm_checkpoint(tmp_path)
    export_checkpoint(path, tmp_path / "out.pth", "easyrobust")
    assert torch.equal(logits(easyrobust_benchmark_model(tmp_path / "out.pth", False)), logits(model))
    assert torch.equal(logits(easyrobust_benchmark_model(tmp_path / "out.pth", True)), logits(ema))


def test_export_finds_or_asks_for_the_normalisation(tmp_path):
    torch.save(make_vit().state_dict(), tmp_path / "a")
    with pytest.raises(ModelError, match="--mean and --std, or --model") as caught:
        export_checkpoint(tmp_path / "a", tmp_path / "b", "easyrobust")
    one_line(caught)
    done = export_checkpoint(tmp_path / "a", tmp_path / "b", "easyrobust", mean=[0.4], std=[0.2])
    assert (done.mean, done.normalization_origin) == ((0.4,) * 3, "caller")
    done = export_checkpoint(tmp_path / "a", tmp_path / "b", "easyrobust", arch=ARCH)
    assert (done.mean, done.normalization_origin) == ((0.5,) * 3, "timm config")
    assert torch.load(tmp_path / "b")["arch"] == ARCH
    with pytest.raises(CheckpointError, match="does not fit vit_micro_patch4_32"):
        export_checkpoint(tmp_path / "a", tmp_path / "b", "easyrobust", arch="vit_micro_patch4_32")


def test_export_of_npz_needs_the_architecture(tmp_path):
    vit = make_vit()
    np.savez(tmp_path / "a.npz", **jax_arrays(vit))
    with pytest.raises(CheckpointError, match="Give --model"):
        export_checkpoint(tmp_path / "a.npz", tmp_path / "b", "easyrobust")
    export_checkpoint(tmp_path / "a.npz", tmp_path / "b", "easyrobust", arch=ARCH)
    expected = logits(with_normalization(vit, (0.5,) * 3, (0.5,) * 3))
    assert torch.allclose(logits(easyrobust_benchmark_model(tmp_path / "b", False)), expected, atol=1e-6)


def test_every_error_is_a_user_error(tmp_path):
    files = broken_files(tmp_path)
    for name in files:
        with pytest.raises(UserError):
            export_checkpoint(tmp_path / name, tmp_path / "out", "timm")
    assert not (tmp_path / "out").exists()
