"""Likeness of images: closed forms, and the package that it needs."""

from __future__ import annotations

import sys

import pytest
import torch

from ns_easyrobust.errors import MissingPackageError
from ns_easyrobust.experiments.likeness import (
    require_likeness,
    root_mean_squares,
    seen_from_afar,
    structural_similarity,
)


def test_likeness_has_its_closed_forms():
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert structural_similarity(images, images) == pytest.approx([1, 1])
    assert max(structural_similarity(images, 1 - images)) < 0
    # Of constant images only the means count: (2 a b + c) / (a^2 + b^2 + c), c = 0.01^2.
    flat = structural_similarity(torch.full((1, 3, 8, 8), 0.2), torch.full((1, 3, 8, 8), 0.6))
    assert flat == pytest.approx([(0.24 + 1e-4) / (0.4 + 1e-4)])
    assert root_mean_squares(torch.full((2, 3, 4, 4), -0.5)) == [0.5, 0.5]
    board = (torch.arange(32)[:, None] + torch.arange(32)) % 2
    assert bool((seen_from_afar(board.float().expand(1, 3, 32, 32), 2) == 0.5).all())


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    with pytest.raises(MissingPackageError, match=r"targeted: .*pip install 'ns_easyrobust\[experiments\]'"):
        require_likeness("targeted")
