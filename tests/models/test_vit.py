from __future__ import annotations

import pytest
import timm
import torch
from helpers.models import small_vit
from torch import nn

from ns_easyrobust.errors import ModelError
from ns_easyrobust.models.architectures import build
from ns_easyrobust.models.normalization import with_normalization
from ns_easyrobust.models.vit import find_normalize, find_patch_embed, find_patch_size, reference_tensor
from ns_easyrobust.nullspace.config import NoiseConfig
from ns_easyrobust.nullspace.synthesis import measure, synthesize


def test_model_compiled_in_place_is_refused():
    model = small_vit()
    model.compile(backend="eager")
    with pytest.raises(ModelError, match=r"compiled in place.*torch\.compile\(model\)"):
        find_patch_embed(model)


def test_compiled_part_is_refused():
    inner = small_vit()[1]
    with pytest.raises(ModelError, match="lies in a compiled part"):
        find_patch_embed(with_normalization(torch.compile(inner, backend="eager"), (0.5,) * 3, (0.5,) * 3))


def test_models_without_one_patch_embedding_are_refused_by_name():
    with pytest.raises(ModelError, match=r"ResNet has no patch embedding: found conv1.*fits: one patch embedding"):
        find_patch_embed(with_normalization(timm.create_model("resnet18"), (0.5,) * 3, (0.5,) * 3))
    two = nn.ModuleDict({"a": small_vit()[1], "b": small_vit()[1]})
    with pytest.raises(ModelError, match=r"ModuleDict has 2 patch embeddings: found a\.patch_embed, b\.patch_embed"):
        find_patch_embed(two)


@pytest.mark.parametrize(("arch", "size"), [("vit_micro_patch8_32", 8), ("deit_tiny_distilled_patch16_224", 16)])
def test_the_patch_size_of_a_plain_vit(arch, size):
    assert find_patch_size(small_vit(arch=arch)) == size
    assert find_patch_size(nn.DataParallel(build(arch))) == size


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (lambda: build("swin_micro_patch2_32"), r"stages that merge tokens \(of 2 pixels at first\)"),
        (lambda: build("vit_micro_patch8_32", patch_size=(8, 4)), r"PatchEmbed with patch_size \(8, 4\)"),
        (lambda: timm.create_model("resnet18"), "ResNet has no patch embedding"),
    ],
)
def test_models_without_one_patch_size_say_what_to_give(model, found):
    with pytest.raises(ModelError, match=f"{found}.*Give the patch size in pixels, such as 16"):
        find_patch_size(model())


def test_normalisation_is_found_by_easyrobusts_names():
    model = small_vit()
    assert find_normalize(model) is model[0]
    assert find_normalize(nn.DataParallel(model)) is model[0]
    assert find_normalize(model[1]) is None


def test_a_model_without_parameters_has_a_device_too():
    assert reference_tensor(nn.Flatten()).dtype == torch.float32
    model = nn.Module()
    model.register_buffer("count", torch.zeros(1, dtype=torch.int64))
    model.register_buffer("scale", torch.zeros(1, dtype=torch.float64))
    assert reference_tensor(model) is model.scale
    vit = small_vit()
    assert reference_tensor(nn.DataParallel(vit)) is vit[1].cls_token


class Averages(nn.Module):
    """Logits without a parameter: an image's mean over four places."""

    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Unfold(8, stride=8)

    def forward(self, images):
        return self.patch_embed(images).mean(1)[:, :4]


def test_a_model_without_parameters_is_synthesized_for_and_measured():
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    noise = synthesize(Averages(), [images], NoiseConfig(max_steps=2))
    assert noise.value.shape == (1, 192, 16)
    measured = measure(Averages(), [images], torch.zeros(1, 192, 16))
    assert (measured.n, measured.mse_logits) == (8, 0)
