"""Zip archives that others wrote (PyTorch's checkpoints, numpy's ``.npz``): read whole, in bounded time and memory."""

from __future__ import annotations

import errno
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import IO

from .files import open_regular
from .lazy import np

_MOST_MEMBERS = 50_000
_MOST_DIRECTORY = 16 << 20  # bytes of the archive's own list of members
_MOST_EXPANSION = 20  # bytes that a byte of the file may become; numpy's arrays of weights stay under 2 ...
_FREE_EXPANSION = 256 << 20  # ... while short arrays, such as bits and names, may be packed more tightly
_BLOCK = 1 << 20
# What zipfile, its decompressors and numpy raise on files that are not what they should be.
_DAMAGES = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RecursionError,
    RuntimeError,
    SyntaxError,
    TypeError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def is_archive(head: bytes) -> bool:
    """Whether a file that begins with ``head`` is a zip archive to PyTorch and numpy."""
    return head.startswith(b"PK\x03\x04")


def check_archive(path: Path) -> list[zipfile.ZipInfo]:
    """The members of a zip archive, whose sizes are reasonable and whose bytes agree with their checksums.

    An archive without any checksum (all of them 0, as after ``torch.serialization.set_crc32_options(False)``) has
    none to disagree with.

    Raises:
        ValueError: damaged, encrypted, packed by other means than deflate, with a name twice, or with more members or
            more bytes, once unpacked, than an honest file of that size has.
        OSError: it cannot be opened or read.
    """
    with open_regular(path) as stream, _damage_as_value_error():
        _require_small_directory(stream)
        with zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
            _require_reasonable(members, os.fstat(stream.fileno()).st_size)
            if any(member.CRC for member in members):
                for member in members:
                    with archive.open(member) as content:
                        while content.read(_BLOCK):
                            pass
    return members


def read_member(stream: IO[bytes], member: zipfile.ZipInfo) -> bytes:
    """The bytes of a member that :func:`check_archive` returned, of the archive open as ``stream``.

    Raises:
        ValueError: they cannot be unpacked.
    """
    unchecked = copy(member)
    del unchecked.CRC  # compared by check_archive; zipfile would take a 0 that stands for none for a wrong one
    with _damage_as_value_error(), zipfile.ZipFile(stream) as archive:
        return archive.read(unchecked)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a ``.npz``, by name, after :func:`check_archive`.

    Raises:
        ValueError: no such archive, damaged, or with Python objects, which are not unpickled ("allow_pickle" is then
            in the message).
        OSError: it cannot be opened or read.
    """
    with open_regular(path) as stream:
        if not is_archive(stream.read(4)):
            raise ValueError("no .npz archive")
    check_archive(path)
    with _damage_as_value_error(), np.load(path, allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    for name, array in found.items():
        if not isinstance(array, np.ndarray):  # numpy gives the bytes of what it does not know
            raise ValueError(f"{name[:100]} is no array")
    return found


@contextmanager
def _damage_as_value_error() -> Iterator[None]:
    try:
        yield
    except (*_DAMAGES, OSError) as error:
        if isinstance(error, OSError) and error.errno == errno.EINVAL:
            raise ValueError("a place outside of the file") from error
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(str(error).split("\n")[0][:200] or type(error).__name__) from error


def _require_small_directory(stream: IO[bytes]) -> None:
    """Refuse a list of members so long that reading it would already take long; leaves the stream anywhere."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - 76 - 22 - 65535))  # zip64's records, the last record, the longest comment behind it
    tail = stream.read()
    place = tail.rfind(b"PK\x05\x06")
    length = struct.unpack_from("<L", tail, place + 12)[0] if 0 <= place <= len(tail) - 22 else 0
    if place >= 76 and tail[place - 20 :].startswith(b"PK\x06\x07"):  # where sizes need 8 bytes
        length = struct.unpack_from("<Q", tail, place - 76 + 40)[0]
    if length > _MOST_DIRECTORY:
        raise ValueError(f"a list of members of {length} bytes")


def _require_reasonable(members: list[zipfile.ZipInfo], size: int) -> None:
    """Refuse what would unpack to far more than the file's ``size`` in bytes, before anything is unpacked."""
    if len(members) > _MOST_MEMBERS:
        raise ValueError(f"{len(members)} members, more than {_MOST_MEMBERS}")
    if len({member.filename for member in members}) < len(members):
        raise ValueError("a member that is there twice")
    for member in members:
        if member.flag_bits & 1:
            raise ValueError(f"{member.filename[:100]} is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{member.filename[:100]} is packed by method {member.compress_type}")
        if member.compress_type == zipfile.ZIP_STORED and member.file_size != member.compress_size:
            raise ValueError(f"{member.filename[:100]} has two sizes")
    unpacked = sum(member.file_size for member in members)
    if unpacked > max(_FREE_EXPANSION, _MOST_EXPANSION * size):
        raise ValueError(f"{size} bytes that would unpack to {unpacked}")
