"""Folders of marked images: made of folders of photographs, and looked through for the mark."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, OutputError
from ..utils import FileLock, as_csv, os_errors_as_output_errors, parse_json, read_bounded, torch, write_text

if TYPE_CHECKING:
    from ..data import Preprocessing

    Scores = Callable[[torch.Tensor], torch.Tensor]

_RECORD = "watermark.json"
_LOCK = ".watermark.lock"


class MarkedFolder:
    """``target``, a folder for the marked images of the class folders of ``source``: its tree, and its files' names.

    Nothing in it is written anew: what is there already is left out, so that a second call goes on.

    Args:
        source: class folders, or a folder with such in val/.
        target: new, empty, or made so with the same ``settings``.
        image_format: of :data:`~ns_easyrobust.data.IMAGE_FORMATS`.
        settings: plain values that decide the files' content.

    Raises:
        DataError: ``source`` has no class folders, or two images of one name without its ending.
        OutputError: ``target`` holds other things, or lies in ``source``, or the other way round.
        OptionError: a format whose package is not installed.
    """

    def __init__(self, source: Path, target: Path, image_format: str, settings: Mapping[str, Any]) -> None:
        from ..data import IMAGE_FORMATS, open_image_folder, require_format

        require_format(image_format)
        self.target, self.format = target, image_format
        self.settings = parse_json(json.dumps({**settings, "format": image_format}))
        self.images = open_image_folder(source / "val" if os.path.isdir(source / "val") else source)
        own, other = (Path(os.path.realpath(path)) for path in (self.images.root, target))
        if own == other or own in other.parents or other in own.parents:
            raise OutputError(
                f"{target}: expected a folder apart from the images' own, found one that is, holds or lies in "
                f"{self.images.root}. Choose another."
            )
        paths = [Path(os.path.relpath(path, self.images.root)) for path, _ in self.images.samples]
        self.names = [path.with_suffix(IMAGE_FORMATS[image_format]) for path in paths]
        seen: dict[Path, Path] = {}
        for path, name in zip(paths, self.names, strict=True):
            if (first := seen.setdefault(name, path)) != path:
                raise DataError(f"{self.images.root}: expected one image for {name}, found {first} and {path}. Rename.")
        self._require_own()

    def _require_own(self) -> None:
        found = [name for name in sorted(os.listdir(self.target)) if name != _LOCK] if self.target.is_dir() else []
        if not found and (self.target.is_dir() or not os.path.lexists(self.target)):
            return
        try:
            before = parse_json(read_bounded(self.target / _RECORD, 2**20).decode())
        except (OSError, ValueError):
            before = None
        if before != self.settings:
            raise OutputError(
                f"{self.target}: expected a new or empty folder, or one of this mark, model and format, found "
                f"{'another mark, model or format' if before else 'other things'}. Choose another --marked-dir."
            )

    def write(self, marked: Callable[[torch.Tensor], torch.Tensor], preprocessing: Preprocessing, batch: int) -> int:
        """Write the images that are missing, as ``marked`` makes them of (B, 3, H, W); returns how many these were."""
        from tqdm.auto import tqdm

        from ..data import write_image

        with os_errors_as_output_errors(self.target):
            self.target.mkdir(parents=True, exist_ok=True)
        with FileLock(self.target / _LOCK, "this marking"):
            self._require_own()
            write_text(self.target / _RECORD, json.dumps(self.settings, indent=1) + "\n")
            missing = [number for number, name in enumerate(self.names) if not (self.target / name).is_file()]
            transform = preprocessing.transform()
            with tqdm(total=len(missing), desc="marked images", unit="image", disable=None) as bar:
                for start in range(0, len(missing), batch):
                    numbers = missing[start : start + batch]
                    pixels = torch.stack([transform(self.images.read(number)) for number in numbers])
                    for number, image in zip(numbers, marked(pixels), strict=True):
                        path = self.target / self.names[number]
                        with os_errors_as_output_errors(path):
                            path.parent.mkdir(parents=True, exist_ok=True)
                        write_image(path, image, self.format)
                    bar.update(len(numbers))
        return len(missing)


def search_folder(
    folder: Path, scores: Scores, threshold: float, preprocessing: Preprocessing, batch: int, csv: Path
) -> tuple[int, int]:
    """Look for the mark in all images below ``folder``, and write a CSV of path, score and verdict.

    Images of the mark's size are taken as they are, with all their bits; others as the model would see them.

    Returns:
        In how many it was found, and how many there are.

    Raises:
        DataError: there are none, or one cannot be read.
    """
    from tqdm.auto import tqdm

    from ..data import is_image, read_image, read_pixels

    side = preprocessing.size
    paths = sorted(
        Path(where, name) for where, _, names in os.walk(folder) for name in names
        if is_image(name) or (name.endswith(".npy") and not name.startswith("."))
    )  # fmt: skip
    if not paths:
        raise DataError(f"{folder}: expected images to look for the mark in, found none. Check --detect.")

    def pixels_of(path: Path) -> torch.Tensor:
        pixels = read_pixels(path)
        if pixels.shape[1:] == (side, side):
            return pixels
        if path.suffix == ".npy":
            raise DataError(
                f"{path}: expected {side} x {side} pixels, found {pixels.shape[1]} x {pixels.shape[2]}. Give the model "
                "and --enlarge that it was marked with."
            )
        return preprocessing.transform()(read_image(str(path))).double()

    found: list[float] = []
    for start in tqdm(range(0, len(paths), batch), desc="search", unit="batch", disable=None):
        found += scores(torch.stack([pixels_of(path) for path in paths[start : start + batch]])).tolist()
    rows: list[list[object]] = [["image", "score", "threshold", "marked"]]
    rows += [
        [path.relative_to(folder).as_posix(), score, threshold, int(score > threshold)]
        for path, score in zip(paths, found, strict=True)
    ]
    write_text(csv, as_csv(rows))
    return sum(score > threshold for score in found), len(found)
