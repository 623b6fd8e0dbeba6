"""The loss of several views, by the entropies of their outputs."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import entropy
from torch import nn

from ns_easyrobust.training.losses import LogitsLoss, SplitLoss, build_mixup_and_loss, first_view, join_views
from ns_easyrobust.training.options import parse_args

BATCH, CLASSES = 5, 7


def built(*more):
    words = ["--model", "x", "--data-dir", "y", "--aug-splits", "3", "--jsd-loss", "--aa", "augmix-m3", *more]
    mixup, loss = build_mixup_and_loss(parse_args(words))
    assert mixup is None
    return loss


@pytest.fixture
def target():
    return torch.tensor([0, 3, 6, 2, 2])


def test_clean_cross_entropy_and_twelve_divergences(target):
    """JSD = H(mean) - mean H: another form than timm's and the published one."""
    logits = 3 * torch.randn(3 * BATCH, CLASSES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = softmax(logits.numpy(), axis=1).reshape(3, BATCH, CLASSES)
    divergence = entropy(p.mean(0), axis=1) - entropy(p, axis=2).mean(0)
    logp = log_softmax(logits[:BATCH].numpy(), axis=1)
    clean = -logp[range(BATCH), target]
    assert built()(logits, target).item() == pytest.approx(clean.mean() + 12 * divergence.mean(), rel=1e-9)
    smoothed = 0.9 * clean.mean() - 0.1 * logp.mean()
    expected = smoothed + 12 * divergence.mean()
    assert built("--smoothing", "0.1")(logits, target).item() == pytest.approx(expected, rel=1e-6)


def test_equal_views_have_no_divergence(target):
    logits = torch.randn(BATCH, CLASSES, generator=torch.Generator().manual_seed(1))
    loss, plain = built()(logits.repeat(3, 1), target), nn.functional.cross_entropy(logits, target)
    assert loss.item() == pytest.approx(plain.item(), abs=1e-5)


def test_three_disjoint_views_are_12_ln_3_apart(target):
    views = [200.0 * nn.functional.one_hot((target + shift) % CLASSES, CLASSES) for shift in range(3)]
    assert built()(torch.cat(views), target).item() == pytest.approx(12 * math.log(3), rel=1e-5)


def test_augmented_views_are_trained_too(target):
    logits = torch.randn(3 * BATCH, CLASSES, generator=torch.Generator().manual_seed(2), requires_grad=True)
    built()(logits, target).backward()
    assert (logits.grad.abs().sum(1) > 1e-4).all()


def test_views_are_joined_as_timm_collates_them():
    views = [torch.full((2, 3, 4, 4), float(value)) for value in range(3)]
    joined = join_views(views, torch.device("cpu"))
    assert joined[:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert join_views(views[1], torch.device("cpu")) is views[1]


def test_companions_get_the_clean_view_and_the_plain_loss(target):
    loss = built("--smoothing", "0.1")
    images, logits = torch.rand(3 * BATCH, 3, 4, 4), torch.randn(3 * BATCH, CLASSES)
    clean, output, plain = first_view(images, target, loss, {"logits": logits})
    assert torch.equal(clean, images[:BATCH])
    assert torch.equal(output, logits[:BATCH])
    expected = nn.functional.cross_entropy(output, target, label_smoothing=0.1)
    torch.testing.assert_close(plain(output, target), expected)
    assert first_view(images, target, loss, None)[1] is None
    alone = (images, logits, LogitsLoss(nn.CrossEntropyLoss()))
    assert first_view(alone[0], target, alone[2], alone[1]) == alone


def test_the_mean_of_two_heads(target):
    """As a distilled DeiT returns them."""
    one, other = torch.randn(2, 3 * BATCH, CLASSES)
    loss = SplitLoss(LogitsLoss(nn.CrossEntropyLoss()), 3)
    torch.testing.assert_close(loss((one, other), target), loss((one + other) / 2, target))
