"""What saliency maps are not made of: one line each."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from helpers.models import small_vit
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ns_easyrobust.errors import DataError, ModelError, OptionError
from ns_easyrobust.models.saliency import SALIENCY_METHODS, all_saliency_maps, saliency_maps

TIMM1 = not timm.__version__.startswith("0.")
IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return small_vit().eval()


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (torch.tensor([1, 2]), r"found torch.int64 of shape \(2,\)"),
        (torch.tensor([[1], [2], [3]]), r"found torch.int64 of shape \(3, 1\)"),
        (torch.tensor([1.0, 2.0, 3.0]), r"found torch.float32 of shape \(3,\)"),
        (torch.tensor([True, False, True]), "found torch.bool"),
        (torch.tensor([1, 2, 10]), "found values from 1 to 10"),
        (torch.tensor([-1, 2, 3]), "found values from -1 to 3"),
        ([1, 2, 3], "found list"),
    ],
)
@pytest.mark.parametrize("method", ["rollout", "grad-cam", "chefer"])
def test_labels_are_whole_numbers_of_classes_one_an_image(model, labels, found, method):
    with pytest.raises(
        DataError, match=f"labels: expected 3 whole numbers from 0 to 9, one an image, {found}"
    ) as error:
        saliency_maps(model, IMAGES, method, labels)
    assert "\n" not in str(error.value)


def test_labels_of_any_whole_dtype_are_the_same(model):
    expected = saliency_maps(model, IMAGES, "grad-cam", torch.tensor([1, 2, 3])).tokens
    assert torch.equal(expected, saliency_maps(model, IMAGES, "grad-cam", torch.tensor([1, 2, 3]).byte()).tokens)


@pytest.mark.parametrize(
    ("images", "found"),
    [
        ((255 * IMAGES).byte(), r"found torch.uint8 of shape \(3, 3, 32, 32\)"),
        (IMAGES[0], r"found torch.float32 of shape \(3, 32, 32\)"),
        (np.zeros((3, 3, 32, 32)), "found ndarray"),
    ],
)
@pytest.mark.parametrize("method", ["rollout", "grad-cam"])
def test_images_are_floating_point_pixels(model, images, found, method):
    with pytest.raises(DataError, match=f"images: expected floating-point pixels .*{found}") as error:
        saliency_maps(model, images, method)
    assert "\n" not in str(error.value)


def test_methods_are_a_list(model):
    with pytest.raises(OptionError, match=r"expected a list of methods, found the string rollout. Give \['rollout'\]"):
        all_saliency_maps(model, IMAGES, "rollout")


@pytest.mark.parametrize("method", SALIENCY_METHODS)
def test_nan_is_called_by_its_name(model, method):
    images = IMAGES.clone()
    images[1, 0, 3, 3] = torch.nan
    with pytest.raises(ModelError, match="found NaN among the logits of 1 of 3 images"):
        saliency_maps(model, images, method)


@pytest.mark.parametrize("method", SALIENCY_METHODS)
def test_weights_of_inference_mode_have_no_gradients(method):
    with torch.inference_mode():
        model = small_vit().eval()
    if method in ("attention", "rollout"):
        assert saliency_maps(model, IMAGES, method).tokens.shape == (3, 4, 4)
    else:
        with pytest.raises(ModelError, match=r"expected weights made outside of torch\.inference_mode"):
            saliency_maps(model, IMAGES, method)


@pytest.mark.skipif(not TIMM1, reason="timm 0.5.4's ViT reads the class token")
@pytest.mark.parametrize("pool", ["map", "max", "avgmax", "avg"])
@pytest.mark.parametrize("method", SALIENCY_METHODS)
def test_heads_that_read_otherwise_than_a_mean_of_patches_are_refused(pool, method):
    options = {"pool_include_prefix": True} if pool == "avg" else {"class_token": False}
    model = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5, global_pool=pool, **options
    ).eval()
    if method == "grad-cam":
        assert saliency_maps(model, IMAGES, method).tokens.shape == (3, 4, 4)
        return
    with pytest.raises(ModelError) as error:
        saliency_maps(model, IMAGES, method)
    assert "\n" not in str(error.value)
    if method != "chefer":
        assert f"found global_pool={pool}" in str(error.value)
        assert method in str(error.value)
