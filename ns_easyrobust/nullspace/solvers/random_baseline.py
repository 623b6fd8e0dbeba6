"""The random baseline of Table 4 of arXiv:2403.10476: noise that is only made smaller."""

from __future__ import annotations

from ...utils import torch
from ..config import NoiseConfig
from ..objective import NoiseObjective, OnStep, StepHistory
from .registry import SolverResult, register_solver

_SHRINK = 0.8  # factor per minibatch, as in the authors' random baseline


@register_solver("random", gaussian=True)
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
