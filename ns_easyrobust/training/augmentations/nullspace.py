"""Nullspace noise as a training augmentation: one line in a training loop."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ... import data, nullspace
from ...errors import DataError, NoiseError, OptionError
from ...models import encoder_noise, find_noise_site, output_of, reference_tensor
from ...nullspace import Noise, NoiseConfig
from ...utils import derive_seed, fork_rng, nn, rank, torch, world_size
from .base import Augmentation
from .noise_history import log_noise, noise_row, write_noises
from .registry import register_augmentation

if TYPE_CHECKING:
    from typing_extensions import Self

    from ...data import CountingIterator
    from ...nullspace import OnStep

_logger = logging.getLogger(__name__)
_MAX_HELD_OUT = 256  # training images kept out of synthesis to measure influence on; at most a tenth of them
_STREAM, _SYNTHESIS, _, _PERMUTE = range(4)  # uses of randomness, each with its own seeds; the third is of calls


@register_augmentation("nullspace")
class NullspaceAugmentation(Augmentation):
    """The companion loss of Algorithm 1, lines 17-19: the loss under nullspace noise on the encoder's input.

    In a training loop it takes one line::

        ns = NullspaceAugmentation(model, loader)
        for input, target in loader:
            loss = loss_fn(model(input), target) + ns.loss(input, target, loss_fn)

    Call backward once, on the sum: under DDP, a backward of this loss alone would not average
    the gradients over ranks. Construction and synthesis leave the loop's data, its random numbers
    and the model as they were; the noisy forward draws its dropout from separate seeds.

    Args:
        model: the model being trained: a transformer, alone or in a Sequential with its normalisation,
            also in DDP or compiled.
        batches: the training loader, or a list of batches. A loader is never iterated: a private
            copy is built from its dataset (the items that a SubsetRandomSampler can reach), collate
            function, batch size and workers, and up to 256 images (at most a tenth) are kept
            out of synthesis to measure each noise's influence on. Under several ranks, a loader's
            dataset is split among them; a list must already be this rank's share.
        config: settings of the synthesis; the paper's by default.
        interval: steps that share one noise (S of App. C); a step is a call of :meth:`loss`.
        warm_start: start each synthesis from the previous result: faster, but successive noises are similar.
        held_out: batches to measure influence on, instead of images kept out of synthesis.
        generator: source of all seeds (rank 0's is used); by default one with seed 0.
        on_step: called with each synthesis :class:`~ns_easyrobust.nullspace.noise.Step`, for progress bars.

    Raises:
        ModelError: the model has no single patch embedding, or no blocks where ``config.block`` names one.
        DataError: the loader cannot be copied.
        OptionError: ``interval`` < 1, ``warm_start`` with the random baseline, or a block that the model does not have.

    Example:
        >>> ns = NullspaceAugmentation(model, loader, NoiseConfig(max_steps=5), interval=2)
        >>> loss_fn = torch.nn.functional.cross_entropy
        >>> for input, target in loader:
        ...     loss = loss_fn(model(input), target) + ns.loss(input, target, loss_fn)
        >>> [entry["step"] for entry in ns.history]  # the noise was renewed before these
        [0, 2, 4]
    """

    Settings = NoiseConfig
    prefix = "ns-"
    loss_name = "noisy_loss"
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
    ) -> None:
        config = config or NoiseConfig()
        config = config if self.solver is None else replace(config, solver=self.solver)
        _check(interval, warm_start, config.solver)
        find_noise_site(model, config.block)  # refuse an unsuitable model now, not at the first step
        if isinstance(batches, torch.utils.data.DataLoader):
            if (ignored := data.inspect_loader(batches).ignored) is not None:
                _logger.warning("%s is not followed: noise is synthesized on all of the dataset", ignored)
        elif hasattr(batches, "loader"):
            raise DataError(
                f"{type(batches).__name__} wraps a loader and normalises its batches: expected a DataLoader, whose "
                "dataset can be read apart. Build it with use_prefetcher=False, or pass a list of batches."
            )
        super().__init__(model, batches, config, generator=generator)
        self.batches: Iterable[Any] = batches
        self.config: NoiseConfig = config
        self.interval, self.warm_start, self.on_step = interval, warm_start, on_step
        self.noise: Noise | None = None
        self.history: list[dict[str, Any]] = []
        self._steps = self._position = 0  # steps of loss(); batches used by syntheses
        self._held_out = held_out  # the caller's, or chosen by _open_stream
        self._chooses_held_out = held_out is None and isinstance(batches, torch.utils.data.DataLoader)
        self._stream: CountingIterator | None = None
        self._value: torch.Tensor | None = None  # self.noise.value on the model's device
        self._start: torch.Tensor | None = None  # where the next synthesis starts, with warm_start

    @classmethod
    def from_args(
        cls,
        args: argparse.Namespace,
        model: nn.Module,
        batches: Iterable[Any],
        *,
        generator: torch.Generator | None = None,
        on_step: OnStep | None = None,
    ) -> Self:
        """The companion that parsed flags ask for; ``on_step`` is called with each step of a synthesis."""
        options: dict[str, Any] = {"interval": args.ns_interval, "warm_start": args.ns_warm_start}
        return cls(model, batches, cls.config_from(args), **options, generator=generator, on_step=on_step)

    @classmethod
    def check(cls, args: argparse.Namespace) -> None:
        """Raise OptionError for flags that are out of range or exclude each other, before anything is built."""
        _check(args.ns_interval, args.ns_warm_start, cls.solver or cls.config_from(args).solver)

    @classmethod
    def cost(cls, config: NoiseConfig) -> float:
        """The noisy branch's 3."""
        return 3.0

    @classmethod
    def synthesis_cost(cls, config: NoiseConfig) -> float:
        """3 a step of the search, at most: the clean forward, the noisy one, and its backward to the noise.

        (Where the clean logits are kept, or the search stops earlier, it costs less. The random baseline has none.)
        """
        return 0.0 if (cls.solver or config.solver) == "random" else 3.0 * config.max_steps

    def _device(self) -> torch.device:
        return reference_tensor(self.model).device

    def _seed_for(self, use: int, counter: int) -> int:
        return derive_seed(self._seed, use, counter)

    def _open_stream(self) -> Iterator[Any]:
        """Batches for synthesis, beginning where the last synthesis stopped; sets the held-out images aside."""
        if not isinstance(self.batches, torch.utils.data.DataLoader):
            return data.cycle(self.batches, start=self._position)
        indices: Sequence[int] = data.inspect_loader(self.batches).indices
        if self._chooses_held_out and (count := min(_MAX_HELD_OUT, len(indices) // 10)):
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

    def make_noise(self) -> Noise:
        """Synthesize one noise; subclasses override this."""
        if self._stream is None:
            self._stream = data.CountingIterator(self._open_stream())
        self._stream.taken = 0
        noise = nullspace.synthesize(
            self.model,
            self._stream,
            self.config,
            start=self._start,
            held_out=self._held_out,
            on_step=self.on_step,
            generator=torch.Generator().manual_seed(self._seed_for(_SYNTHESIS, len(self.history))),
        )
        self._position += self._stream.taken
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

    def refresh(self) -> Noise:
        """Synthesize a new noise for the model as it is now, and append its numbers to ``history``.

        Raises:
            NoiseError: memory is full, or the synthesis failed.
        """
        previous = self.noise
        try:
            self.noise = noise = self.make_noise()
        except torch.OutOfMemoryError as error:
            raise NoiseError(
                f"synthesis at step {self._steps}: expected the model and a batch to fit into memory, found it "
                "full. Lower the loader's batch size, or set autocast to bfloat16."
            ) from error
        self._value = None
        self.history.append(noise_row(self._steps, noise, previous))
        log_noise(len(self.history), noise)
        return noise

    def loss(
        self,
        input: torch.Tensor,
        target: torch.Tensor,
        loss_fn: Callable[[Any, torch.Tensor], torch.Tensor],
        *,
        new_step: bool = True,
    ) -> torch.Tensor:
        """The companion loss, which is the loss of ``input`` under the noise, to be added to the clean loss (line 19).

        Runs in the model's current mode and under the caller's autocast. A new noise is
        synthesized at the first step and after every ``interval`` steps.

        Args:
            input: (B, C, H, W), what the model gets for the clean loss, after mixup.
            target: labels (B,) or soft targets (B, K), as ``loss_fn`` expects.
            loss_fn: the loop's loss function.
            new_step: False for a further loss in the same step, which does not count towards ``interval``.

        Returns:
            What ``loss_fn`` returns for the noisy outputs.
        """
        if new_step or self.noise is None:
            if self.due:
                self.refresh()
            self._steps += 1
        assert self.noise is not None
        seed = self.next_seed()
        if self._value is None:
            self._value = self.noise.value.to(self._device())
        with encoder_noise(self.model, self._value, block=self.config.block) as inner, fork_rng(seed, input.device):
            return loss_fn(output_of(inner, input), target)

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
        self.history = [dict(entry) for entry in state["history"]]
        self._start = state["start"] if self.warm_start else None
        self._stream = self._value = None
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


def _check(interval: int, warm_start: bool, solver: str) -> None:
    """Raise OptionError for ``interval`` < 1, or for a warm start of the random baseline."""
    if interval < 1:
        raise OptionError(f"interval: expected a number of steps >= 1, found {interval}.")
    if warm_start and solver == "random":
        raise OptionError(
            "warm_start: expected noise that is optimised, found the random baseline, which draws each anew. "
            "Leave it out."
        )
