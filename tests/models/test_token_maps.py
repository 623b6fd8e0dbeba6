from __future__ import annotations

import torch

from ns_easyrobust.models.token_maps import upscaled


def test_a_constant_map_is_zero_and_has_finite_gradients():
    values = torch.ones(1, 1, 2, 2, requires_grad=True)
    maps = upscaled(values, (4, 4))
    (gradient,) = torch.autograd.grad((maps - 1).square().sum(), values)
    assert torch.equal(maps, torch.zeros(1, 1, 4, 4))
    assert gradient.isfinite().all()


def test_maps_go_from_0_to_1_between_the_centres_of_patches():
    maps = upscaled(torch.tensor([[[[3.0, 5.0]]], [[[0.0, -1.0]]]]), (1, 4))
    assert torch.allclose(maps[:, 0, 0], torch.tensor([[0, 0.25, 0.75, 1], [1, 0.75, 0.25, 0]]))
