"""Transformer anatomy: where the patch embedding is, and how noise gets onto its output.

This is the only file that knows how a vision transformer is put together. The
encoder's input is the output of the one submodule called ``patch_embed``: value
(B, N, D) for a ViT, before the class token and the position embedding join.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from ..errors import ModelError, NoiseError, OptionError

_logger = logging.getLogger(__name__)
_FITS = "fits: one patch embedding named 'patch_embed' (ViT, DeiT, BEiT, Swin, MAE-ViT, RVT, FAN)"


class Normalize(nn.Module):
    """Channel-wise (x - mean) / std on (B, C, H, W), with EasyRobust's buffer names.

    Args:
        mean, std: one number a channel, in units of pixels in [0, 1].
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(s > 0 for s in std):
            raise OptionError(
                f"mean and std: expected one number a channel and std > 0, found mean={list(mean)} "
                f"std={list(std)}. Give both with as many numbers as the model has channels."
            )
        self.register_buffer("mean", torch.tensor([float(m) for m in mean]))
        self.register_buffer("std", torch.tensor([float(s) for s in std]))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels - self.mean[:, None, None]) / self.std[:, None, None]

    def extra_repr(self) -> str:
        return f"mean={self.mean.tolist()}, std={self.std.tolist()}"


class NormalizedModel(nn.Sequential):
    """``Sequential(Normalize, vit)``: pixels in [0, 1] to logits, keys ``0.mean``, ``0.std``, ``1.*``.

    A plain ``nn.Sequential`` hides the transformer's own hints to timm's optimizers, so
    that class token and position embedding would be decayed. They are handed through here.

    Attributes:
        normalization_origin: where mean and std came from, set by ``load_model``.
        weights_name: the checkpoint's entry that was loaded, set by ``load_model``.
    """

    normalization_origin: str
    weights_name: str

    @property
    def mean(self) -> list[float]:
        """The normalisation's mean, one number a channel."""
        return list(self[0].get_buffer("mean").tolist())

    @property
    def std(self) -> list[float]:
        """The normalisation's standard deviation, one number a channel."""
        return list(self[0].get_buffer("std").tolist())

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        inner = getattr(self[1], "no_weight_decay", None)
        return {f"1.{name}" for name in inner()} if inner is not None else set()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm 1.x's layer groups, with every pattern moved under ``1.``."""
        inner: dict[str, Any] = self[1].group_matcher(coarse=coarse)  # type: ignore[operator]
        return {group: _move_under(patterns) for group, patterns in inner.items()}


def _move_under(patterns: Any) -> Any:
    if isinstance(patterns, str):
        anywhere = re.sub(r"(^|[|(])\^", r"\1", patterns)  # timm anchors its patterns, or some of their branches
        return rf"^1\.(?:{anywhere})"
    return [(_move_under(pattern), *rest) for pattern, *rest in patterns]


def with_normalization(vit: nn.Module, mean: Sequence[float], std: Sequence[float]) -> NormalizedModel:
    """The model every command works on: ``vit`` behind its input normalisation."""
    return NormalizedModel(Normalize(mean, std), vit)


def find_normalize(model: nn.Module) -> nn.Module | None:
    """The normalisation in front of the transformer (ours or EasyRobust's), or None.

    It is recognised by its two buffers ``mean`` and ``std``, EasyRobust's names.
    """
    inner = unwrap(model)
    if isinstance(inner, nn.Sequential) and len(inner) == 2:
        names = {name for name, _ in inner[0].named_buffers()}
        if {"mean", "std"} <= names:
            return inner[0]
    return None


def built_size(model: nn.Module) -> tuple[int, int] | None:
    """Height and width of the images that the patch embedding insists on; None where it takes others too."""
    inner = unwrap(model)
    vit = inner[1] if find_normalize(inner) is not None else inner  # type: ignore[index]
    embedding = getattr(vit, "patch_embed", None)
    size = getattr(embedding, "img_size", None)
    strict = getattr(embedding, "strict_img_size", True)  # timm 1.x: False where the model adapts
    return size if strict and isinstance(size, tuple) and len(size) == 2 else None


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel and ``torch.compile``.

    Raises:
        ModelError: the module was compiled in place (``model.compile()``), where a later
            hook would be ignored without a word.
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
            if not getattr(model, "_ns_said_eager", False):
                _logger.info("torch.compile'd model: nullspace branches run eagerly on its original module")
                object.__setattr__(model, "_ns_said_eager", True)
            model = inner
        else:
            return model


def find_patch_embed(model: nn.Module) -> nn.Module:
    """The one submodule named ``patch_embed``, wherever it is wrapped.

    Raises:
        ModelError: there is none, there are several, or it lies in a compiled submodule.
    """
    inner = unwrap(model)
    found = [name for name, _ in inner.named_modules() if name.rsplit(".", 1)[-1] == "patch_embed"]
    core: nn.Module = inner[1] if find_normalize(inner) is not None else inner  # type: ignore[index]
    name = type(core).__name__
    if not found:
        parts = ", ".join(child for child, _ in core.named_children()) or "no submodules"
        raise ModelError(f"{name} has no patch embedding: found {parts}; {_FITS}.")
    if len(found) > 1:
        raise ModelError(f"{name} has {len(found)} patch embeddings: found {', '.join(found)}; {_FITS}.")
    if "_orig_mod" in found[0].split("."):
        raise ModelError(
            f"{name}: the patch embedding lies in a compiled part ({found[0]}), where hooks are ignored. "
            "Compile the outermost module instead: model = torch.compile(model)."
        )
    return inner.get_submodule(found[0])


def _tokens_of(output: Any) -> torch.Tensor:
    """The token tensor in a patch embedding's output (FAN and XCiT return it with the grid size)."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def _patch_embed_hook(model: nn.Module, hook: Any, output: Any = None) -> Iterator[None]:
    """Register ``hook(tokens) -> tokens or None`` on the patch embedding for the body, and give it ``output``.

    Raises:
        ModelError: no forward of this model ran in the body, so the hook never fired.
    """
    fired = 0

    def forward_hook(module: nn.Module, args: Any, output: Any) -> Any:
        nonlocal fired
        fired += 1
        tokens = hook(_tokens_of(output))
        if tokens is None:
            return None
        return (tokens, *output[1:]) if isinstance(output, tuple) else tokens

    embedding = find_patch_embed(model)
    handle = embedding.register_forward_hook(forward_hook)
    try:
        with nullcontext() if output is None else _given(embedding, output):
            yield
    finally:
        handle.remove()
    if not fired:
        raise ModelError(
            "the hook on patch_embed did not fire: expected a forward of this very model inside "
            "encoder_noise(), found none. Call the unwrapped eager module that the noise was set on."
        )


@contextmanager
def encoder_noise(model: nn.Module, value: torch.Tensor, *, embedding: Any = None) -> Iterator[nn.Module]:
    """While the body runs, ``value`` is added to the output of ``patch_embed``.

    The encoder's forward is the model's own; the sum equals adding ``value`` by hand bit
    for bit. Outside autocast ``value`` takes the tokens' dtype.

    Args:
        model: bare transformer, Sequential with normalisation, or either wrapped.
        value: (1, *tokens) or (B, *tokens), for a ViT (1, N, D); may require grad.
        embedding: what ``patch_embed`` returned for these images before; it is not asked again.

    Yields:
        The unwrapped eager module to call; a forward through DDP would break models with buffers.

    Raises:
        NoiseError: ``value`` has another shape than the tokens.
        ModelError: no fitting patch embedding, or no forward ran in the body.
    """

    def add(tokens: torch.Tensor) -> torch.Tensor:
        if value.shape[1:] != tokens.shape[1:] or value.shape[0] not in (1, tokens.shape[0]):
            raise NoiseError(
                f"noise does not fit this model: expected shape (1, {', '.join(map(str, tokens.shape[1:]))}), "
                f"found {tuple(value.shape)}. Synthesize it for this architecture and image size."
            )
        if torch.is_autocast_enabled(tokens.device.type):
            return tokens + value
        return tokens + value.to(tokens.dtype)

    with _patch_embed_hook(model, add, embedding):
        yield unwrap(model)


@contextmanager
def embedding_seen(model: nn.Module) -> Iterator[list[Any]]:
    """Yields a list to which each forward in the body adds its patch embedding's output, before any hook's changes."""
    outputs: list[Any] = []
    handle = find_patch_embed(model).register_forward_hook(lambda *call: outputs.append(call[2]), prepend=True)
    try:
        yield outputs
    finally:
        handle.remove()


@contextmanager
def _given(embedding: nn.Module, output: Any) -> Iterator[None]:
    """While the body runs, ``output`` is what ``embedding`` returns, whatever the images; its hooks run as ever."""
    own = vars(embedding).get("forward")
    embedding.forward = lambda *_, **__: output
    try:
        yield
    finally:
        del embedding.forward
        if own is not None:
            embedding.forward = own


def hollow(images: torch.Tensor) -> torch.Tensor:
    """Zeros of the same shape that take no memory."""
    return images.new_zeros(()).expand(images.shape)


def depends_on_embedding_alone(model: nn.Module, images: torch.Tensor) -> bool:
    """Whether the first of ``images`` has the same logits, bit for bit, when only its patch embedding is given.

    Not so where the images are used elsewhere too, or where the tokens are changed in place (also where that would
    change nothing a second time: with noise in between it would).
    """
    copies: list[torch.Tensor] = []
    keep = _patch_embed_hook(model, lambda tokens: copies.append(tokens.clone()))
    with torch.no_grad():
        with keep, embedding_seen(model) as outputs:
            logits = model(images[:1])
        if len(outputs) > 1 or not torch.equal(_tokens_of(outputs[0]), copies[0]):
            return False
        with _given(find_patch_embed(model), outputs[0]):
            return torch.equal(model(hollow(images[:1])), logits)


def token_shape(model: nn.Module, images: torch.Tensor) -> tuple[int, ...]:
    """Shape (1, *tokens) of encoder noise for ``images`` (B, C, H, W); one eval forward of one image."""
    shapes: list[torch.Size] = []
    with frozen(model) as inner, torch.no_grad(), _patch_embed_hook(inner, lambda t: shapes.append(t.shape)):
        inner(images[:1])
    return (1, *shapes[0][1:])


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Eval mode and no parameter gradients for the body; undone exactly, also after an error.

    Each module gets its own training flag back, and each parameter its ``requires_grad``;
    ``.grad`` is never touched. Gradient checkpointing is off meanwhile: its reentrant form
    refuses gradients of an input alone. Yields the unwrapped module.
    """
    inner = unwrap(model)
    training = [(module, module.training) for module in inner.modules()]
    requires_grad = [(parameter, parameter.requires_grad) for parameter in inner.parameters()]
    checkpointed = [
        (module, flag)
        for module, _ in training
        for flag in ("use_checkpoint", "grad_checkpointing")  # Swin's in timm 0.5.4; every model's in timm 1.x
        if getattr(module, flag, False) is True
    ]
    try:
        for module, flag in checkpointed:
            setattr(module, flag, False)
        for module, _ in training:
            module.training = False
        for parameter, _ in requires_grad:
            parameter.requires_grad_(False)
        yield inner
    finally:
        for module, mode in training:
            module.training = mode
        for parameter, required in requires_grad:
            parameter.requires_grad_(required)
        for module, flag in checkpointed:
            setattr(module, flag, True)
