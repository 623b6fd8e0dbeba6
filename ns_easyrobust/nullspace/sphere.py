"""The sphere solver for Equation 6: the largest noise under eps, approached from inside the feasible set.

Algorithm 1 starts far outside and stops at the first minibatch that happens to be under eps. Here the noise is
feasible from the start and stays near the boundary: each step turns it on a sphere towards a smaller logit distance
(Adam), and the radius grows while an upper bound on the running mse_probability is under eps and shrinks while it is
over.

A transformer's layer norms subtract each token's mean over the features. That component of the noise could grow
without limit and without effect, so it is projected out.
"""

from __future__ import annotations

import logging
import math

import torch

from ..errors import NoiseError
from ..utils import mean_over_ranks
from .config import NoiseConfig
from .noise import Step
from .objective import ONE_SIDED_95, NoiseObjective, OnStep, StepHistory
from .solvers import SolverResult

_logger = logging.getLogger(__name__)
_SMOOTHING = 0.8  # weight of the past in the running moments of the probability distance
_GAIN, _MAX_LOG_STEP = 0.1, 0.1  # a step changes log(radius) by _GAIN * log(eps / bound), at most by _MAX_LOG_STEP
_BETA1, _BETA2, _TINY = 0.9, 0.99, 1e-12  # of Adam; _TINY also keeps other divisors and logarithms above zero
_FULL_TURN_ELEMENTS = 1024  # a larger noise makes shorter turns
_LONG_TURNS = 40  # number of first turns that are longer: the first is twice as long, the next ones less and less
_GROWTH = 1.01  # factor of the norm that counts as growth for ``patience``
_FINAL_IMAGES = 512  # images that set the final radius, over all ranks
# By how many standard errors the mean on these images must stay under eps so that in nine cases of ten (quantile 1.28)
# the 95% bound on half as many held-out images is under eps too. In units of that standard error, the standard error
# of the held-out mean is sqrt(2), and that of the difference of the two means sqrt(3).
# Half as many is what an augmentation holds out of 2560 images or more.
_MARGIN = math.sqrt(2) * ONE_SIDED_95 + math.sqrt(3) * 1.2816
_MAX_NORM_FACTOR = 10  # largest norm, relative to that of a start that is uniform in (-limit, limit)
_CENTRED_ZERO = 1e-5  # norm after centring, relative to that before, that is rounding error alone
_START_TESTS, _END_TESTS = 12, 20  # most tests to set the first and the final radius


def centred(noise: torch.Tensor) -> torch.Tensor:
    """``noise`` (1, *tokens, D) minus each token's mean over its D features."""
    return noise - noise.mean(dim=-1, keepdim=True)


def _unit(noise: torch.Tensor) -> torch.Tensor:
    noise = centred(noise)
    return noise / noise.norm().clamp_min(_TINY)


class _Adam:
    """Adam's update direction, divided by sqrt(numel) so that its norm is about 1."""

    def __init__(self, like: torch.Tensor) -> None:
        self.first, self.second, self.steps = torch.zeros_like(like), torch.zeros_like(like), 0

    def __call__(self, gradient: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        self.first.lerp_(gradient, 1 - _BETA1)
        self.second.lerp_(gradient.square(), 1 - _BETA2)
        scale = (self.second / (1 - _BETA2**self.steps)).sqrt() + _TINY
        return self.first / (1 - _BETA1**self.steps) / scale / math.sqrt(gradient.numel())


def step_length(turn: float, elements: int, turns: int) -> float:
    """Length of the next turn, in radii, after ``turns`` turns of a noise of ``elements`` elements.

    A model notices some hundreds of directions. Their share of a random noise's norm, which turning is to remove,
    falls with the square root of the number of elements; longer turns would only add other such directions.
    """
    return turn * min(1.0, math.sqrt(_FULL_TURN_ELEMENTS / elements)) * (1 + max(0.0, 1 - turns / _LONG_TURNS))


def sphere(objective: NoiseObjective, start: torch.Tensor, config: NoiseConfig, on_step: OnStep) -> SolverResult:
    """The solver; ``start`` gives the first direction, and its norm is where the search for the first radius begins.

    The turns end after ``config.max_steps``, when the norm has not grown by 1% within ``config.patience`` of them, or
    at ten times the norm of Algorithm 1's start, because there are models that no noise moves. Then the radius is
    set, up or down, on the next 512 images of the stream (not those in the pool, if there are enough others): as
    large as possible with an upper bound on their mse_probability under eps. The bound is so far above the mean that
    the 95% bound on 256 other images tends to be under eps too. ``stopped`` tells whether the bound is under eps.
    With ``config.max_steps`` 0, ``start`` is returned as it is.

    Raises:
        NoiseError: nothing of ``start`` is left once it is centred, or logits became nan or inf.
    """
    if not config.max_steps:
        return SolverResult(start, [], 0, False)
    if not centred(start).norm() > _CENTRED_ZERO * start.norm():
        raise NoiseError("start noise: expected one that differs within a token, found none left once it is centred.")
    direction, history, adam = _unit(start), StepHistory(objective.lag, on_step), _Adam(start)
    max_radius = _MAX_NORM_FACTOR * config.limit * math.sqrt(start.numel() / 3)
    radius, running_moments = _first_radius(objective, direction, start.norm(), config, history)
    radius, largest_norm, grown_at = radius.clamp(max=max_radius), 0.0, history.num_added
    for _ in range(config.max_steps):
        value = (direction * radius).requires_grad_(True)
        pending, loss = objective.evaluate(value, history.num_added)
        gradient = mean_over_ranks(torch.autograd.grad(loss, value)[0])
        turn = step_length(config.turn, start.numel(), adam.steps)
        direction = _unit(direction - turn * adam(centred(gradient)))
        running_moments = torch.lerp(pending.moments, running_moments, _SMOOTHING)
        log_step = _GAIN * (math.log(config.eps) - _upper_bound(running_moments).log())
        radius = (radius * log_step.clamp(-_MAX_LOG_STEP, _MAX_LOG_STEP).exp().to(radius.dtype)).clamp(max=max_radius)
        for tested, _ in history.add(pending):
            if tested.norm > _GROWTH * largest_norm:
                largest_norm, grown_at = tested.norm, tested.step
        if (config.patience and len(history.steps) - grown_at > config.patience) or largest_norm > max_radius / _GROWTH:
            break
    for _ in history.drain():
        pass
    if largest_norm > max_radius / _GROWTH:
        _logger.warning(
            "this noise has reached norm %.3g, where the search ends: the model hardly reacts to anything. Start from "
            "a trained checkpoint, or lower --ns-eps.",
            largest_norm,
        )
    value, final_test, feasible = _largest_feasible(
        objective, direction * radius, max_radius, config, history.num_added
    )
    history.steps.append(final_test)
    on_step(final_test)
    return SolverResult(value, history.steps, adam.steps, feasible)


def _first_radius(
    objective: NoiseObjective, direction: torch.Tensor, radius: torch.Tensor, config: NoiseConfig, history: StepHistory
) -> tuple[torch.Tensor, torch.Tensor]:
    """A radius with a bound a little under eps, sought from ``radius``, and the last moments measured.

    For small noise the bound is proportional to the square of the radius.
    """
    for _ in range(_START_TESTS):
        with torch.no_grad():
            pending, _ = objective.evaluate(direction * radius, history.num_added)
        for _ in [*history.add(pending), *history.drain()]:
            pass
        bound = float(_upper_bound(pending.moments))
        if config.eps / 2 <= bound < config.eps:
            break
        radius = radius * min(10.0, max(0.1, math.sqrt(0.8 * config.eps / bound)))
    return radius, pending.moments


def _upper_bound(moments: torch.Tensor) -> torch.Tensor:
    """Mean probability distance plus ``_MARGIN`` standard errors on ``_FINAL_IMAGES`` images, from its moments."""
    deviation = (moments[1] - moments[0].square()).clamp_min(0).sqrt()
    return (moments[0] + _MARGIN * deviation / math.sqrt(_FINAL_IMAGES)).clamp_min(_TINY)


def _largest_feasible(
    objective: NoiseObjective, value: torch.Tensor, max_radius: float, config: NoiseConfig, step: int
) -> tuple[torch.Tensor, Step, bool]:
    """``value`` scaled so that its bound on the stream's next images is just under eps, its test, whether it is under.

    ``under`` and ``over`` are the largest factor known to be feasible and the smallest known not to be.
    """
    batches, max_factor = objective.take(_FINAL_IMAGES), max_radius / float(value.norm())
    factor, under, over = min(1.0, max_factor), 0.0, math.inf
    for _ in range(_END_TESTS):
        scaled = value * factor
        moments, mse_logits = objective.evaluate_on(batches, scaled)
        if not math.isfinite(mse_logits):
            raise NoiseError(
                f"synthesis step {step}: expected finite logits, found {mse_logits}. Check the images for nan."
            )
        bound = float(_upper_bound(moments))
        if bound < config.eps:
            under = factor
        else:
            over = factor
        if under in (0.0, factor):  # the largest noise under eps or, while there is none, the smallest tested
            best, best_test = scaled, Step(step, float(moments[0]), mse_logits, float(scaled.norm()))
        if 0.9 * config.eps < bound < config.eps or under == max_factor or over < 1.03 * under:
            break
        if under > 0 and over < math.inf:
            factor = math.sqrt(under * over)
        else:
            factor = min(factor * min(2.0, max(0.5, math.sqrt(0.95 * config.eps / bound))), max_factor)
    return best, best_test, under > 0
