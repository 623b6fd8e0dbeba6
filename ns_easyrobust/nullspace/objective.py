"""The objective of a synthesis: how far a noise moves a model's outputs, minibatch by minibatch."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..data import images_of
from ..errors import NoiseError
from ..models import (
    capture_patch_embed,
    depends_on_embedding_alone,
    encoder_noise,
    logits_of,
    output_of,
    storage_free_zeros,
)
from ..utils import mean_over_ranks, nn, sum_over_ranks, torch, world_size
from .config import NoiseConfig
from .distances import DistanceMeans, DistanceSums, Moments, probability_distance, squared_distance
from .noise import Step

_logger = logging.getLogger(__name__)
_GPU_LAG = 8  # steps by which the stop test may trail a GPU
OnStep = Callable[[Step], object]


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


class _StepMeans(NamedTuple):
    """Numbers of one test, 0-dim; stacked, they are averaged over ranks and copied to the host in one go."""

    mse_probability: torch.Tensor
    mse_logits: torch.Tensor
    norm: torch.Tensor
    probability_mean_square: torch.Tensor


class StepFuture:
    """The pending result of one test; on a GPU it is copied asynchronously, and reading it waits for that step alone.

    Attributes:
        step: number of the test.
        value: the noise tested.
        moments: of the probability distance, on the device.
    """

    def __init__(self, step: int, value: torch.Tensor, means: torch.Tensor) -> None:
        self.step, self.value = step, value
        on_device = _StepMeans(*means)
        self.moments = Moments(on_device.mse_probability, on_device.probability_mean_square)
        self._on_host, self._copied = means, None
        if means.is_cuda:
            self._on_host = torch.empty(means.shape, dtype=means.dtype, pin_memory=True)
            self._on_host.copy_(means, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> Step:
        """The result, once it is on the host.

        Raises:
            NoiseError: mse_logits is nan or inf.
        """
        if self._copied is not None:
            self._copied.synchronize()
        means = _StepMeans(*self._on_host)
        tested = Step(self.step, float(means.mse_probability), float(means.mse_logits), float(means.norm))
        if not math.isfinite(tested.mse_logits):
            raise NoiseError(
                f"synthesis step {self.step}: expected finite logits, found {tested.mse_logits}. "
                "Check the checkpoint and the images for nan, or lower limit or lr."
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
        self.model, self._block = model, config.block
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
                logits = _at_least_float32(output_of(self.model, images))
        # In a Swin the embedding is larger than the images, and a pool of embeddings could take too much memory.
        embedding_is_larger = memory_of(outputs[0]) > memory_of(images)
        if self._embedding_is_enough and not (self._has_pool and embedding_is_larger):
            return CleanBatch(storage_free_zeros(images), outputs[0], logits)
        return CleanBatch(images, None, logits)

    def _noisy_forward(self, batch: CleanBatch, value: torch.Tensor) -> torch.Tensor:
        with self.precision(), encoder_noise(self.model, value, embedding=batch.embedding, block=self._block):
            return _at_least_float32(self.model(batch.images))

    def next_logits(self, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Clean and noisy logits (B, K) of the next minibatch (Algorithm 1, lines 5-7).

        Of a batch from the pool, the clean logits are known, and where the model allows it the embedding too.
        """
        batch = next(self.batches)
        return batch.logits, self._noisy_forward(batch, value)

    def start_test(self, step: int, value: torch.Tensor, distance: torch.Tensor, loss: torch.Tensor) -> StepFuture:
        """Queue a test of ``value`` by a minibatch's probability distances (B,) and loss, averaged over all ranks."""
        means = _StepMeans(
            mse_probability=distance.mean(),
            mse_logits=loss.detach(),
            norm=value.detach().norm().to(loss.dtype),
            probability_mean_square=distance.square().mean(),
        )
        return StepFuture(step, value.detach().clone(), mean_over_ranks(torch.stack(means)))

    def evaluate(self, value: torch.Tensor, step: int) -> tuple[StepFuture, torch.Tensor]:
        """Test ``value`` on the next minibatch; also returns this rank's loss (Algorithm 1, lines 5-8 and 12)."""
        clean, noisy = self.next_logits(value)
        loss = squared_distance(noisy, clean).mean()
        distance = probability_distance(clean, noisy.detach())
        return self.start_test(step, value, distance, loss), loss

    def take(self, images: int) -> tuple[list[CleanBatch], int]:
        """The stream's next minibatches, outside the pool: ``images`` images over all ranks, or a few more.

        Also how many of them, over all ranks, are distinct: a short stream begins anew.
        """
        taken: list[CleanBatch] = []
        distinct: set[int] = set()
        while sum(len(batch.logits) for batch in taken) < images / world_size():
            fresh = next(self.fresh)
            distinct.update(hash(image.cpu().contiguous().view(torch.uint8).numpy().tobytes()) for image in fresh)
            taken.append(self._clean_forward(fresh))
        count = sum_over_ranks(torch.tensor(float(len(distinct)), device=taken[0].logits.device))
        return taken, int(count)

    def evaluate_on(self, batches: list[CleanBatch], value: torch.Tensor) -> DistanceMeans:
        """Test ``value`` on the ``batches`` of all ranks."""
        sums = DistanceSums(value.device)
        with torch.no_grad():
            for clean, noisy in self.evaluate_each(batches, value):
                sums.add(clean, noisy)
        return sums.means_over_ranks()

    def evaluate_each(
        self, batches: list[CleanBatch], value: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Clean and noisy logits (B, K) of each of this rank's ``batches``."""
        for batch in batches:
            yield batch.logits, self._noisy_forward(batch, value)


def _minibatches(images: torch.Tensor, size: int) -> Sequence[torch.Tensor]:
    """Split into nearly equal minibatches of at most ``size`` images; a small last one could stop a search by luck.

    They are copies: in a pool, a view would keep the whole batch in memory.
    """
    if not size or len(images) <= size:
        return (images,)
    return [minibatch.clone() for minibatch in images.tensor_split(math.ceil(len(images) / size))]


def _at_least_float32(output: Any) -> torch.Tensor:
    logits = logits_of(output)
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


class StepHistory:
    """All tests of a search, in order; the results of the last ``lag`` may be pending.

    Attributes:
        lag: how many results may be pending.
        on_step: called with each :class:`Step` as its result arrives.
        steps: results that have arrived.
        num_added: number of tests added.
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

    def record(self, tested: Step) -> None:
        """Take in a result that has arrived."""
        self.steps.append(tested)
        self.on_step(tested)

    def _read(self, max_pending: int) -> Iterator[tuple[Step, torch.Tensor]]:
        while len(self._pending) > max_pending:
            pending = self._pending.popleft()
            tested = pending.read()
            self.record(tested)
            yield tested, pending.value
