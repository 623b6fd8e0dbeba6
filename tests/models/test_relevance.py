from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from helpers.models import small_vit
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ns_easyrobust.errors import ModelError
from ns_easyrobust.models.architectures import build
from ns_easyrobust.models.attention import attention_maps, tokens_read
from ns_easyrobust.models.hooks import frozen
from ns_easyrobust.models.relevance import gradient_rollout, relevance_maps
from ns_easyrobust.models.token_maps import upscaled

TIMM1 = not timm.__version__.startswith("0.")
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def sharp() -> nn.Module:
    """A small ViT whose attention is far from uniform and whose logits differ."""
    model = small_vit().double().eval()
    with torch.no_grad():
        for block in model[1].blocks:
            block.attn.qkv.weight.mul_(20)
            block.attn.proj.weight.mul_(5)
    return model


def test_two_blocks_of_two_tokens_by_hand():
    # R = I; R += E R with E the mean over two heads of relu(dA * A), worked out on paper:
    a1, g1 = [[[0.5, 0.5], [0.2, 0.8]], [[0.9, 0.1], [0.4, 0.6]]], [[[2, 1], [0, -1]], [[-1, 3], [1, 0]]]
    a2, g2 = [[[0.3, 0.7], [0.6, 0.4]], [[0.5, 0.5], [0.1, 0.9]]], [[[1, -2], [1, 2]], [[0, 1], [-3, 1]]]
    e1 = [[0.5, 0.4], [0.2, 0.0]]  # e.g. (relu(1 * .5) + relu(3 * .1)) / 2 = .4
    e2 = [[0.15, 0.25], [0.3, 0.85]]
    whole = (np.eye(2) + e2) @ (np.eye(2) + e1)
    attentions, gradients = ([torch.tensor([x], dtype=torch.float64) for x in pair] for pair in ((a1, a2), (g1, g2)))
    for readout in ([1.0, 0.0], [0.0, 1.0], [0.5, 0.5]):
        found = gradient_rollout(attentions, gradients, torch.tensor(readout, dtype=torch.float64))
        np.testing.assert_allclose(found, [np.array(readout) @ whole], rtol=1e-14)
    assert whole[0].tolist() == pytest.approx([1.15 * 1.5 + 0.25 * 0.2, 1.15 * 0.4 + 0.25])


def forward_with(model: nn.Module, images: torch.Tensor, steps: dict[int, torch.Tensor]) -> torch.Tensor:
    """Logits where ``steps`` are added to the blocks' attention, which is what dA is a gradient with respect to."""
    handles = [
        block.attn.attn_drop.register_forward_hook(lambda m, args, out, step=steps[i]: out + step)
        for i, block in enumerate(model[1].blocks)
        if i in steps
    ]
    with torch.no_grad(), attention_maps(model):
        logits = model(images)
    for handle in handles:
        handle.remove()
    return logits


def test_the_whole_map_from_numpy_and_finite_differences(sharp, images):
    labels, side = torch.tensor([3, 0, 9]), 17
    found = relevance_maps(sharp, images, labels)
    with torch.no_grad(), attention_maps(sharp) as maps:
        torch.testing.assert_close(found.logits, sharp(images))
    product = np.eye(side)
    for layer, attention in maps.items():
        step = torch.zeros(1, 4, side, side, dtype=torch.float64, requires_grad=True)
        gradient = torch.autograd.grad(logit_as_function(sharp, images[:1], labels[0], layer)(step), step)[0][0]
        for index in ((0, 0, 3), (1, 0, 9), (2, 5, 5), (3, 16, 0)):
            change = torch.zeros(1, 4, side, side, dtype=torch.float64)
            change[0][index] = 1e-5
            up, down = (forward_with(sharp, images[:1], {layer: sign * change})[0, labels[0]] for sign in (1, -1))
            assert float((up - down) / 2e-5) == pytest.approx(float(gradient[index]), rel=1e-4, abs=1e-7)
        product = product + np.maximum(gradient.numpy() * attention[0].numpy(), 0).mean(0) @ product
    expected = bilinear(product[0, 1:].reshape(4, 4), 32)
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    np.testing.assert_allclose(found.maps[0, 0].detach(), expected, atol=1e-10)
    assert expected.std() > 0.05


def logit_as_function(model, image, label, layer):
    """The logit of ``label`` as a function of what is added to the attention of ``layer``."""

    def logit(step: torch.Tensor) -> torch.Tensor:
        handle = model[1].blocks[layer].attn.attn_drop.register_forward_hook(lambda m, args, out: out + step)
        with attention_maps(model):
            value = model(image)[0, label]
        handle.remove()
        return value

    return logit


def bilinear(values: np.ndarray, side: int) -> np.ndarray:
    """Between the centres of the patches, as images are scaled; beyond the outermost, these."""
    places = (np.arange(side) + 0.5) * len(values) / side - 0.5
    rows = np.stack([np.interp(places, np.arange(len(values)), column) for column in values.T], axis=1)
    return np.stack([np.interp(places, np.arange(len(values)), row) for row in rows])


def test_the_gradient_is_that_of_the_attention_with_da_held(sharp, images):
    """Finite differences over weights, with dA as it was at the start; with dA free they differ."""
    labels = torch.tensor([1, 2, 3])
    weight = sharp[1].blocks[1].attn.qkv.weight
    probe = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (found,) = torch.autograd.grad((relevance_maps(sharp, images, labels).maps * probe).sum(), weight)
    with attention_maps(sharp) as maps:
        logits = sharp(images)
        held = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), list(maps.values()))

    def value(is_held: bool) -> float:
        if not is_held:
            return float((relevance_maps(sharp, images, labels).maps * probe).sum())
        with torch.no_grad(), attention_maps(sharp) as maps:
            sharp(images)
        row = gradient_rollout(list(maps.values()), held, torch.eye(17, dtype=torch.float64)[0])[:, 1:]
        return float((upscaled(row.view(3, 1, 4, 4), (32, 32)) * probe).sum())

    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    slopes = []
    for is_held in (True, False):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                weight += sign * 1e-6 * direction
                ends.append(value(is_held))
                weight -= sign * 1e-6 * direction
        slopes.append((ends[0] - ends[1]) / 2e-6)
    assert float((found * direction).sum()) == pytest.approx(slopes[0], rel=1e-5)
    assert slopes[1] != pytest.approx(slopes[0], rel=1e-2)


def test_without_labels_the_models_own_decision_is_explained(sharp, images):
    top = sharp(images).argmax(1)
    own, others = relevance_maps(sharp, images).maps, relevance_maps(sharp, images, (top + 1) % 10).maps
    assert torch.equal(own, relevance_maps(sharp, images, top).maps)
    assert not torch.allclose(own, others, atol=1e-2)


def test_a_constant_map_has_finite_gradients():
    model = small_vit()
    nn.init.zeros_(model[1].head.weight)  # no token matters to any logit
    loss = (relevance_maps(model, torch.rand(2, 3, 32, 32)).maps - 1).square().mean()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_what_the_head_reads_and_what_is_left_out():
    assert tokens_read(small_vit()) == slice(0, 1)
    assert tokens_read(build("deit_tiny_distilled_patch16_224")) == slice(0, 2)
    assert tokens_read(Beit(**TINY)) == slice(1, None)
    if TIMM1:
        assert tokens_read(VisionTransformer(**TINY, reg_tokens=3)) == slice(0, 1)
        assert tokens_read(VisionTransformer(**TINY, class_token=False, global_pool="avg")) == slice(0, None)


def others() -> dict[str, nn.Module]:
    """Encoders with other tokens than a ViT's, of 16 patches, that read their tokens as tokens_read says."""
    torch.manual_seed(0)
    models = {"beit": Beit(**TINY)}
    if TIMM1:
        models["registers"] = VisionTransformer(**TINY, reg_tokens=3)
        models["pooled"] = VisionTransformer(**TINY, class_token=False, global_pool="avg", fc_norm=False)
    else:
        models["distilled"] = VisionTransformer(**TINY, distilled=True)
    return models


@pytest.mark.parametrize("name", others())
def test_rows_and_columns_of_other_transformers(name):
    """The same rows from the whole product, by the model's own names of its tokens."""
    model = others()[name].double()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.mul_(20)
        model.head.weight.normal_()
        if name == "distilled":
            model.head_dist.weight.normal_()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    rows, patches = {
        "beit": ([*range(1, 17)], slice(1, 17)),
        "registers": ([0], slice(4, 20)),
        "pooled": ([*range(16)], slice(0, 16)),
        "distilled": ([0, 1], slice(2, 18)),
    }[name]
    model.train()  # no dropout is in it; the distilled one then returns its two heads' logits
    found = relevance_maps(model, images, torch.tensor([1, 2]))
    with attention_maps(model) as maps:
        output = model(images)
        logits = sum(output) / 2 if isinstance(output, tuple) else output
        gradients = torch.autograd.grad(logits[0, 1] + logits[1, 2], list(maps.values()))
    assert torch.allclose(found.logits, logits)
    product = torch.eye(len(maps[0][0, 0]), dtype=torch.float64)
    for layer, gradient in enumerate(gradients):
        product = product + (gradient * maps[layer]).clamp(min=0).mean(1) @ product
    expected = upscaled(product[:, rows, patches].mean(1).view(2, 1, 4, 4), (32, 32))
    assert torch.allclose(found.maps, expected, atol=1e-9)
    assert expected.std() > 0.05


def test_the_model_is_as_before_and_frozen_ones_are_explained_alike(sharp, images):
    before = [(module.training, len(module._forward_hooks)) for module in sharp.modules()]
    expected = relevance_maps(sharp, images).maps
    with frozen(sharp), torch.no_grad():
        assert torch.equal(relevance_maps(sharp, images).maps, expected)
    for parameter in sharp[1].blocks[:2].parameters():
        parameter.requires_grad_(False)
    assert torch.equal(relevance_maps(sharp, images).maps, expected)
    assert [(module.training, len(module._forward_hooks)) for module in sharp.modules()] == before
    assert all(parameter.grad is None for parameter in sharp.parameters())


@pytest.mark.skipif(not TIMM1, reason="timm 0.5.4's ViT has no checkpointing")
def test_gradient_checkpointing_is_off_meanwhile(sharp, images):
    expected = relevance_maps(sharp, images).maps
    sharp[1].set_grad_checkpointing()
    sharp.train()
    assert torch.equal(relevance_maps(sharp, images).maps, expected)
    assert sharp[1].grad_checkpointing


def test_half_precision_gives_maps_in_float32(images):
    model, images, labels = small_vit().eval(), images.float(), torch.tensor([3, 0, 9])
    expected = relevance_maps(model, images, labels).maps
    with torch.autocast("cpu", torch.bfloat16):
        found = relevance_maps(model, images, labels).maps
    assert found.dtype == torch.float32
    assert found.amin((1, 2, 3)).tolist() == [0, 0, 0]
    assert found.amax((1, 2, 3)).tolist() == [1, 1, 1]
    assert not torch.equal(found, expected)
    assert all(torch.corrcoef(torch.stack(pair).flatten(1))[0, 1] > 0.8 for pair in zip(found, expected, strict=True))


def test_models_that_cannot_be_read_are_refused():
    with pytest.raises(ModelError, match="no blocks whose attention can be read"):
        relevance_maps(build("swin_micro_patch2_32"), torch.rand(1, 3, 32, 32))


@pytest.mark.skipif(not TIMM1, reason="timm 0.5.4 has no patch dropout")
def test_dropped_patches_have_no_place_in_the_image():
    with pytest.raises(ModelError, match="one token for each patch of an image of 32x32, found 8 tokens"):
        relevance_maps(VisionTransformer(**TINY, patch_drop_rate=0.5).train(), torch.rand(1, 3, 32, 32))
