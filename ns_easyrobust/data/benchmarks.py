"""The evaluation sets: EasyRobust's folder names, how each is labelled, and what a whole one holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from . import image_list as images
from .image_list import ImageList

Loader = Callable[[str | Path, int, Any], ImageList]  # (root, the model's outputs, transform)


class Folder(NamedTuple):
    """One evaluation set as released.

    Attributes:
        name: of its folder below the data folder.
        load: that folder to a list; for ImageNet-C each ``<corruption>/<severity>`` of it.
        title: as papers call it.
        classes: class folders; 313 for ObjectNet, of which 113 count.
        images: how many; for ImageNet-C in each of the 75 folders.
        side: of its square images; None where sizes differ.
    """

    name: str
    load: Loader
    title: str
    classes: int = 1000
    images: int = 50000
    side: int | None = None


FOLDERS = {
    "val": Folder("imagenet-val", images.imagenet_val, "ImageNet validation"),
    "a": Folder("imagenet-a", images.imagenet_a, "ImageNet-A", 200, 7500),
    "r": Folder("imagenet-r", images.imagenet_r, "ImageNet-R", 200, 30000),
    "sketch": Folder("imagenet-sketch", images.class_folders, "ImageNet-Sketch", images=50889),
    "v2": Folder("imagenetv2", images.class_folders, "ImageNet-V2", images=10000),
    "stylized": Folder("imagenet-style", images.class_folders, "Stylized-ImageNet", side=224),
    "c": Folder("imagenet-c", images.class_folders, "ImageNet-C", side=224),
    "objectnet": Folder("ObjectNet/images", images.objectnet, "ObjectNet", 313, 18574),
    "damagenet": Folder("damagenet", images.damagenet, "DamageNet", side=224),
}

ROBUSTBENCH = 5000  # of the validation set's images: for attacks too slow for all
SEVERITIES = range(1, 6)
# Top-1 error of AlexNet on each corruption, the denominators of mCE (Hendrycks and Dietterich 2019).
ALEXNET_ERROR = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


def released_images(suite: str) -> int:
    """How many images the whole set behind ``suite``, as records name it, has; attacks are on the validation set."""
    if suite == "imagenet-c":
        return FOLDERS["c"].images * len(ALEXNET_ERROR) * len(SEVERITIES)
    return FOLDERS.get(suite.removeprefix("imagenet-"), FOLDERS["val"]).images
