"""Approximate nullspace noise: perturbations of the encoder's input that the model hardly reacts to.

The inner loop of Algorithm 1 of arXiv:2403.10476, the random baseline of its Table 4, and
the measurement of what a noise does on images that it was not fitted to.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from .distributed import broadcast, mean_over_ranks, sum_over_ranks
from .errors import NoiseError, OptionError
from .files import write_atomically
from .randomness import draw_seed, isolated
from .streams import cycle, images_of
from .vit import encoder_noise, frozen, token_shape, unwrap

_ONE_SIDED_95 = 1.6448536269514722  # standard normal quantile
_SHRINK = 0.8  # factor a batch in the authors' random baseline


def _option(default: Any, help: str, **rest: Any) -> Any:
    return field(default=default, metadata={"help": help, **rest})


@dataclass(frozen=True)
class NoiseConfig:
    """Settings of a synthesis; the defaults are the paper's (App. C) and its code's.

    Raises:
        OptionError: a value outside its range.
    """

    limit: float = _option(3.0, "start noise is uniform in (-limit, limit); A in App. C")
    lr: float = _option(0.1, "learning rate of the noise; eta_v in App. C")
    eps: float = _option(0.03, "threshold on mse_probability; epsilon of Eq. 5 and Algorithm 1, line 9")
    max_steps: int = _option(3000, "steps at most; T in App. C")
    weight_decay: float = _option(0.01, "decay of the noise: AdamW's default, which the paper's code leaves on")
    cosine_steps: int = _option(0, "length of a cosine schedule of lr; 0 keeps lr constant")
    solver: str = _option("paper", "how the noise is found", choices=("paper", "random"))
    autocast: str = _option("off", "precision of the forwards", choices=("off", "bfloat16", "float16"))

    def __post_init__(self) -> None:
        for name in ("limit", "lr", "eps"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise OptionError(f"noise {name}: expected a number > 0, found {getattr(self, name)}.")
        for name in ("max_steps", "weight_decay", "cosine_steps"):
            if not getattr(self, name) >= 0:
                raise OptionError(f"noise {name}: expected a number >= 0, found {getattr(self, name)}.")
        for name in ("solver", "autocast"):
            choices = type(self).__dataclass_fields__[name].metadata["choices"]
            if getattr(self, name) not in choices:
                raise OptionError(f"noise {name}: expected one of {', '.join(choices)}, found {getattr(self, name)!r}.")


class Step(NamedTuple):
    """One tested noise: before update ``step``, on one minibatch, averaged over ranks."""

    step: int
    mse_probability: float  # batch mean of ||softmax(z') - softmax(z)||^2
    mse_logits: float  # batch mean of ||z' - z||^2
    norm: float  # ||v||_2


@dataclass(frozen=True)
class Influence:
    """What a noise does to a model's outputs on ``n`` images.

    Attributes:
        mse_probability: mean over images of the squared L2 distance of the softmax outputs, in [0, 2].
        mse_probability_upper: its one-sided 95% upper confidence bound (normal approximation).
        mse_logits: mean squared L2 distance of the logits.
        agreement: share of unchanged predictions, in [0, 1].
        n: number of images, over all ranks.
    """

    mse_probability: float
    mse_probability_upper: float
    mse_logits: float
    agreement: float
    n: int


@dataclass(frozen=True)
class Noise:
    """A perturbation of the encoder's input, and how it was found.

    Attributes:
        value: (1, *tokens), for a ViT (1, N, D); on the CPU.
        mse_probability: on the last minibatch tested; nan for a permuted noise.
        steps: updates made (for the random baseline: times it was shrunk).
        stopped: mse_probability fell under eps on a minibatch, before the steps ran out.
        held_out: its influence on images that it was not fitted to, or None.
        trace: every step tested.
        config: the settings it was made with.
    """

    value: torch.Tensor
    mse_probability: float
    steps: int
    stopped: bool
    held_out: Influence | None
    trace: tuple[Step, ...]
    config: NoiseConfig

    @property
    def norm(self) -> float:
        """L2 norm of the whole value."""
        return float(self.value.double().norm())

    @property
    def converged(self) -> bool | None:
        """Whether the upper bound on held-out images is under eps; None if that was not measured."""
        return None if self.held_out is None else self.held_out.mse_probability_upper < self.config.eps

    def permuted(self, generator: torch.Generator) -> Noise:
        """The norm-matched control: the same elements in a random order (Figure 3a of the paper)."""
        order = torch.randperm(self.value.numel(), generator=generator)
        value = self.value.flatten()[order].view_as(self.value)
        return replace(self, value=value, mse_probability=math.nan, stopped=False, held_out=None)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, so that ``torch.load(weights_only=True)`` reads it."""
        return {
            "format": "ns_easyrobust.noise/1",
            "value": self.value.clone(),
            "mse_probability": self.mse_probability,
            "steps": self.steps,
            "stopped": self.stopped,
            "held_out": None if self.held_out is None else asdict(self.held_out),
            "trace": torch.tensor(self.trace, dtype=torch.float64).reshape(-1, len(Step._fields)),
            "config": asdict(self.config),
        }

    @staticmethod
    def from_state_dict(state: Any) -> Noise:
        """Inverse of :meth:`state_dict`.

        Raises:
            NoiseError: not a noise of this package, or not finite.
        """
        if not isinstance(state, dict) or state.get("format") != "ns_easyrobust.noise/1":
            raise NoiseError("not a noise: expected what Noise.save writes, found another file. Check the path.")
        if not torch.isfinite(state["value"]).all():
            raise NoiseError("noise holds nan or inf: expected finite values. Synthesize it again.")
        return Noise(
            value=state["value"],
            mse_probability=state["mse_probability"],
            steps=state["steps"],
            stopped=state["stopped"],
            held_out=None if state["held_out"] is None else Influence(**state["held_out"]),
            trace=tuple(Step(int(s), p, z, v) for s, p, z, v in state["trace"].tolist()),
            config=NoiseConfig(**state["config"]),
        )

    def save(self, path: str | Path) -> Path:
        """Write to ``path`` atomically."""
        return write_atomically(path, lambda temporary: torch.save(self.state_dict(), temporary))

    @staticmethod
    def load(path: str | Path) -> Noise:
        """Read what :meth:`save` wrote; code in a pickle never runs.

        Raises:
            NoiseError: the file is missing, damaged or something else.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise NoiseError(f"{path}: expected a noise file, found nothing. Check the path.") from None
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise NoiseError(
                f"{path}: expected a noise file, found a damaged or foreign one ({type(error).__name__}). "
                "Synthesize it again."
            ) from error
        return Noise.from_state_dict(state)


def squared_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Squared L2 distance of each row; (B, K), (B, K) -> (B,)."""
    return (a - b).square().sum(dim=-1)


def probability_distance(clean: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
    """``squared_distance`` of the softmax outputs (Algorithm 1, line 8); logits (B, K) -> (B,)."""
    return squared_distance(noisy.softmax(dim=-1), clean.softmax(dim=-1))


class _Probe:
    """Clean and noisy logits of one minibatch after another, and their distances over all ranks."""

    def __init__(self, model: nn.Module, batches: Iterator[Any], config: NoiseConfig, device: torch.device) -> None:
        self.model, self.batches, self.device = model, batches, device
        self.precision: Any = lambda: torch.autocast(
            device.type,
            enabled=config.autocast != "off",
            dtype=getattr(torch, config.autocast) if config.autocast != "off" else None,
        )

    def test(self, value: torch.Tensor, step: int) -> tuple[Step, torch.Tensor]:
        """The next minibatch's distances, and this rank's loss (Algorithm 1, lines 5-8 and 12).

        Raises:
            NoiseError: a distance is nan or inf.
        """
        images = images_of(next(self.batches), self.device)
        with self.precision():
            with torch.no_grad():
                clean = self.model(images)
            with encoder_noise(self.model, value):
                noisy = self.model(images)
        if clean.dtype in (torch.float16, torch.bfloat16):
            clean, noisy = clean.float(), noisy.float()
        loss = squared_distance(noisy, clean).mean()
        mse_probability = probability_distance(clean, noisy.detach()).mean()
        both = mean_over_ranks(torch.stack([mse_probability, loss.detach()]))
        measured, squared = both.tolist()
        tested = Step(step, measured, squared, float(value.detach().norm()))
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
        shape = token_shape(inner, images_of(first, device))
        if start is None:
            start = draw(shape, dtype, config, generator)
        elif tuple(start.shape) != shape or not torch.isfinite(start).all():
            raise NoiseError(f"start noise: expected finite values of shape {shape}, found shape {tuple(start.shape)}.")
        value = broadcast(start.detach().to(device, dtype).clone())
        probe = _Probe(inner, chain([first], stream), config, device)
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

    Eval mode, full precision; the model is afterwards as it was. Over several ranks each
    passes its own share and all get the same result.

    Raises:
        NoiseError: ``value`` does not fit the model, or an output is nan.
        DataError: ``batches`` hold no images.
    """
    device = next(unwrap(model).parameters()).device
    total = torch.zeros(5, dtype=torch.float64, device=device)
    value = value.to(device)
    with frozen(model) as inner, torch.no_grad(), torch.autocast(device.type, enabled=False):
        for batch in batches:
            images = images_of(batch, device)
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
