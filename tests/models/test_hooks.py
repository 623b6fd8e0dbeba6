"""Noise on the encoder's input, captures and freezing, against the same by hand; all of it undone."""

from __future__ import annotations

import pytest
import timm
import torch
from helpers.models import forward_by_hand, small_vit
from torch import nn

from ns_easyrobust.errors import ModelError, NoiseError
from ns_easyrobust.models.architectures import build
from ns_easyrobust.models.hooks import (
    capture_patch_embed,
    depends_on_embedding_alone,
    encoder_noise,
    frozen,
    storage_free_zeros,
    token_shape,
)
from ns_easyrobust.models.vit import find_patch_embed, unwrap


def test_noise_is_bit_equal_to_adding_it_by_hand(images):
    model = small_vit().eval()
    value = torch.randn(token_shape(model, images))
    with torch.no_grad(), encoder_noise(model, value) as inner:
        hooked = inner(images)
    with torch.no_grad():
        clean = model(images)
        assert torch.equal(hooked, forward_by_hand(model, images, value))
    assert not torch.allclose(hooked, clean, atol=1e-3)


def test_noise_for_each_image_of_a_batch(images):
    model = small_vit().eval()
    values = torch.randn(3, *token_shape(model, images)[1:])
    with torch.no_grad(), encoder_noise(model, values):
        together = model(images)
    with torch.no_grad():
        assert torch.equal(together, forward_by_hand(model, images, values))


def test_gradient_reaches_the_noise_and_matches_differences():
    model = small_vit().double().eval()
    images = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    value = torch.randn(1, 16, 64, dtype=torch.float64, requires_grad=True)

    def logit(v):
        with encoder_noise(model, v) as inner:
            return inner(images)[0, 3]

    (gradient,) = torch.autograd.grad(logit(value), value)
    direction, step = torch.randn_like(value), 1e-6
    with torch.no_grad():
        slope = (logit(value + step * direction) - logit(value - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-9)


def test_wrapped_models_take_the_same_noise(images):
    model = small_vit().eval()
    value = torch.randn(1, 16, 64)
    with torch.no_grad(), encoder_noise(model, value):
        expected = model(images)
    compiled = torch.compile(model, backend="eager")
    compiled(images)
    for wrapped in (compiled, nn.DataParallel(model), nn.DataParallel(compiled)):
        with torch.no_grad(), encoder_noise(wrapped, value) as inner:
            assert inner is unwrap(wrapped) is model
            assert torch.equal(inner(images), expected)


def test_compiled_branch_is_said_once_in_the_log(images, caplog):
    compiled = torch.compile(small_vit(), backend="eager")
    with caplog.at_level("INFO", logger="ns_easyrobust.models.vit"):
        unwrap(compiled), unwrap(compiled)
    assert sum("eagerly" in record.message for record in caplog.records) == 1


class TupleEmbed(nn.Module):
    """FAN's and XCiT's habit: tokens and the grid."""

    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.forward = lambda x: (x.flatten(2).transpose(1, 2), (32, 32))
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        tokens, (height, width) = self.patch_embed(x)
        assert (height, width) == (32, 32)
        return self.head(tokens.mean(1))


def test_tuple_valued_patch_embedding(images):
    model, value = TupleEmbed(), torch.randn(1, 1024, 3)
    with torch.no_grad(), encoder_noise(model, value):
        noisy = model(images)
    expected = model.head((images.flatten(2).transpose(1, 2) + value).mean(1))
    assert torch.equal(noisy, expected)


def zoo(name: str) -> nn.Module:
    """Small members of the families that README names."""
    if name == "beit":
        return timm.models.beit.Beit(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=4, num_classes=10)
    if name == "mae":
        return build("mae_vit_base_patch16", num_classes=10)
    return build({"rvt": "rvt_tiny", "fan": "fan_tiny_12_p16_224"}.get(name, name), num_classes=10)


@pytest.mark.parametrize(
    "name", ["swin_micro_patch2_32", "deit_tiny_distilled_patch16_224", "beit", "rvt", "fan", "mae"]
)
def test_the_families_take_noise_as_if_their_embedding_added_it(name):
    """The other derivation: the patch embedding's own forward replaced by one that adds the value."""
    if name in ("rvt", "fan", "mae") and not timm.__version__.startswith("0."):
        pytest.skip("EasyRobust's own models are written for timm 0.5.4")
    torch.manual_seed(0)
    model = zoo(name).eval()
    images = torch.rand(1, 3, *((32, 32) if "micro" in name or name == "beit" else (224, 224)))
    value = torch.randn(token_shape(model, images))
    with torch.no_grad(), encoder_noise(model, value):
        hooked = model(images)
    embed, original = find_patch_embed(model), find_patch_embed(model).forward

    def adding(*args, **kwargs):
        output = original(*args, **kwargs)
        return (output[0] + value, *output[1:]) if isinstance(output, tuple) else output + value

    with torch.no_grad():
        with capture_patch_embed(model) as outputs:
            clean = model(images)
        with encoder_noise(model, value, embedding=outputs[0]):
            assert torch.equal(hooked, model(storage_free_zeros(images)))
        assert depends_on_embedding_alone(model, images)
        embed.forward = adding
        assert torch.equal(hooked, model(images))
    assert not torch.allclose(hooked, clean, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 17, 64), (1, 16, 65), (2, 16, 64), (16, 64)])
def test_noise_of_another_shape_is_refused(images, shape):
    model, value = small_vit(), torch.zeros(shape)
    with pytest.raises(NoiseError, match=r"expected shape \(1, 16, 64\), found"), encoder_noise(model, value):
        model(images)


def test_a_hook_that_did_not_fire_is_an_error(images):
    model, other = small_vit(), small_vit()
    with pytest.raises(ModelError, match="did not fire"), encoder_noise(model, torch.zeros(1, 16, 64)):
        other(images)


def test_the_hook_is_gone_after_an_error(images):
    model = small_vit().eval()
    with pytest.raises(RuntimeError, match="by the user"), encoder_noise(model, torch.ones(1, 16, 64)):
        model(images)
        raise RuntimeError("by the user")
    assert not find_patch_embed(model)._forward_hooks
    assert torch.equal(model(images), forward_by_hand(model, images, torch.zeros(1, 16, 64)))


def test_half_precision_model_keeps_its_dtype(images):
    model = small_vit().to(torch.bfloat16).eval()
    with torch.no_grad(), encoder_noise(model, torch.randn(1, 16, 64)):
        assert model(images.bfloat16()).dtype == torch.bfloat16


def test_frozen_undoes_itself_exactly_also_after_an_error():
    model = small_vit()
    model.train()
    model[1].blocks[0].eval()
    next(model[1].head.parameters()).requires_grad_(False)
    gradient = torch.randn_like(model[1].pos_embed)
    model[1].pos_embed.grad = gradient
    modes = [m.training for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(RuntimeError), frozen(model) as inner:
        assert not any(m.training for m in inner.modules())
        assert not any(p.requires_grad for p in inner.parameters())
        raise RuntimeError
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert model[1].pos_embed.grad is gradient


def test_freezing_between_forward_and_backward_changes_no_gradient(images):
    model = small_vit()
    expected = torch.autograd.grad(model(images).square().sum(), model[1].head.weight)[0]
    loss = model(images).square().sum()
    with frozen(model):
        model(images)
    loss.backward()
    assert torch.equal(model[1].head.weight.grad, expected)


class _Around(nn.Module):
    """A transformer behind something that looks at the images too, or that changes its tokens in place."""

    def __init__(self, vit, images=False, in_place=None):
        super().__init__()
        self.vit, self.images = vit, images
        if in_place:
            plain = vit.patch_embed.forward
            vit.patch_embed.forward = lambda x, mask=None: plain(x)  # with a keyword, as Hiera's
            vit.forward = lambda x: vit.head(vit.norm(vit.blocks(in_place(vit.patch_embed(x, mask=None)))).mean(1))

    def forward(self, images):
        logits = self.vit(images)
        return logits + images.mean((1, 2, 3))[:, None] if self.images else logits


def test_an_embedding_seen_before_stands_for_its_images(images):
    model = small_vit().eval()
    assert depends_on_embedding_alone(model, images)
    noise = torch.randn(1, 16, 64)
    with torch.no_grad():
        with capture_patch_embed(model) as outputs, encoder_noise(model, noise):
            expected = model(images)
        with encoder_noise(model, noise, embedding=outputs[0]):
            assert torch.equal(model(storage_free_zeros(images)), expected)
        assert not torch.equal(model(storage_free_zeros(images)), expected)  # afterwards the images count again
    assert "forward" not in vars(model[1].patch_embed)


def test_models_that_need_more_than_the_embedding_are_known(images):
    assert not depends_on_embedding_alone(_Around(small_vit()[1], images=True).eval(), images)
    for in_place in (lambda tokens: tokens.add_(1), torch.relu_):  # the second one changes nothing when done again
        changed = _Around(small_vit()[1], in_place=in_place).eval()
        own = changed.vit.patch_embed.forward
        assert not depends_on_embedding_alone(changed, images)
        assert changed.vit.patch_embed.forward is own
    assert depends_on_embedding_alone(_Around(small_vit()[1]).eval(), images)
    assert depends_on_embedding_alone(_Around(small_vit()[1], in_place=lambda tokens: tokens + 1).eval(), images)


def test_a_given_embedding_passes_the_owners_hooks_and_is_gone_after_an_error(images):
    model = small_vit().eval()
    embedding = model[1].patch_embed
    embedding.register_forward_hook(lambda module, args, tokens: tokens * 2)
    with torch.no_grad():
        expected = model(images)
        with capture_patch_embed(model) as outputs:
            model(images)
        noise = torch.zeros(1, 16, 64)
        with encoder_noise(model, noise, embedding=outputs[0]):
            assert torch.allclose(model(storage_free_zeros(images)), expected)  # doubled once
        with pytest.raises(NoiseError), encoder_noise(model, noise[:, 1:], embedding=outputs[0]):
            model(images)
        assert torch.equal(model(images), expected)
    assert "forward" not in vars(embedding)


def test_a_model_made_in_inference_mode_is_frozen_outside_of_it(images):
    with torch.inference_mode():
        model = small_vit()
        expected = model.eval()(images)
        model.train()
    with frozen(model) as inner, torch.no_grad():
        assert torch.equal(inner(images), expected)
    assert model.training
