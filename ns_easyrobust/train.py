"""An EasyRobust-style training script, with ``--aug``; timm does the work.

Its one addition to a usual script is the companion loss of Algorithm 1 in
:func:`_train_epoch`. One process a device; several under torchrun.
"""

from __future__ import annotations

import argparse
import csv
import io
import logging
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from timm.data import Mixup
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler
from timm.utils import ModelEmaV2, dispatch_clip_grad, random_seed, update_summary
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from .augment import NullspaceAugmentation, augmentation_from_args
from .checkpoints import save_model
from .distributed import is_first, mean_over_ranks, on_first_rank, process_group, rank, sum_over_ranks, world_size
from .errors import OptionError, TrainingError
from .files import new_run_folder, write_text
from .noise import Step
from .options import build_parser, parse_with
from .prepare import Data, build_data, build_mixup_and_loss, build_model, pick_device
from .vit import unwrap

_logger = logging.getLogger(__name__)
add_arguments, parse = build_parser, parse_with
_SYNTHESIS_LOG = 500  # synthesis steps between two lines of the log
_RUN_FILES = ("summary.csv", "last.pth.tar", "model_best.pth.tar", "noise.csv", "noise.pt")


@dataclass
class _Run:
    """The moving parts of a run."""

    args: argparse.Namespace
    device: torch.device
    model: nn.Module  # as trained: wrapped in DDP under several processes
    ema: ModelEmaV2 | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    scheduler: Any
    mixup: Mixup | None
    loss_fn: nn.Module
    augmentation: NullspaceAugmentation | None
    data: Data
    folder: Path
    last_step: int
    step: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def judged(self) -> nn.Module:
        """The module that is evaluated: the EMA where there is one."""
        return self.ema.module if self.ema is not None else unwrap(self.model)

    def autocast(self) -> Any:
        dtype = getattr(torch, self.args.amp_dtype)
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.args.amp)


def _evaluate(run: _Run, dataset: Any) -> dict[str, float]:
    """Loss and top-1 (percent) of the judged weights on every image once, over all ranks."""
    model, batch = run.judged, run.args.validation_batch_size or run.args.batch_size
    mine = Subset(dataset, range(rank(), len(dataset), world_size()))
    loader: DataLoader[Any] = DataLoader(  # with a generator, or looking would move the loop's
        mine, batch_size=batch, num_workers=run.args.workers, generator=torch.Generator().manual_seed(run.args.seed)
    )
    total = torch.zeros(3, dtype=torch.float64, device=run.device)
    model.eval()
    with torch.no_grad(), run.autocast():
        for images, labels in loader:
            images, labels = images.to(run.device), labels.to(run.device)
            logits = model(images).float()
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
            right = (logits.argmax(-1) == labels).sum()
            total += torch.stack([loss.double(), right.double(), torch.tensor(len(labels), device=run.device)])
    loss_sum, right_sum, n = sum_over_ranks(total).tolist()
    if not math.isfinite(loss_sum):
        raise _diverged(run, f"evaluation after step {run.step}: expected a finite loss, found {loss_sum}")
    return {"loss": loss_sum / n, "top1": 100 * right_sum / n}


def _diverged(run: _Run, what: str) -> TrainingError:
    good = run.folder / "last.pth.tar"
    rest = f"Weights saved before that: {good}" if good.exists() else "Nothing was saved"
    return TrainingError(f"{what}. Lower --lr, or check data and checkpoint. {rest}.")


def _train_step(run: _Run, images: torch.Tensor, target: torch.Tensor) -> tuple[float, float]:
    """One update; the clean and the companion loss, averaged over ranks."""
    args = run.args
    images, target = images.to(run.device, non_blocking=True), target.to(run.device, non_blocking=True)
    if run.mixup is not None:
        images, target = run.mixup(images, target)
    if args.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    with run.autocast():
        loss = run.loss_fn(run.model(images), target)
        companion = torch.zeros_like(loss)
        if run.augmentation is not None:
            companion = run.augmentation.loss(images, target, run.loss_fn)  # Algorithm 1, lines 17-19
    run.optimizer.zero_grad()
    run.scaler.scale(loss + companion).backward()
    # Read after the backward is queued, so that a GPU never waits; before the weights change.
    clean_value, companion_value = mean_over_ranks(torch.stack([loss.detach(), companion.detach()])).tolist()
    if not math.isfinite(clean_value + companion_value):
        found = f"clean {clean_value}, noisy {companion_value}"
        raise _diverged(run, f"step {run.step}: expected a finite loss, found {found}")
    if args.clip_grad is not None:
        run.scaler.unscale_(run.optimizer)
        dispatch_clip_grad(run.model.parameters(), value=args.clip_grad, mode=args.clip_mode)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    if run.ema is not None:
        run.ema.update(unwrap(run.model))
    return clean_value, companion_value


def _train_epoch(run: _Run, epoch: int, stream: Iterator[Any], steps: int, bar: Any) -> dict[str, float]:
    """``steps`` updates; mean losses and the state of the noise."""
    if run.mixup is not None and run.args.mixup_off_epoch and epoch >= run.args.mixup_off_epoch:
        run.mixup.mixup_enabled = False
    run.model.train()
    total_clean = total_companion = 0.0
    for index in range(steps):
        clean, companion = _train_step(run, *next(stream))
        total_clean, total_companion = total_clean + clean, total_companion + companion
        run.step += 1
        run.scheduler.step_update(num_updates=run.step, metric=total_clean / (index + 1))
        bar.set_postfix(loss=f"{clean:.3f}", noisy=f"{companion:.3f}", refresh=False)
        bar.update()
        if bar.disable and (index + 1) % run.args.log_interval == 0:
            left = (time.monotonic() - run.started) / run.step * (run.last_step - run.step)
            of = f"step {run.step} of {run.last_step}, {left:.0f} s to go"
            _logger.info("%s: loss %.4f, noisy %.4f", of, clean, companion)
    metrics = {"loss": total_clean / steps, "noisy_loss": total_companion / steps}
    if run.augmentation is not None and run.augmentation.history:
        latest = run.augmentation.history[-1]
        metrics |= {"noise_norm": latest["norm"], "noise_mse_probability": latest["mse_probability"]}
    metrics["lr"] = run.optimizer.param_groups[0]["lr"]
    return metrics


def _bar(**options: Any) -> Any:
    """A progress bar on rank 0's terminal; silent elsewhere, where the log speaks."""
    return tqdm(unit="step", disable=None if rank() == 0 else True, **options)


def _show(bar: Any, tested: Step) -> None:
    if tested.step == 0:
        bar.reset()
    bar.set_postfix(norm=f"{tested.norm:.4g}", mse_probability=f"{tested.mse_probability:.4g}", refresh=False)
    bar.update()
    if bar.disable and tested.step and tested.step % _SYNTHESIS_LOG == 0:
        numbers = (tested.step, tested.norm, tested.mse_probability)
        _logger.info("synthesis step %d: norm %.4g, mse_probability %.4g", *numbers)


def _save(run: _Run, name: str, **extra: Any) -> None:
    save_model(
        unwrap(run.model),
        run.folder / name,
        ema=run.ema.module if run.ema is not None else None,
        arch=run.args.model,
        args=vars(run.args),
        step=run.step,
        **extra,
    )


def _write_noise_history(run: _Run) -> None:
    assert run.augmentation is not None
    assert run.augmentation.noise is not None
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(run.augmentation.history[0]))
    writer.writeheader()
    writer.writerows(run.augmentation.history)
    write_text(run.folder / "noise.csv", text.getvalue())
    run.augmentation.noise.save(run.folder / "noise.pt")


def _write(
    run: _Run, epoch: int, trained: dict[str, float], judged: dict[str, float], score: float | None, best: float
) -> None:
    """An epoch's files; without an evaluation in this epoch only what a crash would cost."""
    if not all(bool(parameter.isfinite().all()) for parameter in run.model.parameters()):
        raise _diverged(run, f"epoch {epoch}: expected finite weights, found nan or inf")
    extra = {"epoch": epoch, "metric": score, "selected_on": run.args.select}
    _save(run, "last.pth.tar", **extra)
    if run.augmentation is not None:
        _write_noise_history(run)
    if judged:
        first = not (run.folder / "summary.csv").exists()
        update_summary(epoch, trained, judged, run.folder / "summary.csv", write_header=first)
    if score is not None and score > best and judged:
        _save(run, "model_best.pth.tar", **extra)


def _fit(run: _Run, bar: Any) -> None:
    """Train, evaluate after every ``--val-interval`` epochs, keep the best and the last weights."""
    args = run.args
    stream, best, epoch = iter(run.data.train), -math.inf, 0
    while run.step < run.last_step:
        steps = min(run.data.steps_per_epoch, run.last_step - run.step)
        train_metrics = _train_epoch(run, epoch, stream, steps, bar)
        metrics: dict[str, float] = {}
        if run.step >= run.last_step or (epoch + 1) % args.val_interval == 0:
            metrics = _evaluate(run, run.data.val)
            if run.data.holdout is not None:
                metrics["holdout_top1"] = _evaluate(run, run.data.holdout)["top1"]
            _logger.info("epoch %d: %s", epoch, ", ".join(f"{key} {value:.4g}" for key, value in metrics.items()))
        score = {"val": metrics.get("top1"), "train-holdout": metrics.get("holdout_top1")}.get(args.select, epoch)
        on_first_rank(partial(_write, run, epoch, train_metrics, metrics, score, best), run.device)
        best = max(best, -math.inf if score is None else score)
        epoch += 1
        run.scheduler.step(epoch)


def train(args: argparse.Namespace) -> Path:
    """One run with parsed flags; the folder that holds its weights, ``summary.csv`` and ``args.yaml``.

    Raises:
        UserError: something about the flags, the data, the checkpoint or the output folder.
    """
    torch.backends.cudnn.benchmark = True
    with process_group(pick_device(args.device)) as device, ExitStack() as bars:
        name = args.experiment or f"{time.strftime('%Y%m%d-%H%M%S')}-{args.model}"
        folder = Path(args.output) / name
        on_first_rank(lambda: new_run_folder(folder, _RUN_FILES), device)
        model, ema = build_model(args, device)
        data = build_data(args, model)
        # A plain Sequential hides what timm must not decay, as in the paper's code.
        try:
            optimizer = create_optimizer_v2(
                nn.Sequential(*model) if args.decay_tokens else model, **optimizer_kwargs(cfg=args)
            )
        except (AssertionError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise OptionError(f"--opt {args.opt}: expected an optimizer of timm's, found: {reason}.") from error
        if args.max_steps:
            args.epochs = math.ceil(args.max_steps / data.steps_per_epoch)
        scheduler, epochs = create_scheduler(args, optimizer)
        trained: nn.Module = model
        if world_size() > 1:
            trained = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
        mixup, loss_fn = build_mixup_and_loss(args)
        random_seed(args.seed, rank())
        last_step = args.max_steps or epochs * data.steps_per_epoch
        bar = bars.enter_context(_bar(total=last_step, desc=f"train --aug {args.aug}"))
        synthesis = bars.enter_context(_bar(desc="noise", leave=False))
        augmentation = augmentation_from_args(
            args,
            trained,
            data.train,
            generator=torch.Generator().manual_seed(args.seed),
            on_step=lambda tested: _show(synthesis, tested),
        )
        settings = {key: value for key, value in vars(args).items() if key != "config"}  # what -c takes
        on_first_rank(lambda: write_text(folder / "args.yaml", yaml.safe_dump(settings)), device)
        run = _Run(
            args=args,
            device=device,
            model=trained,
            ema=ema,
            optimizer=optimizer,
            scaler=torch.amp.GradScaler(device.type, enabled=args.amp and args.amp_dtype == "float16"),
            scheduler=scheduler,
            mixup=mixup,
            loss_fn=loss_fn,
            augmentation=augmentation,
            data=data,
            folder=folder,
            last_step=last_step,
        )
        _fit(run, bar)
    return folder


def run(args: argparse.Namespace) -> None:
    """The verb ``train``."""
    folder = train(args)
    if is_first():
        print(f"run folder: {folder}")
