"""What a pre-LN transformer ignores besides the patch embedding's nullspace: the all-ones direction of each token.

The residual stream carries c_t * 1_D, added to token t, unchanged from the patch embedding to the last norm. Every
LayerNorm on the way subtracts a token's mean over its D features, and with it c_t, whatever its size: the variance,
epsilon and the affine part that follow see nothing of it. So what reaches the encoder is not W x but P W x, where
P = I - 1 1'/D takes away the mean, and the exact nullspace of a patch is that of P W. It has one dimension more than
W's where all-ones lies in W's range, and none else.

It holds if all that reads tokens does so through a LayerNorm of each token; positions, class and register tokens,
attention of any kind, LayerScale and pooling change nothing, as they add to the tokens, or come after a LayerNorm. It
fails for RMSNorm, which subtracts no mean, for norms behind attention and MLP instead of in front of them, and where
several tokens are normalised together, unless c_t is the same for them. A LayerNorm in the patch embedding itself
(Swin) removes what the projection's output has of all-ones, whatever comes after; noise that joins behind it is another
matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ModelError
from ..models import bare_vit, encoder_noise, logits_of, reader_without_layer_norm, token_shape
from ..utils import nn, torch
from .exact import find_projection, linear_map, patch_pseudo_inverse, patch_spectrum
from .exact_noise import unpatchify
from .float64 import float64_copy

_IGNORED = 1e-8  # of the change that a random direction makes: rounding in float64 is some 1e-12 of it


def _rank(centred: torch.Tensor, matrix: torch.Tensor, rtol: float) -> int:
    """Rank of P W by the cut of W itself.

    The singular values of P W lie between those of W, s_i(W) >= s_i(PW) >= s_(i+1)(W), as P is a projection of rank
    D - 1; by the same cut the rank is therefore W's or one less.
    """
    return int((torch.linalg.svdvals(centred) > rtol * torch.linalg.matrix_norm(matrix, 2)).sum())


def layer_norm_nullity(
    model_or_weight: nn.Module | torch.Tensor,
    *,
    space: str = "normalised",
    rtol: float | None = None,
    std: Sequence[float] | None = None,
) -> int:
    """Dimension of the nullspace of P W: of the patch's exact nullspace in a model that ignores all-ones.

    Arguments and errors are those of :func:`~ns_easyrobust.nullspace.patch_spectrum`.
    """
    matrix, cut = linear_map(model_or_weight, space, rtol, std)
    return matrix.shape[1] - _rank(matrix - matrix.mean(0), matrix, cut)


def layer_norm_nullspace(model: nn.Module, *, space: str = "normalised", rtol: float | None = None) -> torch.Tensor:
    """Orthonormal basis of the perturbations of a patch that change its embedding by a multiple of all-ones at most.

    A model must ignore those (:func:`ignores_all_ones`) for this to be a nullspace of it.

    Args:
        model, space, rtol: as in :func:`~ns_easyrobust.nullspace.patch_nullspace`, whose span this one contains.

    Returns:
        (:func:`layer_norm_nullity`, C*p*p), float64, on the CPU.

    Raises:
        ModelError, OptionError: as :func:`~ns_easyrobust.nullspace.patch_nullspace`.
    """
    matrix, cut = linear_map(model, space, rtol)
    centred = matrix - matrix.mean(0)
    right_vectors = torch.linalg.svd(centred, full_matrices=True)[2]
    return right_vectors[_rank(centred, matrix, cut) :].clone()


@dataclass(frozen=True)
class AllOnesCheck:
    """How much noise of all-ones changes a model's logits: the largest change of one, over images and classes.

    Attributes:
        norm: of the noise on all tokens of an image.
        tokens: change by all-ones of another size on each token, at the patch embedding's output.
        equal: change by all-ones of one size on all tokens.
        random: change by noise of the same norm and of random direction, on the same tokens.
        pixels: change by that noise on the pixels which the projection turns into all-ones of another size on each
            token, c_t * pinv(W) 1; None where all-ones is not in W's range, so that there is none.
        pixel_norm: of that noise; None as ``pixels``.
        random_pixels: change by noise of random direction and of that norm, on the pixels; None as ``pixels``.
        largest: largest logit without noise.
        reader: the part that reads tokens without a LayerNorm of each
            (:func:`~ns_easyrobust.models.reader_without_layer_norm`), if there is one.
    """

    norm: float
    tokens: float
    equal: float
    random: float
    pixels: float | None
    pixel_norm: float | None
    random_pixels: float | None
    largest: float
    reader: str | None

    @property
    def ignores_tokens(self) -> bool:
        """Whether all-ones on each token is ignored: one exact null dimension for every token."""
        return self.tokens <= _IGNORED * self.random

    @property
    def ignores_equal(self) -> bool:
        """Whether all-ones is ignored if it is of one size on all tokens."""
        return self.equal <= _IGNORED * self.random

    @property
    def ignores_pixels(self) -> bool:
        """Whether patches are ignored which the projection turns into all-ones: one more dimension for every patch."""
        return self.pixels is not None and self.pixels <= _IGNORED * (self.random_pixels or 0.0)


def ignores_all_ones(
    model: nn.Module,
    images: torch.Tensor,
    norm: float = 5000.0,
    *,
    rtol: float | None = None,
    generator: torch.Generator,
) -> AllOnesCheck:
    """Measure whether a model ignores the all-ones direction, in float64 and on the CPU, on a copy of it.

    Args:
        model: bare transformer or Sequential with normalisation, wrapped or not; left as it is.
        images: (B, C, H, W), normalised.
        norm: of the noise on all tokens of an image, > 0; tokens have a norm of some sqrt(D).
        rtol: as in :func:`patch_nullspace`; by default that of the weights as they are stored.
        generator: of the sizes on each token and of the random directions.

    Raises:
        ModelError: no linear patch embedding, other tokens than (..., D), logits that nothing changes, or a model
            that does not run in float64.
        DataError: images of another size than the model's.
    """
    rtol = patch_spectrum(bare_vit(model), rtol=rtol).rtol  # before the copy, whose weights look more precise
    images = images.to("cpu", torch.float64)
    vit, output = float64_copy(bare_vit(model), images)
    projection = find_projection(vit)
    clean = logits_of(output, len(images))
    shape = token_shape(vit, images)
    dim, p = projection.weight.shape[0], projection.weight.shape[-1]
    if shape[-1] != dim:
        raise ModelError(f"{type(vit).__name__}: expected tokens of {dim} features, found shape {shape}. Use a ViT.")

    def drawn(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64, device=generator.device).cpu()

    def scaled(noise: torch.Tensor, size: float) -> torch.Tensor:
        return noise * (size / float(noise.norm()))

    def change(on_tokens: torch.Tensor | None = None, on_pixels: torch.Tensor | None = None) -> float:
        if on_tokens is None:
            assert on_pixels is not None
            return _largest(logits_of(vit(images + on_pixels), len(images)) - clean)
        with encoder_noise(vit, on_tokens):
            return _largest(logits_of(vit(images), len(images)) - clean)

    grid = [images.shape[-2] // p, images.shape[-1] // p]
    sizes = drawn(1, *shape[1:-1], 1)
    with torch.no_grad():
        random = change(scaled(drawn(*shape), norm))
        if not random > 0:  # a nan, or a head of zeros
            raise ModelError(
                f"{type(vit).__name__}: expected logits that noise of norm {norm:g} changes, found a change of "
                f"{random:g}. Use trained weights, or another architecture."
            )
        tokens = change(scaled(sizes.expand(shape), norm))
        equal = change(scaled(torch.ones(shape, dtype=torch.float64), norm))
        pixels = pixel_norm = random_pixels = None
        if layer_norm_nullity(vit, rtol=rtol) > patch_spectrum(vit, rtol=rtol).nullity:
            delta = patch_pseudo_inverse(vit, rtol=rtol).sum(1)  # the least patch with W delta = 1
            patches = drawn(1, math.prod(grid), 1) * delta
            noise = unpatchify(patches, p, images.shape[1:])
            noise = noise * (norm / float((projection(noise) - projection(torch.zeros_like(noise))).norm()))
            pixel_norm = float(noise.norm())
            pixels = change(on_pixels=noise)
            random_pixels = change(on_pixels=scaled(drawn(*noise.shape), pixel_norm))
    return AllOnesCheck(
        norm, tokens, equal, random, pixels, pixel_norm, random_pixels, _largest(clean),
        reader_without_layer_norm(vit, images[:1]),
    )  # fmt: skip


def _largest(values: torch.Tensor) -> float:
    return float(values.abs().max())
