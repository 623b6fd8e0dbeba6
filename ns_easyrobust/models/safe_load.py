"""Reading a checkpoint file such that nothing in it can run code.

The kind of a file is recognised by its content, not its name: a web page saved as ``.pth``,
a truncated download and a pickle that would run code are each reported as what they are.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from ..errors import CheckpointError
from ..utils import check_archive, is_archive, read_arrays, read_member, require_bounded
from .download import opened
from .safe_pickle import check_legacy_pickles, check_pickle

_GET_AGAIN = "Copy or download it again."
_MOST_HEADER = 16 << 20  # bytes of a safetensors file's list of tensors
_MOST_PICKLE = 256 << 20  # bytes of what is not tensors
_MOST_VALUES = 1_000_000
_FREE_TENSORS = 64 << 20  # bytes; and tensors that share their numbers may have 4 times as many as are in the file
_numpy_scalar = np.float64(0).__reduce__()[0]


class DamagedFileError(CheckpointError):
    """A file that is not what its author wrote: cut off, changed, or something else in its place."""


def _checked_numpy_scalar(kind: np.dtype[Any], data: bytes) -> Any:
    """numpy's own function, which would otherwise make zeros of any size, or hand an object through."""
    if kind.hasobject or not isinstance(data, bytes) or len(data) != kind.itemsize:
        raise ValueError("a numpy scalar without its bytes")
    return _numpy_scalar(kind, data)


# What a pickle may refer to beyond torch's own allow-list. timm stores its argparse.Namespace in each
# training checkpoint; a metric may be a numpy scalar, whose constructor moved in numpy 2.
ALLOWED_GLOBALS: list[Any] = [
    argparse.Namespace,
    (_checked_numpy_scalar, "numpy._core.multiarray.scalar"),
    (_checked_numpy_scalar, "numpy.core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(code)) for code in "?bhilqBHILQefd"},
]


def read_file(path: Path, name: str) -> tuple[str, dict[str, Any]]:
    """Read a checkpoint of any form, in time and memory that are bounded by the file's size.

    The checksums of a zip archive, which ``torch.load`` ignores, are compared; an archive without any has none, nor has
    a file of PyTorch before 1.6 or of safetensors.

    Args:
        path: the file.
        name: what errors call it (its URL or path).

    Returns:
        The form, ``torch``, ``safetensors`` or ``npz``, and the content: for npz numpy
        arrays by JAX name, else the file's dict, with its tensors on the CPU.

    Raises:
        DamagedFileError: empty, a web page, a git-lfs pointer, damaged, or with sizes that no checkpoint has.
        CheckpointError: missing, no regular file, or a pickle that refers to anything but tensors and plain values.
    """
    return _read_file(path, name, leave_out_objects=False)


def _read_file(path: Path, name: str, leave_out_objects: bool) -> tuple[str, dict[str, Any]]:
    with opened(path, name) as stream:
        size = os.fstat(stream.fileno()).st_size
        head = stream.read(256)
        stream.seek(0)
        if not head:
            raise DamagedFileError(f"{name}: expected a checkpoint, found an empty file. {_GET_AGAIN}")
        if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
            raise DamagedFileError(
                f"{name}: expected a checkpoint, found a web page (HTML), such as an error or login page. "
                "Get the file from its direct address."
            )
        if head.startswith(b"version https://git-lfs"):
            raise DamagedFileError(f"{name}: expected a checkpoint, found a git-lfs pointer. Run: git lfs pull")
        if head[8:9] == b"{" and 2 <= (header := int.from_bytes(head[:8], "little")) < 1 << 30:
            if header > _MOST_HEADER:
                raise _damaged_error(name, f"a list of tensors of {header} bytes")
            return "safetensors", _read_safetensors(path, name)
        try:
            members = check_archive(path) if is_archive(head) else []
            if members and all(member.filename.endswith(".npy") for member in members):
                return "npz", read_arrays(path)
            _check_pickles(stream, members)
        except ValueError as error:
            raise _refused_content(name, error) from error
        content = _read_torch(stream, name, _stand_ins(stream) if leave_out_objects else [])
    try:
        require_bounded(content, _MOST_VALUES)
        _require_bounded_tensors(content, max(size, sum(member.file_size for member in members)))
    except ValueError as error:
        raise _damaged_error(name, error) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{name}: expected a dict of weights, found {type(content).__name__}. Save model.state_dict()."
        )
    return "torch", dict(content)


class _LeftOut:
    """Stand-in for an object whose class is not looked up; discards whatever the pickle passes to it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_without_objects(path: Path, name: str) -> dict[str, Any]:
    """The content from :func:`read_file`, with objects of unknown classes left out instead of refused.

    Lightning's checkpoints hold their callbacks beside the weights. Their classes are never looked
    up: torch's weights-only reader gets an empty stand-in class for each name.
    """
    return _read_file(path, name, leave_out_objects=True)[1]


def _stand_ins(stream: IO[bytes]) -> list[Any]:
    """An empty class for each name in the pickle that is not allowed; leaves the stream at its beginning."""
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(stream)
    except Exception:  # not a zip archive: reading it says what it is
        unknown = []
    stream.seek(0)
    return [(type("LeftOut", (_LeftOut,), {}), class_name) for class_name in unknown]


def _check_pickles(stream: IO[bytes], members: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse pickles that would take too long or too much memory; leaves the stream at its beginning."""
    if not members:
        check_legacy_pickles(stream)
    pickles = [member for member in members if member.filename.rsplit("/", 1)[-1] == "data.pkl"]
    if len(pickles) > 1:
        raise ValueError(f"{len(pickles)} of data.pkl")
    for member in pickles:
        if member.file_size > _MOST_PICKLE:
            raise ValueError(f"{member.filename[:100]} of {member.file_size} bytes")
        check_pickle(io.BytesIO(read_member(stream, member)))
    stream.seek(0)


def _require_bounded_tensors(content: Any, size: int) -> None:
    """Refuse tensors with more numbers than the file holds, which an expanded tensor shows and each use would make.

    Args:
        content: nested values, bounded in number.
        size: the file's bytes, unpacked.

    Raises:
        ValueError: tensors of over 4 times as many bytes.
    """
    waiting, total = [content], 0
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [*value, *value.values()]
        elif isinstance(value, list | tuple | set):
            waiting += value
        elif isinstance(value, argparse.Namespace):
            waiting.append(vars(value))
        elif isinstance(value, torch.Tensor) and value.layout is torch.strided and not value.is_meta:
            total += value.numel() * value.element_size()
    if total > _FREE_TENSORS + 4 * size:
        raise ValueError(f"tensors of {total} bytes in a file of {size}")


def _damaged_error(name: str, reason: object) -> DamagedFileError:
    return DamagedFileError(
        f"{name}: expected a whole checkpoint, found a damaged or foreign file ({reason}). {_GET_AGAIN}"
    )


def _refused_content(name: str, error: ValueError) -> CheckpointError:
    if "allow_pickle" in str(error):
        return CheckpointError(
            f"{name}: expected arrays of numbers, found Python objects in the .npz, which were not "
            "loaded: they could run any code. Save plain arrays."
        )
    return _damaged_error(name, error)


@contextmanager
def _allowing(names: Sequence[Any]) -> Iterator[None]:
    """``torch.serialization.safe_globals``, except that what was allowed before stays so afterwards."""
    before = torch.serialization.get_safe_globals()
    with torch.serialization.safe_globals([name for name in names if name not in before]):
        yield


def _read_torch(stream: IO[bytes], name: str, stand_ins: Sequence[Any]) -> Any:
    if tuple(int(number) for number in torch.__version__.split(".")[:2]) < (2, 6):
        raise CheckpointError(
            f"{name}: expected torch 2.6 or newer, whose weights_only loading runs no code (CVE-2025-32434), "
            f"found {torch.__version__}. Update torch."
        )
    try:
        with _allowing([*ALLOWED_GLOBALS, *stand_ins]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on foreign files torch warns before it raises
            return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # on arbitrary bytes the unpickler may raise anything, even KeyError
        text = str(error)
        if refused := re.search(r"GLOBAL (\S+)", text):
            raise CheckpointError(
                f"{name}: expected tensors and plain values, found the Python object {refused[1]}, which was "
                "not loaded: it could run any code. Ask its author for torch.save(model.state_dict(), ...)."
            ) from error
        if "TorchScript" in text:
            raise CheckpointError(
                f"{name}: expected a state dict, found a TorchScript program. "
                "Load it with torch.jit.load and save its state_dict()."
            ) from error
        # on a foreign file, torch's message is a page long and advises unsafe loading
        junk = text.startswith("Weights only") or isinstance(error, LookupError)
        reason = "no PyTorch file" if junk else text.split("\n")[0].split(". ")[0][:120]
        raise _damaged_error(name, reason or type(error).__name__) from error


def _read_safetensors(path: Path, name: str) -> dict[str, Any]:
    try:
        from safetensors.torch import load, load_file
    except ImportError as error:
        raise CheckpointError(f"{name}: expected the safetensors package. Run: pip install safetensors") from error
    try:
        if os.fsencode(path).decode("utf-8", "replace") != str(path):  # a name that the library refuses
            return dict(load(path.read_bytes()))
        return dict(load_file(path, device="cpu"))
    except Exception as error:  # safetensors' own error class is not public in all versions
        raise _damaged_error(name, error) from error
