"""The verb ``corrupt``: ImageNet-C's corruptions of one's own images, in ``imagenet-c/``'s layout."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm.auto import tqdm

from ..data import (
    ALEXNET_ERROR,
    CORRUPT_FORMATS,
    SEVERITIES,
    CorruptSettings,
    FolderCorruption,
    FrostPictures,
    known_corruptions,
)
from ..errors import DataError, printable
from ..utils import file_or_folder, float_in, int_from

GROUPS = ("common", "extra", "all")
FOLDER = "imagenet-c"  # where `benchmark` looks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``ns-easyrobust corrupt``."""
    parser.add_argument(
        "source", type=file_or_folder, metavar="SRC", help="folder of class folders with images in them, e.g. val/"
    )
    parser.add_argument(
        "target",
        type=file_or_folder,
        metavar="DST",
        help=f"the {FOLDER} folder itself, new, or begun with the same flags and to be completed: "
        f"DST/<corruption>/<severity>/<class>/<image>; `benchmark` finds PARENT/{FOLDER} with --data-dir PARENT",
    )
    names = list(known_corruptions())
    common = [name for name in ALEXNET_ERROR if name in names]
    extra = [name for name in names if name not in ALEXNET_ERROR]
    parser.add_argument("--corruption", nargs="+", choices=[*common, *extra, *GROUPS], default=["common"],
                        metavar="NAME", help=f"common (the default): {', '.join(common)}; extra: {', '.join(extra)}; "
                        "all: both")  # fmt: skip
    parser.add_argument("--severity", nargs="+", type=int, choices=SEVERITIES, default=list(SEVERITIES), metavar="N",
                        help="1 to 5 (default: all)")  # fmt: skip
    parser.add_argument("--size", type=int_from(1), metavar="N",
                        help="corrupt a centre crop of N pixels; ImageNet-C: 224, the size for which its severities "
                        "are meant (default: the whole image at its own size)")  # fmt: skip
    parser.add_argument("--crop-pct", type=float_in(0.01, 1), default=0.875, metavar="F",
                        help="of --size: the shorter side becomes N / F first (default: 0.875)")  # fmt: skip
    parser.add_argument("--format", choices=list(CORRUPT_FORMATS), default="jpeg",
                        help="of the files (default: jpeg, as ImageNet-C; small images lose less as png)")  # fmt: skip
    parser.add_argument(
        "--quality", type=int_from(1, 95), default=85, metavar="N", help="of JPEG (default: 85, as ImageNet-C)"
    )
    parser.add_argument("--frost-dir", type=file_or_folder, metavar="DIR",
                        help="the published pictures, frost1.png to frost5.jpg (default: those of the package "
                        "imagecorruptions where it is installed, else drawn ones)")  # fmt: skip
    parser.add_argument("--bad-images", choices=("error", "skip"), default="error",
                        help="that cannot be read: end before anything is written, or leave them out "
                        "(default: error)")  # fmt: skip
    parser.add_argument("--seed", type=int_from(0, 2**63 - 1), default=0, metavar="S",
                        help="of all that is random (default: 0)")  # fmt: skip
    parser.add_argument("-j", "--workers", type=int_from(0, 1024), default=_cores(), metavar="N",
                        help="processes (default: one a core)")  # fmt: skip


def _cores() -> int:
    """Cores that this process may use, at most as many as ``--workers`` may be."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, 1024)


def chosen_corruptions(words: Sequence[str]) -> list[str]:
    """The corruptions that names and groups stand for, each once."""
    common, others = list(ALEXNET_ERROR), [name for name in known_corruptions() if name not in ALEXNET_ERROR]
    groups = {"common": common, "extra": others, "all": common + others}
    return list(dict.fromkeys(name for word in words for name in groups.get(word, [word])))


@contextlib.contextmanager
def _bar(what: str, amount: int) -> Iterator[Callable[[int], object]]:
    with tqdm(total=amount, desc=what, disable=None, leave=False, unit="image", smoothing=0.05) as bar:
        yield bar.update


def run(args: argparse.Namespace) -> None:
    """Corrupt the images and say where they are.

    Raises:
        UserError: as :class:`FolderCorruption`.
    """
    settings = CorruptSettings(
        seed=args.seed,
        size=args.size,
        crop_pct=args.crop_pct,
        format=args.format,
        quality=args.quality,
        pictures=_pictures(args.frost_dir) if args.frost_dir else None,
    )
    chosen = chosen_corruptions(args.corruption)
    job = FolderCorruption(args.source, args.target, chosen, args.severity, settings)
    if job.pictures is not None and job.pictures.origin == "drawn":
        print(
            "frost: drawn pictures, as ImageNet-C's are not here "
            "(pip install --no-deps imagecorruptions, or --frost-dir)"
        )
    try:
        done = job.run(args.workers, skip_unreadable=args.bad_images == "skip", progress=_bar)
    except DataError as error:
        raise DataError(f"{error.line} Or leave out what cannot be read: --bad-images skip.") from error
    before = f" beside {done.present} that were there" if done.present else ""
    left_out = f"; {done.skipped} images left out" if done.skipped else ""
    print(f"wrote {done.written} images to {printable(args.target)}{before}{left_out}")
    if not set(chosen) & set(ALEXNET_ERROR):
        return  # `benchmark` takes those alone
    target = Path(args.target)
    found = f"--data-dir {target.parent} --suite c" if target.name == FOLDER else f"--suite c={target}"
    print(f"next: ns-easyrobust benchmark {printable(found)} ...")


def _pictures(folder: str) -> FrostPictures:
    try:
        return FrostPictures.read(folder)
    except DataError as error:
        raise DataError(f"--frost-dir {error.line}") from error
