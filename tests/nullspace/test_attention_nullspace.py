"""Proposition 1's conditions, against scipy.linalg, closed forms and the matrices themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from ns_easyrobust.models.projections import HeadProjections
from ns_easyrobust.nullspace.attention_nullspace import (
    centred_basis,
    head_invariant_directions,
    least_seen,
    nearest_row,
    principal_cosines,
    symmetric_share,
    unit_roundoff,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_symmetric_share_is_that_of_the_matrix_itself():
    query, key = normal(3, 12, 4), normal(3, 12, 4, seed=1)
    for share, q, k in zip(symmetric_share(query, key), query.numpy(), key.numpy(), strict=True):
        product = q @ k.T
        assert share == pytest.approx(np.sum(((product + product.T) / 2) ** 2) / np.sum(product**2))
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    assert symmetric_share(query, query) == pytest.approx([1, 1, 1])
    assert float(symmetric_share(query[0, :, :2] @ turn, query[0, :, :2])) == pytest.approx(0)
    random = symmetric_share(normal(4000, 16, 4), normal(4000, 16, 4, seed=1))
    assert float(random.mean()) == pytest.approx(0.5 + 1 / 32, abs=0.004)  # 1/2 + 1/(2d)


def test_principal_cosines_are_scipys_and_haar_on_average():
    one, other = normal(2, 20, 5), normal(2, 20, 5, seed=1)
    other[0, :, 0] = one[0] @ normal(5)  # a shared direction
    for cosines, a, b in zip(principal_cosines(one, other), one.numpy(), other.numpy(), strict=True):
        np.testing.assert_allclose(np.sort(np.cos(scipy.linalg.subspace_angles(a, b)))[::-1], cosines, atol=1e-12)
    assert float(principal_cosines(one, other)[0, 0]) == pytest.approx(1)
    many = principal_cosines(normal(2000, 20, 5), normal(2000, 20, 5, seed=1)).square().mean()
    assert float(many) == pytest.approx(5 / 20, abs=0.005)  # d_k / d


def test_nearest_row_is_the_smallest_angle_of_a_row_with_another_heads_row_space():
    query, key = normal(3, 9, 3), normal(3, 9, 3, seed=1)
    rows = (query @ key.mT).numpy()
    cosines = [
        math.cos(scipy.linalg.subspace_angles(row[:, None], scipy.linalg.orth(rows[n].T))[0])
        for m in range(3) for n in range(3) if m != n for row in rows[m]
    ]  # fmt: skip
    assert nearest_row(query, key) == pytest.approx(max(cosines))
    query[0, 4] = torch.linalg.lstsq(key[0], key[0, :, :1] * 0 + key[0] @ torch.ones(3, 1).double()).solution[:, 0]
    key[2, :, 1] = key[0] @ query[0, 4]  # that row of the first head, in the third one's row space
    assert nearest_row(query, key) == pytest.approx(1, abs=1e-12)
    assert nearest_row(query[:1], key[:1]) is None
    query[:] = 0
    assert nearest_row(query, key) == 0


def test_least_seen_is_scipys_nullspace():
    parts = normal(2, 3, 12, 4)
    hidden = normal(12)
    parts -= (hidden @ parts)[..., None, :] * hidden[:, None] / (hidden @ hidden)
    found = least_seen(parts, 1e-15)
    null = scipy.linalg.null_space(parts.mT.reshape(24, 12).numpy(), rcond=1e-10)
    assert found.dimension == null.shape[1] == 1
    assert abs(float(found.direction @ torch.from_numpy(null[:, 0]))) == pytest.approx(1)
    values = scipy.linalg.svdvals(parts.mT.reshape(24, 12).numpy())
    assert found.ratio < 1e-14
    assert found.tolerance == pytest.approx(1e-15 * np.linalg.norm(values) / values[0])
    few = least_seen(normal(2, 12, 4), 1e-15)  # eight rows see at most eight directions
    assert (few.dimension, few.ratio) == (4, 0)


def test_with_a_gain_all_ones_does_not_count_and_rounding_is_told_from_zero():
    gain = normal(12).abs() + 0.5
    query, key, value = (normal(3, 12, 4, seed=seed) for seed in range(3))
    layer = HeadProjections(query, key, value, gain)
    stack = torch.cat((query, key, value)).mT.flatten(0, 1).numpy() * gain.numpy()
    common, same = head_invariant_directions(layer, 2**-24)
    centred = stack @ scipy.linalg.null_space(np.ones((1, 12)))
    values = scipy.linalg.svdvals(centred)
    assert common.ratio == pytest.approx(values[-1] / values[0])
    assert common.dimension == 0
    assert abs(float(common.direction.sum())) < 1e-12
    assert float(common.direction.norm()) == pytest.approx(1)
    assert np.linalg.norm(stack @ common.direction.numpy()) == pytest.approx(values[-1])
    assert same.ratio < common.ratio
    w = common.direction  # now hide w, and store the weights in half precision
    hidden = [each - torch.outer(w / gain, (gain * w) @ each / (w @ w)) for each in torch.cat((query, key, value))]
    hidden = torch.stack(hidden)
    assert least_seen(hidden, 2**-53, gain).dimension == 1
    stored = hidden.half().double()
    assert least_seen(stored, unit_roundoff(stored), gain.half().double()).dimension == 1
    assert least_seen(stored, 2**-24, gain.half().double()).dimension == 0


def test_centred_basis_is_orthonormal_and_orthogonal_to_all_ones():
    basis = centred_basis(7, normal(1))
    assert torch.allclose(basis.T @ basis, torch.eye(6, dtype=torch.float64))
    assert basis.sum(0).abs().max() < 1e-14


def test_unit_roundoff_is_that_of_the_format_that_holds_the_weights():
    weights = normal(100)
    assert [unit_roundoff(weights.to(dtype).double()) for dtype in (torch.bfloat16, torch.half, torch.float32)] == [
        2**-8, 2**-11, 2**-24,
    ]  # fmt: skip
    assert unit_roundoff(weights) == 2**-53
