"""Every checkpoint form in, safely; two forms out, atomically."""

import argparse
import io
import os
import pickle

import numpy as np
import pytest
import torch
from helpers.checkpoints import ARCH, CLASSES, make_vit, one_line
from torch import nn

from ns_easyrobust.errors import CheckpointError, UserError
from ns_easyrobust.models.checkpoint_save import export_checkpoint
from ns_easyrobust.models.checkpoints import load_model, read_checkpoint


class Payload:
    """Writes a file as soon as it is unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return open, (self.target, "w")


class System:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def hostile_files(folder, proof):
    state = make_vit().state_dict()
    torch.save({"state_dict": state, "metric": Payload(proof)}, folder / "zip.pth")
    torch.save({"state_dict": state, "x": System(proof)}, folder / "system.pth")
    torch.save({"state_dict": state, "args": argparse.Namespace(x=Payload(proof))}, folder / "args.pth")
    torch.save(
        {"state_dict": state, "x": Payload(proof)},
        folder / "legacy.pth",
        _use_new_zipfile_serialization=False,
    )
    (folder / "plain.pth").write_bytes(pickle.dumps(Payload(proof), protocol=2))
    np.savez(folder / "object.npz", **{"embedding/kernel": np.array([Payload(proof)], dtype=object)})
    return {
        "zip.pth": r"Python object (_io|io)\.open",
        "system.pth": r"Python object (posix|nt)\.system",
        "args.pth": r"Python object (_io|io)\.open",
        "legacy.pth": r"Python object (_io|io)\.open",
        "plain.pth": r"Python object (_io|io)\.open",
        "object.npz": "Python objects in the .npz",
    }


def test_code_in_a_pickle_never_runs(tmp_path):
    proof = tmp_path / "ran"
    files = hostile_files(tmp_path, proof)
    for name, match in files.items():
        with pytest.raises(CheckpointError, match=match) as caught:
            load_model(ARCH, tmp_path / name, num_classes=CLASSES)
        one_line(caught)
        assert not proof.exists(), name
    torch.load(tmp_path / "zip.pth", weights_only=False)  # the payload is a real one
    assert proof.exists()


def test_the_allow_list_is_put_back(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    torch.save({"a": torch.ones(1)}, tmp_path / "c.pth")
    read_checkpoint(tmp_path / "c.pth")
    assert set(torch.serialization.get_safe_globals()) == before


def broken_files(folder):
    whole = io.BytesIO()
    torch.save(make_vit().state_dict(), whole)
    legacy = io.BytesIO()
    torch.save(make_vit().state_dict(), legacy, _use_new_zipfile_serialization=False)
    contents = {
        "half.pth": (whole.getvalue()[: len(whole.getvalue()) // 2], "damaged"),
        "legacy.pth": (legacy.getvalue()[: len(legacy.getvalue()) // 2], "damaged"),
        "page.pth": (b"\xef\xbb\xbf\r\n <!DOCTYPE html><html>404</html>", "web page"),
        "empty.pth": (b"", "empty file"),
        "lfs.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
        "text.pth": (b"hello world " * 100, "damaged"),
        "zeros.pth": (b"\0" * 4096, "damaged"),
        "half.npz": (b"PK\x03\x04" + b"\0" * 500, "damaged"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    return {name: match for name, (_, match) in contents.items()}


def test_broken_files_are_one_line_errors(tmp_path):
    for name, match in broken_files(tmp_path).items():
        with pytest.raises(CheckpointError, match=match) as caught:
            read_checkpoint(tmp_path / name)
        assert name in one_line(caught)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*gone\.pth"):
        read_checkpoint(tmp_path / "gone.pth")
    with pytest.raises(CheckpointError, match="found a folder"):
        read_checkpoint(tmp_path)


def test_torchscript_is_named(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="TorchScript"):
        read_checkpoint(tmp_path / "c.pt")


def test_every_error_is_a_user_error(tmp_path):
    files = broken_files(tmp_path)
    for name in files:
        with pytest.raises(UserError):
            export_checkpoint(tmp_path / name, tmp_path / "out", "timm")
    assert not (tmp_path / "out").exists()
