"""A self-attention layer that meets the conditions of Proposition 1 (arXiv:2403.10476), and its heads."""

from __future__ import annotations

import math

from ..errors import OptionError
from ..models import HeadProjections
from ..utils import torch


def constructed_layer(heads: int, head_width: int, generator: torch.Generator, without: int = 0) -> HeadProjections:
    """Random projections, of width d = h d_k, that meet all three conditions of Proposition 1, or all but one.

    By Remark 1: Q_i = B_i P_i and K_i = B_i P_i D_i, with P_i orthogonal and D_i diagonal, so that Q_i K_i' is
    symmetric; V_i = K_i C_i. The first row of Q_1 K_1' is made to lie along the first column of B_1, which B_2 shares.
    So all K_i together have rank d - 1, and w is unique.

    Args:
        heads: h, 2 at least.
        generator: on the CPU.
        without: the condition that is dropped: 1, where the last head has another Q; 2, another V; 3, where nothing is
            shared. 0: none.

    Returns:
        Float64, the layer norm's gain 1.

    Raises:
        OptionError: one head, or no such condition.
    """
    if heads < 2 or head_width < 1 or without not in range(4):
        raise OptionError(
            f"constructed layer: expected 2 heads at least, a width of theirs, and a condition in 1..3 or 0, found "
            f"{heads}, {head_width} and {without}. Correct the call."
        )
    width = heads * head_width

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    base = normal(heads, width, head_width) / math.sqrt(width)
    turned = torch.linalg.qr(normal(heads, head_width, head_width)).Q
    stretch = normal(heads, head_width)
    stretch = stretch.sign() * (0.5 + stretch.abs())  # of both signs, far from 0
    symmetric = (turned * stretch[:, None]) @ turned.mT
    unlike = normal(2, width, head_width) / math.sqrt(width)
    mixing = normal(heads, head_width, head_width) / math.sqrt(head_width)
    if without != 3:
        first = torch.linalg.inv(symmetric[0])[0]
        base[0, 0] = first / first.norm() * base[0, 0].norm()
        base[1, :, 0] = base[0, :, 0]
    query = base @ turned
    key = query * stretch[:, None]
    value = key @ mixing
    if without == 1:
        query[-1] = unlike[0]
    if without == 2:
        value[-1] = unlike[1]
    return HeadProjections(query, key, value, torch.ones(width, dtype=torch.float64))


def heads_of(projections: HeadProjections, tokens: torch.Tensor) -> torch.Tensor:
    """Proposition 1's heads, (h, n, d_k), of ``tokens`` (n, d): Softmax(X Q_i K_i' X' / sqrt(d_k)) X V_i."""
    query, key, value = (tokens @ each for each in (projections.query, projections.key, projections.value))
    return (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1) @ value
