"""Sharpness-aware minimisation: closed forms, EasyRobust's own code, and what it must leave as it was."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from ns_easyrobust.errors import OptionError, TrainingError
from ns_easyrobust.training.sam import SamSettings, perturbed_weights


class Quadratic(nn.Module):
    """0.5 w'Hw."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        root = torch.randn(5, 5, dtype=torch.float64, generator=generator)
        self.hessian = root @ root.T + torch.eye(5)
        self.w = nn.Parameter(torch.randn(5, dtype=torch.float64, generator=generator))

    def forward(self) -> torch.Tensor:
        return 0.5 * self.w @ self.hessian @ self.w


def network(*more: nn.Module, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), *more, nn.ReLU(), nn.Linear(8, 3))


def batches(count: int = 6, seed: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(16, 6, generator=generator), torch.randint(3, (16,), generator=generator)) for _ in range(count)
    ]


def loss_of(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def fit(model: nn.Module, optimizer: torch.optim.Optimizer, rho: float | None, adaptive: bool = False) -> nn.Module:
    for batch in batches():
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        if rho is not None:
            with perturbed_weights(model, rho, adaptive=adaptive) as moved:
                assert moved
                loss_of(model, batch).backward()
        optimizer.step()
    return model


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


def test_a_step_on_a_quadratic_is_the_closed_form():
    model, rho, lr = Quadratic(), 0.3, 0.01
    w, hessian = model.w.detach().clone(), model.hessian
    model().backward()
    with perturbed_weights(model, rho):
        model().backward()
    torch.optim.SGD(model.parameters(), lr=lr).step()
    slope = hessian @ w
    torch.testing.assert_close(model.w.detach(), w - lr * hessian @ (w + rho * slope / slope.norm()))


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_direction_is_the_steepest_within_the_neighbourhood(adaptive):
    """Cauchy and Schwarz: g'e <= rho ||g|| for ||e|| <= rho, and g'e <= rho ||w g|| for ||e / w|| <= rho."""
    model, rho = Quadratic(), 0.3
    w = model.w.detach().clone()
    model().backward()
    gradient = model.w.grad.clone()
    with perturbed_weights(model, rho, adaptive=adaptive):
        assert model.w.grad is None
        moved = model.w.detach() - w
    unit = w.abs() if adaptive else torch.ones_like(w)
    assert float((moved / unit).norm()) == pytest.approx(rho)
    assert float(gradient @ moved) == pytest.approx(rho * float((unit * gradient).norm()))


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_vanishing_distance_is_the_plain_optimizer(adaptive):
    runs = []
    for rho in (None, 1e-6, 0.1):
        model = network()
        runs.append(fit(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho, adaptive))
    plain, near, far = (torch.cat([p.detach().flatten() for p in model.parameters()]) for model in runs)
    torch.testing.assert_close(near, plain, rtol=0, atol=1e-6)
    assert float((far - plain).abs().max()) > 1e-4


@pytest.mark.host
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_side_by_side_with_easyrobusts(kind, adaptive):
    from easyrobust.optimizer import SAM  # davda54's, word for word

    options = {"lr": 1e-2, "weight_decay": 0.05} | ({"momentum": 0.9} if kind == "SGD" else {})
    theirs = network()
    sam = SAM(theirs.parameters(), getattr(torch.optim, kind), rho=0.05, adaptive=adaptive, **options)
    for batch in batches():
        loss_of(theirs, batch).backward()
        sam.first_step(zero_grad=True)
        loss_of(theirs, batch).backward()
        sam.second_step(zero_grad=True)
    ours = network()
    fit(ours, getattr(torch.optim, kind)(ours.parameters(), **options), 0.05, adaptive)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-7)


def test_the_weights_that_the_second_loss_does_not_reach_come_back_too():
    """In davda54's second_step they stay moved."""
    model = network()
    before, places = copy.deepcopy(model), [parameter.data_ptr() for parameter in model.parameters()]
    batch = batches(1)[0]
    loss_of(model, batch).backward()
    with perturbed_weights(model, 0.5):
        assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
        model[0](batch[0]).sum().backward()
    assert same(model, before)
    assert model[-1].weight.grad is None
    assert model[0].weight.grad is not None
    assert places == [parameter.data_ptr() for parameter in model.parameters()]


def test_all_comes_back_when_the_second_loss_fails():
    model = network()
    before = copy.deepcopy(model)
    loss_of(model, batches(1)[0]).backward()
    with pytest.raises(KeyboardInterrupt), perturbed_weights(model, 0.5):
        raise KeyboardInterrupt
    assert same(model, before)


def test_running_statistics_count_the_batch_once():
    model = network(nn.BatchNorm1d(8))
    batch = batches(1)[0]
    loss_of(model, batch).backward()
    counted = {name: value.clone() for name, value in model.named_buffers()}
    with perturbed_weights(model, 0.5):
        loss_of(model, batch).backward()
        assert not torch.equal(model[1].running_mean, counted["1.running_mean"])
    assert all(torch.equal(value, counted[name]) for name, value in model.named_buffers())


def test_the_scalers_factor_does_not_matter():
    runs = []
    for scaler in (GradScaler("cpu", init_scale=2.0**12), GradScaler("cpu", enabled=False)):
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for batch in batches():
            optimizer.zero_grad()
            scaler.scale(loss_of(model, batch)).backward()
            with perturbed_weights(model, 0.1):
                scaler.scale(loss_of(model, batch)).backward()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        runs.append(model)
    assert same(*runs)  # a power of two


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_skips_the_update(value):
    model, scaler = network(), GradScaler("cpu", init_scale=1024.0)
    before, optimizer = copy.deepcopy(model), torch.optim.AdamW(model.parameters())
    scaler.scale(loss_of(model, batches(1)[0])).backward()
    model[0].bias.grad[2] = value
    with perturbed_weights(model, 0.1) as moved:
        assert not moved
        assert same(model, before)
    scaler.step(optimizer)
    scaler.update()
    assert same(model, before)
    assert not optimizer.state
    assert scaler.get_scale() == 512


def test_a_vanishing_gradient_moves_nothing():
    model = network()
    before = copy.deepcopy(model)
    (0 * loss_of(model, batches(1)[0])).backward()
    with perturbed_weights(model, 0.1):
        assert same(model, before)


@pytest.mark.parametrize("wrong", [{"rho": 0}, {"rho": -1.0}, {"rho": math.nan}, {"rho": math.inf}, {"adaptive": True}])
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(OptionError, match=f"^{next(iter(wrong))}: expected .*out"):
        SamSettings(**wrong)


def test_without_gradients():
    with pytest.raises(TrainingError, match=r"found none\. Call backward"), perturbed_weights(network(), 0.1):
        pass


def test_what_an_update_costs():
    assert (SamSettings().passes, SamSettings(rho=0.05).passes) == (1, 2)
