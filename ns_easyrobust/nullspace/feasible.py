"""The feasible norm of a direction: how far noise can grow along it until a model's outputs have moved by eps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

from ..errors import NoiseError, OptionError
from ..models import frozen, reference_tensor
from ..utils import nn, torch
from .config import NoiseConfig
from .distances import logit_distance, probability_distance
from .objective import NoiseObjective
from .solvers import centred

_SMALL = 16  # influence is quadratic in small noise: below eps / 16, twice the norm is under eps / 4
_LEAST = 1e-9  # norm at which no noise can have an influence any more


class FeasibleNorm(NamedTuple):
    """A feasible norm.

    Attributes:
        norm: where the influence first reaches eps, interpolated between two tested norms within the precision.
        censored: whether the influence has not reached eps up to ``norm``, where the search ended.
        tests: how many norms were tested.
    """

    norm: float
    censored: bool
    tests: int


def first_crossing(
    influence: Callable[[float], float], eps: float, most: float, precision: float = 0.01
) -> FeasibleNorm:
    """The largest t in (0, ``most``] such that ``influence`` is under ``eps`` on all of (0, t], from below.

    Influence need not be monotone, so the first crossing is sought: halved from 1 until the influence is under eps / 16
    (smaller noise is taken to be feasible, as influence is quadratic there), t then grows by a factor of sqrt(2) (of 2
    where the influence is still under eps / 16) until the influence is not under eps; bisection of log t ends when both
    ends are within ``precision``, between which log influence is taken for linear in log t. A crossing and its return
    between two neighbours of this grid are not seen.

    Args:
        influence: mean influence of noise of norm t, which vanishes with t.
        eps: threshold, > 0.
        most: norm at which the search ends, > 0.
        precision: relative, > 0.

    Raises:
        OptionError: ``eps``, ``most`` or ``precision`` is not positive.
        NoiseError: an influence is nan or inf, or does not vanish with t.
    """
    if not (eps > 0 and most > 0 and precision > 0):
        raise OptionError(
            f"feasible norm: expected eps, largest norm and precision > 0, found {eps}, {most}, {precision}."
        )
    tested: dict[float, float] = {}

    def test(norm: float) -> float:
        if norm not in tested:
            tested[norm] = influence(norm)
            if not math.isfinite(tested[norm]):
                raise NoiseError(
                    f"feasible norm: expected a finite influence at norm {norm:g}, found {tested[norm]}. Check the "
                    "checkpoint and the images for nan, or lower the largest norm."
                )
        return tested[norm]

    low = min(1.0, most)
    while test(low) >= eps / _SMALL:
        low /= 2
        if low < _LEAST:
            raise NoiseError(
                f"feasible norm: expected an influence that vanishes with the noise, found {test(2 * low):g} at norm "
                f"{2 * low:g}. Does the model draw random numbers in eval mode?"
            )
    while low < most:
        high = min(most, low * (2 if test(low) < eps / _SMALL else math.sqrt(2)))
        if test(high) >= eps:
            while high > low * (1 + precision):
                middle = math.sqrt(low * high)
                low, high = (low, middle) if test(middle) >= eps else (middle, high)
            return FeasibleNorm(_between(low, high, test(low), test(high), eps), False, len(tested))
        low = high
    return FeasibleNorm(most, True, len(tested))


def _between(low: float, high: float, under: float, over: float, eps: float) -> float:
    """Where log influence, linear in log norm from ``under`` at ``low`` to ``over`` at ``high``, is that of ``eps``.

    Without it, norms would lie on the grid of the bisection, and models that differ little would not differ at all.
    """
    if under <= 0:
        return low
    return low * (high / low) ** (math.log(eps / under) / math.log(over / under))


def unit_direction(value: torch.Tensor, is_centred: bool = True) -> torch.Tensor:
    """``value`` (1, *tokens, D) without each token's mean over its D features, scaled to norm 1; float32, on the CPU.

    A transformer's layer norms subtract that component, so that noise with more of it would have a larger feasible norm
    for nothing.

    Args:
        is_centred: False for a model that notices that component, for which it is kept.

    Raises:
        NoiseError: nothing is left of it, or it is not finite.
    """
    value = value.detach().cpu().double()
    direction = centred(value) if is_centred else value
    if not direction.norm() > 1e-5 * value.norm() or not torch.isfinite(direction).all():
        raise NoiseError("direction: expected finite noise that differs within a token, found another.")
    return (direction / direction.norm()).float()


class ImageInfluence(NamedTuple):
    """Influence of a noise on each of n images, on the CPU.

    Attributes:
        distance: (n,) float64, squared L2 distance between softmax outputs; its mean is mse_probability.
        unchanged: (n,) whether the prediction stays.
        logit_distance: (n,) float64, L2 distance between logits, not squared; its mean is J of Eq. 4.
    """

    distance: torch.Tensor
    unchanged: torch.Tensor
    logit_distance: torch.Tensor


class InfluenceProbe:
    """A model's influence by noise along directions, on images whose clean logits are computed once.

    The model runs in eval mode and full precision (unless ``config.autocast`` says otherwise); between the calls it is
    as before.

    Args:
        model: maps images (B, C, H, W) to logits (B, K).
        batches: images of each batch, as the model expects them.
        config: eps and autocast.

    Raises:
        ModelError: the model has no patch embedding, or several.
        DataError: ``batches`` are not images, or of another size than the model is built for.

    Example:
        >>> probe = InfluenceProbe(model, [images], NoiseConfig())
        >>> direction = unit_direction(torch.randn(1, 16, 64, generator=torch.Generator().manual_seed(0)))
        >>> found = probe.feasible_norm(direction, most=1e4)
        >>> probe.influence(direction, 0.99 * found.norm) < 0.03 < probe.influence(direction, 1.01 * found.norm)
        True
    """

    def __init__(self, model: nn.Module, batches: Sequence[torch.Tensor], config: NoiseConfig) -> None:
        self.model, self.config = model, config
        self._like = reference_tensor(model)
        with self._ready() as inner:
            kept = replace(
                config, minibatch=0, pool=1
            )  # as batches of a pool: whichever of image and embedding is less
            self._objective = NoiseObjective(inner, iter(batches), kept, self._like)
            self._clean, _ = self._objective.take(sum(map(len, batches)))

    @contextmanager
    def _ready(self) -> Iterator[nn.Module]:
        with frozen(self.model) as inner, torch.no_grad(), torch.autocast(self._like.device.type, enabled=False):
            yield inner

    def influence(self, direction: torch.Tensor, norm: float) -> float:
        """Mean mse_probability over the images of the noise ``norm * direction``, for a ``direction`` (1, *tokens)."""
        dtype = torch.promote_types(self._like.dtype, torch.float32)
        with self._ready():
            value = direction.to(self._like.device, dtype) * norm
            return float(self._objective.evaluate_on(self._clean, value).probability.mean)

    def per_image(self, value: torch.Tensor) -> ImageInfluence:
        """Influence of the noise ``value`` (1, *tokens) on each of the images, in their order.

        Raises:
            NoiseError: it does not fit the model.
        """
        dtype = torch.promote_types(self._like.dtype, torch.float32)
        with self._ready():
            found = self._objective.evaluate_each(self._clean, value.to(self._like.device, dtype))
            distances, unchanged, logits = zip(
                *(
                    (probability_distance(*pair), pair[0].argmax(-1) == pair[1].argmax(-1), logit_distance(*pair))
                    for pair in found
                ),
                strict=True,
            )
            return ImageInfluence(
                torch.cat(distances).double().cpu(), torch.cat(unchanged).cpu(), torch.cat(logits).double().cpu()
            )

    def feasible_norm(self, direction: torch.Tensor, most: float, precision: float = 0.01) -> FeasibleNorm:
        """:func:`first_crossing` of ``config.eps`` along a ``direction`` (1, *tokens) of norm 1.

        Raises:
            NoiseError: it does not fit the model, or as :func:`first_crossing`.
        """
        return first_crossing(lambda norm: self.influence(direction, norm), self.config.eps, most, precision)
