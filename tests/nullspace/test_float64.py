"""Copies in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ns_easyrobust.errors import ModelError
from ns_easyrobust.nullspace.float64 import float64_copy


def test_a_copy_runs_in_float64_and_the_model_stays_as_it_is():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Dropout())
    images = torch.rand(2, 3, 2, 2)
    exact, output = float64_copy(model, images)
    weight, bias = (each.detach().double() for each in (model[1].weight, model[1].bias))
    assert torch.allclose(output, images.double().flatten(1) @ weight.T + bias, rtol=0, atol=1e-14)
    assert (exact[1].weight.dtype, exact.training) == (torch.float64, False)
    assert (model[1].weight.dtype, model.training) == (torch.float32, True)


def test_a_model_of_float32_alone_is_refused():
    class Mixed(nn.Module):
        def forward(self, images):
            return images @ torch.ones(2, 2)

    with pytest.raises(ModelError, match="Mixed: expected a model that runs in float64, found one that does not"):
        float64_copy(Mixed(), torch.rand(1, 3, 2, 2))
