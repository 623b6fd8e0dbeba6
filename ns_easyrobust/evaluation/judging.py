"""Which images a model gets right, exactly: every image once, whatever the number of processes.

Parts (a list of images, and what is tried on each) go through one loader: its workers
already decode the next part while this one is judged, and one decoded batch serves all the
attacks on it. Batches are cut once and dealt to ranks, each image with a seed of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate

from ..data.image_list import ImageList
from ..errors import DataError, ModelError, OptionError
from ..models.vit import built_size, frozen, unwrap
from ..utils.distributed import rank, sum_over_ranks, world_size
from ..utils.progress import Progress
from ..utils.seeding import isolated, mix
from .opened import Opened
from .recorder import Recorder
from .task import Outcome, Part, Trial

_logger = logging.getLogger(__name__)


class _Decoder(Dataset[Any]):
    """What the loader's workers do: an order (part, batch, images) to the same with pixels and labels."""

    def __init__(self, transforms: Sequence[Any]) -> None:
        self.transforms = transforms

    def __getitem__(self, order: tuple[int, int, ImageList]) -> tuple[int, int, torch.Tensor, torch.Tensor]:
        part, batch, images = order
        images = images.with_transform(self.transforms[part])
        items = [images[i] for i in range(len(images))]
        shapes = {tuple(item[0].shape): path for item, path in zip(items, images.paths, strict=True)}
        if len(shapes) > 1:
            found = ", ".join(f"{shape} ({path})" for shape, path in list(shapes.items())[:2])
            raise DataError(f"{images.root}: expected images of one size, found {found}. Use a transform that crops.")
        pixels, labels = default_collate(items)  # writes into shared memory at once
        return part, batch, pixels, labels


class _Tap(nn.Module):
    """``model``, remembering the logits of its first forward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.first: torch.Tensor | None = None

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(pixels)
        if self.first is None:
            self.first = logits.detach()
        return logits


def _device_of(model: nn.Module) -> torch.device:
    """Where the model's weights are; the CPU for one without."""
    return next((parameter.device for parameter in unwrap(model).parameters()), torch.device("cpu"))


def outputs_of(model: nn.Module, pixels: torch.Tensor) -> int:
    """How many logits ``model`` gives for images like ``pixels`` (C, H, W)."""
    with frozen(model) as inner, torch.no_grad():
        return int(inner(pixels[None].to(_device_of(model))).shape[-1])


def require_gradients(dtype: torch.dtype, trials: Iterable[Trial]) -> None:
    """OptionError for attacks in float16."""
    if dtype == torch.float16 and any(trial.attack is not None for trial in trials):
        raise OptionError("dtype float16: expected float32 or bfloat16 for attacks, whose gradients float16 cuts to 0.")


def judge(
    model: nn.Module,
    parts: Iterable[Part],
    *,
    share: bool = False,
    workers: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    recorder: Recorder | None = None,
) -> list[list[Outcome]]:
    """Run ``model`` once over every image of every part under every trial.

    What ``recorder`` holds already is not measured again; what a killed run has judged is taken
    from its journal. A record is written as soon as its part is through.

    Args:
        share: deal the batches to torchrun's processes.
        workers: data loading processes.
        seed: of what attacks draw; each image has its own, whoever judges it.
        dtype: other than float32: the forwards run under autocast.

    Returns:
        An outcome for each part and trial.

    Raises:
        ModelError: logits that are not finite. DataError: an image that cannot be decoded, or images
            of several sizes. OptionError: an attack in float16, whose gradients would vanish.
    """
    parts = list(parts)
    require_gradients(dtype, [trial for part in parts for trial in part.trials])
    if seed < 0:
        raise OptionError(f"seed: expected a whole number >= 0, found {seed}.")
    past: tuple[Any, Any] = ({}, {})
    if recorder is not None:
        recorder = recorder.of_run(model, dtype, seed, share)
        past = (recorder.finished(), recorder.unfinished())
    opened: dict[int, Opened] = {}
    first, of = (rank(), world_size()) if share else (0, 1)

    def orders() -> Iterator[tuple[int, int, ImageList]]:
        for index, part in enumerate(parts):
            state = opened[index] = Opened(part, recorder, *past)
            for number in state.left()[first::of]:
                wanted = state.images.take(state.batches[number])
                yield index, number, replace(wanted, transform=None, classes=None, answers=None)

    device = _device_of(model)
    outcomes: list[list[Outcome]] = []
    progress, current = Progress(len(parts), shown=rank() == 0), -1

    def close_until(index: int) -> None:
        while len(outcomes) < index:
            outcomes.append(_close(opened.pop(len(outcomes)), share, recorder, device))
            progress.next_part()

    with frozen(model) as inner, closing(progress):
        loader: DataLoader[Any] = DataLoader(
            _Decoder([part.transform for part in parts]),
            sampler=orders(),
            batch_size=None,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            generator=torch.Generator().manual_seed(seed),
        )
        for index, number, pixels, labels in loader:
            close_until(index)
            state = opened[index]
            if index != current:
                _require_size(inner, pixels)
                current, titles = index, dict.fromkeys(trial.name for trial in state.part.trials)
                taken = len(set().union(*state.done))
                if taken and rank() == 0:
                    _logger.info("%s: goes on after %d batches of an unfinished run", ", ".join(titles), taken)
                progress.start(", ".join(titles), len(state.left()[first::of]))
            _judge_batch(inner, state, number, pixels.to(device), labels.to(device), seed, dtype, recorder)
            progress.batch()
        close_until(len(parts))
    return outcomes


def _require_size(model: nn.Module, pixels: torch.Tensor) -> None:
    """ModelError where the model would assert another size."""
    built, found = built_size(model), tuple(pixels.shape[2:])
    if built is not None and built != found:
        raise ModelError(
            f"expected images of {built[0]}x{built[1]} pixels, which the model is built for, found "
            f"{found[0]}x{found[1]}. Give a transform of that size, or build the model for this one (img_size=...)."
        )


def _judge_batch(
    inner: nn.Module,
    state: Opened,
    number: int,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    seed: int,
    dtype: torch.dtype,
    recorder: Recorder | None,
) -> None:
    """Every trial that waits for this batch."""
    trials, members = state.part.trials, state.batches[number]
    clean: torch.Tensor | None = None
    # Attacks whose first forward is the clean one go first and hand its logits on.
    for trial in sorted(state.waiting(number), key=lambda i: not trials[i].clean_first):
        attack, attacked, logits = trials[trial].attack, pixels, None
        with torch.autocast(pixels.device.type, dtype, enabled=dtype != torch.float32):
            if attack is not None:
                tap = _Tap(inner)
                with isolated(mix(seed, members.start), pixels.device):
                    seeds = [mix(seed, member) for member in members]
                    attacked = attack(tap if trials[trial].clean_first else inner, pixels, labels, seeds)
                clean = tap.first if tap.first is not None else clean
            else:
                logits = clean
            if logits is None:
                with torch.no_grad():
                    logits = inner(attacked)
        if logits.shape[-1] != state.images.outputs:
            raise ModelError(
                f"{trials[trial].name}: expected {state.images.outputs} logits, found {logits.shape[-1]}. "
                "The model's num_classes is not what it gives."
            )
        if not torch.isfinite(logits).all():
            raise ModelError(f"{trials[trial].name}: expected finite logits, found nan or inf. Check the checkpoint.")
        right = state.images.predictions_right(logits, labels).int().tolist()
        l2 = (attacked - pixels).double().flatten(1).norm(dim=1).tolist() if attack is not None else [0.0] * len(right)
        state.keep(trial, number, right, l2)
        if recorder is not None and state.keys[trial]:
            recorder.keep(state.keys[trial], number, right, l2)


def _close(state: Opened, share: bool, recorder: Recorder | None, device: torch.device) -> list[Outcome]:
    """Bring the ranks' counts together and record them."""
    if share:
        both = torch.stack([state.right, state.l2]).to(device)
        state.right, state.l2 = sum_over_ranks(both).cpu()
    outcomes = []
    for trial, settings in enumerate(state.part.trials):
        found = state.records[trial]
        if found is not None:
            outcomes.append(Outcome(found.n, found.correct or 0))
            if recorder is not None:
                recorder.renew(found)
            told = f" (measured {found.created[:10]}, taken from the records)"
        else:
            judged, told = state.judged(trial), ""
            outcomes.append(Outcome(judged.n, judged.correct))
            if recorder is not None:
                mine = recorder if settings.draws else replace(recorder, seed=None)
                if settings.finish is not None:
                    settings.finish(mine, state.protocols[trial], judged)
                mine.add(settings.suite, state.protocols[trial], judged)  # last: it says that the trial is done
        if recorder is not None and state.keys[trial]:
            recorder.forget(state.keys[trial])
        if rank() == 0:
            _logger.info("%s: %.2f%% of %d%s", settings.name, outcomes[-1].top1, outcomes[-1].n, told)
    return outcomes
