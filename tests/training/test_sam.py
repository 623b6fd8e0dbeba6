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


def smoothed(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """With smoothed labels the loss has a least value, near which solutions differ in their sharpness alone."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1], label_smoothing=0.1)


def sharpness(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> float:
    """The largest eigenvalue of the loss's Hessian, by power iteration on a double backward."""
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(smoothed(model, batch), parameters, create_graph=True)
    torch.manual_seed(0)
    vector, value = [torch.randn_like(parameter) for parameter in parameters], 0.0
    for _ in range(200):
        length = torch.cat([part.flatten() for part in vector]).norm()
        vector = [part / length for part in vector]
        product = torch.autograd.grad(gradients, parameters, vector, retain_graph=True)
        value = sum(float((a * b).sum()) for a, b in zip(vector, product, strict=True))
        vector = list(product)
    return value


def worst_nearby(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], rho: float) -> float:
    """The largest loss found within ``rho`` of the weights, by projected ascent in 20 steps, where SAM takes one."""
    start, worst = list(model.parameters()), copy.deepcopy(model)
    moved = list(worst.parameters())
    for _ in range(20):
        gradients = torch.autograd.grad(smoothed(worst, batch), moved)
        with torch.no_grad():
            length = torch.cat([gradient.flatten() for gradient in gradients]).norm()
            offsets = [p - w + rho / 4 * g / length for p, w, g in zip(moved, start, gradients, strict=True)]
            shrink = (rho / torch.cat([offset.flatten() for offset in offsets]).norm()).clamp(max=1)
            for parameter, w, offset in zip(moved, start, offsets, strict=True):
                parameter.copy_(w + shrink * offset)
    return float(smoothed(worst, batch).detach())


@pytest.mark.stress
@pytest.mark.parametrize("seed", range(3))
def test_its_solutions_are_flatter_at_equal_updates(digits, seed):
    """Its job: 600 digits, an MLP, 400 updates of momentum on all of them, from the same start."""
    images, labels = (part[:600] for part in digits)
    batch, rho, found = (images[:, 0, ::4, ::4].flatten(1), labels), 0.5, {}
    for name in ("plain", "sam"):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(400):
            optimizer.zero_grad()
            smoothed(model, batch).backward()
            if name == "sam":
                with perturbed_weights(model, rho):
                    smoothed(model, batch).backward()
            optimizer.step()
        found[name] = (sharpness(model, batch), worst_nearby(model, batch, rho), float(smoothed(model, batch).detach()))
        assert float((model(batch[0]).argmax(-1) == labels).float().mean()) > 0.97
    print(", ".join(f"{name}: " + " ".join(f"{value:.4g}" for value in values) for name, values in found.items()))
    assert found["sam"][0] < 0.6 * found["plain"][0]
    assert found["sam"][1] < found["plain"][1] - 0.05
    assert found["sam"][2] < found["plain"][2] + 0.02
