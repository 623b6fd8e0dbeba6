"""The all-ones direction that LayerNorms take away: its nullspace against scipy's, and what models make of it."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from helpers.models import forward_by_hand, matrix_of, small_vit, unequal
from torch import nn

from ns_easyrobust.errors import ModelError
from ns_easyrobust.models.architectures import build
from ns_easyrobust.models.digest import state_digest
from ns_easyrobust.models.hooks import encoder_noise
from ns_easyrobust.nullspace.all_ones import ignores_all_ones, layer_norm_nullity, layer_norm_nullspace
from ns_easyrobust.nullspace.exact import patch_nullspace, patch_spectrum


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, 32, 32, generator=seeded())


def check(model: nn.Module, norm: float = 5000.0):
    return ignores_all_ones(model, pixels(), norm, generator=seeded(1))


@pytest.mark.parametrize("space", ["normalised", "pixel"])
def test_basis_is_scipys_nullspace_of_the_centred_matrix_and_holds_that_of_the_embedding(space):
    model = unequal()
    matrix = matrix_of(model, space)
    basis = layer_norm_nullspace(model, space=space).numpy()
    centring = np.eye(64) - np.full((64, 64), 1 / 64)
    expected = scipy.linalg.null_space(centring @ matrix, rcond=1e-5)
    assert basis.shape == (129, 192) == (layer_norm_nullity(model, space=space), 192)
    np.testing.assert_allclose(basis @ basis.T, np.eye(129), atol=1e-12)
    assert scipy.linalg.subspace_angles(basis.T, expected).max() < 1e-4
    inside = patch_nullspace(model, space=space).numpy()
    np.testing.assert_allclose(inside @ basis.T @ basis, inside, atol=1e-6)
    embedded = matrix @ basis.T
    np.testing.assert_allclose(embedded, np.broadcast_to(embedded.mean(0), embedded.shape), atol=1e-5)
    assert np.abs(embedded).max() > 1e-3  # one of them is not in the embedding's own


def planted(generator: torch.Generator, dim: int, rank: int, ones: bool) -> torch.Tensor:
    """A weight (dim, 3, 4, 4) of ``rank``, with all-ones in its range or not."""
    columns = torch.randn(dim, rank, generator=generator, dtype=torch.float64)
    if ones:
        columns[:, 0] = 1
    return (columns @ torch.randn(rank, 48, generator=generator, dtype=torch.float64)).view(dim, 3, 4, 4)


@pytest.mark.parametrize(
    ("dim", "rank", "ones", "nullity", "larger"),
    [
        (32, 32, False, 16, 1),
        (64, 48, False, 0, 0),
        (64, 48, True, 0, 1),
        (32, 30, False, 18, 0),
        (32, 30, True, 18, 1),
    ],
    ids=["full row rank", "wide embedding", "wide with ones", "rank lost", "rank lost with ones"],
)
def test_it_is_larger_by_one_where_all_ones_is_in_the_range(dim, rank, ones, nullity, larger):
    weight = planted(seeded(), dim, rank, ones)
    assert patch_spectrum(weight).nullity == nullity
    assert layer_norm_nullity(weight) == nullity + larger


def test_at_a_large_norm_a_vit_ignores_it_on_tokens_and_in_pixels(trained, digits):
    """By hand, in float64: logits move by rounding, and by much along random directions of the same norm."""
    model, images = trained.double(), digits[0][-8:].double()
    with torch.no_grad():
        clean = model(images)
        sizes = torch.randn(1, 16, 1, generator=seeded(), dtype=torch.float64)
        noise = sizes.expand(1, 16, 64) * (5825 / sizes.expand(1, 16, 64).norm())
        other = torch.randn(noise.shape, generator=seeded(1), dtype=torch.float64)
        other *= noise.norm() / other.norm()
        assert float((forward_by_hand(model, images, noise) - clean).abs().max()) < 1e-11
        assert float((forward_by_hand(model, images, other) - clean).abs().max()) > 0.5
        matrix = model[1].patch_embed.proj.weight.flatten(1)
        delta = torch.tensor(np.linalg.lstsq(matrix.numpy(), np.ones(64), rcond=None)[0])
        np.testing.assert_allclose(matrix @ delta, 1.0, atol=1e-9)  # not in W's nullspace
        patches = sizes.view(4, 4, 1) * 100 * delta
        image = patches.view(4, 4, 3, 8, 8).permute(2, 0, 3, 1, 4).reshape(1, 3, 32, 32)
        shuffled = image.flatten()[torch.randperm(image.numel(), generator=seeded())].view_as(image)
        moved, control = (model[1](model[0](images) + each) - clean for each in (image, shuffled))
    assert float(moved.abs().max()) < 1e-9
    assert float(control.abs().max()) > 0.5


def test_check_of_a_vit_leaves_it_as_it_is():
    model = small_vit().train()
    digest, state = state_digest(model), torch.get_rng_state()
    found = check(model)
    assert (found.ignores_tokens, found.ignores_equal, found.ignores_pixels, found.reader) == (True, True, True, None)
    assert 0 < found.tokens < 1e-12 < 1e-2 < found.random
    assert 0 < found.pixels < 1e-11 < 1e-2 < found.random_pixels
    assert (state_digest(model), model[1].blocks[0].training, next(model.parameters()).dtype) == (
        digest,
        True,
        torch.float32,
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert check(model, 50.0).random != found.random


class RmsNorm(nn.Module):
    """x divided by its root mean square: no mean is subtracted."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens * torch.rsqrt(tokens.square().mean(-1, keepdim=True) + 1e-6) * self.weight


class PostNorm(nn.Module):
    """A block whose norms stand behind attention and MLP, as in Swin v2."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attn, self.mlp = block.norm1, block.norm2, block.attn, block.mlp

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.norm1(self.attn(tokens))
        return tokens + self.norm2(self.mlp(tokens))


def test_it_fails_for_rms_norm_and_for_post_norm():
    rms, post = small_vit(), small_vit(seed=1)
    rms[1].blocks[1].norm2 = RmsNorm(64)
    assert not check(rms).ignores_equal
    rms[1].blocks[1].norm1 = RmsNorm(64)
    assert check(rms).reader == "blocks.1.norm1 (RmsNorm)"
    post[1].blocks = nn.Sequential(*map(PostNorm, post[1].blocks))
    found = check(post)
    assert (found.ignores_tokens, found.ignores_equal, found.ignores_pixels) == (False, False, False)
    assert found.reader == "blocks.0.attn (Attention)"


def swin(**options) -> nn.Module:
    torch.manual_seed(0)
    return build("swin_micro_patch2_32", num_classes=10, **options).eval()


def test_swin_ignores_it_if_it_is_equal_on_the_tokens_that_are_merged():
    model = swin()
    found = check(model)
    assert (found.ignores_tokens, found.ignores_equal, found.pixels) == (False, True, None)
    assert found.reader.endswith("downsample.norm (LayerNorm)")
    model, images = model.double(), pixels().double()
    with torch.no_grad():
        shape = model.patch_embed(images).shape[1:]
        merged = torch.randn(8, 8, generator=seeded(), dtype=torch.float64).repeat_interleave(2, 0)
        noise = 1000 * merged.repeat_interleave(2, 1).flatten()[:, None].expand(256, 24)
        with encoder_noise(model, noise.reshape(1, *shape)):
            moved = model(images)
        assert float((moved - model(images)).abs().max()) < 1e-10


def test_a_norm_in_the_patch_embedding_ignores_it_in_pixels_whatever_comes_after():
    found = check(swin(patch_size=4))  # 48 to 24
    assert (found.ignores_tokens, found.ignores_pixels) == (False, True)
    without = swin(patch_size=4)
    without.patch_embed.norm = nn.Identity()
    found = check(without)
    assert found.pixels is not None
    assert not found.ignores_pixels


def test_models_that_cannot_be_checked_are_one_line():
    silent = small_vit()
    nn.init.zeros_(silent[1].head.weight)
    with pytest.raises(ModelError, match="expected logits that noise of norm 5000 changes, found a change of 0"):
        check(silent)

    class Single(nn.Linear):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return super().forward(features.float())

    single = small_vit()
    single[1].head = Single(64, 10)
    with pytest.raises(ModelError, match="expected a model that runs in float64"):
        check(single)
    with pytest.raises(ModelError, match="no patch embedding"):
        check(nn.Sequential(nn.Conv2d(3, 4, 3)))
