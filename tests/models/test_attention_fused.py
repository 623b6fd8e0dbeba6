from __future__ import annotations

import pytest
import timm
import torch
from helpers.models import small_vit
from timm.models.vision_transformer import Attention

from ns_easyrobust.models.attention import fused_attention
from ns_easyrobust.models.hooks import encoder_noise, frozen
from ns_easyrobust.nullspace.config import NoiseConfig
from ns_easyrobust.nullspace.synthesis import synthesize

OLD = timm.__version__.startswith("0.")


@pytest.fixture
def images():
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def gradient(model, images, value):
    value = value.clone().requires_grad_(True)
    with frozen(model), encoder_noise(model, value) as inner:
        logits = inner(images)
    return logits.detach(), torch.autograd.grad(logits.square().sum(), value)[0]


@pytest.mark.skipif(not OLD, reason="timm 1.x fuses by itself")
def test_the_same_function_and_gradient_without_a_softmax(images, monkeypatch):
    model = small_vit().double().eval()
    images, value = images.double(), torch.randn(1, 16, 64, dtype=torch.float64)
    expected = gradient(model, images, value)
    softmaxes = []
    real = torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda *a, **k: softmaxes.append(1) or real(*a, **k))
    gradient(model, images, value)
    assert len(softmaxes) == 3
    with fused_attention(model) as swapped:
        found = gradient(model, images, value)
    assert (swapped, len(softmaxes)) == (3, 3)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_it_is_undone_also_after_an_error(images):
    model = small_vit().eval()
    before, expected = [dict(vars(module)) for module in model.modules()], model(images)
    with pytest.raises(KeyError), fused_attention(model):
        raise KeyError
    for module, attributes in zip(model.modules(), before, strict=True):
        assert vars(module).keys() == attributes.keys()
        assert all(vars(module)[name] is value for name, value in attributes.items())
    assert torch.equal(model(images), expected)


@pytest.mark.skipif(not OLD, reason="timm 1.x fuses by itself")
def test_attentions_that_differ_or_are_watched_are_left():
    swin = small_vit(arch="swin_micro_patch2_32")
    with fused_attention(swin) as swapped:
        assert swapped == 0
    vit = small_vit()
    attentions = [module for module in vit.modules() if isinstance(module, Attention)]
    handle = attentions[0].attn_drop.register_forward_hook(lambda *_: None)
    attentions[1].forward = attentions[1].forward
    with fused_attention(vit) as swapped:
        assert swapped == 1
    handle.remove()
    assert "forward" in vars(attentions[1])


@pytest.mark.parametrize("solver", ["paper", pytest.param("sphere", marks=pytest.mark.stress)])
def test_a_trajectory_stays_the_same(trained, batches, solver):
    config = NoiseConfig(solver=solver, max_steps=30, eps=0.03 if solver == "sphere" else 1e-9, pool=0)
    plain = synthesize(trained, batches, config)
    with fused_attention(trained) as swapped:
        fused = synthesize(trained, batches, config)
    assert swapped == (3 if OLD else 0)
    assert [step.mse_logits for step in fused.trace] == pytest.approx([s.mse_logits for s in plain.trace], rel=1e-3)
    torch.testing.assert_close(fused.value, plain.value, rtol=1e-2, atol=1e-2)
