"""What keeps EasyRobust's scripts from running on today's PyTorch, mended from outside while one runs, and named."""

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
from unittest import mock

import numpy as np
import timm.models.helpers
import torch
import torch.distributed as dist
from torch import nn
from torch.utils import data, model_zoo

from ..errors import CheckpointError
from ..models.checkpoints import Checkpoint, load_into, read_checkpoint
from ..models.ema import Ema
from ..models.safe_load import ALLOWED, read_without_objects
from ..models.vit import built_size, find_normalize
from ..utils.distributed import active, is_first, rank

_logger = logging.getLogger(__name__)
_said: set[str] = set()


def say(what: str) -> None:
    """Name a repair, once a process and by one of all ranks."""
    if what not in _said and is_first():
        _said.add(what)
        _logger.warning("repaired: %s", what)


@contextmanager
def repaired(downloads: Path | None = None) -> Iterator[None]:
    """While the body runs, what a script imports and calls works under the installed versions.

    Args:
        downloads: folder of files that stand for downloads of the same name.
    """
    _said.clear()
    with ExitStack() as undo:
        undo.enter_context(torch.serialization.safe_globals(ALLOWED))  # timm's checkpoints hold a Namespace
        undo.enter_context(mock.patch.object(data.DataLoader, "__init__", _loader(data.DataLoader.__init__)))
        for target in (model_zoo, torch.hub, timm.models.helpers):
            name = "load_url" if target is model_zoo else "load_state_dict_from_url"
            undo.enter_context(mock.patch.object(target, name, _fetching(getattr(target, name), downloads)))
        if not hasattr(np, "bool"):  # numpy 1.24 to 1.26
            say("numpy has no np.bool, which timm 0.5.4's Mixup asks for: np.bool_ is its name there")
            undo.enter_context(mock.patch.object(np, "bool", np.bool_, create=True))
        _mend_imports(undo)
        yield


def _loader(start: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(start)
    def begin(self: Any, *args: Any, **options: Any) -> None:
        if options.get("persistent_workers") and not options.get("num_workers"):
            say("-j 0: data loaders without workers cannot keep them (persistent_workers=True)")
            options["persistent_workers"] = False
        start(self, *args, **options)

    return begin


def _fetching(fetch: Callable[..., Any], downloads: Path | None) -> Callable[..., Any]:
    """``fetch``, from ``downloads`` where the file is there; in one line where it is to be had nowhere."""

    @functools.wraps(fetch)
    def load(url: str, *args: Any, **options: Any) -> Any:
        name = url.rsplit("/", 1)[-1]
        if downloads is not None and (downloads / name).is_file():
            say(f"{name} is read from {downloads} instead of {url}")
            return read_without_objects(downloads / name, name)
        try:
            return fetch(url, *args, **{**options, "weights_only": True})
        except Exception as error:  # urllib's, or the unpickler's refusal
            raise CheckpointError(
                f"{url}: expected to download and read it, found {type(error).__name__}: {str(error)[:200]}. "
                f"Put {name} into a folder and give launch --downloads FOLDER."
            ) from error

    return load


def _mend_imports(undo: ExitStack) -> None:
    """Names that scripts import and that are gone, or are missing here and not used."""
    import torchvision.transforms as transforms

    if not hasattr(transforms, "RandomSizedCrop"):
        undo.enter_context(mock.patch.object(transforms, "RandomSizedCrop", _sized_crop, create=True))
    try:
        importlib.import_module("tkinter.ttk")
    except ImportError:
        stub: Any = ModuleType("tkinter.ttk")
        stub.Style = object
        undo.enter_context(mock.patch.dict(sys.modules, {"tkinter": ModuleType("tkinter"), "tkinter.ttk": stub}))
        say("tkinter is not installed: adversarial_training imports it and does not use it")
    import easyrobust.datasets as datasets

    for name in ("ImageNetDataset", "DeepAugmentDataset", "StylizedImageNetDataset"):
        kind = getattr(datasets, name)
        undo.enter_context(mock.patch.object(kind, "__init__", _one_after_another(kind.__init__)))


def _sized_crop(*args: Any, **options: Any) -> Any:
    from torchvision.transforms import RandomResizedCrop

    say("torchvision has no RandomSizedCrop any more: RandomResizedCrop is its new name")
    return RandomResizedCrop(*args, **options)


def _one_after_another(start: Callable[..., None]) -> Callable[..., None]:
    """Rank 0 writes the list of images, which the others read."""

    @functools.wraps(start)
    def begin(self: Any, *args: Any, **options: Any) -> None:
        if active():
            say("ranks wait for rank 0 to write train_with_label.txt")
            if rank() != 0:
                dist.barrier()
        start(self, *args, **options)
        if active() and rank() == 0:
            dist.barrier()

    return begin


def mend(script: Any) -> None:
    """Repairs inside the loaded ``script``: its parser, and names that it looks up in itself."""
    actions = script.parser._option_string_actions
    if "--local_rank" in actions and "--local-rank" not in actions:
        actions["--local-rank"] = actions["--local_rank"]  # torch.distributed.launch's spelling since 2.0
        actions["--local_rank"].option_strings.append("--local-rank")
        if any(word.startswith("--local-rank") for word in sys.argv):
            say("torch.distributed.launch writes --local-rank since 2.0, the script --local_rank")
    if any(word.startswith("--resume") for word in sys.argv):
        say("timm's own checkpoints hold a Namespace, which PyTorch's safe loader is allowed to read")
    if hasattr(script, "create_scheduler"):
        script.create_scheduler = _scheduler(script.create_scheduler)
    if not hasattr(script, "amp"):
        script.amp = _NoApex()
    if not hasattr(script, "ApexDDP"):
        script.ApexDDP = _native_ddp
    if hasattr(script, "pgd_generator") and hasattr(script, "bn_to_adv_status"):
        script.pgd_generator = _within_classes(script.pgd_generator)
    if hasattr(script, "CrossStyleAugmentor"):
        script.create_model = _resizing(script.create_model)
    if hasattr(script, "create_model"):
        start = _Start(script.create_model)
        script.create_model = start.create_model
        if hasattr(script, "ModelEmaV2"):
            script.ModelEmaV2 = functools.partial(start.average, script.ModelEmaV2)


def _scheduler(create: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(create)
    def scheduler(args: Any, optimizer: Any) -> Any:
        milestones = getattr(args, "decay_milestones", None)
        if args.sched == "multistep" and milestones:
            say("--sched multistep decays at --decay-milestones, which timm 0.5.4 looks for in --decay-epochs")
            args.decay_epochs = milestones
        return create(args, optimizer)

    return scheduler


class _NoApex:
    """``apex.amp`` where it is not installed: hat scales its losses with it, and it is not maintained."""

    @contextmanager
    def scale_loss(self, loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
        say("apex is not installed: losses are not scaled, so leave --amp out")
        yield loss


def _native_ddp(model: nn.Module, delay_allreduce: bool = False) -> nn.Module:
    say("apex is not installed: PyTorch's DistributedDataParallel takes its place, and broadcasts no buffers")
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)


def _within_classes(attack: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """advprop draws its targets among 1000 classes, whatever the model has."""

    @functools.wraps(attack)
    def targeted(images: torch.Tensor, target: torch.Tensor, model: nn.Module, **options: Any) -> torch.Tensor:
        head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        if options.get("targeted") and target.ndim == 1 and int(target.max()) >= head.out_features:
            say(f"advprop draws attack targets among 1000 classes: taken modulo the model's {head.out_features}")
            target = target % head.out_features
        return attack(images, target, model, **options)

    return targeted


def _resizing(create: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """shape_texture trains on 112 to 224 pixels, which a ViT of a fixed size refuses."""

    @functools.wraps(create)
    def model_of_one_size(*args: Any, **options: Any) -> nn.Module:
        model = create(*args, **options)
        size = built_size(model)

        def resize(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Any:
            if tuple(inputs[0].shape[2:]) == size:
                return None
            say(f"images are resized to the model's {size} again where the script has made them smaller")
            return (nn.functional.interpolate(inputs[0], size=size, mode="bilinear"), *inputs[1:])

        if size is not None:
            model.register_forward_pre_hook(resize)
        return model

    return model_of_one_size


class _Start:
    """``--initial-checkpoint`` of any form, raw weights and moving average each where they belong.

    timm loads the raw weights into the bare model, which fails on the keys of a checkpoint with the
    normalisation inside (DAT's), and a moving average starts from them instead of from its own.
    """

    def __init__(self, create: Callable[..., nn.Module]) -> None:
        self.create, self.arch = create, ""
        self.checkpoint: Checkpoint | None = None

    def create_model(self, model_name: str, *args: Any, checkpoint_path: str = "", **options: Any) -> nn.Module:
        """timm's, without its loading."""
        try:
            model = self.create(model_name, *args, **options)
        except OSError as error:  # urllib's, for CLIP's and others' weights
            raise CheckpointError(
                f"{model_name}: expected to download its weights, found {type(error).__name__}: {error}. "
                "Check the network, or choose a model that needs none."
            ) from error
        if checkpoint_path:
            self.arch, self.checkpoint = model_name, read_checkpoint(checkpoint_path)
            weights, _ = load_into(model, self.checkpoint, False, model_name)
            if weights is not None and weights.mean is not None:
                mean, std = (tuple(round(v, 4) for v in values or ()) for values in (weights.mean, weights.std))
                say(
                    f"--initial-checkpoint holds a normalisation in front of the model (mean {mean}, std {std}), which "
                    "timm does not expect. See that the script uses the same: in its model, or with --mean and --std"
                )
        return model

    def average(self, kind: Callable[..., Any], model: nn.Module, *args: Any, **options: Any) -> Any:
        """The script's moving average."""
        ema = kind(model, *args, **options)
        if any(not buffer.is_floating_point() for buffer in model.buffers()):
            say("timm's moving average cuts integer buffers' fractions, as of Swin's position index: they are copied")
            ema._update = types.MethodType(Ema._update, ema)
        if self.checkpoint is not None and self.checkpoint.has_ema:
            inner = ema.module[1] if find_normalize(ema.module) is not None else ema.module
            load_into(inner, self.checkpoint, True, self.arch)
            say("--model-ema starts from the checkpoint's moving average, not from its raw weights")
        return ema
