"""Fingerprints from files: of checkpoints, whose architecture need not be known, or as ``fingerprint make`` writes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import models, nullspace
from ..errors import DataError
from .patch_rows import checkpoint_patch

if TYPE_CHECKING:
    from ..nullspace import Fingerprint, PatchCovariance

_ENDINGS = (".safetensors", ".pth", ".pth.tar", ".pt", ".bin", ".ckpt", ".npz")
_KNOWN = (".fingerprint.safetensors", *_ENDINGS)


def read_fingerprint(path: str | Path, *, ema: bool = False, std: Sequence[float] | None = None) -> Fingerprint:
    """The fingerprint in a file, or of the checkpoint that it is.

    Args:
        path: a fingerprint, or a checkpoint in any form or at any address that ``read_checkpoint`` takes.
        ema: take a checkpoint's moving average.
        std: of the normalisation of a checkpoint that tells of none, one number a channel or one for all.

    Raises:
        CheckpointError: unreadable, or no patch embedding of a single projection.
        ModelError: an empty nullspace, or a damaged fingerprint.
        OptionError: ``std`` out of range.
    """
    is_file = not models.is_url(str(path)) and os.path.isfile(path)
    if is_file and (found := nullspace.load_fingerprint(path)) is not None:
        return found
    patch = checkpoint_patch(path, ema=ema)
    own = patch.std
    if own is None and patch.checkpoint is not None:
        own = patch.checkpoint.description.std
    if own is None and std is not None:
        own = list(std) * patch.weight.shape[1] if len(std) == 1 else std
    return nullspace.fingerprint_of(patch.weight, std=own, name=str(path))


def fingerprint_files(place: str | Path) -> list[Path]:
    """A file itself; of a folder all files in it and its folders that are called as checkpoints are, sorted.

    Links to folders are followed, and each folder is read once.

    Raises:
        DataError: a folder without any.
    """
    place = Path(place)
    if not place.is_dir():
        return [place]
    found, visited = [], set()
    for folder, inner, names in os.walk(place, followlinks=True):  # as rglob does not
        if (real := os.path.realpath(folder)) in visited:  # a link may lead to a folder around it
            inner.clear()
            continue
        visited.add(real)
        inner.sort()  # so that it is always the same of two ways to a folder
        found += [Path(folder, name) for name in names if name.endswith(_ENDINGS)]
    if not found:
        raise DataError(f"{place}: expected fingerprints or checkpoints ({', '.join(_ENDINGS)}), found none in it.")
    return sorted(found)


def split_ending(path: str | Path) -> tuple[str, str]:
    """A file's name without the endings of checkpoints and fingerprints, and these: ``vit_v1.5``, ``.pth.tar``."""
    name = stem = Path(path).name
    while ending := next((each for each in _KNOWN if stem.endswith(each) and stem != each), ""):
        stem = stem.removesuffix(ending)
    return stem, name[len(stem) :]


def distinct(prints: Sequence[Fingerprint], others: Sequence[Fingerprint] = ()) -> list[Fingerprint]:
    """Each patch embedding once, and none of ``others``'."""
    seen = {each.digest for each in others}
    kept = []
    for each in prints:
        if each.digest not in seen:
            kept.append(each)
            seen.add(each.digest)
    return kept


def patch_covariance(folder: str | Path, patch_size: int, side: int, crop_pct: float, most: int) -> PatchCovariance:
    """The covariance of patches of at most ``most`` images, as :func:`~.image_set.open_image_set` draws them, seed 0.

    Raises:
        DataError: no class folders, an image that cannot be read, or too few patches.
        OptionError: images that are no multiple of the patches.
    """
    from ..data import Preprocessing
    from .image_set import open_image_set

    images = open_image_set(Path(folder), Preprocessing(side, crop_pct), most, 0, 0)
    return nullspace.PatchCovariance.of(images.pixels, patch_size)
