"""timm's optimizers and its clipping, and what a model's output is trained on."""

from __future__ import annotations

import argparse
import copy
import importlib

import pytest
import timm
import torch
from helpers.models import small_vit
from torch import nn

from ns_easyrobust.errors import ModelError, OptionError
from ns_easyrobust.training.losses import build_mixup_and_loss
from ns_easyrobust.training.optimizer import (
    build_optimizer,
    clip_gradients,
    differentiable_attention,
    is_second_order,
)
from ns_easyrobust.training.options import parse_args

CPU = torch.device("cpu")
OLD = timm.__version__.startswith("0.")
# All names of timm 0.5.4 and, of 1.x, one of each class that it adds.
NAMES = (
    "sgd,nesterov,momentum,sgdp,adam,adamw,adamp,nadam,radam,adamax,adabelief,radabelief,adadelta,adagrad,adafactor,"
    "lamb,lambc,larc,lars,nlarc,nlars,madgrad,madgradw,novograd,rmsprop,rmsproptf,adahessian"
)
NEW = "" if OLD else ",adan,adafactorbv,adopt,lion,laprop,mars,muon,nadamw,cadamw,lookahead_sgd,lookahead_adamw"
REFUSED = "fusedadam,nosuch" + (",lookahead_sgd,lookahead_adamw" if OLD else "")


def flags(*more: str) -> argparse.Namespace:
    return parse_args(["--model", "vit_micro_patch8_32", "--num-classes", "10", "--data-dir", "x", *more])


@pytest.mark.parametrize("name", REFUSED.split(","))
def test_optimizers_that_cannot_step_are_refused_by_name(name):
    with pytest.raises(OptionError, match=f"--opt {name}: expected an optimizer"):
        build_optimizer(flags("--opt", name, "--lr", "1e-3"), small_vit(), CPU)


@pytest.mark.parametrize("name", (NAMES + NEW).split(","))
def test_every_optimizer_steps(name):
    torch.manual_seed(0)
    model, images = small_vit(), torch.rand(4, 3, 32, 32)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    optimizer = build_optimizer(flags("--opt", name, "--lr", "1e-3"), model, CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "tried on another model"
    for _ in range(2):
        optimizer.zero_grad()
        with differentiable_attention(optimizer):
            loss = nn.functional.cross_entropy(model(images), torch.arange(4))
        loss.backward(create_graph=is_second_order(optimizer))
        optimizer.step()
    assert not torch.equal(model[1].head.weight, before["1.head.weight"])


@pytest.mark.parametrize("wrong", [("--opt-betas", "1", "1"), ("--opt", "adahessian", "--opt-betas", "0.9", "1")])
def test_settings_that_an_optimizer_refuses(wrong):
    with pytest.raises(OptionError, match="--opt"):
        build_optimizer(flags(*wrong), small_vit(), CPU)


@pytest.mark.parametrize("mode", ["agc", "norm", "value"])
def test_clipping_as_in_timms_script(mode):
    """By the definitions; adaptive clipping leaves the classifier out (Brock et al. 2021, section 4.2)."""
    model = small_vit()
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    raw = {name: (p.detach().clone(), p.grad.clone()) for name, p in model.named_parameters()}
    clip_gradients(flags("--clip-grad", "0.01", "--clip-mode", mode), model)
    total = torch.cat([gradient.flatten() for _, gradient in raw.values()]).norm()

    def adaptive(weight, gradient):
        def units(tensor):
            return (
                tensor.norm() if tensor.ndim < 2 else tensor.flatten(1).norm(dim=1).view(-1, *[1] * (tensor.ndim - 1))
            )

        most = 0.01 * units(weight).clamp_min(1e-3)
        return torch.where(units(gradient) > most, gradient * most / units(gradient), gradient)

    for name, parameter in model.named_parameters():
        weight, gradient = raw[name]
        expected = {"norm": gradient * 0.01 / total, "value": gradient.clamp(-0.01, 0.01)}.get(mode)
        if mode == "agc":
            expected = gradient if name.startswith("1.head.") else adaptive(weight, gradient)
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-7)


def test_a_distilled_model_is_trained_on_the_mean_of_its_heads_as_it_is_evaluated():
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 2, "num_classes": 10}
    if OLD:
        model = importlib.import_module("timm.models.vision_transformer").VisionTransformer(**options, distilled=True)
    else:
        model = importlib.import_module("timm.models.deit").VisionTransformerDistilled(**options)
    images, labels = torch.rand(4, 3, 32, 32), torch.arange(4)
    evaluated = nn.functional.cross_entropy(model.eval()(images), labels)
    _, loss_fn = build_mixup_and_loss(flags())
    loss = loss_fn(model.train()(images), labels)
    torch.testing.assert_close(loss, evaluated)
    loss.backward()
    assert model.head.weight.grad.any()
    assert model.head_dist.weight.grad.any()


def test_the_loss_of_what_holds_logits_and_of_what_does_not():
    _, loss_fn = build_mixup_and_loss(flags())
    logits, labels = torch.randn(4, 10), torch.arange(4)
    expected = nn.functional.cross_entropy(logits, labels)
    for output in (logits, {"logits": logits, "loss": None}, argparse.Namespace(logits=logits)):
        torch.testing.assert_close(loss_fn(output, labels), expected)
    for output in ((logits, logits, logits), (logits, None), {"features": logits}, logits[0]):
        with pytest.raises(ModelError, match="expected logits"):
            loss_fn(output, labels)
