"""Fingerprints against scipy's angles and matrix roots, formulas against simulation, and what leaves them alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg

from ns_easyrobust.errors import ModelError, OptionError
from ns_easyrobust.nullspace import (
    common_space,
    fingerprint_of,
    haar_overlap,
    likeness,
    overlap,
)

STD = (0.2, 0.5, 0.9)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weight(features: int = 5, side: int = 2, seed: int = 0) -> torch.Tensor:
    return drawn(features, 3, side, side, seed=seed)


def test_s_is_scipy_s_angles_in_each_space():
    one, other = (fingerprint_of(weight(seed=seed), std=STD) for seed in (0, 1))
    assert (one.rank, one.input_dim, one.patch_size) == (5, 12, 2)
    for space, scale in (("normalised", np.ones(12)), ("pixel", np.repeat(STD, 4))):
        matrices = [(weight(seed=seed).flatten(1).numpy() / scale).T for seed in (0, 1)]
        wanted = np.cos(linalg.subspace_angles(*matrices)) ** 2
        assert overlap(one.rows(space), other.rows(space)) == pytest.approx(wanted.sum(), rel=1e-12)
        assert likeness(one.rows(space), other.rows(space)) == pytest.approx(wanted.sum() / 5, rel=1e-12)
    assert overlap(one.rows(), other.rows()) != pytest.approx(overlap(one.rows("pixel"), other.rows("pixel")), rel=1e-3)


def test_row_spaces_of_other_ranks():
    one, other = fingerprint_of(weight(3)), fingerprint_of(weight(7, seed=1))
    wanted = np.cos(linalg.subspace_angles(*(each.basis.numpy().T for each in (one, other)))) ** 2
    assert likeness(one.rows(), other.rows()) == pytest.approx(wanted.sum() / 21**0.5, rel=1e-12)


def test_the_row_space_stays_under_any_mixing_of_features_and_the_weighted_one_under_what_transformers_undo():
    first = weight()
    mixed = (drawn(5, 5, seed=2) @ first.flatten(1)).view_as(first)
    one, other = fingerprint_of(first), fingerprint_of(mixed)
    assert likeness(one.rows(), other.rows()) == pytest.approx(1, abs=1e-12)
    assert likeness(one.rows(weighted=True), other.rows(weighted=True)) < 0.99
    order = torch.tensor([3, 0, 4, 1, 2])  # a permutation is orthogonal and keeps 1
    hidden = 3 * first[order] + 7 * drawn(1, 3, 2, 2, seed=3)  # the same of every feature: LayerNorm takes it away
    other = fingerprint_of(hidden)
    assert likeness(one.rows(weighted=True), other.rows(weighted=True)) == pytest.approx(1, abs=1e-12)
    assert likeness(one.rows(), other.rows()) < 0.99


def test_weighted_is_the_cosine_of_scipy_s_matrix_roots():
    prints = [fingerprint_of(weight(seed=seed), std=STD) for seed in (0, 1)]
    roots = []
    for seed in (0, 1):
        matrix = weight(seed=seed).flatten(1).numpy()
        centred = (matrix - matrix.mean(0)) / np.repeat(STD, 4)
        roots.append(linalg.sqrtm(centred.T @ centred + 1e-14 * np.eye(12)).real)
    wanted = (roots[0] * roots[1]).sum() / (np.linalg.norm(roots[0]) * np.linalg.norm(roots[1]))
    rows = [each.rows("pixel", weighted=True) for each in prints]
    assert likeness(*rows) == pytest.approx(wanted, rel=1e-5)


def test_in_the_metric_of_patches_squared_cosines_are_squared_canonical_correlations():
    one, other = weight(4), weight(5, seed=1)
    patches = (drawn(300, 12, seed=4) @ drawn(12, 12, seed=5)).numpy()
    covariance = np.cov(patches.T, bias=True)
    joint = np.cov(np.hstack([patches @ each.flatten(1).numpy().T for each in (one, other)]).T, bias=True)
    a, b, c = joint[:4, :4], joint[4:, 4:], joint[:4, 4:]
    wanted = np.trace(np.linalg.solve(a, c) @ np.linalg.solve(b, c.T))  # sum of squared canonical correlations
    metric = torch.tensor(linalg.sqrtm(covariance).real)
    rows = [fingerprint_of(each).rows(metric=metric) for each in (one, other)]
    assert overlap(*rows) == pytest.approx(wanted, rel=1e-8)


def test_haar_s_mean_and_deviation_are_what_random_subspaces_have():
    fixed = torch.eye(12, dtype=torch.float64)[:5]
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(4000, 12, 3, generator=generator, dtype=torch.float64)
    found = [overlap(fixed, basis.T) for basis in torch.linalg.qr(normal).Q]
    mean, sd = haar_overlap(5, 3, 12)
    assert mean == pytest.approx(np.mean(found), abs=4 * sd / 4000**0.5)
    assert sd == pytest.approx(np.std(found), rel=0.05)
    assert haar_overlap(384, 384, 768) == pytest.approx((192, 0.3533), rel=1e-3)  # ViT-S/16, FACTS


def test_a_small_change_turns_strong_directions_less_than_the_bound():
    matrix = torch.diag_embed(torch.tensor([9.0, 3.0, 0.1], dtype=torch.float64))
    base = torch.cat([matrix, torch.zeros(3, 9)], 1).view(3, 3, 2, 2)
    noise = 0.05 * drawn(3, 3, 2, 2, seed=6)
    one, other = fingerprint_of(base), fingerprint_of(base + noise)
    angles = linalg.subspace_angles(one.basis[:2].numpy().T, torch.linalg.svd((base + noise).flatten(1)).Vh[:2].T)
    assert np.sin(angles.max()) <= float(torch.linalg.matrix_norm(noise.flatten(1), 2)) / (3 - 0.1) + 1e-9
    assert likeness(one.rows(), other.rows()) < 0.95  # by the weak direction alone
    assert likeness(one.rows(weighted=True), other.rows(weighted=True)) > 0.995


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (torch.randn(12, 3, 2, 2), "expected a patch embedding with a nullspace, found rank 12 of 12"),
        (torch.zeros(4, 3, 2, 2), "found zeros"),
        (torch.ones(4, 3, 2, 2), "expected features that differ, found 4 equal ones"),
        (torch.randn(4, 3, 2, 3), "square patches"),
        (torch.full((4, 3, 2, 2), torch.nan), "finite"),
    ],
)
def test_what_has_no_fingerprint_is_told(found, message):
    with pytest.raises(ModelError, match=message):
        fingerprint_of(found, name="vit")


def test_spaces_and_patches_that_cannot_be_compared():
    known, unknown = fingerprint_of(weight(), std=STD, name="a"), fingerprint_of(weight(), name="b")
    assert (common_space([known, known]), common_space([known, unknown])) == ("pixel", "normalised")
    with pytest.raises(ModelError, match="b: expected a known normalisation"):
        unknown.rows("pixel")
    with pytest.raises(ModelError, match="c: expected patches of 2 pixels and 12 numbers, as a has them, found 3"):
        common_space([known, fingerprint_of(weight(side=3), name="c")])
    with pytest.raises(OptionError, match="std: expected 3"):
        fingerprint_of(weight(), std=(0.5,))
