"""Corrupting a folder of images into ImageNet-C's layout: seeded per image, in several processes, resumable."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageFile

from ..errors import DataError, OptionError, OutputError
from ..utils import (
    FileLock,
    import_package,
    np,
    os_errors_as_output_errors,
    remove_temporaries,
    replaced_attributes,
    write_atomically,
)
from .benchmarks import known_benchmarks
from .corrupt_record import CORRUPT_FORMATS, CorruptRecord, CorruptSettings
from .corruptions import FrostPictures, corrupt, known_corruptions
from .image_jobs import one_opencv_thread, results_of
from .image_reading import read_image
from .layout import benchmark_folder
from .listing import first_few, is_flat, list_folder, sorted_images_below, stem

_JPEG_ENDINGS = (".jpg", ".jpeg")
_logger = logging.getLogger(__name__)


class CorruptedFolder(NamedTuple):
    """What has become of a folder: images written, images that were there before, and source images left out."""

    written: int
    present: int
    skipped: int


def require_corrupt_libraries() -> None:
    """Raise MissingPackageError if OpenCV is missing, or what it needs of the system, before anything is written."""
    import_package("cv2", "corrupt")


class FolderCorruption:
    """The corruption of a folder of class folders, checked as far as that goes without reading images.

    Args:
        source: class folders with images in them or in folders below, as ``val/``.
        target: becomes ImageNet-C's folder, ``target/<corruption>/<severity>/<class>/.../<image>``; new, empty, or made
            by this class with the same settings from the same images, and then completed.
        corruptions, severities: which.
        settings: what the files depend on.

    Raises:
        MissingPackageError: OpenCV is missing. OptionError: there is no such corruption or severity.
        DataError: ``source`` is not as above.
        OutputError: ``target`` is not as above, or one of the two folders lies in the other.

    Example:
        >>> job = FolderCorruption(data_dir / "val", data_dir / "imagenet-c", ["fog", "contrast"], [5])
        >>> job.run()
        CorruptedFolder(written=12, present=0, skipped=0)
    """

    def __init__(
        self,
        source: str | Path,
        target: str | Path,
        corruptions: Sequence[str],
        severities: Sequence[int] = range(1, 6),
        settings: CorruptSettings | None = None,
    ) -> None:
        require_corrupt_libraries()
        self.source, self.target, self.settings = Path(source), Path(target), settings or CorruptSettings()
        unknown = [name for name in corruptions if name not in known_corruptions()]
        if unknown or not set(severities) <= set(range(1, 6)) or not corruptions or not severities:
            raise OptionError(
                f"corrupt: expected corruptions of {', '.join(known_corruptions())} and severities from 1 to 5, found "
                f"{', '.join(unknown) or list(corruptions)} and {list(severities)}."
            )
        self.folders = [(name, severity) for name in dict.fromkeys(corruptions) for severity in sorted(set(severities))]
        self._require_apart()
        self.images = self._list_images()
        self.names = [self._target_name(image) for image in self.images]
        self._require_distinct()
        self.pictures: FrostPictures | None = None
        if any(known_corruptions()[name].pictures for name in corruptions):
            with one_opencv_thread():
                self.pictures = self.settings.pictures or FrostPictures.installed_or_drawn()
        self.record = CorruptRecord(self.target, self.source, self.images, self.settings, self.pictures)
        self.record.require_fitting()

    def run(
        self,
        workers: int = 0,
        *,
        skip_unreadable: bool = False,
        progress: Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], object]]] | None = None,
    ) -> CorruptedFolder:
        """Read all images, so that a broken one is found first, then write what is missing.

        Args:
            workers: processes; 0: this one.
            skip_unreadable: leave out images that cannot be read, instead of ending before anything is written.
            progress: called with what is being done and with its amount, for a context manager that gives a function
                to be called with each amount done.

        Raises:
            DataError: images cannot be read.
            OutputError: another process is at work on ``target``, or it cannot be written. What has been written
                stays and is not made again.
        """
        progress = progress or _no_progress
        new_folders = [folder for folder in (self.target, *self.target.parents) if not os.path.exists(folder)]
        try:
            with os_errors_as_output_errors(self.target):
                self.target.mkdir(parents=True, exist_ok=True)
            with FileLock(self.target / ".corrupt.lock", "these corruptions"), one_opencv_thread():
                self.record.require_fitting()  # another process may have come first
                skipped = set(self.record.skipped)
                missing = self._find_missing()
                missing[[number for number, image in enumerate(self.images) if image in skipped]] = False
                skipped |= self._check(missing, workers, skip_unreadable, progress)
                self.record.write(skipped, more=bool(missing.any()))
                waiting = np.flatnonzero(missing.any(1)).tolist()
                written = int(missing[waiting].sum())
                jobs = _Corruptions(self, waiting, missing)
                try:
                    with progress("corrupt", written) as advance, contextlib.closing(results_of(jobs, workers)) as done:
                        for count in done:
                            advance(count)
                except BaseException:
                    self._remove_unfinished()
                    raise
        finally:
            with contextlib.suppress(OSError):
                for folder in new_folders:
                    folder.rmdir()  # if nothing has been written
        total = (len(self.images) - len(skipped)) * len(self.folders)
        return CorruptedFolder(written, total - written, len(skipped))

    def _remove_unfinished(self) -> None:
        """Delete what a worker was writing when another's error, or a signal, ended them all."""
        for corruption, severity in self.folders:
            for folder in {os.path.dirname(name) for name in self.names}:
                remove_temporaries(self.target / corruption / str(severity) / folder)

    def _require_apart(self) -> None:
        source, target = (Path(os.path.realpath(path)) for path in (self.source, self.target))
        if source == target or source in target.parents or target in source.parents:
            raise OutputError(
                f"{self.target}: expected a folder apart from the images' own, found one that is, holds or lies in "
                f"{self.source}. Choose another."
            )

    def _list_images(self) -> list[str]:
        """Paths 'class/.../image', relative to the source, sorted."""
        classes, _ = list_folder(self.source)
        if os.path.isdir(inner := benchmark_folder(self.source, known_benchmarks()["val"])):
            raise DataError(
                f"{self.source}: expected one folder a class, found one that holds sets of images, as {inner.name}/. "
                f"Give {inner}."
            )
        if not classes or is_flat(self.source):
            raise DataError(
                f"{self.source}: expected one folder a class, found {'images' if classes else 'no folders'}. "
                "Give the folder that holds the classes."
            )
        images = {name: sorted_images_below(self.source, name) for name in classes}
        if empty := [name for name in classes if not images[name]]:
            raise DataError(
                f"{self.source}: expected images in every class folder, found {len(empty)} without: "
                f"{first_few(empty)}. Labels would shift; fill or remove them."
            )
        return [path for paths in images.values() for path in paths]

    def _target_name(self, image: str) -> str:
        """A JPEG keeps its name, as in ImageNet-C; others take their format's ending."""
        if self.settings.format == "jpeg" and image.lower().endswith(_JPEG_ENDINGS):
            return image
        folder, slash, name = image.rpartition("/")
        return f"{folder}{slash}{stem(name)}{CORRUPT_FORMATS[self.settings.format]}"

    def _require_distinct(self) -> None:
        if len(set(self.names)) < len(self.names):
            name, count = Counter(self.names).most_common(1)[0]
            same = [image for image, other in zip(self.images, self.names, strict=True) if other == name]
            raise DataError(
                f"{self.source}: expected one image for each name, found {count} that would become {name}: "
                f"{first_few(same)}. Rename them."
            )

    def _find_missing(self) -> Any:
        """(images, folders) bool: which files are not there yet; an empty file is what a power failure leaves."""
        missing = np.ones((len(self.names), len(self.folders)), bool)
        by_folder: dict[str, list[int]] = {}
        for number, name in enumerate(self.names):
            by_folder.setdefault(name.rpartition("/")[0], []).append(number)
        for column, (corruption, severity) in enumerate(self.folders):
            for folder, numbers in by_folder.items():
                present = self._files_in(self.target / corruption / str(severity) / folder)
                for number in numbers:
                    missing[number, column] = self.names[number].rpartition("/")[2] not in present
        return missing

    @staticmethod
    def _files_in(folder: Path) -> set[str]:
        found = set()
        with os_errors_as_output_errors(folder), contextlib.suppress(FileNotFoundError):
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith(".") and entry.name.endswith(".tmp"):
                        os.unlink(entry.path)  # of a process that was killed
                    elif entry.stat().st_size:
                        found.add(entry.name)
        return found

    def _check(self, missing: Any, workers: int, skip: bool, progress: Any) -> set[str]:
        """The images that cannot be read, of those that are needed; their rows of ``missing`` become False."""
        numbers = np.flatnonzero(missing.any(1)).tolist()
        reasons, shorter_sides = {}, []
        with progress("read", len(numbers)) as advance:
            for number, side, reason in results_of(_Readings(self, numbers), workers):
                advance(1)
                if reason:
                    reasons[number] = reason
                else:
                    shorter_sides.append(side)
        if reasons:
            found = f"{len(reasons)} of {len(self.images)} that cannot be read. The first: {reasons[min(reasons)]}"
            if not skip:
                raise DataError(f"{self.source}: expected images, found {found}")
            _logger.warning("left out: %s", found)
        missing[list(reasons)] = False
        if self.settings.size is None and shorter_sides and set(shorter_sides) != {224}:
            _logger.info(
                "the images keep their sizes (shorter sides of %d to %d pixels); ImageNet-C was made from centre crops "
                "of 224, and its severities are meant for these",
                *(min(shorter_sides), max(shorter_sides)),
            )
        return {self.images[number] for number in reasons}

    def read(self, number: int) -> Image.Image:
        """Image ``number`` of the source as it is to be corrupted."""
        image = read_image(f"{self.source}/{self.images[number]}")
        crop = self.settings.preprocessing
        return image if crop is None else crop.crop()(image)

    def write(self, number: int, columns: Sequence[int]) -> None:
        """Write image ``number`` under some of the corruptions."""
        pixels = np.asarray(self.read(number))
        for column in columns:
            corruption, severity = self.folders[column]
            generator = _generator(self.settings.seed, corruption, severity, self.images[number])
            corrupted = Image.fromarray(corrupt(pixels, corruption, severity, generator, self.pictures))
            path = self.target / corruption / str(severity) / self.names[number]
            with os_errors_as_output_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, functools.partial(self._save, corrupted), sync=False)

    def _save(self, image: Image.Image, path: Path) -> None:
        if self.settings.format == "png":
            image.save(path, "PNG")
        else:
            # All of an optimised JPEG has to fit into Pillow's buffer, of a byte a pixel; noise may need more.
            with replaced_attributes(ImageFile, MAXBLOCK=max(ImageFile.MAXBLOCK, 4 * image.width * image.height)):
                image.save(path, "JPEG", quality=self.settings.quality, optimize=True)


def _generator(seed: int, corruption: str, severity: int, image: str) -> np.random.Generator:
    """For one file: neither the order of files, nor processes, nor a resumption change what it draws."""
    name = os.fsencode(f"{corruption}/{severity}/{image}")
    return np.random.default_rng((seed, int.from_bytes(sha256(name).digest()[:16], "big")))


class _Readings:
    """A dataset whose item is an image's number, its shorter side in pixels, and why it cannot be read, or ""."""

    def __init__(self, job: FolderCorruption, numbers: Sequence[int]) -> None:
        self.job, self.numbers = job, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, item: int) -> tuple[int, int, str]:
        try:
            return self.numbers[item], min(self.job.read(self.numbers[item]).size), ""
        except DataError as error:
            return self.numbers[item], 0, error.line


class _Corruptions(_Readings):
    """A dataset whose item is how many files have been written of an image."""

    def __init__(self, job: FolderCorruption, numbers: Sequence[int], missing: Any) -> None:
        super().__init__(job, numbers)
        self.missing = missing

    def __getitem__(self, item: int) -> Any:
        columns = np.flatnonzero(self.missing[self.numbers[item]]).tolist()
        self.job.write(self.numbers[item], columns)
        return len(columns)


@contextlib.contextmanager
def _no_progress(what: str, amount: int) -> Iterator[Callable[[int], object]]:
    yield lambda done: None
