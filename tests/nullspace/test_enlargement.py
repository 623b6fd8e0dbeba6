"""The same model for larger images."""

from __future__ import annotations

import pytest
import torch
from helpers.models import small_vit, unequal
from torch import nn

from ns_easyrobust.errors import ModelError, OptionError
from ns_easyrobust.models import find_patch_size, required_image_size
from ns_easyrobust.nullspace.enlargement import enlarged
from ns_easyrobust.nullspace.exact import patch_spectrum


@pytest.mark.parametrize("arch", ["vit_micro_patch8_32", "swin_micro_patch2_32"])
def test_its_logits_are_those_of_pooled_images(arch):
    model = small_vit(arch=arch).eval()
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    larger = enlarged(model, 3)
    with torch.no_grad():
        expected = model(nn.functional.avg_pool2d(images, 3))
        assert torch.allclose(larger(images), expected, atol=1e-5)
        assert not torch.allclose(larger(images.flip(-1)), expected, atol=1e-3)


def test_the_nullspace_grows_and_the_rank_stays():
    model = unequal()
    before, after = (patch_spectrum(each, space="pixel") for each in (model, enlarged(model, 2)))
    assert (before.rank, after.rank) == (64, 64)
    assert (before.nullity, after.nullity) == (192 - 64, 768 - 64)
    assert torch.allclose(after.singular_values, before.singular_values / 2, rtol=1e-5)


def test_the_model_itself_stays_and_sizes_are_told():
    model = unequal()
    weight = model[1].patch_embed.proj.weight.clone()
    larger = enlarged(model, 2)
    assert (find_patch_size(larger), required_image_size(larger)) == (16, (64, 64))
    assert (find_patch_size(model), required_image_size(model)) == (8, (32, 32))
    assert torch.equal(model[1].patch_embed.proj.weight, weight)
    assert not larger.training


def test_bad_factors_and_models_are_one_line():
    with pytest.raises(OptionError, match="factor: expected a whole number >= 1, found 0"):
        enlarged(unequal(), 0)
    with pytest.raises(ModelError, match="no patch embedding"):
        enlarged(nn.Sequential(nn.Conv2d(3, 3, 3)), 2)


def test_the_global_generator_is_left_alone():
    model, before = unequal(), torch.get_rng_state()
    larger = enlarged(model, 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert {each.device.type for each in larger.state_dict().values()} == {"cpu"}
