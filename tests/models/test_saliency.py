"""Saliency by hand, by the package grad-cam, image by image, and under exact nullspace noise."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from helpers.models import matrix_of, numpy_patches, small_vit, unequal
from scipy.linalg import null_space
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ns_easyrobust.errors import DataError, ModelError, OptionError
from ns_easyrobust.models.architectures import build
from ns_easyrobust.models.attention import attention_maps
from ns_easyrobust.models.saliency import (
    SALIENCY_METHODS,
    Gradients,
    all_saliency_maps,
    attention_grad_cam_map,
    attention_map,
    grad_cam_map,
    rollout_map,
    saliency_maps,
)

TIMM1 = not timm.__version__.startswith("0.")
IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def sharpened(model: nn.Module) -> nn.Module:
    """Its attention is far from uniform, and its logits differ."""
    with torch.no_grad():
        for block in model[1].blocks:
            block.attn.qkv.weight.mul_(20)
            block.attn.proj.weight.mul_(5)
    return model.double().eval()


@pytest.fixture(scope="module")
def sharp() -> nn.Module:
    return sharpened(small_vit())


def by_hand(**more) -> SimpleNamespace:
    """A class token and one patch, two blocks, two heads in the first."""
    attentions = [
        torch.tensor([[[[0.5, 0.5], [0.2, 0.8]], [[0.9, 0.1], [0.4, 0.6]]]], dtype=torch.float64),
        torch.tensor([[[[0.25, 0.75], [1.0, 0.0]]]], dtype=torch.float64),
    ]
    readout = torch.tensor([1.0, 0.0], dtype=torch.float64)
    return SimpleNamespace(
        **{"attentions": attentions, "readout": readout, "prefix": 1, "dtype": torch.float64, "model": None, **more}
    )


def test_rollout_and_raw_attention_of_two_tokens_by_hand():
    # means [[.7, .3], [.3, .7]] and [[.25, .75], [1, 0]]; with I, halved: [[.85, .15], [.15, .85]], [[.625, .375], ...]
    assert rollout_map(by_hand()).tolist() == [pytest.approx([0.625 * 0.15 + 0.375 * 0.85])]
    assert attention_map(by_hand()).tolist() == [pytest.approx([0.75])]
    both = by_hand(readout=torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert rollout_map(both).tolist() == [pytest.approx([(0.41250 + 0.5 * 0.15 + 0.5 * 0.85) / 2])]


def test_rows_that_do_not_add_up_to_1_are_divided_by_their_sums():
    run = by_hand()
    run.attentions = [3 * each for each in run.attentions]
    one, other = np.array([[3.1, 0.9], [0.9, 3.1]]) / 4, np.array([1.75, 2.25]) / 4
    assert rollout_map(run).tolist() == [pytest.approx([(other @ one)[1]])]


def test_grad_cam_on_heads_by_hand(monkeypatch):
    # of heads with attention (.1, .3) and (.4, .2), mean gradients -1 and 2: (-.1 + .8, -.3 + .4) / 2; negative: 0
    attention = torch.zeros(2, 2, 3, 3, dtype=torch.float64)
    attention[:, :, 0, 1:] = torch.tensor([[[0.1, 0.3], [0.4, 0.2]], [[0.1, 0.3], [0.04, 0.2]]])
    gradient = torch.full((2, 2, 3, 3), 9.0, dtype=torch.float64)
    gradient[:, :, 0, 1:] = torch.tensor([[[-3, 1], [0, 4]]])
    monkeypatch.setattr("ns_easyrobust.models.saliency.tokens_read", lambda model: slice(0, 1))
    found = attention_grad_cam_map(by_hand(attentions=[attention], gradients=Gradients((gradient,), ())))
    assert found.tolist() == [pytest.approx([0.35, 0.05]), pytest.approx([0, 0.05])]


def test_grad_cam_of_features_by_hand(monkeypatch):
    # mean gradients of two channels (2, -1); patches (3, 1) and (1, 4): 6 - 1 and 2 - 4, of which relu leaves 0
    features = torch.tensor([[[9.0, 9.0], [3.0, 1.0], [1.0, 4.0]]], dtype=torch.float64)
    gradient = torch.tensor([[[70.0, 70.0], [1.0, -3.0], [3.0, 1.0]]], dtype=torch.float64)
    run = by_hand(attentions=[torch.zeros(1, 1, 3, 3)], norms=[features], gradients=Gradients((), (gradient,)))
    assert grad_cam_map(run).tolist() == [pytest.approx([5, 0])]


@pytest.mark.stress  # the package takes seconds to import
def test_grad_cam_is_the_package_s(sharp):
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    labels = [3, 0, 9]
    found = saliency_maps(sharp, IMAGES, "grad-cam", torch.tensor(labels))
    package = GradCAM(
        sharp, [sharp[1].blocks[-1].norm1], lambda tokens: tokens[:, 1:].transpose(1, 2).reshape(-1, 64, 4, 4)
    )
    expected = package(IMAGES, [ClassifierOutputTarget(label) for label in labels])
    package.activations_and_grads.release()
    np.testing.assert_allclose(found.maps[:, 0], expected, atol=2e-5)
    assert expected.std() > 0.1
    torch.testing.assert_close(found.logits, sharp(IMAGES).detach())


def test_maps_are_on_the_grid_and_the_methods_differ(sharp):
    found = all_saliency_maps(sharp, IMAGES, SALIENCY_METHODS)
    assert list(found) == ["attention", "rollout", "grad-cam", "attention-grad-cam", "chefer"]
    for method, saliency in found.items():
        assert saliency.maps.shape == (3, 1, 32, 32)
        assert saliency.tokens.shape == (3, 4, 4)
        assert (saliency.maps.amin((1, 2, 3)).tolist(), saliency.maps.amax((1, 2, 3)).tolist()) == ([0] * 3, [1] * 3)
        coarse = saliency.maps[:, 0, 3:29:8, 3:29:8].flatten(1)  # next to the centres of patches
        assert all(np.corrcoef(*pair)[0, 1] > 0.9 for pair in zip(coarse, saliency.tokens.flatten(1), strict=True))
        alone = saliency_maps(sharp, IMAGES, method)
        assert torch.equal(alone.tokens, saliency.tokens)
        assert all(not torch.allclose(saliency.tokens, other.tokens) for name, other in found.items() if name != method)


@pytest.mark.parametrize("method", SALIENCY_METHODS)
def test_images_of_a_batch_do_not_influence_each_other(sharp, method):
    together = saliency_maps(sharp, IMAGES, method)
    for number in range(3):
        alone = saliency_maps(sharp, IMAGES[number : number + 1], method)
        torch.testing.assert_close(alone.tokens[0], together.tokens[number], rtol=1e-9, atol=1e-12)
    assert not torch.allclose(together.tokens[0], together.tokens[1], rtol=1e-2)


def test_exact_nullspace_noise_leaves_all_token_level_maps_and_other_noise_does_not():
    model = sharpened(unequal())
    basis = null_space(matrix_of(model, "pixel"), rcond=1e-10)
    generator = np.random.default_rng(0)
    patches = generator.standard_normal((3, 16, basis.shape[1])) @ basis.T
    patches *= 0.2 / patches.std()
    noise = patches.reshape(3, 4, 4, 3, 8, 8).transpose(0, 3, 1, 4, 2, 5).reshape(3, 3, 32, 32)
    np.testing.assert_allclose(numpy_patches(noise), patches)
    permuted = torch.tensor(generator.permuted(patches, axis=2)).view(3, 4, 4, 3, 8, 8)
    permuted = permuted.permute(0, 3, 1, 4, 2, 5).reshape(3, 3, 32, 32)
    clean, noisy, other = (
        all_saliency_maps(model, images, SALIENCY_METHODS)
        for images in (IMAGES, IMAGES + torch.tensor(noise), IMAGES + permuted)
    )
    for method in SALIENCY_METHODS:
        before, after, moved = (found[method].tokens for found in (clean, noisy, other))
        scale = float(before.abs().max())
        assert float((before - after).abs().max()) < 1e-6 * scale
        assert float((before - moved).abs().max()) > 1e-2 * scale


@pytest.mark.parametrize("method", SALIENCY_METHODS)
def test_the_label_is_explained_and_without_one_the_models_own_decision(sharp, method):
    top = sharp(IMAGES).argmax(1)
    own = saliency_maps(sharp, IMAGES, method).tokens
    assert torch.equal(own, saliency_maps(sharp, IMAGES, method, top).tokens)
    others = saliency_maps(sharp, IMAGES, method, (top + 1) % 10).tokens
    assert torch.equal(own, others) == (method in ("attention", "rollout"))


def state_of(model: nn.Module) -> list[tuple[bool, int, int]]:
    return [(part.training, len(part._forward_hooks), len(part._forward_pre_hooks)) for part in model.modules()]


def test_the_model_is_as_before():
    model = small_vit().train()
    model[1].pos_drop.p = 0.5
    before = state_of(model)
    with torch.no_grad():
        found = all_saliency_maps(model, IMAGES.float(), SALIENCY_METHODS)
    assert state_of(model) == before
    with pytest.raises(DataError, match="labels"):
        all_saliency_maps(model, IMAGES.float(), ["grad-cam"], torch.tensor([3, 0, 10]))
    assert state_of(model) == before
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    again = all_saliency_maps(model.eval(), IMAGES.float(), SALIENCY_METHODS)  # maps are of eval mode
    assert all(torch.equal(again[method].tokens, found[method].tokens) for method in found)
    assert not any(saliency.maps.requires_grad or saliency.logits.requires_grad for saliency in found.values())


@pytest.mark.parametrize("method", SALIENCY_METHODS)
def test_a_graph_goes_no_farther_back_than_a_method_needs(sharp, method):
    entered = []
    handles = [
        block.register_forward_pre_hook(lambda module, args: entered.append(args[0])) for block in sharp[1].blocks
    ]
    alone = saliency_maps(sharp, IMAGES, method)
    for handle in handles:
        handle.remove()
    has_graph = [tokens.grad_fn is not None for tokens in entered]
    assert has_graph == [method == "chefer"] * len(entered)
    together = all_saliency_maps(sharp, IMAGES, ["chefer", method])[method]
    torch.testing.assert_close(alone.tokens, together.tokens, rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", SALIENCY_METHODS)
def test_inference_mode_changes_nothing(sharp, method):
    labels = torch.tensor([3, 0, 9])
    expected = saliency_maps(sharp, IMAGES, method, labels)
    with torch.inference_mode():
        found = saliency_maps(sharp, IMAGES.clone(), method, labels.clone())
    assert torch.equal(found.tokens, expected.tokens)


@pytest.mark.parametrize("method", SALIENCY_METHODS)
def test_maps_are_float32_or_finer_whatever_the_forward_is_in(method):
    model, images = sharpened(unequal()).float(), IMAGES.float()
    plain = saliency_maps(model, images, method)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = saliency_maps(model, images, method, plain.logits.argmax(1))
    half = saliency_maps(model.half(), images.half(), method, plain.logits.argmax(1))
    for coarse, dtype in ((mixed, torch.bfloat16), (half, torch.float16)):
        assert (coarse.maps.dtype, coarse.tokens.dtype, coarse.logits.dtype) == (torch.float32, torch.float32, dtype)
        assert coarse.tokens.isfinite().all()
        pairs = zip(coarse.tokens.flatten(1), plain.tokens.flatten(1), strict=True)
        if method in ("attention", "rollout"):  # the others' gradients differ more here
            assert all(np.corrcoef(*pair)[0, 1] > 0.9 for pair in pairs)
        assert not torch.equal(coarse.tokens, plain.tokens)


def others() -> dict[str, tuple[nn.Module, list[int], slice]]:
    torch.manual_seed(0)
    tiny = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    if TIMM1:
        return {
            "registers": (VisionTransformer(**tiny, reg_tokens=3), [0], slice(4, 20)),
            "pooled": (VisionTransformer(**tiny, class_token=False, global_pool="avg"), [*range(16)], slice(0, 16)),
        }
    return {"distilled": (VisionTransformer(**tiny, distilled=True), [0, 1], slice(2, 18))}


@pytest.mark.parametrize("name", others())
def test_rows_of_other_transformers(name):
    model, rows, patches = others()[name]
    model = model.double().eval()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.mul_(20)
    found = all_saliency_maps(model, IMAGES, [method for method in SALIENCY_METHODS if method != "chefer"])
    with attention_maps(model) as maps, torch.no_grad():
        model(IMAGES)
    product = torch.eye(len(maps[0][0, 0]), dtype=torch.float64)
    for attention in maps.values():
        product = (attention.mean(1) + torch.eye(len(product[0]), dtype=torch.float64)) / 2 @ product
    torch.testing.assert_close(found["rollout"].tokens.flatten(1), product[:, rows, patches].mean(1))
    torch.testing.assert_close(found["attention"].tokens.flatten(1), maps[1][:, :, rows, patches].mean((1, 2)))
    assert all(float(found[method].tokens.std()) > 0 for method in ("grad-cam", "attention-grad-cam"))


def test_unknown_methods_and_other_models_are_refused(sharp):
    with pytest.raises(OptionError, match=r"saliency: expected one of attention, rollout, .*, found lime"):
        saliency_maps(sharp, IMAGES, "lime")
    with pytest.raises(ModelError, match="no blocks whose attention can be read"):
        saliency_maps(build("swin_micro_patch2_32"), IMAGES.float(), "rollout")
    model = small_vit()
    model[1].blocks[-1].norm1 = nn.Sequential(nn.LayerNorm(64), nn.Identity())
    assert saliency_maps(model, IMAGES.float(), "grad-cam").tokens.shape == (3, 4, 4)
    del model[1].blocks[-1].norm1
    model[1].blocks[-1].forward = lambda tokens: tokens + model[1].blocks[-1].attn(tokens)
    with pytest.raises(ModelError, match="expected a norm1 of all tokens in front of the last attention"):
        saliency_maps(model, IMAGES.float(), "grad-cam")
