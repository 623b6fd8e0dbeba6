"""Noise at the input of a block, against the transformer's forward in two pieces, each called by name."""

from __future__ import annotations

import pytest
import torch
from helpers.models import forward_by_hand, small_vit
from torch import nn

from ns_easyrobust.errors import ModelError, NoiseError, OptionError
from ns_easyrobust.models.hooks import capture_patch_embed, encoder_noise, storage_free_zeros, token_shape
from ns_easyrobust.models.vit import find_noise_site


@pytest.mark.parametrize("block", [0, 1, 2])
def test_noise_at_a_block_is_bit_equal_to_a_forward_in_two_pieces(images, block):
    model = small_vit().eval()
    assert token_shape(model, images, block) == (1, 17, 64)  # 16 patches and the class token
    value = torch.randn(1, 17, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        clean = model(images)
        with encoder_noise(model, value, block=block) as inner:
            hooked = inner(images)
        assert torch.equal(hooked, forward_by_hand(model, images, value, block))
        assert torch.equal(model(images), clean)  # the hook is gone
        with capture_patch_embed(model) as outputs:
            model(images)
        with encoder_noise(model, value, block=block, embedding=outputs[0]):
            assert torch.equal(model(storage_free_zeros(images)), hooked)
    assert not torch.allclose(hooked, clean, atol=1e-3)


def test_at_the_first_block_patches_alone_are_as_behind_the_embedding(images):
    """The position embedding and the class token join in between, and addition does not mind."""
    model = small_vit().double().eval()
    value = torch.randn(1, 16, 64, dtype=torch.float64)
    with torch.no_grad():
        with encoder_noise(model, value):
            expected = model(images.double())
        with encoder_noise(model, nn.functional.pad(value, (0, 0, 1, 0)), block=0):
            torch.testing.assert_close(model(images.double()), expected)


def test_gradient_reaches_the_noise_and_the_class_tokens_row():
    model, block = small_vit().double().eval(), 1
    images = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    value = torch.randn(1, 17, 64, dtype=torch.float64, requires_grad=True)
    with encoder_noise(model, value, block=block):
        (gradient,) = torch.autograd.grad(model(images)[0, 3], value)
    (expected,) = torch.autograd.grad(forward_by_hand(model, images, value, block)[0, 3], value)
    torch.testing.assert_close(gradient, expected)
    assert gradient[0, 0].abs().max() > 0


def test_half_precision_and_autocast_keep_their_rules(images):
    model, value = small_vit().eval(), torch.randn(1, 17, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with encoder_noise(model, value, block=1):
            hooked = model(images)
        assert torch.equal(hooked, forward_by_hand(model, images, value, 1))
    model.to(torch.bfloat16)
    with torch.no_grad(), encoder_noise(model, value, block=1):
        assert model(images.bfloat16()).dtype == torch.bfloat16


def test_checkpointed_blocks_have_the_noise_in_the_backward_pass_too(images):
    """The backward pass comes after the body, where the hook is gone."""
    model, value = small_vit(), torch.randn(1, 17, 64)
    if not hasattr(model[1], "set_grad_checkpointing"):
        pytest.skip("timm 0.5.4's ViT has no checkpointing")
    gradients = []
    for enabled in (False, True):
        model[1].set_grad_checkpointing(enabled)
        with encoder_noise(model.train(), value, block=1):
            loss = model(images).square().sum()
        gradients.append(torch.autograd.grad(loss, model[1].blocks[1].mlp.fc1.weight)[0])
        assert model[1].grad_checkpointing is enabled
    assert torch.equal(*gradients)


def test_what_does_not_fit_is_refused_by_name(images):
    model = small_vit()
    with pytest.raises(OptionError, match=r"^noise block: expected -1 .* VisionTransformer's blocks, 0 to 2, found 3"):
        find_noise_site(model, 3)
    swin = small_vit(arch="swin_micro_patch2_32")
    with pytest.raises(ModelError, match=r"^SwinTransformer has no blocks .*found patch_embed.* Use block -1"):
        find_noise_site(swin, 0)
    patches_alone = torch.zeros(1, 16, 64)
    with pytest.raises(NoiseError, match=r"expected shape \(1, 17, 64\)"), encoder_noise(model, patches_alone, block=1):
        model(images)
    with pytest.raises(ModelError, match="on block 1 did not fire"), encoder_noise(model, patches_alone, block=1):
        pass
    assert not model[1].blocks[1]._forward_pre_hooks


def test_blocks_of_several_scales_are_refused(images):
    model = small_vit()
    model[1].blocks[0].register_forward_pre_hook(lambda module, args: ([args[0]],))  # as CrossViT's take them
    with pytest.raises(ModelError, match="expected tokens in one tensor where it is added, found list"):
        token_shape(model, images, 0)
