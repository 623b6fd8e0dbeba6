"""What a synthesis asks of a model: how far a noise moves its outputs, on one minibatch after another."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ..data.sampling import images_of
from ..errors import NoiseError
from ..models.vit import depends_on_embedding_alone, embedding_seen, encoder_noise, hollow
from ..utils.distributed import mean_over_ranks, sum_over_ranks, world_size
from .noise import NoiseConfig, Step
from .pool import Seen, memory_of, seen_batches

ONE_SIDED_95 = 1.6448536269514722  # standard normal quantile
_LAG = 8  # steps that a GPU may be ahead of the stop test
OnStep = Callable[[Step], object]


def squared_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Squared L2 distance of each row; (B, K), (B, K) -> (B,)."""
    return (a - b).square().sum(dim=-1)


def probability_distance(clean: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
    """``squared_distance`` of the softmax outputs (Algorithm 1, line 8); logits (B, K) -> (B,)."""
    return squared_distance(noisy.softmax(dim=-1), clean.softmax(dim=-1))


class Pending:
    """A tested noise; on a GPU its numbers are on their way, and reading them waits for that step alone.

    Attributes:
        value: the noise.
        moments: means of the images' probability distances and of their squares, on the device.
    """

    def __init__(self, step: int, value: torch.Tensor, numbers: torch.Tensor) -> None:
        self.step, self.value, self.moments = step, value, numbers[::3]
        self._host, self._arrived = numbers, None
        if numbers.is_cuda:
            self._host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._host.copy_(numbers, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> Step:
        """Its numbers on the host.

        Raises:
            NoiseError: a distance is nan or inf.
        """
        if self._arrived is not None:
            self._arrived.synchronize()
        tested = Step(self.step, *self._host[:3].tolist())
        if not math.isfinite(tested.mse_logits):
            raise NoiseError(
                f"synthesis step {self.step}: expected finite logits, found {tested.mse_logits}. "
                "Check the checkpoint and the images for nan, or lower --ns-limit or --ns-lr."
            )
        return tested


def lag_on(device: torch.device) -> int:
    """Steps that may be queued on ``device`` before the first of them is read."""
    return _LAG if device.type == "cuda" else 0


class Probe:
    """Clean and noisy logits of one minibatch after another, and their distances over all ranks.

    Attributes:
        lag: how many steps the stop test may be read behind the last one queued.
    """

    def __init__(self, model: nn.Module, batches: Iterator[Any], config: NoiseConfig, like: torch.Tensor) -> None:
        self.model = model
        self.fresh = (part for batch in batches for part in _parts(images_of(batch, like), config.minibatch))
        self.batches = seen_batches(self.fresh, self._see, config.batches_kept, config.reuse)
        self._many = config.batches_kept > 0
        self.lag = lag_on(like.device)
        self._embedding_is_enough: bool | None = None  # not tried yet
        self.precision: Any = lambda: torch.autocast(
            like.device.type,
            enabled=config.autocast != "off",
            dtype=getattr(torch, config.autocast) if config.autocast != "off" else None,
        )

    def _see(self, images: torch.Tensor) -> Seen:
        with torch.no_grad(), self.precision():
            if self._embedding_is_enough is None:
                self._embedding_is_enough = depends_on_embedding_alone(self.model, images)
            with embedding_seen(self.model) as outputs:
                logits = _at_least_single(self.model(images))
        larger = memory_of(outputs[0]) > memory_of(images)  # as in a Swin: a pool of them could take too much
        if self._embedding_is_enough and not (self._many and larger):
            return Seen(hollow(images), outputs[0], logits)
        return Seen(images, None, logits)

    def _noisy(self, seen: Seen, value: torch.Tensor) -> torch.Tensor:
        with self.precision(), encoder_noise(self.model, value, embedding=seen.embedding):
            return _at_least_single(self.model(seen.images))

    def test(self, value: torch.Tensor, step: int) -> tuple[Pending, torch.Tensor]:
        """The next minibatch's distances, and this rank's loss (Algorithm 1, lines 5-8 and 12)."""
        seen = next(self.batches)
        noisy = self._noisy(seen, value)
        loss = squared_distance(noisy, seen.logits).mean()
        moved = probability_distance(seen.logits, noisy.detach())
        norm = value.detach().norm().to(loss.dtype)
        numbers = torch.stack([moved.mean(), loss.detach(), norm, moved.square().mean()])
        return Pending(step, value.detach().clone(), mean_over_ranks(numbers)), loss

    def some(self, images: int) -> list[Seen]:
        """The stream's next minibatches, ``images`` or a few more over all ranks."""
        found: list[Seen] = []
        while sum(len(seen.logits) for seen in found) < images / world_size():
            found.append(self._see(next(self.fresh)))
        return found

    @torch.no_grad()
    def judge(self, batches: list[Seen], value: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Over ``batches`` of all ranks: the moments that :class:`Pending` has, in float64, and mse_logits."""
        sums = torch.zeros(4, dtype=torch.float64, device=value.device)
        for seen in batches:
            noisy = self._noisy(seen, value)
            moved = probability_distance(seen.logits, noisy).double()
            logits = squared_distance(noisy, seen.logits).double()
            count = moved.new_tensor(float(len(moved)))
            sums += torch.stack([moved.sum(), moved.square().sum(), logits.sum(), count])
        means = sum_over_ranks(sums)[:3] / sums[3]
        return means[:2], float(means[2])


def _parts(images: torch.Tensor, size: int) -> Sequence[torch.Tensor]:
    """Equal parts of at most ``size`` images: a small tail would decide stop tests by luck. Copies, for a pool."""
    if not size or len(images) <= size:
        return (images,)
    return [part.clone() for part in images.tensor_split(math.ceil(len(images) / size))]


def _at_least_single(logits: torch.Tensor) -> torch.Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


class Trace:
    """Every tested noise, noted in its order as its numbers arrive; at most ``lag`` are under way.

    Attributes:
        steps: those that have arrived.
        begun: how many were added.
    """

    def __init__(self, lag: int, on_step: OnStep) -> None:
        self.lag, self.on_step = lag, on_step
        self.steps: list[Step] = []
        self.begun = 0
        self._waiting: deque[Pending] = deque()

    def add(self, pending: Pending) -> Iterator[tuple[Step, torch.Tensor]]:
        """Note one more; yields those that have arrived meanwhile, each with its noise."""
        self.begun += 1
        self._waiting.append(pending)
        yield from self._read(self.lag)

    def rest(self) -> Iterator[tuple[Step, torch.Tensor]]:
        """Those that are still under way."""
        yield from self._read(0)

    def _read(self, behind: int) -> Iterator[tuple[Step, torch.Tensor]]:
        while len(self._waiting) > behind:
            pending = self._waiting.popleft()
            tested = pending.read()
            self.steps.append(tested)
            self.on_step(tested)
            yield tested, pending.value
