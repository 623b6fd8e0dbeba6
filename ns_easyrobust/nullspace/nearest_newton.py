"""The end of the way to the nearest image with valid pixels: Newton's method on the dual problem, patch by patch.

First-order steps are slow where most pixels of a patch are black or white, since few are free to move. There the dual
problem of :mod:`~.nearest` is nearly a linear system: it is concave and piecewise quadratic, with the gradient
g = R(x - z(y)) and, as its generalised Hessian, -R D R', D the pixels that are inside the box. A step solves
(R D R' + m I) d = g and is halved until the dual rises (semismooth Newton; L. Qi and J. Sun, "A nonsmooth version of
Newton's method", Mathematical Programming 58, 1993).
"""

from __future__ import annotations

import torch

from .row_space import PatchRowSpace

_CHUNK = 64  # patches at a time, each with a system of rank x rank
_HALVINGS = 30
_RIDGE = 1e-2  # of m, times the gradient's relative norm: it vanishes at the solution


def newton_dual(
    aims: torch.Tensor,
    seen: torch.Tensor,
    scale: torch.Tensor,
    dual: torch.Tensor,
    space: PatchRowSpace,
    steps: int,
    tolerance: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches (M, n) in the box at better dual points than ``dual``, and their gradients' relative norms (M,).

    Args:
        aims: (M, n), t.
        seen: (M, rank), R x.
        scale: (M,), what a gradient's norm is relative to.
        dual: (M, rank), where to begin.
        steps: at most, of each patch.
        tolerance: of the relative norm, at which a patch is done.
    """
    chunks = zip(*(each.split(_CHUNK) for each in (aims, seen, scale, dual)), strict=True)
    found = torch.cat([_newton(t, rx, norm, y, space, steps, tolerance) for t, rx, norm, y in chunks])
    inside = (aims + space.spread(found)).clamp(0, 1)
    return inside, (seen - space.seen(inside)).norm(dim=-1) / scale


def _newton(
    aims: torch.Tensor, seen: torch.Tensor, scale: torch.Tensor, dual: torch.Tensor, space: PatchRowSpace,
    steps: int, tolerance: float,
) -> torch.Tensor:  # fmt: skip
    found, left = dual.clone(), torch.arange(len(dual), device=dual.device)
    unit = torch.eye(dual.shape[1], dtype=dual.dtype, device=dual.device)
    for _ in range(steps):
        value, gradient, free = _dual_at(dual, aims, seen, space)
        relative = gradient.norm(dim=-1) / scale
        kept = relative > tolerance
        if not bool(kept.all()):
            left, aims, seen, scale, dual, value, gradient, free, relative = (
                each[kept] for each in (left, aims, seen, scale, dual, value, gradient, free, relative)
            )
            if not len(left):
                break
        weights = space.sums(free.to(dual)) / space.square**2
        hessian = (space.rows * weights[:, None]) @ space.rows.T
        ridge = (_RIDGE * relative.clamp_max(1))[:, None, None] * unit
        step = torch.linalg.solve(hessian + ridge, gradient)
        slope, length = (gradient * step).sum(-1), torch.ones_like(value)
        for _ in range(_HALVINGS):
            ahead, steepness, _ = _dual_at(dual + length[:, None] * step, aims, seen, space)
            # Where the rise is lost in rounding the gradient tells.
            rises = (ahead >= value + 1e-4 * length * slope) | (steepness.norm(dim=-1) < 0.5 * gradient.norm(dim=-1))
            if bool(rises.all()):
                break
            length = torch.where(rises, length, length / 2)
        dual = dual + torch.where(rises, length, 0.0)[:, None] * step
        found[left] = dual
    return found


def _dual_at(
    dual: torch.Tensor, aims: torch.Tensor, seen: torch.Tensor, space: PatchRowSpace
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The dual's value (M,) and gradient (M, rank), and which pixels (M, n) are free."""
    pixels = aims + space.spread(dual)
    inside = pixels.clamp(0, 1)
    gradient = seen - space.seen(inside)
    value = (inside - aims).square().sum(-1) / 2 + (dual * gradient).sum(-1)
    return value, gradient, (pixels > 0) & (pixels < 1)
