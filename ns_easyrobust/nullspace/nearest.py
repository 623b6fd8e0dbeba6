"""The image nearest to a target that the patch embedding takes for a source (arXiv:2403.10476, Eq. 12).

Of a source x and a target t, Eq. 12 asks for the nullspace's v nearest to t - x: by least squares, with an orthonormal
basis V of the nullspace, v = V' V (t - x), patch by patch. x + v may leave [0, 1]. What is nearest to t within
{z: Wz = Wx} and [0, 1]^n has no closed form. Dykstra's alternating projections converge to it, and are a gradient
ascent of step 1 on the dual problem: with orthonormal rows R of W's row space, z(y) = clip(t + R'y), the gradient is
R(x - z(y)). Here that ascent is accelerated, and
ended by Newton's method in the patches where it is slow (:mod:`~.nearest_newton`).

The paper's public code has no Eq. 12: its nearest script (``max_noise.py``) solves a linear objective for each channel
alone, whose nullspace is smaller.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from ..errors import OptionError
from .exact_noise import check_pixels, patchify, unpatchify
from .nearest_newton import newton_dual
from .row_space import PatchRowSpace

_CHECK_EVERY = 20  # steps between two looks at which patches are done


class NearestImages(NamedTuple):
    """What :func:`nearest_valid` returns.

    Attributes:
        images: (B, C, H, W), all pixels in [0, 1].
        residual: (B,) float64, of the worst patch: norm of what the patch embedding still sees of the change, R(z - x),
            relative to what it sees of the source, R x; or, where that is more, to the norm sqrt(n) / 255 of a patch of
            n numbers one level bright, as of a black patch nothing is seen.
    """

    images: torch.Tensor
    residual: torch.Tensor


def nearest_in_nullspace(
    model: nn.Module, sources: torch.Tensor, targets: torch.Tensor, *, space: PatchRowSpace | None = None
) -> torch.Tensor:
    """``sources`` changed within the nullspace so as to be nearest to ``targets``: Eq. 12 with p = 2, by least squares.

    Args:
        model: with normalisation in front, wrapped or not; its pixel-space nullspace is used.
        sources, targets: (B, C, H, W) in [0, 1], floating point, with sides that are multiples of the patch size.
        space: the model's, on the sources' device; made anew by default, which for many calls is done once.

    Returns:
        (B, C, H, W), float64; pixels may lie outside of [0, 1].

    Raises:
        DataError: ``sources`` or ``targets`` are no pixels in [0, 1].
        OptionError: their shapes differ, or do not fit the patch size.
        ModelError: the patch embedding is not linear, or the model has no normalisation.

    Example:
        >>> transformed = nearest_in_nullspace(model, images, images.flip(0))
        >>> torch.allclose(model(transformed.float()), model(images), atol=1e-4)
        True
    """
    _check(sources, targets)
    space = PatchRowSpace(model, sources.device) if space is None else space
    changes = patchify(targets.double() - sources.double(), space.patch_size, space.input_dim)
    unseen = changes - space.spread(space.seen(changes))
    return sources.double() + unpatchify(unseen, space.patch_size, sources.shape[1:])


def nearest_valid(
    model: nn.Module,
    sources: torch.Tensor,
    targets: torch.Tensor,
    *,
    iterations: int = 1000,
    newton_steps: int = 200,
    tolerance: float = 1e-6,
    space: PatchRowSpace | None = None,
) -> NearestImages:
    """As :func:`nearest_in_nullspace`, among images with pixels in [0, 1]: Dykstra's projections, accelerated.

    Both sets are met at the end up to a residual: pixels are in [0, 1] exactly, and what the patch embedding still sees
    of the change is stated. The source itself is in both, so that a nearest image always exists. The acceleration is
    Nesterov's, begun anew in each patch where it points downhill (O'Donoghue and Candes 2015, arXiv:1204.3982).

    Args:
        model, sources, targets, space: as in :func:`nearest_in_nullspace`.
        iterations: first-order steps at most; a patch that is done before takes no more.
        newton_steps: at most, in the patches that are not done after them, as happens where most pixels are black or
            white; each solves a system of the patch embedding's rank.
        tolerance: of the residual, at which a patch is done.

    Returns:
        Images in float64, and their residuals: at most ``tolerance`` unless both kinds of steps were too few.

    Raises:
        DataError, OptionError, ModelError: as :func:`nearest_in_nullspace`; or ``iterations`` < 1,
            ``newton_steps`` < 0, or ``tolerance`` is no number > 0.
    """
    _check(sources, targets)
    for name, steps, least in (("iterations", iterations, 1), ("newton_steps", newton_steps, 0)):
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < least:
            raise OptionError(f"{name}: expected a whole number >= {least}, found {steps!r}.")
    if not 0 < tolerance < math.inf:  # NaN fails too
        raise OptionError(f"tolerance: expected a number > 0, found {tolerance!r}.")
    space = PatchRowSpace(model, sources.device) if space is None else space
    pixels, aims = (patchify(images.double(), space.patch_size, space.input_dim) for images in (sources, targets))
    flat = aims.flatten(0, 1)
    seen = space.seen(pixels.flatten(0, 1))
    # Of an all-black patch nothing is seen; its change must be small beside that of a patch one level bright.
    scale = seen.norm(dim=-1).clamp_min(space.input_dim**0.5 / 255)
    found, residual, dual = _accelerated_dykstra(flat, seen, scale, space, iterations, tolerance)
    left = (residual > tolerance).nonzero()[:, 0]
    if newton_steps and len(left):
        inside, relative = newton_dual(flat[left], seen[left], scale[left], dual[left], space, newton_steps, tolerance)
        nearer = relative < residual[left]
        found[left[nearer]], residual[left[nearer]] = inside[nearer], relative[nearer]
    images = unpatchify(found.view_as(pixels), space.patch_size, sources.shape[1:])
    return NearestImages(images, residual.view(pixels.shape[:2]).amax(1))


def _accelerated_dykstra(
    aims: torch.Tensor, seen: torch.Tensor, scale: torch.Tensor, space: PatchRowSpace, iterations: int, tolerance: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Patches (M, n) in the box that are nearest to ``aims`` where ``space`` sees ``seen``, residuals, dual points."""
    found, residual, duals = torch.empty_like(aims), torch.empty_like(scale), torch.empty_like(seen)
    left = torch.arange(len(aims), device=aims.device)
    dual = point = torch.zeros_like(seen)
    age = torch.zeros_like(scale)[:, None]  # steps since the acceleration began
    for step in range(iterations + 1):
        inside = (aims + space.spread(point)).clamp(0, 1)
        gradient = seen - space.seen(inside)
        if step % _CHECK_EVERY == 0 or step == iterations:
            relative = gradient.norm(dim=-1) / scale
            done = relative <= tolerance if step < iterations else torch.ones_like(relative, dtype=torch.bool)
            found[left[done]], residual[left[done]], duals[left[done]] = inside[done], relative[done], point[done]
            if bool(done.all()):
                break
            kept = ~done
            left, aims, seen, scale, dual, point, gradient, age = (
                each[kept] for each in (left, aims, seen, scale, dual, point, gradient, age)
            )
        ahead = point + gradient
        uphill = ((ahead - dual) * gradient).sum(-1, keepdim=True) >= 0
        age = torch.where(uphill, age + 1, 0)
        point = ahead + age / (age + 3) * (ahead - dual)
        dual = ahead
    return found, residual, duals


def _check(sources: torch.Tensor, targets: torch.Tensor) -> None:
    for images in (sources, targets):
        check_pixels(images)
    if sources.shape != targets.shape:
        raise OptionError(
            f"targets: expected the sources' shape {tuple(sources.shape)}, found {tuple(targets.shape)}. Resize them."
        )
