from __future__ import annotations

import contextlib
import math
import pickle
import zipfile
from dataclasses import replace

import pytest
import torch
from helpers.hostile_checkpoints import hostile_files, mutated, rezipped, saved
from hypothesis import given, settings
from hypothesis import strategies as st

from ns_easyrobust.errors import NoiseError, UserError
from ns_easyrobust.nullspace.config import NoiseConfig
from ns_easyrobust.nullspace.noise import Influence, Noise, Step
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
    assert vars(loaded) | {"value": None} == vars(noise) | {"value": None}
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


def test_equal_noises_are_equal_files(tmp_path):
    def noise():
        influence = Influence(0.01, 0.02, 0.5, 0.9, 10)
        return Noise(torch.ones(1, 2, 3), 0.02, 9, True, influence, (Step(0, 0.1, 0.2, 3.0),), NoiseConfig())

    files = [noise().save(tmp_path / "a.pt"), noise().save(tmp_path / "another.pt")]
    files.append(Noise.load(files[0]).save(tmp_path / "c"))
    assert len({path.read_bytes() for path in files}) == 1


NOISE = Noise(torch.ones(1, 2, 3), 0.02, 9, True, Influence(0, 0, 0, 1, 5), (), NoiseConfig()).state_dict()


@pytest.mark.parametrize(
    "change",
    [
        {"value": torch.zeros(1).expand(1 << 20, 1 << 20)},
        {"value": torch.ones(1, 2, 3, dtype=torch.int64)},
        {"value": torch.ones(1, 2, 3, dtype=torch.complex64)},
        {"value": torch.ones(1, 2, 3, device="meta")},
        {"value": torch.tensor([[[float("nan")]]])},
        {"value": torch.ones(1, 2, 3).to_sparse()},
        {"value": None},
        {"value": torch.ones(1, 2, 3).to(torch.float8_e4m3fn)},
        {"value": torch.nested.nested_tensor([torch.ones(2, 3)])},
        {"value": torch.ones(0, 2, 3)},
        {"steps": -1},
        {"stopped": "False"},
        {"held_out": {**NOISE["held_out"], "n": -5}},
        {"held_out": {**NOISE["held_out"], "mse_probability_upper": "nan"}},
        {"steps": float("inf")},
        {"mse_probability": 10**400},
        {"held_out": {1: 2}},
        {"held_out": {**NOISE["held_out"], "n": "many"}},
        {"trace": torch.full((1, 4), float("nan"))},
        {"trace": torch.zeros(4)},
        {"trace": torch.zeros(1, 4, device="meta")},
        {"config": {**NOISE["config"], "eps": "small"}},
        {"config": {**NOISE["config"], "lr": None}},
        {"config": 3},
    ],
)
def test_fields_that_no_noise_has_are_one_line(tmp_path, change):
    torch.save(NOISE | change, tmp_path / "noise.pt")
    with pytest.raises(UserError) as caught:
        Noise.load(tmp_path / "noise.pt")
    assert isinstance(caught.value, NoiseError)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", sorted(hostile_files()))
def test_hostile_files_are_no_noises(tmp_path, name):
    (tmp_path / "noise.pt").write_bytes(hostile_files()[name])
    with pytest.raises(NoiseError, match="expected"):
        Noise.load(tmp_path / "noise.pt")


def test_a_flipped_bit_is_seen(tmp_path):
    path = replace(Noise.from_state_dict(NOISE), value=torch.rand(1, 50, 20)).save(tmp_path / "noise.pt")
    content = bytearray(path.read_bytes())
    content[content.index(Noise.load(path).value.numpy().tobytes()) + 1000] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)
    with pytest.raises(NoiseError, match="Bad CRC-32"):
        Noise.load(path)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.randoms(use_true_random=False))
def test_any_change_of_a_file_ends_in_a_noise_or_in_one_line(tmp_path_factory, rng):
    path = tmp_path_factory.getbasetemp() / "changed.pt"
    path.write_bytes(mutated(rng, saved(NOISE)))
    with contextlib.suppress(UserError):
        assert torch.equal(Noise.load(path).value, NOISE["value"])  # no checksum lets another value through


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_file_written_anew_is_the_same_noise(tmp_path, method):
    (tmp_path / "noise.pt").write_bytes(rezipped(saved(NOISE), method))
    assert torch.equal(Noise.load(tmp_path / "noise.pt").value, NOISE["value"])
