"""From parsed flags to what a command works with: device, model, data, loss."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import Mixup, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.utils import ModelEmaV2, random_seed
from torch import nn
from torch.utils.data import DataLoader

from ..data.sampling import LeaveSigterm, SeededSamples, Stream, split_indices
from ..data.transforms import FolderPart, Preprocessing, check_classes, image_folder, training_transform
from ..errors import OptionError, TrainingError
from ..models.checkpoints import Checkpoint, load_model, read_checkpoint
from ..models.ema import Ema
from ..models.vit import NormalizedModel, built_size
from ..utils.distributed import rank, world_size
from .resume import dataset_digest

_HOLDOUT_AT_MOST = 10_000


def pick_device(name: str) -> torch.device:
    """The device of ``--device``.

    Raises:
        OptionError: ``cuda`` was asked for and there is none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise OptionError("--device cuda: expected a GPU that PyTorch can use, found none. Use --device cpu.")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and available) else "cpu")


def checkpoint_model(args: argparse.Namespace, device: torch.device) -> tuple[NormalizedModel, Checkpoint]:
    """The model of ``--model``, ``--ckpt-path``, ``--use-ema`` on ``device``, and the file it came from.

    Without ``--input-size`` the model's own image size is put there; another one is refused
    where the architecture cannot take it.
    """
    checkpoint = read_checkpoint(args.ckpt_path, sha256=args.sha256)
    options = {"num_classes": args.num_classes, "mean": args.mean, "std": args.std}
    if args.img_size is not None:
        options["img_size"] = args.img_size
    model = load_model(args.model, checkpoint, ema=args.use_ema, **options)
    size = args.img_size or int(resolve_data_config({}, model=model[1])["input_size"][-1])
    fixed = built_size(model)
    if args.input_size is not None and fixed is not None and fixed[-1] != args.input_size:
        raise OptionError(
            f"--input-size {args.input_size}: expected {fixed[-1]}, the size {args.model} is built for. "
            "Leave it out, or build the model for it with --img-size."
        )
    args.input_size = args.input_size or size
    return model.to(device), checkpoint


@dataclass
class Data:
    """What a run reads: an endless training stream and the images it is judged on."""

    train: DataLoader[Any]
    val: Any
    holdout: Any  # None unless --select train-holdout
    steps_per_epoch: int
    digest: str  # of the image folders
    replaced: torch.Tensor  # 1 for each image of train/ that could not be decoded so far, on this rank


def build_model(args: argparse.Namespace, device: torch.device) -> tuple[NormalizedModel, ModelEmaV2 | None]:
    """The model from its raw weights, and the EMA from its own, where the checkpoint has them."""
    random_seed(args.seed, 0)  # the same random weights on every rank, for the EMA's sake
    options = {"num_classes": args.num_classes, "mean": args.mean, "std": args.std, "drop_rate": args.drop}
    if args.drop_path is not None:
        options["drop_path_rate"] = args.drop_path
    if args.img_size is not None:
        options["img_size"] = args.img_size
    if args.pretrained:
        options["pretrained"] = True
    start = read_checkpoint(args.initial_checkpoint) if args.initial_checkpoint else None
    model = load_model(args.model, start, **options).to(device)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = None
    if args.model_ema:
        ema = Ema(model, decay=args.model_ema_decay)
        if start is not None and start.has_ema:
            ema.module.load_state_dict(load_model(args.model, start, ema=True, **options).state_dict())
    return model, ema


def _training_transform(args: argparse.Namespace, model: NormalizedModel, size: int, interpolation: str) -> Any:
    return training_transform(
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
        interpolation=interpolation if args.no_aug else args.train_interpolation,
    )


def build_data(args: argparse.Namespace, model: NormalizedModel, start: int = 0) -> Data:
    """What ``args`` read; the training stream begins at batch ``start``."""
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
    rest: Sequence[int] = range(len(train))
    if args.select == "train-holdout":
        held, rest = split_indices(rest, max(1, min(_HOLDOUT_AT_MOST, round(args.holdout * len(train)))), args.seed)
    try:
        augmented = _training_transform(args, model, size, preprocessing.interpolation)
    except (AssertionError, KeyError, IndexError, ValueError) as error:  # timm parses --aa by assertion
        raise OptionError(
            f"--aa {args.aa}: expected a policy of timm's, found one it cannot read ({error!r})."
        ) from error
    plain = preprocessing.transform()
    stream = Stream(len(rest), args.batch_size, seed=args.seed, rank=rank(), world_size=world_size(), start=start)
    samples = FolderPart(train, rest, augmented, replace_bad=args.bad_images == "replace")
    loader: DataLoader[Any] = DataLoader(
        SeededSamples(samples, args.seed),
        batch_sampler=stream,
        num_workers=args.workers,
        pin_memory=args.pin_mem,
        worker_init_fn=LeaveSigterm(),
    )
    return Data(
        train=loader,
        val=FolderPart(val, range(len(val)), plain),
        holdout=FolderPart(train, held, plain) if held else None,
        steps_per_epoch=args.epoch_steps or stream.batches_per_epoch,
        replaced=samples.replaced,
        digest=dataset_digest([*train.samples, *val.samples], root),
    )


def build_mixup_and_loss(args: argparse.Namespace) -> tuple[Mixup | None, nn.Module]:
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
