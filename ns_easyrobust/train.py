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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from timm.data import Mixup, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler
from timm.utils import ModelEmaV2, dispatch_clip_grad, random_seed, update_summary
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from .augment import NullspaceAugmentation, augmentation_from_args
from .checkpoints import load_model, read_checkpoint, save_model
from .data import FolderPart, Preprocessing, check_classes, image_folder, training_transform
from .distributed import barrier, mean_over_ranks, process_group, rank, sum_over_ranks, world_size
from .errors import OptionError, TrainingError
from .files import new_run_folder, write_text
from .noise import Step
from .options import build_parser, parse_with
from .streams import SeededSamples, Stream, split_indices
from .vit import NormalizedModel, unwrap

_logger = logging.getLogger(__name__)
_HOLDOUT_AT_MOST = 10_000
add_arguments, parse = build_parser, parse_with
_RUN_FILES = ("args.yaml", "summary.csv", "last.pth.tar", "model_best.pth.tar")


def pick_device(name: str) -> torch.device:
    """The device of ``--device``.

    Raises:
        OptionError: ``cuda`` was asked for and there is none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise OptionError("--device cuda: expected a GPU that PyTorch can use, found none. Use --device cpu.")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and available) else "cpu")


@dataclass
class _Data:
    """What a run reads: an endless training stream and the images it is judged on."""

    train: DataLoader[Any]
    val: Any
    holdout: Any  # None unless --select train-holdout
    steps_per_epoch: int


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
    data: _Data
    folder: Path
    last_step: int
    step: int = 0

    @property
    def judged(self) -> nn.Module:
        """The module that is evaluated: the EMA where there is one."""
        return self.ema.module if self.ema is not None else unwrap(self.model)

    def autocast(self) -> Any:
        dtype = getattr(torch, self.args.amp_dtype)
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.args.amp)


def _build_model(args: argparse.Namespace, device: torch.device) -> tuple[NormalizedModel, ModelEmaV2 | None]:
    """The model from its raw weights, and the EMA from its own, where the checkpoint has them."""
    random_seed(args.seed, 0)  # the same random weights on every rank, for the EMA's sake
    options = {"num_classes": args.num_classes, "mean": args.mean, "std": args.std, "drop_rate": args.drop}
    if args.drop_path is not None:
        options["drop_path_rate"] = args.drop_path
    if args.img_size is not None:
        options["img_size"] = args.img_size
    path = args.initial_checkpoint or None
    if args.pretrained:
        options["pretrained"] = True
    model = load_model(args.model, path, **options).to(device)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = None
    if args.model_ema:
        ema = ModelEmaV2(model, decay=args.model_ema_decay)
        if path and read_checkpoint(path).has_ema:
            ema.module.load_state_dict(load_model(args.model, path, ema=True, **options).state_dict())
    return model, ema


def _build_data(args: argparse.Namespace, model: NormalizedModel) -> _Data:
    config = resolve_data_config({"img_size": args.img_size}, model=model[1])
    size = config["input_size"][-1]
    preprocessing = Preprocessing(
        size, args.crop_pct or config["crop_pct"], args.interpolation or config["interpolation"]
    )
    root = Path(args.data_dir)
    train, val = image_folder(root / args.train_split), image_folder(root / args.val_split)
    for folder in (train, val):
        check_classes(folder, args.num_classes)
    if train.classes != val.classes:
        odd = sorted(set(train.classes) ^ set(val.classes))
        raise TrainingError(f"{root}: expected the same classes in train and val, found only in one: {odd[:5]}.")
    held: list[int] = []
    rest = list(range(len(train)))
    if args.select == "train-holdout":
        held, rest = split_indices(
            len(train), max(1, min(_HOLDOUT_AT_MOST, round(args.holdout * len(train)))), args.seed
        )
    augmented = training_transform(
        size,
        model.mean,
        model.std,
        erase_prob=args.reprob,
        erase_mode=args.remode,
        erase_count=args.recount,
        erase_outside=args.erase_outside,
        no_aug=args.no_aug,
        scale=args.scale,
        ratio=args.ratio,
        hflip=args.hflip,
        vflip=args.vflip,
        color_jitter=args.color_jitter,
        auto_augment=args.aa,
        interpolation=preprocessing.interpolation if args.no_aug else args.train_interpolation,
    )
    plain = preprocessing.transform()
    stream = Stream(len(rest), args.batch_size, seed=args.seed, rank=rank(), world_size=world_size())
    loader: DataLoader[Any] = DataLoader(
        SeededSamples(FolderPart(train, rest, augmented), args.seed),
        batch_sampler=stream,
        num_workers=args.workers,
        pin_memory=args.pin_mem,
    )
    return _Data(
        train=loader,
        val=FolderPart(val, range(len(val)), plain),
        holdout=FolderPart(train, held, plain) if held else None,
        steps_per_epoch=args.epoch_steps or stream.batches_per_epoch,
    )


def _build_mixup_and_loss(args: argparse.Namespace) -> tuple[Mixup | None, nn.Module]:
    if args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None:
        mixup = Mixup(
            mixup_alpha=args.mixup,
            cutmix_alpha=args.cutmix,
            cutmix_minmax=args.cutmix_minmax,
            prob=args.mixup_prob,
            switch_prob=args.mixup_switch_prob,
            mode=args.mixup_mode,
            label_smoothing=args.smoothing,
            num_classes=args.num_classes,
        )
        return mixup, SoftTargetCrossEntropy()
    return None, LabelSmoothingCrossEntropy(args.smoothing) if args.smoothing else nn.CrossEntropyLoss()


def _evaluate(run: _Run, dataset: Any) -> dict[str, float]:
    """Loss and top-1 (percent) of the judged weights on every image once, over all ranks."""
    model, batch = run.judged, run.args.validation_batch_size or run.args.batch_size
    mine = Subset(dataset, range(rank(), len(dataset), world_size()))
    loader: DataLoader[Any] = DataLoader(mine, batch_size=batch, num_workers=run.args.workers)
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
    return {"loss": loss_sum / n, "top1": 100 * right_sum / n}


def _train_step(run: _Run, images: torch.Tensor, target: torch.Tensor) -> tuple[float, float]:
    """One update; the clean and the companion loss, averaged over ranks."""
    args = run.args
    images, target = images.to(run.device), target.to(run.device)
    if run.mixup is not None:
        images, target = run.mixup(images, target)
    if args.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    with run.autocast():
        loss = run.loss_fn(run.model(images), target)
        companion = torch.zeros_like(loss)
        if run.augmentation is not None:
            companion = run.augmentation.loss(images, target, run.loss_fn)  # Algorithm 1, lines 17-19
    clean_value, companion_value = mean_over_ranks(torch.stack([loss.detach(), companion.detach()])).tolist()
    if not math.isfinite(clean_value + companion_value):
        good = run.folder / "last.pth.tar"
        raise TrainingError(
            f"step {run.step}: expected a finite loss, found clean {clean_value}, noisy {companion_value}. Lower --lr, "
            f"or check data and checkpoint. {f'Last good weights: {good}' if good.exists() else 'Nothing was saved'}."
        )
    run.optimizer.zero_grad()
    run.scaler.scale(loss + companion).backward()
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
        if bar.disable and rank() == 0 and (index + 1) % run.args.log_interval == 0:
            done = bar.total - run.step
            _logger.info("step %d, %d to go: loss %.4f, noisy %.4f", run.step, done, clean, companion)
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


def _fit(run: _Run, bar: Any) -> None:
    """Train, evaluate after every ``--val-interval`` epochs, keep the best and the last weights."""
    args = run.args
    stream, best, epoch = iter(run.data.train), -math.inf, 0
    while run.step < run.last_step:
        steps = min(run.data.steps_per_epoch, run.last_step - run.step)
        train_metrics = _train_epoch(run, epoch, stream, steps, bar)
        if run.step >= run.last_step or (epoch + 1) % args.val_interval == 0:
            metrics = _evaluate(run, run.data.val)
            if run.data.holdout is not None:
                metrics["holdout_top1"] = _evaluate(run, run.data.holdout)["top1"]
            chosen_by = {"val": "top1", "train-holdout": "holdout_top1"}.get(args.select)
            score = metrics[chosen_by] if chosen_by else float(epoch)
            if rank() == 0:
                first = not (run.folder / "summary.csv").exists()
                update_summary(epoch, train_metrics, metrics, run.folder / "summary.csv", write_header=first)
                if run.augmentation is not None:
                    _write_noise_history(run)
                _save(run, "last.pth.tar", epoch=epoch, metric=score, selected_on=args.select)
                if score > best:
                    _save(run, "model_best.pth.tar", epoch=epoch, metric=score, selected_on=args.select)
            best = max(best, score)
            _logger.info("epoch %d: %s", epoch, ", ".join(f"{key} {value:.4g}" for key, value in metrics.items()))
            barrier()
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
        if rank() == 0:
            new_run_folder(folder, _RUN_FILES)
        model, ema = _build_model(args, device)
        data = _build_data(args, model)
        # A plain Sequential hides what timm must not decay, as in the paper's code.
        optimizer = create_optimizer_v2(
            nn.Sequential(*model) if args.decay_tokens else model,
            **optimizer_kwargs(cfg=args),
        )
        if args.max_steps:
            args.epochs = math.ceil(args.max_steps / data.steps_per_epoch)
        scheduler, epochs = create_scheduler(args, optimizer)
        trained: nn.Module = model
        if world_size() > 1:
            trained = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
        mixup, loss_fn = _build_mixup_and_loss(args)
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
        if rank() == 0:
            write_text(folder / "args.yaml", yaml.safe_dump(vars(args)))
        barrier()
        run = _Run(
            args=args,
            device=device,
            model=trained,
            ema=ema,
            optimizer=optimizer,
            scaler=torch.amp.GradScaler(
                device.type, enabled=args.amp and args.amp_dtype == "float16" and device.type == "cuda"
            ),
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
    if rank() == 0:
        print(f"run folder: {folder}")
