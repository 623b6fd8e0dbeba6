"""The search that two solvers share: a noise on a sphere whose radius follows eps.

The noise is feasible from the start and stays near the boundary: each step turns it on a sphere towards a smaller logit
distance, or a larger one (Adam), and the radius grows while an upper bound on the running mse_probability is under eps
and shrinks while it is over.

A transformer's layer norms subtract each token's mean over the features. That component of the noise could grow
without limit and without effect, so it is projected out.
"""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

from ...errors import NoiseError
from ...utils import mean_over_ranks, torch
from ..config import NoiseConfig
from ..distances import ONE_SIDED_95, Moments
from ..noise import Step
from ..objective import CleanBatch, NoiseObjective, OnStep, StepFuture, StepHistory
from .registry import SolverResult

_logger = logging.getLogger(__name__)
_TINY = 1e-12  # keeps divisors and logarithms above zero
_GROWTH = 1.01  # factor of the norm that counts as growth for ``patience``; uphill, its inverse as shrinking
_FINAL_IMAGES = 512  # images that set the final radius, over all ranks
# By how many standard errors the mean on these images must stay under eps so that in nine cases of ten (quantile 1.28)
# the 95% bound on half as many held-out images is under eps too. In units of that standard error, the standard error
# of the held-out mean is sqrt(2), and that of the difference of the two means sqrt(3).
# Half as many is what an augmentation holds out of 2560 images or more.
_MARGIN = math.sqrt(2) * ONE_SIDED_95 + math.sqrt(3) * 1.2816


class _RadiusSearch(NamedTuple):
    """How a radius is sought whose upper bound on mse_probability is a little under eps.

    Attributes:
        tests: how many radii are tested at most.
        enough: the search ends at a bound under eps, but over this share of it.
        aim: share of eps at which the next radius aims.
        max_factor: the next radius is at most this many times larger or smaller.
    """

    tests: int
    enough: float
    aim: float
    max_factor: float

    def factor(self, bound: float, eps: float) -> float:
        """Next radius relative to one with this ``bound``, which for small noise is proportional to its square."""
        return min(self.max_factor, max(1 / self.max_factor, math.sqrt(self.aim * eps / bound)))


_FIRST = _RadiusSearch(tests=12, enough=0.5, aim=0.8, max_factor=10.0)  # in large steps: a start may be far away
_FINAL = _RadiusSearch(tests=20, enough=0.9, aim=0.95, max_factor=2.0)  # precise: no turns follow that correct it


def centred(noise: torch.Tensor) -> torch.Tensor:
    """``noise`` (1, *tokens, D) minus each token's mean over its D features."""
    return noise - noise.mean(dim=-1, keepdim=True)


def _unit(noise: torch.Tensor) -> torch.Tensor:
    noise = centred(noise)
    return noise / noise.norm().clamp_min(_TINY)


class _Adam:
    """Adam's update direction, divided by sqrt(numel) so that its norm is about 1."""

    beta1, beta2 = 0.9, 0.99  # averages over about 10 gradients and 100 squares

    def __init__(self, like: torch.Tensor) -> None:
        self.first, self.second, self.steps = torch.zeros_like(like), torch.zeros_like(like), 0

    def __call__(self, gradient: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        self.first.lerp_(gradient, 1 - self.beta1)
        self.second.lerp_(gradient.square(), 1 - self.beta2)
        scale = (self.second / (1 - self.beta2**self.steps)).sqrt() + _TINY
        return self.first / (1 - self.beta1**self.steps) / scale / math.sqrt(gradient.numel())


def step_length(turn: float, elements: int, turns: int) -> float:
    """Length of the next turn, in radii, after ``turns`` turns of a noise of ``elements`` elements.

    A model notices some hundreds of directions. Their share of a random noise's norm, which turning is to remove,
    falls with the square root of the number of elements; longer turns would only add other such directions. So a
    noise of more than 1024 elements makes shorter turns. For searches of few turns, the first is twice as long, and
    the lead is lost evenly by the 40th.
    """
    return turn * min(1.0, math.sqrt(1024 / elements)) * (1 + max(0.0, 1 - turns / 40))


def search_on_sphere(
    objective: NoiseObjective, start: torch.Tensor, config: NoiseConfig, on_step: OnStep, *, uphill: bool = False
) -> SolverResult:
    """Search from ``start``, which gives the first direction; its norm is where the search for the first radius begins.

    The turns end after ``config.max_steps``, or when the norm has not grown (``uphill``: shrunk) by 1% within
    ``config.patience`` of them. Then the radius is set, up or down, on the next 512 images of the stream (not those in
    the pool, if there are enough others): as large as possible with an upper bound on their mse_probability under eps.
    The bound is so far above the mean that the 95% bound on 256 other images tends to be under eps too; a warning says
    if fewer than 512 of them are distinct. ``stopped`` tells whether the bound is under eps. With ``config.max_steps``
    0, ``start`` is returned as it is.

    Because there are models that no noise moves, no norm exceeds ten times that of Algorithm 1's start (a cap that
    ``config.limit`` sets), and growth ends there.

    Args:
        uphill: turn towards a larger logit distance, so that the norm shrinks, instead of towards a smaller one.

    Raises:
        NoiseError: nothing of ``start`` is left once it is centred, or logits became nan or inf.
    """
    if not config.max_steps:
        return SolverResult(start, [], 0, False)
    if not centred(start).norm() > 1e-5 * start.norm():  # that much is left by rounding errors alone
        raise NoiseError("start noise: expected one that differs within a token, found none left once it is centred.")
    search = _Search(objective, start, config, on_step, uphill)
    search.find_first_radius()
    search.turn()
    value, feasible = search.find_final_radius()
    return SolverResult(value, search.history.steps, search.adam.steps, feasible)


class _Search:
    """A search and its three phases, to be called in their order.

    Attributes:
        history: all tests.
        adam: gives the directions of the turns, and counts them.
        direction: that of the noise, centred and of norm 1.
        radius: norm of the noise, 0-dim; at most ``max_radius``.
        moments: running ones of the probability distance; the first radius brings the first.
    """

    moments: Moments

    def __init__(
        self, objective: NoiseObjective, start: torch.Tensor, config: NoiseConfig, on_step: OnStep, uphill: bool
    ) -> None:
        self.objective, self.config, self.uphill = objective, config, uphill
        self.history, self.adam = StepHistory(objective.lag, on_step), _Adam(start)
        self.direction, self.radius = _unit(start), start.norm()
        uniform_norm = config.limit * math.sqrt(start.numel() / 3)  # expected of Algorithm 1's start
        self.max_radius = 10 * uniform_norm

    def find_first_radius(self) -> None:
        """Change the radius until its bound on a minibatch is a little under eps."""
        for _ in range(_FIRST.tests):
            with torch.no_grad():
                pending, _ = self.objective.evaluate(self.direction * self.radius, self.history.num_added)
            for _ in [*self.history.add(pending), *self.history.drain()]:
                pass
            self.moments = pending.moments
            bound = float(_upper_bound(self.moments))
            if _FIRST.enough * self.config.eps <= bound < self.config.eps:
                break
            self.radius = self.radius * _FIRST.factor(bound, self.config.eps)
        self.radius = self.radius.clamp(max=self.max_radius)

    def turn(self) -> None:
        """Turn, and let the radius follow eps, until the norm no longer improves or the steps are used up."""
        best, improved_at, patience = 0.0, self.history.num_added, self.config.patience
        end = math.inf if self.uphill else self.max_radius / _GROWTH
        for _ in range(self.config.max_steps):
            for tested, _ in self.history.add(self._turn_once()):
                merit = 1 / max(tested.norm, _TINY) if self.uphill else tested.norm
                if merit > _GROWTH * best:
                    best, improved_at = merit, tested.step
            stalled = patience and len(self.history.steps) - improved_at > patience
            if stalled or best > end:
                break
        for _ in self.history.drain():
            pass

    def _turn_once(self) -> StepFuture:
        value = (self.direction * self.radius).requires_grad_(True)
        pending, loss = self.objective.evaluate(value, self.history.num_added)
        gradient = centred(mean_over_ranks(torch.autograd.grad(loss, value)[0]))
        if self.uphill:
            # There most of the gradient is radial, which is no turn; Adam, which scales each element on its own, would
            # make it a turn towards the elements' signs.
            gradient = self.direction * (gradient * self.direction).sum() - gradient
        elements = 1 if self.uphill else value.numel()  # longer noise has more to remove, but no more to find
        length = step_length(self.config.turn, elements, self.adam.steps)
        self.direction = _unit(self.direction - length * self.adam(gradient))
        # One minibatch says little: its moments count a fifth, and the radius goes a fifth of the way to where the
        # bound, which is quadratic in it, would be eps; by a tenth at most.
        self.moments = pending.moments.smoothed(self.moments, weight=0.8)
        log_growth = 0.1 * (math.log(self.config.eps) - _upper_bound(self.moments).log())
        growth = log_growth.clamp(-0.1, 0.1).exp().to(self.radius.dtype)
        self.radius = (self.radius * growth).clamp(max=self.max_radius)
        return pending

    def find_final_radius(self) -> tuple[torch.Tensor, bool]:
        """The noise scaled so that its bound on the stream's next images is just under eps, and whether it is under.

        ``under`` and ``over`` are the largest factor known to be feasible and the smallest known not to be.
        """
        batches, distinct = self.objective.take(_FINAL_IMAGES)
        if distinct < _FINAL_IMAGES:
            _logger.warning(
                "the final radius was set on %d distinct images instead of %d: on other images the noise may be over "
                "eps. Give more images.",
                distinct,
                _FINAL_IMAGES,
            )
        value, eps = self.direction * self.radius, self.config.eps
        max_factor = self.max_radius / float(value.norm())
        factor, under, over = min(1.0, max_factor), 0.0, math.inf
        for _ in range(_FINAL.tests):
            scaled = value * factor
            tested, bound = self._test_on(batches, scaled)
            if bound < eps:
                under = factor
            else:
                over = factor
            if under in (0.0, factor):  # the largest noise under eps or, while there is none, the smallest tested
                best, best_test = scaled, tested
            if _FINAL.enough * eps < bound < eps or under == max_factor or over < 1.03 * under:  # 3% more at best
                break
            bracketed = under > 0 and over < math.inf
            factor = math.sqrt(under * over) if bracketed else min(factor * _FINAL.factor(bound, eps), max_factor)
        self.history.record(best_test)
        if best_test.norm > self.max_radius / _GROWTH:
            _logger.warning(
                "this noise has reached norm %.3g, where the search ends (limit = %g): the model hardly reacts to "
                "anything. Start from a trained checkpoint, lower eps, or raise limit to let it grow on.",
                best_test.norm,
                self.config.limit,
            )
        return best, under > 0

    def _test_on(self, batches: list[CleanBatch], value: torch.Tensor) -> tuple[Step, float]:
        """Test of ``value`` on the ``batches``, and its upper bound.

        Raises:
            NoiseError: mse_logits is nan or inf.
        """
        means, step = self.objective.evaluate_on(batches, value), self.history.num_added
        mse_logits = float(means.mse_logits)
        if not math.isfinite(mse_logits):
            raise NoiseError(
                f"synthesis step {step}: expected finite logits, found {mse_logits}. Check the images for nan."
            )
        tested = Step(step, float(means.probability.mean), mse_logits, float(value.norm()))
        return tested, float(_upper_bound(means.probability))


def _upper_bound(moments: Moments) -> torch.Tensor:
    """Mean probability distance plus ``_MARGIN`` standard errors on ``_FINAL_IMAGES`` images."""
    return (moments.mean + _MARGIN * moments.deviation / math.sqrt(_FINAL_IMAGES)).clamp_min(_TINY)
