"""Checkpoint and noise files that are damaged, or made to take a reader's time, memory or trust."""

from __future__ import annotations

import argparse
import functools
import io
import pickle
import random
import struct
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def saved(content: Any, **options: Any) -> bytes:
    """What ``torch.save`` writes."""
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def archive(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as written:
        for name, content in members.items():
            written.writestr(name, content)
    return stream.getvalue()


def torch_file(data: bytes) -> bytes:
    """A file that ``torch.load`` takes for its own, around a pickle."""
    return archive({"archive/data.pkl": data, "archive/byteorder": b"little", "archive/version": b"3\n"})


def rezipped(content: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    """The same members, written anew: with other dates, without torch's padding, or packed."""
    with zipfile.ZipFile(io.BytesIO(content)) as whole:
        return archive({name: whole.read(name) for name in whole.namelist()}, method)


def rewritten(content: bytes, change: Callable[[zipfile.ZipInfo], None]) -> bytes:
    """The archive's list of members after ``change`` of each; the members themselves as they are."""
    stream = io.BytesIO(content)
    with zipfile.ZipFile(stream, "a") as whole:
        for member in whole.infolist():
            change(member)
        whole._didModify = True
    return stream.getvalue()


def _set(name: str, value: int) -> Callable[[zipfile.ZipInfo], None]:
    return lambda member: setattr(member, name, value)


class Calls:
    """Is pickled as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def _pairs(kind: bytes, times: int) -> bytes:
    """Instructions for a value of 2 ** times leaves: a tuple (``\\x86``) of one tuple twice, and so on."""
    return b"K\x01" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + kind for i in range(times))


@functools.cache
def hostile_files(large: bool = False) -> dict[str, bytes]:
    """Files by what is wrong with them; each must end in one line within seconds and some hundred megabytes.

    Those whose name begins with ``ok`` are good ones that look odd. ``large``: also some that take seconds to make.
    """
    weights = {"cls_token": torch.ones(1, 1, 4), "head.weight": torch.rand(2, 4)}
    whole = saved({"state_dict": weights})
    lists: Any = [1]
    tuples: Any = (1,)
    for _ in range(60):
        lists, tuples = [lists, lists], (tuples, tuples)
    loop: list[Any] = []
    loop.append(loop)
    packed = io.BytesIO()
    np.savez_compressed(packed, a=np.zeros(1 << 20, np.uint8))
    npy = io.BytesIO()
    np.save(npy, np.zeros(3))
    many = io.BytesIO()
    np.savez(many, **{"embedding/kernel": np.zeros(3)})
    long_list = pickle.dumps(list(range(100_000)), 2)[:-1]
    files = {
        "expanded tensor": saved({"state_dict": {"a": torch.zeros(1).expand(1 << 33)}}),
        "expanded beyond numbers": saved({"state_dict": {"a": torch.zeros(1).expand(1 << 31, 1 << 31)}}),
        "expanded mean": saved({"a": torch.ones(1), "mean": torch.zeros(1).expand(1 << 33), "std": [1.0]}),
        "one tensor, often": saved({"state_dict": dict.fromkeys(map(str, range(3000)), torch.zeros(1 << 20))}),
        "expanded, legacy": saved({"a": torch.zeros(1).expand(1 << 33)}, _use_new_zipfile_serialization=False),
        "expanded integers": saved({"a": torch.zeros(1, dtype=torch.int8).expand(1 << 36)}),
        "lists of one list": saved({"state_dict": weights, "args": lists}),
        "tuples of one tuple": saved({"state_dict": weights, "args": argparse.Namespace(x=tuples)}),
        "lists of one list, in a namespace": saved({"state_dict": weights, "args": argparse.Namespace(x=lists)}),
        "a list that holds itself": saved({"state_dict": weights, "args": loop}),
        "tuples of one tuple as a key": torch_file(b"\x80\x02}" + _pairs(b"\x86", 100) + b"K\x01s."),
        "the same, legacy": pickle.dumps(0x1950A86A20F9469CFC6C, 2) + b"\x80\x02}" + _pairs(b"\x86", 100) + b"K\x01s.",
        "a deep tuple as a key": torch_file(b"\x80\x02}K\x01" + b"\x85" * 40_000 + b"K\x01s."),
        "a deep list": torch_file(b"\x80\x02" + b"]" * 40_000 + b"a" * 39_999 + b"."),
        "ten gigabytes of zeros": saved({"state_dict": weights, "x": Calls(bytearray, 10**10)}),
        "a numpy scalar of two gigabytes": saved(
            {"state_dict": weights, "x": Calls(np.float64(0).__reduce__()[0], np.dtype("V2147483647"))}
        ),
        "a tensor of forty gigabytes": saved({"state_dict": {"x": Calls(torch.FloatTensor, 10**10)}}),
        "a list, copied often": torch_file(
            long_list + b"q\x00cbuiltins\nset\nq\x01" + b"h\x01h\x00\x85R" * 20_000 + b"."
        ),
        "a number of a million digits": torch_file(b"\x80\x02\x8b" + struct.pack("<i", 500_000) + b"\x11" * 500_000),
        "a key that is a number of 6000 digits": saved({"state_dict": weights, 10**6000: 1}),
        "a string longer than the file": torch_file(b"\x80\x02X\xff\xff\xff\xff" + b"a" * 100 + b"."),
        "an npz that says it inflates": rewritten(packed.getvalue(), _set("file_size", 1 << 32)),
        "an npz of another size than it says": rewritten(rezipped(many.getvalue(), 8), _set("file_size", 1 << 33)),
        "a torch file with a lie about a size": rewritten(whole, _set("file_size", 1 << 40)),
        "a packed torch file with a lie about sizes": rewritten(rezipped(whole, 8), _set("file_size", 7)),
        "an encrypted archive": rewritten(whole, lambda member: setattr(member, "flag_bits", member.flag_bits | 1)),
        "an archive packed by lzma": rezipped(whole, zipfile.ZIP_LZMA),
        "an archive of archives": archive({f"{i}.npy": packed.getvalue() for i in range(3)}, 8),
        "an npy that says it is large": archive({"a.npy": npy.getvalue().replace(b"(3,), }  ", b"(3000000000,), }")}),
        "an npy of objects": archive({"a.npy": npy.getvalue().replace(b"<f8", b"|O ")}),
        "a safetensors file with a long list": struct.pack("<Q", 900_000_000) + b"{" + b" " * 1000,
        "a safetensors file that nests": struct.pack("<Q", 100_001) + b'{"a":' + b"[" * 99_996,
        "a member twice": _twice(whole),
        "a flipped bit": flipped(whole),
        "a flipped bit, packed": flipped(rezipped(whole, 8)),
        "a zeroed block": whole.replace(weights["head.weight"].numpy().tobytes(), bytes(32)),
        "a quantized tensor": saved({"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}),
        "a sparse tensor": saved({"a": torch.sparse_coo_tensor([[0]], [1.0], (1 << 40,), check_invariants=True)}),
        "a tensor without numbers": saved({"a": torch.ones(2, device="meta")}),
        "complex NaN": saved({"a": torch.tensor([complex(0, float("nan"))])}),
        "nothing": b"",
        "zeros": bytes(10_000),
        "ok: packed": rezipped(whole, zipfile.ZIP_DEFLATED),
        "ok: written anew": rezipped(whole),
        "ok: without checksums": rewritten(whole, _set("CRC", 0)),
        "ok: legacy": saved({"state_dict": weights}, _use_new_zipfile_serialization=False),
        "ok: half precision": saved({"state_dict": {name: value.half() for name, value in weights.items()}}),
    }
    if large:
        zeros = b"\0" * (1 << 29)
        files["a torch file that inflates"] = archive({"a/data.pkl": pickle.dumps({}, 2), "a/data/0": zeros}, 8)
        files["an npz that inflates"] = archive({f"{i}.npy": zeros for i in range(8)}, 8)
        files["a hundred thousand members"] = archive({f"{i}.npy": b"" for i in range(100_000)})
        files["ten million instructions"] = torch_file(b"\x80\x02" + b"K\x010" * 5_000_000 + b"}.")
        files["twenty thousand tensors"] = saved({str(i): torch.zeros(1) for i in range(20_000)})
    return files


def _twice(content: bytes) -> bytes:
    stream = io.BytesIO(content)
    with zipfile.ZipFile(stream, "a") as whole:
        name = next(name for name in whole.namelist() if name.endswith("data/0"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole.writestr(name, whole.read(name))
    return stream.getvalue()


def flipped(content: bytes, inside: str = "/data/") -> bytes:
    """One bit turned over in the last member with ``inside`` in its name, by default the last tensor."""
    with zipfile.ZipFile(io.BytesIO(content)) as whole:
        member = max((m for m in whole.infolist() if inside in m.filename), key=lambda m: m.filename)
    name_length, extra_length = struct.unpack_from("<HH", content, member.header_offset + 26)
    place = member.header_offset + 30 + name_length + extra_length + member.compress_size // 2
    return content[:place] + bytes([content[place] ^ 0x40]) + content[place + 1 :]


def mutated(rng: random.Random, content: bytes) -> bytes:
    """``content`` with some bytes changed, cut out, doubled or put in, as disks, networks and people do."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        size = len(data)
        place, length = rng.randrange(size + 1), rng.choice((1, 1, 4, 64, 4096))
        what = rng.randrange(7)
        if what == 0 and place < size:
            data[place] ^= 1 << rng.randrange(8)
        elif what == 1:
            data[place : place + length] = bytes(len(data[place : place + length]))
        elif what == 2:
            del data[place : place + length]
        elif what == 3:
            data[place:place] = data[place : place + length]
        elif what == 4:
            data[place:place] = rng.randbytes(length)
        elif what == 5:
            data[place : place + length] = rng.randbytes(len(data[place : place + length]))
        elif what == 6 and rng.random() < 0.3:
            del data[place:]
    return bytes(data)
