"""Every checkpoint form in, safely; two forms out, atomically."""

import re

import numpy as np
import pytest
import torch
from helpers.checkpoints import (
    ARCH,
    CLASSES,
    MEAN,
    STD,
    easyrobust_benchmark_model,
    jax_arrays,
    logits,
    make_model,
    make_vit,
    one_line,
)
from torch import nn

from ns_easyrobust.errors import CheckpointError
from ns_easyrobust.models import architectures as models
from ns_easyrobust.models.checkpoint_save import export_checkpoint
from ns_easyrobust.models.checkpoints import load_model, read_checkpoint
from ns_easyrobust.models.normalization import with_normalization
from ns_easyrobust.models.strict_load import load_strictly
from ns_easyrobust.models.weights import Weights, check_finite, weights_of_state_dict


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
        load_model(ARCH, tmp_path / "c.pth", num_classes=1000)
    one_line(caught)


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


WRAPPED = {  # as PyTorch's own wrappers name a model's tensors, and what they add
    "AveragedModel": ("module.", {"n_averaged": torch.tensor(3)}),
    "DDP of AveragedModel": ("module.module.", {"module.n_averaged": torch.tensor(3)}),
    "AveragedModel of compiled": ("module._orig_mod.", {"n_averaged": torch.tensor(3)}),
    "FSDP": ("_fsdp_wrapped_module.", {}),
    "FSDP of checkpoint wrapper": ("_fsdp_wrapped_module._checkpoint_wrapped_module.", {}),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("place", ["outside", "inside"])
def test_pytorchs_own_wrappers_are_taken_off(wrapper, place):
    prefix, added = WRAPPED[wrapper]
    state = make_model().state_dict()
    if place == "outside":
        wrapped = {prefix + name: value for name, value in state.items()} | added
    else:
        wrapped = {re.sub(r"^1\.", f"1.{prefix}", name): value for name, value in state.items()}
        wrapped |= {f"1.{name}": value for name, value in added.items()}
    weights = weights_of_state_dict(wrapped, "raw", "x")
    assert list(weights.state) == list(make_vit().state_dict())
    assert weights.mean == pytest.approx(MEAN)


def test_averaged_models_names_are_as_torch_writes_them():
    state = torch.optim.swa_utils.AveragedModel(make_model()).state_dict()
    assert "n_averaged" in state
    assert list(weights_of_state_dict(state, "raw", "x").state) == list(make_vit().state_dict())


def test_wrapped_blocks_inside_are_found():
    state = {"blocks.0._checkpoint_wrapped_module.a": torch.ones(1), "_fsdp_wrapped_module.b": torch.ones(1)}
    assert list(weights_of_state_dict(state, "raw", "x").state) == ["blocks.0.a", "b"]


@pytest.mark.parametrize("prefix", ["model.", "encoder.", "backbone.vit."])
def test_another_prefix_is_named(tmp_path, prefix):
    state = {prefix + name: value for name, value in make_vit().state_dict().items()}
    torch.save(state | {"decoder.weight": torch.ones(1)}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=rf"found them behind '{prefix}'. Save model.{prefix}state_dict\(\)"):
        load_model(ARCH, tmp_path / "c.pth", num_classes=CLASSES)


def test_a_second_normalisation_is_refused():
    state = nn.Sequential(make_model()[0], make_model()).state_dict()
    with pytest.raises(CheckpointError, match="expected one normalisation in front, found two"):
        weights_of_state_dict(state, "raw", "x")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_weights(tmp_path, kind):
    vit = make_vit()
    torch.save({name: value.to(kind) for name, value in vit.state_dict().items()}, tmp_path / "c.pth")
    model = load_model(ARCH, tmp_path / "c.pth", num_classes=CLASSES)
    assert torch.equal(model[1].head.weight, vit.head.weight.to(kind).float())


@pytest.mark.parametrize(
    "kind", [torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn]
)
@pytest.mark.parametrize("name", ["head.weight", "pos_embed", "cls_token", "blocks.1.norm1.bias"])
def test_numbers_that_would_be_cast_without_a_word_are_refused(tmp_path, kind, name):
    state = make_vit().state_dict()
    state[name] = state[name].to(kind)
    torch.save(state, tmp_path / "c.pth")
    for use in (lambda path: load_model(ARCH, path, num_classes=CLASSES), lambda path: export(path, tmp_path / "out")):
        with pytest.raises(CheckpointError, match=f"found {name} of {str(kind).split('.')[1]}"):
            use(tmp_path / "c.pth")
    assert not (tmp_path / "out").exists()


def export(path, destination):
    return export_checkpoint(path, destination, "easyrobust", mean=MEAN, std=STD)


def test_whole_numbers_are_refused_by_the_model_whatever_their_name():
    vit = nn.Module()
    vit.register_parameter("scale", nn.Parameter(torch.ones(2)))
    with pytest.raises(CheckpointError, match="found scale of int64"):
        load_strictly(vit, Weights({"scale": torch.ones(2, dtype=torch.int64)}, None, None, "raw"), "arch", "file")


def test_buffers_of_whole_numbers_load_from_any_kind_that_is_exact(tmp_path):
    vit = nn.Module()
    vit.register_buffer("num_batches_tracked", torch.tensor(0))
    for value in (torch.tensor(300), torch.tensor(300, dtype=torch.int32), torch.tensor(300.0).half()):
        load_strictly(vit, Weights({"num_batches_tracked": value}, None, None, "raw"), "arch", "file")
        assert vit.num_batches_tracked == 300
    with pytest.raises(CheckpointError, match=r"num_batches_tracked of float32"):
        load_strictly(vit, Weights({"num_batches_tracked": torch.tensor(0.5)}, None, None, "raw"), "arch", "file")


def test_swin_with_its_index_loads_in_half_precision(tmp_path):
    swin = models.build("swin_micro_patch2_32", num_classes=CLASSES)
    torch.save({name: value.half() for name, value in swin.state_dict().items()}, tmp_path / "c.pth")
    model = load_model("swin_micro_patch2_32", tmp_path / "c.pth", num_classes=CLASSES)
    own, loaded = swin.state_dict(), model[1].state_dict()
    assert all(torch.equal(own[name], loaded[name]) for name in own if not own[name].is_floating_point())


@pytest.mark.parametrize("kind", [np.int8, np.int32, np.complex64, np.dtype("V2")])
def test_arrays_that_are_not_floats_are_refused(tmp_path, kind):
    arrays = jax_arrays(make_vit())
    arrays["head/kernel"] = np.zeros(arrays["head/kernel"].shape, kind)
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(CheckpointError, match=r"expected floating-point weights .* found head/kernel of"):
        load_model(ARCH, tmp_path / "a.npz", num_classes=CLASSES)


def test_the_advice_on_another_number_of_classes_does_not_go_round_in_circles(tmp_path):
    torch.save(make_model().state_dict(), tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"new head for 3 classes: new_head=True.* train --num-classes 3"):
        load_model(ARCH, tmp_path / "c.pth", num_classes=3)
    assert load_model(ARCH, tmp_path / "c.pth", num_classes=3, new_head=True)[1].head.out_features == 3


UNITS = [
    ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),  # torchvision's, times 255
    ((0.485, 0.456, 0.406), (58.395, 57.12, 57.375)),
    ((123.675, 116.28, 103.53), (0.229, 0.224, 0.225)),
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.0)),
    ((-0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ((0.5, 0.5, 0.5), (0.5, 0.5, -0.5)),
]


@pytest.mark.parametrize(("mean", "std"), UNITS)
@pytest.mark.parametrize("form", ["buffers", "lists", "tensors", "ema"])
def test_a_normalisation_in_other_units_is_refused(tmp_path, mean, std, form):
    state = make_vit().state_dict()
    buffers = {"0.mean": torch.tensor(mean), "0.std": torch.tensor(std)} | {f"1.{n}": v for n, v in state.items()}
    content = {
        "buffers": buffers,
        "lists": {"state_dict": state, "mean": list(mean), "std": std},
        "tensors": {"state_dict": state, "mean": torch.tensor(mean)[None, :, None, None], "std": torch.tensor(std)},
        "ema": {"state_dict": make_model().state_dict(), "state_dict_ema": buffers},
    }[form]
    torch.save(content, tmp_path / "c.pth")
    for use in (
        lambda: load_model(ARCH, tmp_path / "c.pth", num_classes=CLASSES, ema=form == "ema"),
        lambda: export_checkpoint(tmp_path / "c.pth", tmp_path / "out", "timm"),
    ):
        with pytest.raises(CheckpointError, match=r"std > 0, found mean=\[.*divide by 255"):
            use()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"mean": [0.5] * 3}, "expected mean and std, found only mean"),
        ({"mean": ["0.5"] * 3, "std": [0.5] * 3}, "expected mean as one number a channel"),
        ({"mean": torch.zeros(3, dtype=torch.complex64), "std": [0.5] * 3}, "expected mean as one number a channel"),
        ({"mean": [10**400] * 3, "std": [0.5] * 3}, "divide by 255"),
        ({"mean": torch.zeros(10**6), "std": [0.5] * 3}, "expected mean as one number a channel"),
    ],
)
def test_what_cannot_be_a_normalisation_is_no_missing_one(tmp_path, content, match):
    torch.save({"state_dict": make_vit().state_dict()} | content, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=match):
        load_model(ARCH, tmp_path / "c.pth", num_classes=CLASSES)
