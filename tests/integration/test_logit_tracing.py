"""Rows of logits traced to the images behind them, against how they were really put together."""

from __future__ import annotations

import doctest

import pytest
import torch
from helpers.models import small_vit
from torch import nn

from ns_easyrobust.errors import ModelError
from ns_easyrobust.integration import logit_tracing
from ns_easyrobust.integration.logit_tracing import ForwardRecorder, trace_rows


@pytest.fixture
def two():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 10, generator=generator, requires_grad=True) * 1.0 for n in (6, 4)]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda a, b: a, [(0, row) for row in range(6)]),
        (lambda a, b: b * 1, [(1, row) for row in range(4)]),
        (lambda a, b: torch.split(a, 2)[1], [(0, 2), (0, 3)]),
        (lambda a, b: torch.cat([b, a]), [(1, row) for row in range(4)] + [(0, row) for row in range(6)]),
        (lambda a, b: torch.cat([b, a])[torch.tensor([7, 0, 9])], [(0, 3), (1, 0), (0, 5)]),
        (lambda a, b: a.half()[1:].float(), [(0, row) for row in range(1, 6)]),
        (lambda a, b: a.bfloat16().flip(0), [(0, row) for row in reversed(range(6))]),
        (lambda a, b: torch.stack([a[:4], b], 1).flatten(0, 1)[::3], [(0, 0), (1, 1), (0, 3)]),
    ],
)
def test_rows_that_were_split_joined_indexed_or_cast(two, make, expected):
    assert trace_rows(make(*two), two) == expected


def test_the_example_in_the_docstring():
    result = doctest.testmod(logit_tracing)
    assert result.attempted == 6
    assert result.failed == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_more_rows_than_half_precision_counts(dtype):
    logits = torch.randn(3000, 4, requires_grad=True).to(dtype)
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(1))
    assert trace_rows(logits[order], [logits]) == [(0, int(row)) for row in order]


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b: (a[:4] + b) / 2,  # an ensemble
        lambda a, b: a.detach(),
        lambda a, b: torch.cat([a, torch.randn(2, 10)]),
        lambda a, b: torch.randn(3, 10, requires_grad=True) * 1,
    ],
)
def test_what_cannot_be_traced_is_refused(two, make):
    with pytest.raises(ModelError, match="cannot be traced to images"):
        trace_rows(make(*two), two)


def test_the_graph_stays_for_the_loops_own_backward(two):
    leaf = torch.randn(5, 10, requires_grad=True)
    logits = leaf * 3
    trace_rows(logits[1:], [logits])
    logits.sum().backward()
    assert torch.equal(leaf.grad, torch.full_like(leaf, 3))


def test_a_watch_gives_the_images_and_lets_go(digits):
    model, images = small_vit(), digits[0][:6].clone()
    watch = ForwardRecorder()
    with watch.on(nn.DataParallel(model)):
        first, second = model(images[:4]), model(images[4:])
        joined = torch.cat([second, first])
        assert torch.equal(watch.source_images(joined), torch.cat([images[4:], images[:4]]))
        assert torch.equal(watch.source_images(first), images[:4])
        with torch.no_grad():
            model(images)
        with watch.paused():
            model(images)
        assert len(watch.forwards) == 2
        watch.forget()
        with pytest.raises(ModelError, match="found 0"):
            watch.source_images(first)
    assert not watch.forwards
    model(images)
    assert not watch.forwards


def test_images_handed_on_need_no_gradient(digits):
    """HAT's images carry the attack's gradient, which a companion must not change."""
    model, delta = small_vit(), torch.zeros(2, 3, 32, 32, requires_grad=True)
    watch = ForwardRecorder()
    with watch.on(model):
        assert not watch.source_images(model(digits[0][:2] + delta)).requires_grad


def test_images_of_several_sizes_come_at_the_largest():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    watch, large, small = ForwardRecorder(), torch.rand(2, 3, 8, 8), torch.rand(2, 3, 4, 4)
    with watch.on(model):
        images = watch.source_images(torch.cat([model(large), model(small)]))
    assert torch.equal(images[:2], large)
    assert torch.equal(images[2:], nn.functional.interpolate(small, size=(8, 8), mode="bilinear"))
