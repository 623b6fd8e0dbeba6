"""Fingerprints as files: what is written is read, and other files are not taken for one."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ns_easyrobust.errors import ModelError
from ns_easyrobust.nullspace import fingerprint_of, likeness, load_fingerprint, save_fingerprint


def made(std=(0.2, 0.5, 0.9)):
    weight = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    return fingerprint_of(weight, std=std, name="mine")


@pytest.mark.parametrize("std", [(0.2, 0.5, 0.9), None])
def test_what_is_written_is_read(tmp_path, std):
    before = made(std)
    path = save_fingerprint(tmp_path / "a.safetensors", before, {"torch": "2"})
    again = load_fingerprint(path)
    assert (again.std, again.patch_size, again.digest, again.name) == (std, 2, before.digest, "mine")
    assert likeness(before.rows(), again.rows()) == pytest.approx(1, abs=1e-12)
    for weighted in (False, True):
        one, other = (each.rows(weighted=weighted) for each in (before, again))
        assert torch.allclose(one.T @ one, other.T @ other, atol=1e-6)
    with safe_open(path, "pt") as stream:
        told = stream.metadata()
    assert (told["k"], told["n"], told["format"]) == ("5", "12", "ns_easyrobust.fingerprint/1")
    assert save_fingerprint(tmp_path / "b.safetensors", before, {"torch": "2"}).read_bytes() == path.read_bytes()


def test_other_files_are_none(tmp_path):
    save_file({"basis": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    torch.save({"a": torch.ones(2)}, tmp_path / "model.pth")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("model.safetensors", "model.pth", "empty", "none"):
        assert load_fingerprint(tmp_path / name) is None


def test_what_never_ends_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # open() would wait for a writer
    assert load_fingerprint(tmp_path / "pipe") is None
    assert load_fingerprint(tmp_path) is None


def changed(path, tensors=None, **told):
    meta = {"format": "ns_easyrobust.fingerprint/1", "name": "x", "std": "0.5 0.5 0.5", "patch_size": "2"}
    save_file({**load_file(path), **(tensors or {})}, path, meta | {"weight_sha256": "0"} | told)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensors": {"basis": torch.ones(5, 12)}}, "no orthonormal basis"),
        ({"tensors": {"strengths": torch.full((5, 12), torch.nan)}}, "strengths"),
        ({"patch_size": "5"}, "damaged"),
        ({"patch_size": "-2", "std": ""}, "no orthonormal basis"),
        ({"std": "0.5"}, "std"),
        ({"std": "one two three"}, "damaged"),
        ({"format": "ns_easyrobust.fingerprint/9"}, "expected ns_easyrobust.fingerprint/1, found"),
    ],
)
def test_damaged_ones_are_told(tmp_path, change, message):
    path = save_fingerprint(tmp_path / "a.safetensors", made())
    changed(path, **change)
    with pytest.raises(ModelError, match=message):
        load_fingerprint(path)
