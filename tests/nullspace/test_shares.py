"""Shares of energy in the nullspace: closed forms."""

from __future__ import annotations

import pytest
import torch

from ns_easyrobust.nullspace.exact import patch_nullspace
from ns_easyrobust.nullspace.exact_noise import sample_nullspace
from ns_easyrobust.nullspace.row_space import PatchRowSpace
from ns_easyrobust.nullspace.shares import random_rows, unseen_share, unseen_share_of_rows


def test_shares_are_one_in_the_nullspace_zero_outside_and_the_dimensions_of_white_noise(trained):
    generator = torch.Generator().manual_seed(0)
    space = PatchRowSpace(trained)
    inside = sample_nullspace(patch_nullspace(trained, space="pixel"), (3, 32, 32), 8, generator=generator)
    assert float(unseen_share(space, inside)) == pytest.approx(1, abs=1e-9)
    outside = space.rows[:1].view(1, 3, 8, 8)
    assert float(unseen_share(space, outside)) == pytest.approx(0, abs=1e-9)
    assert float(unseen_share(space, 3 * outside + 4 * inside[..., :8, :8] / inside[..., :8, :8].norm())) == (
        pytest.approx(16 / 25)
    )
    assert float(unseen_share(space, 0 * inside)) == 0
    noise = torch.randn(50, 3, 32, 32, generator=generator)
    rows = random_rows(64, 192, generator=generator)
    assert torch.allclose(rows @ rows.T, torch.eye(64, dtype=torch.float64), atol=1e-12)
    for found in (unseen_share(space, noise), unseen_share_of_rows(rows, 8, noise)):
        assert float(found.mean()) == pytest.approx(128 / 192, abs=0.01)
