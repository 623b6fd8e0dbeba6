"""Equation 6 from inside: the largest noise under eps, on a sphere whose radius follows the measured influence.

Algorithm 1 starts far outside and stops at the first minibatch that happens to be under eps. Here the noise
is feasible from the start and stays near the bound: each step turns it on its sphere towards a smaller logit
distance (Adam), and the radius grows while mse_probability runs under eps and shrinks while it is over.

What a transformer ignores for a trivial reason does not count: its layer norms take away each token's mean
over the features, so that part of the noise could be endless without doing anything. It is projected out.
"""

from __future__ import annotations

import logging
import math

import torch

from ..errors import NoiseError
from ..utils.distributed import mean_over_ranks
from .noise import NoiseConfig, Step
from .objective import ONE_SIDED_95, OnStep, Probe, Trace
from .solvers import Found

_logger = logging.getLogger(__name__)
_SMOOTHING = 0.8  # weight of the past in the running moments of mse_probability
_GAIN, _MOST = 0.1, 0.1  # of the logarithm of the radius: a step's answer to the logarithm of eps / bound, its limit
_BETA1, _BETA2, _TINY = 0.9, 0.99, 1e-12  # Adam's
_ELEMENTS = 1024  # of a noise whose turns have their full length
_EAGER = 40  # turns that are longer than the others, the first one twice as long
_GROWN = 1.01  # what counts as growth for ``patience``
_JUDGED = 512  # images that the final radius is set on, over all ranks
# Standard errors under eps there, so that in nine cases of ten (quantile 1.28) the 95% bound on other images, half as
# many, is under eps too: their bound takes sqrt(2) standard errors of ours, and the difference of both means sqrt(3).
# Half as many is what an augmentation keeps back of 2560 images or more.
_MARGIN = math.sqrt(2) * ONE_SIDED_95 + math.sqrt(3) * 1.2816
_MOST_NORM = 10  # norms of a start that is uniform in (-limit, limit)
_ROUNDING = 1e-5  # of a norm: what centring leaves of nothing
_START_TESTS, _END_TESTS = 12, 20


def centred(noise: torch.Tensor) -> torch.Tensor:
    """``noise`` (1, *tokens, D) without each token's mean over its D features."""
    return noise - noise.mean(dim=-1, keepdim=True)


def _unit(noise: torch.Tensor) -> torch.Tensor:
    noise = centred(noise)
    return noise / noise.norm().clamp_min(_TINY)


class _Adam:
    """Adam's direction, scaled so that its root mean square is about 1 / sqrt(numel): a length of about 1."""

    def __init__(self, like: torch.Tensor) -> None:
        self.first, self.second, self.steps = torch.zeros_like(like), torch.zeros_like(like), 0

    def __call__(self, gradient: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        self.first.lerp_(gradient, 1 - _BETA1)
        self.second.lerp_(gradient.square(), 1 - _BETA2)
        scale = (self.second / (1 - _BETA2**self.steps)).sqrt() + _TINY
        return self.first / (1 - _BETA1**self.steps) / scale / math.sqrt(gradient.numel())


def length_of_turn(turn: float, elements: int, turns: int) -> float:
    """In radii, after ``turns`` of them, for a noise of so many elements.

    A model notices some hundreds of directions. Their share of a random noise's norm, which is what there is to turn
    away from, falls with the root of its size; longer turns would only bring in other such directions.
    """
    return turn * min(1.0, math.sqrt(_ELEMENTS / elements)) * (1 + max(0.0, 1 - turns / _EAGER))


def sphere(probe: Probe, start: torch.Tensor, config: NoiseConfig, on_step: OnStep) -> Found:
    """The solver; ``start`` gives the direction, and the norm where the search for the first radius begins.

    It ends after ``config.max_steps`` turns, or when the norm has not grown by 1% within ``config.patience``
    of them. Then the radius is set, up or down, on the next images of the stream, those that the pool has not kept
    where there are enough: as large as an upper bound of their mse_probability stays under eps, so far above the
    mean that 256 other images' 95% bound tends to be under it too. ``stopped`` says whether it is. A norm ten times
    that of Algorithm 1's start ends the search: there are models that nothing moves.

    Raises:
        NoiseError: nothing of ``start`` is left once it is centred.
    """
    if not config.max_steps:
        return Found(start, [], 0, False)
    if not centred(start).norm() > _ROUNDING * start.norm():
        raise NoiseError("start noise: expected one that differs within a token, found none left once it is centred.")
    direction, trace, adam = _unit(start), Trace(probe.lag, on_step), _Adam(start)
    most = _MOST_NORM * config.limit * math.sqrt(start.numel() / 3)
    radius, running = _first_radius(probe, direction, start.norm(), config, trace)
    radius, largest, grown_at = radius.clamp(max=most), 0.0, trace.begun
    for _ in range(config.max_steps):
        value = (direction * radius).requires_grad_(True)
        pending, loss = probe.test(value, trace.begun)
        gradient = mean_over_ranks(torch.autograd.grad(loss, value)[0])
        turn = length_of_turn(config.turn, start.numel(), adam.steps)
        direction = _unit(direction - turn * adam(centred(gradient)))
        running = torch.lerp(pending.moments, running, _SMOOTHING)
        answer = _GAIN * (math.log(config.eps) - _bound(running).log())
        radius = (radius * answer.clamp(-_MOST, _MOST).exp().to(radius.dtype)).clamp(max=most)
        for tested, _ in trace.add(pending):
            if tested.norm > _GROWN * largest:
                largest, grown_at = tested.norm, tested.step
        if (config.patience and len(trace.steps) - grown_at > config.patience) or largest > most / _GROWN:
            break
    for _ in trace.rest():
        pass
    if largest > most / _GROWN:
        _logger.warning(
            "this noise has reached norm %.3g, where the search ends: the model hardly reacts to anything. Start from "
            "a trained checkpoint, or lower --ns-eps.",
            largest,
        )
    value, last, under = _largest_under(probe, direction * radius, most, config, trace.begun)
    trace.steps.append(last)
    on_step(last)
    return Found(value, trace.steps, adam.steps, under)


def _first_radius(
    probe: Probe, direction: torch.Tensor, radius: torch.Tensor, config: NoiseConfig, trace: Trace
) -> tuple[torch.Tensor, torch.Tensor]:
    """A radius with a bound a little under eps, and the moments there; near zero the bound goes with its square."""
    for _ in range(_START_TESTS):
        with torch.no_grad():
            pending, _ = probe.test(direction * radius, trace.begun)
        for _ in [*trace.add(pending), *trace.rest()]:
            pass
        bound = float(_bound(pending.moments))
        if config.eps / 2 <= bound < config.eps:
            break
        radius = radius * min(10.0, max(0.1, math.sqrt(0.8 * config.eps / bound)))
    return radius, pending.moments


def _bound(moments: torch.Tensor) -> torch.Tensor:
    """What must be under eps on ``_JUDGED`` images, from the means of x and of x^2."""
    deviation = (moments[1] - moments[0].square()).clamp_min(0).sqrt()
    return (moments[0] + _MARGIN * deviation / math.sqrt(_JUDGED)).clamp_min(_TINY)


def _largest_under(
    probe: Probe, value: torch.Tensor, most: float, config: NoiseConfig, step: int
) -> tuple[torch.Tensor, Step, bool]:
    """``value`` scaled to where its bound on the stream's next images is just under eps, its numbers, whether it is."""
    judges, limit = probe.some(_JUDGED), most / float(value.norm())
    factor, under, over = min(1.0, limit), 0.0, math.inf
    for _ in range(_END_TESTS):
        scaled = value * factor
        moments, logits = probe.judge(judges, scaled)
        if not math.isfinite(logits):
            raise NoiseError(
                f"synthesis step {step}: expected finite logits, found {logits}. Check the images for nan."
            )
        bound = float(_bound(moments))
        if bound < config.eps:
            under = factor
        else:
            over = factor
        if under in (0.0, factor):  # the largest under eps; until there is one, the smallest
            found, tested = scaled, Step(step, float(moments[0]), logits, float(scaled.norm()))
        if 0.9 * config.eps < bound < config.eps or under == limit or over < 1.03 * under:
            break
        if under > 0 and over < math.inf:
            factor = math.sqrt(under * over)
        else:
            factor = min(factor * min(2.0, max(0.5, math.sqrt(0.95 * config.eps / bound))), limit)
    return found, tested, under > 0
