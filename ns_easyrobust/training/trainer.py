"""An EasyRobust-style training script, with ``--aug``; timm does the work.

Its one addition to a usual script is the companion loss of Algorithm 1 in
:func:`_train_epoch`. One process a device; several under torchrun.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler
from timm.utils import dispatch_clip_grad, random_seed
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from ..data.sampling import LeaveSigterm
from ..errors import OptionError, OutputError, TrainingError
from ..models.vit import unwrap
from ..nullspace.noise import Step
from ..utils.distributed import (
    broadcast_object,
    is_first,
    mean_over_ranks,
    on_first_rank,
    process_group,
    rank,
    sum_over_ranks,
    world_size,
)
from ..utils.files import new_run_folder, write_text
from .augmentations.nullspace import augmentation_from_args, check_noise_args
from .options import build_parser, parse_with
from .resume import BEFORE, find_state, require_same
from .run import RUN_FILES, Run, identity
from .setup import build_data, build_mixup_and_loss, build_model, pick_device
from .stopping import Stop
from .trackers import Trackers

_logger = logging.getLogger(__name__)
add_arguments, parse = build_parser, parse_with
_SYNTHESIS_LOG = 500  # synthesis steps between two lines of the log


def _evaluate(run: Run, dataset: Any) -> dict[str, float]:
    """Loss and top-1 (percent) of the judged weights on every image once, over all ranks."""
    model, batch = run.judged, run.args.validation_batch_size or run.args.batch_size
    mine = Subset(dataset, range(rank(), len(dataset), world_size()))
    loader: DataLoader[Any] = DataLoader(  # with a generator, or looking would move the loop's
        mine,
        batch_size=batch,
        num_workers=run.args.workers,
        worker_init_fn=LeaveSigterm(),
        generator=torch.Generator().manual_seed(run.args.seed),
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
        raise run.diverged(f"evaluation after step {run.at.step}: expected a finite loss, found {loss_sum}")
    return {"loss": loss_sum / n, "top1": 100 * right_sum / n}


def _train_step(run: Run, images: torch.Tensor, target: torch.Tensor) -> tuple[float, float]:
    """One update; the clean and the companion loss, averaged over ranks, which agree on whether to stop."""
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
    told = torch.stack([loss.detach(), companion.detach(), loss.detach().new_tensor(float(run.stop.asked))])
    clean_value, companion_value, asked = mean_over_ranks(told.float()).tolist()
    run.stop.agreed = asked > 0
    if not math.isfinite(clean_value + companion_value):
        found = f"clean {clean_value}, noisy {companion_value}"
        raise run.diverged(f"step {run.at.step}: expected a finite loss, found {found}")
    if args.clip_grad is not None:
        run.scaler.unscale_(run.optimizer)
        dispatch_clip_grad(run.model.parameters(), value=args.clip_grad, mode=args.clip_mode)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    if run.ema is not None:
        run.ema.update(unwrap(run.model))
    return clean_value, companion_value


def _train_epoch(run: Run, stream: Iterator[Any], steps: int, bar: Any) -> dict[str, float]:
    """The updates that are left of an epoch of ``steps``; mean losses and the state of the noise."""
    at, args = run.at, run.args
    if run.mixup is not None and args.mixup_off_epoch and at.epoch >= args.mixup_off_epoch:
        run.mixup.mixup_enabled = False
    run.model.train()
    while at.epoch_step < steps:
        if run.augmentation is not None and run.augmentation.due and run.stop.saved != at.step:
            run.save_state()  # a synthesis takes long, and is not a moment to save in
        try:
            clean, companion = _train_step(run, *next(stream))
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"training at step {at.step}: expected a step to fit into the GPU's memory, found it full. Lower "
                f"--batch-size (now {args.batch_size}), or give --amp. {run.saved_so_far}."
            ) from error
        at.clean, at.companion = at.clean + clean, at.companion + companion
        at.step, at.epoch_step = at.step + 1, at.epoch_step + 1
        run.scheduler.step_update(num_updates=at.step, metric=at.clean / at.epoch_step)
        bar.set_postfix(loss=f"{clean:.3f}", noisy=f"{companion:.3f}", refresh=False)
        bar.update()
        if at.epoch_step % args.log_interval == 0 or at.epoch_step == steps:
            run.track({"loss": clean, "noisy_loss": companion, "lr": run.optimizer.param_groups[0]["lr"]})
        if bar.disable and at.epoch_step % args.log_interval == 0:
            of = f"step {at.step} of {run.last_step}, {run.seconds_to_go:.0f} s to go"
            _logger.info("%s: loss %.4f, noisy %.4f", of, clean, companion)
        if run.stop.agreed or (args.recovery_interval and at.step % args.recovery_interval == 0):
            run.save_state()
        if run.stop.agreed:
            raise run.stop.error(run.folder)
    metrics = {"loss": at.clean / steps, "noisy_loss": at.companion / steps}
    if replaced := int(sum_over_ranks(run.data.replaced.to(run.device, torch.int32)).count_nonzero()):
        _logger.warning("epoch %d: %d unreadable images were replaced so far", at.epoch, replaced)
    return metrics | run.noise_numbers | {"lr": run.optimizer.param_groups[0]["lr"]}


def _bar(**options: Any) -> Any:
    """A progress bar on rank 0's terminal; silent elsewhere, where the log speaks."""
    return tqdm(unit="step", disable=None if rank() == 0 else True, **options)


def _show(bar: Any, tested: Step, stop: Stop, folder: Path) -> None:
    if stop.asked:  # it is done again, from the state before it
        raise stop.error(folder)
    if tested.step == 0:
        bar.reset()
    bar.set_postfix(norm=f"{tested.norm:.4g}", mse_probability=f"{tested.mse_probability:.4g}", refresh=False)
    bar.update()
    if bar.disable and tested.step and tested.step % _SYNTHESIS_LOG == 0:
        numbers = (tested.step, tested.norm, tested.mse_probability)
        _logger.info("synthesis step %d: norm %.4g, mse_probability %.4g", *numbers)


def _fit(run: Run, bar: Any, state: dict[str, Any] | None) -> None:
    """Train, evaluate after every ``--val-interval`` epochs, keep the best and the last weights."""
    args, at = run.args, run.at
    stream = iter(run.data.train)
    if state is not None:
        run.restore_random(state)  # after the loader has drawn its seed
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


def _resumed(args: argparse.Namespace, folder: Path) -> dict[str, Any] | None:
    """The state that ``--resume`` asks for, as rank 0 finds it."""
    if args.resume != "auto":
        return None
    if not args.experiment:
        raise OptionError("--resume auto: expected --experiment, the run's folder in --output, found none. Name it.")
    state = find_state(folder) if rank() == 0 else None
    state = broadcast_object(state)
    if state is None and any((folder / name).exists() for name in RUN_FILES):
        raise OutputError(
            f"--resume auto: expected a state in {folder}, found a run without one. Choose another --experiment, and "
            "--initial-checkpoint last.pth.tar to go on from its weights."
        )
    if state is None:
        _logger.info("--resume auto: %s holds no state yet, starting anew", folder)
    return state


def train(args: argparse.Namespace) -> Path:
    """One run with parsed flags; the folder that holds its weights, ``summary.csv`` and ``args.yaml``.

    Raises:
        UserError: something about the flags, the data, the checkpoint or the output folder.
    """
    torch.backends.cudnn.benchmark = True
    check_noise_args(args)
    with Stop() as stop, process_group(pick_device(args.device)) as device, ExitStack() as bars:
        name = args.experiment or f"{time.strftime('%Y%m%d-%H%M%S')}-{args.model}"
        folder = Path(args.output) / name
        state = _resumed(args, folder)
        if state is None:
            on_first_rank(lambda: new_run_folder(folder, RUN_FILES), device)
        model, ema = build_model(args, device)
        data = build_data(args, model, start=0 if state is None else state["at"]["step"])
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
        if state is not None:
            require_same(state["identity"], identity(args, data), folder)
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
            on_step=lambda tested: _show(synthesis, tested, stop, folder),
        )
        trackers = None
        if rank() == 0:
            trackers = Trackers(
                folder,
                tensorboard=args.log_tensorboard,
                wandb=args.wandb_project if args.log_wandb else None,
                settings=vars(args),
                step=0 if state is None else state["at"]["step"],
            )
            bars.callback(trackers.close)
        settings = {key: value for key, value in vars(args).items() if key != "config"}  # what -c takes
        on_first_rank(lambda: write_text(folder / "args.yaml", yaml.safe_dump(settings)), device)
        run = Run(
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
            stop=stop,
            trackers=trackers,
        )
        if state is not None:
            run.restore(state)
            bar.update(run.at.step)
            _logger.info("resumed %s at step %d of %d", folder, run.at.step, last_step)
        _fit(run, bar, state)
        on_first_rank(lambda: (folder / BEFORE).unlink(missing_ok=True), device)
    return folder


def run(args: argparse.Namespace) -> None:
    """The verb ``train``."""
    folder = train(args)
    if is_first():
        print(f"run folder: {folder}")
