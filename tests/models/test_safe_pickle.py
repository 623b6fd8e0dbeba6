"""Pickles that would take long or fill the memory are told before they are read."""

import argparse
import io
import pickle
from collections import OrderedDict

import pytest
import torch
from helpers.checkpoints import make_model

from ns_easyrobust.models.safe_pickle import check_legacy_pickles, check_pickle


def doubled(kind: bytes, times: int) -> bytes:
    """A value of 2 ** times leaves, and what takes it from the stack into a dict."""
    one = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + kind for i in range(times))
    return b"\x80\x02}K\x01" + one + b"K\x01s."


def test_values_of_every_kind_pass():
    optimizer = torch.optim.AdamW(make_model().parameters())
    content = {
        "state": OrderedDict((f"blocks.{i}.weight", [1.0, None, b"x" * 300, "y" * 300]) for i in range(1000)),
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=0.1, betas=(0.9, 0.999), names={"a", "b"}),
        "shared": [["a"] * 100] * 100,
        10**300: 2**128,
    }
    for protocol in range(6):
        stream = io.BytesIO(pickle.dumps(content, protocol) + b"rest")
        check_pickle(stream)
        assert stream.read() == b"rest"


def test_bytes_that_can_change_pass():
    """Protocol 5 has an instruction of its own for them; torch then refuses it."""
    check_pickle(io.BytesIO(pickle.dumps({"a": bytearray(b"x"), "b": bytearray(300)}, 5)))


def test_small_doublings_pass_and_great_ones_do_not():
    check_pickle(io.BytesIO(doubled(b"\x86", 10)))
    with pytest.raises(ValueError, match="hold one another too often"):
        check_pickle(io.BytesIO(doubled(b"\x86", 40)))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"\x80\x02K\x01" + b"\x85" * 1000 + b".", "nested too deeply"),
        (b"\x80\x02cbuiltins\nbytearray\nK\x08\x85R.", r"builtins\.bytearray, which no weights need"),
        (b"\x80\x02X\x00\x00\x00\x10abc.", "no PyTorch file"),
        (b"\x80\x02q\x01.", "takes what is not there"),
        (b"\x80\x02h\x01.", "takes what is not there"),
        (b"\x80\x02s.", "takes what is not there"),
        (b"\x80\x02t.", "takes what is not there"),
        (b"\xff", "no PyTorch file"),
        (b"c" + b"x" * 100_000, "no PyTorch file"),
        (pickle.dumps(1 << 9000, 2), "a number of 9001 bits"),
    ],
)
def test_what_is_refused(data, match):
    with pytest.raises(ValueError, match=match):
        check_pickle(io.BytesIO(data))


def test_all_pickles_of_an_old_file_are_looked_at():
    good = pickle.dumps(1, 2)
    check_legacy_pickles(io.BytesIO(good))
    check_legacy_pickles(io.BytesIO(good * 5 + b"numbers"))
    for place in range(5):
        with pytest.raises(ValueError, match="hold one another too often"):
            check_legacy_pickles(io.BytesIO(good * place + doubled(b"\x86", 40)))
