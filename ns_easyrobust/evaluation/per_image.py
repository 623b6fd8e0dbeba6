"""Which images were right: one bit an image, keyed by its relative path, in a file beside the records."""

from __future__ import annotations

import hashlib
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..errors import DataError, OptionError
from ..utils.distributed import rank
from ..utils.files import one_line_for_os_errors, write_atomically

# What numpy and zipfile raise over damaged files.
_DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RuntimeError,
    zlib.error,
    zipfile.BadZipFile,
)


def _checked_paths(paths: Sequence[str]) -> list[str]:
    """``paths`` as a list, if they are distinct and relative."""
    paths = [str(path) for path in paths]
    twice = len(paths) - len(set(paths))
    strange = [path for path in paths if not path or path.startswith("/") or "\0" in path]
    if not paths or twice or strange:
        found = f"{strange[0]!r}" if strange else f"{twice} repeated" if twice else "none"
        raise OptionError(
            f"image paths: expected distinct paths relative to the data folder, found {found}. "
            "Give each image once, as n01440764/ILSVRC2012_val_00000293.JPEG."
        )
    return paths


def _joined(paths: Sequence[str]) -> bytes:
    return "\0".join(paths).encode("utf-8", "surrogateescape")  # as file names come from the system


def images_digest(paths: Sequence[str]) -> str:
    """SHA-256 over the sorted relative paths: equal if and only if two runs saw the same images.

    Raises:
        OptionError: a path is absolute or occurs twice, or there is none.
    """
    return hashlib.sha256(_joined(sorted(_checked_paths(paths)))).hexdigest()


def save_right(folder: str | Path, key: str, paths: Sequence[str], right: torch.Tensor | np.ndarray) -> str:
    """Keep which images were right, one bit an image; rank 0 writes.

    The name carries a hash of the content, so the bits of an earlier record are never overwritten.

    Args:
        folder: where the results file lies; the bits go to ``right/`` in it.
        key: the readable part of the file's name, as "vit_b-fgsm".
        paths: (n,) distinct paths relative to the data folder.
        right: (n,) booleans in the same order.

    Returns:
        The file's name relative to ``folder``, for :attr:`Record.right`.

    Raises:
        OptionError: other lengths or types, or paths that are absolute or repeated.
        OutputError: the folder cannot be written.
    """
    paths = _checked_paths(paths)
    bits = right.detach().cpu().numpy() if isinstance(right, torch.Tensor) else np.asarray(right)
    if bits.dtype != np.bool_ or bits.shape != (len(paths),):
        raise OptionError(
            f"right: expected {len(paths)} booleans, one a path, found {bits.dtype} of shape {bits.shape}. "
            "Give predictions == labels."
        )
    # Names as bytes: numpy's text arrays take four bytes a character, its object arrays need pickle.
    names = np.frombuffer(_joined(paths), np.uint8)
    packed = np.packbits(bits)
    digest = hashlib.sha256(names.tobytes() + packed.tobytes()).hexdigest()[:12]
    name = f"right/{re.sub(r'[^A-Za-z0-9._-]+', '_', key).strip('._')[:100] or 'images'}-{digest}.npz"
    if rank() == 0:
        path = Path(folder) / name
        with one_line_for_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)

        def write(temporary: Path) -> None:
            with open(temporary, "wb") as stream:  # given a name, numpy would append .npz to it
                np.savez_compressed(stream, paths=names, right=packed, n=np.int64(len(paths)))

        write_atomically(path, write)
    return name


def load_right(path: str | Path) -> tuple[list[str], np.ndarray]:
    """The n relative paths and the (n,) booleans that :func:`save_right` kept.

    Raises:
        DataError: no such file, or it holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            names, packed, n = stored["paths"].tobytes(), stored["right"], int(stored["n"])
        paths = names.decode("utf-8", "surrogateescape").split("\0")
        right = np.unpackbits(packed, count=n).astype(bool)
        if len(paths) != n or len(right) != n:
            raise ValueError(f"{len(paths)} paths for {n} images")
    except _DAMAGED as error:
        raise DataError(
            f"cannot read {path}: expected the per-image bits of a record (.npz), found: {error}. "
            "Measure that record again."
        ) from error
    return paths, right
