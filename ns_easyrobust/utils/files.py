"""Atomic writes, run folders that are never overwritten, and checksums."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import secrets
import signal
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ..errors import OutputError, is_full_memory
from .lazy import torch

# Earlier versions put a process's number where the 32 random digits are now.
_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{32}|\d+)\.tmp", re.DOTALL)


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
    except ValueError as error:
        if "null byte" not in str(error):
            raise
        raise OutputError(f"cannot write {path}: a name with a NUL character. Choose another.") from error


def write_atomically(path: str | Path, write: Callable[[Path], object], *, sync: bool = True) -> Path:
    """Call ``write(temporary)``, sync that file to disk, rename it to ``path`` and return ``path``.

    A crash at any moment leaves either the old file or the new one, never a partial one. The temporary file is new and
    has a name that nobody can guess, so that no link laid in its way is followed. Without ``sync``, which is much
    faster for many files, that does not hold for a power failure, after which the file may be empty.

    Raises:
        OutputError: the folder is missing, not writable, or the disk is full, or something other than a regular file
            has that name.
    """
    return write_together({Path(path): write}, sync=sync)[0]


def write_together(writes: Mapping[Path, Callable[[Path], object]], *, sync: bool = True) -> list[Path]:
    """:func:`write_atomically` of several files, by path: all of them are replaced or, if one cannot be written, none.

    Raises:
        OutputError: as :func:`write_atomically`.
    """
    temporaries: dict[Path, Path] = {}
    try:
        for path, write in writes.items():
            temporary = path.with_name(_temporary_name(path.name))
            with os_errors_as_output_errors(path):
                require_regular(path)
                os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
                temporaries[path] = temporary
                try:
                    write(temporary)
                except RuntimeError as error:  # torch.save reports a failed write as a RuntimeError
                    if is_full_memory(error):
                        raise
                    if isinstance(error.__context__, OSError):
                        raise error.__context__ from None
                    raise OSError(None, (str(error).splitlines() or ["failed"])[0]) from error
                if sync:
                    with open(temporary, "rb+") as stream:
                        os.fsync(stream.fileno())
        with _interrupts_deferred():  # not between two of the files
            for path, temporary in temporaries.items():
                with os_errors_as_output_errors(path):
                    os.replace(temporary, path)
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)
    return list(writes)


def require_replaceable(path: str | Path) -> None:
    """Raise the OutputError with which :func:`write_atomically` would end, before hours of work; make the folder."""
    path = Path(path)
    with os_errors_as_output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        require_regular(path)


def require_regular(path: Path) -> None:
    """Raise OSError if ``path`` is a folder, a pipe or a device (``/dev/null``); it may also not exist yet."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:  # also a link that leads nowhere
        return
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"expected a regular file or none, found a {_kind(mode)}")


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "folder"
    return "pipe" if stat.S_ISFIFO(mode) else "device or socket"


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM take effect after the body; only the main thread may, and need, do that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        for each, handler in handlers.items():
            if handler is not None:  # None: not set from Python, so it could not be set again
                signal.signal(each, lambda number, frame: arrived.append(number))
        yield
    finally:
        for each, handler in handlers.items():
            if handler is not None:
                signal.signal(each, handler)
        for number in arrived:
            signal.raise_signal(number)


def open_regular(path: str | Path) -> io.BufferedReader:
    """Open a file for reading, and nothing that never ends or waits for a writer, as devices and pipes do.

    Raises:
        OSError: there is none, it cannot be opened, or it is no regular file; ``strerror`` says what was found.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe without a writer would block
    except ValueError as error:
        raise OSError(errno.EINVAL, "a name with a NUL character", str(path)) from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, f"a {_kind(mode)}", str(path))
    return open(descriptor, "rb")


def read_bounded(path: str | Path, most: int) -> bytes:
    """The bytes of a regular file, at most ``most`` of them.

    Raises:
        OSError: as :func:`open_regular`, or it has more bytes.
    """
    with open_regular(path) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than {most} bytes")
    return content


def _temporary_name(name: str) -> str:
    """A new hidden name; of ``name`` as much as leaves it within the 255 bytes of most file systems."""
    start = name.encode("utf-8", "surrogateescape")[:200].decode("utf-8", "ignore")
    return f".{start}.{secrets.token_hex(16)}.tmp"


def remove_temporaries(folder: Path, name: str = "*") -> None:
    """Delete what killed processes left of :func:`write_atomically` for the files ``name`` (a pattern) in ``folder``.

    Call it only while no other process can write them, as under a :class:`~ns_easyrobust.utils.locks.FileLock`
    that is held.
    """
    for path in folder.glob(f".{name}.tmp"):
        if _TEMPORARY.fullmatch(path.name) and not path.is_dir():
            path.unlink(missing_ok=True)


def save_tensors(path: str | Path, content: object) -> Path:
    """``torch.save`` of ``content``, atomically; equal contents give equal files.

    Given a path instead of a stream, torch would write the temporary's name into the archive.

    Raises:
        OutputError: the folder is missing, not writable, or the disk is full.
    """

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as stream:
            torch.save(content, stream)

    return write_atomically(path, write)


def write_text(path: str | Path, text: str) -> Path:
    """Write ``text`` as UTF-8, atomically; what UTF-8 cannot hold (a byte of a path that is no UTF-8) as an escape."""
    return write_atomically(path, lambda temporary: temporary.write_bytes(as_utf8(text)))


def as_utf8(text: str) -> bytes:
    """``text`` in UTF-8, half surrogate pairs (bytes of a path that is no UTF-8) as escapes such as ``\\udcff``."""
    return text.encode("utf-8", "backslashreplace")


def new_run_folder(path: str | Path, marks: tuple[str, ...]) -> Path:
    """Create the folder ``path``, or accept an existing one that holds none of the files ``marks``.

    Raises:
        OutputError: it already holds a run (one of the file names in ``marks``), or
            cannot be created.
    """
    path = Path(path)
    with os_errors_as_output_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        present = [name for name in marks if os.path.lexists(path / name)]  # a link that leads nowhere too
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
