"""The losses on negatives: closed forms, and the contrastive one against a loop over its formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from ns_easyrobust.training.augmentations.negative_losses import contrastive_loss, l2_loss, uniform_loss


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_uniform_is_least_where_outputs_are_uniform():
    assert float(uniform_loss(torch.full((4, 7), 3.0))) == pytest.approx(math.log(7))
    logits = random(5, 7).requires_grad_()
    expected = torch.nn.functional.cross_entropy(logits, torch.full((5, 7), 1 / 7, dtype=torch.float64))
    assert torch.allclose(uniform_loss(logits), expected)
    assert uniform_loss(logits) > math.log(7)
    (gradient,) = torch.autograd.grad(uniform_loss(logits), logits)
    assert torch.allclose(gradient, (logits.softmax(1) - 1 / 7) / 5)


def test_l2_is_minus_the_distance_of_probabilities():
    apart = torch.tensor([[50.0, 0, 0], [0, 50.0, 0]])
    assert float(l2_loss(apart, apart.flip(0))) == pytest.approx(-math.sqrt(2))
    logits, negatives = random(6, 4).requires_grad_(), random(6, 4, seed=1).requires_grad_()
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (logits.detach().numpy(), negatives.detach().numpy()))
    assert float(l2_loss(logits, negatives)) == pytest.approx(-np.mean(np.sqrt(((p - q) ** 2).sum(1))))
    assert gradcheck(l2_loss, (logits, negatives))


def test_l2_has_a_finite_gradient_where_nothing_has_changed():
    logits, negatives = random(3, 4).requires_grad_(), random(3, 4, seed=1)
    negatives[0] = logits[0].detach()
    loss = l2_loss(logits, negatives)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.equal(gradient[0], torch.zeros(4, dtype=torch.float64))
    assert gradient[1:].isfinite().all()
    assert gradient[1:].abs().min() > 0


def by_hand(features: np.ndarray, negatives: np.ndarray, classes: list[int], temperature: float) -> float:
    """The formula, one image after another."""
    unit = [row / np.linalg.norm(row) for row in (*features, *negatives)]
    n, losses = len(features), []
    for i in range(n):
        positives = [p for p in range(n) if p != i and classes[p] == classes[i]]
        if positives:
            below = sum(math.exp(unit[i] @ unit[a] / temperature) for a in range(2 * n) if a != i)
            terms = [math.log(math.exp(unit[i] @ unit[p] / temperature) / below) for p in positives]
            losses.append(-sum(terms) / len(positives))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_contrastive_is_its_formula(temperature):
    features, negatives = random(7, 5).requires_grad_(), random(7, 5, seed=1).requires_grad_()
    classes = [0, 1, 0, 2, 1, 0, 3]  # those of 2 and 3 are alone
    expected = by_hand(features.detach().numpy(), negatives.detach().numpy(), classes, temperature)

    def loss(features, negatives):
        return contrastive_loss(features, negatives, torch.tensor(classes), temperature)

    assert float(loss(features, negatives)) == pytest.approx(expected, rel=1e-12)
    assert gradcheck(loss, (features, negatives))


def test_contrastive_on_pairs_in_closed_form():
    same = torch.tensor([[2.0, 0], [3.0, 0]])
    classes = torch.tensor([4, 4])
    orthogonal = torch.tensor([[0, 1.0], [0, -5.0]])
    assert float(contrastive_loss(same, orthogonal, classes, 0.5)) == pytest.approx(math.log(1 + 2 * math.exp(-2)))
    assert float(contrastive_loss(same, same, classes, 0.5)) == pytest.approx(math.log(3))


def test_contrastive_without_positives_is_zero_and_can_be_differentiated():
    features, negatives = random(3, 4).requires_grad_(), random(3, 4, seed=1).requires_grad_()
    loss = contrastive_loss(features, negatives, torch.arange(3), 0.1)
    assert float(loss) == 0
    gradients = torch.autograd.grad(loss, (features, negatives))
    assert all(torch.equal(gradient, torch.zeros(3, 4, dtype=torch.float64)) for gradient in gradients)


def test_half_precision_is_computed_in_single():
    logits, negatives = random(6, 40).bfloat16(), random(6, 40, seed=1).bfloat16()
    classes = torch.tensor([0, 0, 1, 1, 2, 2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [
            uniform_loss(negatives),
            l2_loss(logits, negatives),
            contrastive_loss(logits, negatives, classes, 0.05),
        ]
    expected = [
        uniform_loss(negatives.double()),
        l2_loss(logits.double(), negatives.double()),
        contrastive_loss(logits.double(), negatives.double(), classes, 0.05),
    ]
    assert [loss.dtype for loss in found] == [torch.float32] * 3
    assert torch.allclose(torch.stack(found).double(), torch.stack(expected), rtol=1e-5)
