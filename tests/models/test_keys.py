"""Keys of the last block, against the block's own weights."""

from __future__ import annotations

import pytest
import timm
import torch
from helpers.models import small_vit
from timm.models.beit import Beit
from torch import nn

from ns_easyrobust.errors import ModelError
from ns_easyrobust.models.attention import attention_maps
from ns_easyrobust.models.keys import last_keys

TIMM1 = not timm.__version__.startswith("0.")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def entering(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What enters the last block's attention, in eval mode."""
    seen: list[torch.Tensor] = []
    hook = model[1].blocks[-1].attn.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model.eval()(images)
    hook.remove()
    return seen[0]


def test_keys_are_the_middle_third_of_the_blocks_own_weights_on_patches_alone(images):
    model = small_vit(drop_rate=0.5).train()
    random = torch.random.get_rng_state()
    read = last_keys(model, images)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    attn = model[1].blocks[-1].attn
    weight, bias = attn.qkv.weight.chunk(3)[1], attn.qkv.bias.chunk(3)[1]
    expected = entering(model, images)[:, 1:] @ weight.T + bias
    assert read.grid == (4, 4)
    assert read.keys.shape == (2, 16, weight.shape[0])
    torch.testing.assert_close(read.keys, expected)
    assert not read.keys.requires_grad


def test_their_attention_is_the_class_tokens(images):
    model = small_vit().eval()
    layer = len(model[1].blocks) - 1
    with torch.no_grad(), attention_maps(model, [layer]) as maps:
        maps.model(images)
    torch.testing.assert_close(last_keys(model, images).attention, maps[layer][:, :, 0, 1:].mean(1))


def test_beit_uses_its_weights_without_calling_the_layer(images):
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    model = nn.Sequential(nn.Identity(), Beit(**sizes, qkv_bias=True, use_rel_pos_bias=True))
    nn.init.normal_(model[1].blocks[-1].attn.q_bias)
    expected = entering(model, images)[:, 1:] @ model[1].blocks[-1].attn.qkv.weight.chunk(3)[1].T  # keys have no bias
    torch.testing.assert_close(last_keys(model, images).keys, expected)


@pytest.mark.skipif(not TIMM1, reason="timm 1.x has norms of keys, and EVA")
def test_separate_and_normalised_keys_of_timm_1(images):
    normed = small_vit(qk_norm=True).eval()
    attn = normed[1].blocks[-1].attn
    keys = entering(normed, images)[:, 1:] @ attn.qkv.weight.chunk(3)[1].T + attn.qkv.bias.chunk(3)[1]
    heads = keys.view(2, 16, attn.num_heads, -1)
    centred = heads - heads.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + attn.k_norm.eps).sqrt()
    torch.testing.assert_close(last_keys(normed, images).keys, expected.flatten(2), rtol=1e-4, atol=1e-5)
    from timm.models.eva import Eva

    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    for fused in (True, False):
        eva = nn.Sequential(nn.Identity(), Eva(**sizes, qkv_fused=fused))
        attn = eva[1].blocks[-1].attn
        weight = attn.qkv.weight.chunk(3)[1] if fused else attn.k_proj.weight
        torch.testing.assert_close(last_keys(eva, images).keys, entering(eva, images)[:, 1:] @ weight.T)


def test_models_whose_keys_cannot_be_read_are_refused_in_one_line(images):
    model = small_vit()
    attn = model[1].blocks[-1].attn
    with torch.no_grad():
        attn.qkv.bias[attn.qkv.bias.shape[0] // 2] = float("nan")
    with pytest.raises(ModelError, match="expected finite"):
        last_keys(model, images)
    renamed = small_vit()
    attn = renamed[1].blocks[-1].attn
    qkv, attn.forward = attn.qkv, attn.forward
    attn.key_value = qkv
    plain = attn.forward

    def forward(tokens, *args, **options):
        attn.qkv = attn.key_value
        try:
            return plain(tokens, *args, **options)
        finally:
            del attn.qkv

    del attn.qkv
    attn.forward = forward
    with pytest.raises(ModelError, match=r"expected attn.qkv or attn.k_proj that gives a key for each token, found"):
        last_keys(renamed, images)
    with pytest.raises(ModelError, match=r"no blocks whose attention can be read|no patch embedding"):
        last_keys(nn.Sequential(nn.Conv2d(3, 4, 8)), images)
