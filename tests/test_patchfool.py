"""PatchFool against a plain version of the published algorithm, and its promises one by one."""

from __future__ import annotations

import inspect

import pytest
import torch
from conftest import load_script, small_vit
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ns_easyrobust.errors import DataError, ModelError, OptionError
from ns_easyrobust.patchfool import PatchFoolConfig, patchfool
from ns_easyrobust.vit import with_normalization

plain_patchfool = load_script("plain_patchfool").plain_patchfool
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def deep_vit(**options) -> nn.Sequential:
    """Six blocks on 32-pixel images, four of them with attention to raise or read, in float64."""
    torch.manual_seed(1)
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=6, num_heads=2, num_classes=7, **options)
    for parameter in vit.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)  # attention that is not uniform
    return with_normalization(vit, MEAN, STD).double().eval()


@pytest.fixture(scope="module")
def model():
    return deep_vit()


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(4, 3, 32, 32, generator=generator, dtype=torch.float64)
    return pixels, torch.tensor([0, 3, 6, 1])


def changed_patches(before, after):
    """(B, 16) whether a patch of 8 x 8 pixels differs."""
    return nn.functional.max_pool2d((after != before).double().amax(1), 8).flatten(1) > 0


@pytest.mark.parametrize("patches", [1, 2])
@pytest.mark.parametrize(("norm", "epsilon"), [("none", 0.0), ("linf", 16 / 255), ("l2", 0.7)])
@pytest.mark.parametrize("loss", ["attention", "ce"])
@pytest.mark.parametrize("mode", ["official", "exact"])
def test_equals_the_plain_algorithm(model, data, mode, loss, norm, epsilon, patches):
    # A large weight lets the attention loss and its projection matter within a few steps.
    config = PatchFoolConfig(
        mode=mode, loss=loss, norm=norm, epsilon=epsilon, patches=patches, steps=6, alpha=0.5, decay_steps=2
    )
    ours = patchfool(model, *data, config, seeds=[3, 1, 4, 1])
    theirs = plain_patchfool(model, *data, config, seeds=[3, 1, 4, 1])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    assert changed_patches(data[0], ours).sum(1).tolist() == [patches] * 4


@pytest.mark.parametrize("select", ["attention", "saliency", "random"])
def test_chooses_the_patches_of_the_plain_algorithm(model, data, select):
    config = PatchFoolConfig(select=select, steps=1, loss="ce", patches=3, layer=2)
    chosen = changed_patches(data[0], patchfool(model, *data, config, seeds=range(4)))
    assert torch.equal(chosen, changed_patches(data[0], plain_patchfool(model, *data, config, seeds=range(4))))
    assert chosen.sum(1).tolist() == [3, 3, 3, 3]


def test_the_attention_loss_and_both_projections_make_a_difference(model, data):
    def attacked(**options):
        return patchfool(model, *data, PatchFoolConfig(steps=6, **options), seeds=range(4))

    plain = attacked(loss="ce")
    assert not torch.allclose(attacked(alpha=0.5), plain)
    assert torch.allclose(attacked(alpha=0.0), plain)
    assert not torch.allclose(attacked(alpha=0.5), attacked(alpha=0.5, mode="exact"))


def test_exact_mode_takes_each_image_by_itself(model, data):
    pixels, labels = data
    config = PatchFoolConfig(mode="exact", steps=8, alpha=0.5, patches=2)
    together = patchfool(model, pixels, labels, config, seeds=range(4))
    for i in range(4):
        alone = patchfool(model, pixels[i : i + 1], labels[i : i + 1], config, seeds=[i])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-5)
    official = PatchFoolConfig(steps=8, alpha=0.5)
    alone = patchfool(model, pixels[:1], labels[:1], official, seeds=[0])
    assert not torch.allclose(patchfool(model, pixels, labels, official, seeds=range(4))[:1], alone, atol=1e-5)


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 8 / 255), ("l2", 0.5)])
def test_radii_hold_in_pixels(model, data, norm, epsilon):
    config = PatchFoolConfig(norm=norm, epsilon=epsilon, steps=10, patches=2)
    change = patchfool(model, *data, config) - data[0]
    largest = change.abs().amax() if norm == "linf" else change.flatten(2).norm(dim=2).amax()
    assert 0.5 * epsilon < largest <= epsilon + 1e-9


def test_the_model_is_left_as_it_was(model, data):
    model = deep_vit()
    model.train()
    model[1].blocks[2].eval()
    model[1].head.weight.requires_grad_(False)
    model[1].head.bias.grad = torch.ones(7, dtype=torch.float64)

    def state():
        return [
            *(
                (m.training, len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m))
                for m in model.modules()
            ),
            *((p.requires_grad, p.grad is None) for p in model.parameters()),
            *(getattr(block.attn, "fused_attn", None) for block in model[1].blocks),
        ]

    before, weights = state(), {name: value.clone() for name, value in model.state_dict().items()}
    result = patchfool(model, *data, PatchFoolConfig(steps=2))
    assert state() == before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert 0 <= result.min() <= result.max() <= 1
    assert not result.requires_grad


def test_fools_a_model_that_reads_digits(trained, digits):
    images, labels = digits[0][1297:1361], digits[1][1297:1361]

    def right(**options):
        config = PatchFoolConfig(loss="ce", layer=1, steps=40, **options)
        with torch.no_grad():
            return float((trained(patchfool(trained, images, labels, config)).argmax(1) == labels).float().mean())

    with torch.no_grad():
        clean = float((trained(images).argmax(1) == labels).float().mean())
    bounded = right(norm="linf", epsilon=32 / 255)
    assert right() < bounded < clean
    assert right(patches=2, norm="linf", epsilon=32 / 255) < bounded


@pytest.mark.parametrize(("argument", "value"), [("distilled", True), ("reg_tokens", 4)])
def test_prefix_tokens_are_not_patches(argument, value, data):
    if argument not in inspect.signature(VisionTransformer).parameters:
        pytest.skip(f"this timm's VisionTransformer has no {argument}")
    options = {argument: value}
    model = deep_vit(**options)
    config = PatchFoolConfig(steps=3, alpha=0.5)
    ours = patchfool(model, *data, config, seeds=range(4))
    torch.testing.assert_close(ours, plain_patchfool(model, *data, config, seeds=range(4)), rtol=0, atol=1e-9)


def test_what_does_not_fit_is_refused(trained, model, data):
    pixels, labels = data
    with pytest.raises(DataError, match=r"expected pixels in \[0, 1\]"):
        patchfool(model, 2 * pixels, labels)
    with pytest.raises(OptionError, match="at most the image's 16, found 17"):
        patchfool(model, pixels, labels, PatchFoolConfig(patches=17))
    with pytest.raises(OptionError, match="one seed for each of 4 images"):
        patchfool(model, pixels, labels, seeds=[1])
    with pytest.raises(ModelError, match="a block 4 to choose patches by, found 3 blocks"):
        patchfool(trained.double(), pixels, labels)
    with pytest.raises(ModelError, match="at least 4 blocks"):
        patchfool(trained, pixels, labels, PatchFoolConfig(layer=0))
    swin = small_vit(arch="swin_micro_patch2_32").double()
    with pytest.raises(ModelError, match="no blocks whose attention can be read"):
        patchfool(swin, pixels, labels)
    by_saliency = PatchFoolConfig(select="saliency", loss="ce", steps=2)
    assert not torch.equal(patchfool(swin, pixels, labels % 10, by_saliency), pixels)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"mode": "fast"}, "expected one of official, exact"),
        ({"norm": "linf"}, "expected epsilon > 0"),
        ({"epsilon": 0.1}, "expected epsilon 0 with norm 'none'"),
        ({"norm": "linf", "epsilon": 8}, "Divide by 255"),
        ({"steps": 0}, "at least 1, found 0"),
        ({"lr": 0.0}, "lr > 0"),
    ],
)
def test_settings_are_checked(options, told):
    with pytest.raises(OptionError, match=told):
        PatchFoolConfig(**options)
