"""Locks between processes, which the kernel releases when their holder dies, ``kill -9`` included."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from types import TracebackType

from ..errors import OutputError
from .files import os_errors_as_output_errors

_logger = logging.getLogger(__name__)
_held: set[int] = set()  # open lock files of this process


def _close_in_child() -> None:
    """A forked data worker shares its parent's lock files: left open, they would outlive the parent."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):  # Windows has neither fork nor fcntl
    os.register_at_fork(after_in_child=_close_in_child)


class FileLock:
    """A lock on ``path``, a small file that names its holder; it is there as long as the lock is held.

    Args:
        path: the lock's file; its folder must exist.
        purpose: what the lock is for, as the error names it.
        wait: wait for the holder instead of raising.

    Raises:
        OutputError: on entering, if another process holds it, named by host and process number, or if the file cannot
            be made. Where the file system has no locks, a warning is logged and there is no lock.

    Example:
        >>> with FileLock(folder / ".lock", "this run"):
        ...     print((folder / ".lock").read_text())
        process 4711 on mybox
    """

    def __init__(self, path: Path, purpose: str, wait: bool = False) -> None:
        self.path, self.purpose, self.wait = path, purpose, wait
        self._descriptor: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this process holds the lock; False outside of ``with``, and where the file system has no locks."""
        return self._descriptor is not None

    def __enter__(self) -> FileLock:
        with os_errors_as_output_errors(self.path):
            while not self._try_to_hold():
                pass
        return self

    def _try_to_hold(self) -> bool:
        """Lock the file; False if its holder removed it in between, so that another file must be locked."""
        try:
            import fcntl
        except ImportError:
            _logger.warning("%s: no lock on this system; start no second process there", self.path)
            return True
        # Not a link that someone laid here, and not kept open by a program that this process starts.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(self.path, flags, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if self.wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise OutputError(
                f"{self.path.parent}: expected nobody else at work on {self.purpose}, found {holder}. "
                "Wait for it or stop it before you try again."
            ) from error
        except OSError as error:
            os.close(descriptor)
            self.path.unlink(missing_ok=True)
            _logger.warning(
                "%s: this file system has no locks (%s); start no second process there", self.path, error.strerror
            )
            return True
        try:
            is_current = os.path.samestat(os.fstat(descriptor), os.stat(self.path, follow_symlinks=False))
        except FileNotFoundError:
            is_current = False
        if not is_current:
            os.close(descriptor)
            return False
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except OSError:  # a full disk
            self.path.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        _held.add(descriptor)
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor in _held:  # not in a forked child, which has closed it
            self.path.unlink(missing_ok=True)  # while it is locked: whoever waits for it takes a new file
            _held.remove(self._descriptor)
            os.close(self._descriptor)
        self._descriptor = None
