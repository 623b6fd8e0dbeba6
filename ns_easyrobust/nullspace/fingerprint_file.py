"""Fingerprints as files: safetensors, with what they are of in the header; nothing in them can run code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..utils import open_regular, parse_json, read_bounded, torch, write_atomically
from .fingerprint import Fingerprint

FORMAT = "ns_easyrobust.fingerprint/1"
_MOST_BYTES = 2**28  # of a file: a basis of 4096 directions in R^16384
_ORTHONORMAL = 1e-4  # float32 leaves about 1e-6 of orthonormal rows


def save_fingerprint(path: str | Path, found: Fingerprint, versions: dict[str, str] | None = None) -> Path:
    """Write ``found`` atomically: both matrices in float32, with format, name, digest, k, n, patch size and std.

    float32 turns no direction by more than about 1e-7, and equal fingerprints give equal files.

    Raises:
        OutputError: the file cannot be written; an existing one is then untouched.
    """
    from safetensors.torch import save

    told = {
        "format": FORMAT,
        "name": found.name,
        "weight_sha256": found.digest,
        "k": str(found.rank),
        "n": str(found.input_dim),
        "patch_size": str(found.patch_size),
        "space": "normalised",  # of the basis; with std, that of pixels follows
        "std": "" if found.std is None else " ".join(map(repr, found.std)),
        **(versions or {}),
    }
    content = save({name: getattr(found, name).float().contiguous() for name in ("basis", "strengths")}, told)
    content = _with_sorted_header(content)
    return write_atomically(path, lambda temporary: temporary.write_bytes(content))


def _with_sorted_header(content: bytes) -> bytes:
    """A safetensors file whose header, which the library writes in a random order, is in that of the names."""
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def load_fingerprint(path: str | Path) -> Fingerprint | None:
    """Read a file of :func:`save_fingerprint`; None of any other file, such as a checkpoint.

    Raises:
        ModelError: it says that it is a fingerprint, and is damaged or of another version.
    """
    told = _header(path)
    if told is None or not str(told.get("format", "")).startswith("ns_easyrobust.fingerprint/"):
        return None
    if told["format"] != FORMAT:
        raise ModelError(f"{path}: expected {FORMAT}, found {told['format']!r:.80}. Make the fingerprint again.")
    from safetensors.torch import load

    try:
        content = load(read_bounded(path, _MOST_BYTES))
        basis, strengths = (content[name].double() for name in ("basis", "strengths"))
        std = tuple(float(word) for word in told["std"].split()) or None
        patch_size = int(told["patch_size"])
        k, n = basis.shape
        unit = torch.eye(k, dtype=torch.float64)
        is_basis = 0 < k < n and patch_size > 0 and n % patch_size**2 == 0
        if not (is_basis and float((basis @ basis.T - unit).abs().max()) < _ORTHONORMAL):
            raise ValueError("rows that are no orthonormal basis of patches")
        is_plain = strengths.ndim == 2 and strengths.shape[1] == n and bool(torch.isfinite(strengths).all())
        if not is_plain or not bool(strengths.any()):
            raise ValueError(f"strengths of shape {tuple(strengths.shape)}")
        if std is not None and (len(std) * patch_size**2 != n or not all(0 < value < 2 for value in std)):
            raise ValueError(f"std {std}")
    except Exception as error:  # safetensors' own error class is not public in all versions
        raise ModelError(
            f"{path}: expected a whole fingerprint, found a damaged one ({error!s:.120}). Make it again."
        ) from error
    orthonormal = torch.linalg.qr(basis.T).Q.T  # of float32's rows, in float64
    return Fingerprint(
        orthonormal, strengths, patch_size, std, str(told.get("weight_sha256", "")), str(told.get("name", ""))
    )


def _header(path: str | Path) -> dict[str, Any] | None:
    """The metadata of a safetensors file; None of a file of another form, or that cannot be read."""
    try:
        with open_regular(path) as stream:
            size = int.from_bytes(stream.read(8), "little")
            if not 2 <= size <= 2**20:
                return None
            content = parse_json(stream.read(size).decode())
    except (OSError, ValueError):
        return None
    told = content.get("__metadata__") if isinstance(content, dict) else None
    return told if isinstance(told, dict) else None
