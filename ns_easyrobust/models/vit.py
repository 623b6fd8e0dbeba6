"""The structure of a transformer: the module inside its wrappers, its normalisation, its patch embedding.

The encoder's input is the output of the only submodule named ``patch_embed``: (B, N, D)
for a ViT, before the class token and the position embedding are added.
"""

from __future__ import annotations

import logging
from itertools import chain

from ..errors import ModelError, OptionError
from ..utils import nn, torch

_logger = logging.getLogger(__name__)
_SUPPORTED = "fits: one patch embedding named 'patch_embed' (ViT, DeiT, BEiT, Swin, MAE-ViT, RVT, FAN)"


def find_normalize(model: nn.Module) -> nn.Module | None:
    """The normalisation in front of the transformer (this package's or EasyRobust's), or None.

    It is recognised by its two buffers ``mean`` and ``std``, EasyRobust's names.
    """
    inner = unwrap(model)
    if isinstance(inner, nn.Sequential) and len(inner) == 2:
        names = {name for name, _ in inner[0].named_buffers()}
        if {"mean", "std"} <= names:
            return inner[0]
    return None


def required_image_size(model: nn.Module) -> tuple[int, int] | None:
    """Height and width of the images that the patch embedding requires; None if it accepts others too."""
    embedding = getattr(bare_vit(model), "patch_embed", None)
    size = getattr(embedding, "img_size", None)
    strict = getattr(embedding, "strict_img_size", True)  # timm 1.x: False if the model adapts to other sizes
    return size if strict and isinstance(size, tuple) and len(size) == 2 else None


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel and ``torch.compile``.

    Raises:
        ModelError: the module was compiled in place (``model.compile()``), where hooks that
            are set later would be silently ignored.
    """
    while True:
        if getattr(model, "_compiled_call_impl", None) is not None:
            raise ModelError(
                f"{type(model).__name__} was compiled in place with .compile(): hooks set later are "
                "ignored there. Use model = torch.compile(model), which keeps the eager module."
            )
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            if not getattr(model, "_ns_eager_logged", False):
                _logger.info("torch.compile'd model: nullspace branches run eagerly on its original module")
                object.__setattr__(model, "_ns_eager_logged", True)
            model = inner
        else:
            return model


def reference_tensor(model: nn.Module) -> torch.Tensor:
    """A tensor of the device and precision of ``model``, for its inputs: its first floating-point parameter, or else
    buffer; for a model without any, float32 on the CPU.

    Example:
        >>> reference_tensor(torch.nn.Flatten()).device
        device(type='cpu')
    """
    inner = unwrap(model)
    tensors = chain(inner.parameters(), inner.buffers())
    return next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0, dtype=torch.float32))


def find_patch_embed(model: nn.Module) -> nn.Module:
    """The only submodule named ``patch_embed``, at any depth and inside any wrapper.

    Raises:
        ModelError: there is none, there are several, or it lies in a compiled submodule.
    """
    inner = unwrap(model)
    paths = [name for name, _ in inner.named_modules() if name.rsplit(".", 1)[-1] == "patch_embed"]
    vit = bare_vit(inner)
    name = type(vit).__name__
    if not paths:
        children = ", ".join(child for child, _ in vit.named_children()) or "no submodules"
        raise ModelError(f"{name} has no patch embedding: found {children}; {_SUPPORTED}.")
    if len(paths) > 1:
        raise ModelError(f"{name} has {len(paths)} patch embeddings: found {', '.join(paths)}; {_SUPPORTED}.")
    if "_orig_mod" in paths[0].split("."):
        raise ModelError(
            f"{name}: the patch embedding lies in a compiled part ({paths[0]}), where hooks are ignored. "
            "Compile the outermost module instead: model = torch.compile(model)."
        )
    return inner.get_submodule(paths[0])


def find_encoder(model: nn.Module) -> nn.Module:
    """The module that has the patch embedding as a direct child."""
    patch_embed = find_patch_embed(model)
    return next(module for module in unwrap(model).modules() if patch_embed in module.children())


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """The encoder's ``blocks`` in order; none of a model that has no such list (Swin's stages)."""
    return list(getattr(find_encoder(model), "blocks", None) or [])


def find_noise_site(model: nn.Module, block: int = -1) -> nn.Module:
    """The module at which encoder noise joins: the patch embedding (at its output), or a block (at its input).

    Args:
        block: -1 for the patch embedding, or the number of a block, from 0.

    Raises:
        ModelError: no suitable patch embedding, or no list of blocks.
        OptionError: the model has fewer blocks.
    """
    if block == -1:
        return find_patch_embed(model)
    blocks, encoder = find_blocks(model), find_encoder(model)
    name = type(encoder).__name__
    if not blocks:
        children = ", ".join(child for child, _ in encoder.named_children())
        raise ModelError(
            f"{name} has no blocks whose input could take noise: found {children}. Use block -1, the patch embedding."
        )
    if not 0 <= block < len(blocks):
        raise OptionError(
            f"noise block: expected -1 (the patch embedding) or one of {name}'s blocks, 0 to {len(blocks) - 1}, "
            f"found {block}. Choose one of them."
        )
    return blocks[block]


def find_patch_size(model: nn.Module) -> int:
    """Side in pixels of the square patches that a plain ViT's tokens stand for from the first block to the last.

    Raises:
        ModelError: there is no such size: no patch embedding, patches that are not square, a CNN in front, or stages
            that merge tokens (Swin).
    """
    hint = "Give the patch size in pixels, such as 16 for images of 224."
    try:
        patch_embed, encoder = find_patch_embed(model), find_encoder(model)
    except ModelError as error:
        raise ModelError(f"{error.line} {hint}") from error
    size = getattr(patch_embed, "patch_size", None)
    height, width = size if isinstance(size, tuple) and len(size) == 2 else (size, size)
    if not hasattr(encoder, "blocks"):
        found = f"stages that merge tokens (of {height} pixels at first)" if hasattr(encoder, "layers") else "no blocks"
    elif height == width and isinstance(height, int) and height > 1:
        return height
    else:
        found = f"{type(patch_embed).__name__} with patch_size {size}"
    raise ModelError(
        f"{type(encoder).__name__}: expected a plain ViT with square patches of one size, found {found}. {hint}"
    )


def bare_vit(model: nn.Module) -> nn.Module:
    """The transformer without the normalisation in front; the unwrapped ``model`` if it has none."""
    inner = unwrap(model)
    return inner[1] if find_normalize(inner) is not None else inner  # type: ignore[index]
