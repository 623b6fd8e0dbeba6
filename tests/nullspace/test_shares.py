"""Shares of energy in the nullspace: closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg, stats

from ns_easyrobust.nullspace.enlargement import enlarged
from ns_easyrobust.nullspace.exact import patch_nullspace
from ns_easyrobust.nullspace.exact_noise import sample_nullspace
from ns_easyrobust.nullspace.row_space import PatchRowSpace
from ns_easyrobust.nullspace.shares import random_rows, unseen_share, unseen_share_of_rows, within_squares_share


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


def changes_of(squares, generator):
    """(6, 3, 32, 32) that vary between squares of 2 x 2 pixels, and ``squares`` times as much within."""
    coarse = torch.randn(6, 3, 16, 16, generator=generator).repeat_interleave(2, 2).repeat_interleave(2, 3)
    return coarse + squares * torch.randn(6, 3, 32, 32, generator=generator)


def test_pooling_hides_the_variance_within_squares():
    changes = changes_of(0.5, torch.Generator().manual_seed(1))
    squares = changes.view(6, 3, 16, 2, 16, 2).numpy().astype(np.float64)
    within = squares.var((3, 5)).sum((1, 2, 3)) * 4 / np.square(squares).sum((1, 2, 3, 4, 5))
    assert within_squares_share(changes, 2).numpy() == pytest.approx(within, rel=1e-9)
    assert within_squares_share(changes, 1).numpy() == pytest.approx(0, abs=1e-12)
    assert within_squares_share(changes - changes, 2).tolist() == [0] * 6


def test_random_weights_behind_pooling_are_those_of_scipys_nullspace():
    generator = torch.Generator().manual_seed(2)
    changes = changes_of(0.5, generator)
    rows = random_rows(5, 12, generator=generator)  # of patches of 2 x 2 squares, each of 2 x 2 pixels
    weight = rows.view(5, 3, 2, 2).repeat_interleave(2, 2).repeat_interleave(2, 3).flatten(1).numpy()
    basis = linalg.null_space(weight)
    patches = changes.view(6, 3, 8, 4, 8, 4).permute(0, 2, 4, 1, 3, 5).reshape(6, 64, 48).double().numpy()
    expected = np.square(patches @ basis).sum((1, 2)) / np.square(patches).sum((1, 2))
    assert unseen_share_of_rows(rows, 4, changes, square=2).numpy() == pytest.approx(expected, rel=1e-9)


def test_random_weights_leave_what_their_dimensions_promise_of_what_pooling_passes():
    generator = torch.Generator().manual_seed(3)
    changes = changes_of(0.3, generator)
    draws = [
        unseen_share_of_rows(random_rows(48, 192, generator=generator), 16, changes, square=2).mean().item()
        for _ in range(40)
    ]
    within = within_squares_share(changes, 2).mean().item()
    expected = within + (1 - within) * (1 - 48 / 192)
    assert expected < 0.8 < 1 - 48 / 768  # a random embedding of that size without pooling leaves more
    assert stats.ttest_1samp(draws, expected).pvalue > 0.01


def test_an_enlarged_model_leaves_what_pooling_hides_and_its_own_share_of_the_rest(trained):
    changes = changes_of(0.5, torch.Generator().manual_seed(4))
    within = within_squares_share(changes, 2)
    own = unseen_share(PatchRowSpace(trained), torch.nn.functional.avg_pool2d(changes, 2).repeat(1, 1, 2, 2))
    found = unseen_share(PatchRowSpace(enlarged(trained, 2)), changes.repeat(1, 1, 2, 2))
    assert torch.allclose(found, within + (1 - within) * own, atol=1e-9)
