"""Every checkpoint form in, safely; two forms out, atomically."""

import argparse
import contextlib
import io
import os
import pickle

import numpy as np
import pytest
import torch
from helpers.checkpoints import ARCH, CLASSES, make_vit, one_line
from helpers.hostile_checkpoints import hostile_files as hostile_files_by_name
from helpers.hostile_checkpoints import mutated
from hypothesis import given, settings
from hypothesis import strategies as st
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


HOSTILE = hostile_files_by_name()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_one_line(tmp_path, name):
    path = tmp_path / "c.pth"
    path.write_bytes(HOSTILE[name])
    if name.startswith("ok: "):
        state = read_checkpoint(path).weights().state
        assert state["cls_token"].tolist() == [[[1.0] * 4]]
        return
    with pytest.raises(CheckpointError) as caught:
        checkpoint = read_checkpoint(path)
        checkpoint.weights()
    assert len(one_line(caught)) < 500 + len(str(path))


def test_a_flipped_bit_is_named(tmp_path):
    """As the archive's own checksum says; ``torch.load`` takes the file for good."""
    (tmp_path / "c.pth").write_bytes(HOSTILE["a flipped bit"])
    assert torch.load(tmp_path / "c.pth", weights_only=True)
    with pytest.raises(CheckpointError, match=r"damaged or foreign file \(Bad CRC-32 for file 'archive/data/1'\)"):
        read_checkpoint(tmp_path / "c.pth")


def test_files_that_never_end_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    for path in (tmp_path / "pipe.pth", "/dev/zero"):
        with pytest.raises(CheckpointError, match=r"found a (pipe|device or socket)"):
            read_checkpoint(path)
        with pytest.raises(CheckpointError, match=r"found a (pipe|device or socket)"):
            read_checkpoint(path, sha256="0" * 64)


def test_paths_that_lead_nowhere_are_one_line(tmp_path):
    (tmp_path / "dangling").symlink_to("gone")
    (tmp_path / "loop").symlink_to("loop")
    for path, match in (
        (tmp_path / "dangling", "no checkpoint at"),
        (tmp_path / "loop", "Too many levels of symbolic links"),
        (tmp_path / ("x" * 300), "File name too long"),
        (tmp_path / "a\0b", "NUL character"),
        ("~nobody-of-that-name/c.pth", "no checkpoint at"),
        (tmp_path / "loop" / "c.pth", "Too many levels"),
        ("file:///a%00b.pth", "NUL character"),
    ):
        for sha256 in (None, "0" * 64):
            with pytest.raises(CheckpointError, match=match) as caught:
                read_checkpoint(path, sha256=sha256)
            one_line(caught)


def test_a_name_that_is_not_utf8(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.pth")
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        with open(path, "wb") as stream:
            torch.save({"a": torch.ones(1)}, stream, **options)
        assert read_checkpoint(path).weights().state["a"] == 1


def test_what_was_allowed_before_stays_allowed(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "c.pth")
    with torch.serialization.safe_globals([argparse.Namespace]):
        read_checkpoint(tmp_path / "c.pth")
        assert argparse.Namespace in torch.serialization.get_safe_globals()


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.randoms(use_true_random=False), st.sampled_from([name for name in HOSTILE if name.startswith("ok: ")]))
def test_any_change_of_a_file_ends_in_weights_or_in_one_line(tmp_path_factory, rng, name):
    path = tmp_path_factory.getbasetemp() / "changed.pth"
    path.write_bytes(mutated(rng, HOSTILE[name]))
    with contextlib.suppress(UserError):
        checkpoint = read_checkpoint(path)
        assert checkpoint.metadata is not None
        checkpoint.weights()


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x02}", b"\x10\0\0\0\0\0\0\0{"]), st.binary(max_size=200)
)
def test_any_bytes_end_in_one_line(tmp_path_factory, head, rest):
    path = tmp_path_factory.getbasetemp() / "bytes.pth"
    path.write_bytes(head + rest)
    with contextlib.suppress(UserError):
        read_checkpoint(path).weights()
