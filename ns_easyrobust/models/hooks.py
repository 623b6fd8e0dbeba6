"""Context managers that change a model temporarily: noise on the encoder's input, captures, freezing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from ..errors import ModelError, NoiseError
from ..utils import nn, torch
from .outputs import logits_of, output_of
from .vit import find_noise_site, find_patch_embed, unwrap


def _tokens_of(passed: Any) -> torch.Tensor:
    """The tokens in a patch embedding's output (with the grid size in FAN and XCiT), or in a block's arguments.

    Raises:
        ModelError: there is no tensor in their place.
    """
    tokens = passed[0] if isinstance(passed, tuple) and passed else passed
    if not isinstance(tokens, torch.Tensor):
        raise ModelError(
            f"noise: expected tokens in one tensor where it is added, found {type(tokens).__name__}, as of several "
            "scales. Use another block or model."
        )
    return tokens


@contextmanager
def _token_hook(model: nn.Module, hook: Any, block: int = -1, fixed_output: Any = None) -> Iterator[None]:
    """Register ``hook(tokens) -> tokens or None`` on the patch embedding's output, or a block's input, in the body.

    With ``fixed_output``, the patch embedding returns that instead of computing its output.

    Raises:
        ModelError: no forward of this model ran in the body, so the hook never fired.
    """
    fired = 0

    def change(passed: Any) -> Any:
        nonlocal fired
        fired += 1
        tokens = hook(_tokens_of(passed))
        if tokens is None:
            return None
        return (tokens, *passed[1:]) if isinstance(passed, tuple) else tokens

    site = find_noise_site(model, block)
    if block == -1:
        handle = site.register_forward_hook(lambda module, args, output: change(output))
    else:
        handle = site.register_forward_pre_hook(lambda module, args: change(args))
    try:
        with nullcontext() if fixed_output is None else _fixed_output(find_patch_embed(model), fixed_output):
            yield
    finally:
        handle.remove()
    if not fired:
        place = "patch_embed" if block == -1 else f"block {block}"
        raise ModelError(
            f"the hook on {place} did not fire: expected a forward of this very model inside "
            "encoder_noise(), found none. Call the unwrapped eager module that the noise was set on."
        )


@contextmanager
def encoder_noise(
    model: nn.Module, value: torch.Tensor, *, embedding: Any = None, block: int = -1
) -> Iterator[nn.Module]:
    """Add ``value`` to the output of ``patch_embed``, or to the input of a block, while the body runs.

    The model runs its own forward; the result equals adding ``value`` by hand, bit for
    bit. Outside autocast ``value`` is cast to the tokens' dtype.

    Args:
        model: bare transformer, Sequential with normalisation, or either of them wrapped.
        value: (1, *tokens) or (B, *tokens), for a ViT (1, N, D); may require grad.
        embedding: what ``patch_embed`` returned for these images earlier, reused instead of computed again.
        block: -1 for the output of ``patch_embed``, as in the paper, or the number of a block, from 0. What enters a
            ViT's block has the class token too, (1, N + 1, D), and the position embedding is in it.

    Yields:
        The unwrapped eager module to call; a forward through DDP would break models with buffers.

    Raises:
        NoiseError: the shape of ``value`` does not fit the tokens.
        ModelError: no suitable patch embedding, no blocks, or no forward ran in the body.
        OptionError: the model has no such block.

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

    # A checkpointed block runs again in the backward pass, when the body has ended: without the noise.
    with nullcontext() if block == -1 else without_checkpointing(model), _token_hook(model, add, block, embedding):
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
    copy_tokens = _token_hook(model, lambda tokens: copies.append(tokens.clone()))
    with torch.no_grad():
        with copy_tokens, capture_patch_embed(model) as outputs:
            logits = logits_of(model(images[:1]), 1)
        if len(outputs) > 1 or not torch.equal(_tokens_of(outputs[0]), copies[0]):
            return False
        with _fixed_output(find_patch_embed(model), outputs[0]):
            return torch.equal(logits_of(model(storage_free_zeros(images[:1])), 1), logits)


def token_shape(model: nn.Module, images: torch.Tensor, block: int = -1) -> tuple[int, ...]:
    """Shape (1, *tokens) of encoder noise for ``images`` (B, C, H, W), from one forward of one image in eval mode.

    ``block`` says where the noise joins, as in :func:`encoder_noise`, with the same errors.
    """
    shapes: list[torch.Size] = []
    see = _token_hook(model, lambda tokens: shapes.append(tokens.shape), block)
    with frozen(model) as inner, torch.no_grad(), see:
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
