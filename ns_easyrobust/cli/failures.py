"""What the system fails at: files, memory, data workers that it kills. Each is one line, not a traceback."""

from __future__ import annotations

import os
import re
import select
import sys

from ..errors import is_full_memory, printable, without_secrets

_WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: (\w+)|exited unexpectedly)"
)


def failure_of_system(error: Exception) -> str | None:
    """The line for an error that is the system's doing, not a fault of this program; None for all others."""
    if is_full_memory(error):
        return "memory is full: expected more of it. Lower --batch-size or --workers, or free some."
    if isinstance(error, RecursionError):
        return "expected values nested less deeply in the files or flags that it was given, found too many levels."
    if isinstance(error, OSError):
        return _of_files(error)
    return worker_failure(error)


def worker_failure(error: BaseException | None) -> str | None:
    """The line for data workers that the system kills or that may open no more files, as PyTorch says; else None."""
    while error is not None:
        if isinstance(error, RuntimeError) and "Too many open files" in str(error):
            return "data workers: expected to open files, found too many open. Lower --workers, or raise `ulimit -n`."
        if isinstance(error, RuntimeError) and (found := _WORKER.search(str(error))):
            how = f"killed by the system ({found[2]})" if found[2] else "gone"
            return (
                f"data worker {found[1].strip()}: expected it to read images, found it {how}, as when memory is full. "
                "Lower --workers or --batch-size, or free memory."
            )
        error = error.__cause__ or error.__context__
    return None


def _of_files(error: OSError) -> str | None:
    if error.errno is None:
        return None  # not from the operating system
    names = (error.filename, error.filename2)
    where = " and ".join(os.fsdecode(name) for name in names if isinstance(name, str | bytes | os.PathLike))
    reason = error.strerror or os.strerror(error.errno)
    line = f"{where or 'a file or stream'}: expected to read or write it, found: {reason}. Check its path and its disk."
    return printable(without_secrets(line))


def stdout_failed(error: Exception) -> bool:
    """Whether ``error`` comes from a pipe behind stdout that nobody reads any more, not from another pipe."""
    try:
        poll = select.poll()
        poll.register(sys.stdout, 0)
        return isinstance(error, BrokenPipeError) and any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, TypeError, ValueError):  # no poll on this system, no stream, or no file
        return False
