"""The objective of a synthesis: how far a noise moves a model's outputs, minibatch by minibatch."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from ..data import images_of
from ..errors import NoiseError
from ..models import capture_patch_embed, depends_on_embedding_alone, encoder_noise, storage_free_zeros
from ..utils import mean_over_ranks, sum_over_ranks, world_size
from .config import NoiseConfig
from .noise import Step

_logger = logging.getLogger(__name__)


class CleanBatch(NamedTuple):
    """A batch of images, or of their patch embeddings instead, with its clean logits.

    Attributes:
        images: (B, C, H, W); zeros without storage where the embedding is kept instead.
        embedding: output of the patch embedding; None where the images are kept.
        logits: clean logits (B, K).
    """

    images: torch.Tensor
    embedding: Any
    logits: torch.Tensor

    @property
    def memory(self) -> int:
        """Size in bytes."""
        return sum(map(memory_of, self))


def memory_of(part: Any) -> int:
    """Bytes of a tensor, or of all tensors in a tuple; storage-free zeros count as one element."""
    if isinstance(part, tuple):
        return sum(map(memory_of, part))
    if not isinstance(part, torch.Tensor):
        return 0
    return min(part.numel() * part.element_size(), part.untyped_storage().nbytes())


@dataclass
class _PooledBatch:
    batch: CleanBatch
    uses: int = 1


def clean_batches(
    batches: Iterator[torch.Tensor], see: Callable[[torch.Tensor], CleanBatch], size: int, reuse: int
) -> Iterator[CleanBatch]:
    """Endlessly yield clean batches, using a pool of ``size`` batches in turn.

    A kept batch keeps the augmentation with which it was drawn. Once the pool is full, its memory, on the images'
    device, is logged.

    Args:
        batches: images (B, C, H, W) of each batch.
        see: computes the clean batch of such images.
        size: batches kept; with 0 each is used once.
        reuse: uses of a batch before a fresh one takes its place; 0 keeps the first ``size`` for good.
    """
    if not size:
        yield from map(see, batches)
        return
    pool: list[_PooledBatch] = []
    for _ in range(size):
        pool.append(_PooledBatch(see(next(batches))))
        yield pool[-1].batch
    pool_bytes = sum(pooled.batch.memory for pooled in pool)
    _logger.info("synthesis keeps %d batches with their clean logits: %.1f MiB", size, pool_bytes / 2**20)
    while True:
        for index, pooled in enumerate(pool):
            if reuse and pooled.uses >= reuse:
                pool[index] = _PooledBatch(see(next(batches)))
            else:
                pooled.uses += 1
            yield pool[index].batch


ONE_SIDED_95 = 1.6448536269514722  # 0.95 quantile of the standard normal distribution
_GPU_LAG = 8  # steps by which the stop test may trail a GPU
OnStep = Callable[[Step], object]


def squared_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Squared L2 distance of each pair of rows; (B, K), (B, K) -> (B,)."""
    return (a - b).square().sum(dim=-1)


def probability_distance(clean: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
    """``squared_distance`` of the softmax outputs (Algorithm 1, line 8); logits (B, K) -> (B,)."""
    return squared_distance(noisy.softmax(dim=-1), clean.softmax(dim=-1))


class StepFuture:
    """The pending result of one test; on a GPU it is copied asynchronously, and reading it waits for that step alone.

    ``numbers`` (4,) are the mse_probability, mse_logits and norm of :class:`Step`, and the second of the ``moments``.

    Attributes:
        step: number of the test.
        value: the noise tested.
        moments: (2,), means over images of the probability distance and of its square, on the device.
    """

    def __init__(self, step: int, value: torch.Tensor, numbers: torch.Tensor) -> None:
        self.step, self.value, self.moments = step, value, numbers[::3]
        self._on_host, self._copied = numbers, None
        if numbers.is_cuda:
            self._on_host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._on_host.copy_(numbers, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> Step:
        """The result, once it is on the host.

        Raises:
            NoiseError: mse_logits is nan or inf.
        """
        if self._copied is not None:
            self._copied.synchronize()
        tested = Step(self.step, *self._on_host[:3].tolist())
        if not math.isfinite(tested.mse_logits):
            raise NoiseError(
                f"synthesis step {self.step}: expected finite logits, found {tested.mse_logits}. "
                "Check the checkpoint and the images for nan, or lower --ns-limit or --ns-lr."
            )
        return tested


def lag_on(device: torch.device) -> int:
    """Steps that may be queued on ``device`` before the first of them is read."""
    return _GPU_LAG if device.type == "cuda" else 0


class NoiseObjective:
    """Distances between clean and noisy outputs, over all ranks, minibatch by minibatch.

    Attributes:
        model: the model, in eval mode and frozen.
        fresh: stream of minibatches of images.
        batches: the minibatches of the steps, with clean logits, through the pool where there is one.
        lag: steps by which reading the stop test may trail the last step queued.
        precision: returns the autocast context in which a forward runs.
    """

    def __init__(self, model: nn.Module, batches: Iterator[Any], config: NoiseConfig, like: torch.Tensor) -> None:
        self.model = model
        self.fresh = (images for batch in batches for images in _minibatches(images_of(batch, like), config.minibatch))
        self.batches = clean_batches(self.fresh, self._clean_forward, config.batches_kept, config.reuse)
        self._has_pool = config.batches_kept > 0
        self.lag = lag_on(like.device)
        self._embedding_is_enough: bool | None = None  # None: not tested yet
        self.precision: Any = lambda: torch.autocast(
            like.device.type,
            enabled=config.autocast != "off",
            dtype=getattr(torch, config.autocast) if config.autocast != "off" else None,
        )

    def _clean_forward(self, images: torch.Tensor) -> CleanBatch:
        with torch.no_grad(), self.precision():
            if self._embedding_is_enough is None:
                self._embedding_is_enough = depends_on_embedding_alone(self.model, images)
            with capture_patch_embed(self.model) as outputs:
                logits = _at_least_float32(self.model(images))
        # In a Swin the embedding is larger than the images, and a pool of embeddings could take too much memory.
        embedding_is_larger = memory_of(outputs[0]) > memory_of(images)
        if self._embedding_is_enough and not (self._has_pool and embedding_is_larger):
            return CleanBatch(storage_free_zeros(images), outputs[0], logits)
        return CleanBatch(images, None, logits)

    def _noisy_forward(self, batch: CleanBatch, value: torch.Tensor) -> torch.Tensor:
        with self.precision(), encoder_noise(self.model, value, embedding=batch.embedding):
            return _at_least_float32(self.model(batch.images))

    def evaluate(self, value: torch.Tensor, step: int) -> tuple[StepFuture, torch.Tensor]:
        """Test ``value`` on the next minibatch; also returns this rank's loss (Algorithm 1, lines 5-8 and 12)."""
        batch = next(self.batches)
        noisy = self._noisy_forward(batch, value)
        loss = squared_distance(noisy, batch.logits).mean()
        distance = probability_distance(batch.logits, noisy.detach())
        norm = value.detach().norm().to(loss.dtype)
        numbers = torch.stack([distance.mean(), loss.detach(), norm, distance.square().mean()])
        return StepFuture(step, value.detach().clone(), mean_over_ranks(numbers)), loss

    def take(self, images: int) -> list[CleanBatch]:
        """The stream's next minibatches, outside the pool: ``images`` images over all ranks, or a few more."""
        taken: list[CleanBatch] = []
        while sum(len(batch.logits) for batch in taken) < images / world_size():
            taken.append(self._clean_forward(next(self.fresh)))
        return taken

    @torch.no_grad()
    def evaluate_on(self, batches: list[CleanBatch], value: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Moments as in :class:`StepFuture`, but in float64, and mse_logits; over the ``batches`` of all ranks."""
        sums = torch.zeros(4, dtype=torch.float64, device=value.device)
        for batch in batches:
            noisy = self._noisy_forward(batch, value)
            distance = probability_distance(batch.logits, noisy).double()
            logit_distance = squared_distance(noisy, batch.logits).double()
            count = distance.new_tensor(float(len(distance)))
            sums += torch.stack([distance.sum(), distance.square().sum(), logit_distance.sum(), count])
        means = sum_over_ranks(sums)[:3] / sums[3]  # summed in place: sums[3] counts the images of all ranks
        return means[:2], float(means[2])


def _minibatches(images: torch.Tensor, size: int) -> Sequence[torch.Tensor]:
    """Split into nearly equal minibatches of at most ``size`` images; a small last one could stop a search by luck.

    They are copies: in a pool, a view would keep the whole batch in memory.
    """
    if not size or len(images) <= size:
        return (images,)
    return [minibatch.clone() for minibatch in images.tensor_split(math.ceil(len(images) / size))]


def _at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


class StepHistory:
    """All tests of a search, in order; the results of the last ``lag`` may be pending.

    Attributes:
        lag: how many results may be pending.
        on_step: called with each :class:`Step` as its result arrives.
        steps: results that have arrived.
        begun: number of tests added.
    """

    def __init__(self, lag: int, on_step: OnStep) -> None:
        self.lag, self.on_step = lag, on_step
        self.steps: list[Step] = []
        self.num_added = 0
        self._pending: deque[StepFuture] = deque()

    def add(self, pending: StepFuture) -> Iterator[tuple[Step, torch.Tensor]]:
        """Add a test; yields the results that are then due, each with the noise tested. Does nothing until iterated."""
        self.num_added += 1
        self._pending.append(pending)
        yield from self._read(self.lag)

    def drain(self) -> Iterator[tuple[Step, torch.Tensor]]:
        """Yields the results that are still pending, each with the noise tested."""
        yield from self._read(0)

    def _read(self, max_pending: int) -> Iterator[tuple[Step, torch.Tensor]]:
        while len(self._pending) > max_pending:
            pending = self._pending.popleft()
            tested = pending.read()
            self.steps.append(tested)
            self.on_step(tested)
            yield tested, pending.value
