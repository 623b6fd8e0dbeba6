"""What a folder of corrupted images depends on, and the file in it that says so: corrupt.json."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..errors import OptionError, OutputError
from ..utils import parse_json, read_bounded, write_text
from .corruptions import FrostPictures
from .listing import list_folder
from .transforms import Preprocessing

REVISION = 1  # of the corruptions; one that gives other pixels is another
CORRUPT_FORMATS = {"jpeg": ".jpg", "png": ".png"}
_NAME = "corrupt.json"
_LONGEST = 64 * 2**20  # bytes
_LIBRARIES = ("numpy", "scipy", "opencv-python-headless", "opencv-python", "pillow")
_WHOLE = "none: images keep their sizes"
_DECIDING = ("revision", "seed", "crop", "format", "quality", "frost", "frost_sha256", "images", "images_sha256")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CorruptSettings:
    """What the files of a folder of corrupted images depend on, besides the images.

    Attributes:
        seed: of everything random, together with an image's path, the corruption and the severity.
        size: side of the centre crop that is corrupted, after the shorter side has been resized to ``size`` /
            ``crop_pct`` (ImageNet-C: 224); None: the whole image at its own size.
        crop_pct: of ``size``.
        format: "jpeg" or "png".
        quality: of JPEG (ImageNet-C: 85).
        pictures: of frost; None: the published ones where the package imagecorruptions is, else drawn ones.
        preprocessing: what ``size`` and ``crop_pct`` stand for; None where images keep their size.

    Raises:
        OptionError: a setting is outside its range.
    """

    seed: int = 0
    size: int | None = None
    crop_pct: float = 0.875
    format: str = "jpeg"
    quality: int = 85
    pictures: FrostPictures | None = None
    preprocessing: Preprocessing | None = field(init=False)

    def __post_init__(self) -> None:
        if self.seed < 0 or self.format not in CORRUPT_FORMATS or not 1 <= self.quality <= 95:
            raise OptionError(
                f"corrupt: expected a seed of at least 0, a format of {', '.join(CORRUPT_FORMATS)} and a JPEG quality "
                f"from 1 to 95, found {self.seed}, {self.format!r} and {self.quality}."
            )
        of_size = None if self.size is None else Preprocessing(self.size, self.crop_pct, "bilinear")
        object.__setattr__(self, "preprocessing", of_size)


class CorruptRecord:
    """The file ``corrupt.json`` of one folder: what is in the folder, and whether more of it may be added.

    Args:
        target: the folder, which need not exist.
        source: the folder of the images.
        images: their paths in ``source``.
        settings: what else the files depend on.
        pictures: of frost; None if no frost is to be made.

    Attributes:
        skipped: images that were left out when the file was written.
        libraries: the versions of libraries that made the folder's files: more than one set of them if they changed.
    """

    def __init__(
        self,
        target: Path,
        source: Path,
        images: Sequence[str],
        settings: CorruptSettings,
        pictures: FrostPictures | None,
    ) -> None:
        self.target, self.source, self.skipped = target, source, set[str]()
        self.libraries: list[Any] = []
        self.contents: dict[str, Any] = {
            "made_by": "ns-easyrobust corrupt",
            "revision": REVISION,
            "seed": settings.seed,
            "crop": str(settings.preprocessing or _WHOLE),
            "format": settings.format,
            "quality": settings.quality if settings.format == "jpeg" else None,
            "frost": pictures and pictures.origin,
            "frost_sha256": pictures and pictures.sha256,
            "source": str(source.absolute()),
            "images": len(images),
            "images_sha256": _digest(source, images),
        }

    def require_fitting(self) -> None:
        """Compare with what is in the folder, and take over what is known of it.

        Raises:
            OutputError: the folder was made otherwise, or holds what was not made by this program.
        """
        before = self._read()
        if before is None:
            return
        for name in ("frost", "frost_sha256"):
            if self.contents[name] is None or before.get(name) is None:  # no frost until now, or none to be added
                self.contents[name] = before[name] = self.contents[name] or before.get(name)
        for name in _DECIDING:
            if (known := before.get(name)) != (asked := self.contents[name]):
                if name == "images_sha256":
                    known, asked, name = "other paths or sizes of files", f"those of {self.source}", "images"
                raise OutputError(
                    f"{self.target}: expected the settings and images that it was made with, found {name} {asked} "
                    f"where {_NAME} says {known}. Give it the same, or choose another folder."
                )
        libraries = before.get("libraries")
        self.libraries = libraries if isinstance(libraries, list) else [libraries] if libraries else []
        skipped = before.get("skipped")
        self.skipped = {str(image) for image in skipped} if isinstance(skipped, list) else set()

    def write(self, skipped: Collection[str], *, more: bool) -> None:
        """Write the file, before ``more`` files are made or not. Raises OutputError if it cannot be written."""
        if more and (today := _versions()) not in self.libraries:
            self.libraries.append(today)
        if more and len(self.libraries) > 1:
            _logger.warning("%s: made with different libraries, pixels may differ: %s", self.target, self.libraries)
        contents = {**self.contents, "libraries": self.libraries, "skipped": sorted(skipped)}
        write_text(self.target / _NAME, json.dumps(contents, indent=2) + "\n")

    def _read(self) -> dict[str, Any] | None:
        path = self.target / _NAME
        try:
            before = parse_json(read_bounded(path, _LONGEST))
            if not isinstance(before, dict):
                raise ValueError("no settings")
        except FileNotFoundError:
            if self.target.exists() and any(list_folder(self.target)):
                raise OutputError(
                    f"{self.target}: expected a new or empty folder, or one with a {_NAME}, found one that something "
                    "else has made. Choose another."
                ) from None
            return None
        except (OSError, ValueError) as error:
            raise OutputError(
                f"{path}: expected the settings that the folder was made with, found: {error}. Choose another folder."
            ) from error
        return before


def holds_whole_images(root: str | Path) -> bool:
    """Whether ``ns-easyrobust corrupt`` made the folder ``root`` from whole images, not cropped as ImageNet-C's are."""
    return _contents(root).get("crop") == _WHOLE


def images_made(root: str | Path) -> int | None:
    """How many images ``ns-easyrobust corrupt`` puts into each folder of ``root``; None where it did not make it."""
    images, skipped = _contents(root).get("images"), _contents(root).get("skipped")
    return images - len(skipped) if isinstance(images, int) and isinstance(skipped, list) else None


def _contents(root: str | Path) -> dict[str, Any]:
    """What ``corrupt.json`` in ``root`` says; nothing where there is none that can be read."""
    try:
        contents = parse_json(read_bounded(Path(root) / _NAME, _LONGEST))
    except (OSError, ValueError):
        return {}
    return contents if isinstance(contents, dict) else {}


def _digest(source: Path, images: Sequence[str]) -> str:
    """SHA-256 (hex) of the images' paths and of their files' sizes."""
    digest = sha256()
    for image in images:
        try:
            size = os.stat(f"{source}/{image}").st_size
        except OSError:  # whoever opens it says so
            size = -1
        digest.update(os.fsencode(f"{image}\0{size}\0"))
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # there is one OpenCV of two
            continue
    return versions
