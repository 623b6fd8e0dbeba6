"""PatchFool: an attack on a vision transformer through a few patches (Fu et al. 2022, arXiv:2203.08392).

The content of the patches is optimised in the model's normalised space, for which the published
step size is meant. Adam ascends the gradient of the cross-entropy plus the gradients of the
attention that the first half of the blocks pays to the patches, each without its component
opposed to the gradient of the cross-entropy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from ..errors import ModelError, OptionError
from ..models import attention_blocks, attention_maps, bare_vit, logits_of, prefix_tokens
from ..utils import choices_of, draw_seed, nn, setting, torch
from .base import LARGEST_STEP, Attack, register_attack, require_radius
from .inputs import attack_images
from .patch_fool_ascent import ascend, first_patch_token
from .patch_forward import NormalisedSpace, Patches, patch_grid


@register_attack
@dataclass(frozen=True)
class PatchFool(Attack):
    """:func:`patchfool` with its settings; the defaults are the published program's, with its attention loss.

    Attributes:
        patches: how many patches of an image are attacked.
        select: how they are chosen. "attention": those that receive the most attention in block
            ``layer`` (mean over heads and queries); "saliency": those with the largest sum of
            \\|dCE/dx\\|; "random".
        layer: index of that block, from 0.
        loss: "ce", or "attention": the cross-entropy plus ``alpha`` times the log-attention of
            blocks 1 to L // 2 - 1, L being the number of blocks.
        mode: "official": as published: the cross-entropy is the batch mean and the projection
            divides by the gradient's norm, so that the result depends on the batch, and only
            attention to the first patch counts. "exact": every image independently, a true
            projection (norm squared), and mean attention to all chosen patches.
        norm: "none": any patch content with pixels in [0, 1]; "linf", "l2": within ``epsilon`` of
            the image's own content, for "l2" in each channel separately, as published.
        epsilon: that radius, in pixels of [0, 1]; 0 for "none".
        steps: number of iterations.
        lr, decay_steps, decay: Adam's step size in normalised values, multiplied by ``decay`` every
            ``decay_steps`` iterations.

    Raises:
        OptionError: a value is out of range, or a radius and no norm, or a norm and no radius.

    Example:
        >>> attack = PatchFoolConfig(patches=4, layer=1, loss="ce", norm="linf", epsilon=0.1, steps=2)
        >>> adversarial = attack(model, images, labels, seeds=range(8))
        >>> round(float((adversarial - images).abs().max()), 3)
        0.1
    """

    name = "patchfool"
    draws = True
    slowness = 3
    sampled = True
    published_resizing = (1.0, "bilinear")

    patches: int = setting(1, "patches of an image that are attacked", least=1, metavar="N")
    select: str = setting("attention", "how they are chosen", choices=("attention", "saliency", "random"))
    layer: int = setting(4, "block of that attention, from 0", least=0, metavar="L")
    loss: str = setting("attention", "what is raised beside the cross-entropy", choices=("attention", "ce"))
    alpha: float = setting(0.002, "weight of the attention's loss", least=0)
    mode: str = setting(
        "official", "as published, or each image by itself with a true projection", choices=("official", "exact")
    )
    norm: str = setting("none", "norm of the radius", choices=("none", "linf", "l2"))
    epsilon: float = setting(0.0, "radius of that norm, in pixels of [0, 1]", least=0, metavar="E")
    steps: int = setting(250, "iterations", least=1, metavar="N")
    lr: float = setting(0.22, "Adam's step size, in normalised values", least=0, most=LARGEST_STEP)
    decay_steps: int = setting(10, "iterations between two decays of it", least=1, metavar="N")
    decay: float = setting(0.95, "factor of a decay", least=0)

    def __post_init__(self) -> None:
        for field in fields(self):
            if "help" not in field.metadata:
                continue  # a subclass's own
            choices, value = choices_of(type(self), field.name), getattr(self, field.name)
            if choices and value not in choices:
                raise OptionError(f"patchfool {field.name}: expected one of {', '.join(choices)}, found {value!r}.")
            least = field.metadata["least"]
            if isinstance(field.default, int) and (value != int(value) or value < least):
                raise OptionError(
                    f"patchfool {field.name}: expected a whole number of at least {least}, found {value}."
                )
        if not (0 <= self.alpha < math.inf and 0 < self.lr <= LARGEST_STEP and 0 < self.decay <= 1):
            raise OptionError(
                f"patchfool: expected alpha >= 0, lr > 0 and at most {LARGEST_STEP:g}, and decay in (0, 1], "
                f"found {self.alpha}, {self.lr} and {self.decay}."
            )
        if self.norm == "none" and self.epsilon != 0:
            raise OptionError(
                f"patchfool: expected epsilon 0 with norm 'none', found {self.epsilon}. Choose norm 'linf' or 'l2'."
            )
        if self.norm != "none" and not 0 < self.epsilon < math.inf:
            raise OptionError(
                f"patchfool: expected epsilon > 0 with norm {self.norm!r}, found {self.epsilon}. Give a radius."
            )
        require_radius("patchfool", self.epsilon, "L2" if self.norm == "l2" else "Linf")

    def __call__(
        self, model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, seeds: Sequence[int]
    ) -> torch.Tensor:
        return patchfool(model, pixels, labels, self, seeds=seeds)

    @property
    def title(self) -> str:
        return f"patchfool {self.mode}"

    def require_applicable(self, model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> None:
        """Run one step: raises ModelError if these settings need attention that cannot be read."""
        patchfool(model, pixels, labels, replace(self, steps=1))


PatchFoolConfig = PatchFool  # its settings' name before the attack had a class


def patchfool(
    model: nn.Module,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    config: PatchFool | None = None,
    *,
    generator: torch.Generator | None = None,
    seeds: Sequence[int] | None = None,
) -> torch.Tensor:
    """PatchFool's last iterate (B, 3, H, W) in [0, 1]; only the chosen patches differ from ``pixels``.

    It computes what the published program computes, up to rounding, at a fraction of the cost:
    only the chosen patches are embedded; and the attention layers, each of which would need its
    own backward pass for the projection, share one, plus a forward-mode pass for the products of
    their gradients with the cross-entropy's. Blocks that are not read keep their fused attention.

    Args:
        model: maps pixels in [0, 1] to logits, with the normalisation inside; without one,
            normalised space is pixel space. The model is left unchanged.
        pixels: (B, 3, H, W) in [0, 1]. labels: (B,).
        config: by default ``PatchFool()``.
        generator: draws one seed per image; by default a generator with seed 0.
        seeds: one per image, instead of ``generator``. An image starts from ``torch.rand(3, H, W)``
            of a CPU generator with its seed, which then also draws the patches for
            ``select="random"``. In mode "exact", its result then depends only on the image and its seed.

    Raises:
        DataError: pixels outside [0, 1]. OptionError: more patches than the image has, or not one
            seed per image. ModelError: attention is needed and cannot be read (Swin, ResNet), the
            model has too few blocks, or its tokens do not form a grid of patches.

    Example:
        >>> config = PatchFoolConfig(patches=1, layer=1, loss="ce", steps=2)
        >>> changed = (patchfool(model, images, labels, config) != images).any(1)  # (8, 32, 32)
        >>> all(0 < count <= 8 * 8 for count in changed.sum((1, 2)))  # pixels of one patch
        True
    """
    config = config or PatchFool()
    if seeds is None:
        generator = generator if generator is not None else torch.Generator().manual_seed(0)
        seeds = [draw_seed(generator) for _ in pixels]
    if len(seeds) != len(pixels):
        raise OptionError(f"patchfool: expected one seed for each of {len(pixels)} images, found {len(seeds)}.")

    def run(inner: nn.Module, images: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        space = NormalisedSpace.of(inner, images)
        clean = space.normalised(images)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        uniform = torch.stack([torch.rand(images.shape[1:], generator=rng) for rng in generators]).to(images)
        patches = _choose_patches(inner, clean, indices, config, generators)
        content = ascend(inner, clean, indices, patches, uniform, space, config)
        return patches.paste(images, space.pixels(content))

    return attack_images("patchfool", model, pixels, labels, run)


def _choose_patches(
    model: nn.Module,
    clean: torch.Tensor,
    labels: torch.Tensor,
    config: PatchFool,
    generators: Sequence[torch.Generator],
) -> Patches:
    """The patches to attack, those with the highest score first."""
    size, number = patch_grid(model, clean)
    if config.patches > number:
        raise OptionError(f"patchfool patches: expected at most the image's {number}, found {config.patches}.")
    if config.select == "random":
        drawn = [torch.randperm(number, generator=generator)[: config.patches] for generator in generators]
        return Patches(size, number, torch.stack(drawn).to(clean.device))
    if config.select == "saliency":
        score = _saliency(bare_vit(model), clean, labels, size)
    else:
        received = _attention_received(model, clean, config.layer)
        score = received[:, first_patch_token(received.shape[1], prefix_tokens(model), number) :]
    return Patches(size, number, score.topk(config.patches, dim=1).indices)


def _attention_received(model: nn.Module, clean: torch.Tensor, layer: int) -> torch.Tensor:
    """Attention (B, N) that each token receives in block ``layer``, mean over heads and queries."""
    if layer >= (depth := len(attention_blocks(model))):
        raise ModelError(
            f"patchfool: expected a model with a block {layer} to choose patches by, found {depth} blocks "
            f"(0..{depth - 1}). Choose one of them as the layer"
            + ("." if depth >= 4 else ", and the loss 'ce', for the attention loss needs 4.")
        )
    with torch.no_grad(), attention_maps(model, [layer]) as maps:
        bare_vit(model)(clean)
    return maps[layer].mean((1, 2))


def _saliency(vit: nn.Module, clean: torch.Tensor, labels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Absolute gradient of the cross-entropy, summed over the values of each patch: (B, n)."""
    leaf = clean.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits_of(vit(leaf)), labels, reduction="sum"), leaf)
    return nn.functional.avg_pool2d(gradient.abs().sum(1, keepdim=True), size, divisor_override=1).flatten(1)
