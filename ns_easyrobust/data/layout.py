"""Where a data folder holds the evaluation sets: under EasyRobust's names, or as a training folder does."""

from __future__ import annotations

import os
import re
from pathlib import Path

from . import imagenet
from .benchmarks import Benchmark, known_benchmarks
from .listing import is_flat, list_folder


def benchmark_folder(data_dir: str | Path, benchmark: Benchmark) -> Path:
    """The folder of ``benchmark`` in ``data_dir``, whether it exists or not.

    That is the benchmark's own; where it is missing beside ``train/``, the first of its names in training folders.

    Example:
        >>> benchmark_folder(data_dir, known_benchmarks()["val"]).name  # which holds train/ and imagenet-val/
        'imagenet-val'
    """
    data_dir = Path(data_dir)
    usual = data_dir / benchmark.folder
    if os.path.exists(usual) or not os.path.isdir(data_dir / "train"):
        return usual
    beside_train = (data_dir / name for name in benchmark.beside_train)
    return next((folder for folder in beside_train if os.path.isdir(folder)), usual)


def holds_benchmarks(data_dir: str | Path) -> bool:
    """Whether ``data_dir`` holds the folder of any benchmark."""
    return any(os.path.isdir(benchmark_folder(data_dir, benchmark)) for benchmark in known_benchmarks().values())


def outputs_meant(validation: str | Path) -> int:
    """The number of outputs of the models that a validation set is probably for: ImageNet's 1000, or its class folders.

    It is 1000 for a set that is missing or flat, and for class folders with ImageNet's WordNet ids or class indices, if
    they are more than half of the 1000. Fewer ids stand for 1000, too, but not beside ``train/``, where they name
    the classes of a dataset of its own, as Imagenette's.
    """
    validation = Path(validation)
    names = list_folder(validation)[0] if os.path.isdir(validation) and not is_flat(validation) else []
    ids = all(name in imagenet.wnid_index() for name in names)
    indices = all(re.fullmatch("[0-9]{1,4}", name) and int(name) < imagenet.CLASSES for name in names)
    is_most = len(names) > imagenet.CLASSES / 2
    is_imagenet = (ids or indices) if is_most else ids and not os.path.isdir(validation.parent / "train")
    return imagenet.CLASSES if is_imagenet or not names else len(names)
