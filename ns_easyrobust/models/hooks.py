"""Context managers that change a model temporarily: noise on the encoder's input, captures, freezing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from ..errors import ModelError, NoiseError
from ..utils import nn, torch
from .outputs import logits_of, output_of
from .vit import find_patch_embed, unwrap


def _tokens_of(output: Any) -> torch.Tensor:
    """The token tensor in a patch embedding's output (FAN and XCiT return it with the grid size)."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def _patch_embed_hook(model: nn.Module, hook: Any, fixed_output: Any = None) -> Iterator[None]:
    """Register ``hook(tokens) -> tokens or None`` on the patch embedding while the body runs.

    With ``fixed_output``, the patch embedding returns that instead of computing its output.

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

    patch_embed = find_patch_embed(model)
    handle = patch_embed.register_forward_hook(forward_hook)
    try:
        with nullcontext() if fixed_output is None else _fixed_output(patch_embed, fixed_output):
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
    """Add ``value`` to the output of ``patch_embed`` while the body runs.

    The model runs its own forward; the result equals adding ``value`` by hand, bit for
    bit. Outside autocast ``value`` is cast to the tokens' dtype.

    Args:
        model: bare transformer, Sequential with normalisation, or either of them wrapped.
        value: (1, *tokens) or (B, *tokens), for a ViT (1, N, D); may require grad.
        embedding: what ``patch_embed`` returned for these images earlier, reused instead of computed again.

    Yields:
        The unwrapped eager module to call; a forward through DDP would break models with buffers.

    Raises:
        NoiseError: the shape of ``value`` does not fit the tokens.
        ModelError: no suitable patch embedding, or no forward ran in the body.

    Example:
        >>> value = torch.ones(1, 16, 64)  # 16 patches, width 64
        >>> with encoder_noise(model, value) as inner:
        ...     noisy = inner(images)
        >>> noisy.shape, torch.equal(noisy, model(images))
        (torch.Size([8, 10]), False)
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
def capture_patch_embed(model: nn.Module) -> Iterator[list[Any]]:
    """Yield a list to which each forward in the body appends its patch embedding, before any hook changes it."""
    outputs: list[Any] = []
    handle = find_patch_embed(model).register_forward_hook(lambda *call: outputs.append(call[2]), prepend=True)
    try:
        yield outputs
    finally:
        handle.remove()


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """While the body runs, ``module`` computes ``forward`` instead; its hooks still run."""
    previous = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]
        if previous is not None:
            vars(module)["forward"] = previous


def _fixed_output(patch_embed: nn.Module, output: Any) -> AbstractContextManager[None]:
    """Let ``patch_embed`` return ``output`` for all images while the body runs."""
    return replaced_forward(patch_embed, lambda *_, **__: output)


def storage_free_zeros(images: torch.Tensor) -> torch.Tensor:
    """Zeros of the shape of ``images`` that share the memory of a single element."""
    return images.new_zeros(()).expand(images.shape)


def depends_on_embedding_alone(model: nn.Module, images: torch.Tensor) -> bool:
    """Whether the model uses images only through their patch embedding.

    Tested on the first of ``images``: given its patch embedding alone, the logits must be the same, bit for bit.
    False if the model uses the images elsewhere too or changes the tokens in place, even where repeating that change
    would have no effect, because with noise added in between it would.
    """
    copies: list[torch.Tensor] = []
    copy_tokens = _patch_embed_hook(model, lambda tokens: copies.append(tokens.clone()))
    with torch.no_grad():
        with copy_tokens, capture_patch_embed(model) as outputs:
            logits = logits_of(model(images[:1]), 1)
        if len(outputs) > 1 or not torch.equal(_tokens_of(outputs[0]), copies[0]):
            return False
        with _fixed_output(find_patch_embed(model), outputs[0]):
            return torch.equal(logits_of(model(storage_free_zeros(images[:1])), 1), logits)


def token_shape(model: nn.Module, images: torch.Tensor) -> tuple[int, ...]:
    """Shape (1, *tokens) of encoder noise for ``images`` (B, C, H, W), from one forward of one image in eval mode."""
    shapes: list[torch.Size] = []
    with frozen(model) as inner, torch.no_grad(), _patch_embed_hook(inner, lambda tokens: shapes.append(tokens.shape)):
        output_of(inner, images[:1])
    return (1, *shapes[0][1:])


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Eval mode without parameter gradients while the body runs; undone exactly, also after an error.

    Each module gets its own training flag back, and each parameter its ``requires_grad``;
    ``.grad`` is never touched. Gradient checkpointing is off meanwhile: its reentrant form
    refuses gradients with respect to an input alone. Yields the unwrapped module.
    """
    inner = unwrap(model)
    training = [(module, module.training) for module in inner.modules()]
    # Those made in inference mode have no gradient in any case, and refuse to be told so outside of it.
    normal = [parameter for parameter in inner.parameters() if not parameter.is_inference()]
    requires_grad = [(parameter, parameter.requires_grad) for parameter in normal]
    try:
        for module, _ in training:
            module.training = False
        for parameter, _ in requires_grad:
            parameter.requires_grad_(False)
        with without_checkpointing(inner):
            yield inner
    finally:
        for module, mode in training:
            module.training = mode
        for parameter, required in requires_grad:
            parameter.requires_grad_(required)


@contextmanager
def without_checkpointing(model: nn.Module) -> Iterator[None]:
    """Gradient checkpointing is off while the body runs: activations are kept, and what hooks record has a graph."""
    checkpointed = [
        (module, flag)
        for module in unwrap(model).modules()
        for flag in ("use_checkpoint", "grad_checkpointing")  # Swin's in timm 0.5.4; every model's in timm 1.x
        if getattr(module, flag, False) is True
    ]
    try:
        for module, flag in checkpointed:
            setattr(module, flag, False)
        yield
    finally:
        for module, flag in checkpointed:
            setattr(module, flag, True)
