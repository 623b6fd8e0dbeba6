"""The spectrum against the explicit Jacobian by torch.autograd.functional and numpy's eigvalsh."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.models import forward_by_hand, small_vit
from torch import nn

from ns_easyrobust.errors import ModelError, OptionError
from ns_easyrobust.nullspace.local_spectrum import SoftmaxJacobian

KEPT, STREAMED = 2**30, 0


@pytest.fixture(scope="module")
def tiny() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A model of 4 classes, 3 images, and the explicit J_x (3, 4, 16 x 64) by another way than the module's own."""
    model = small_vit(4, depth=1).eval()
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rows = [
        torch.autograd.functional.jacobian(
            lambda value, image=image: forward_by_hand(model, image[None], value).softmax(-1)[0], torch.zeros(1, 16, 64)
        )
        for image in images
    ]
    return model, images, torch.stack(rows).flatten(2).double()


@pytest.fixture(scope="module")
def by_numpy(tiny) -> tuple[torch.Tensor, np.ndarray]:
    """The mean of J_x^T J_x (1024, 1024), and its eigenvalues, the largest first."""
    explicit = tiny[2]
    square = (explicit.transpose(1, 2) @ explicit).mean(0)
    return square, np.linalg.eigvalsh(square.numpy())[::-1]


@pytest.mark.parametrize("kept", [KEPT, STREAMED])
def test_eigenvalues_and_products_are_those_of_the_explicit_jacobian(tiny, by_numpy, kept):
    (model, images, explicit), (square, expected) = tiny, by_numpy
    model.train()
    jacobian = SoftmaxJacobian(model, images.split(2), kept)
    assert model.training
    value = torch.randn(1, 16, 64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(jacobian.responses(value), explicit @ value.flatten().double(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(
        jacobian.squared(value).flatten().double(), square @ value.flatten().double(), rtol=1e-3, atol=1e-8
    )
    found = jacobian.spectrum(count=50)
    assert (found.dimension, found.rank, len(found.values)) == (1024, 9, 9)  # 3 images x (4 - 1)
    np.testing.assert_allclose(found.values, expected[:9], rtol=1e-3, atol=1e-6 * expected[0])
    assert np.abs(expected[9:]).max() < 1e-6 * expected[0]
    vectors = found.vectors.flatten(1).double()
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(9).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        torch.einsum("kd,de,ke->k", vectors, square, vectors), torch.tensor(expected[:9].copy()), rtol=1e-3, atol=1e-9
    )


def test_small_noise_has_the_influence_that_it_predicts_and_the_all_ones_directions_have_none(tiny):
    model, images, _ = tiny
    jacobian = SoftmaxJacobian(model, [images])
    value = 0.02 * torch.randn(1, 16, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        clean, noisy = (forward_by_hand(model, images, value * on).softmax(-1).double() for on in (0, 1))
    measured = float((noisy - clean).square().sum(-1).mean())
    assert measured == pytest.approx(jacobian.influence(value), rel=0.05)
    assert measured > 0
    ones = torch.zeros(1, 16, 64)
    ones[0, 3] = 1.0
    assert jacobian.influence(ones) < 1e-9 * jacobian.influence(torch.randn(1, 16, 64))


def test_what_has_no_spectrum_is_one_line(tiny):
    model, images, _ = tiny
    with pytest.raises(ModelError, match="expected two classes or more, found one, whose softmax is always 1"):
        SoftmaxJacobian(small_vit(1, depth=1), [images])
    with pytest.raises(OptionError, match="expected one eigenvalue or more, found 0"):
        SoftmaxJacobian(model, [images]).spectrum(0)
