"""Nullspace noise as a training augmentation: one line in anyone's loop, and the flags of ``--aug``."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.data import DataLoader

from ...data.sampling import Counted, cycle, endless, fixed_batches, parts_of, split_indices
from ...errors import DataError, NoiseError, OptionError
from ...models.vit import encoder_noise, find_patch_embed, unwrap
from ...nullspace.noise import Noise, NoiseConfig
from ...nullspace.objective import OnStep
from ...nullspace.synthesis import measure, synthesize
from ...utils.distributed import broadcast, rank, world_size
from ...utils.seeding import draw_seed, isolated, mix

_logger = logging.getLogger(__name__)
_HELD_OUT = 256  # images of the training set kept back to judge the noise on, at most a tenth of it
_STREAM, _SYNTHESIS, _FORWARD, _PERMUTE = range(4)  # uses of randomness, each with seeds of its own

AUGMENTATIONS: dict[str, type[NullspaceAugmentation]] = {}


def register_augmentation(name: str) -> Callable[[type[NullspaceAugmentation]], type[NullspaceAugmentation]]:
    """Class decorator: make an augmentation available as ``--aug NAME``."""

    def register(kind: type[NullspaceAugmentation]) -> type[NullspaceAugmentation]:
        AUGMENTATIONS[name] = kind
        return kind

    return register


@register_augmentation("nullspace")
class NullspaceAugmentation:
    """The companion loss of Algorithm 1, lines 17-19: the same batch with nullspace noise on the encoder's input.

    In a loop of one's own it is one line::

        ns = NullspaceAugmentation(model, loader)
        for input, target in loader:
            loss = loss_fn(model(input), target) + ns.loss(input, target, loss_fn)

    Call backward once, on the sum: under DDP a backward of this loss alone would not average
    the gradients over ranks. Constructing it and synthesizing noise change neither the loop's data, nor its random
    numbers, nor the model; the noisy forward draws its dropout from a stream of its own.

    Args:
        model: what the loop trains: transformer, Sequential with normalisation, DDP, compiled.
        batches: the training loader, or a list of batches. A loader is never iterated: a private
            copy is built from its dataset (what a SubsetRandomSampler reaches of it), collate
            function, batch size and workers, and up to 256 images (a tenth at most) are kept
            back from synthesis to judge each noise on. Under several ranks, a loader's dataset
            is dealt to them; a list must already be this rank's share.
        config: settings of the synthesis.
        interval: steps that share one noise (S of App. C); a step is a call of :meth:`loss`.
        warm_start: begin each synthesis with the last one's result: sooner, but at noises that are alike.
        held_out: batches to judge the noise on, instead of images kept back.
        generator: where all seeds come from (rank 0's counts); seed 0 by default.
        on_step: called with each synthesis :class:`~ns_easyrobust.nullspace.noise.Step`, for progress bars.

    Raises:
        ModelError: the model has no single patch embedding.
        DataError: a loader that cannot be copied.
        OptionError: ``interval`` < 1, or a warm start of the random baseline.
    """

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
        self.config = config if self.solver is None else replace(config, solver=self.solver)
        _check(interval, warm_start, self.config.solver)
        find_patch_embed(model)  # what does not fit is refused now, not after an epoch
        if isinstance(batches, DataLoader):
            if (ignored := parts_of(batches).ignored) is not None:
                _logger.warning("%s is not followed: noise is synthesized on all of the dataset", ignored)
        elif hasattr(batches, "loader"):
            raise DataError(
                f"{type(batches).__name__} wraps a loader and normalises its batches: expected a DataLoader, whose "
                "dataset can be read apart. Build it with use_prefetcher=False, or pass a list of batches."
            )
        self.model, self.batches, self.interval, self.on_step = model, batches, interval, on_step
        self.warm_start = warm_start
        generator = generator if generator is not None else torch.Generator().manual_seed(0)
        self.noise: Noise | None = None
        self.history: list[dict[str, Any]] = []
        self._seed = int(broadcast(torch.tensor(draw_seed(generator), device=self._device())))
        self._steps = self._calls = self._position = 0  # steps and calls of loss(); batches that syntheses have used
        self._held_out = held_out  # what the caller gave, or what _open_stream keeps back
        self._keeps_back = held_out is None and isinstance(batches, DataLoader)
        self._stream: Counted | None = None
        self._value: torch.Tensor | None = None  # of self.noise, on the model's device
        self._start: torch.Tensor | None = None  # of the next synthesis, where it is a warm one

    def _device(self) -> torch.device:
        return next(unwrap(self.model).parameters()).device

    def _seed_for(self, use: int, counter: int) -> int:
        return mix(self._seed, use, counter)

    def _open_stream(self) -> Iterator[Any]:
        """Batches for synthesis from where the last one stopped; sets the held-out images aside."""
        if not isinstance(self.batches, DataLoader):
            return cycle(self.batches, start=self._position)
        indices: Sequence[int] = parts_of(self.batches).indices
        if self._keeps_back and (part := min(_HELD_OUT, len(indices) // 10)):
            kept_back, indices = split_indices(indices, part, self._seed)
            mine = kept_back[rank() :: world_size()]
            self._held_out = fixed_batches(self.batches, mine, seed=self._seed)
        return endless(
            self.batches,
            seed=self._seed_for(_STREAM, 0),
            rank=rank(),
            world_size=world_size(),
            start=self._position,
            indices=indices,
        )

    def _make_noise(self) -> Noise:
        """One new noise; kinds of augmentation override this."""
        if self._stream is None:
            self._stream = Counted(self._open_stream())
        self._stream.taken = 0
        noise = synthesize(
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

    @property
    def due(self) -> bool:
        """Whether the next step begins with a synthesis."""
        return self._steps % self.interval == 0

    def refresh(self) -> Noise:
        """Synthesize a new noise for the model as it is now, and note it in ``history``."""
        last, cold = self.noise, self._start is None
        try:
            self.noise = noise = self._make_noise()
        except torch.OutOfMemoryError as error:
            raise NoiseError(
                f"synthesis at step {self._steps}: expected the model and a batch to fit into memory, found it "
                "full. Lower the loader's batch size, or give --ns-autocast bfloat16."
            ) from error
        self._value = None
        held_out = noise.held_out
        self.history.append(
            {
                "step": self._steps,
                "norm": noise.norm,
                "mse_probability": noise.mse_probability,
                "synthesis_steps": noise.steps,
                "stopped": noise.stopped,
                "cosine": None if last is None else _cosine(last.value, noise.value),
                "converged": noise.converged,
                "held_out_mse_probability": None if held_out is None else held_out.mse_probability,
                "held_out_upper": None if held_out is None else held_out.mse_probability_upper,
            }
        )
        _logger.info(
            "noise %d: %d synthesis steps, %s; norm %.4g, mse_probability %.4g%s",
            len(self.history),
            noise.steps,
            "stopped under eps" if noise.stopped else "not under eps on its batches",
            noise.norm,
            noise.mse_probability,
            ""
            if held_out is None
            else f"; held out (n={held_out.n}): {held_out.mse_probability:.4g}, at most "
            f"{held_out.mse_probability_upper:.4g} at 95%",
        )
        if noise.stopped and not noise.steps and cold:
            _logger.warning(
                "noise %d is its random start, which this model hardly reacts to: nothing was optimised. "
                "Start from a trained checkpoint, or raise --ns-limit.",
                len(self.history),
            )
        return noise

    def loss(
        self,
        input: torch.Tensor,
        target: torch.Tensor,
        loss_fn: Callable[[Any, torch.Tensor], torch.Tensor],
        *,
        new_step: bool = True,
    ) -> torch.Tensor:
        """The loss on ``input`` with the noise added: what to add to the clean loss (line 19).

        Runs in the model's current mode and under the caller's autocast. A fresh noise is
        synthesized at the first and every ``interval``-th step.

        Args:
            input: (B, C, H, W), what the loop gives the model, after mixup.
            target: labels (B,) or soft targets (B, K), what ``loss_fn`` takes.
            loss_fn: the loop's own.
            new_step: False for another loss of the same step, which does not count towards ``interval``.
        """
        if new_step or self.noise is None:
            if self.due:
                self.refresh()
            self._steps += 1
        assert self.noise is not None
        seed = mix(self._seed_for(_FORWARD, self._calls), rank())
        self._calls += 1
        if self._value is None:
            self._value = self.noise.value.to(self._device())
        with encoder_noise(self.model, self._value) as inner, isolated(seed, input.device):
            return loss_fn(inner(input), target)

    def state_dict(self) -> dict[str, Any]:
        """Everything that :meth:`load_state_dict` needs to go on as if never interrupted."""
        return {
            "seed": self._seed,
            "steps": self._steps,
            "calls": self._calls,
            "position": self._position,
            "noise": None if self.noise is None else self.noise.state_dict(),
            "start": self._start,
            "history": [dict(entry) for entry in self.history],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`, given the same batches and settings."""
        self._seed, self._position = state["seed"], state["position"]
        self._steps, self._calls = state["steps"], state["calls"]
        self.noise = None if state["noise"] is None else Noise.from_state_dict(state["noise"])
        self.history = [dict(entry) for entry in state["history"]]
        self._start = state["start"] if self.warm_start else None
        self._stream = self._value = None
        if self._keeps_back:
            self._held_out = None  # kept back by the former seed: set aside anew


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """Between two rounds' noises: near 0 where they are different ones, near 1 where one is found again."""
    return float(nn.functional.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0))


@register_augmentation("random")
class RandomNoiseAugmentation(NullspaceAugmentation):
    """Baseline of Table 4: Gaussian noise, shrunk until its mse_probability is under eps."""

    solver = "random"


@register_augmentation("permuted")
class PermutedNoiseAugmentation(NullspaceAugmentation):
    """Control: nullspace noise with its elements permuted, so of equal norm but without its direction."""

    def _make_noise(self) -> Noise:
        seed = self._seed_for(_PERMUTE, len(self.history))
        noise = super()._make_noise().permuted(torch.Generator().manual_seed(seed))
        if self._held_out is None:
            return noise
        judged = measure(self.model, self._held_out, noise.value)
        return replace(noise, mse_probability=judged.mse_probability, held_out=judged)


def augmentation_names() -> tuple[str, ...]:
    """What ``--aug`` takes."""
    return ("none", *AUGMENTATIONS)


def add_noise_args(parser: argparse.ArgumentParser) -> None:
    """Add one ``--ns-...`` flag for each field of :class:`NoiseConfig`."""
    group = parser.add_argument_group("nullspace noise")
    for setting in fields(NoiseConfig):
        group.add_argument(
            f"--ns-{setting.name.replace('_', '-')}",
            type=type(setting.default),
            default=setting.default,
            choices=setting.metadata.get("choices"),
            metavar=None if "choices" in setting.metadata else "X",
            help=f"{setting.metadata['help']} (default: {setting.default})",
        )


def add_nullspace_args(parser: argparse.ArgumentParser) -> None:
    """Add ``--aug``, ``--ns-interval`` and the noise's flags to a training script's parser."""
    parser.add_argument(
        "--aug",
        default="none",
        choices=augmentation_names(),
        help="noise on the encoder's input: nullspace, or a baseline to compare it with (default: none)",
    )
    parser.add_argument(
        "--ns-interval",
        type=int,
        default=40,
        metavar="N",
        help="steps that share one noise; S in App. C (default: 40)",
    )
    parser.add_argument(
        "--ns-warm-start", action="store_true", help="begin each synthesis with the last noise: sooner, but less varied"
    )
    add_noise_args(parser)


def check_noise_args(args: argparse.Namespace) -> None:
    """Raise OptionError for values of the noise's flags that are out of range, before anything is built."""
    kind = AUGMENTATIONS.get(args.aug, NullspaceAugmentation)
    _check(args.ns_interval, args.ns_warm_start, kind.solver or config_from_args(args).solver)


def _check(interval: int, warm_start: bool, solver: str) -> None:
    if interval < 1:
        raise OptionError(f"--ns-interval: expected a number of steps >= 1, found {interval}.")
    if warm_start and solver == "random":
        raise OptionError(
            "--ns-warm-start: expected noise that is optimised, found the random baseline, which draws each anew. "
            "Leave it out."
        )


def config_from_args(args: argparse.Namespace) -> NoiseConfig:
    """The noise settings among parsed flags."""
    return NoiseConfig(**{setting.name: getattr(args, f"ns_{setting.name}") for setting in fields(NoiseConfig)})


def augmentation_from_args(
    args: argparse.Namespace, model: nn.Module, batches: Iterable[Any], **options: Any
) -> NullspaceAugmentation | None:
    """The augmentation that ``--aug`` asks for; None for ``none``. ``options`` go to its constructor."""
    if args.aug == "none":
        given = [f.name for f in fields(NoiseConfig) if getattr(args, f"ns_{f.name}") != f.default]
        given += ["warm_start"] * args.ns_warm_start
        if given:
            _logger.warning("--ns-%s does nothing with --aug none", given[0].replace("_", "-"))
        return None
    kind, config = AUGMENTATIONS[args.aug], config_from_args(args)
    return kind(model, batches, config, interval=args.ns_interval, warm_start=args.ns_warm_start, **options)
