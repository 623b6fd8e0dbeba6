"""Every checkpoint form in, safely; two forms out, atomically."""

import numpy as np
import pytest
import torch
from helpers.checkpoints import (
    ARCH,
    CLASSES,
    easyrobust_benchmark_model,
    logits,
    make_model,
    make_vit,
    one_line,
)

from ns_easyrobust.errors import CheckpointError
from ns_easyrobust.models.checkpoint_save import export_checkpoint
from ns_easyrobust.models.checkpoints import load_model, read_checkpoint
from ns_easyrobust.models.normalization import with_normalization
from ns_easyrobust.models.weights import check_finite, weights_of_state_dict


def test_a_compiled_part_inside_is_found():
    state = {f"blocks.{i}._orig_mod.{name}": torch.zeros(1) for i in range(2) for name in ("a", "b")}
    names = list(weights_of_state_dict(state, "state_dict", "x").state)
    assert names == ["blocks.0.a", "blocks.0.b", "blocks.1.a", "blocks.1.b"]


def test_a_name_that_is_there_twice_is_refused(tmp_path):
    torch.save({"a._orig_mod.b": torch.zeros(1), "a.b": torch.ones(1)}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="each name once") as caught:
        read_checkpoint(tmp_path / "c.pth").weights()
    one_line(caught)


@pytest.mark.parametrize("value", [torch.ones(2, 2).to_sparse(), torch.ones(2, device="meta")])
def test_tensors_without_plain_numbers_are_one_line(value):
    with pytest.raises(CheckpointError, match=r"expected dense weights, found head\.weight"):
        check_finite({"head.weight": value}, "file")


def test_nan_in_an_eight_bit_float_is_found():
    with pytest.raises(CheckpointError, match=r"NaN or infinity in head\.weight"):
        check_finite({"head.weight": torch.tensor([float("nan")]).to(torch.float8_e4m3fn)}, "file")


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
        (ARCH, {"num_classes": 7}, "checkpoint has 5 classes, the model 7: pass num_classes=5"),
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


def test_other_class_count_says_what_to_pass(tmp_path):
    torch.save(make_model().state_dict(), tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="checkpoint has 5 classes, the model 1000: pass num_classes=5") as caught:
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


def test_export_of_npz_needs_the_architecture(tmp_path):
    vit = make_vit()
    np.savez(tmp_path / "a.npz", **jax_arrays(vit))
    with pytest.raises(CheckpointError, match="Name the model"):
        export_checkpoint(tmp_path / "a.npz", tmp_path / "b", "easyrobust")
    export_checkpoint(tmp_path / "a.npz", tmp_path / "b", "easyrobust", arch=ARCH)
    expected = logits(with_normalization(vit, (0.5,) * 3, (0.5,) * 3))
    assert torch.allclose(logits(easyrobust_benchmark_model(tmp_path / "b", False)), expected, atol=1e-6)
