"""The paper's exploratory search (section 3.3): noise that leaves the logits alone, rewarded for its norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import NamedTuple

from ..errors import DataError, NoiseError, OptionError
from ..models import frozen, reference_tensor, token_shape
from ..utils import nn, torch
from .config import NoiseConfig
from .distances import logit_distance
from .objective import CleanBatch, NoiseObjective
from .solvers import centred

_RUNAWAY = 1e6  # growth of the norm at which a search ends
_TINY = 1e-30


def exploratory_loss(clean: torch.Tensor, noisy: torch.Tensor, value: torch.Tensor, strength: float) -> torch.Tensor:
    """L(v) = J(v) - lambda log ||v|| (Eq. 4 of arXiv:2403.10476), 0-dim.

    Args:
        clean, noisy: logits (B, K) without the noise and with it.
        value: the noise (1, *tokens), not zero.
        strength: lambda, > 0.
    """
    return logit_distance(clean, noisy).mean() - strength * value.norm().log()


def uniform_start(shape: tuple[int, ...], limit: float, generator: torch.Generator) -> torch.Tensor:
    """Noise (1, *tokens, D) to start from: uniform in (-limit, limit), without each token's mean."""
    return centred(torch.empty(shape).uniform_(-limit, limit, generator=generator))


def permuted_control(value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The elements of ``value`` (1, *tokens, D) in a random order, as in Figure 3a, without each token's mean, which
    the layer norms would take off anyway; scaled to the norm of ``value``."""
    order = torch.randperm(value.numel(), generator=generator)
    mixed = centred(value.flatten()[order].view_as(value))
    return mixed * (value.norm() / mixed.norm())


def within_token_control(value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The elements of each token of ``value`` (1, *tokens, D) in a random order of its own, so that each token keeps
    its norm and its mean: the control where norms differ between tokens."""
    order = torch.rand(value.shape, generator=generator).argsort(-1)
    return value.gather(-1, order)


class Stationarity(NamedTuple):
    """How near a noise is to a stationary point of Eq. 4, where ``radial`` is lambda.

    Attributes:
        distance: J, the mean logit distance.
        radial: <v, grad J>: how fast J grows when v is scaled; J itself where the logits are linear in v.
    """

    distance: float
    radial: float


class NoiseLearner:
    """Gradient descent on Eq. 4, on images whose clean logits (and embeddings, if smaller) are computed once.

    A pre-LN transformer's layer norms subtract each token's mean over its features. That component of the noise could
    grow without limit and without effect, so that the loss has no lower bound along it: it is projected out of the
    start and of each step.

    A step has the length ``step_length * ||v||``, and that share falls linearly to 0 over the steps: the gradient's own
    length says little, as it falls with the noise's norm, which depends on lambda and the model by orders of magnitude.
    The paper names no step; its authors' prototype (methods.py of their repository) takes a constant rate on a gradient
    that it never sets to zero, and has no logarithm.

    The model runs in eval mode and full precision; between the calls it is as before.

    For such a model J is bounded, too, so that Eq. 4 has no lower bound along any other direction either: for a lambda
    above what <v, grad J> reaches on the way, the noise runs away. The search ends where it has grown a millionfold.

    Args:
        model: maps images (B, C, H, W) to logits (B, K).
        batches: the minibatches of images, as the model expects them.

    Attributes:
        shape: of the noise, (1, *tokens).

    Raises:
        ModelError: the model has no patch embedding, or several.
        DataError: no batches, or not of images of the model's size.

    Example:
        >>> learner = NoiseLearner(model, images.split(8))
        >>> start = uniform_start(learner.shape, 0.1, torch.Generator().manual_seed(0))
        >>> value = learner.learn(start, strength=0.3, steps=50)
        >>> bool(value.norm() > start.norm())
        True
    """

    def __init__(self, model: nn.Module, batches: Sequence[torch.Tensor]) -> None:
        if not batches:
            raise DataError("exploratory noise: expected images to learn on, found none. Check the folder.")
        self.model = model
        self._like = reference_tensor(model)
        with self._ready() as inner, torch.no_grad():
            kept = NoiseConfig(minibatch=0, pool=1)  # as batches of a pool: whichever of image and embedding is less
            self._objective = NoiseObjective(inner, cycle(batches), kept, self._like)
            self._clean, _ = self._objective.take(sum(map(len, batches)))
            self.shape = token_shape(inner, batches[0])

    @contextmanager
    def _ready(self) -> Iterator[nn.Module]:
        with frozen(self.model) as inner, torch.enable_grad(), torch.autocast(self._like.device.type, enabled=False):
            yield inner

    def _logits(self, batch: CleanBatch, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ((clean, noisy),) = self._objective.evaluate_each([batch], value)
        return clean, noisy

    def _on_device(self, value: torch.Tensor) -> torch.Tensor:
        return value.detach().to(self._like.device, torch.promote_types(self._like.dtype, torch.float32))

    def learn(
        self,
        start: torch.Tensor,
        strength: float,
        steps: int,
        step_length: float = 0.1,
        generator: torch.Generator | None = None,
        on_step: Callable[[float, float], object] = lambda loss, norm: None,
    ) -> torch.Tensor:
        """Descend on Eq. 4 from ``start`` (1, *tokens), a minibatch a step, in random orders of all minibatches.

        Args:
            strength: lambda, > 0.
            steps: how many, >= 1.
            step_length: of the first step, in norms of the noise, in (0, 1).
            generator: of the orders; seed 0 by default.
            on_step: called with each step's loss, before it, and norm, after it.

        Returns:
            The noise (1, *tokens), each token's mean 0, on the CPU.

        Raises:
            OptionError: ``strength``, ``steps`` or ``step_length`` is out of range.
            NoiseError: ``start`` does not fit the model, nothing is left of it once centred, or a loss is nan or inf.
        """
        if not (0 < strength < math.inf and steps >= 1 and 0 < step_length < 1):
            raise OptionError(
                "exploratory noise: expected a finite lambda > 0, steps >= 1 and a step length in (0, 1), found "
                f"{strength}, {steps} and {step_length}."
            )
        generator = generator or torch.Generator().manual_seed(0)
        start = self._on_device(start)
        value = centred(start)
        if not value.norm() > 1e-5 * start.norm():  # that much is left by rounding errors alone
            raise NoiseError("start noise: expected one that differs within a token, found none left once centred.")
        most = _RUNAWAY * float(value.norm())
        order: list[int] = []
        for step in range(steps):
            order = order or torch.randperm(len(self._clean), generator=generator).tolist()
            loss, gradient = self._descent(self._clean[order.pop()], value, strength, step)
            share = step_length * (1 - step / steps)
            value = centred(value - share * value.norm() * gradient / gradient.norm().clamp_min(_TINY))
            on_step(loss, norm := float(value.norm()))
            if norm > most:
                break
        return value.cpu()

    def _descent(
        self, batch: CleanBatch, value: torch.Tensor, strength: float, step: int
    ) -> tuple[float, torch.Tensor]:
        """Eq. 4 on a minibatch, and its gradient without each token's mean."""
        value = value.clone().requires_grad_()
        with self._ready():
            loss = exploratory_loss(*self._logits(batch, value), value, strength)
            (gradient,) = torch.autograd.grad(loss, value)
        if not math.isfinite(float(loss.detach())):
            raise NoiseError(
                f"exploratory noise, lambda {strength:g}, step {step}: expected a finite loss, found "
                f"{float(loss.detach())}. Check the checkpoint and the images for nan."
            )
        return float(loss.detach()), centred(gradient)

    def stationarity(self, value: torch.Tensor) -> Stationarity:
        """J and <v, grad J> of the noise ``value`` (1, *tokens), over all images."""
        value = self._on_device(value).requires_grad_()
        distance = radial = 0.0
        count = sum(len(batch.logits) for batch in self._clean)
        with self._ready():
            for batch in self._clean:
                total = logit_distance(*self._logits(batch, value)).sum()
                (gradient,) = torch.autograd.grad(total, value)
                distance += float(total.detach()) / count
                radial += float((gradient * value).detach().double().sum()) / count
        return Stationarity(distance, radial)
