from __future__ import annotations

import math
import pickle
from dataclasses import replace

import pytest
import torch

from ns_easyrobust.errors import NoiseError
from ns_easyrobust.nullspace.config import NoiseConfig
from ns_easyrobust.nullspace.noise import Noise
from ns_easyrobust.nullspace.synthesis import synthesize


def test_permutation_keeps_the_elements():
    value = torch.randn(1, 16, 64)
    noise = Noise(value, 0.02, 9, True, None, (), NoiseConfig())
    other = noise.permuted(torch.Generator().manual_seed(3))
    assert not torch.equal(other.value, value)
    assert torch.equal(other.value.flatten().sort().values, value.flatten().sort().values)
    assert other.norm == pytest.approx(noise.norm)
    assert math.isnan(other.mse_probability)
    assert other.converged is None


def test_save_and_load(tmp_path, trained, batches):
    noise = synthesize(trained, batches, NoiseConfig(max_steps=3, eps=1e-9), held_out=batches[:2])
    loaded = Noise.load(noise.save(tmp_path / "noise.pt"))
    assert torch.equal(loaded.value, noise.value)
    assert replace(loaded, value=noise.value) == noise
    assert [path.name for path in tmp_path.iterdir()] == ["noise.pt"]


class Payload:
    def __reduce__(self):
        return (open, ("ran", "w"))


@pytest.mark.parametrize("content", [b"", b"<html>", b"hello", pickle.dumps(Payload()), pickle.dumps({"a": 1})])
def test_foreign_files_are_refused_and_run_nothing(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noise.pt").write_bytes(content)
    with pytest.raises(NoiseError, match="expected"):
        Noise.load("noise.pt")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(NoiseError, match="found nothing"):
        Noise.load("missing.pt")


@pytest.mark.parametrize(
    "change",
    [{"value": "x"}, {"trace": torch.zeros(2, 3)}, {"steps": "x"}, {"config": {"eps": 1, "new": 2}}, {"held_out": 3}],
)
def test_files_of_another_version_are_refused_in_one_line(tmp_path, change):
    state = Noise(torch.randn(1, 2, 3), 0.02, 9, True, None, (), NoiseConfig()).state_dict()
    torch.save(state | change, tmp_path / "noise.pt")
    with pytest.raises(NoiseError, match="fields of this version"):
        Noise.load(tmp_path / "noise.pt")


@pytest.mark.parametrize("shape", [(1, 4, 8), (1, 2, 2, 8)])
def test_the_share_of_the_largest_token(shape):
    value = torch.ones(shape)
    value[(0,) + (0,) * (len(shape) - 2)] = 3.0  # 9 of 12 parts, the other three tokens one each
    noise = Noise(value, 0.0, 1, True, None, (), NoiseConfig())
    assert noise.token_share == pytest.approx(0.75)
