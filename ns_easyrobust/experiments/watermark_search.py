"""Folders of images, looked through for a mark."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError
from ..utils import as_csv, os_errors_as_output_errors, torch, write_text

if TYPE_CHECKING:
    from ..data import Preprocessing
    from .watermark_judges import Judge


def search_folder(folder: Path, judge: Judge, preprocessing: Preprocessing, batch: int, csv: Path) -> str:
    """Look for the mark in all images below ``folder``, and write a CSV of path, score, threshold and verdict.

    Images of the mark's size are taken as they are, with all their bits; others as the model would see them. Rows are
    written as they come; the row of an image that cannot be read says why.

    Args:
        judge: of the mark.
        preprocessing: of the model.
        batch: images at a time.
        csv: the file; what is there is replaced.

    Returns:
        A sentence: in how many of how many images the mark was found, and how many could not be read.

    Raises:
        DataError: there are no images.
        OutputError: the CSV cannot be written.
    """
    from tqdm.auto import tqdm

    from ..data import is_image

    paths = sorted(
        Path(where, name) for where, _, names in os.walk(folder) for name in names
        if is_image(name) or (name.endswith(".npy") and not name.startswith("."))
    )  # fmt: skip
    if not paths:
        raise DataError(f"{folder}: expected images to look for the mark in, found none. Check --detect.")
    found, unread = 0, 0
    write_text(csv, as_csv([["image", "score", "threshold", "marked", "error"]]))
    for start in tqdm(range(0, len(paths), batch), desc="search", unit="batch", disable=None):
        chosen = paths[start : start + batch]
        pixels, errors = _read(chosen, preprocessing)
        scores = iter(judge.scores(torch.stack(pixels)).tolist() if pixels else [])
        rows: list[list[object]] = []
        for path, error in zip(chosen, errors, strict=True):
            name = path.relative_to(folder).as_posix()
            score = None if error else next(scores)
            verdict = None if score is None else int(score > judge.threshold)
            rows.append([name, score, judge.threshold, verdict, error])
            found, unread = found + (verdict or 0), unread + bool(error)
        with os_errors_as_output_errors(csv), open(csv, "a", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(as_csv(rows))
    left = f", {unread} could not be read" if unread else ""
    return f"the mark was found in {found} of {len(paths) - unread} images of {folder}{left}: {csv}"


def _read(paths: Sequence[Path], preprocessing: Preprocessing) -> tuple[list[torch.Tensor], list[str]]:
    """Pixels (3, H, W) float64 of those that can be read, and of each a message, empty for those."""
    from ..data import read_image, read_pixels

    side, transform = preprocessing.size, preprocessing.transform()
    found, errors = [], []
    for path in paths:
        try:
            pixels = read_pixels(path)
            if pixels.shape[1:] != (side, side):
                if path.suffix == ".npy":
                    raise DataError(
                        f"{path}: expected {side} x {side} pixels, found {pixels.shape[1]} x {pixels.shape[2]}. Give "
                        "the model and --enlarge that it was marked with."
                    )
                pixels = transform(read_image(str(path))).double()
        except DataError as error:
            errors.append(str(error))
        else:
            found.append(pixels)
            errors.append("")
    return found, errors
