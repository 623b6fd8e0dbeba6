from __future__ import annotations

import pytest
import timm
import torch
import torchvision.transforms.functional as F
from helpers.models import forward_by_hand, small_vit
from torch import nn

from ns_easyrobust.errors import ModelError, NoiseError, OptionError
from ns_easyrobust.models.architectures import build
from ns_easyrobust.models.vit import (
    Normalize,
    depends_on_embedding_alone,
    embedding_seen,
    encoder_noise,
    find_normalize,
    find_patch_embed,
    frozen,
    hollow,
    token_shape,
    unwrap,
    with_normalization,
)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_normalize_is_torchvisions(images):
    mean, std = (0.1, 0.5, 0.7), (0.2, 0.3, 0.4)
    ours = Normalize(mean, std)
    assert torch.equal(ours(images), F.normalize(images, mean, std))
    assert {name: buffer.shape for name, buffer in ours.state_dict().items()} == {"mean": (3,), "std": (3,)}


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.5, 0.5)), ((0.5,), (0.0,)), ((0.5,), (float("nan"),))])
def test_normalize_refuses_numbers_that_divide_wrongly(mean, std):
    with pytest.raises(OptionError, match="std > 0"):
        Normalize(mean, std)


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


def test_model_compiled_in_place_is_refused():
    model = small_vit()
    model.compile(backend="eager")
    with pytest.raises(ModelError, match=r"compiled in place.*torch\.compile\(model\)"):
        find_patch_embed(model)


def test_compiled_part_is_refused():
    inner = small_vit()[1]
    with pytest.raises(ModelError, match="lies in a compiled part"):
        find_patch_embed(with_normalization(torch.compile(inner, backend="eager"), (0.5,) * 3, (0.5,) * 3))


def test_models_without_one_patch_embedding_are_refused_by_name():
    with pytest.raises(ModelError, match=r"ResNet has no patch embedding: found conv1.*fits: one patch embedding"):
        find_patch_embed(with_normalization(timm.create_model("resnet18"), (0.5,) * 3, (0.5,) * 3))
    two = nn.ModuleDict({"a": small_vit()[1], "b": small_vit()[1]})
    with pytest.raises(ModelError, match=r"ModuleDict has 2 patch embeddings: found a\.patch_embed, b\.patch_embed"):
        find_patch_embed(two)


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
        with embedding_seen(model) as outputs:
            clean = model(images)
        with encoder_noise(model, value, embedding=outputs[0]):
            assert torch.equal(hooked, model(hollow(images)))
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


def test_class_token_and_position_embedding_are_not_decayed():
    from timm.optim import create_optimizer_v2

    model = small_vit()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.1)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay[id(model[1].cls_token)] == decay[id(model[1].pos_embed)] == 0
    assert decay[id(model[1].head.weight)] == 0.1


@pytest.mark.skipif(not hasattr(small_vit()[1], "group_matcher"), reason="timm 0.5.4 has no layer groups")
def test_layer_groups_of_timm_1_find_every_parameter():
    from timm.models import group_parameters

    model = small_vit()
    ours = group_parameters(model, model.group_matcher())
    inner = group_parameters(model[1], model[1].group_matcher())
    expected = {key: [f"1.{name}" for name in names] for key, names in inner.items()}
    assert ours == expected


def test_normalisation_is_found_by_easyrobusts_names():
    model = small_vit()
    assert find_normalize(model) is model[0]
    assert find_normalize(nn.DataParallel(model)) is model[0]
    assert find_normalize(model[1]) is None


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
        with embedding_seen(model) as outputs, encoder_noise(model, noise):
            expected = model(images)
        with encoder_noise(model, noise, embedding=outputs[0]):
            assert torch.equal(model(hollow(images)), expected)
        assert not torch.equal(model(hollow(images)), expected)  # afterwards the images count again
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
        with embedding_seen(model) as outputs:
            model(images)
        noise = torch.zeros(1, 16, 64)
        with encoder_noise(model, noise, embedding=outputs[0]):
            assert torch.allclose(model(hollow(images)), expected)  # doubled once
        with pytest.raises(NoiseError), encoder_noise(model, noise[:, 1:], embedding=outputs[0]):
            model(images)
        assert torch.equal(model(images), expected)
    assert "forward" not in vars(embedding)
