"""A few patches of a batch of images, and the forward of a transformer in which only they change."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .errors import ModelError
from .vit import find_normalize, find_patch_embed

Forward = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Patches:
    """Chosen patches of each image of a batch.

    Attributes:
        size: height and width of a patch in pixels.
        chosen: (B, P) indices into the grid of patches, row by row.
    """

    size: tuple[int, int]
    chosen: torch.Tensor

    def cut(self, images: torch.Tensor) -> torch.Tensor:
        """The patches (B, P, C, h, w) of ``images`` (B, C, H, W)."""
        return self._grid(images)[self._index(images)]

    def paste(self, images: torch.Tensor, content: torch.Tensor) -> torch.Tensor:
        """A copy of ``images`` with ``content`` (B, P, C, h, w) in the patches, untouched elsewhere."""
        pasted = images.clone(memory_format=torch.contiguous_format)
        self._grid(pasted)[self._index(images)] = content
        return pasted

    @property
    def batch(self) -> torch.Tensor:
        """(B, 1) indices of the images, to index with beside ``chosen``."""
        return torch.arange(len(self.chosen), device=self.chosen.device)[:, None]

    def _grid(self, images: torch.Tensor) -> torch.Tensor:
        (height, width) = self.size
        return images.unfold(2, height, height).unfold(3, width, width).permute(0, 2, 3, 1, 4, 5)

    def _index(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        columns = images.shape[3] // self.size[1]
        return self.batch, self.chosen // columns, self.chosen % columns


def core(model: nn.Module) -> nn.Module:
    """The transformer behind its normalisation; ``model`` itself where there is none."""
    return model[1] if find_normalize(model) is not None else model  # type: ignore[index]


def patch_grid(model: nn.Module, images: torch.Tensor) -> tuple[tuple[int, int], int]:
    """Size (h, w) in pixels of a patch and how many of them ``images`` (B, C, H, W), normalised, have.

    Raises:
        ModelError: the tokens do not form a grid over the image.
    """
    patch_embed: Any = find_patch_embed(model)
    with torch.no_grad():
        tokens = _tokens(patch_embed, images[:1])
    number, (height, width) = math.prod(tokens.shape[1:-1]), images.shape[2:]
    side = math.isqrt(height * width // number)
    named = getattr(patch_embed, "patch_size", side)
    for size in (named if isinstance(named, tuple) else (named, named), (side, side)):
        if (height // size[0]) * (width // size[1]) == number:
            return size, number
    raise ModelError(
        f"{type(patch_embed).__name__}: expected one token for each patch of a grid, found {number} tokens for an "
        f"image of {height}x{width}. Patches of this model cannot be attacked."
    )


def forward_of(model: nn.Module, images: torch.Tensor, patches: Patches) -> Forward:
    """Logits of normalised ``images`` as a function of what is in ``patches`` (B, P, C, h, w).

    Where the patch embedding maps each patch by itself (ViT's convolution whose kernel is its
    stride), only those patches are embedded, into the tokens of ``images``; the convolution over
    the whole image and its gradient fall away. Elsewhere the images are put together again.
    """
    encoder, patch_embed = core(model), find_patch_embed(model)
    with torch.no_grad():
        tokens = _tokens(patch_embed, images)
    at = patches.batch, patches.chosen
    if not _embeds_apart(patch_embed, tokens, images, patches):
        return lambda content: encoder(patches.paste(images, content))

    def forward(content: torch.Tensor) -> torch.Tensor:
        with _returning(patch_embed, tokens.index_put(at, _embed(patch_embed, content))):
            logits: torch.Tensor = encoder(images)
        return logits

    return forward


def _tokens(patch_embed: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The patch embedding's own tokens, before any hook that stands on it."""
    output = patch_embed.forward(images)
    return output[0] if isinstance(output, tuple) else output


def _embed(patch_embed: Any, content: torch.Tensor) -> torch.Tensor:
    """Tokens (B, P, D) of patches (B, P, C, h, w), each embedded as an image of its own."""
    return patch_embed.norm(patch_embed.proj(content.flatten(0, 1)).flatten(1).unflatten(0, content.shape[:2]))


def _embeds_apart(patch_embed: Any, tokens: torch.Tensor, images: torch.Tensor, patches: Patches) -> bool:
    """Whether a convolution and a norm on single patches give the tokens that the whole image gives."""
    proj = getattr(patch_embed, "proj", None)
    if not (isinstance(proj, nn.Conv2d) and proj.kernel_size == proj.stride == patches.size):
        return False
    if tokens.ndim != 3 or not isinstance(getattr(patch_embed, "norm", None), nn.Module):
        return False
    with torch.no_grad():
        apart = _embed(patch_embed, patches.cut(images))
    whole = tokens[patches.batch, patches.chosen]
    return torch.allclose(apart, whole, rtol=1e-2, atol=1e-2 * float(whole.abs().max()))


@contextmanager
def _returning(module: nn.Module, value: torch.Tensor) -> Iterator[None]:
    """While the body runs, ``module`` computes nothing and returns ``value``; its hooks still act."""
    before = vars(module).get("forward")
    vars(module)["forward"] = lambda *args, **kwargs: value
    try:
        yield
    finally:
        if before is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = before
