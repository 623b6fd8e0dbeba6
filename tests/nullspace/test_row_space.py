"""Row spaces of weights that are constant over squares, against the whole decomposition."""

from __future__ import annotations

import torch
from scipy import linalg

from ns_easyrobust.nullspace.enlargement import enlarged
from ns_easyrobust.nullspace.exact import find_projection, linear_map, row_and_null_space
from ns_easyrobust.nullspace.exact_noise import project_to_nullspace
from ns_easyrobust.nullspace.row_space import PatchRowSpace, square_side


def test_the_side_of_constant_squares_is_found(trained):
    weight = find_projection(trained).weight
    assert square_side(weight) == 1
    assert square_side(find_projection(enlarged(trained, 3)).weight) == 3
    damaged = find_projection(enlarged(trained, 2)).weight.detach().clone()
    damaged[0, 0, 0, 0] += 1e-6
    assert square_side(damaged) == 1
    assert square_side(torch.ones(2, 3, 8, 8)) == 8


def test_what_is_left_is_the_projection_onto_the_whole_nullspace(trained):
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = enlarged(trained, 2)
    space = PatchRowSpace(model)
    assert (space.square, space.rows.shape) == (2, (64, 192))
    patches = images[:, :, :16, :16].flatten(1)
    basis = row_and_null_space(model, "pixel", None)[1]
    expected = project_to_nullspace(basis, images[:, :, :16, :16], 16).flatten(1)
    assert torch.allclose(patches - space.spread(space.seen(patches)), expected, atol=1e-9)
    assert torch.allclose(space.seen(patches).norm(dim=1), (patches - expected).norm(dim=1))
    rows = linalg.orth(linear_map(trained, "pixel", None)[0].numpy().T)
    own = PatchRowSpace(trained)
    assert torch.allclose(own.rows.T @ own.rows, torch.from_numpy(rows @ rows.T), atol=1e-9)
