"""Algorithm 1 of arXiv:2403.10476, by which the paper finds its noise."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ...utils import mean_over_ranks, torch
from ..config import NoiseConfig
from ..distances import probability_distance, squared_distance
from ..noise import Step
from ..objective import NoiseObjective, OnStep, StepHistory
from .registry import SolverResult, register_solver


@register_solver("paper")
def algorithm_1(objective: NoiseObjective, start: torch.Tensor, config: NoiseConfig, on_step: OnStep) -> SolverResult:
    """Algorithm 1, lines 4-14: AdamW on the squared logit distance, tested before each update.

    On a GPU a test is read some steps late, but the result is the same: each noise is kept until its test is read.
    """
    v = start.clone().requires_grad_(True)  # line 3
    optimizer = torch.optim.AdamW([v], lr=config.lr, weight_decay=config.weight_decay)
    history = StepHistory(objective.lag, on_step)
    for t in range(config.max_steps):  # line 4
        z, z_noisy = objective.next_logits(v)  # lines 5-7; z of a batch in the pool is there already
        delta = probability_distance(z, z_noisy.detach())  # line 8, of each image; the test averages them
        ell = squared_distance(z_noisy, z).mean()  # line 12, before line 9: the test records it too
        test = objective.start_test(t, v, delta, ell)  # on a GPU the next steps do not wait for it
        if stopped := _stopped(history.add(test), history, config):  # lines 9-11
            return stopped
        v.grad = mean_over_ranks(torch.autograd.grad(ell, v)[0])
        optimizer.param_groups[0]["lr"] = _learning_rate(t, config)
        optimizer.step()  # line 13, with AdamW as App. C says
    if stopped := _stopped(history.drain(), history, config):
        return stopped
    return SolverResult(v.detach(), history.steps, config.max_steps, False)


def _stopped(
    due: Iterable[tuple[Step, torch.Tensor]], history: StepHistory, config: NoiseConfig
) -> SolverResult | None:
    """The result, if a test that is due is under eps; later ones stay unread."""
    for tested, noise in due:
        if tested.mse_probability < config.eps:
            return SolverResult(noise, history.steps, tested.step, True)
    return None


def _learning_rate(t: int, config: NoiseConfig) -> float:
    """eta_v, which ``config.cosine_steps`` lowers on a cosine to 0 by that step."""
    if not config.cosine_steps:
        return config.lr
    phase = math.pi * min(t / config.cosine_steps, 1.0)
    return config.lr * (1 + math.cos(phase)) / 2
