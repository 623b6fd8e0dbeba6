"""Bare transformers by name: timm's, EasyRobust's, and four small ones for tests and demos.

Importing this module registers the small ones with timm; so does :func:`register_small_models`,
after which ``timm.create_model`` in EasyRobust's own scripts finds them too.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.models import is_model, list_models, model_entrypoint, register_model
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ..errors import CheckpointError, MissingPackageError, ModelError, UserError
from ..utils import import_package
from .factories import build_from_factory, is_factory, require_factory
from .hub import HubModel, is_hub_name
from .vit import required_image_size

__all__ = ["build", "register_small_models", "require_named"]  # register_model appends the small models' names


def register_small_models() -> None:
    """Make timm know the small models, which importing this module has done."""


def require_named(name: str) -> None:
    """Refuse a model's name by which nothing can be built, before anything is.

    Raises:
        ModelError: neither a factory that can be imported, nor an architecture.
        CheckpointError: a hub's model that cannot be had, or a folder that is none of that form.

    Example:
        >>> require_named("vit_micro_patch8_32")
    """
    if is_hub_name(name):
        _ = HubModel(name).config
    elif is_factory(name):
        require_factory(name)
    elif not is_model(name):
        _import_easyrobust_models(name)


def build(arch: str, *, num_classes: int | None = 1000, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build the bare transformer ``arch``, without input normalisation and in train mode.

    Args:
        arch: a name in timm's registry, or one of EasyRobust's models, whose package is
            imported only if timm does not know the name; or a factory of one's own, ``pkg.module:function`` or
            ``file.py:function`` (see :func:`~ns_easyrobust.models.factories.build_from_factory`).
        num_classes: number K of outputs of the head; None: the architecture's own.
        pretrained: let timm download its weights from a hub. If timm names a URL,
            :func:`ns_easyrobust.models.checkpoints.load_model` downloads and reads it safely instead.
        kwargs: passed to the architecture's factory; those that are None are dropped.

    Raises:
        ModelError: unknown name, an argument that the architecture does not accept, or a model of EasyRobust's that
            does not run under the installed timm.
        CheckpointError: ``pretrained`` weights that do not exist or cannot be downloaded.
    """
    options = {name: value for name, value in kwargs.items() if value is not None}
    if is_factory(arch):
        return build_from_factory(arch, num_classes=num_classes, pretrained=pretrained, options=options)
    options.update(pretrained=pretrained, **({} if num_classes is None else {"num_classes": num_classes}))
    if not is_model(arch):
        _import_easyrobust_models(arch)
    factory = model_entrypoint(arch)
    is_easyrobust = factory.__module__.startswith("easyrobust.")
    try:
        # EasyRobust's factories fail on the pretrained_cfg=None that timm 1.x's create_model adds
        model: nn.Module = factory(**options) if is_easyrobust else timm.create_model(arch, **options)
    except UserError:
        raise
    except Exception as error:  # a factory may raise an error of any type
        # A rejected argument raises TypeError or AssertionError; with pretrained, anything else is a failed download.
        if isinstance(error, OSError) or (pretrained and not isinstance(error, TypeError | AssertionError)):
            raise CheckpointError(
                f"{arch}: expected to download its pretrained weights, found {_reason(error)}. "
                "Check the network, or give a checkpoint file instead."
            ) from error
        raise ModelError(
            f"{arch} could not be built under timm {timm.__version__}: expected arguments that it takes, "
            f"found {_format_arguments(kwargs)}: {_reason(error)}. Correct the argument, or use another timm."
        ) from error
    if pretrained and not is_easyrobust and not _has_weights(model):
        raise _no_weights_error(arch)  # timm 0.5.4 silently keeps random weights
    if is_easyrobust and not timm.__version__.startswith("0."):
        _require_forward(model, arch)
    return model


def _require_forward(model: nn.Module, arch: str) -> None:
    """Raise ModelError where EasyRobust's model, which changes parts of timm 0.5.4, does not fit the installed timm."""
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, *(required_image_size(model) or (224, 224))))
    except (TypeError, AttributeError) as error:
        raise ModelError(
            f"{arch}: expected timm 0.5.4, which EasyRobust's model is written for, found timm {timm.__version__}, "
            f"under which it does not run ({_reason(error)}). Use timm 0.5.4, or a model of timm's."
        ) from error
    model.train()


def _import_easyrobust_models(arch: str) -> None:
    """Register EasyRobust's models with timm.

    Raises:
        ModelError: ``arch`` is not among them, or they cannot be imported.
    """
    problem = ""
    try:
        import_package("easyrobust.models", "EasyRobust's models")
    except MissingPackageError as error:
        problem = f" {error}"
    if is_model(arch) and not problem:
        return
    similar = difflib.get_close_matches(arch, list_models(), n=3)
    raise ModelError(
        f"unknown model: expected a name that timm {timm.__version__} or EasyRobust knows, found {arch!r}."
        + (f" Did you mean {', '.join(similar)}?" if similar else " timm.list_models() lists them.")
        + problem
    )


def published_url(model: nn.Module) -> str | None:
    """URL that timm names for the weights of a model that it built; None if it names none, or takes them from a hub.

    What comes from the hub, timm 1.x reads itself: files from elsewhere may hold names that it renames or leaves out.
    """
    url = None if config_of(model).get("hf_hub_id") else config_of(model).get("url")
    return url if isinstance(url, str) and url.startswith("http") else None


def config_of(model: nn.Module) -> Mapping[str, Any]:
    """timm's config of a model that it built (URL, image size, mean, std, ...); empty where there is none."""
    return getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}


def _has_weights(model: nn.Module) -> bool:
    config = config_of(model)
    return any(config.get(key) for key in ("url", "hf_hub", "hf_hub_id", "file", "state_dict"))


def _no_weights_error(arch: str) -> CheckpointError:
    return CheckpointError(
        f"{arch}: expected pretrained weights, found none published. Leave out pretrained, or give a checkpoint file."
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300].rstrip(".")


def _format_arguments(kwargs: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in kwargs.items()) or "none"


def _build_micro(
    factory: Any, name: str, classifier: str, pretrained: bool, kwargs: dict[str, Any], **shape: Any
) -> nn.Module:
    """Build a small model with the config that ``timm.data.resolve_data_config`` reads.

    ``shape`` holds the model's defaults, ``kwargs`` what timm passes to its factory. timm 1.x
    adds settings for pretrained weights to them, which are dropped.
    """
    if pretrained:
        raise _no_weights_error(name)
    for setting in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        kwargs.pop(setting, None)
    options = {"img_size": 32, "in_chans": 3, "num_classes": 1000} | shape
    options |= {key: value for key, value in kwargs.items() if value is not None}
    model: Any = factory(**options)
    size, channels = options["img_size"], options["in_chans"]
    model.default_cfg = {
        "architecture": name,
        "url": "",
        "num_classes": options["num_classes"],
        "input_size": (channels, *((size, size) if isinstance(size, int) else size)),
        "fixed_input_size": True,
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.5,) * channels,
        "std": (0.5,) * channels,
        "first_conv": "patch_embed.proj",
        "classifier": classifier,
    }
    model.pretrained_cfg = model.default_cfg  # timm 1.x's name
    return model


@register_model
def vit_micro_patch8_32(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViT for 32x32 images: 16 patches, width 64, 3 blocks; 0.16 M parameters. For tests and demos."""
    return _build_micro(
        VisionTransformer, "vit_micro_patch8_32", "head", pretrained, kwargs,
        patch_size=8, embed_dim=64, depth=3, num_heads=4,
    )  # fmt: skip


@register_model
def vit_micro_patch4_32(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViT for 32x32 images: 64 patches, width 192, 6 blocks; 2.7 M parameters. For CIFAR-10."""
    return _build_micro(
        VisionTransformer, "vit_micro_patch4_32", "head", pretrained, kwargs,
        patch_size=4, embed_dim=192, depth=6, num_heads=3,
    )  # fmt: skip


@register_model
def vit_micro_patch32_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViT for 224x224 images: 49 patches, width 64, 3 blocks. For smoke tests of scripts that crop to 224."""
    return _build_micro(
        VisionTransformer, "vit_micro_patch32_224", "head", pretrained, kwargs,
        img_size=224, patch_size=32, embed_dim=64, depth=3, num_heads=4,
    )  # fmt: skip


@register_model
def swin_micro_patch2_32(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin for 32x32 images: 256 patches, windows of 4, 2 stages of 2 blocks. For tests."""
    classifier = "head.fc" if hasattr(SwinTransformer, "set_input_size") else "head"  # timm 1.x, else 0.5.4
    return _build_micro(
        SwinTransformer, "swin_micro_patch2_32", classifier, pretrained, kwargs,
        patch_size=2, window_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 4),
    )  # fmt: skip
