"""What a classifier reads, whatever its model calls it."""

from __future__ import annotations

import pytest
import torch
from helpers.models import small_vit
from torch import nn

from ns_easyrobust.errors import ModelError
from ns_easyrobust.models.architectures import build
from ns_easyrobust.models.features import features_of

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("arch", ["vit_micro_patch8_32", "swin_micro_patch2_32", "resnet18"])
def test_the_classifier_of_them_gives_the_logits(arch):
    model = small_vit(arch=arch).eval()
    features = features_of(model, IMAGES)
    assert torch.equal(model[1].get_classifier()(features), model(IMAGES))
    assert not any(module._forward_pre_hooks for module in model.modules())
    (gradient,) = torch.autograd.grad(features.square().sum(), next(iter(model[1].parameters())))
    assert gradient.abs().max() > 0


def test_of_a_distilled_model_the_mean_of_both_tokens():
    torch.manual_seed(0)
    model = build("deit_tiny_distilled_patch16_224", num_classes=5, img_size=32).eval()
    nn.init.orthogonal_(model.head.weight)
    model.head_dist.load_state_dict(model.head.state_dict())  # the logits are then those of the mean
    assert torch.allclose(model.head(features_of(model, IMAGES)), model(IMAGES), atol=1e-6)
    assert features_of(model.train(), IMAGES).shape == (4, 192)


class Own(nn.Module):
    def __init__(self, per_pixel: bool = False) -> None:
        super().__init__()
        self.stem, self.top, self.per_pixel = nn.Linear(3, 6), nn.Linear(6, 2), per_pixel

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = self.stem(images.permute(0, 2, 3, 1))
        return self.top(pixels).mean((1, 2)) if self.per_pixel else self.top(pixels.mean((1, 2)))


def test_a_model_of_ones_own_has_its_last_linear_layer():
    model = Own()
    assert torch.equal(model.top(features_of(model, IMAGES)), model(IMAGES))


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (Own(per_pixel=True), r"Own: expected a classifier that is applied to features \(4, D\), found shape"),
        (nn.Flatten(), "Flatten: expected a classifier on top of its features, found none"),
        (build("vit_micro_patch8_32", num_classes=0), "found none. Build it with num_classes"),
    ],
)
def test_no_classifier_is_one_line(model, match):
    with pytest.raises(ModelError, match=match):
        features_of(model, IMAGES)
