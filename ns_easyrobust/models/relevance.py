"""Relevance of each pixel to a class, from a transformer's attention and the gradient of the class's logit.

Rules 5 and 6 of Chefer et al. 2021 (arXiv:2103.15679) for a single modality, as RobustViT uses them (Chefer et al.
2022, arXiv:2206.01161; ``ViT/explainer.py`` of hila-chefer/RobustViT df06c98): R = I, and in each block
R += mean over heads of relu(dA * A) R, where A is the attention and dA the gradient of the logit with respect to it.
The row of the class token, on the patches' grid, is the map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..utils import nn, torch
from .attention import attention_maps, prefix_tokens, tokens_read
from .hooks import without_checkpointing
from .outputs import mean_logits, output_of
from .token_maps import at_least_float32, patch_grid, upscaled


class Relevance(NamedTuple):
    """What :func:`relevance_maps` returns.

    Attributes:
        maps: (B, 1, H, W) in [0, 1], each image's least value at 0 and its greatest at 1; float32, or float64 of a
            model in float64. All 0 where the relevance is constant.
        logits: (B, K) of the same forward, with their graph.
    """

    maps: torch.Tensor
    logits: torch.Tensor


def relevance_maps(model: nn.Module, images: torch.Tensor, labels: torch.Tensor | None = None) -> Relevance:
    """The relevance of each pixel of ``images`` to the logit of its label; one forward and one backward to the maps.

    The gradient dA of the logit is a constant of the result, as in the public code (``explainer.py:46`` has no
    ``create_graph``): what is differentiated afterwards is the map as a function of A alone. The forward runs in the
    model's mode and under the caller's autocast, the maps' own arithmetic in at least float32. A head that reads
    several tokens (:func:`~ns_easyrobust.models.attention.tokens_read`), such as one that averages the patch tokens,
    has the mean of their rows.

    Args:
        model: a vision transformer whose attention :func:`~ns_easyrobust.models.attention.attention_maps` can read,
            wrapped or not.
        images: (B, C, H, W), what the model gets.
        labels: (B,) whole numbers in [0, K), whose logits are explained; None: the model's own top-1.

    Raises:
        ModelError: the attention cannot be read, the patch tokens do not form a grid over the image, or the output has
            no logits.

    Example:
        >>> relevance = relevance_maps(model, images)
        >>> relevance.maps.shape, float(relevance.maps.min()), float(relevance.maps.max())
        (torch.Size([8, 1, 32, 32]), 0.0, 1.0)
    """
    if not all(parameter.requires_grad for parameter in model.parameters()):
        images = images.detach().requires_grad_()  # else the maps before the first trained part would have no gradient
    with torch.enable_grad(), without_checkpointing(model), attention_maps(model) as maps:
        logits = mean_logits(output_of(maps.model, images), len(images))
        attentions = [maps[layer] for layer in maps]
        chosen = logits.argmax(1) if labels is None else labels
        score = logits.float().gather(1, chosen[:, None]).sum()
        gradients = torch.autograd.grad(score, attentions, retain_graph=True)
        with torch.autocast(images.device.type, enabled=False):
            readout = attentions[0].new_zeros(attentions[0].shape[-1], dtype=at_least_float32(attentions[0]))
            readout[tokens_read(model)] = 1
            relevance = gradient_rollout(attentions, gradients, readout / readout.sum())[:, prefix_tokens(model) :]
            grid = patch_grid(model, relevance.shape[1], images.shape[-2:])
            return Relevance(upscaled(relevance.unflatten(1, (1, *grid)), images.shape[-2:]), logits)


def gradient_rollout(
    attentions: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor], readout: torch.Tensor
) -> torch.Tensor:
    """``readout`` R for R = (I + E_L) ... (I + E_1), with E = mean over heads of relu(dA * A).

    The product is taken from the last block to the first, so that only a row is kept: O(N^2) a block and not O(N^3).

    Args:
        attentions: A of each block, first to last, (B, H, N, N).
        gradients: dA, alike.
        readout: (N,) weights of the tokens that the head reads; 1 at the class token and 0 elsewhere gives its row.

    Returns:
        (B, N), in the dtype of ``readout``.
    """
    row = readout.expand(len(attentions[0]), 1, -1)
    for attention, gradient in zip(reversed(attentions), reversed(gradients), strict=True):
        row = row + row @ (gradient.to(row.dtype) * attention.to(row.dtype)).clamp_min(0).mean(1)
    return row[:, 0]
