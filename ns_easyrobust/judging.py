"""Which images a model gets right, exactly: every image once, whatever the number of processes.

Parts (a list of images, and what is tried on each) go through one loader: its workers
already decode the next part while this one is judged, and one decoded batch serves all the
attacks on it. Batches are cut once and dealt to ranks, each with a seed of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from .data import describe_transform
from .distributed import rank, sum_over_ranks, world_size
from .errors import ModelError, OptionError
from .images import ImageList
from .journal import Batch, Journal
from .randomness import isolated, mix
from .recorder import Judged, Recorder
from .records import Record
from .vit import frozen, unwrap

# (model, pixels, labels, a seed for each image) to adversarial pixels
Attack = Callable[[nn.Module, torch.Tensor, torch.Tensor, Sequence[int]], torch.Tensor]
Finish = Callable[[Recorder, dict[str, Any], Judged], None]


@dataclass(frozen=True)
class Trial:
    """One measurement on a part's images.

    Attributes:
        suite: the record's.
        protocol: what is particular to it, as an attack's parameters.
        attack: None judges the images as they are.
        clean_first: the attack's first forward is of the untouched images, so that its logits
            can serve the trial without an attack.
        finish: what is recorded beside top-1.
        title: on the progress bar.
    """

    suite: str
    protocol: Mapping[str, Any] = field(default_factory=dict)
    attack: Attack | None = None
    clean_first: bool = False
    finish: Finish | None = None
    title: str = ""


@dataclass(frozen=True)
class Part:
    """Images, opened when their turn comes, and the trials on them."""

    open: Callable[[], ImageList]
    batch_size: int
    trials: Sequence[Trial]
    protocol: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """A trial's result, measured now or found in the records."""

    n: int
    correct: int

    @property
    def top1(self) -> float:
        """Percent right."""
        return 100 * self.correct / self.n


class _Decoder(Dataset[Any]):
    """What the loader's workers do: an order (part, batch, images) to the same with pixels and labels."""

    def __getitem__(self, order: tuple[int, int, ImageList]) -> tuple[int, int, torch.Tensor, torch.Tensor]:
        part, batch, images = order
        pixels, labels = zip(*(images[i] for i in range(len(images))), strict=True)
        return part, batch, torch.stack(pixels), torch.tensor(labels)


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


class _Opened:
    """A part whose images are known: what is right so far, and which batches are left for this rank."""

    def __init__(
        self,
        part: Part,
        recorder: Recorder | None,
        finished: Mapping[str, Record],
        journaled: Mapping[str, Mapping[int, Batch]],
    ) -> None:
        self.part, self.images = part, part.open()
        if part.batch_size < 1:
            raise OptionError(f"batch size: expected at least 1, found {part.batch_size}.")
        n = len(self.images)
        self.batches = [range(i, min(i + part.batch_size, n)) for i in range(0, n, part.batch_size)]
        self.protocols = [self._protocol(trial) for trial in part.trials]
        self.keys = [
            recorder.identity(trial.suite, protocol, self.images.paths) if recorder is not None else ""
            for trial, protocol in zip(part.trials, self.protocols, strict=True)
        ]
        self.records = [finished.get(key) for key in self.keys]
        self.done = [dict(journaled.get(key, {})) for key in self.keys]
        self.right = torch.zeros(len(part.trials), n, dtype=torch.float64)
        self.l2 = torch.zeros(len(part.trials), n, dtype=torch.float64)

    def _protocol(self, trial: Trial) -> dict[str, Any]:
        images = self.images
        restricted = {"classes": len(images.classes)} if images.classes is not None else {}
        seen = describe_transform(images.transform) | restricted | {"batch_size": self.part.batch_size}
        return {**self.part.protocol, **seen, **trial.protocol}

    def waiting(self, number: int) -> list[int]:
        """Trials that batch ``number`` still has to go through."""
        return [i for i, record in enumerate(self.records) if record is None and number not in self.done[i]]

    def left(self) -> list[int]:
        """Batches with a trial to go; the same on all ranks."""
        return [number for number in range(len(self.batches)) if self.waiting(number)]

    def keep(self, trial: int, number: int, right: Sequence[int], l2: Sequence[float]) -> None:
        """Enter a batch's result."""
        members = self.batches[number]
        self.right[trial, members.start : members.stop] = torch.tensor(right, dtype=torch.float64)
        self.l2[trial, members.start : members.stop] = torch.tensor(l2, dtype=torch.float64)

    def judged(self, trial: int) -> Judged:
        return Judged(self.images.paths, self.right[trial] > 0.5, self.l2[trial])


def outputs_of(model: nn.Module, pixels: torch.Tensor) -> int:
    """How many logits ``model`` gives for images like ``pixels`` (C, H, W)."""
    device = next(unwrap(model).parameters()).device
    with frozen(model) as inner, torch.no_grad():
        return int(inner(pixels[None].to(device)).shape[-1])


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
        seed: of what attacks draw; each batch has its own, whoever judges it.
        dtype: other than float32: the forwards run under autocast.

    Returns:
        An outcome for each part and trial.

    Raises:
        ModelError: logits that are not finite. DataError: an image that cannot be decoded.
    """
    parts = list(parts)
    journal = recorder.journal if recorder is not None else None
    past = (recorder.finished(), recorder.unfinished()) if recorder is not None else ({}, {})
    opened: dict[int, _Opened] = {}
    first, of = (rank(), world_size()) if share else (0, 1)

    def orders() -> Iterator[tuple[int, int, ImageList]]:
        for index, part in enumerate(parts):
            state = opened[index] = _Opened(part, recorder, *past)
            for number in state.left()[first::of]:
                yield index, number, state.images.take(state.batches[number])

    device = next(unwrap(model).parameters()).device
    outcomes: list[list[Outcome]] = []
    bars = _Bars(len(parts), shown=rank() == 0)

    def close_until(index: int) -> None:
        while len(outcomes) < index:
            outcomes.append(_close(opened.pop(len(outcomes)), share, recorder, journal, device))
            bars.next_part()

    with frozen(model) as inner, closing(bars):
        loader: DataLoader[Any] = DataLoader(
            _Decoder(),
            sampler=orders(),
            batch_size=None,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            generator=torch.Generator().manual_seed(seed),
        )
        for index, number, pixels, labels in loader:
            close_until(index)
            bars.batch(opened[index], of)
            _judge_batch(inner, opened[index], number, pixels.to(device), labels.to(device), seed, dtype, journal)
        close_until(len(parts))
    return outcomes


def _judge_batch(
    inner: nn.Module,
    state: _Opened,
    number: int,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    seed: int,
    dtype: torch.dtype,
    journal: Journal | None,
) -> None:
    """Every trial that waits for this batch."""
    trials, waiting = state.part.trials, state.waiting(number)
    clean: torch.Tensor | None = None
    # Attacks whose first forward is the clean one go first and hand its logits on.
    for trial in sorted(waiting, key=lambda i: not trials[i].clean_first):
        attack, attacked, logits = trials[trial].attack, pixels, None
        with torch.autocast(pixels.device.type, dtype, enabled=dtype != torch.float32):
            if attack is not None:
                tap = _Tap(inner)
                members = state.batches[number]
                with isolated(mix(seed, members.start), pixels.device):
                    seeds = [mix(seed, member) for member in members]
                    attacked = attack(tap if trials[trial].clean_first else inner, pixels, labels, seeds)
                clean = tap.first if tap.first is not None else clean
            else:
                logits = clean
            if logits is None:
                with torch.no_grad():
                    logits = inner(attacked)
        if not torch.isfinite(logits).all():
            what = f"{trials[trial].title or trials[trial].suite}"
            raise ModelError(f"{what}: expected finite logits, found nan or inf. Check the checkpoint.")
        right = state.images.predictions_right(logits, labels).int().tolist()
        l2 = (attacked - pixels).double().flatten(1).norm(dim=1).tolist() if attack is not None else [0.0] * len(right)
        state.keep(trial, number, right, l2)
        if journal is not None:
            journal.add(state.keys[trial], number, right, l2)


def _close(
    state: _Opened, share: bool, recorder: Recorder | None, journal: Journal | None, device: torch.device
) -> list[Outcome]:
    """Bring the ranks' counts together and record them."""
    if share:
        both = torch.stack([state.right, state.l2]).to(device)
        state.right, state.l2 = sum_over_ranks(both).cpu()
    outcomes = []
    for trial, settings in enumerate(state.part.trials):
        found = state.records[trial]
        if found is not None:
            outcomes.append(Outcome(found.n, found.correct or 0))
            continue
        for number, batch in state.done[trial].items():
            state.keep(trial, number, *batch)
        judged = state.judged(trial)
        outcomes.append(Outcome(judged.n, judged.correct))
        if recorder is not None:
            if settings.finish is not None:
                settings.finish(recorder, state.protocols[trial], judged)
            recorder.add(settings.suite, state.protocols[trial], judged)  # last: it says that the trial is done
        if journal is not None:
            journal.drop(state.keys[trial])
    return outcomes


class _Bars:
    """A bar for the parts, and one for the batches of the part at hand, with their times to go."""

    def __init__(self, parts: int, shown: bool) -> None:
        off = None if shown else True
        self.parts = tqdm(total=parts, desc="suites", disable=off or parts < 2 or None, leave=False, unit="part")
        self.batches: Any = None
        self.state: _Opened | None = None
        self.off = off

    def batch(self, state: _Opened, of: int) -> None:
        if state is not self.state:
            self.state = state
            if self.batches is not None:
                self.batches.close()
            titles = ", ".join(dict.fromkeys(trial.title or trial.suite for trial in state.part.trials))
            total = -(-len(state.left()) // of)
            self.batches = tqdm(total=total, desc=titles, disable=self.off, leave=False, position=1, unit="batch")
        self.batches.update()

    def next_part(self) -> None:
        self.parts.update()

    def close(self) -> None:
        for bar in (self.batches, self.parts):
            if bar is not None:
                bar.close()
