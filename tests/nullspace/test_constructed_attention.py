"""Proposition 1 and what becomes of it without each of its conditions, with heads by explicit loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from ns_easyrobust.errors import OptionError
from ns_easyrobust.nullspace.constructed_attention import constructed_layer, heads_of


def by_loops(layer, tokens: np.ndarray) -> np.ndarray:
    out = []
    for query, key, value in zip(layer.query.numpy(), layer.key.numpy(), layer.value.numpy(), strict=True):
        rows = []
        for one in tokens:
            logits = [one @ query @ key.T @ other / math.sqrt(query.shape[1]) for other in tokens]
            weights = np.exp(np.array(logits) - max(logits))
            rows.append(weights / weights.sum() @ (tokens @ value))
        out.append(rows)
    return np.array(out)


def built(without: int = 0, seed: int = 0):
    return constructed_layer(3, 4, torch.Generator().manual_seed(seed), without)


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(7, 12))


def proofs_noise(layer, coefficients: np.ndarray) -> np.ndarray:
    """Appendix B: each row a multiple of w, which is orthogonal to the rows of all Q_i K_i'."""
    rows = (layer.query @ layer.key.mT).reshape(-1, 12).numpy()
    null = scipy.linalg.null_space(rows, rcond=1e-10)
    assert null.shape[1] == 1
    return np.outer(coefficients, null[:, 0])


def test_the_proofs_noise_leaves_every_head_and_a_random_one_does_not(tokens):
    layer, rng = built(), np.random.default_rng(1)
    noise = proofs_noise(layer, 10 * rng.normal(size=7))
    clean = by_loops(layer, tokens)
    np.testing.assert_allclose(by_loops(layer, tokens + noise), clean, atol=1e-12)
    assert np.abs(by_loops(layer, tokens + rng.normal(size=(7, 12))) - clean).max() > 0.1
    np.testing.assert_allclose(heads_of(layer, torch.from_numpy(tokens)).numpy(), clean, atol=1e-12)


def test_the_layer_meets_the_conditions_as_the_paper_states_them():
    layer = built()
    products = (layer.query @ layer.key.mT).numpy()
    for product, value in zip(products, layer.value.numpy(), strict=True):
        np.testing.assert_allclose(product, product.T, atol=1e-14)
        assert np.linalg.matrix_rank(product) == np.linalg.matrix_rank(np.vstack((product, value.T))) == 4
    row = products[0, 0]
    assert np.linalg.norm(row) > 0.1
    assert np.linalg.matrix_rank(np.vstack((products[1], row))) == 4


@pytest.mark.parametrize("without", [1, 2])
def test_without_symmetry_or_values_inside_the_keys_it_fails(tokens, without):
    layer = built(without)
    noise = proofs_noise(layer, np.random.default_rng(1).normal(size=7))
    change = np.abs(by_loops(layer, tokens + noise) - by_loops(layer, tokens)).max((1, 2))
    assert change[-1] > 0.05
    assert change[:-1].max() < 1e-12


def test_one_amount_on_all_tokens_needs_no_keys(tokens):
    """Not symmetric: a w orthogonal to all Q_i and V_i, not to K_i, is invisible if it is the same on all tokens."""
    rng = np.random.default_rng(2)
    layer = built(1)
    w = rng.normal(size=12)
    for part in (layer.query, layer.value):
        part -= torch.from_numpy(w)[:, None] * (torch.from_numpy(w) @ part)[:, None] / (w @ w)
    assert np.abs(w @ layer.key.numpy()).max() > 0.05
    clean = by_loops(layer, tokens)
    np.testing.assert_allclose(by_loops(layer, tokens + w), clean, atol=1e-12)
    assert np.abs(by_loops(layer, tokens + np.outer(rng.normal(size=7), w)) - clean).max() > 1e-3


def test_without_the_shared_row_nothing_is_invisible():
    rows = (built(3).query @ built(3).key.mT).reshape(-1, 12).numpy()
    assert np.linalg.matrix_rank(rows) == 12
    with pytest.raises(OptionError, match="expected 2 heads at least"):
        constructed_layer(1, 4, torch.Generator())
