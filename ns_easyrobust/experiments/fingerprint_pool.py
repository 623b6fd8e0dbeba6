"""A folder of models of known origin: those that are claimed, those derived from them, and independent ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import nullspace
from ..errors import DataError
from ..utils import sha256_of
from .fingerprints import fingerprint_files, read_fingerprint, split_ending

if TYPE_CHECKING:
    from ..nullspace import Fingerprint

LAYOUT = "claimed/NAME.*, derived/KIND/NAME/*, independent/RECIPE/*"


@dataclass(frozen=True)
class Member:
    """One model of the folder.

    Attributes:
        path: its file.
        name: its path in the folder, by which lines know it.
        group: ``claimed``, ``derived`` or ``independent``.
        kind: what was done to it (``finetuned``), or the recipe it was trained by.
        origin: name of the claimed model that it is derived from; "" of others.
        found: its fingerprint.
    """

    path: Path
    name: str
    group: str
    kind: str
    origin: str
    found: Fingerprint


@dataclass(frozen=True)
class Pool:
    """All models of the folder, each patch embedding once among the independent ones."""

    claimed: Sequence[Member]
    derived: Sequence[Member]
    independent: Sequence[Member]

    @property
    def members(self) -> list[Member]:
        return [*self.claimed, *self.derived, *self.independent]

    @property
    def digest(self) -> str:
        """SHA-256 of the names and contents of all files, as accuracies are of whole models."""
        told = "".join(f"{each.name} {sha256_of(each.path)}\n" for each in self.members)
        return hashlib.sha256(told.encode()).hexdigest()


def open_pool(root: Path, ema: bool = False) -> Pool:
    """Read all fingerprints.

    Args:
        root: has ``claimed/NAME.*``, ``derived/KIND/NAME/*`` and ``independent/RECIPE/*``; the last two may be deeper.
            NAME is that of a claimed model's file without the endings of checkpoints.
        ema: take the moving averages of checkpoints.

    Raises:
        DataError: one of these folders is missing or empty, two claimed models of one name, or a derived model of no
            claimed one.
        ModelError, CheckpointError: a file without a fingerprint, or of other patches than the first.
    """
    if missing := next((name for name in ("claimed", "derived", "independent") if not (root / name).is_dir()), None):
        raise DataError(f"{root}: expected folders {LAYOUT}, found no {missing}. Make it.")
    named: dict[str, Path] = {}
    for path in fingerprint_files(root / "claimed"):
        name = split_ending(path)[0]
        if name in named:
            raise DataError(f"{path}: expected one claimed model called {name}, found {named[name]} too. Rename one.")
        named[name] = path
    claimed = [_member(root, path, "claimed", name, "", ema) for name, path in named.items()]
    names = set(named)
    derived = []
    for path in fingerprint_files(root / "derived"):
        kind, *rest = path.relative_to(root / "derived").parts
        if len(rest) < 2 or rest[0] not in names:
            raise DataError(
                f"{path}: expected derived/KIND/NAME/*, where NAME is one of {', '.join(sorted(names))[:200]} "
                "(claimed/NAME.*), found another place. Move it."
            )
        derived.append(_member(root, path, "derived", kind, rest[0], ema))
    independent, seen = [], set()
    for path in fingerprint_files(root / "independent"):
        recipe, *rest = path.relative_to(root / "independent").parts
        one = _member(root, path, "independent", recipe if rest else "independent", "", ema)
        if one.found.digest not in seen:
            seen.add(one.found.digest)
            independent.append(one)
    if len(independent) < 4:
        raise DataError(f"{root / 'independent'}: expected 4 models or more, found {len(independent)}. Train others.")
    pool = Pool(claimed, derived, independent)
    nullspace.common_space([each.found for each in pool.members])
    return pool


def _member(root: Path, path: Path, group: str, kind: str, origin: str, ema: bool) -> Member:
    name = path.relative_to(root).as_posix()
    return Member(path, name, group, kind, origin, read_fingerprint(path, ema=ema))
