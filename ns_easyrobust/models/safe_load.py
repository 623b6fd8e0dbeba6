"""Reading a checkpoint file such that nothing in it can run code.

The kind of a file is recognised by its content, not its name: a web page saved as ``.pth``,
a truncated download and a pickle that would run code are each reported as what they are.
"""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import CheckpointError

_GET_AGAIN = "Copy or download it again."
_numpy_scalar = np.float64(0).__reduce__()[0]

# What a pickle may refer to beyond torch's own allow-list. timm stores its argparse.Namespace in each
# training checkpoint; a metric may be a numpy scalar, whose constructor moved in numpy 2.
ALLOWED_GLOBALS: list[Any] = [
    argparse.Namespace,
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
    (_numpy_scalar, "numpy.core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(code)) for code in "?bhilqBHILQefd"},
]


def read_file(path: Path, name: str) -> tuple[str, dict[str, Any]]:
    """Read a checkpoint of any form.

    Args:
        path: the file.
        name: what errors call it (its URL or path).

    Returns:
        The form, ``torch``, ``safetensors`` or ``npz``, and the content: for npz numpy
        arrays by JAX name, else the file's dict, with its tensors on the CPU.

    Raises:
        CheckpointError: missing, empty, a web page, a git-lfs pointer, damaged, or a
            pickle that refers to anything but tensors and plain values.
    """
    head = _first_bytes(path, name)
    if not head:
        raise CheckpointError(f"{name}: expected a checkpoint, found an empty file. {_GET_AGAIN}")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise CheckpointError(
            f"{name}: expected a checkpoint, found a web page (HTML), such as an error or login page. "
            "Get the file from its direct address."
        )
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{name}: expected a checkpoint, found a git-lfs pointer. Run: git lfs pull")
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") < 1 << 30:
        return "safetensors", _read_safetensors(path, name)
    if _is_npz(path):
        return "npz", _read_npz(path, name)
    return "torch", _read_torch(path, name)


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
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # not a zip archive: read_file reports what it is
        unknown = []
    stand_ins: list[Any] = [(type("LeftOut", (_LeftOut,), {}), class_name) for class_name in unknown]
    with torch.serialization.safe_globals(stand_ins):
        return read_file(path, name)[1]


def _first_bytes(path: Path, name: str) -> bytes:
    if path.is_dir():
        raise CheckpointError(f"{name}: expected a checkpoint file, found a folder. Name the file in it.")
    try:
        with open(path, "rb") as stream:
            return stream.read(256)
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint at {name}: expected a file, found none. Check the path.") from error
    except OSError as error:
        raise CheckpointError(
            f"{name}: expected a readable file, found {error.strerror}. Check its permissions."
        ) from error


def _damaged_error(name: str, reason: object) -> CheckpointError:
    return CheckpointError(
        f"{name}: expected a whole checkpoint, found a damaged or foreign file ({reason}). {_GET_AGAIN}"
    )


def _read_torch(path: Path, name: str) -> dict[str, Any]:
    if tuple(int(number) for number in torch.__version__.split(".")[:2]) < (2, 6):
        raise CheckpointError(
            f"{name}: expected torch 2.6 or newer, whose weights_only loading runs no code (CVE-2025-32434), "
            f"found {torch.__version__}. Update torch."
        )
    try:
        with torch.serialization.safe_globals(ALLOWED_GLOBALS):
            content = torch.load(path, map_location="cpu", weights_only=True)
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
        reason = "no PyTorch file" if junk else text.split("\n")[0][:120]
        raise _damaged_error(name, reason or type(error).__name__) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{name}: expected a dict of weights, found {type(content).__name__}. Save model.state_dict()."
        )
    return dict(content)


def _read_safetensors(path: Path, name: str) -> dict[str, Any]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(f"{name}: expected the safetensors package. Run: pip install safetensors") from error
    try:
        return dict(load_file(path, device="cpu"))
    except Exception as error:  # safetensors' own error class is not public in all versions
        raise _damaged_error(name, error) from error


def _is_npz(path: Path) -> bool:
    """Whether the file is a zip archive of ``.npy`` members alone; torch's files are zip archives too."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False
    return bool(names) and all(member.endswith(".npy") for member in names)


def _read_npz(path: Path, name: str) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise CheckpointError(
                f"{name}: expected arrays of numbers, found Python objects in the .npz, which were not "
                "loaded: they could run any code. Save plain arrays."
            ) from error
        raise _damaged_error(name, error) from error
    except Exception as error:  # zlib, zipfile and numpy each raise their own
        raise _damaged_error(name, error) from error
