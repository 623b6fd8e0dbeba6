"""Table 1: dimensions of the patch embedding's nullspace, of architectures and of files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.models import small_vit

from ns_easyrobust.errors import CheckpointError, OptionError
from ns_easyrobust.experiments.patch_rows import architecture_row, checkpoint_row
from ns_easyrobust.models.checkpoint_save import save_model
from ns_easyrobust.models.normalization import with_normalization


def test_pixel_space_takes_the_files_own_normalisation(tmp_path):
    model = with_normalization(small_vit()[1], (0.5,) * 3, (0.2, 0.5, 0.9))
    save_model(model, tmp_path / "model.pth")
    torch.save(model[1].state_dict(), tmp_path / "bare.pth")
    normalised, pixel = (checkpoint_row(tmp_path / "model.pth", space=space) for space in ("normalised", "pixel"))
    matrix = model[1].patch_embed.proj.weight.detach().double().numpy() / np.array([0.2, 0.5, 0.9])[:, None, None]
    values = np.linalg.svd(matrix.reshape(64, 192), compute_uv=False)
    assert pixel.smallest_kept == pytest.approx(values[-1] / values[0], rel=1e-6)
    assert pixel.smallest_kept != pytest.approx(normalised.smallest_kept, rel=1e-2)
    with pytest.raises(OptionError, match=r"bare\.pth: expected a normalisation .* the space normalised"):
        checkpoint_row(tmp_path / "bare.pth", space="pixel")
    assert architecture_row("vit_micro_patch8_32", space="pixel").nullity == 128


@pytest.mark.parametrize(
    "state",
    [
        {"conv1.weight": torch.ones(4, 3, 7, 7)},
        {"patch_embed.proj.0.0.weight": torch.ones(4, 3, 3, 3), "patch_embed.proj.1.weight": torch.ones(4)},
        {
            "patch_embed.proj.weight": torch.ones(4, 8, 1, 1),
            "patch_embed.backbone.stem.weight": torch.ones(8, 3, 7, 7),
        },
        {
            "patch_embed.0.proj.weight": torch.ones(4, 3, 4, 4),
            "patch_embed.1.proj.weight": torch.ones(4, 3, 4, 4),
        },
    ],
    ids=["no patch embedding", "conv stem", "hybrid", "two"],
)
def test_files_without_one_linear_patch_embedding_are_refused(tmp_path, state):
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth: expected one patch embedding"):
        checkpoint_row(tmp_path / "other.pth")
