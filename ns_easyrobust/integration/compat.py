"""Repairs that let an unmodified EasyRobust script run on current libraries, applied only while it runs, and logged."""

from __future__ import annotations

import functools
import importlib
import logging
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import timm
import torch
import torch.distributed as dist
from torch import nn
from torch.utils import data, model_zoo

from ..errors import CheckpointError, without_secrets
from ..models import (
    ALLOWED_GLOBALS,
    Checkpoint,
    Ema,
    bare_vit,
    load_into,
    read_checkpoint,
    read_without_objects,
    reference_tensor,
    required_image_size,
)
from ..utils import import_package, is_distributed, is_first_rank, rank, replaced_attributes

_logger = logging.getLogger(__name__)
_logged_repairs: set[str] = set()


def log_repair(what: str) -> None:
    """Log a repair, once for each use of :func:`script_repairs` and on the first rank only."""
    if what not in _logged_repairs and is_first_rank():
        _logged_repairs.add(what)
        _logger.warning("repaired: %s", what)


@contextmanager
def script_repairs(downloads: Path | None = None) -> Iterator[None]:
    """While the body runs, repair what scripts import and call, so that it works under the installed versions.

    Args:
        downloads: folder whose files are read instead of downloading files of the same name.
    """
    _logged_repairs.clear()
    with ExitStack() as undo:
        undo.enter_context(torch.serialization.safe_globals(ALLOWED_GLOBALS))  # timm's checkpoints contain a Namespace
        undo.enter_context(replaced_attributes(data.DataLoader, __init__=_repair_loader(data.DataLoader.__init__)))
        for module, name in (
            (model_zoo, "load_url"),
            (torch.hub, "load_state_dict_from_url"),
            (timm.models.helpers, "load_state_dict_from_url"),
        ):
            load = _downloads_first(getattr(module, name), downloads)
            undo.enter_context(replaced_attributes(module, **{name: load}))
        if not hasattr(np, "bool"):  # numpy 1.24 to 1.26
            log_repair("numpy has no np.bool, which timm 0.5.4's Mixup asks for: np.bool_ is its name there")
            undo.enter_context(replaced_attributes(np, bool=np.bool_))
        _repair_imports(undo)
        yield


def _repair_loader(original_init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original_init)
    def patched_init(self: Any, *args: Any, **options: Any) -> None:
        if options.get("persistent_workers") and not options.get("num_workers"):
            log_repair("-j 0: data loaders without workers cannot keep them (persistent_workers=True)")
            options["persistent_workers"] = False
        original_init(self, *args, **options)

    return patched_init


def _downloads_first(fetch: Callable[..., Any], downloads: Path | None) -> Callable[..., Any]:
    """Wrap ``fetch``: read the file from ``downloads`` if it is there; raise a CheckpointError if fetching fails."""

    @functools.wraps(fetch)
    def load(url: str, *args: Any, **options: Any) -> Any:
        name = url.rsplit("/", 1)[-1]
        if downloads is not None and (downloads / name).is_file():
            log_repair(f"{name} is read from {downloads} instead of {without_secrets(url)}")
            return read_without_objects(downloads / name, name)
        try:
            return fetch(url, *args, **{**options, "weights_only": True})
        except Exception as error:  # from urllib, or from the unpickler
            raise CheckpointError(
                f"{url}: expected to download and read it, found {type(error).__name__}: {str(error)[:200]}. "
                f"Put {name} into a folder and give launch --downloads FOLDER."
            ) from error

    return load


def _repair_imports(undo: ExitStack) -> None:
    """Supply names that scripts import but newer libraries lack, and modules that they import but do not use."""
    import torchvision.transforms as transforms

    if not hasattr(transforms, "RandomSizedCrop"):
        undo.enter_context(replaced_attributes(transforms, RandomSizedCrop=_random_sized_crop))
    try:
        importlib.import_module("tkinter.ttk")
    except ImportError:
        stub: Any = ModuleType("tkinter.ttk")
        stub.Style = object
        for module in (ModuleType("tkinter"), stub):
            sys.modules[module.__name__] = module
            undo.callback(sys.modules.pop, module.__name__, None)
        log_repair("tkinter is not installed: adversarial_training imports it and does not use it")
    datasets = import_package("easyrobust.datasets", "EasyRobust's scripts")

    for name in ("ImageNetDataset", "DeepAugmentDataset", "StylizedImageNetDataset"):
        dataset_class = getattr(datasets, name)
        undo.enter_context(replaced_attributes(dataset_class, __init__=_rank_zero_first(dataset_class.__init__)))


def _random_sized_crop(*args: Any, **options: Any) -> Any:
    from torchvision.transforms import RandomResizedCrop

    log_repair("torchvision has no RandomSizedCrop any more: RandomResizedCrop is its new name")
    return RandomResizedCrop(*args, **options)


def _rank_zero_first(original_init: Callable[..., None]) -> Callable[..., None]:
    """Make the other ranks wait for rank 0, which writes the list of images that they read."""

    @functools.wraps(original_init)
    def patched_init(self: Any, *args: Any, **options: Any) -> None:
        if is_distributed():
            log_repair("ranks wait for rank 0 to write train_with_label.txt")
            if rank() != 0:
                dist.barrier()
        original_init(self, *args, **options)
        if is_distributed() and rank() == 0:
            dist.barrier()

    return patched_init


def repair_script(script: Any) -> None:
    """Repair the loaded ``script`` in place: its parser and its module-level names."""
    actions = script.parser._option_string_actions
    if "--local_rank" in actions and "--local-rank" not in actions:
        actions["--local-rank"] = actions["--local_rank"]  # torch.distributed.launch's spelling since 2.0
        actions["--local_rank"].option_strings.append("--local-rank")
        if any(word.startswith("--local-rank") for word in sys.argv):
            log_repair("torch.distributed.launch writes --local-rank since 2.0, the script --local_rank")
    if any(word.startswith("--resume") for word in sys.argv):
        log_repair("timm's own checkpoints hold a Namespace, which PyTorch's safe loader is allowed to read")
    if hasattr(script, "create_scheduler"):
        script.create_scheduler = _with_milestones(script.create_scheduler)
    if not hasattr(script, "amp"):
        script.amp = _ApexAmpStandIn()
    if not hasattr(script, "ApexDDP"):
        script.ApexDDP = _native_ddp
    if hasattr(script, "pgd_generator") and hasattr(script, "bn_to_adv_status"):
        script.pgd_generator = _with_targets_in_range(script.pgd_generator)
    if hasattr(script, "CrossStyleAugmentor"):
        script.create_model = _with_resized_inputs(script.create_model)
    if hasattr(script, "create_model"):
        initial = _InitialCheckpoint(script.create_model)
        script.create_model = initial.create_model
        if hasattr(script, "ModelEmaV2"):
            script.ModelEmaV2 = functools.partial(initial.average, script.ModelEmaV2)


def _with_milestones(create: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(create)
    def create_with_milestones(args: Any, optimizer: Any) -> Any:
        milestones = getattr(args, "decay_milestones", None)
        if args.sched == "multistep" and milestones:
            log_repair("--sched multistep decays at --decay-milestones, which timm 0.5.4 looks for in --decay-epochs")
            args.decay_epochs = milestones
        return create(args, optimizer)

    return create_with_milestones


class _ApexAmpStandIn:
    """Stands in for ``apex.amp``, which is no longer maintained and with which the hat script scales its losses."""

    @contextmanager
    def scale_loss(self, loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
        log_repair("apex is not installed: losses are not scaled, so leave --amp out")
        yield loss


def _native_ddp(model: nn.Module, delay_allreduce: bool = False) -> nn.Module:
    log_repair("apex is not installed: PyTorch's DistributedDataParallel takes its place, and broadcasts no buffers")
    device = reference_tensor(model).device
    devices = [device] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)


def _with_targets_in_range(attack: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Wrap ``attack`` for advprop, which draws its targets from 1000 classes, however many the model has."""

    @functools.wraps(attack)
    def attack_in_range(images: torch.Tensor, target: torch.Tensor, model: nn.Module, **options: Any) -> torch.Tensor:
        head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        if options.get("targeted") and target.ndim == 1 and int(target.max()) >= head.out_features:
            log_repair(f"advprop draws attack targets among 1000 classes: taken modulo the model's {head.out_features}")
            target = target % head.out_features
        return attack(images, target, model, **options)

    return attack_in_range


def _with_resized_inputs(create: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Wrap ``create`` for shape_texture, whose images of 112 to 224 pixels a ViT of fixed size refuses."""

    @functools.wraps(create)
    def create_resizing_model(*args: Any, **options: Any) -> nn.Module:
        model = create(*args, **options)
        size = required_image_size(model)

        def resize(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Any:
            if tuple(inputs[0].shape[2:]) == size:
                return None
            log_repair(f"images are resized to the model's {size} again where the script has made them smaller")
            return (nn.functional.interpolate(inputs[0], size=size, mode="bilinear"), *inputs[1:])

        if size is not None:
            model.register_forward_pre_hook(resize)
        return model

    return create_resizing_model


class _InitialCheckpoint:
    """Loads ``--initial-checkpoint``, in any form: raw weights into the model, averaged ones into the moving average.

    timm alone loads the raw weights into the bare model, which fails on the keys of a checkpoint that includes
    the normalisation (DAT's); and it starts the moving average from the raw weights too.
    """

    def __init__(self, create: Callable[..., nn.Module]) -> None:
        self.create, self.arch = create, ""
        self.checkpoint: Checkpoint | None = None

    def create_model(self, model_name: str, *args: Any, checkpoint_path: str = "", **options: Any) -> nn.Module:
        """timm's ``create_model``, but the checkpoint is loaded here."""
        try:
            model = self.create(model_name, *args, **options)
        except OSError as error:  # from urllib, for example for CLIP's weights
            raise CheckpointError(
                f"{model_name}: expected to download its weights, found {type(error).__name__}: {error}. "
                "Check the network, or choose a model that needs none."
            ) from error
        if checkpoint_path:
            self.arch, self.checkpoint = model_name, read_checkpoint(checkpoint_path)
            weights, _ = load_into(model, self.checkpoint, False, model_name)
            if weights is not None and weights.mean is not None:
                mean, std = (tuple(round(v, 4) for v in values or ()) for values in (weights.mean, weights.std))
                log_repair(
                    f"--initial-checkpoint holds a normalisation in front of the model (mean {mean}, std {std}), which "
                    "timm does not expect. See that the script uses the same: in its model, or with --mean and --std"
                )
        return model

    def average(self, ema_class: Callable[..., Any], model: nn.Module, *args: Any, **options: Any) -> Any:
        """Build the script's moving average, from the checkpoint's if it has one."""
        ema = ema_class(model, *args, **options)
        if any(not buffer.is_floating_point() for buffer in model.buffers()):
            log_repair(
                "timm's moving average cuts integer buffers' fractions, as of Swin's position index: they are copied"
            )
            ema._update = types.MethodType(Ema._update, ema)
        if self.checkpoint is not None and self.checkpoint.has_ema:
            load_into(bare_vit(ema.module), self.checkpoint, True, self.arch)
            log_repair("--model-ema starts from the checkpoint's moving average, not from its raw weights")
        return ema
