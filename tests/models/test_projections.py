"""Heads' matrices out of a model, against what its modules do to unit vectors and against heads by explicit loops."""

from __future__ import annotations

import math
from contextlib import contextmanager

import pytest
import torch
from helpers.models import small_vit
from timm.models.beit import Beit
from torch import nn

from ns_easyrobust.errors import ModelError
from ns_easyrobust.models.architectures import build
from ns_easyrobust.models.attention import attention_maps
from ns_easyrobust.models.projections import attention_inputs, head_outputs, head_projections

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def heads_by_hand(block: nn.Module, layer, tokens: torch.Tensor) -> torch.Tensor:
    """Softmax(X Q K' X' / sqrt(d_k)) X V with biases, token by token."""
    batch, length, width = tokens.shape
    bias = block.attn.qkv.bias.detach().double().view(3, len(layer.query), -1)
    out = torch.zeros(batch, length, width, dtype=torch.float64)
    for b in range(batch):
        for i in range(len(layer.query)):
            size = layer.query.shape[-1]
            query, key, value = (
                tokens[b].double() @ m[i] + bias[j, i] for j, m in enumerate((layer.query, layer.key, layer.value))
            )
            for t in range(length):
                weights = torch.tensor([math.exp(float(query[t] @ key[s]) / math.sqrt(size)) for s in range(length)])
                out[b, t, i * size : (i + 1) * size] = (weights.double() / weights.sum()) @ value
    return out


def test_the_matrices_are_those_that_the_heads_use():
    model = small_vit().eval()
    block = model[1].blocks[1]
    nn.init.normal_(block.attn.qkv.weight, std=0.3)
    nn.init.normal_(block.attn.qkv.bias)
    nn.init.uniform_(block.norm1.weight)
    layer = head_projections(model)[1]
    assert layer.width == 64
    assert layer.query.shape == layer.value.shape
    assert torch.equal(layer.gain, block.norm1.weight.detach().double())
    tokens = attention_inputs(model, IMAGES)[1]
    assert torch.equal(head_outputs(model, 1, tokens), head_outputs(model, 1, tokens.clone()))
    torch.testing.assert_close(
        head_outputs(model, 1, tokens).double(), heads_by_hand(block, layer, tokens), rtol=1e-4, atol=1e-5
    )
    assert not block.attn._forward_pre_hooks
    assert not block.attn.proj._forward_pre_hooks
    assert not block.norm1._forward_hooks


def test_attention_inputs_are_normalised_tokens():
    for tokens in attention_inputs(small_vit().eval(), IMAGES):
        torch.testing.assert_close(tokens.mean(-1), torch.zeros(2, 17), atol=1e-5, rtol=0)
        torch.testing.assert_close(tokens.std(-1, correction=0), torch.ones(2, 17), atol=1e-2, rtol=0)


def test_attention_is_recorded_of_one_image_alone(monkeypatch):
    seen = []

    @contextmanager
    def recorded(model):
        with attention_maps(model) as maps:
            yield maps
            seen.extend(len(maps[layer]) for layer in maps)

    monkeypatch.setattr("ns_easyrobust.models.projections.attention_maps", recorded)
    assert {len(tokens) for tokens in attention_inputs(small_vit().eval(), IMAGES)} == {2}
    assert seen == [1, 1, 1]


def test_deit_and_beit_have_heads():
    beit = Beit(img_size=32, patch_size=16, embed_dim=32, depth=1, num_heads=2, use_rel_pos_bias=True).eval()
    (layer,) = head_projections(beit)
    units = beit.blocks[0].attn.qkv.weight.detach().double() @ torch.eye(32, dtype=torch.float64)
    assert torch.equal(torch.cat((*layer.query.mT, *layer.key.mT, *layer.value.mT)), units)
    assert attention_inputs(beit, IMAGES)[0].shape == (2, 5, 32)
    deit = build("deit_tiny_distilled_patch16_224").eval()
    inputs = attention_inputs(deit, torch.zeros(1, 3, 224, 224))[11]
    assert inputs.shape == (1, 198, 192)
    assert len(head_projections(deit)[0].query) == 3


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda block: setattr(block, "norm1", nn.Identity()), "Identity as norm1"),
        (lambda block: delattr(block, "norm1"), "no norm1"),
        (lambda block: delattr(block.attn, "qkv"), "attn_drop.* in its attention"),
        (lambda block: setattr(block.attn, "q_norm", nn.LayerNorm(16)), "q_norm between"),
        (lambda block: setattr(block.attn, "num_heads", 5), "192 outputs of qkv for 5 heads"),
    ],
)
def test_what_has_no_such_heads_is_refused_in_one_line(change, found):
    model = small_vit()
    change(model[1].blocks[1])
    with pytest.raises(
        ModelError, match=rf"block 1 has no heads Softmax\(Q K'\) V of one layer norm: found .*{found}"
    ) as error:
        head_projections(model)
    assert "\n" not in str(error.value)


def test_windows_weights_that_are_not_finite_and_a_norm_behind_attention_are_refused():
    with pytest.raises(ModelError, match="has no blocks whose attention can be read"):
        head_projections(build("swin_micro_patch2_32"))
    model = small_vit().eval()
    with torch.no_grad():
        model[1].blocks[0].norm1.weight[3] = math.nan
    with pytest.raises(ModelError, match="expected finite weights"):
        head_projections(model)

    class PostNorm(type(model[1].blocks[0])):
        def forward(self, tokens):
            return tokens + self.norm1(self.attn(tokens))

    model = small_vit().eval()
    model[1].blocks[2].__class__ = PostNorm
    with pytest.raises(ModelError, match=r"block 2 .* attention of other tokens than it"):
        attention_inputs(model, IMAGES)
