"""How a noise is searched: Algorithm 1 of arXiv:2403.10476, and the random baseline of its Table 4."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from ..utils.distributed import mean_over_ranks
from .noise import NoiseConfig, Step
from .objective import OnStep, Probe, Trace

_SHRINK = 0.8  # factor a batch in the authors' random baseline


class Found(NamedTuple):
    """What a solver returns: the noise, every step tested, updates made, whether it stopped under eps."""

    value: torch.Tensor
    trace: list[Step]
    updates: int
    stopped: bool


def algorithm_1(probe: Probe, start: torch.Tensor, config: NoiseConfig, on_step: OnStep) -> Found:
    """Algorithm 1, lines 4-14: AdamW on the squared logit distance, tested before each update.

    On a GPU a test is read some steps late; the step that stops is the same, for its noise is kept.
    """
    value = start.clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([value], lr=config.lr, weight_decay=config.weight_decay)
    trace = Trace(probe.lag, on_step)
    for step in range(config.max_steps):
        pending, loss = probe.test(value, step)
        for tested, kept in trace.add(pending):
            if tested.mse_probability < config.eps:
                return Found(kept, trace.steps, tested.step, True)
        value.grad = mean_over_ranks(torch.autograd.grad(loss, value)[0])
        if config.cosine_steps:
            phase = math.pi * min(step / config.cosine_steps, 1.0)
            optimizer.param_groups[0]["lr"] = config.lr * (1 + math.cos(phase)) / 2
        optimizer.step()
    for tested, kept in trace.rest():
        if tested.mse_probability < config.eps:
            return Found(kept, trace.steps, tested.step, True)
    return Found(value.detach(), trace.steps, config.max_steps, False)


def shrunk_gaussian(probe: Probe, start: torch.Tensor, config: NoiseConfig, on_step: OnStep) -> Found:
    """The random baseline of Table 4: Gaussian noise shrunk by 0.8 a minibatch until it is under eps."""
    value, trace = start.clone(), Trace(0, on_step)
    with torch.no_grad():
        for step in range(config.max_steps):
            pending, _ = probe.test(value, step)
            for tested, _ in trace.add(pending):
                if tested.mse_probability < config.eps:
                    return Found(value, trace.steps, step, True)
            value.mul_(_SHRINK)
    return Found(value, trace.steps, config.max_steps, False)
