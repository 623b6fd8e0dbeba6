"""TokenCut, against a second derivation and graphs whose cut is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import label

from ns_easyrobust.training.masks.token_cut import affinity, object_side, second_eigenvector, token_cut


def keys_of(patches: np.ndarray, noise: float = 0.05) -> np.ndarray:
    """(N, 8) keys: nearly the first axis where ``patches`` (h, w) is True, nearly the second elsewhere."""
    keys = np.random.default_rng(0).normal(0, noise, (patches.size, 8))
    keys[np.arange(patches.size), np.where(patches.reshape(-1), 0, 1)] += 1
    return keys


def rectangle(rows: slice, columns: slice, grid: tuple[int, int] = (6, 5)) -> np.ndarray:
    patches = np.zeros(grid, bool)
    patches[rows, columns] = True
    return patches


def test_weights_are_one_or_nearly_nothing():
    keys = np.array([[2.0, 0], [5, 0], [0, 1], [1, 1], [0, 0]])  # cosines 1, 0, .707 and, of no direction, 0
    weights = affinity(keys, 0.7)
    alike = np.array([[1, 1, 0, 1, 0], [1, 1, 0, 1, 0], [0, 0, 1, 1, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 0]], bool)
    assert np.array_equal(weights, np.where(alike, 1.0, 1e-5))


@pytest.mark.parametrize("seed", range(4))
def test_the_eigenvector_is_that_of_the_normalised_laplacian(seed):
    generator = np.random.default_rng(seed)
    weights = affinity(generator.normal(size=(30, 6)), 0.2)
    degrees = weights.sum(1)
    half = np.diag(degrees**-0.5)
    values, vectors = np.linalg.eigh(half @ (np.diag(degrees) - weights) @ half)  # Shi and Malik 2000, Eq. 7
    expected = half @ vectors[:, 1]
    found = second_eigenvector(weights)
    assert values[1] - values[0] > 1e-6
    assert values[2] - values[1] > 1e-6
    np.testing.assert_allclose(found * np.sign(found @ expected), expected, atol=1e-9)


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("patches", [rectangle(slice(1, 4), slice(1, 3)), rectangle(slice(0, 2), slice(3, 5))])
def test_the_smaller_of_two_clusters_is_cut_out_exactly(patches, published):
    """The relaxed cut of two cliques is constant on each, and larger on the smaller one: D-orthogonal to 1."""
    assert np.array_equal(token_cut(keys_of(patches), patches.shape, centred=not published), patches)


def test_attention_chooses_the_side():
    patches = rectangle(slice(0, 5), slice(0, 5))  # 25 of 30: an object that fills its photograph
    keys, attention = keys_of(patches), np.where(patches, 1.0, 0.5).reshape(-1)
    assert np.array_equal(token_cut(keys, (6, 5)), ~patches)
    assert np.array_equal(token_cut(keys, (6, 5), 0.2, attention), patches)
    assert np.array_equal(token_cut(keys, (6, 5), 0.2, 1 - attention), ~patches)


def test_what_all_keys_have_in_common_does_not_count_unless_as_published():
    patches = rectangle(slice(1, 4), slice(1, 3))
    keys = keys_of(patches) + 30 * np.ones(8)  # cosines are all near 1
    assert np.array_equal(token_cut(keys, patches.shape), patches)
    assert not token_cut(keys, patches.shape, centred=False).any()


def test_only_the_seeds_component_remains_and_a_diagonal_does_not_connect():
    vector = np.zeros((4, 4))
    vector[0, 0], vector[1, 1], vector[3, 2:] = 1.0, 2.0, 3.0
    side = object_side(vector.reshape(-1), (4, 4))
    components, count = label(vector > vector.mean())
    assert count == 3
    assert np.array_equal(side, components == components[3, 2])
    assert side.sum() == 2
    assert np.array_equal(side, object_side(-vector.reshape(-1), (4, 4)))
    tied = vector.copy()
    tied[0, 0] = 3.0 - 1e-12  # as rounding leaves what is equal
    assert object_side(tied.reshape(-1), (4, 4))[0, 0]


def test_where_there_is_no_cut_there_is_no_mask():
    assert not token_cut(np.ones((9, 4)), (3, 3)).any()
    assert not token_cut(np.ones((9, 4)), (3, 3), centred=False).any()
    assert not token_cut(np.eye(9), (3, 3), centred=False).any()
