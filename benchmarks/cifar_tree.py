"""CIFAR-10, one folder a class under train/ and val/, in EasyRobust's layout: what studies evaluate on.

python benchmarks/cifar_tree.py CIFAR_FOLDER OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from ns_easyrobust.data import known_corruptions

SEVERITY = 5
# CIFAR-10-C's, severity 5 (make_cifar_c.py of arXiv:1903.12261)
STRENGTHS = {
    "gaussian_noise": 0.1,
    "impulse_noise": 0.07,
    "contrast": 0.15,
    "pixelate": 20 / 32,
    "jpeg_compression": 40,
}


def write_tree(source: Path, root: Path, per_class: int = 100) -> Path:
    """``root`` with train, val and imagenet-val linked to ``source``'s, and imagenet-c of some of its images."""
    root.mkdir(parents=True)
    for name, target in {"train": "train", "val": "val", "imagenet-val": "val"}.items():
        (root / name).symlink_to((source / target).resolve(), target_is_directory=True)
    for folder in sorted(path for path in (source / "val").iterdir() if path.is_dir()):
        for number, path in enumerate(sorted(folder.iterdir())[:per_class]):
            image = Image.open(path).convert("RGB")
            for name, strength in STRENGTHS.items():
                target = root / "imagenet-c" / name / str(SEVERITY) / folder.name / f"{path.stem}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                corrupted = known_corruptions()[name](np.asarray(image), np.random.default_rng(number), strength)
                Image.fromarray(corrupted).save(target)
    return root


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python benchmarks/cifar_tree.py CIFAR_FOLDER OUT, where CIFAR_FOLDER has train/ and val/")
    write_tree(Path(sys.argv[1]), Path(sys.argv[2]))
