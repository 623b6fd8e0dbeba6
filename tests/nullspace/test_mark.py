"""Finding a mark in the nullspace: scores by numpy's loops, unmarked noise, and thresholds by counting."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from helpers.models import matrix_of, numpy_patches, unequal

from ns_easyrobust.errors import DataError, OptionError
from ns_easyrobust.nullspace import mark as mark_module
from ns_easyrobust.nullspace.enlargement import enlarged
from ns_easyrobust.nullspace.exact import patch_nullspace
from ns_easyrobust.nullspace.exact_noise import project_to_nullspace
from ns_easyrobust.nullspace.mark import MarkDetector, cyclic_correlations, threshold_at


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def mark() -> torch.Tensor:
    return (torch.rand(32, 32, generator=source(3)) > 0.5).double()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return 0.3 + 0.4 * torch.rand(200, 3, 32, 32, generator=source(4), dtype=torch.float64)


def marked(images: torch.Tensor, mark: torch.Tensor, strength: float) -> torch.Tensor:
    basis = patch_nullspace(unequal(), space="pixel")
    return images + strength * project_to_nullspace(basis, mark.expand_as(images), 8)


def score_by_hand(image: np.ndarray, mark: np.ndarray, photographs: np.ndarray | None) -> float:
    basis = scipy.linalg.null_space(matrix_of(unequal(), "pixel"), rcond=1e-5)
    template = numpy_patches(np.broadcast_to(mark, (1, 3, 32, 32)))[0] @ basis
    own = numpy_patches(image[None])[0] @ basis
    if photographs is not None:
        rows = (numpy_patches(photographs) @ basis).reshape(-1, basis.shape[1])
        covariance = np.cov(rows.T)
        covariance += 0.01 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        root = scipy.linalg.inv(scipy.linalg.sqrtm(covariance).real)
        template, own = template @ root, (own - rows.mean(0)) @ root
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    found = []
    for down in range(4):
        for right in range(4):
            places = [((row - down) % 4) * 4 + (column - right) % 4 for row in range(4) for column in range(4)]
            found.append(float((own * template[places]).sum()))
    return (found[0] - np.mean(found[1:])) / np.std(found[1:], ddof=1)


@pytest.mark.parametrize("whitened", [False, True])
def test_scores_are_those_of_loops(images, mark, whitened):
    photographs = images[100:150] if whitened else None
    scores = MarkDetector(unequal(), mark, None if photographs is None else photographs.split(20))(images[:3])
    expected = [
        score_by_hand(image, mark.numpy(), None if photographs is None else photographs.numpy())
        for image in images[:3].numpy()
    ]
    assert np.allclose(scores.numpy(), expected, rtol=1e-3, atol=1e-4)


def test_unmarked_images_score_zero_on_average_and_marked_ones_do_not(images, mark):
    detect = MarkDetector(unequal(), mark)
    clean, light, dark = detect(images), detect(marked(images, mark, 0.1)), detect(marked(images, mark, -0.1))
    assert abs(float(clean.mean())) < 4 * float(clean.std()) / 200**0.5
    assert 0.8 < float(clean.std()) < 1.4
    assert float(light.mean()) > 3
    assert float(dark.mean()) < -3
    assert bool((light > clean).all())


def test_what_the_model_sees_does_not_count(images, mark):
    """A change of the row space alone leaves every score as it was, however large."""
    detect, basis = MarkDetector(unequal(), mark), patch_nullspace(unequal(), space="pixel")
    change = 0.3 * (torch.rand(images.shape, generator=source(7), dtype=torch.float64) - 0.5)
    seen = change - project_to_nullspace(basis, change, 8)
    assert torch.allclose(detect((images + seen).clamp(0, 1)), detect(images), atol=1e-6)
    assert not torch.allclose(detect((images + change).clamp(0, 1)), detect(images), atol=1e-2)


def test_whitening_finds_a_mark_under_coloured_noise(mark):
    """Images that are strong in some directions of the nullspace hide a mark that is in all of them."""
    basis = patch_nullspace(unequal(), space="pixel")
    drawn = torch.randn(300, 3, 32, 32, generator=source(5), dtype=torch.float64)
    few = 0.15 * project_to_nullspace(basis[:12], drawn, 8) + 0.004 * project_to_nullspace(basis, drawn.flip(0), 8)
    images = (0.5 + few).clamp(0, 1)
    test = marked(images[:50], mark, 0.02).clamp(0, 1)
    plain, whitened = MarkDetector(unequal(), mark), MarkDetector(unequal(), mark, [images[100:]])
    assert float(whitened(test).mean()) > 1.3 * float(plain(test).mean()) > 0


def test_a_threshold_is_an_order_statistic():
    scores = torch.arange(99.0)[torch.randperm(99, generator=source())]
    assert threshold_at(scores, 0.01) == 98  # k = 1: above all of them
    assert threshold_at(scores, 0.05) == 94  # k = 5
    for rate in (0.0, 1.0, 0.009):
        with pytest.raises(OptionError, match="false-positive rate: expected"):
            threshold_at(scores, rate)


def test_cyclic_correlations_are_those_of_moved_templates():
    generator = source()
    images, template = (torch.randn(*shape, generator=generator).double() for shape in ((3, 4, 5, 6), (4, 5, 6)))
    expected = [
        [(images * template.roll((down, right), (0, 1))).sum((1, 2, 3)) for right in range(5)] for down in range(4)
    ]
    found = cyclic_correlations(images, template)
    assert torch.allclose(found, torch.stack([torch.stack(row, -1) for row in expected], 1))


def test_batches_do_not_count_and_are_all_that_is_held(images, mark, monkeypatch):
    """Covariance and scores are sums over batches, none of which is larger than asked for."""
    expected = MarkDetector(unequal(), mark, [images[:100]])(images[100:140])
    sizes = []
    patchify = mark_module.patchify
    monkeypatch.setattr(
        mark_module, "patchify", lambda batch, *rest: sizes.append(len(batch)) or patchify(batch, *rest)
    )
    monkeypatch.setattr(mark_module, "_BATCH", 7)
    found = MarkDetector(unequal(), mark, images[:100].split(33))(images[100:140])
    assert torch.allclose(found, expected, atol=1e-9)
    assert max(sizes) == 7


def test_an_enlarged_model_s_mark_is_found_without_a_basis_of_its_nullspace(mark, monkeypatch):
    """As by the large weight's own decomposition, which is not made."""
    large = enlarged(unequal(), 2)
    images = 0.3 + 0.4 * torch.rand(40, 3, 64, 64, generator=source(4), dtype=torch.float64)
    wide = mark.repeat_interleave(2, 0).repeat_interleave(2, 1) * torch.randn(3, 64, 64, generator=source(6)).double()
    basis = patch_nullspace(large, space="pixel")
    monkeypatch.setattr("ns_easyrobust.nullspace.exact.patch_nullspace", None)
    monkeypatch.setattr("ns_easyrobust.nullspace.exact.row_and_null_space", None)
    found = MarkDetector(large, wide, [images[8:]])(images[:8])
    rows = numpy_patches(images.numpy(), 16) @ basis.numpy().T
    covariance = np.cov(rows[8:].reshape(-1, len(basis)).T)
    covariance += 0.01 * np.trace(covariance) / len(basis) * np.eye(len(basis))
    inverse = scipy.linalg.inv(covariance)
    own = rows[:8] - rows[8:].reshape(-1, len(basis)).mean(0)
    own /= np.sqrt(np.einsum("bnk,kl,bnl->bn", own, inverse, own))[..., None]
    template = (numpy_patches(wide[None].numpy(), 16)[0] @ basis.numpy().T @ inverse).reshape(4, 4, -1)
    products = np.stack(
        [
            np.einsum("bnk,nk->b", own, np.roll(template, (down, right), (0, 1)).reshape(16, -1))
            for down in range(4)
            for right in range(4)
        ],
        1,
    )
    expected = (products[:, 0] - products[:, 1:].mean(1)) / products[:, 1:].std(1, ddof=1)
    assert np.allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_marks_and_images_that_do_not_fit_are_refused(images, mark):
    with pytest.raises(OptionError, match="expected one that the nullspace can show"):
        MarkDetector(unequal(), 0 * mark)
    with pytest.raises(OptionError, match="at least 4 patches, found 1"):
        MarkDetector(unequal(), mark[:8, :8])
    with pytest.raises(OptionError, match=r"patches of at most 12288 numbers, .* found 12289"):
        mark_module.require_detectable(12289)
    with pytest.raises(OptionError, match=r"images: expected \(B, 3, 32, 32\) as the mark"):
        MarkDetector(unequal(), mark)(images[..., :16])
    with pytest.raises(DataError, match="expected pixels in"):
        MarkDetector(unequal(), mark)(images + 1)
