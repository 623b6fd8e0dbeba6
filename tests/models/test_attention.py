from __future__ import annotations

import pytest
import timm
import torch
from helpers.models import small_vit
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ns_easyrobust.errors import ModelError, OptionError
from ns_easyrobust.models.architectures import build
from ns_easyrobust.models.attention import attention_blocks, attention_maps, prefix_tokens

TIMM1 = not timm.__version__.startswith("0.")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def sharp() -> nn.Module:
    """A small ViT whose attention is far from uniform."""
    model = small_vit().eval()
    with torch.no_grad():
        for block in model[1].blocks:
            block.attn.qkv.weight.mul_(20)
    return model


def by_hand(block: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """softmax(Q K^T / sqrt(d)) from the block's weights and what enters it."""
    batch, n, width = tokens.shape
    heads = block.attn.num_heads
    weight, bias = block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3)
    normed = nn.functional.layer_norm(tokens, (width,), block.norm1.weight, block.norm1.bias, block.norm1.eps)
    q, k = (
        (normed @ weight[i].T + bias[i]).view(batch, n, heads, width // heads).transpose(1, 2) for i in range(2)
    )  # (B, H, N, d)
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / (width // heads) ** 0.5
    return scores.exp() / scores.exp().sum(-1, keepdim=True)


def entering(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """The tokens that enter each block."""
    seen: list[torch.Tensor] = []
    hooks = [block.register_forward_pre_hook(lambda m, args: seen.append(args[0])) for block in model[1].blocks]
    model(images)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("layers", [None, [2], (0, 1)])
def test_maps_are_the_softmax_of_the_blocks_own_weights(sharp, images, layers):
    model = sharp.double()
    images = images.double()
    with torch.no_grad():
        inputs = entering(model, images)
        clean = model(images)
        with attention_maps(model, layers) as maps:
            logits = model(images)
        assert sorted(maps) == (sorted(layers) if layers else [0, 1, 2])
        for layer, attention in maps.items():
            assert attention.shape == (2, 4, 17, 17)
            assert torch.allclose(attention, by_hand(model[1].blocks[layer], inputs[layer]), atol=1e-12)
            assert attention.std() > 0.01  # not one that any weights would give
    assert torch.allclose(logits, clean, atol=1e-12)


def test_gradient_reaches_the_pixels_through_a_map(sharp, images):
    model, images = sharp.double(), images.double().requires_grad_()
    with attention_maps(model, [1]) as maps:
        model(images)
    (found,) = torch.autograd.grad(maps[1][:, :, :, 5].log().sum(), images)
    (expected,) = torch.autograd.grad(
        by_hand(model[1].blocks[1], entering(model, images)[1])[..., 5].log().sum(), images
    )
    assert expected.abs().max() > 1e-3
    assert torch.allclose(found, expected, atol=1e-10)


def test_maps_come_before_the_dropout(images):
    model = small_vit(attn_drop_rate=0.5).train()
    with attention_maps(model) as maps:
        model(images)
    assert all(torch.allclose(attention.sum(-1), torch.ones(()), atol=1e-5) for attention in maps.values())
    assert all(attention.min() > 0 for attention in maps.values())


def test_the_newest_forward_counts(sharp, images):
    with torch.no_grad(), attention_maps(sharp) as maps:
        sharp(images)
        first = maps[2]
        sharp(images[:1].flip(3))
        assert maps[2].shape[0] == 1
        assert not torch.allclose(maps[2], first[:1], atol=1e-3)
        hook = sharp[1].blocks[1].register_forward_pre_hook(lambda m, args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sharp(images)
        hook.remove()
        with pytest.raises(ModelError, match="block 2"):  # the failed forward did not get there
            maps[2]
        sharp(images)


def flags(model: nn.Module) -> list[object]:
    found = []
    for module in model.modules():
        hooks = len(module._forward_hooks), len(module._forward_pre_hooks), "forward" in vars(module)
        found.append((hooks, getattr(module, "fused_attn", None), module.training))
    return found


def test_only_what_is_read_is_unfused_and_all_is_undone(sharp, images):
    attentions = [block.attn for block in sharp[1].blocks]
    if TIMM1:
        attentions[2].fused_attn = False  # as it was given
    before = flags(sharp)
    with torch.no_grad(), attention_maps(sharp, [1, 2]):
        sharp(images)
        assert before != flags(sharp)
        if TIMM1:
            assert [attention.fused_attn for attention in attentions] == [True, False, False]
    assert flags(sharp) == before
    with pytest.raises(ZeroDivisionError), attention_maps(sharp):
        raise ZeroDivisionError
    assert flags(sharp) == before


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_wrapped_models(sharp, images, wrap):
    with torch.no_grad():
        with attention_maps(sharp) as maps:
            sharp(images)
        expected = maps[2]
        with attention_maps(wrap(sharp)) as maps:
            maps.model(images)
        assert torch.equal(maps[2], expected)
        with attention_maps(wrap(sharp[1])) as maps:
            maps.model(sharp[0](images))
        assert torch.equal(maps[2], expected)


def test_prefix_tokens_and_blocks():
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 5, "num_heads": 2, "num_classes": 5}
    assert prefix_tokens(small_vit()) == 1
    assert len(attention_blocks(small_vit())) == 3
    assert len(attention_blocks(VisionTransformer(**options))) == 5
    assert prefix_tokens(build("deit_tiny_distilled_patch16_224")) == 2
    assert prefix_tokens(Beit(**options)) == 1
    if TIMM1:
        assert prefix_tokens(VisionTransformer(**options, reg_tokens=3)) == 4
        assert prefix_tokens(VisionTransformer(**options, class_token=False, global_pool="avg")) == 0


@pytest.mark.parametrize(
    ("arch", "found"),
    [
        ("swin_micro_patch2_32", "no blocks whose attention can be read: found patch_embed, "),
        ("resnet18", "no patch embedding"),
        ("xcit_nano_12_p16_224", r"found weights of shape \(1, 4, 32, 32\)"),  # among channels
        ("cait_xxs24_224", "heads that are mixed after the softmax"),
    ],
)
def test_other_models_are_refused_by_name(arch, found):
    model = build(arch)
    size = 32 if "micro" in arch else 224
    with pytest.raises(ModelError, match=found), attention_maps(model):
        model.eval()(torch.rand(1, 3, size, size))


def test_no_forward_and_missing_blocks_are_refused(sharp, images):
    with pytest.raises(ModelError, match="found none"), attention_maps(sharp):
        pass
    with pytest.raises(ModelError, match="found none"), attention_maps(sharp) as maps:
        small_vit()(images)
        _ = maps[0]
    for layer in (3, -1):
        with pytest.raises(OptionError, match=rf"in 0\.\.2, found {layer}"), attention_maps(sharp, [0, layer]):
            pass
