"""How fast the corruptions are beside the package imagecorruptions, per image and core, without reading and writing.

    python benchmarks/speed.py corrupt FOLDER [--images 8 --repeats 5 --size 224]

Images are taken evenly from the folder, their centres cut as ImageNet-C's were. For each corruption one pass of ours
over all images and severities and one of theirs alternate in one process with one thread; shown are the medians of the
passes' CPU time and their range. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from published_corruptions import corruption_dict, repaired

from ns_easyrobust.data import FrostPictures, Preprocessing, corrupt, is_image, known_corruptions, read_image
from ns_easyrobust.errors import DataError
from ns_easyrobust.evaluation import describe_machine

SEVERITIES = range(1, 6)


def photographs(folder: Path, count: int, size: int) -> list[np.ndarray]:
    paths = sorted(path for path in folder.rglob("*") if is_image(path.name))
    if not paths:
        raise DataError(f"{folder}: expected images, found none. Check the path.")
    chosen = paths[:: max(1, len(paths) // count)][:count]
    crop = Preprocessing(size, interpolation="bilinear").crop()
    return [np.asarray(crop(read_image(str(path)))) for path in chosen]


def milliseconds(work: Callable[[np.ndarray, int], object], images: list[np.ndarray]) -> float:
    """Mean CPU time of an image over all severities."""
    began = time.process_time()
    for image in images:
        for severity in SEVERITIES:
            work(image, severity)
    return 1000 * (time.process_time() - began) / (len(images) * len(SEVERITIES))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="speed.py corrupt", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", help="with images in it or in its subfolders")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args(argv)
    cv2.setNumThreads(1)
    images = photographs(Path(args.folder), args.images, args.size)
    generator, pictures = np.random.default_rng(0), FrostPictures.installed_or_drawn()
    print(
        f"{describe_machine('cpu')}, one thread; {len(images)} photographs of {args.size} pixels, medians (and range) "
        f"of the CPU time of {args.repeats} passes over 5 severities\n"
    )
    print("| corruption | imagecorruptions, ms an image | `corrupt`, ms an image | times faster |\n|---|---|---|---|")
    totals = [0.0, 0.0]
    for name in known_corruptions():
        works: list[Callable[[np.ndarray, int], object]] = [
            lambda image, severity, name=name: np.uint8(corruption_dict[name](Image.fromarray(image), severity)),
            lambda image, severity, name=name: corrupt(image, name, severity, generator, pictures),
        ]
        passes: list[list[float]] = [[], []]
        with repaired():
            for work in works:
                milliseconds(work, images[:1])
            for _ in range(args.repeats):
                for work, found in zip(works, passes, strict=True):
                    found.append(milliseconds(work, images))
        medians = [statistics.median(found) for found in passes]
        totals = [total + median for total, median in zip(totals, medians, strict=True)]
        theirs, ours = (f"{statistics.median(f):.1f} ({min(f):.1f} to {max(f):.1f})" for f in passes)
        print(f"| {name} | {theirs} | {ours} | {medians[0] / medians[1]:.1f} |", flush=True)
    print(f"| all {len(known_corruptions())} | {totals[0]:.1f} | {totals[1]:.1f} | {totals[0] / totals[1]:.1f} |")
