"""Selected patches of a batch of images, and a transformer's forward pass as a function of these patches alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

from ..errors import ModelError
from ..models import bare_vit, find_normalize, find_patch_embed, logits_of, replaced_forward
from ..utils import nn, timm, torch

ForwardFunction = Callable[["torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True)
class Patches:
    """Chosen patches of each image of a batch.

    Attributes:
        size: height and width of a patch in pixels.
        number: number of patches in an image's grid.
        chosen: (B, P) indices into that grid, in row-major order.
    """

    size: tuple[int, int]
    number: int
    chosen: torch.Tensor

    def cut(self, images: torch.Tensor) -> torch.Tensor:
        """The chosen patches (B, P, C, h, w) of ``images`` (B, C, H, W)."""
        return self._grid(images)[self._index(images)]

    def paste(self, images: torch.Tensor, content: torch.Tensor) -> torch.Tensor:
        """A copy of ``images`` with ``content`` (B, P, C, h, w) in the chosen patches, unchanged elsewhere."""
        pasted = images.clone(memory_format=torch.contiguous_format)
        self._grid(pasted)[self._index(images)] = content
        return pasted

    @property
    def batch(self) -> torch.Tensor:
        """(B, 1) indices of the images, to be used as an index together with ``chosen``."""
        return torch.arange(len(self.chosen), device=self.chosen.device)[:, None]

    def _grid(self, images: torch.Tensor) -> torch.Tensor:
        (height, width) = self.size
        return images.unfold(2, height, height).unfold(3, width, width).permute(0, 2, 3, 1, 4, 5)

    def _index(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        columns = images.shape[3] // self.size[1]
        return self.batch, self.chosen // columns, self.chosen % columns


@dataclass(frozen=True)
class NormalisedSpace:
    """Conversion between pixels and the normalised values that a transformer receives; mean and std are (C, 1, 1)."""

    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    def of(cls, model: nn.Module, like: torch.Tensor) -> NormalisedSpace:
        """The normalised space of ``model``; pixel space where it has no normalisation."""
        layer = find_normalize(model)
        if layer is None:
            return cls(like.new_zeros(1, 1, 1), like.new_ones(1, 1, 1))
        mean, std = (layer.get_buffer(name).to(like).reshape(-1, 1, 1) for name in ("mean", "std"))
        return cls(mean, std)

    def normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels - self.mean) / self.std

    def pixels(self, normalised: torch.Tensor) -> torch.Tensor:
        return (normalised * self.std + self.mean).clamp(0, 1)

    def boxed(self, normalised: torch.Tensor) -> torch.Tensor:
        """``normalised`` clamped to the values that correspond to pixels in [0, 1]."""
        return torch.clamp(normalised, (0 - self.mean) / self.std, (1 - self.mean) / self.std)

    def project(self, content: torch.Tensor, clean: torch.Tensor, epsilon: float, norm: str) -> torch.Tensor:
        """``content`` projected onto the ball of radius ``epsilon`` around ``clean``; both (B, P, C, h, w), normalised.

        Args:
            epsilon: in pixels of [0, 1].
            norm: "linf"; "l2", for each channel over all patches; or "none", which changes nothing.
        """
        radius = epsilon / self.std
        if norm == "linf":
            return torch.clamp(content, clean - radius, clean + radius)
        if norm == "l2":
            change = content - clean
            length = change.square().sum((1, 3, 4), keepdim=True).sqrt()
            return clean + change * (radius / length.clamp_min(torch.finfo(length.dtype).tiny)).clamp(max=1)
        return content


def patch_grid(model: nn.Module, images: torch.Tensor) -> tuple[tuple[int, int], int]:
    """Size (h, w) in pixels of a patch, and the number of patches in each of ``images`` (B, C, H, W), normalised.

    Raises:
        ModelError: the tokens do not form a grid over the image.
    """
    patch_embed: Any = find_patch_embed(model)
    with torch.no_grad():
        shape = _patch_tokens(patch_embed, images[:1]).shape
    numbers = [math.prod(shape[1:-1]), math.prod(shape[2:])][: len(shape) - 2]  # channels last or, in a 2-D grid, first
    height, width = images.shape[2:]
    for number in numbers:
        side = math.isqrt(height * width // number)
        patch_size = getattr(patch_embed, "patch_size", side)
        for size in (patch_size if isinstance(patch_size, tuple) else (patch_size, patch_size), (side, side)):
            if min(size) > 0 and (height // size[0]) * (width // size[1]) == number:
                return size, number
    raise ModelError(
        f"{type(patch_embed).__name__}: expected one token for each patch of a grid, found an embedding of shape "
        f"{tuple(shape)} for an image of {height}x{width}. Patches of this model cannot be attacked."
    )


def patch_forward(
    model: nn.Module, images: torch.Tensor, patches: Patches, blocks: Sequence[nn.Module] = (), prefix: int = 0
) -> ForwardFunction:
    """The logits of normalised ``images`` as a function of the content (B, P, C, h, w) of ``patches``.

    Where the patch embedding maps each patch separately (ViT's convolution whose stride equals its
    kernel size), only the chosen patches are embedded and replace their tokens; this saves the
    convolution over the whole image and its gradient. In timm's own blocks, tokens that cannot
    change before the first attention, and those that are not read after the last, are skipped too.
    For any other patch embedding, ``content`` is pasted into the images.

    Args:
        blocks: the encoder's blocks, in order, if they are known.
        prefix: number of tokens before the patches'.
    """
    encoder, patch_embed = bare_vit(model), find_patch_embed(model)
    with torch.no_grad():
        tokens = _patch_tokens(patch_embed, images)
    index = patches.batch, patches.chosen
    if not _embeds_separately(patch_embed, tokens, images, patches):
        return lambda content: logits_of(encoder(patches.paste(images, content)))
    only_chosen_vary, only_prefix_read = _skippable_tokens(
        model, images[:1], tokens[:1], patches.chosen[:1], blocks, prefix
    )
    partial: list[tuple[nn.Module, ForwardFunction]] = []
    if only_chosen_vary:
        first: Any = blocks[0]
        partial += [
            (module, _on_tokens(module, index[0], prefix + index[1])) for module in (first.norm1, first.attn.qkv)
        ]
    if only_prefix_read:
        last, prefix_index = cast(Any, blocks[-1]), torch.arange(prefix, device=images.device)[None]
        partial += [
            (module, _on_tokens(module, index[0], prefix_index)) for module in (last.attn.proj, last.norm2, last.mlp)
        ]

    def forward(content: torch.Tensor) -> torch.Tensor:
        embedded = tokens.index_put(index, _embed_patches(patch_embed, content))
        with ExitStack() as undo:
            undo.enter_context(replaced_forward(patch_embed, lambda images: embedded))
            for module, partial_forward in partial:
                undo.enter_context(replaced_forward(module, partial_forward))
            return logits_of(encoder(images))

    return forward


def _skippable_tokens(
    model: nn.Module,
    image: torch.Tensor,
    tokens: torch.Tensor,
    chosen: torch.Tensor,
    blocks: Sequence[nn.Module],
    prefix: int,
) -> tuple[bool, bool]:
    """Whether only the ``chosen`` tokens vary before the first block, and only the prefix is read after the last.

    Both are tested by setting tokens to nan, which propagates to everything that depends on them.

    Args:
        image: (1, C, H, W). tokens: (1, n, D), its embedding. chosen: (1, P).
    """
    if not blocks or prefix < 1 or not all(_is_timm_block(block) for block in (blocks[0], blocks[-1])):
        return False, False
    varying: list[torch.Tensor] = []

    def before_first(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        varying.append(args[0].isnan().any(-1))
        return (args[0].nan_to_num(0), *args[1:])

    def after_last(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.cat((output[:, :prefix], torch.full_like(output[:, prefix:], torch.nan)), 1)

    nan_tokens = tokens.scatter(1, chosen[:, :, None].expand(-1, -1, tokens.shape[2]), torch.nan)
    with ExitStack() as undo, torch.no_grad():
        undo.callback(blocks[0].register_forward_pre_hook(before_first).remove)
        undo.callback(blocks[-1].register_forward_hook(after_last).remove)
        undo.enter_context(replaced_forward(find_patch_embed(model), lambda images: nan_tokens))
        logits = logits_of(bare_vit(model)(image))
    expected = torch.zeros_like(varying[0]).scatter(1, prefix + chosen, True)
    return torch.equal(varying[0], expected), bool(logits.isfinite().all())


def _is_timm_block(block: Any) -> bool:
    """Whether ``block`` is timm's own, in which everything but the attention processes each token separately."""
    kinds = timm.models.vision_transformer
    return type(block) is kinds.Block and type(block.attn) is kinds.Attention and type(block.mlp) is kinds.Mlp


def _on_tokens(module: nn.Module, batch: torch.Tensor, index: torch.Tensor) -> ForwardFunction:
    """``module``'s forward on some tokens of (B, N, D); the others keep their outputs from the first call.

    Args:
        batch, index: the tokens to compute, as indices that broadcast to (B, P).
    """
    full_forward: ForwardFunction = module.forward
    constant: list[torch.Tensor] = []

    def forward(tokens: torch.Tensor) -> torch.Tensor:
        if not constant:
            with torch.no_grad():
                constant.append(full_forward(tokens))
        return constant[0].index_put((batch, index), full_forward(tokens[batch, index]))

    return forward


def _patch_tokens(patch_embed: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The patch embedding's own tokens, without the effect of hooks on it."""
    output = patch_embed.forward(images)
    return output[0] if isinstance(output, tuple) else output


def _embed_patches(patch_embed: Any, content: torch.Tensor) -> torch.Tensor:
    """Tokens (B, P, D) of the patches ``content`` (B, P, C, h, w), each embedded as if it were an image."""
    return patch_embed.norm(patch_embed.proj(content.flatten(0, 1)).flatten(1).unflatten(0, content.shape[:2]))


def _embeds_separately(patch_embed: Any, tokens: torch.Tensor, images: torch.Tensor, patches: Patches) -> bool:
    """Whether embedding the patches separately, by a convolution and a norm, gives the tokens of the whole image."""
    proj = getattr(patch_embed, "proj", None)
    if not (isinstance(proj, nn.Conv2d) and proj.kernel_size == proj.stride == patches.size):
        return False
    if tokens.ndim != 3 or not isinstance(getattr(patch_embed, "norm", None), nn.Module):
        return False
    with torch.no_grad():
        separate = _embed_patches(patch_embed, patches.cut(images))
    expected = tokens[patches.batch, patches.chosen]
    return torch.allclose(separate, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))
