"""How approximate nullspace noise is found, and its influence on images that it was not fitted to."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import nullcontext
from itertools import chain
from typing import Any

import torch
from torch import nn

from ..data.sampling import cycle, images_of
from ..errors import NoiseError
from ..models.fused import fused_attention
from ..models.vit import encoder_noise, frozen, token_shape, unwrap
from ..utils.distributed import broadcast, sum_over_ranks
from ..utils.seeding import draw_seed, isolated
from .noise import Influence, Noise, NoiseConfig
from .objective import ONE_SIDED_95, OnStep, Probe, probability_distance, squared_distance
from .solvers import algorithm_1, shrunk_gaussian
from .sphere import sphere


def _uniform(shape: tuple[int, ...], dtype: torch.dtype, config: NoiseConfig, g: torch.Generator) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype).uniform_(-config.limit, config.limit, generator=g)


def _gaussian(shape: tuple[int, ...], dtype: torch.dtype, config: NoiseConfig, g: torch.Generator) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype).normal_(generator=g)


_SOLVERS = {"paper": (_uniform, algorithm_1), "sphere": (_gaussian, sphere), "random": (_gaussian, shrunk_gaussian)}


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
    """Noise with mse_probability < eps: by Algorithm 1 of arXiv:2403.10476 (Eq. 7 and 8), or ``config.solver``.

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
    with (
        frozen(model) as inner,
        fused_attention(inner) if device.type == "cuda" else nullcontext(),  # no faster on a CPU
        isolated(draw_seed(generator), device),
        torch.enable_grad(),
        full_precision,
    ):
        stream = cycle(batches)
        first = next(stream)
        shape = token_shape(inner, images_of(first, parameter))
        if start is None:
            start = draw(shape, dtype, config, generator)
        elif tuple(start.shape) != shape or not torch.isfinite(start).all():
            raise NoiseError(f"start noise: expected finite values of shape {shape}, found shape {tuple(start.shape)}.")
        value = broadcast(start.detach().to(device, dtype).clone())
        probe = Probe(inner, chain([first], stream), config, parameter)
        found = search(probe, value, config, on_step or (lambda step: None))
        judged = None if held_out is None else measure(inner, held_out, found.value)
    return Noise(
        value=found.value.cpu(),
        mse_probability=found.trace[-1].mse_probability if found.trace else math.nan,
        steps=found.updates,
        stopped=found.stopped,
        held_out=judged,
        trace=tuple(found.trace),
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
        mse_probability_upper=mean + ONE_SIDED_95 * deviation / math.sqrt(n),
        mse_logits=logit_sum / n,
        agreement=same / n,
        n=int(n),
    )
