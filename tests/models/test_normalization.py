"""The normalisation in front, and which mean and std it takes."""

from __future__ import annotations

import logging

import pytest
import torch
import torchvision.transforms.functional as F
from helpers.checkpoints import (
    ARCH,
    CLASSES,
    MEAN,
    STD,
    make_model,
    make_vit,
)
from helpers.models import small_vit
from torch import nn

from ns_easyrobust.errors import ModelError, OptionError
from ns_easyrobust.models.checkpoints import load_model, resolve_normalization
from ns_easyrobust.models.normalization import Normalize, with_normalization


def test_normalize_is_torchvisions(images):
    mean, std = (0.1, 0.5, 0.7), (0.2, 0.3, 0.4)
    ours = Normalize(mean, std)
    assert torch.equal(ours(images), F.normalize(images, mean, std))
    assert {name: buffer.shape for name, buffer in ours.state_dict().items()} == {"mean": (3,), "std": (3,)}


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.5, 0.5)), ((0.5,), (0.0,)), ((0.5,), (float("nan"),))])
def test_normalize_refuses_numbers_that_divide_wrongly(mean, std):
    with pytest.raises(OptionError, match="std > 0"):
        Normalize(mean, std)


def test_class_token_and_position_embedding_are_not_decayed():
    from timm.optim import create_optimizer_v2

    model = small_vit()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.1)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay[id(model[1].cls_token)] == decay[id(model[1].pos_embed)] == 0
    assert decay[id(model[1].head.weight)] == 0.1


@pytest.mark.skipif(not hasattr(small_vit()[1], "group_matcher"), reason="timm 0.5.4 has no layer groups")
def test_layer_groups_of_timm_1_find_every_parameter():
    from timm.models import group_parameters

    model = small_vit()
    ours = group_parameters(model, model.group_matcher())
    inner = group_parameters(model[1], model[1].group_matcher())
    expected = {key: [f"1.{name}" for name in names] for key, names in inner.items()}
    assert ours == expected


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


@pytest.mark.parametrize(("mean", "std"), [((123.7, 116.3, 103.5), (58.4, 57.1, 57.4)), ((0.5,) * 3, (58.4,) * 3)])
def test_units_of_the_callers_normalisation(tmp_path, mean, std):
    torch.save(make_model().state_dict(), tmp_path / "c.pth")
    for use in (
        lambda: with_normalization(make_vit(), mean, std),
        lambda: resolve_normalization(make_vit(), mean=mean, std=std),
        lambda: load_model(ARCH, num_classes=CLASSES, mean=mean, std=std),
        lambda: load_model(ARCH, tmp_path / "c.pth", num_classes=CLASSES, mean=mean, std=std),  # though it has its own
    ):
        with pytest.raises(OptionError, match="divide by 255"):
            use()


def test_units_of_timms_config():
    vit = make_vit()
    vit.default_cfg = vit.pretrained_cfg = {**vit.default_cfg, "mean": (123.7,) * 3, "std": (58.4,) * 3}
    with pytest.raises(ModelError, match=r"timm's config .*divide by 255"):
        resolve_normalization(vit)


def test_the_bounds_are_normalisations_too():
    assert resolve_normalization(make_vit(), mean=(0, 0, 1), std=(1, 1, 1))[:2] == ((0, 0, 1), (1, 1, 1))
