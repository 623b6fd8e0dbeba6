from __future__ import annotations

import pytest
import torch
from conftest import small_vit

from ns_easyrobust.attention import attention_blocks, attention_maps, prefix_tokens
from ns_easyrobust.errors import ModelError, OptionError


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def by_hand(block, tokens):
    """softmax(Q K^T / sqrt(d)) (B, H, N, N) from the block's own weights."""
    heads, (batch, number, width) = block.attn.num_heads, tokens.shape
    qkv = torch.nn.functional.linear(block.norm1(tokens), block.attn.qkv.weight, block.attn.qkv.bias)
    q, k, _ = qkv.view(batch, number, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    return (q @ k.transpose(-2, -1) / (width // heads) ** 0.5).softmax(-1)


def test_maps_are_softmax_of_queries_and_keys_and_part_of_the_graph(trained, images):
    inputs = {}
    hooks = [
        block.register_forward_pre_hook(lambda module, args, i=i: inputs.update({i: args[0].detach()}))
        for i, block in enumerate(trained[1].blocks)
    ]
    leaf = images.clone().requires_grad_()
    with attention_maps(trained) as maps:
        logits = maps.model(leaf)
        assert list(maps) == [0, 1, 2]
    for hook in hooks:
        hook.remove()
    for i, block in enumerate(trained[1].blocks):
        assert maps[i].shape == (2, 4, 17, 17)
        torch.testing.assert_close(maps[i], by_hand(block, inputs[i]), rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(maps[2][..., 3].sum(), leaf)
    assert gradient.abs().sum() > 0
    torch.testing.assert_close(logits, trained(images), rtol=1e-4, atol=1e-5)


def test_only_what_is_read_is_unfused_and_all_is_undone(trained, images):
    flags = [getattr(block.attn, "fused_attn", None) for block in trained[1].blocks]
    with attention_maps(trained, [1]) as maps:
        meanwhile = [getattr(block.attn, "fused_attn", None) for block in trained[1].blocks]
        first = trained(images) is not None and maps[1]
        trained(images.flip(0))
        torch.testing.assert_close(maps[1], first.flip(0))  # the newest forward's
        assert list(maps) == [1]
    assert meanwhile == [flags[0], flags[1] and False, flags[2]]
    assert [getattr(block.attn, "fused_attn", None) for block in trained[1].blocks] == flags
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in trained.modules())


def test_wrapped_models_are_unwrapped(trained, images):
    with attention_maps(torch.nn.DataParallel(trained)) as maps:
        maps.model(images)
    assert len(maps[0]) == 2
    assert prefix_tokens(trained) == 1
    assert len(attention_blocks(trained)) == 3


def test_what_does_not_fit_is_refused(trained, images):
    with pytest.raises(ModelError, match="expected a forward"), attention_maps(trained):
        pass
    with pytest.raises(OptionError, match=r"expected a block in 0\.\.2, found 3"), attention_maps(trained, [3]):
        pass
    with pytest.raises(ModelError, match="no blocks whose attention can be read"):
        attention_blocks(small_vit(arch="swin_micro_patch2_32"))
    with pytest.raises(ModelError):
        attention_blocks(torch.nn.Linear(2, 2))
