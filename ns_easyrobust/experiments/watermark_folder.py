"""Folders of marked images, made of folders of photographs."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, OutputError
from ..utils import (
    FileLock,
    os_errors_as_output_errors,
    parse_json,
    read_bounded,
    sha256_of,
    torch,
    write_text,
)

if TYPE_CHECKING:
    from ..data import Preprocessing

_logger = logging.getLogger(__name__)
_RECORD = "watermark.json"  # the settings
_SOURCES = "watermark.jsonl"  # of each marked image, the digest of the file that it was made of
_MOST_BYTES = 2**28
_LOCK = ".watermark.lock"


class MarkedFolder:
    """``target``, a folder for the marked images of all below ``source``: its tree, and its files' names.

    Nothing in it is written anew: what is there already is left out, so that a second call goes on. That an image there
    was made of the file that is now its source, not of another of this name, is known by the file's digest.

    Args:
        source: a folder of images, in folders or not.
        target: new, empty, or made so with the same ``settings``.
        image_format: of :data:`~ns_easyrobust.data.IMAGE_FORMATS`.
        settings: plain values that decide the files' content.

    Raises:
        DataError: there are no images below ``source``, or two of one name without its ending.
        OutputError: ``target`` holds other things, or marked images that were made of other files, or lies in
            ``source``, or the other way round.
        OptionError: a format whose package is not installed.
    """

    def __init__(self, source: Path, target: Path, image_format: str, settings: Mapping[str, Any]) -> None:
        from ..data import IMAGE_FORMATS, images_below, require_format

        require_format(image_format)
        self.target, self.format = target, image_format
        self.settings = parse_json(json.dumps({**settings, "format": image_format}))
        self.source = source
        paths = sorted(Path(name) for name in images_below(source, "."))
        if not paths:
            raise DataError(f"{source}: expected images to mark, found none. Check --data-dir.")
        own, other = (Path(os.path.realpath(path)) for path in (source, target))
        if own == other or own in other.parents or other in own.parents:
            raise OutputError(
                f"{target}: expected a folder apart from the images' own, found one that is, holds or lies in "
                f"{source}. Choose another."
            )
        self.files = [source / path for path in paths]
        self.names = [path.with_suffix(IMAGE_FORMATS[image_format]) for path in paths]
        seen: dict[Path, Path] = {}
        for path, name in zip(paths, self.names, strict=True):
            if (first := seen.setdefault(name, path)) != path:
                raise DataError(f"{source}: expected one image for {name}, found {first} and {path}. Rename.")
        self._require_own()
        self._require_sources()

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

    def _sources(self) -> dict[str, str]:
        """Of each marked image, SHA-256 of the file that it was made of."""
        try:
            text = read_bounded(self.target / _SOURCES, _MOST_BYTES).decode()
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise OutputError(
                f"{self.target / _SOURCES}: expected what the marked images were made of, found it unreadable "
                f"({error}). Choose another --marked-dir."
            ) from error
        # The last line of a call that was killed may be half a one; its image is made again.
        return {line["image"]: line["source_sha256"] for line in map(_line, text.splitlines()) if line}

    def _require_sources(self) -> None:
        known = self._sources()
        for number, name in enumerate(self.names):
            before = known.get(name.as_posix())
            if before and (self.target / name).is_file() and before != self._digest(number):
                raise OutputError(
                    f"{self.target / name}: expected the marked image of {self.files[number]}, found one "
                    "that was made of another file of this name. Choose another --marked-dir, or delete it."
                )

    def _digest(self, number: int) -> str:
        path = self.files[number]
        try:
            return sha256_of(path)
        except OSError as error:
            raise DataError(f"{path}: expected an image, found: {error.strerror}. Replace the file.") from error

    def write(self, marked: Callable[[torch.Tensor], torch.Tensor], preprocessing: Preprocessing, batch: int) -> str:
        """Write the images that are missing, but for those that cannot be read, which are logged.

        Args:
            marked: makes marked images of (B, 3, H, W) in [0, 1].
            preprocessing: of the model.
            batch: images at a time.

        Returns:
            A sentence: how many were written, are there, and could not be read.
        """
        from tqdm.auto import tqdm

        from ..data import read_image

        with os_errors_as_output_errors(self.target):
            self.target.mkdir(parents=True, exist_ok=True)
        written, transform = 0, preprocessing.transform()
        with FileLock(self.target / _LOCK, "this marking"):
            self._require_own()
            write_text(self.target / _RECORD, json.dumps(self.settings, indent=1) + "\n")
            known = self._sources()
            missing = [
                number for number, name in enumerate(self.names)
                if name.as_posix() not in known or not (self.target / name).is_file()
            ]  # fmt: skip
            with tqdm(total=len(missing), desc="marked images", unit="image", disable=None) as bar:
                for start in range(0, len(missing), batch):
                    numbers = missing[start : start + batch]
                    pixels = {}
                    for number in numbers:
                        try:
                            pixels[number] = transform(read_image(str(self.files[number]))), self._digest(number)
                        except DataError as error:
                            _logger.warning("not marked: %s", error)
                    if pixels:
                        images = marked(torch.stack([image for image, _ in pixels.values()]))
                        self._write_batch(list(pixels), images, [digest for _, digest in pixels.values()])
                    written += len(pixels)
                    bar.update(len(numbers))
        unread = len(missing) - written
        left = f", {unread} could not be read" if unread else ""
        return f"marked images: {self.target}, {written} written, {len(self.names) - unread} in all{left}"

    def _write_batch(self, numbers: Sequence[int], images: torch.Tensor, digests: Sequence[str]) -> None:
        from ..data import write_image

        lines = []
        for number, image, digest in zip(numbers, images, digests, strict=True):
            path = self.target / self.names[number]
            with os_errors_as_output_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            write_image(path, image, self.format)
            lines.append(json.dumps({"image": self.names[number].as_posix(), "source_sha256": digest}))
        with os_errors_as_output_errors(self.target / _SOURCES), open(self.target / _SOURCES, "a") as stream:
            stream.write("\n" + "\n".join(lines) + "\n")  # the first ends the line of a call that was killed


def _line(text: str) -> dict[str, str]:
    try:
        line = parse_json(text) if text else {}
    except ValueError:
        return {}
    return line if isinstance(line, dict) and {"image", "source_sha256"} <= line.keys() else {}
