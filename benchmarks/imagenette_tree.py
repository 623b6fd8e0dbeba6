"""Imagenette in small squares, with its validation images in two parts: what the studies of docs/evidence.md run on.

python benchmarks/imagenette_tree.py IMAGENETTE_FOLDER OUT
"""

from __future__ import annotations

import os
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path

from PIL import Image
from tqdm import tqdm

SIDE = 128  # pixels; models for 112 see seven eighths of it
PER_CLASS = 100  # validation images of each part
PARTS = ("select", "confirm")  # one to choose methods on, one that is looked at once


def write_tree(source: Path, root: Path) -> Path:
    """``root``/train and ``root``/val, and in ``root``/select and ``root``/confirm imagenet-val beside a link to train.

    Every image is a square of 128 pixels, as JPEG of quality 85. ``val`` is a link to ``select``'s images; a class's
    images of both parts are drawn with seed 0, and no image is in both.
    """
    root.mkdir(parents=True)
    jobs = [
        (path, root / "train" / path.parent.name / path.name)
        for folder in class_folders(source / "train")
        for path in sorted(folder.iterdir())
    ]
    draw = random.Random(0)
    for folder in class_folders(source / "val"):
        drawn = iter(draw.sample(sorted(folder.iterdir()), len(PARTS) * PER_CLASS))
        for part in PARTS:
            target = root / part / "imagenet-val" / folder.name
            jobs += [(path, target / path.name) for path in islice(drawn, PER_CLASS)]
    for target in {target.parent for _, target in jobs}:
        target.mkdir(parents=True)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        list(tqdm(pool.map(write_square, *zip(*jobs, strict=True), chunksize=64), total=len(jobs), unit="image"))
    (root / "val").symlink_to(Path(PARTS[0], "imagenet-val"), target_is_directory=True)
    for part in PARTS:
        (root / part / "train").symlink_to(Path("..", "train"), target_is_directory=True)
    return root


def class_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def write_square(source: Path, target: Path) -> None:
    """The central square of an image, resized (bicubic)."""
    with Image.open(source) as opened:
        image = opened.convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
    square.save(target, "JPEG", quality=85)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(
            "usage: python benchmarks/imagenette_tree.py IMAGENETTE_FOLDER OUT, where the first has train/ and val/"
        )
    write_tree(Path(sys.argv[1]), Path(sys.argv[2]))
