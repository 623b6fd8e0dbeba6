"""A new head in place of a checkpoint's: asked for, said, and nothing else changed."""

from __future__ import annotations

import logging
import sys

import numpy as np
import pytest
import timm
import torch
from helpers.checkpoints import ARCH, CLASSES, IMAGES, jax_arrays, logits, make_model, make_vit, one_line
from torch import nn

from ns_easyrobust.errors import CheckpointError, ModelError
from ns_easyrobust.models import architectures as models
from ns_easyrobust.models.checkpoint_save import save_model
from ns_easyrobust.models.checkpoints import load_model
from ns_easyrobust.models.heads import classes_beside, reset_head

DISTILLED = "deit_tiny_distilled_patch16_224"


@pytest.fixture(params=["raw", "ema", "npz"])
def stored(request, tmp_path):
    """A checkpoint of 5 classes in each form, what of it to load, and the bare model."""
    vit = make_vit()
    if request.param == "npz":
        np.savez(tmp_path / "c.npz", **jax_arrays(vit))
        return tmp_path / "c.npz", {}, vit
    save_model(make_model(seed=2), tmp_path / "c.pth", ema=make_model())
    return tmp_path / "c.pth", {"ema": request.param == "ema"}, make_vit(0 if request.param == "ema" else 2)


def test_a_new_head_leaves_the_rest_and_is_said(stored, caplog):
    path, options, vit = stored
    assert load_model(ARCH, path, **options)[1].head.out_features == CLASSES  # the checkpoint's own number
    with pytest.raises(CheckpointError, match="checkpoint has 5 classes, the model 7"):
        load_model(ARCH, path, num_classes=7, **options)
    with caplog.at_level(logging.INFO):
        model = load_model(ARCH, path, num_classes=7, new_head=True, **options)
    assert caplog.text.count("a new head for 7 classes in place of 5") == 1
    assert logits(model).shape == (4, 7)
    assert set(model.new_head_tensors) == {"head.weight", "head.bias"}
    assert model.num_classes == 7
    for name, value in vit.state_dict().items():
        if not name.startswith("head."):
            assert torch.allclose(model[1].state_dict()[name], value, atol=1e-7), name


def test_arguments_of_the_architecture_never_ask_for_a_head(tmp_path):
    save_model(make_model(), tmp_path / "c.pth")
    with pytest.raises(ModelError, match="new_head=True"):
        load_model(ARCH, tmp_path / "c.pth", num_classes=7, model_kwargs={"new_head": True})


def test_the_same_number_of_classes_keeps_the_head(tmp_path):
    save_model(make_model(), tmp_path / "c.pth")
    model = load_model(ARCH, tmp_path / "c.pth", num_classes=CLASSES, new_head=True)
    assert model.new_head_tensors == ()
    assert torch.equal(logits(model), logits(make_model()))


def test_both_heads_of_a_distilled_model_are_new(tmp_path):
    vit = models.build(DISTILLED, num_classes=4, img_size=32)
    torch.save(vit.state_dict(), tmp_path / "c.pth")
    model = load_model(DISTILLED, tmp_path / "c.pth", num_classes=3, new_head=True)
    assert model.image_size == 32  # by its position embedding
    assert {name.split(".")[0] for name in model.new_head_tensors} == {"head", "head_dist"}
    assert model[1].head_dist.weight.shape == (3, 192)
    assert logits(model).shape == (4, 3)


@pytest.mark.parametrize("arch", ["swin_micro_patch2_32", "resnet18", "vit_tiny_patch16_224"])
def test_heads_are_reset_by_timms_own_way(arch):
    torch.manual_seed(0)
    vit = models.build(arch, num_classes=6).eval()
    names = reset_head(vit, 4, arch, 224 if "224" in arch else 32)
    torch.manual_seed(0)
    size = 224 if "224" in arch else 32
    assert vit(torch.zeros(2, 3, size, size)).shape == (2, 4)
    classifier = vit.default_cfg["classifier"]
    assert set(names) == {f"{classifier}.weight", f"{classifier}.bias"}
    assert not vit.training


def test_a_checkpoint_without_a_head_gets_one(tmp_path):
    vit = models.build(ARCH, num_classes=0)
    torch.save(vit.state_dict(), tmp_path / "c.pth")
    model = load_model(ARCH, tmp_path / "c.pth", num_classes=3, new_head=True)
    assert torch.equal(model[1].cls_token, vit.cls_token)
    assert logits(model).shape == (4, 3)


def test_classes_by_name_and_by_what_differs():
    state = make_vit().state_dict()
    bare = {name: value for name, value in state.items() if not name.startswith("head")}
    odd = {name.replace("head.", "last."): value for name, value in state.items()}
    other = models.build(ARCH, num_classes=9)
    assert classes_beside(other, state) == CLASSES
    assert classes_beside(other, bare) == 0
    assert classes_beside(other, other.state_dict()) is None
    assert classes_beside(other, odd) is None
    assert classes_beside(other, make_vit(img_size=48).state_dict()) == CLASSES
    larger = {name: value for name, value in make_vit(img_size=48).state_dict().items() if name in bare}
    assert classes_beside(other, larger) == 0
    assert classes_beside(other, {**bare, "head.weight": state["head.weight"]}) is None
    unmoved = nn.BatchNorm2d(2).state_dict()
    del unmoved["num_batches_tracked"]  # a tensor without dimensions
    assert classes_beside(nn.BatchNorm2d(2), unmoved) is None


class Stubborn(nn.Module):
    """A classifier whose head is made anew in some odd way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.num_classes, self.how = 5, how
        self.head = nn.Linear(3, 5)
        if how == "none":
            self.reset_classifier = None

    def reset_classifier(self, num_classes: int) -> None:
        if self.how == "raises":
            raise NotImplementedError("no\nway")
        if self.how == "long":
            raise ValueError("x" * 10_000)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.mean((2, 3)))


class Unusual(nn.Module):
    """A position embedding of four dimensions before the convolution, and a head of an unusual name."""

    num_classes = 7

    def __init__(self, num_classes: int = 7) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 1, 1))
        self.patch_embed = nn.Conv2d(3, 5, 8, 8)
        self.mlp_head = nn.Linear(5, num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        self.mlp_head = nn.Linear(5, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.mlp_head((self.patch_embed(images) + self.pos_embed).mean((2, 3)))


def test_the_image_for_a_new_head_has_the_convolutions_channels():
    vit = Unusual()
    assert reset_head(vit, 3, "unusual", 16) == ("mlp_head.weight", "mlp_head.bias")
    assert vit.num_classes == 3


def test_a_head_of_an_unusual_name_is_counted(tmp_path, monkeypatch):
    (tmp_path / "unusual.py").write_text("from test_heads import Unusual as make\n")
    monkeypatch.setitem(sys.modules, "test_heads", sys.modules[__name__])
    torch.save(Unusual(3).state_dict(), tmp_path / "c.pth")
    name = f"{tmp_path}/unusual.py:make"
    assert load_model(name, tmp_path / "c.pth", mean=[0.5], std=[0.5]).num_classes == 3
    made = load_model(name, tmp_path / "c.pth", num_classes=4, new_head=True, mean=[0.5], std=[0.5])
    assert made[1].mlp_head.out_features == 4


@pytest.mark.parametrize(
    ("how", "found"),
    [
        ("none", "no reset_classifier in Stubborn"),
        ("raises", "NotImplementedError: no way"),
        ("idle", "5 logits after"),
    ],
)
def test_a_head_that_cannot_be_reset_is_one_line(how, found):
    with pytest.raises(ModelError, match=found) as caught:
        reset_head(Stubborn(how), 7, "stubborn", 8)
    assert "stubborn: expected a model whose head can be made anew for 7 classes" in one_line(caught)
    assert len(one_line(caught)) < 1000


def test_pretrained_weights_keep_their_classes_or_get_a_new_head(tmp_path, monkeypatch):
    from ns_easyrobust.models import checkpoints

    torch.save(make_vit().state_dict(), tmp_path / "c.pth")
    monkeypatch.setattr(checkpoints, "published_url", lambda _: f"file://{tmp_path}/c.pth")
    assert load_model(ARCH, pretrained=True).num_classes == CLASSES
    model = load_model(ARCH, num_classes=3, pretrained=True, new_head=True)
    assert (model.num_classes, model.weights_name, len(model.new_head_tensors)) == (3, "pretrained", 2)
    assert torch.equal(model[1].cls_token, make_vit().cls_token)


def test_random_weights_have_timms_thousand_classes():
    assert load_model(ARCH).num_classes == 1000
    assert timm.create_model(ARCH).num_classes == 1000
    assert logits(load_model(ARCH, num_classes=2), IMAGES).shape == (4, 2)


@pytest.mark.skipif(timm.__version__ < "1", reason="timm 0.5.4 takes no weights from the Hugging Face hub")
def test_weights_from_the_hub_are_fitted_by_timm(monkeypatch, caplog):
    """DINOv2's published file, for example, holds a mask_token that its model does not have, and no head."""
    from timm.models import _builder

    source = timm.create_model("vit_small_patch14_dinov2", img_size=28, num_classes=0)
    published = source.state_dict() | {"mask_token": torch.zeros(1, 384)}
    asked = []
    monkeypatch.setattr(_builder, "has_hf_hub", lambda necessary=False: True)
    monkeypatch.setattr(_builder, "load_state_dict_from_hf", lambda name, *_, **__: asked.append(name) or published)
    with caplog.at_level(logging.INFO):
        model = load_model("vit_small_patch14_dinov2.lvd142m", pretrained=True, num_classes=10, img_size=56)
    assert asked == ["timm/vit_small_patch14_dinov2.lvd142m"]
    assert torch.equal(model[1].blocks[11].mlp.fc1.weight, source.blocks[11].mlp.fc1.weight)
    assert model[1].pos_embed.shape == (1, 17, 384)
    assert "a new head for 10 classes in place of 0" in caplog.text
    assert model(torch.rand(2, 3, 56, 56)).shape == (2, 10)
