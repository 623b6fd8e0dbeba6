"""Builds a training run's model and data from parsed flags."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_data_config
from timm.utils import ModelEmaV2, random_seed
from torch.utils.data import DataLoader

from ..data import (
    EndlessBatchSampler,
    FolderView,
    LabelledImages,
    ParentSigtermOnly,
    Preprocessing,
    SeededSamples,
    check_class_count,
    check_classes,
    list_folder,
    open_image_folder,
    open_named_splits,
    split_indices,
    training_transform,
)
from ..errors import ModelError, OptionError, TrainingError, is_full_memory
from ..models import (
    Checkpoint,
    Ema,
    NormalizedModel,
    load_model,
    logits_of,
    read_checkpoint,
    reference_tensor,
    require_named,
    required_arch,
)
from ..utils import on_first_rank, rank, world_size
from .resume import dataset_digest

_MAX_HOLDOUT = 10_000  # images


@dataclass
class Data:
    """A run's data: an endless stream of training batches, and the images for evaluation."""

    train: DataLoader[Any]
    val: Any
    holdout: Any  # None unless --select train-holdout
    steps_per_epoch: int
    digest: str  # of the images of both splits, see dataset_digest
    replaced: torch.Tensor  # (images of train/,), 1 where this rank could not decode one


def read_start(args: argparse.Namespace) -> Checkpoint | None:
    """The checkpoint of ``--initial-checkpoint``, if there is one; ``args.model`` is set to what it names where it is
    not given, and the number of class folders is checked where it is known before a model is built.

    Raises:
        CheckpointError: the file cannot be read.
        ModelError: neither ``--model`` nor the checkpoint names a model that there is.
        DataError: the folder for training has another number of classes than ``--num-classes`` or the checkpoint.
    """
    checkpoint = read_checkpoint(args.initial_checkpoint) if args.initial_checkpoint else None
    args.model = args.model or (
        required_arch(None, None) if checkpoint is None else required_arch(checkpoint.description, checkpoint.source)
    )
    require_named(args.model)
    expected = args.num_classes
    if expected is None and checkpoint is not None:
        expected = checkpoint.num_classes
    if args.dataset is None and expected:
        folder = Path(args.data_dir, args.train_split)
        if os.path.isdir(folder) and (classes := list_folder(folder)[0]):
            check_class_count(folder, len(classes), expected)
    return checkpoint


def build_model(
    args: argparse.Namespace, device: torch.device, checkpoint: Checkpoint | None
) -> tuple[NormalizedModel, ModelEmaV2 | None]:
    """The model with the checkpoint's raw weights; the EMA, if asked for, with its EMA weights or else the model's.

    A checkpoint for another number of classes than ``--num-classes`` gets a new head, the EMA the very same. What
    the checkpoint says of its model is set in ``args``.

    Raises:
        ModelError: the model cannot be built, does not take its images, or has another number of outputs, or no head.
        CheckpointError: the checkpoint is for another model.
    """
    random_seed(args.seed, 0)  # the same random weights on every rank: DDP does not broadcast the EMA's
    options = {"num_classes": args.num_classes, "mean": args.mean, "std": args.std, "drop_rate": args.drop}
    if args.drop_path is not None:
        options["drop_path_rate"] = args.drop_path
    if args.img_size is not None:
        options["img_size"] = args.img_size
    if args.pretrained:
        options["pretrained"] = True
    options |= {"new_head": args.num_classes is not None, "model_kwargs": args.model_kwargs}
    model = load_model(args.model, checkpoint, **options).to(device)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = None
    if args.model_ema:
        ema = Ema(model, decay=args.model_ema_decay)
        if checkpoint is not None and checkpoint.has_ema:
            if model.new_head_tensors:  # the average with the checkpoint's own, in whose place the model's is put
                options |= {"num_classes": None, "new_head": False}
            averaged = load_model(args.model, checkpoint, ema=True, **options).state_dict()
            own = ema.module.state_dict()
            averaged |= {name: own[name] for name in (f"1.{name}" for name in model.new_head_tensors)}
            ema.module.load_state_dict(averaged)
    if args.num_classes is None and model.num_classes == 0:
        source = args.initial_checkpoint or args.model
        raise ModelError(f"--num-classes: expected a number, as {source} has no head, found none. Give it.")
    _record_model(args, model)
    _check_output(args.model, model, args.num_classes)
    return model, ema


def _record_model(args: argparse.Namespace, model: NormalizedModel) -> None:
    """Set the flags to what the checkpoint gave where they were not given, so that the run's files hold it."""
    if args.num_classes is None:
        args.num_classes = model.num_classes
    for name, value in model.described.items():
        setattr(args, name, {**value, **args.model_kwargs} if name == "model_kwargs" else value)


def _training_transform(args: argparse.Namespace, model: NormalizedModel, size: int, interpolation: str) -> Any:
    return training_transform(
        size,
        model.mean,
        model.std,
        erase_prob=args.reprob,
        erase_mode=args.remode,
        erase_count=args.recount,
        erase_outside=args.erase_outside,
        erase_clean=not args.resplit,
        splits=args.aug_splits,
        no_aug=args.no_aug,
        scale=args.scale,
        ratio=args.ratio,
        hflip=args.hflip,
        vflip=args.vflip,
        color_jitter=args.color_jitter,
        auto_augment=args.aa,
        augmix_ops=args.augmix_ops,
        interpolation=interpolation if args.no_aug else args.train_interpolation,
    )


def _check_output(name: str, model: NormalizedModel, num_classes: int) -> None:
    """Raise ModelError unless the model of this name makes ``num_classes`` logits of an image of its size."""
    size = model.image_size
    image = torch.zeros(1, 3, size, size, device=reference_tensor(model).device)
    was_training = model.training
    try:
        with torch.no_grad():
            logits = logits_of(model.eval()(image), len(image))
    except ModelError:
        raise
    except Exception as error:  # timm's of a size that it does not take; a model of the user's own may raise any
        if is_full_memory(error):
            raise
        found = f"{size} x {size} pixels ({' '.join(f'{type(error).__name__}: {error}'.split())[:150]})"
        raise ModelError(
            f"--img-size: expected images that the model takes, found that it does not take {found}. "
            "Leave it out, or take a multiple of the patch size."
        ) from error
    finally:
        model.train(was_training)
    if logits.shape[1] != num_classes:
        raise ModelError(
            f"{name}: expected {num_classes} logits, as --num-classes or the model itself says, found "
            f"{logits.shape[1]}. A factory must make as many as the num_classes that it is given."
        )


def _open_splits(args: argparse.Namespace, device: torch.device) -> tuple[LabelledImages, LabelledImages, str]:
    """The images for training and evaluation, and a digest of both, by which a run to resume knows them."""
    if args.dataset is None:
        root = Path(args.data_dir)
        folder, val_folder = open_image_folder(root / args.train_split), open_image_folder(root / args.val_split)
        return folder, val_folder, dataset_digest([*folder.samples, *val_folder.samples], root)
    splits = (args.train_split, args.val_split)
    options = {"input_key": args.input_key, "target_key": args.target_key}
    if args.dataset_download or world_size() > 1:  # one process fills the folder or the cache
        download = args.dataset_download
        on_first_rank(
            lambda: open_named_splits(args.dataset, args.data_dir, splits, download=download, **options), device
        )
    train, val = open_named_splits(args.dataset, args.data_dir, splits, **options)
    return train, val, f"{train.digest()} {val.digest()}"


def build_data(args: argparse.Namespace, model: NormalizedModel, start: int = 0) -> Data:
    """The data that ``args`` ask for; the training stream begins at batch ``start``.

    Raises:
        DataError: a folder or set is missing or empty, or has other than ``--num-classes`` classes.
        TrainingError: train/ and val/ differ in their classes.
        OptionError: timm cannot read ``--aa``.
    """
    config = resolve_data_config({}, model=model[1])
    size = model.image_size
    preprocessing = Preprocessing(
        size, args.crop_pct or config["crop_pct"], args.interpolation or config["interpolation"]
    )
    train, val, digest = _open_splits(args, reference_tensor(model).device)
    for folder in (train, val):
        check_classes(folder, args.num_classes)
    if train.classes != val.classes:
        unshared = sorted(set(train.classes) ^ set(val.classes))
        raise TrainingError(
            f"{train.root}: expected the same classes as in {val.root}, found only in one: {unshared[:5]}."
        )
    if args.cutmix_minmax is not None and len({int(size * share) for share in args.cutmix_minmax}) < 2:
        raise OptionError(
            f"--cutmix-minmax: expected shares that differ by a pixel of {size}, found {args.cutmix_minmax}."
        )
    holdout_indices: list[int] = []
    train_indices: Sequence[int] = range(len(train))
    if args.select == "train-holdout":
        holdout_indices, train_indices = split_indices(
            train_indices, max(1, min(_MAX_HOLDOUT, round(args.holdout * len(train)))), args.seed
        )
    try:
        train_transform = _training_transform(args, model, size, preprocessing.interpolation)
    except (AssertionError, KeyError, IndexError, ValueError) as error:  # timm parses --aa by assertion
        raise OptionError(
            f"--aa {args.aa}: expected trivial, or a policy of timm's, found one it cannot read ({error!r})."
        ) from error
    val_transform = preprocessing.transform()
    batch_sampler = EndlessBatchSampler(
        len(train_indices), args.batch_size, seed=args.seed, rank=rank(), world_size=world_size(), start=start
    )
    replace_bad = args.bad_images == "replace"
    samples = FolderView(train, train_indices, train_transform, replace_bad=replace_bad)
    loader: DataLoader[Any] = DataLoader(
        SeededSamples(samples, args.seed),
        batch_sampler=batch_sampler,
        num_workers=args.workers,
        pin_memory=args.pin_mem,
        worker_init_fn=ParentSigtermOnly(),
    )
    return Data(
        train=loader,
        val=FolderView(val, range(len(val)), val_transform),
        holdout=FolderView(train, holdout_indices, val_transform, replace_bad=replace_bad) if holdout_indices else None,
        steps_per_epoch=args.epoch_steps or max(1, batch_sampler.batches_per_epoch // args.grad_accum_steps),
        replaced=samples.replaced,
        digest=digest,
    )
