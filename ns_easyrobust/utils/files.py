"""Atomic writes, run folders that are never overwritten, and checksums."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import OutputError


@contextmanager
def os_errors_as_output_errors(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` while writing ``path`` into a one-line :class:`OutputError`."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}. "
            "Nothing was overwritten; choose a writable folder with free space."
        ) from error


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Call ``write(temporary)``, sync that file to disk, rename it to ``path`` and return ``path``.

    A crash at any moment leaves either the old file or the new one, never a partial one.

    Raises:
        OutputError: the folder is missing, not writable, or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with os_errors_as_output_errors(path):
        try:
            write(temporary)
            with open(temporary, "rb+") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except RuntimeError as error:  # torch.save reports a failed write as a RuntimeError
            raise OSError(None, str(error).splitlines()[0]) from error
        finally:
            temporary.unlink(missing_ok=True)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write ``text`` as UTF-8, atomically."""
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def new_run_folder(path: str | Path, marks: tuple[str, ...]) -> Path:
    """Create the folder ``path``, or accept an existing one that holds none of the files ``marks``.

    Raises:
        OutputError: it already holds a run (one of the file names in ``marks``), or
            cannot be created.
    """
    path = Path(path)
    with os_errors_as_output_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        present = [name for name in marks if (path / name).exists()]
    if present:
        raise OutputError(
            f"{path} already holds a run: expected an empty or new folder, found {present[0]}. "
            "Choose another --experiment or --output, move the old run away, or go on with it by --resume auto."
        )
    return path


def sha256_of(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
