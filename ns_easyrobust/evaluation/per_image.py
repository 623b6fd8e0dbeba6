"""Per-image correctness (bits): one bit per image with its relative path, in a file beside the records."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError, OptionError
from ..utils import (
    FileLock,
    np,
    os_errors_as_output_errors,
    rank,
    read_arrays,
    remove_temporaries,
    torch,
    write_atomically,
)


def _checked_paths(paths: Sequence[str]) -> list[str]:
    """``paths`` as a list; OptionError unless there are some, distinct and relative."""
    paths = [str(path) for path in paths]
    repeated = len(paths) - len(set(paths))
    invalid = [path for path in paths if not path or path.startswith("/") or "\0" in path]
    if invalid:
        found = repr(invalid[0])
    elif repeated:
        found = f"{repeated} repeated"
    elif not paths:
        found = "none"
    else:
        return paths
    raise OptionError(
        f"image paths: expected distinct paths relative to the data folder, found {found}. "
        "Give each image once, as n01440764/ILSVRC2012_val_00000293.JPEG."
    )


def _encoded(paths: Sequence[str]) -> bytes:
    return "\0".join(paths).encode("utf-8", "surrogateescape")  # the error handler with which Python decodes file names


def images_digest(paths: Sequence[str]) -> str:
    """SHA-256 of the sorted relative paths: equal if and only if two runs used the same paths.

    Raises:
        OptionError: a path is absolute or repeated, or there is none.
    """
    return hashlib.sha256(_encoded(sorted(_checked_paths(paths)))).hexdigest()


def save_correctness(folder: str | Path, key: str, paths: Sequence[str], right: torch.Tensor | np.ndarray) -> str:
    """Save which images were classified correctly, one bit per image; only rank 0 writes.

    The file's name contains a hash of its content, so the bits of an earlier record are never overwritten.

    Args:
        folder: the results file's folder; the bits go to ``right/`` in it.
        key: the readable beginning of the file's name, e.g. "vit_b-fgsm".
        paths: n distinct paths relative to the data folder.
        right: (n,) booleans in the same order.

    Returns:
        The file's name relative to ``folder``, for :attr:`Record.right`.

    Raises:
        OptionError: ``right`` is not n booleans, or paths are absolute, repeated or missing.
        OutputError: the folder cannot be written.
    """
    paths = _checked_paths(paths)
    bits = right.detach().cpu().numpy() if isinstance(right, torch.Tensor) else np.asarray(right)
    if bits.dtype != np.bool_ or bits.shape != (len(paths),):
        raise OptionError(
            f"right: expected {len(paths)} booleans, one a path, found {bits.dtype} of shape {bits.shape}. "
            "Give predictions == labels."
        )
    # Paths as bytes: numpy's text arrays take four bytes per character, and its object arrays need pickle.
    encoded = np.frombuffer(_encoded(paths), np.uint8)
    packed = np.packbits(bits)
    digest = hashlib.sha256(encoded.tobytes() + packed.tobytes()).hexdigest()[:12]
    name = f"right/{re.sub(r'[^A-Za-z0-9._-]+', '_', key).strip('._')[:100] or 'images'}-{digest}.npz"
    if rank() == 0:
        path = Path(folder) / name

        def write(temporary: Path) -> None:
            with open(temporary, "wb") as stream:  # given a path, numpy would append .npz to it
                np.savez_compressed(stream, paths=encoded, right=packed, n=np.int64(len(paths)))

        with os_errors_as_output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.parent / ".lock", "the per-image results", wait=True) as lock:
                if lock.is_held:
                    remove_temporaries(path.parent)  # of killed processes; the others wait
                write_atomically(path, write)
    return name


def load_correctness(path: str | Path) -> tuple[list[str], np.ndarray]:
    """The n relative paths and the (n,) booleans that :func:`save_correctness` saved.

    Raises:
        DataError: the file is missing or damaged, or holds something else.
    """
    try:
        stored = read_arrays(Path(path))
        encoded, packed, n = (stored[name] for name in ("paths", "right", "n"))
        paths = encoded.tobytes().decode("utf-8", "surrogateescape").split("\0")
        fits = packed.dtype == np.uint8 and packed.shape == ((len(paths) + 7) // 8,)
        if not fits or n.shape != () or int(n) != len(paths):
            raise ValueError(f"bits of shape {packed.shape} and n={n} for {len(paths)} paths")
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"cannot read {path}: expected the per-image bits of a record (.npz), found: {reason}. "
            "Measure that record again."
        ) from error
    right = np.unpackbits(packed, count=len(paths)).astype(bool)
    return paths, right
