"""A noise that is made anew every so many steps: its images, synthesis, threshold, history and state."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ... import data, nullspace
from ...errors import DataError, NoiseError, OptionError
from ...models import find_noise_site, reference_tensor
from ...nullspace import Noise, NoiseConfig
from ...utils import derive_seed, nn, rank, torch, world_size
from .base import Augmentation
from .noise_history import log_noise, noise_row, write_noises

if TYPE_CHECKING:
    from ...data import CountingIterator
    from ...nullspace import OnStep

_logger = logging.getLogger(__name__)
_MAX_HELD_OUT = 256  # training images kept out of synthesis to measure influence on; at most a tenth of them
_MAX_EPS = 2.0  # no squared distance of probabilities is larger
_STREAM, _SYNTHESIS, _, _PERMUTE = range(4)  # uses of randomness, each with its own seeds; the third is of calls


class RenewedNoise(Augmentation):
    """What the companions that train under a noise have in common, whatever they do with it.

    Args:
        eps_growth: factor by which the threshold grows at a renewal while the model keeps up; 1: never.

    The others are those of :class:`~ns_easyrobust.training.augmentations.nullspace.NullspaceAugmentation`.
    """

    Settings = NoiseConfig
    prefix = "ns-"
    solver: ClassVar[str | None] = None  # overrides config.solver

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        config: NoiseConfig | None = None,
        *,
        interval: int = 40,
        warm_start: bool = False,
        held_out: Iterable[Any] | None = None,
        generator: torch.Generator | None = None,
        on_step: OnStep | None = None,
        eps_growth: float = 1.0,
    ) -> None:
        config = config or NoiseConfig()
        config = config if self.solver is None else replace(config, solver=self.solver)
        check_renewal(interval, warm_start, config.solver)
        find_noise_site(model, config.block)  # refuse an unsuitable model now, not at the first step
        choosable = 0
        if isinstance(batches, torch.utils.data.DataLoader):
            parts = data.inspect_loader(batches)
            choosable = _held_out_count(len(parts.indices))
            if parts.ignored is not None:
                _logger.warning("%s is not followed: noise is synthesized on all of the dataset", parts.ignored)
        elif hasattr(batches, "loader"):
            raise DataError(
                f"{type(batches).__name__} wraps a loader and normalises its batches: expected a DataLoader, whose "
                "dataset can be read apart. Build it with use_prefetcher=False, or pass a list of batches."
            )
        if eps_growth > 1 and held_out is None and not choosable:
            raise OptionError(
                "noise eps_growth: expected held-out images to measure on, found none: a list of batches, or a loader "
                "of fewer than 10 images. Give held_out, or leave eps_growth out."
            )
        super().__init__(model, batches, config, generator=generator)
        self.batches: Iterable[Any] = batches
        self.config: NoiseConfig = config
        self.interval, self.warm_start, self.on_step = interval, warm_start, on_step
        self.noise: Noise | None = None
        self.eps, self._eps_growth = config.eps, eps_growth  # the threshold of the next synthesis
        self.history: list[dict[str, Any]] = []
        self._steps = self._position = 0  # steps of loss(); batches used by syntheses
        self._held_out = held_out  # the caller's, or chosen by _open_stream
        self._chooses_held_out = held_out is None and isinstance(batches, torch.utils.data.DataLoader)
        self._stream: CountingIterator | None = None
        self._start: torch.Tensor | None = None  # where the next synthesis starts, with warm_start

    def _device(self) -> torch.device:
        return reference_tensor(self.model).device

    def _seed_for(self, use: int, counter: int) -> int:
        return derive_seed(self._seed, use, counter)

    def _open_stream(self) -> Iterator[Any]:
        """Batches for synthesis, beginning where the last synthesis stopped; sets the held-out images aside."""
        if not isinstance(self.batches, torch.utils.data.DataLoader):
            return data.cycle(self.batches, start=self._position)
        indices: Sequence[int] = data.inspect_loader(self.batches).indices
        if self._chooses_held_out and (count := _held_out_count(len(indices))):
            held_out_indices, indices = data.split_indices(indices, count, self._seed)
            share = held_out_indices[rank() :: world_size()]
            self._held_out = data.fixed_batches(self.batches, share, seed=self._seed)
        return data.endless_batches(
            self.batches,
            seed=self._seed_for(_STREAM, 0),
            rank=rank(),
            world_size=world_size(),
            start=self._position,
            indices=indices,
        )

    def _opened_stream(self) -> CountingIterator:
        if self._stream is None:
            self._stream = data.CountingIterator(self._open_stream())
        return self._stream

    def make_noise(self) -> Noise:
        """Synthesize one noise; subclasses override this."""
        stream = self._opened_stream()
        stream.taken = 0
        noise = nullspace.synthesize(
            self.model,
            stream,
            replace(self.config, eps=self.eps),
            start=self._start,
            held_out=self._held_out,
            on_step=self.on_step,
            generator=torch.Generator().manual_seed(self._seed_for(_SYNTHESIS, len(self.history))),
        )
        self._position += stream.taken
        if self.warm_start:
            self._start = noise.value
        return noise

    def measured_anew(self, noise: Noise) -> Noise:
        """``noise`` with its influence measured on the held-out images, for subclasses that change it."""
        if self._held_out is None:
            return noise
        influence = nullspace.measure(self.model, self._held_out, noise.value, block=self.config.block)
        return replace(noise, mse_probability=influence.mse_probability, held_out=influence)

    @property
    def due(self) -> bool:
        """Whether the next step begins with a synthesis."""
        return self._steps % self.interval == 0

    def _next_eps(self, previous: Noise | None) -> float:
        """The threshold of the noise after ``previous``, whose own it was made with.

        That of a random start that is under eps as it is (:attr:`Noise.untouched`) stays: a larger one would change no
        noise, and grow to its end without the model's doing anything.
        """
        if previous is None or self._eps_growth == 1:
            return self.config.eps
        if previous.untouched:
            return previous.config.eps
        self._opened_stream()  # which sets the held-out images aside
        influence = self.measured_anew(previous).held_out
        keeps_up = influence is not None and influence.mse_probability < previous.config.eps / 2
        return min(self._eps_growth * previous.config.eps, _MAX_EPS) if keeps_up else previous.config.eps

    def refresh(self) -> Noise:
        """Synthesize a new noise for the model as it is now, and append its numbers to ``history``.

        Raises:
            NoiseError: memory is full, or the synthesis failed.
        """
        previous = self.noise
        try:
            self.eps = self._next_eps(previous)
            self.noise = noise = self.make_noise()
        except torch.OutOfMemoryError as error:
            raise NoiseError(
                f"synthesis at step {self._steps}: expected the model and a batch to fit into memory, found it "
                "full. Lower the loader's batch size, or set autocast to bfloat16."
            ) from error
        self.history.append(noise_row(self._steps, noise, previous))
        log_noise(len(self.history), noise)
        return noise

    def state_dict(self) -> dict[str, Any]:
        """Everything that :meth:`load_state_dict` needs for training to go on as if never interrupted."""
        return super().state_dict() | {
            "steps": self._steps,
            "position": self._position,
            "noise": None if self.noise is None else self.noise.state_dict(),
            "start": self._start,
            "history": [dict(entry) for entry in self.history],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; batches and settings must be the same."""
        super().load_state_dict(state)
        self._steps, self._position = state["steps"], state["position"]
        self.noise = None if state["noise"] is None else Noise.from_state_dict(state["noise"])
        self.eps = self.config.eps if self.noise is None else self.noise.config.eps
        # States of earlier versions lack the column, and a table's rows must have the same.
        self.history = [{**entry, "eps": entry.get("eps", self.config.eps)} for entry in state["history"]]
        self._start = state["start"] if self.warm_start else None
        self._stream = None
        if self._chooses_held_out:
            self._held_out = None  # chosen with the old seed; _open_stream chooses anew

    @property
    def numbers(self) -> dict[str, float]:
        """Norm and mse_probability of the noise in use; empty before the first."""
        if not self.history:
            return {}
        latest = self.history[-1]
        return {"noise_norm": latest["norm"], "noise_mse_probability": latest["mse_probability"]}

    def write(self, folder: Path) -> None:
        """Write ``noise.csv``, the numbers of all noises, and ``noise.pt``, the newest."""
        if self.noise is None:
            return
        write_noises(folder, self.file_prefix, self.history, self.noise)


def _held_out_count(images: int) -> int:
    """How many of so many training images are kept out of synthesis."""
    return min(_MAX_HELD_OUT, images // 10)


def check_renewal(interval: int, warm_start: bool, solver: str) -> None:
    """Raise OptionError for ``interval`` < 1, or for a warm start of the random baseline."""
    if interval < 1:
        raise OptionError(f"interval: expected a number of steps >= 1, found {interval}.")
    if warm_start and solver == "random":
        raise OptionError(
            "warm_start: expected noise that is optimised, found the random baseline, which draws each anew. "
            "Leave it out."
        )
