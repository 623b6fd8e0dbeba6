"""Synthesis of approximate nullspace noise, and measurement of its influence."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from contextlib import nullcontext
from itertools import chain
from typing import Any

import torch
from torch import nn

from ..data import cycle, images_of
from ..errors import NoiseError
from ..models import encoder_noise, frozen, fused_attention, logits_of, output_of, reference_tensor, token_shape
from ..utils import broadcast, draw_seed, fork_rng
from .config import NoiseConfig
from .distances import ONE_SIDED_95, DistanceSums
from .noise import Influence, Noise
from .objective import NoiseObjective, OnStep
from .solvers import known_solvers

_logger = logging.getLogger(__name__)


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
    """Search for noise with mse_probability < eps, by default with Algorithm 1 of arXiv:2403.10476 (Eq. 7 and 8).

    The model runs in eval mode and full precision (unless ``config.autocast`` says otherwise)
    with its parameters frozen; afterwards it and the global random generators are as before. With
    several ranks, each passes its own share of the images; the start is rank 0's, and gradients and
    stop tests are averaged, so that every rank returns the same noise.

    Args:
        model: maps images (B, C, H, W) to logits (B, K); may be wrapped in DDP.
        batches: images, as the model expects them, or (images, labels); cycled when they run out.
        config: settings, the solver among them; the paper's by default.
        start: noise (1, *tokens) to start from, instead of a random one.
        held_out: batches on which to measure the influence of the result; without them ``converged`` is None.
        on_step: called with each :class:`Step`.
        generator: source of the start noise and of the seed for what ``batches`` draw; seed 0 by default.

    Raises:
        ModelError: the model has no patch embedding, or several, or no blocks where ``config.block`` names one.
        OptionError: the model has no block ``config.block``.
        DataError: ``batches`` are empty, a one-shot iterator that ran out, not images, or of another size than the
            model is built for.
        NoiseError: ``start`` does not fit the model or is not finite, a distance or the noise became nan or inf, or
            ``held_out`` is empty.

    A start that is under eps already is returned as it is (:attr:`Noise.untouched`), and a warning says so.

    Example:
        >>> noise = synthesize(model, loader, NoiseConfig(max_steps=200), held_out=loader)
        >>> noise.value.shape, noise.stopped, noise.held_out.n
        (torch.Size([1, 16, 64]), True, 40)
    """
    config = config or NoiseConfig()
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    parameter = reference_tensor(model)
    device, dtype = parameter.device, torch.promote_types(parameter.dtype, torch.float32)
    solver = known_solvers()[config.solver]
    full_precision = torch.autocast(device.type, enabled=False)  # else the caller's affects the backward pass too
    with (
        frozen(model) as inner,
        fused_attention(inner) if device.type == "cuda" else nullcontext(),  # no faster on a CPU
        fork_rng(draw_seed(generator), device),
        torch.enable_grad(),
        full_precision,
    ):
        stream = cycle(batches)
        first = next(stream)
        shape = token_shape(inner, images_of(first, parameter), config.block)
        is_random = start is None
        if start is None:
            start = _draw_start(shape, dtype, config, generator)
        elif tuple(start.shape) != shape or not torch.isfinite(start).all():
            raise NoiseError(f"start noise: expected finite values of shape {shape}, found shape {tuple(start.shape)}.")
        value = broadcast(start.detach().to(device, dtype).clone())
        objective = NoiseObjective(inner, chain([first], stream), config, parameter)
        result = solver.solve(objective, value, config, on_step or (lambda step: None))
        is_start = torch.equal(result.value, value)
        if not torch.isfinite(result.value).all():  # as after a last update, which no test follows
            raise NoiseError(
                f"synthesis, {result.updates} updates: expected finite noise, found nan or inf. Lower limit or lr."
            )
        influence = None if held_out is None else measure(inner, held_out, result.value, block=config.block)
    noise = Noise(
        value=result.value.cpu(),
        mse_probability=result.history[-1].mse_probability if result.history else math.nan,
        steps=result.updates,
        stopped=result.stopped,
        held_out=influence,
        trace=tuple(result.history),
        config=config,
    )
    if noise.untouched and is_start and is_random:
        _logger.warning(
            "this noise is its random start, under eps = %g already as the model hardly reacts to it: nothing was "
            "optimised. Start from a trained checkpoint, lower eps%s.",
            config.eps,
            "" if solver.gaussian else f", or raise limit (now {config.limit:g})",
        )
    elif noise.untouched and is_start:
        _logger.info("the start given is under eps = %g already and is returned as it is", config.eps)
    return noise


def _draw_start(shape: tuple[int, ...], dtype: torch.dtype, config: NoiseConfig, g: torch.Generator) -> torch.Tensor:
    start = torch.empty(shape, dtype=dtype)
    if known_solvers()[config.solver].gaussian:
        return start.normal_(generator=g)
    return start.uniform_(-config.limit, config.limit, generator=g)


def measure(model: nn.Module, batches: Iterable[Any], value: torch.Tensor, *, block: int = -1) -> Influence:
    """Influence of encoder noise ``value`` (1, *tokens), measured in one pass over ``batches``.

    The model runs in eval mode and full precision; afterwards it and the global random generators
    are as before (what ``batches`` draw comes from seed 0). With several ranks, each passes its own
    share of the images and all get the same result. ``block`` says where the noise is added, as ``NoiseConfig.block``.

    Raises:
        NoiseError: ``value`` does not fit the model, ``batches`` are empty, or a distance is nan or inf.
        OptionError: the model has no such block.
        DataError: a batch does not hold images.

    Example:
        >>> noise = synthesize(model, loader, NoiseConfig(max_steps=200))
        >>> permuted = noise.permuted(torch.Generator().manual_seed(0))
        >>> found, control = (measure(model, loader, each.value).mse_probability for each in (noise, permuted))
        >>> found < control
        True
    """
    parameter = reference_tensor(model)
    device = parameter.device
    value = value.to(device)
    sums = DistanceSums(device)
    full_precision = torch.autocast(device.type, enabled=False)
    with frozen(model) as inner, torch.no_grad(), full_precision, fork_rng(0, device):
        for batch in batches:
            images = images_of(batch, parameter)
            clean = logits_of(output_of(inner, images), len(images)).double()
            with encoder_noise(inner, value, block=block):
                noisy = logits_of(inner(images), len(images)).double()
            sums.add(clean, noisy)
    means = sums.means_over_ranks()
    n, mse_logits = int(means.n), float(means.mse_logits)
    if not n:
        raise NoiseError("no images to measure on: expected at least one batch, found none.")
    if not math.isfinite(mse_logits):
        raise NoiseError("measuring: expected finite logits, found nan or inf. Check the noise and the checkpoint.")
    mean, mean_square = float(means.probability.mean), float(means.probability.mean_square)
    deviation = math.sqrt(max(mean_square - mean**2, 0.0) * n / (n - 1)) if n > 1 else math.inf
    return Influence(
        mse_probability=mean,
        mse_probability_upper=mean + ONE_SIDED_95 * deviation / math.sqrt(n),
        mse_logits=mse_logits,
        agreement=float(means.agreement),
        n=n,
    )
