"""An EasyRobust-style training script with ``--aug``, built on timm.

Its additions to an ordinary script are the companion loss and sharpness-aware minimisation, both in
:func:`~ns_easyrobust.training.gradients.set_gradients`. One process per device; torchrun starts several.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from timm.scheduler import create_scheduler
from timm.utils import random_seed
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from ..data import ParentSigtermOnly
from ..errors import TrainingError
from ..models import logits_of, unwrap
from ..nullspace import Step
from ..utils import (
    Interval,
    on_first_rank,
    pick_device,
    process_group,
    rank,
    shown_flags,
    sum_over_ranks,
    world_size,
    write_text,
)
from .augmentations.flags import augmentation_from_args, check_augmentation_args
from .gradients import Batch, set_gradients
from .losses import build_mixup_and_loss
from .optimizer import build_optimizer, clip_gradients
from .options import defaults
from .resume import PREVIOUS_STATE, StopSignal, require_same_run
from .run import Run, identity
from .run_folder import held_run_folder
from .sam import sam_from_args
from .setup import build_data, build_model, read_start
from .trackers import Trackers, require_trackers

_logger = logging.getLogger(__name__)
_LOG_SECONDS = 30.0  # between two lines of the log, where no bar is shown


def _evaluate(run: Run, dataset: Any) -> dict[str, float]:
    """Mean loss and top-1 accuracy (percent) of ``run.judged`` on ``dataset``, which is split among the ranks."""
    model, batch_size = run.judged, run.args.validation_batch_size or run.args.batch_size
    share = Subset(dataset, range(rank(), len(dataset), world_size()))
    loader: DataLoader[Any] = DataLoader(  # its own generator, so that it draws no seed from the global one
        share,
        batch_size=batch_size,
        num_workers=run.args.workers,
        worker_init_fn=ParentSigtermOnly(),
        generator=torch.Generator().manual_seed(run.args.seed),
    )
    totals = torch.zeros(3, dtype=torch.float64, device=run.device)
    model.eval()
    with torch.no_grad(), run.autocast():
        for images, labels in loader:
            images, labels = images.to(run.device), labels.to(run.device)
            logits = logits_of(model(images), len(images)).float()
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
            correct = (logits.argmax(-1) == labels).sum()
            totals += torch.stack([loss.double(), correct.double(), torch.tensor(len(labels), device=run.device)])
    loss_sum, correct_sum, n = sum_over_ranks(totals).tolist()
    if not math.isfinite(loss_sum):
        raise run.diverged(f"evaluation after step {run.at.step}: expected a finite loss, found {loss_sum}")
    return {"loss": loss_sum / n, "top1": 100 * correct_sum / n}


def _train_step(run: Run, batches: Sequence[Batch]) -> tuple[float, float]:
    """Make one update with ``batches`` of the loader; returns the clean and the companion loss, averaged over ranks."""
    losses = set_gradients(run, batches)
    if run.args.clip_grad is not None:
        run.scaler.unscale_(run.optimizer)
        clip_gradients(run.args, run.model)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    if run.ema is not None:
        run.ema.update(unwrap(run.model))
    return losses


def _train_epoch(run: Run, stream: Iterator[Any], steps: int, bar: Any) -> dict[str, float]:
    """Make the remaining updates of an epoch of ``steps``; returns its mean losses, the companion's numbers and the lr.

    Raises:
        RunStopped: after SIGTERM, once the state is saved.
        TrainingError: the GPU's memory is full, or a loss is not finite.
    """
    at, args = run.at, run.args
    if run.mixup is not None and args.mixup_off_epoch and at.epoch >= args.mixup_off_epoch:
        run.mixup.mixup_enabled = False
    run.model.train()
    while at.epoch_step < steps:
        if run.augmentation is not None and run.augmentation.due and run.stop.saved != at.step:
            run.save_state()  # the synthesis takes long, and nothing can be saved during it
        try:
            clean, companion = _train_step(run, [next(stream) for _ in range(args.grad_accum_steps)])
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"training at step {at.step}: expected a step to fit into the GPU's memory, found it full. Lower "
                f"--batch-size (now {args.batch_size}) and raise --grad-accum-steps, or give --amp. {run.saved_so_far}."
            ) from error
        at.clean, at.companion = at.clean + clean, at.companion + companion
        at.step, at.epoch_step = at.step + 1, at.epoch_step + 1
        run.scheduler.step_update(num_updates=at.step, metric=at.clean / at.epoch_step)
        bar.set_postfix({"loss": f"{clean:.3f}", run.companion_word: f"{companion:.3f}"}, refresh=False)
        bar.update()
        if at.epoch_step % args.log_interval == 0 or at.epoch_step == steps:
            run.track({"loss": clean, run.companion_name: companion, "lr": run.optimizer.param_groups[0]["lr"]})
        if bar.disable and (run.log_time.has_passed() or at.epoch_step % args.log_interval == 0):
            progress = f"step {at.step} of {run.last_step}, {run.seconds_to_go:.0f} s to go"
            _logger.info("%s: loss %.4f, %s %.4f", progress, clean, run.companion_word, companion)
        if args.keep_interval and at.step % args.keep_interval == 0:  # before the state, which resuming goes on from
            run.keep_weights()
        if run.stop.agreed or (args.recovery_interval and at.step % args.recovery_interval == 0):
            run.save_state()
        if run.stop.agreed:
            raise run.stop.error(run.folder)
    if hasattr(run.optimizer, "sync_lookahead"):
        run.optimizer.sync_lookahead()
    metrics = {"loss": at.clean / steps, run.companion_name: at.companion / steps}
    if replaced := int(sum_over_ranks(run.data.replaced.to(run.device, torch.int32)).count_nonzero()):
        _logger.warning("epoch %d: %d unreadable images were replaced so far", at.epoch, replaced)
    return metrics | run.companion_numbers | {"lr": run.optimizer.param_groups[0]["lr"]}


def _progress_bar(**options: Any) -> Any:
    """A progress bar on rank 0's terminal; disabled elsewhere, where progress is logged instead."""
    return tqdm(unit="step", disable=None if rank() == 0 else True, **options)


def _show_synthesis(bar: Any, tested: Step, stop: StopSignal, folder: Path, log_time: Interval) -> None:
    """Show a step of the synthesis; raise RunStopped after SIGTERM."""
    if stop.asked:  # a state was saved just before this synthesis, and resuming repeats it
        raise stop.error(folder)
    if tested.step == 0:
        bar.reset()
    bar.set_postfix(norm=f"{tested.norm:.4g}", mse_probability=f"{tested.mse_probability:.4g}", refresh=False)
    bar.update()
    if bar.disable and log_time.has_passed():
        numbers = (tested.step, tested.norm, tested.mse_probability)
        _logger.info("synthesis step %d: norm %.4g, mse_probability %.4g", *numbers)


def _fit(run: Run, bar: Any, state: dict[str, Any] | None) -> None:
    """Train, evaluate every ``--val-interval`` epochs, and save the best and the last weights."""
    args, at = run.args, run.at
    stream = iter(run.data.train)
    if state is not None:
        run.restore_random(state)  # after iter() has drawn the loader's seed
    else:
        run.save_state()
    while at.step < run.last_step or at.epoch_step:
        steps = min(run.data.steps_per_epoch, run.last_step - at.step + at.epoch_step)
        train_metrics = _train_epoch(run, stream, steps, bar)
        metrics: dict[str, float] = {}
        if at.step >= run.last_step or (at.epoch + 1) % args.val_interval == 0:
            metrics = _evaluate(run, run.data.val)
            if run.data.holdout is not None:
                metrics["holdout_top1"] = _evaluate(run, run.data.holdout)["top1"]
            run.track({f"eval_{key}": value for key, value in metrics.items()})
            _logger.info("epoch %d: %s", at.epoch, ", ".join(f"{key} {value:.4g}" for key, value in metrics.items()))
        score = {"val": metrics.get("top1"), "train-holdout": metrics.get("holdout_top1")}.get(args.select, at.epoch)
        on_first_rank(partial(run.write, train_metrics, metrics, score), run.device)
        at.best = max(at.best, -math.inf if score is None else score)
        at.epoch, at.epoch_step, at.clean, at.companion = at.epoch + 1, 0, 0.0, 0.0
        run.scheduler.step(at.epoch)
        run.save_state()


def train(args: argparse.Namespace) -> Path:
    """Carry out one run with parsed flags.

    Returns:
        The folder that holds its weights, ``summary.csv`` and ``args.yaml``.

    Raises:
        UserError: the flags, data, checkpoint or output folder are unusable, or training failed or was stopped.
    """
    torch.backends.cudnn.benchmark = True
    check_augmentation_args(args)
    sam = sam_from_args(args)
    with StopSignal() as stop, process_group(pick_device(args.device)) as device, ExitStack() as exit_stack:
        on_first_rank(lambda: require_trackers(args.log_tensorboard, args.log_wandb), device)
        checkpoint = read_start(args)
        folder, state = exit_stack.enter_context(held_run_folder(args, device))
        if state is not None and checkpoint is not None and "model_kwargs" not in state["identity"]["args"]:
            checkpoint = checkpoint.without_args  # begun by a version that read nothing else
        model, ema = build_model(args, device, checkpoint)
        data = build_data(args, model, start=0 if state is None else state["at"]["step"] * args.grad_accum_steps)
        optimizer = build_optimizer(args, model, device)
        if args.max_steps:
            args.epochs = math.ceil(args.max_steps / data.steps_per_epoch)
        if state is not None:
            require_same_run(state["identity"], identity(args, data), folder, defaults())
        scheduler, epochs = create_scheduler(args, optimizer)
        wrapped: nn.Module = model
        if world_size() > 1:
            wrapped = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
        mixup, loss_fn = build_mixup_and_loss(args)
        random_seed(args.seed, rank())
        last_step = args.max_steps or epochs * data.steps_per_epoch
        bar = exit_stack.enter_context(_progress_bar(total=last_step, desc=f"train --aug {args.aug}"))
        synthesis_bar = exit_stack.enter_context(_progress_bar(desc="noise", leave=False))
        log_time = Interval(_LOG_SECONDS)
        augmentation = augmentation_from_args(
            args,
            wrapped,
            data.train,
            generator=torch.Generator().manual_seed(args.seed),
            on_step=lambda tested: _show_synthesis(synthesis_bar, tested, stop, folder, log_time),
        )
        trackers = None
        if rank() == 0:
            trackers = Trackers(
                folder,
                tensorboard=args.log_tensorboard,
                wandb=args.wandb_project if args.log_wandb else None,
                settings=shown_flags(args),
                step=0 if state is None else state["at"]["step"],
            )
            exit_stack.callback(trackers.close)
        run = Run(
            args=args,
            device=device,
            model=wrapped,
            ema=ema,
            optimizer=optimizer,
            scaler=GradScaler(device.type, enabled=args.amp and args.amp_dtype == "float16"),
            scheduler=scheduler,
            mixup=mixup,
            loss_fn=loss_fn,
            augmentation=augmentation,
            sam=sam,
            data=data,
            folder=folder,
            last_step=last_step,
            stop=stop,
            log_time=log_time,
            trackers=trackers,
        )
        if state is not None:
            run.restore(state)
            bar.update(run.at.step)
            _logger.info("resumed %s at step %d of %d", folder, run.at.step, last_step)
        settings = {key: value for key, value in shown_flags(args).items() if key != "config"}  # which -c accepts
        on_first_rank(lambda: write_text(folder / "args.yaml", yaml.safe_dump(settings)), device)
        _fit(run, bar, state)
        on_first_rank(lambda: (folder / PREVIOUS_STATE).unlink(missing_ok=True), device)
    return folder
