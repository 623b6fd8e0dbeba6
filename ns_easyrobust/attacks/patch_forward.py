"""A few patches of a batch of images, and the forward of a transformer in which only they change."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.models.vision_transformer import Attention, Block, Mlp
from torch import nn

from ..errors import ModelError
from ..models.vit import find_normalize, find_patch_embed

Forward = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Patches:
    """Chosen patches of each image of a batch.

    Attributes:
        size: height and width of a patch in pixels.
        number: how many patches the grid over an image has.
        chosen: (B, P) indices into that grid, row by row.
    """

    size: tuple[int, int]
    number: int
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


@dataclass(frozen=True)
class NormalisedSpace:
    """Images as the transformer behind the normalisation sees them; mean and std are (C, 1, 1)."""

    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    def of(cls, model: nn.Module, like: torch.Tensor) -> NormalisedSpace:
        """That of ``model``; pixel space where it has no normalisation."""
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
        """Clamped to what pixels of [0, 1] can reach."""
        return torch.clamp(normalised, (0 - self.mean) / self.std, (1 - self.mean) / self.std)

    def within(self, content: torch.Tensor, clean: torch.Tensor, epsilon: float, norm: str) -> torch.Tensor:
        """``content`` brought to within ``epsilon``, in pixels, of ``clean``; both (B, P, C, h, w), normalised.

        Args:
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
        shape = _tokens(patch_embed, images[:1]).shape
    numbers = [math.prod(shape[1:-1]), math.prod(shape[2:])][: len(shape) - 2]  # channels last, or, in a grid, first
    height, width = images.shape[2:]
    for number in numbers:
        side = math.isqrt(height * width // number)
        named = getattr(patch_embed, "patch_size", side)
        for size in (named if isinstance(named, tuple) else (named, named), (side, side)):
            if min(size) > 0 and (height // size[0]) * (width // size[1]) == number:
                return size, number
    raise ModelError(
        f"{type(patch_embed).__name__}: expected one token for each patch of a grid, found an embedding of shape "
        f"{tuple(shape)} for an image of {height}x{width}. Patches of this model cannot be attacked."
    )


def forward_of(
    model: nn.Module, images: torch.Tensor, patches: Patches, blocks: Sequence[nn.Module] = (), prefix: int = 0
) -> Forward:
    """Logits of normalised ``images`` as a function of what is in ``patches`` (B, P, C, h, w).

    Where the patch embedding maps each patch by itself (ViT's convolution whose kernel is its
    stride), only those patches are embedded, into the tokens of ``images``; the convolution over
    the whole image and its gradient fall away. So does, in timm's own blocks, what cannot change
    before the first attention, and what nobody reads after the last. Elsewhere the images are put
    together again.

    Args:
        blocks: the encoder's blocks, in order, if any are known.
        prefix: number of tokens before the patches'.
    """
    encoder, patch_embed = core(model), find_patch_embed(model)
    with torch.no_grad():
        tokens = _tokens(patch_embed, images)
    at = patches.batch, patches.chosen
    if not _embeds_apart(patch_embed, tokens, images, patches):
        return lambda content: encoder(patches.paste(images, content))
    constant, unread = _fixed_tokens(model, images[:1], tokens[:1], patches.chosen[:1], blocks, prefix)
    partial: list[tuple[nn.Module, Forward]] = []
    if constant:
        first: Any = blocks[0]
        partial += [(part, _only(part, at[0], prefix + at[1])) for part in (first.norm1, first.attn.qkv)]
    if unread:
        last, read = cast(Any, blocks[-1]), torch.arange(prefix, device=images.device)[None]
        partial += [(part, _only(part, at[0], read)) for part in (last.attn.proj, last.norm2, last.mlp)]

    def forward(content: torch.Tensor) -> torch.Tensor:
        embedded = tokens.index_put(at, _embed(patch_embed, content))
        with ExitStack() as undo:
            undo.enter_context(_replaced(patch_embed, lambda images: embedded))
            for part, shorter in partial:
                undo.enter_context(_replaced(part, shorter))
            logits: torch.Tensor = encoder(images)
        return logits

    return forward


def _fixed_tokens(
    model: nn.Module,
    image: torch.Tensor,
    tokens: torch.Tensor,
    chosen: torch.Tensor,
    blocks: Sequence[nn.Module],
    prefix: int,
) -> tuple[bool, bool]:
    """Whether only the ``chosen`` tokens vary before the first block, and only the prefix is read after the last.

    Followed by letting nan in: it shows in all that depends on it.

    Args:
        image: (1, C, H, W). tokens: (1, n, D), its embedding. chosen: (1, P).
    """
    if not blocks or prefix < 1 or not all(_is_timms(block) for block in (blocks[0], blocks[-1])):
        return False, False
    varying: list[torch.Tensor] = []

    def before_first(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        varying.append(args[0].isnan().any(-1))
        return (args[0].nan_to_num(0), *args[1:])

    def after_last(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.cat((output[:, :prefix], torch.full_like(output[:, prefix:], torch.nan)), 1)

    unknown = tokens.scatter(1, chosen[:, :, None].expand(-1, -1, tokens.shape[2]), torch.nan)
    with ExitStack() as undo, torch.no_grad():
        undo.callback(blocks[0].register_forward_pre_hook(before_first).remove)
        undo.callback(blocks[-1].register_forward_hook(after_last).remove)
        undo.enter_context(_replaced(find_patch_embed(model), lambda images: unknown))
        logits = core(model)(image)
    expected = torch.zeros_like(varying[0]).scatter(1, prefix + chosen, True)
    return torch.equal(varying[0], expected), bool(logits.isfinite().all())


def _is_timms(block: Any) -> bool:
    """Whether all of the block but its attention works on each token by itself, as timm's own does."""
    return type(block) is Block and type(block.attn) is Attention and type(block.mlp) is Mlp


def _only(module: nn.Module, batch: torch.Tensor, index: torch.Tensor) -> Forward:
    """``module``'s forward on some tokens of (B, N, D); for the others, what its first input gave.

    Args:
        batch, index: which, as indices that broadcast to (B, P).
    """
    whole: Forward = module.forward
    constant: list[torch.Tensor] = []

    def forward(tokens: torch.Tensor) -> torch.Tensor:
        if not constant:
            with torch.no_grad():
                constant.append(whole(tokens))
        return constant[0].index_put((batch, index), whole(tokens[batch, index]))

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
def _replaced(module: nn.Module, forward: Forward) -> Iterator[None]:
    """While the body runs, ``module`` computes ``forward`` instead; its hooks still act."""
    before = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = before
