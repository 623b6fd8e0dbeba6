"""Solvers for the noise: Algorithm 1 of arXiv:2403.10476, and the random baseline of its Table 4."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from ..utils import mean_over_ranks
from .config import NoiseConfig
from .noise import Step
from .objective import NoiseObjective, OnStep, StepHistory

_SHRINK = 0.8  # factor per minibatch, as in the authors' random baseline


class SolverResult(NamedTuple):
    """Result of a solver: the noise, every test, the number of updates, and whether it stopped under eps."""

    value: torch.Tensor
    history: list[Step]
    updates: int
    stopped: bool


def algorithm_1(objective: NoiseObjective, start: torch.Tensor, config: NoiseConfig, on_step: OnStep) -> SolverResult:
    """Algorithm 1, lines 4-14: AdamW on the squared logit distance, tested before each update.

    On a GPU a test is read some steps late, but the result is the same: each noise is kept until its test is read.
    """
    value = start.clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([value], lr=config.lr, weight_decay=config.weight_decay)
    history = StepHistory(objective.lag, on_step)
    for step in range(config.max_steps):
        pending, loss = objective.evaluate(value, step)
        for tested, noise in history.add(pending):
            if tested.mse_probability < config.eps:
                return SolverResult(noise, history.steps, tested.step, True)
        value.grad = mean_over_ranks(torch.autograd.grad(loss, value)[0])
        if config.cosine_steps:
            phase = math.pi * min(step / config.cosine_steps, 1.0)
            optimizer.param_groups[0]["lr"] = config.lr * (1 + math.cos(phase)) / 2
        optimizer.step()
    for tested, noise in history.drain():
        if tested.mse_probability < config.eps:
            return SolverResult(noise, history.steps, tested.step, True)
    return SolverResult(value.detach(), history.steps, config.max_steps, False)


def random_baseline(
    objective: NoiseObjective, start: torch.Tensor, config: NoiseConfig, on_step: OnStep
) -> SolverResult:
    """The random baseline of Table 4: Gaussian noise, multiplied by 0.8 per minibatch until it is under eps."""
    value, history = start.clone(), StepHistory(0, on_step)
    with torch.no_grad():
        for step in range(config.max_steps):
            pending, _ = objective.evaluate(value, step)
            for tested, _ in history.add(pending):
                if tested.mse_probability < config.eps:
                    return SolverResult(value, history.steps, step, True)
            value.mul_(_SHRINK)
    return SolverResult(value, history.steps, config.max_steps, False)
