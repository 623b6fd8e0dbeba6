"""The decompositions of a patch's lattice: against numpy's QR, at a large patch, and used again."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from ns_easyrobust.nullspace import patch_lattice
from ns_easyrobust.nullspace.patch_lattice import PatchLattice


def drawn(rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64) * torch.logspace(0, -2, rows)[:, None]


@pytest.mark.parametrize("stiffness", [0.1, 1.0])
def test_the_factor_is_that_of_numpys_qr_in_an_order_of_least_pivots(stiffness):
    """150 columns, more than two blocks of rows."""
    matrix = drawn(20, 150)
    scale = float(matrix.square().sum(0).mean())
    (plane,) = PatchLattice(matrix, 255, 8, stiffness=[stiffness])._planes
    stacked = np.vstack([matrix.numpy(), stiffness * scale**0.5 * np.eye(150)])
    assert sorted(plane.order.tolist()) == list(range(150))
    columns = stacked[:, plane.order.numpy()]
    triangular = np.linalg.qr(columns, mode="r")
    pivots = np.diag(triangular)
    assert np.abs(plane.factor.numpy() - triangular / pivots[:, None]).max() < 1e-9
    for number in (0, 1, 127, 128, 148):  # of all that are left the chosen column is nearest to those before
        basis = np.linalg.qr(columns[:, :number])[0]
        left = columns[:, number:] - basis @ (basis.T @ columns[:, number:])
        assert np.linalg.norm(left, axis=0).min() == pytest.approx(abs(pivots[number]))


def test_pixels_are_pulled_to_the_least_weighted_sum():
    matrix, move = drawn(5, 12), torch.rand(12, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scale = float(matrix.square().sum(0).mean())
    (plane,) = PatchLattice(matrix, 255, 8, stiffness=[0.3])._planes
    stacked = np.vstack([matrix.numpy(), 0.3 * scale**0.5 * np.eye(12)])
    wanted = np.concatenate([(matrix @ move).numpy()[:, 0], np.zeros(12)])  # undo the error, by small moves
    expected = np.linalg.lstsq(stacked, wanted, rcond=None)[0]
    assert np.abs((plane.pull @ (matrix @ move))[:, 0].numpy() - expected).max() < 1e-12


def test_a_multiples_decompositions_are_used_again(monkeypatch):
    matrix = drawn(5, 12)
    one = PatchLattice(matrix, 255, 8)
    expected = PatchLattice(matrix / 4, 1020, 8)
    monkeypatch.setattr(patch_lattice, "_sorted_factor", None)
    again = PatchLattice(matrix / 4, 1020, 8, like=one)
    x, z = torch.rand(2, 30, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.equal(again.round(x, z), expected.round(x, z))
    with pytest.raises(TypeError):  # of another matrix they are made
        PatchLattice(drawn(5, 12).flip(0, 1), 255, 8, like=one)
    assert torch.equal(PatchLattice(0 * matrix, 255, 8).round(x, z), (255 * z).round())


@pytest.mark.stress
def test_patches_of_32_pixels_take_seconds():
    matrix, before = drawn(384, 3072), time.process_time()
    lattice = PatchLattice(matrix, 255, 8, stiffness=[0.1])
    assert time.process_time() - before < 15
    assert lattice._planes[0].pull.shape == (3072, 384)
