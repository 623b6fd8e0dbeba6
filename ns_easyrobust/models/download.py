"""Downloading checkpoints: once per URL, cached under a name that no other URL shares."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import re
import shutil
import sys
import urllib.request
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tqdm import tqdm

from ..errors import CheckpointError, OptionError
from ..utils import sha256_of, torch

_logger = logging.getLogger(__name__)
_TIMEOUT = 60.0  # seconds without data after which a download counts as failed


def is_url(source: str | Path) -> bool:
    """Whether ``source`` is a URL (``scheme://...``) and not a path."""
    return "://" in str(source)


def cache_path(url: str) -> Path:
    """Where ``url`` is cached: in torch's hub folder, named by a hash of the whole URL and its basename.

    The hash is needed because EasyRobust names each of its files ``model_best.pth.tar``:
    by basename alone, a second URL would silently give the first one's file.
    """
    name = re.sub(r"[^\w.-]", "_", unquote(urlsplit(url).path).rsplit("/", 1)[-1])[-100:]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    return folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name or 'checkpoint'}"


def fetch(url: str, *, sha256: str | None = None) -> Path:
    """The local file for ``url``, downloaded unless it is cached; a ``file:`` URL is read in place.

    Args:
        url: http, https or file.
        sha256: the file's SHA-256 (64 hexadecimal digits); any other file is refused.

    Raises:
        CheckpointError: unknown scheme, failed download, or a different checksum (the cached
            file is then removed).
        OptionError: ``sha256`` is not 64 hexadecimal digits.
    """
    scheme = urlsplit(url).scheme
    if scheme == "file":
        path = Path(urllib.request.url2pathname(urlsplit(url).path))
        check_sha256(path, sha256)
        return path
    if scheme not in ("http", "https"):
        raise CheckpointError(f"{url}: expected a http, https or file address, found {scheme}. Download it by hand.")
    path = cache_path(url)
    if path.exists():
        _logger.info("%s: taken from the cache, %s", url, path)
    else:
        _download(url, path)
    try:
        check_sha256(path, sha256)
    except CheckpointError as error:
        path.unlink()
        raise CheckpointError(f"{error} (The downloaded copy of {url} was removed.)") from error
    return path


def check_sha256(path: Path, expected: str | None) -> None:
    """Refuse a file whose SHA-256 is not ``expected``; None accepts any.

    Raises:
        OptionError: ``expected`` is not 64 hexadecimal digits.
        CheckpointError: the file has another SHA-256, or does not exist.
    """
    if expected is None:
        return
    if not re.fullmatch(r"[0-9a-fA-F]{64}", expected):
        raise OptionError(f"sha256: expected 64 hexadecimal digits, found {expected!r}. Give the whole checksum.")
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}: expected a file, found none. Check the path.")
    if (actual := sha256_of(path)) != expected.lower():
        raise CheckpointError(
            f"{path} is another file: expected SHA-256 {expected.lower()}, found {actual}. "
            "Check the checksum, or get the file again."
        )


def _download(url: str, path: Path) -> None:
    """Download ``url`` to a temporary file and rename it, so that no partial file ever has the cached name."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        request = urllib.request.Request(url, headers={"User-Agent": "ns-easyrobust"})
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response, open(temporary, "wb") as stream:
            length = response.headers.get("Content-Length")
            total = int(length) if length else None
            hidden = not sys.stderr.isatty()
            with tqdm.wrapattr(stream, "write", total=total, desc=path.name, disable=hidden) as counted_stream:
                shutil.copyfileobj(response, counted_stream, 1 << 20)
        if total is not None and (received := temporary.stat().st_size) != total:
            raise OSError(f"connection closed after {received} of {total} bytes")
        os.replace(temporary, path)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise CheckpointError(
            f"cannot download {url}: expected a file, found {_reason(error)}. "
            f"Check the address and the network, and that {path.parent} can be written."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _reason(error: Any) -> str:
    """The exception that urllib wrapped, or the error itself, as in ``HTTPError: HTTP Error 404: Not Found``."""
    reason = getattr(error, "reason", None)
    return str(reason) if isinstance(reason, Exception) else f"{type(error).__name__}: {error}"
