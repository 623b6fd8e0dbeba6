"""The features of images that a model's classifier reads."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from ..errors import ModelError
from ..utils import nn, torch
from .outputs import output_of
from .vit import bare_vit, unwrap


def features_of(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The penultimate features (B, D) of ``images`` (B, C, H, W): what the classifier is applied to.

    Runs the model once, in its present mode, with the autograd graph; hooks and compiled forms as in
    :func:`~ns_easyrobust.models.encoder_noise`. A distilled model has two classifiers: the mean of what they read,
    as timm 1.x's ``forward_head(..., pre_logits=True)`` has it.

    Raises:
        ModelError: no classifier, or one that is not applied to (B, D).

    Example:
        >>> features_of(model, images).shape
        torch.Size([8, 64])
    """
    inner, classifiers = unwrap(model), _classifiers(model)
    read: dict[nn.Module, torch.Tensor] = {}
    with ExitStack() as undo:
        for classifier in classifiers:
            undo.callback(
                classifier.register_forward_pre_hook(lambda module, args: read.update({module: args[0]})).remove
            )
        output_of(inner, images)
    for classifier in classifiers:
        found = read.get(classifier)
        if found is None or found.ndim != 2 or len(found) != len(images):
            raise ModelError(
                f"{type(bare_vit(model)).__name__}: expected a classifier that is applied to features "
                f"({len(images)}, D), found {'none applied' if found is None else f'shape {tuple(found.shape)}'}. "
                "Use another model of timm's."
            )
    return torch.stack([read[classifier] for classifier in classifiers]).mean(0)


def _classifiers(model: nn.Module) -> list[nn.Module]:
    """What timm's ``get_classifier`` returns (a distilled model's two), else the last linear layer."""
    vit: Any = bare_vit(model)
    if callable(getattr(vit, "get_classifier", None)):
        found = vit.get_classifier()
        classifiers = list(found) if isinstance(found, tuple | list) else [found]
    else:
        classifiers = [module for module in vit.modules() if isinstance(module, nn.Linear)][-1:]
    if classifiers and all(isinstance(each, nn.Module) and not isinstance(each, nn.Identity) for each in classifiers):
        return classifiers
    raise ModelError(
        f"{type(vit).__name__}: expected a classifier on top of its features, found none. Build it with num_classes."
    )
