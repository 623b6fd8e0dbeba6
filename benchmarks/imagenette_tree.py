"""Imagenette in small squares, with its validation images in two parts: what the studies of docs/evidence.md run on.

python benchmarks/imagenette_tree.py IMAGENETTE_FOLDER OUT
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

from PIL import Image
from tqdm import tqdm

SIDE = 128  # pixels; models for 112 see seven eighths of it
PER_CLASS = 100  # validation images of each part
PARTS = ("select", "confirm")  # one to choose methods on, one that is looked at once


def write_tree(source: Path, root: Path, side: int = SIDE, per_class: int = PER_CLASS) -> Path:
    """``root``/train and ``root``/val, and in ``root``/select and ``root``/confirm imagenet-val beside a link to train.

    Every image is a square of ``side`` pixels, as JPEG of quality 85. ``val`` is a link to ``select``'s images; the
    ``per_class`` images of each part are drawn with seed 0, and no image is in both. ``root`` appears when it is whole.

    Raises:
        FileExistsError: ``root`` is there, or other things where it is made, beside it.
    """
    if root.exists():
        raise FileExistsError(f"{root} is there: expected a new folder")
    unfinished = root.with_name(f"{root.name}.unfinished")
    if unfinished.exists():  # of an interrupted call, unless it is somebody's
        if not {path.name for path in unfinished.iterdir()} <= {"train", "val", *PARTS}:
            raise FileExistsError(f"{unfinished} is there, and is no unfinished tree: expected none of that name")
        shutil.rmtree(unfinished)
    jobs = [
        (path, unfinished / "train" / path.parent.name / path.name)
        for folder in class_folders(source / "train")
        for path in images_of(folder)
    ]
    draw = random.Random(0)
    for folder in class_folders(source / "val"):
        drawn = iter(draw.sample(images_of(folder), len(PARTS) * per_class))
        for part in PARTS:
            target = unfinished / part / "imagenet-val" / folder.name
            jobs += [(path, target / path.name) for path in islice(drawn, per_class)]
    for target in {target.parent for _, target in jobs}:
        target.mkdir(parents=True)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        written = pool.map(partial(write_square, side=side), *zip(*jobs, strict=True), chunksize=64)
        list(tqdm(written, total=len(jobs), unit="image"))
    (unfinished / "val").symlink_to(Path(PARTS[0], "imagenet-val"), target_is_directory=True)
    for part in PARTS:
        (unfinished / part / "train").symlink_to(Path("..", "train"), target_is_directory=True)
    return unfinished.rename(root)


def class_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def images_of(folder: Path) -> list[Path]:
    """In the order of their names; without hidden files, which some systems leave."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def write_square(source: Path, target: Path, side: int) -> None:
    """The central square of an image, resized (bicubic) to ``side`` pixels."""
    with Image.open(source) as opened:
        image = opened.convert("RGB")
    shorter = min(image.size)
    left, top = (image.width - shorter) // 2, (image.height - shorter) // 2
    square = image.resize((side, side), Image.Resampling.BICUBIC, (left, top, left + shorter, top + shorter))
    square.save(target, "JPEG", quality=85)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, metavar="IMAGENETTE_FOLDER", help="with train/ and val/")
    parser.add_argument("root", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--side", type=int, default=SIDE, metavar="N", help=f"pixels (default: {SIDE})")
    parser.add_argument(
        "--per-class", type=int, default=PER_CLASS, metavar="N", help=f"images of each part (default: {PER_CLASS})"
    )
    try:
        write_tree(**vars(parser.parse_args()))
    except FileExistsError as error:
        parser.error(str(error))
