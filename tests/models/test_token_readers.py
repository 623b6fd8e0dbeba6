"""Which part of a model reads tokens without a LayerNorm."""

from __future__ import annotations

import pytest
import torch
from helpers.models import small_vit
from torch import nn

from ns_easyrobust.models.architectures import build
from ns_easyrobust.models.token_readers import reader_without_layer_norm


@pytest.mark.parametrize(
    ("place", "replacement", "found"),
    [
        ("norm", nn.Identity(), "head (Linear)"),
        ("blocks.2.norm1", nn.Identity(), "blocks.2.attn (Attention)"),
        ("blocks.1.norm1", nn.GroupNorm(1, 17), "blocks.1.norm1 (GroupNorm)"),
        ("blocks.1.norm2", nn.Identity(), None),  # within a block: only what is measured tells
        (None, None, None),
    ],
)
def test_it_is_named(place, replacement, found):
    model = small_vit().train()
    if place is not None:
        parent, _, name = place.rpartition(".")
        setattr(model[1].get_submodule(parent), name, replacement)
    name = reader_without_layer_norm(model, torch.zeros(1, 3, 32, 32))
    assert name == (found and f"1.{found}")
    assert model[1].blocks[0].training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_norm_of_merged_tokens_is_named_by_its_width():
    model = build("swin_micro_patch2_32", num_classes=10)
    assert "downsample.norm" in reader_without_layer_norm(model, torch.zeros(1, 3, 32, 32))
