"""Saliency maps of vision transformers by several methods, through one interface (Figures 7 and 8 of arXiv:2403.10476).

Each method gives a number to each patch token; :func:`saliency_maps` lays them on the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import cached_property
from typing import Any, NamedTuple

from ..errors import ModelError, OptionError
from ..utils import nn, torch
from .attention import AttentionMaps, attention_blocks, attention_maps, prefix_tokens, tokens_read
from .attribution import Calls, propagated_relevance, recorded_layers
from .hooks import frozen
from .outputs import mean_logits, output_of
from .relevance import gradient_rollout
from .saliency_inputs import labels_of, plain_images, require_fit
from .token_maps import at_least_float32, patch_grid, upscaled

_WITHOUT_GRADIENT = {"attention", "rollout"}
_OF_EVERY_BLOCK = {"chefer"}  # the other methods need the gradient in the last block alone


class Saliency(NamedTuple):
    """What :func:`saliency_maps` returns, without a graph.

    Attributes:
        maps: (B, 1, H, W) in [0, 1], each image's least value at 0 and its greatest at 1; all 0 where it is constant.
            In float64 of a model in float64, else in float32, also under autocast.
        tokens: (B, h, w), the method's own numbers of the patches, before they are scaled; in the dtype of ``maps``.
        logits: (B, K) of the same forward, in its dtype.
    """

    maps: torch.Tensor
    tokens: torch.Tensor
    logits: torch.Tensor


def saliency_maps(model: nn.Module, images: torch.Tensor, method: str, labels: torch.Tensor | None = None) -> Saliency:
    """Which parts of ``images`` a model attends to, or bases the logit of a label on, by one of SALIENCY_METHODS.

    Args:
        model: a vision transformer whose attention :func:`~ns_easyrobust.models.attention.attention_maps` can read,
            wrapped or not; it runs in eval mode, and is as before afterwards.
        images: (B, C, H, W), floating point, what the model gets. Images do not influence each other's maps.
        method: ``attention``, ``rollout``, ``grad-cam``, ``attention-grad-cam`` or ``chefer``.
        labels: (B,) whole numbers in [0, K), whose logits are explained; None: the model's own top-1. Of no effect on
            ``attention`` and ``rollout``.

    Raises:
        OptionError: there is no such method.
        DataError: ``images`` or ``labels`` are of another shape, dtype or range.
        ModelError: the method does not fit the model: no attention that can be read, patch tokens that do not form a
            grid; but for ``grad-cam``, a head that reads neither a token nor the patches' mean; for ``chefer``, other
            blocks or heads than those of :mod:`~ns_easyrobust.models.attribution`. Or a logit is NaN; or the weights
            were made in inference mode, and the method needs gradients.

    Example:
        >>> saliency = saliency_maps(model, images, "rollout")
        >>> saliency.maps.shape, saliency.tokens.shape
        (torch.Size([8, 1, 32, 32]), torch.Size([8, 4, 4]))
    """
    return all_saliency_maps(model, images, [method], labels)[method]


def all_saliency_maps(
    model: nn.Module, images: torch.Tensor, methods: Iterable[str], labels: torch.Tensor | None = None
) -> dict[str, Saliency]:
    """:func:`saliency_maps` by several methods, of one forward and at most one backward.

    Only ``chefer`` needs a graph of the whole model; Grad-CAM of either kind, of the last block; the others none.

    Raises:
        OptionError: also if ``methods`` is a string and not a list of them.
    """
    methods = _known(methods)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # in which nothing has gradients
        stack.enter_context(torch.set_grad_enabled(not _WITHOUT_GRADIENT.issuperset(methods)))
        pixels = plain_images(images)
        inner = stack.enter_context(frozen(model))
        require_fit(model, methods, torch.is_grad_enabled())
        maps = stack.enter_context(attention_maps(model))
        calls = stack.enter_context(recorded_layers(model)) if "chefer" in methods else {}
        last: Any = attention_blocks(model)[-1]
        norms: list[torch.Tensor] = []
        if isinstance(norm := getattr(last, "norm1", None), nn.Module):
            stack.callback(norm.register_forward_hook(lambda module, args, output: norms.append(output)).remove)
        of_every_block = not _OF_EVERY_BLOCK.isdisjoint(methods)
        if of_every_block:
            pixels.requires_grad_()
        elif torch.is_grad_enabled():
            stack.callback(last.register_forward_pre_hook(_begin_graph).remove)
        logits = mean_logits(output_of(inner, pixels), len(pixels))
        chosen = labels_of(labels, logits)
        with torch.autocast(pixels.device.type, enabled=False):
            run = _Forward(model, maps, norms, calls, logits, chosen, of_every_block)
            found = {method: SALIENCY_METHODS[method](run).detach() for method in methods}
        size = pixels.shape[-2:]
        result = {}
        for method, tokens in found.items():
            grid = tokens.unflatten(1, patch_grid(model, tokens.shape[1], size))
            result[method] = Saliency(upscaled(grid[:, None], size), grid, logits.detach())
    return result


def _known(methods: Iterable[str]) -> list[str]:
    if isinstance(methods, str):
        raise OptionError(f"saliency: expected a list of methods, found the string {methods}. Give [{methods!r}].")
    methods = list(methods)
    for method in methods:
        if method not in SALIENCY_METHODS:
            raise OptionError(
                f"saliency: expected one of {', '.join(SALIENCY_METHODS)}, found {method}. Choose one of them."
            )
    return methods


def _begin_graph(block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Hook before a block: gradients go back to its tokens, and no farther."""
    return (args[0].detach().requires_grad_(), *args[1:])


class Gradients(NamedTuple):
    """Of the labels' logits.

    Attributes:
        attentions: with respect to A of blocks, first to last, (B, H, N, N): of all, or of the last alone.
        norms: with respect to the last block's ``norm1``, (B, N, D) each time it ran.
    """

    attentions: tuple[torch.Tensor, ...]
    norms: tuple[torch.Tensor, ...]


class _Forward:
    """One forward, whose graph is still there, and what methods make of it.

    Attributes:
        attentions: A of each block, first to last, (B, H, N, N).
        norms: the outputs of the last block's ``norm1``, (B, N, D) each: one.
        calls: of :func:`~.attribution.recorded_layers`; {} where no method needs them.
        logits: (B, K).
        labels: (B,).
        of_every_block: whether gradients are with respect to the attention of each block, or of the last alone.
        prefix: how many tokens lie before the patches'.
    """

    def __init__(
        self, model: nn.Module, maps: AttentionMaps, norms: list[torch.Tensor], calls: Calls, logits: torch.Tensor,
        labels: torch.Tensor, of_every_block: bool,
    ) -> None:  # fmt: skip
        self.model, self.norms, self.calls, self.logits, self.labels = model, norms, calls, logits, labels
        self.of_every_block = of_every_block
        self.attentions = [maps[layer] for layer in maps]
        self.prefix = prefix_tokens(model)

    @cached_property
    def dtype(self) -> torch.dtype:
        return at_least_float32(self.attentions[0])

    @cached_property
    def readout(self) -> torch.Tensor:
        """(N,) weights of the tokens that the head reads: 1 at the class token; equal ones where it reads several."""
        readout = self.attentions[0].new_zeros(self.attentions[0].shape[-1], dtype=self.dtype)
        readout[tokens_read(self.model)] = 1
        return readout / readout.sum()

    @cached_property
    def gradients(self) -> Gradients:
        score = self.logits.gather(1, self.labels[:, None]).sum()
        attentions = self.attentions if self.of_every_block else self.attentions[-1:]
        found = torch.autograd.grad(score, [*attentions, *self.norms])
        return Gradients(found[: len(attentions)], found[len(attentions) :])


def attention_map(run: _Forward) -> torch.Tensor:
    """Raw attention: in the last block, from the token that the head reads to the patches, the mean over heads.

    Source: ``ViT_LRP.py:382-387`` of hila-chefer/Transformer-Explainability, "last_layer_attn".
    """
    last = run.attentions[-1].detach().to(run.dtype).mean(1)
    return (run.readout @ last)[:, run.prefix :]


def rollout_map(run: _Forward) -> torch.Tensor:
    """Attention rollout (Abnar and Zuidema 2020, arXiv:2005.00928): the product of (A + I) / 2 over all blocks.

    A is the mean over heads; each row of A + I is divided by its sum; later blocks multiply on the left.

    Source: ``ViT_explanation_generator.py:7-18`` of hila-chefer/Transformer-Explainability. Nothing is discarded,
    unlike in jacobgil/vit-explain.
    """
    row = run.readout.expand(len(run.attentions[0]), 1, -1)
    for attention in reversed(run.attentions):
        mean = attention.detach().to(run.dtype).mean(1)
        total = 1 + mean.sum(-1)
        row = (row / total[:, None]) @ mean + row / total[:, None]
    return row[:, 0, run.prefix :]


def grad_cam_map(run: _Forward) -> torch.Tensor:
    """Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391), with the features of patches as channels.

    relu(sum over channels of the channel's mean gradient times its value), at the output of the last block's first
    layer norm: behind that block's attention, patches have no gradient any more. That is what jacobgil/pytorch-grad-cam
    advises for a ViT, and what it computes. The paper's Figure 8 likely shows ``attention-grad-cam``, which is in the
    public code of Chefer et al.: it does not say which.

    Raises:
        ModelError: the last block has no ``norm1`` in front of its attention.
    """
    if len(run.norms) != 1 or run.norms[0].shape[:2] != run.attentions[-1].shape[::2]:
        raise ModelError(
            f"{type(attention_blocks(run.model)[-1]).__name__}: expected a norm1 of all tokens in front of the last "
            "attention, whose output grad-cam reads, found none. Use another method."
        )
    features, gradient = (
        each.detach().to(run.dtype)[:, run.prefix :] for each in (run.norms[0], run.gradients.norms[0])
    )
    return (features * gradient.mean(1, keepdim=True)).sum(-1).clamp_min(0)


def attention_grad_cam_map(run: _Forward) -> torch.Tensor:
    """Grad-CAM with the last block's heads as channels, and their attention from the class token as their maps.

    relu(mean over heads of the head's mean gradient times its attention); where the head reads several tokens, the mean
    over these too.

    Source: ``ViT_explanation_generator.py:50-71`` of hila-chefer/Transformer-Explainability.
    """
    places = (..., tokens_read(run.model), slice(run.prefix, None))
    attention, gradient = (
        each[-1].detach().to(run.dtype)[places] for each in (run.attentions, run.gradients.attentions)
    )
    return (attention * gradient.mean(-1, keepdim=True)).mean((1, 2)).clamp_min(0)


def chefer_map(run: _Forward) -> torch.Tensor:
    """Transformer attribution (Chefer et al. 2021, arXiv:2012.09838, equation 13), which the paper calls LRP.

    The row of the class token of the product of (I + mean over heads of relu(dA * R_A)) over all blocks, where R_A is
    the attention's relevance (:mod:`~ns_easyrobust.models.attribution`). As in the public code, rows are not divided by
    their sums (commented out in ``ViT_LRP.py:38-49``).
    """
    relevance = propagated_relevance(run.model, run.calls, run.logits, run.labels).attentions
    return gradient_rollout(relevance, run.gradients.attentions, run.readout)[:, run.prefix :]


SALIENCY_METHODS: Mapping[str, Callable[[_Forward], torch.Tensor]] = {
    "attention": attention_map,
    "rollout": rollout_map,
    "grad-cam": grad_cam_map,
    "attention-grad-cam": attention_grad_cam_map,
    "chefer": chefer_map,
}
