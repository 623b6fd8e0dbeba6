"""How approximate nullspace noise is found and measured.

The inner loop of Algorithm 1 of arXiv:2403.10476, the random baseline of its Table 4, and
the influence of a noise on images that it was not fitted to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import nn

from .distributed import broadcast, mean_over_ranks, sum_over_ranks
from .errors import NoiseError
from .noise import Influence, Noise, NoiseConfig, Step
from .randomness import draw_seed, isolated
from .streams import cycle, images_of
from .vit import encoder_noise, frozen, token_shape, unwrap

_ONE_SIDED_95 = 1.6448536269514722  # standard normal quantile
_SHRINK = 0.8  # factor a batch in the authors' random baseline


def squared_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Squared L2 distance of each row; (B, K), (B, K) -> (B,)."""
    return (a - b).square().sum(dim=-1)


def probability_distance(clean: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
    """``squared_distance`` of the softmax outputs (Algorithm 1, line 8); logits (B, K) -> (B,)."""
    return squared_distance(noisy.softmax(dim=-1), clean.softmax(dim=-1))


class _Probe:
    """Clean and noisy logits of one minibatch after another, and their distances over all ranks."""

    def __init__(self, model: nn.Module, batches: Iterator[Any], config: NoiseConfig, like: torch.Tensor) -> None:
        self.model, self.batches, self.like = model, batches, like
        self.precision: Any = lambda: torch.autocast(
            like.device.type,
            enabled=config.autocast != "off",
            dtype=getattr(torch, config.autocast) if config.autocast != "off" else None,
        )

    def test(self, value: torch.Tensor, step: int) -> tuple[Step, torch.Tensor]:
        """The next minibatch's distances, and this rank's loss (Algorithm 1, lines 5-8 and 12).

        Raises:
            NoiseError: a distance is nan or inf.
        """
        images = images_of(next(self.batches), self.like)
        with self.precision():
            with torch.no_grad():
                clean = self.model(images)
            with encoder_noise(self.model, value):
                noisy = self.model(images)
        if clean.dtype in (torch.float16, torch.bfloat16):
            clean, noisy = clean.float(), noisy.float()
        loss = squared_distance(noisy, clean).mean()
        mse_probability = probability_distance(clean, noisy.detach()).mean()
        numbers = torch.stack([mse_probability, loss.detach(), value.detach().norm().to(loss.dtype)])
        measured, squared, norm = mean_over_ranks(numbers).tolist()
        tested = Step(step, measured, squared, norm)
        if not math.isfinite(tested.mse_logits):
            raise NoiseError(
                f"synthesis step {step}: expected finite logits, found {tested.mse_logits}. "
                "Check the checkpoint and the images for nan, or lower --ns-limit or --ns-lr."
            )
        return tested, loss


OnStep = Callable[[Step], object]
_Found = tuple[torch.Tensor, list[Step], bool]  # value, trace, stopped


def _algorithm_1(probe: _Probe, start: torch.Tensor, config: NoiseConfig, on_step: OnStep) -> _Found:
    """Algorithm 1, lines 4-14: AdamW on the squared logit distance, tested before each update."""
    value = start.clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([value], lr=config.lr, weight_decay=config.weight_decay)
    trace: list[Step] = []
    for step in range(config.max_steps):
        tested, loss = probe.test(value, step)
        trace.append(tested)
        on_step(tested)
        if tested.mse_probability < config.eps:
            return value.detach(), trace, True
        value.grad = mean_over_ranks(torch.autograd.grad(loss, value)[0])
        if config.cosine_steps:
            phase = math.pi * min(step / config.cosine_steps, 1.0)
            optimizer.param_groups[0]["lr"] = config.lr * (1 + math.cos(phase)) / 2
        optimizer.step()
    return value.detach(), trace, False


def _shrunk_gaussian(probe: _Probe, start: torch.Tensor, config: NoiseConfig, on_step: OnStep) -> _Found:
    """The random baseline of Table 4: Gaussian noise shrunk by 0.8 a minibatch until it is under eps."""
    value, trace = start.clone(), []
    with torch.no_grad():
        for step in range(config.max_steps):
            tested, _ = probe.test(value, step)
            trace.append(tested)
            on_step(tested)
            if tested.mse_probability < config.eps:
                return value, trace, True
            value.mul_(_SHRINK)
    return value, trace, False


def _uniform(shape: tuple[int, ...], dtype: torch.dtype, config: NoiseConfig, g: torch.Generator) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype).uniform_(-config.limit, config.limit, generator=g)


def _gaussian(shape: tuple[int, ...], dtype: torch.dtype, config: NoiseConfig, g: torch.Generator) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype).normal_(generator=g)


_SOLVERS = {"paper": (_uniform, _algorithm_1), "random": (_gaussian, _shrunk_gaussian)}


def synthesize(
    model: nn.Module,
    batches: Iterable[Any],
    config: NoiseConfig | None = None,
    *,
    start: torch.Tensor | None = None,
    held_out: Iterable[Any] | None = None,
    on_step: OnStep | None = None,
    generator: torch.Generator | None = None,
) -> Noise:
    """Noise with mse_probability < eps, by Algorithm 1 of arXiv:2403.10476 (Eq. 7 and 8).

    The model runs in eval mode and full precision (unless ``config.autocast`` says otherwise)
    with its parameters frozen, and is afterwards as it was, as are the global generators. Over
    several ranks the start is rank 0's and gradient and stop test are averaged, so that every
    rank returns the same noise; each rank passes its own share of the images.

    Args:
        model: maps images (B, C, H, W) to logits (B, K); may be wrapped in DDP.
        batches: images or (images, labels), what the model takes; cycled when they run out.
        config: settings; the paper's by default.
        start: value (1, *tokens) to begin with, instead of a random one.
        held_out: batches to judge the result on; ``converged`` stays None without.
        on_step: called with each :class:`Step`.
        generator: source of the start noise and of what the batches draw; seed 0 by default.

    Raises:
        ModelError: the model has no single patch embedding.
        DataError: ``batches`` are empty, one-shot or not images.
        NoiseError: ``start`` does not fit the model, or a distance became nan.
    """
    config = config or NoiseConfig()
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    parameter = next(unwrap(model).parameters())
    device, dtype = parameter.device, torch.promote_types(parameter.dtype, torch.float32)
    draw, search = _SOLVERS[config.solver]
    full_precision = torch.autocast(device.type, enabled=False)  # the caller's would reach the backward too
    with frozen(model) as inner, isolated(draw_seed(generator), device), torch.enable_grad(), full_precision:
        stream = cycle(batches)
        first = next(stream)
        shape = token_shape(inner, images_of(first, parameter))
        if start is None:
            start = draw(shape, dtype, config, generator)
        elif tuple(start.shape) != shape or not torch.isfinite(start).all():
            raise NoiseError(f"start noise: expected finite values of shape {shape}, found shape {tuple(start.shape)}.")
        value = broadcast(start.detach().to(device, dtype).clone())
        probe = _Probe(inner, chain([first], stream), config, parameter)
        value, trace, stopped = search(probe, value, config, on_step or (lambda step: None))
        judged = None if held_out is None else measure(inner, held_out, value)
    return Noise(
        value=value.cpu(),
        mse_probability=trace[-1].mse_probability if trace else math.nan,
        steps=len(trace) - stopped,
        stopped=stopped,
        held_out=judged,
        trace=tuple(trace),
        config=config,
    )


def measure(model: nn.Module, batches: Iterable[Any], value: torch.Tensor) -> Influence:
    """Influence of encoder noise ``value`` (1, *tokens) on every image of ``batches``, once.

    Eval mode, full precision; the model and the global generators are afterwards as they were
    (what ``batches`` draw comes from seed 0). Over several ranks each passes its own share
    and all get the same result.

    Raises:
        NoiseError: ``value`` does not fit the model, or an output is nan.
        DataError: ``batches`` hold no images.
    """
    parameter = next(unwrap(model).parameters())
    device = parameter.device
    total = torch.zeros(5, dtype=torch.float64, device=device)
    value = value.to(device)
    full_precision = torch.autocast(device.type, enabled=False)
    with frozen(model) as inner, torch.no_grad(), full_precision, isolated(0, device):
        for batch in batches:
            images = images_of(batch, parameter)
            clean = inner(images).double()
            with encoder_noise(inner, value):
                noisy = inner(images).double()
            distance = probability_distance(clean, noisy)
            unchanged = (clean.argmax(-1) == noisy.argmax(-1)).sum()
            logits = squared_distance(noisy, clean).sum()
            count = torch.tensor(float(len(images)), dtype=torch.float64, device=device)
            total += torch.stack([distance.sum(), distance.square().sum(), logits, unchanged.double(), count])
    first, second, logit_sum, same, n = sum_over_ranks(total).tolist()
    if not n:
        raise NoiseError("no images to measure on: expected at least one batch, found none.")
    if not math.isfinite(logit_sum):
        raise NoiseError("measuring: expected finite logits, found nan or inf. Check the noise and the checkpoint.")
    mean = first / n
    deviation = math.sqrt(max(second / n - mean**2, 0.0) * n / (n - 1)) if n > 1 else math.inf
    return Influence(
        mse_probability=mean,
        mse_probability_upper=mean + _ONE_SIDED_95 * deviation / math.sqrt(n),
        mse_logits=logit_sum / n,
        agreement=same / n,
        n=int(n),
    )
