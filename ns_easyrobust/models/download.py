"""Downloading checkpoints: once per URL, cached under a name that no other URL shares."""

from __future__ import annotations

import base64
import hashlib
import http.client
import logging
import os
import re
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from tqdm import tqdm

from ..errors import CheckpointError, OptionError, OutputError, without_secrets
from ..utils import FileLock, as_utf8, open_regular, os_errors_as_output_errors, sha256_of, torch, write_atomically

_logger = logging.getLogger(__name__)
_TIMEOUT = 60.0  # seconds without data after which a download counts as failed
# What a killed download left, and the hash of its URL; earlier versions ended its name in .part.
_LEFTOVER = re.compile(r"\.([0-9a-f]{16})-.+\.[0-9a-f]{32}\.(tmp|part)", re.DOTALL)


def is_url(source: str | Path) -> bool:
    """Whether ``source`` is a URL (``scheme://...`` or ``file:/...``) and not a path."""
    return "://" in str(source) or re.match("file:/", str(source), re.IGNORECASE) is not None


def cache_path(url: str) -> Path:
    """Where ``url`` is cached: in torch's hub folder, named by a hash of the whole URL and its basename.

    The hash is needed because EasyRobust names each of its files ``model_best.pth.tar``:
    by basename alone, a second URL would silently give the first one's file.
    """
    name = re.sub(r"[^\w.-]", "_", unquote(urlsplit(url).path).rsplit("/", 1)[-1])[-100:]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    return folder / f"{hashlib.sha256(as_utf8(url)).hexdigest()[:16]}-{name or 'checkpoint'}"


def local_path(source: str) -> Path | None:
    """The file that a path or a ``file:`` URL names, with ``~`` expanded; None for what must be downloaded.

    Raises:
        CheckpointError: a ``file:`` URL of another machine, or an address that is none or of another scheme.
    """
    if not is_url(source):
        return Path(os.path.expanduser(source))
    try:
        parts = urlsplit(source)
    except ValueError as error:
        raise CheckpointError(f"{source}: expected an address, found {error}. Check it.") from error
    if parts.scheme == "file" and parts.netloc.lower() not in ("", "localhost"):
        raise CheckpointError(f"{source}: expected a file of this machine, file:///..., found {parts.netloc}'s.")
    if parts.scheme not in ("http", "https", "file"):
        raise CheckpointError(
            f"{source}: expected a http, https or file address, found {parts.scheme}. Download it by hand."
        )
    return Path(urllib.request.url2pathname(parts.path)) if parts.scheme == "file" else None


def fetch(source: str, *, sha256: str | None = None) -> Path:
    """The local file for a path or URL, downloaded unless it is cached; a ``file:`` URL is read in place.

    Of several processes that want the same URL, one downloads it and the others wait for it.

    Args:
        source: a path, or a http, https or file URL. A user and password in it (``https://me:secret@...``) are sent to
            that server alone.
        sha256: the file's SHA-256 (64 hexadecimal digits); any other file is refused.

    Raises:
        CheckpointError: unknown scheme, failed download, or a different checksum (the cached
            file is then removed).
        OptionError: ``sha256`` is not 64 hexadecimal digits.
        OutputError: the cache cannot be written.
    """
    if (path := local_path(source)) is not None:
        check_sha256(path, sha256)
        return path
    path = cache_path(source)
    if path.exists():
        _logger.info("%s: taken from the cache, %s", without_secrets(source), path)
    else:
        _download_once(source, path)
    try:
        check_sha256(path, sha256)
    except CheckpointError as error:
        forget(source)
        removed = "" if path.exists() else f" (The downloaded copy of {source} was removed.)"
        raise CheckpointError(f"{error}{removed}") from error
    return path


def forget(source: str) -> None:
    """Remove the cached copy of a http or https URL, if there is one; nothing else is ever removed."""
    if local_path(source) is None and (path := cache_path(source)).exists():
        with suppress(OutputError, OSError), _locked(path):  # a cache that others own and that cannot be written
            path.unlink(missing_ok=True)


def check_sha256(path: Path, expected: str | None) -> None:
    """Refuse a file whose SHA-256 is not ``expected``; None accepts any.

    Raises:
        OptionError: ``expected`` is not 64 hexadecimal digits.
        CheckpointError: the file has another SHA-256, does not exist, or cannot be read.
    """
    if expected is None:
        return
    if not re.fullmatch(r"[0-9a-fA-F]{64}", expected):
        raise OptionError(f"sha256: expected 64 hexadecimal digits, found {expected!r}. Give the whole checksum.")
    with opened(path, str(path)):
        actual = sha256_of(path)
    if actual != expected.lower():
        raise CheckpointError(
            f"{path} is another file: expected SHA-256 {expected.lower()}, found {actual}. "
            "Check the checksum, or get the file again."
        )


@contextmanager
def opened(path: Path, name: str) -> Iterator[IO[bytes]]:
    """The open checkpoint file ``path``, which errors call ``name``; not a folder, a pipe or a device.

    Raises:
        CheckpointError: whatever the system says against it, on opening or while it is read.
    """
    try:
        stream = open_regular(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint at {name}: expected a file, found none. Check the path.") from error
    except IsADirectoryError as error:
        raise CheckpointError(f"{name}: expected a checkpoint file, found a folder. Name the file in it.") from error
    except OSError as error:
        raise CheckpointError(
            f"{name}: expected a readable file, found {error.strerror}. Check the path and its permissions."
        ) from error
    with stream:
        try:
            yield stream
        except OSError as error:
            raise CheckpointError(
                f"{name}: expected a readable file, found {error.strerror or error}. Check the disk."
            ) from error


@contextmanager
def _locked(path: Path) -> Iterator[FileLock]:
    """Hold the lock on the cached file ``path``, after whoever has it."""
    lock = path.with_name(f".{path.name[:16]}.lock")
    try:
        with FileLock(lock, "this download") as held:
            yield held
            return
    except OutputError as error:
        if not isinstance(error.__cause__, BlockingIOError):
            raise
        _logger.info("%s: waiting for another process that downloads it", path)
    with FileLock(lock, "this download", wait=True) as held:
        yield held


def _download_once(url: str, path: Path) -> None:
    with os_errors_as_output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path) as lock:
        _remove_leftovers(path.parent, lock)
        if not path.exists():  # another process may just have downloaded it
            _download(url, path)


def _remove_leftovers(folder: Path, own: FileLock) -> None:
    """Delete what killed downloads of any URL have left, except where another process is at work."""
    for leftover in folder.glob(".*"):
        if found := _LEFTOVER.fullmatch(leftover.name):
            path = folder / f".{found[1]}.lock"
            taken = nullcontext(own) if path == own.path else FileLock(path, "that download")
            with suppress(OutputError, OSError), taken as lock:
                if lock.is_held:
                    leftover.unlink(missing_ok=True)


def _download(url: str, path: Path) -> None:
    """Download ``url`` to a temporary file and rename it, so that no partial file ever has the cached name."""

    def write(temporary: Path) -> None:
        try:
            with urllib.request.urlopen(_request(url), timeout=_TIMEOUT) as response, open(temporary, "wb") as stream:
                length = response.headers.get("Content-Length")
                total = int(length) if length else None
                hidden = not sys.stderr.isatty()
                with tqdm.wrapattr(stream, "write", total=total, desc=path.name, disable=hidden) as counted_stream:
                    shutil.copyfileobj(response, counted_stream, 1 << 20)
            if total is not None and (received := temporary.stat().st_size) != total:
                raise OSError(f"connection closed after {received} of {total} bytes")
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise CheckpointError(
                f"cannot download {url}: expected a file, found {_reason(error)}. "
                f"Check the address and the network, and that {path.parent} can be written."
            ) from error

    write_atomically(path, write)


def _request(url: str) -> urllib.request.Request:
    """The request for ``url``; what stands before its ``@`` becomes a header, which urllib sends to no other server."""
    parts = urlsplit(url)
    credentials, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(urlunsplit(parts._replace(netloc=host)), headers={"User-Agent": "ns-easyrobust"})
    if credentials:
        encoded = base64.b64encode(unquote(credentials).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {encoded}")
    return request


def _reason(error: Any) -> str:
    """The exception that urllib wrapped, or the error itself, as in ``HTTPError: HTTP Error 404: Not Found``."""
    reason = getattr(error, "reason", None)
    return str(reason) if isinstance(reason, Exception) else f"{type(error).__name__}: {error}"
