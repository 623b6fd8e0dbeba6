from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.costs import counted
from helpers.models import TwoHeads, small_vit
from torch import nn

from ns_easyrobust.training.augmentations.trades import Trades, TradesSettings
from ns_easyrobust.utils.seeding import fork_rng

cross_entropy = nn.functional.cross_entropy


@pytest.fixture
def batch(digits):
    return digits[0][1297:1313].clone(), digits[1][1297:1313]


def numpy_kl(clean: torch.Tensor, adversarial: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """KL of each row in float64, and its gradient to the clean logits: p (log(p / q) - KL)."""
    p, q = (np.exp(logits.detach().double().numpy()) for logits in (clean, adversarial))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    kl = (p * np.log(p / q)).sum(1)
    return kl, p * (np.log(p / q) - kl[:, None])


def linear_model() -> nn.Sequential:
    """Logits (0, w x) with w of -1 and 1 by turns, so that a grey image has p = 1/2."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([torch.zeros(48), torch.tensor([-1.0, 1.0]).repeat(24)]))
    return model


@pytest.mark.parametrize("form", ["authors", "original"])
def test_a_linear_models_images_go_to_the_corner_that_the_noise_leans_to(form):
    model, grey = linear_model(), torch.full((8, 3, 4, 4), 0.5)
    with fork_rng(5):
        attacked = Trades(model, config=TradesSettings(form=form)).attack(grey)
    with fork_rng(5):
        lean = (torch.randn(8, 48) @ model[1].weight[1]).sign()
    corner = 8 / 255 * (lean[:, None] * model[1].weight[1]).view(8, 3, 4, 4)
    assert torch.equal(attacked, 0.5 + corner.detach())
    assert set(lean.tolist()) == {-1, 1}


def test_without_noise_the_gradient_is_zero_and_nothing_moves():
    grey = torch.full((8, 3, 4, 4), 0.5)
    assert torch.equal(Trades(linear_model(), config=TradesSettings(noise=0.0)).attack(grey), grey)


def test_the_images_are_those_of_torchattacks(trained, batch):
    torchattacks = pytest.importorskip("torchattacks")
    with fork_rng(3):
        attacked = Trades(trained.train()).attack(batch[0])
    with fork_rng(3):
        expected = torchattacks.TPGD(trained.eval(), eps=8 / 255, alpha=2 / 255, steps=10)(batch[0])
    assert torch.equal(attacked, expected)


@pytest.mark.parametrize("detach", [False, True])
def test_the_loss_is_the_mean_divergence_with_or_without_gradients_to_the_clean_output(trained, batch, detach):
    images, labels = batch[0][:3], batch[1][:3]  # a last batch that is smaller than the others
    trades = Trades(trained.eval(), config=TradesSettings(beta=2.0, detach=detach))
    output = trained(images).detach().requires_grad_()
    logits = []
    handle = trained.register_forward_hook(lambda module, args, output: logits.append(output))
    loss = trades.loss(images, labels, cross_entropy, output=output)
    handle.remove()
    divergence, gradient = numpy_kl(output, logits[-1])
    assert loss.item() == pytest.approx(2 * divergence.sum() / 3, rel=1e-4)
    loss.backward()
    if detach:
        assert output.grad is None
    else:
        assert np.allclose(output.grad.numpy(), 2 * gradient / 3, atol=1e-6)
    assert trained[1].head.weight.grad.abs().sum() > 0


def test_beta_0_is_plain_training_bit_for_bit(batch):
    gradients = []
    for beta in (None, 0.0):
        model = small_vit(drop_rate=0.2).train()
        with fork_rng(1):
            output = model(batch[0])
            loss = cross_entropy(output, batch[1])
            if beta is not None:
                trades = Trades(model, config=TradesSettings(beta=beta))
                loss = loss + trades.loss(*batch, cross_entropy, output=output)
            loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize(
    ("settings", "equivalents"),
    [({}, 24), ({"form": "original"}, 27), ({"form": "original", "detach": True}, 25), ({"steps": 1}, 6)],
)
def test_cost(trained, batch, settings, equivalents):
    trades = Trades(trained.train(), config=TradesSettings(**settings))
    with counted(trained) as count:
        output = trained(batch[0])
        loss = trades.loss(*batch, cross_entropy, output=output)
        (cross_entropy(output, batch[1]) + loss).backward()
    assert count.equivalents - 3 == Trades.cost(trades.config) == equivalents
    attacks = 1 + trades.config.steps
    assert count.modes == [True] + [False] * attacks + [True] * (len(count.modes) - attacks - 1)


@pytest.mark.parametrize("form", ["authors", "original"])
def test_two_heads_count_as_their_mean(trained, batch, form):
    losses = []
    for model in (trained.train(), TwoHeads(trained).train()):
        trades = Trades(model, config=TradesSettings(form=form, steps=2))
        losses.append(trades.loss(*batch, cross_entropy, output=model(batch[0])).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] > 1e-4


@pytest.mark.parametrize(
    ("form", "detach", "more"),
    [("authors", False, 3), ("authors", True, 1), ("original", False, 0), ("original", True, 0)],
)
def test_what_it_costs_more_where_the_clean_loss_is_replaced(trained, batch, form, detach, more):
    config = TradesSettings(steps=1, form=form, detach=detach)
    with counted(trained) as count:
        Trades(trained, config=config).loss(*batch, cross_entropy).backward()
    assert Trades.output_cost(config) == more
    assert count.equivalents == Trades.cost(config) + more


def test_the_original_form_draws_other_dropout_for_its_clean_output(batch):
    model = small_vit(drop_rate=0.5).train()
    output = model(batch[0])
    for form, uses in (("authors", True), ("original", False)):
        config = TradesSettings(form=form)
        given, other, none = (
            Trades(model, config=config).loss(*batch, cross_entropy, output=clean)
            for clean in (output, 0 * output, None)
        )
        assert (given == other).item() is not uses
        assert (given == none).item() is not uses


def test_a_clean_probability_of_zero_has_a_finite_gradient(trained, batch):
    output = torch.zeros(16, 10).index_fill_(1, torch.tensor(4), 300.0).requires_grad_()
    Trades(trained).loss(*batch, cross_entropy, output=output).backward()
    assert torch.isfinite(output.grad).all()
