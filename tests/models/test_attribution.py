"""LRP against contributions written out in numpy, its rules against numbers by hand, and what it refuses."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from scipy.special import erf
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ns_easyrobust.errors import ModelError
from ns_easyrobust.models.attention import attention_maps
from ns_easyrobust.models.attribution import (
    linear_relevance,
    product_relevance,
    propagated_relevance,
    recorded_layers,
    sum_relevance,
)
from ns_easyrobust.models.saliency import Gradients, chefer_map, saliency_maps

TIMM1 = not timm.__version__.startswith("0.")
SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2, "num_classes": 5}


def float64(*values) -> list[torch.Tensor]:
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def test_a_linear_layer_by_hand():
    # w x = (1 - 2 + 6, -3 - 4 - 2) with x = (1, -2, 2): positive contributions (1, 0, 6) and none
    inputs, weight, relevance = float64([1, -2, 2], [[1, 1, 3], [-3, 2, -1]], [7, 5])
    assert linear_relevance(relevance, inputs, weight).tolist() == pytest.approx([1, 0, 6])
    # negative times negative is positive: (0, -2 * -1, 2 * 2) to the second output
    weight[1] = torch.tensor([-3, -1, 2])
    assert linear_relevance(relevance, inputs, weight).tolist() == pytest.approx([1, 5 / 3, 6 + 10 / 3])


def test_attention_of_two_tokens_by_hand():
    # A V = (.25 * 4 + .75 * 8, .5 * 4 + .5 * 8) = (7, 6) with relevances 7 and 12, each halved
    weights, value, relevance = float64([[[0.25, 0.75], [0.5, 0.5]]], [[[4], [8]]], [[[7], [12]]])
    of_weights, of_value = product_relevance(relevance, weights, value)
    assert of_weights[0].tolist() == [pytest.approx([0.5, 3]), pytest.approx([2, 4])]
    assert of_value[0].tolist() == [pytest.approx([2.5]), pytest.approx([7])]


def test_a_sum_by_hand_and_image_by_image():
    # shares 3 : 1 and 1 : -2, of relevances 4 and 1: (3, -1) and (1, 2); sums 2 and 3 of a total of 5
    one, other, relevance = float64([[[3, 1]]], [[[1, -2]]], [[[4, 1]]])
    first, second = sum_relevance(relevance, one, one + other)
    assert first.flatten().tolist() == pytest.approx([3, -1])
    assert second.flatten().tolist() == pytest.approx([1, 2])
    # shares 3 : -1 and 1 : 1, of relevances 1 and 1: (1.5, .5) and (-.5, .5); sums 2 and 0, which 0 keeps
    first, second = sum_relevance(*float64([[[1, 1]], [[4, 1]]], [[[3, 1]], [[3, 1]]], [[[2, 2]], [[4, -1]]]))
    assert first[0].flatten().tolist() == pytest.approx([1.5, 0.5])
    assert second[1].flatten().tolist() == pytest.approx([1, 2])
    # sums -1 and 3 of a total of 2: rescaled to 1/4 and 3/4 of it
    first, second = sum_relevance(*float64([[[1, 1]]], [[[-1, 0]]], [[[1, 2]]]))
    assert first.flatten().tolist() == pytest.approx([0.5, 0])
    assert second.flatten().tolist() == pytest.approx([1, 0.5])


def shares(contributions: np.ndarray, axis: int, relevance: np.ndarray) -> np.ndarray:
    total = contributions.sum(axis, keepdims=True)
    return np.divide(contributions, total, out=np.zeros_like(contributions), where=total != 0) * relevance


def linear(x: np.ndarray, layer: nn.Linear, relevance: np.ndarray) -> np.ndarray:
    contributions = np.maximum(x[:, :, None] * layer.weight.detach().numpy().T, 0)
    return shares(contributions, 1, relevance[:, None]).sum(2)


def product(left: np.ndarray, right: np.ndarray, relevance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found = shares(left[:, :, None] * right[None], 1, relevance[:, None]) / 2
    return found.sum(2), found.sum(0)


def added(one: np.ndarray, other: np.ndarray, relevance: np.ndarray) -> list[np.ndarray]:
    terms = [one / (one + other) * relevance, other / (one + other) * relevance]
    sums = [term.sum() for term in terms]
    whole = abs(sums[0]) + abs(sums[1])
    return [term * abs(own) / whole * relevance.sum() / own for term, own in zip(terms, sums, strict=True)]


def in_numpy(vit: nn.Module, tokens: np.ndarray, label: int, places: list[int]) -> list[np.ndarray]:
    """R_A of each block for one image's tokens (N, D), with a forward of its own."""

    def norm(x, layer):
        if not isinstance(layer, nn.LayerNorm):
            return x
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + layer.eps)
        return scaled * layer.weight.detach().numpy() + layer.bias.detach().numpy()

    def apply(x, layer):
        return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()

    kept = []
    for block in vit.blocks:
        normed, heads = norm(tokens, block.norm1), block.attn.num_heads
        query, key, value = apply(normed, block.attn.qkv).reshape(len(tokens), 3, heads, -1).transpose(1, 2, 0, 3)
        scores = np.exp(query @ key.transpose(0, 2, 1) / np.sqrt(query.shape[-1]))
        attention = scores / scores.sum(-1, keepdims=True)
        mixed = (attention @ value).transpose(1, 0, 2).reshape(len(tokens), -1)
        branch = apply(mixed, block.attn.proj)
        between = tokens + branch
        hidden = apply(norm(between, block.norm2), block.mlp.fc1)
        active = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
        last = apply(active, block.mlp.fc2)
        kept.append((tokens, normed, query, key, value, attention, mixed, branch, between, active, last))
        tokens = between + last
    tokens = norm(tokens, vit.norm)
    read = tokens[places].mean(0)
    read = norm(read, getattr(vit, "fc_norm", None))
    chosen = np.eye(vit.num_classes)[label]
    features = linear(read[None], vit.head, chosen[None])[0]
    relevance = np.zeros_like(tokens)
    relevance[places] = shares(tokens[places], 0, features)
    found = []
    for block, parts in zip(reversed(vit.blocks), reversed(kept), strict=True):
        tokens, normed, query, key, value, attention, mixed, branch, between, active, last = parts
        stays, rest = added(between, last, relevance)
        relevance = stays + linear(norm(between, block.norm2), block.mlp.fc1, linear(active, block.mlp.fc2, rest))
        stays, rest = added(tokens, branch, relevance)
        rest = linear(mixed, block.attn.proj, rest).reshape(len(tokens), len(query), -1).transpose(1, 0, 2)
        heads = []
        for head in range(len(query)):
            of_attention, of_value = product(attention[head], value[head], rest[head])
            of_query, of_key = product(query[head], key[head].T, of_attention)
            heads.append((of_attention, of_query, of_key.T, of_value))
        of_qkv = np.concatenate([np.concatenate(part, 1) for part in list(zip(*heads, strict=True))[1:]], 1)
        relevance = stays + linear(normed, block.attn.qkv, of_qkv)
        found.insert(0, np.stack([head[0] for head in heads]))
    return found


def models() -> dict[str, tuple[nn.Module, list[int], int]]:
    """Each with the tokens that its head reads, and how many there are before the patches'."""
    made = {"plain": (VisionTransformer(**SMALL), [0], 1)}
    if TIMM1:
        made["registers"] = (VisionTransformer(**SMALL, reg_tokens=2), [0], 3)
        made["pooled"] = (VisionTransformer(**SMALL, class_token=False, global_pool="avg"), [0, 1, 2, 3], 0)
    for model, _, _ in made.values():
        torch.manual_seed(3)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.4)
    return {name: (model.double().eval(), places, prefix) for name, (model, places, prefix) in made.items()}


IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([3, 1])


@pytest.mark.parametrize("name", models())
def test_the_whole_propagation_and_chefer_s_rule_in_numpy(name):
    vit, places, prefix = models()[name]
    entered = []
    handle = vit.blocks[0].register_forward_pre_hook(lambda module, args: entered.append(args[0].detach().numpy()))
    with attention_maps(vit) as maps, recorded_layers(vit) as calls:
        logits = vit(IMAGES)
    handle.remove()
    found = propagated_relevance(vit, calls, logits, LABELS)
    gradients = torch.autograd.grad(logits.gather(1, LABELS[:, None]).sum(), list(maps.values()))
    for image in range(2):
        expected = in_numpy(vit, entered[0][image], int(LABELS[image]), places)
        whole = np.eye(len(expected[0][0]))
        for layer, own in enumerate(expected):
            np.testing.assert_allclose(found.attentions[layer][image], own, rtol=1e-5, atol=1e-6 * np.abs(own).max())
            whole = whole + np.maximum(gradients[layer][image].numpy() * own, 0).mean(0) @ whole
        tokens = saliency_maps(vit, IMAGES, "chefer", LABELS).tokens[image]
        row = whole[places, prefix:].mean(0)
        np.testing.assert_allclose(tokens.flatten(), row, rtol=1e-5)
        # what patches have in common, as the identity's share of a mean, must not hide how they differ
        np.testing.assert_allclose(tokens.flatten() - row.min(), row - row.min(), atol=1e-4 * np.ptp(row))
        assert np.ptp(row) > 1e-4 * row.max()
    assert found.tokens.sum((1, 2)).tolist() == pytest.approx([1, 1], rel=1e-4)  # what the logit's relevance is


@pytest.mark.skipif(not TIMM1, reason="timm 0.5.4's ViT has no LayerScale")
def test_layer_scale_is_as_if_folded_into_the_weights():
    scaled = VisionTransformer(**SMALL, init_values=0.5).double().eval()
    folded = VisionTransformer(**SMALL).double().eval()
    for name, parameter in scaled.named_parameters():
        nn.init.uniform_(parameter, 0.3, 3) if name.endswith("gamma") else nn.init.normal_(parameter, std=0.4)
    state = scaled.state_dict()
    for block in range(2):
        for scale, layer in (("ls1", "attn.proj"), ("ls2", "mlp.fc2")):
            gamma = state.pop(f"blocks.{block}.{scale}.gamma")
            state[f"blocks.{block}.{layer}.weight"] = gamma[:, None] * state[f"blocks.{block}.{layer}.weight"]
            state[f"blocks.{block}.{layer}.bias"] = gamma * state[f"blocks.{block}.{layer}.bias"]
    folded.load_state_dict(state)
    one, other = (saliency_maps(model, IMAGES, "chefer", LABELS).tokens for model in (scaled, folded))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-9)
    assert one.std() > 1e-4


def changed(change, **options) -> nn.Module:
    model = VisionTransformer(**SMALL, **options).eval()
    change(model)
    return model


def post_norm(block: nn.Module) -> None:
    block.forward = lambda x: (lambda y: y + block.norm2(block.mlp(y)))(x + block.norm1(block.attn(x)))


REFUSED = {
    "one linear head": lambda: changed(lambda vit: setattr(vit, "head", nn.Identity())),
    "whose layers are in another order": lambda: changed(lambda vit: post_norm(vit.blocks[1])),
    "Identity as mlp and norm2": lambda: changed(lambda vit: setattr(vit.blocks[1], "norm2", nn.Identity())),
    "Sequential and LayerNorm as mlp": lambda: changed(
        lambda vit: setattr(vit.blocks[0], "mlp", nn.Sequential(nn.Linear(12, 12)))
    ),
    "found q_norm between": lambda: changed(lambda vit: setattr(vit.blocks[0].attn, "q_norm", nn.LayerNorm(6))),
    "a head that reads something else": lambda: changed(
        lambda vit: vit.head.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    ),
    "which does not call its Linear": lambda: Beit(**SMALL).eval(),
}
if not TIMM1:
    REFUSED["as of two heads"] = lambda: VisionTransformer(**SMALL, distilled=True).eval()


@pytest.mark.parametrize("message", REFUSED)
def test_other_transformers_are_refused_in_one_line(message):
    with pytest.raises(ModelError, match=message) as error:
        saliency_maps(REFUSED[message](), IMAGES.float(), "chefer")
    assert "\n" not in str(error.value)


def test_the_rule_takes_relevance_in_place_of_attention(monkeypatch):
    # one head, two tokens: I + relu(dA * R_A) = [[1, .5 * .2], [0, 1 + 2]], then [[1 + .3, 0], [.4, 1]] on its left
    relevance = float64([[[[0.1, 0.2], [-1, 1]]]], [[[[0.3, -0.1], [0.4, 0]]]])
    gradients = float64([[[[-3, 0.5], [1, 2]]]], [[[[1, 1], [1, 5]]]])
    monkeypatch.setattr(
        "ns_easyrobust.models.saliency.propagated_relevance", lambda *_: SimpleNamespace(attentions=relevance)
    )
    run = SimpleNamespace(
        model=None,
        calls=None,
        logits=None,
        labels=None,
        gradients=Gradients(gradients, ()),
        prefix=1,
        readout=float64([1, 0])[0],
    )
    assert chefer_map(run).tolist() == [pytest.approx([1.3 * 0.1])]
