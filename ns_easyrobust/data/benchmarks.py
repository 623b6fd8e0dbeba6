"""The evaluation sets: EasyRobust's folders, how each is labelled, and what a complete one contains.

EasyRobust labels class folders by their sorted order, so a missing or oddly named folder
silently shifts every label after it. Here labels come from the folder names where these
identify the class, and a folder whose labels cannot be determined is refused.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import DataError, OptionError
from ..utils import Registry
from . import imagenet
from .image_list import ImageList
from .known_labels import OtherClasses, class_labels, require_known_classes
from .label_files import find_labels
from .listing import IMAGE_ENDINGS, first_few, is_flat, is_image, list_folder, sorted_images_below, stem

SUITE_GROUPS = ("table2", "easyrobust", "all")  # names of several suites, so of no evaluation set or attack
IMAGENET_CLASSES = imagenet.CLASSES
ROBUSTBENCH = 5000  # images of the validation set, for attacks that are too slow for all of it
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
_logger = logging.getLogger(__name__)


def class_folders(root: str | Path, outputs: int, transform: Any = None) -> ImageList:
    """The images ``root/<class>/**/<image>``, in ImageFolder's order.

    With 1000 outputs, folders named by WordNet id or class index ("7" or "0007") are labelled by name, so some
    classes may be absent. Other folders are labelled by their sorted order, as in training, one for each output.

    Raises:
        DataError: there is no such folder, it has no images, or the labels cannot be determined.
    """
    root = Path(root)
    names, labels = class_labels(root, outputs)
    paths = {name: sorted_images_below(root, name) for name in names}
    empty = [name for name in names if not paths[name]]
    if labels is None and empty:
        raise DataError(
            f"{root}: expected images in every class folder, found {len(empty)} without: "
            f"{first_few(empty)}. Labels would shift; fill or remove them."
        )
    labelled = "by the order of the folders" if labels is None else f"by {'index' if names[0].isdigit() else 'wnid'}"
    labels = labels or {name: label for label, name in enumerate(names)}
    pairs = [(path, labels[name]) for name in names for path in paths[name]]
    if outputs == imagenet.CLASSES:
        require_known_classes(root, pairs, labelled)
    return _image_list(root, pairs, outputs, transform, labelled)


def _image_list(root: Path, pairs: Sequence[tuple[str, int]], outputs: int, transform: Any, labelled: str) -> ImageList:
    if not pairs:
        raise DataError(f"{root}: expected images, found none ({', '.join(IMAGE_ENDINGS)}).")
    paths, labels = zip(*pairs, strict=True)
    return ImageList(root, paths, labels, outputs, transform, labelled=labelled)


def _require_imagenet(root: str | Path, outputs: int) -> None:
    if outputs != imagenet.CLASSES:
        raise OtherClasses(f"{root}: expected a model with ImageNet's 1000 outputs for this set, found {outputs}.")


def _restrict_to_classes(images: ImageList, classes: tuple[int, ...], title: str) -> ImageList:
    outside = sorted(set(images.labels) - set(classes))
    if outside:
        raise DataError(
            f"{images.root}: expected only {title}'s {len(classes)} classes, found {len(outside)} others: "
            f"{first_few([imagenet.wnids()[c] for c in outside])}."
        )
    return replace(images, classes=classes)


def imagenet_a(root: str | Path, outputs: int, transform: Any = None) -> ImageList:
    """ImageNet-A; a prediction is the best of its 200 classes. Raises the errors of :func:`class_folders`."""
    _require_imagenet(root, outputs)
    return _restrict_to_classes(class_folders(root, outputs, transform), imagenet.imagenet_a_classes(), "ImageNet-A")


def imagenet_r(root: str | Path, outputs: int, transform: Any = None) -> ImageList:
    """ImageNet-R; a prediction is the best of its 200 classes. Raises the errors of :func:`class_folders`."""
    _require_imagenet(root, outputs)
    return _restrict_to_classes(class_folders(root, outputs, transform), imagenet.imagenet_r_classes(), "ImageNet-R")


def objectnet(root: str | Path, outputs: int, transform: Any = None) -> ImageList:
    """ObjectNet's images of ImageNet classes, with their 2-pixel red border cropped, as EasyRobust does.

    A label is the folder's position among all 313; a prediction may be any of the 1000 outputs.
    Raises DataError if some of the folders are missing, there are no images, or the model's outputs are not 1000.
    """
    root = Path(root)
    _require_imagenet(root, outputs)
    names, _ = list_folder(root)
    if len(names) != imagenet.OBJECTNET_FOLDERS:
        raise DataError(
            f"{root}: expected all {imagenet.OBJECTNET_FOLDERS} folders of ObjectNet, found {len(names)}. "
            "Labels follow the sorted folders, so they would be wrong."
        )
    answers = imagenet.objectnet_classes()
    kept: Collection[int] = set(answers.values())
    pairs = [
        (path, label) for label, name in enumerate(names) if label in kept for path in sorted_images_below(root, name)
    ]
    labelled = f"by the order of the {len(names)} folders"
    return replace(_image_list(root, pairs, outputs, transform, labelled), answers=answers, border=2)


def imagenet_val(root: str | Path, outputs: int, transform: Any = None) -> ImageList:
    """The validation set: class folders, or a flat folder with a label file in it or next to it.

    The label file is val.txt, Kaggle's LOC_val_solution.csv, or a CSV of file and class (index or WordNet id).
    Raises the errors of :func:`class_folders`; for a flat folder, DataError if there is no label file, an image
    has no label, or a label is not one of the outputs.
    """
    return _folders_or_flat(Path(root), Path(root), outputs, transform)


def damagenet(root: str | Path, outputs: int, transform: Any = None) -> ImageList:
    """DamageNet, in ``root`` or ``root/val``: class folders, or flat images and a label file such as val.txt.

    Files are matched by stem, because the labels list .JPEG files and the images are .png.
    Raises the errors of :func:`imagenet_val`.
    """
    root = Path(root)
    inner = root / "val"
    return _folders_or_flat(root, inner if os.path.isdir(inner) else root, outputs, transform)


def _folders_or_flat(root: Path, folder: Path, outputs: int, transform: Any) -> ImageList:
    if not is_flat(folder):
        return class_folders(folder, outputs, transform)
    names = [name for name in list_folder(folder)[1] if is_image(name)]
    source, labels = find_labels(dict.fromkeys((folder, root, root.parent)), {stem(name) for name in names})
    pairs = [(name, labels[stem(name)]) for name in names if stem(name) in labels]
    if outputs == imagenet.CLASSES:
        require_known_classes(folder, pairs, f"by {source.name}")  # which knows why a label may be outside
    unlabelled = [name for name in names if stem(name) not in labels]
    outside = [name for name in names if not 0 <= labels.get(stem(name), 0) < outputs]
    largest = max(label for _, label in pairs)
    hint = " Do the labels count from 1?" if largest == outputs and 0 not in labels.values() else ""
    for problem, bad_names in (("without a label", unlabelled), (f"with a label outside 0 to {outputs - 1}", outside)):
        if bad_names:
            other_classes = bad_names is outside and outputs != imagenet.CLASSES
            raise (OtherClasses if other_classes else DataError)(
                f"{folder}: expected a label in {source.name} for each of {len(names)} images, "
                f"found {len(bad_names)} {problem}, the first {bad_names[0]}.{hint}"
            )
    if len(labels) > len(names):
        _logger.warning("%s: %d images for the %d labels of %s", folder, len(names), len(labels), source)
    return _image_list(folder, pairs, outputs, transform, f"by {source.name}")


Loader = Callable[[str | Path, int, Any], ImageList]  # (root, number of the model's outputs, transform)


@dataclass(frozen=True)
class Benchmark:
    """One evaluation set as released.

    Attributes:
        name: of its suite.
        folder: path of its folder, relative to the data folder.
        load: reads that folder; for ImageNet-C, each of its ``<corruption>/<severity>`` folders.
        title: its name in papers.
        images: number of images; for ObjectNet, in its 113 classes that ImageNet has; for ImageNet-C, in each folder.
        side: side of its square images in pixels; None where sizes differ.
        taken_as_is: presets under which its images are not resized and cropped, if they have the model's size.
        record: its name in records; "" for ``name``.
        metric: of its column in Table 2.
        beside_train: folders that hold it beside ``train/`` in training folders, the preferred first.
        revision: to be raised by 1 when it counts otherwise than before: results of another one are measured anew.

    Example:
        >>> from ns_easyrobust.data import imagenet_val
        >>> len(Benchmark("digits", "val", imagenet_val, "Digits").load(data_dir / "val", 10, None))
        40
    """

    name: str
    folder: str
    load: Loader
    title: str
    images: int = 50000
    side: int | None = None
    taken_as_is: tuple[str, ...] = ()
    record: str = ""
    metric: str = "top1"
    beside_train: tuple[str, ...] = ()
    revision: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "record", self.record or self.name)

    @property
    def released_images(self) -> int:
        """How many images the whole set has."""
        return self.images * (1 if self.metric == "top1" else len(ALEXNET_ERROR) * len(SEVERITIES))


_BENCHMARKS: Registry[Benchmark] = Registry("benchmark", namespace="suite", reserved=SUITE_GROUPS)


def register_benchmark(benchmark: Benchmark) -> Benchmark:
    """Make an evaluation set a suite of ``benchmark``, and known to ``doctor``; OptionError if its name is taken.

    Example:
        >>> from ns_easyrobust.data import imagenet_val, known_benchmarks
        >>> digits = register_benchmark(Benchmark("digits", "val", imagenet_val, "Handwritten digits"))
        >>> known_benchmarks()["digits"] is digits
        True
    """
    if any(other.record == benchmark.record for other in _BENCHMARKS.values() if other.name != benchmark.name):
        raise OptionError(f"benchmark {benchmark.name!r}: expected a new name in records, found {benchmark.record!r}.")
    _BENCHMARKS.add(benchmark.name, benchmark, repr(benchmark))
    return benchmark


def known_benchmarks() -> dict[str, Benchmark]:
    """Every evaluation set by name: those below, and others that were registered."""
    return _BENCHMARKS.complete()


_AT_224 = ("paper", "native")  # presets that leave sets made at 224 pixels as they are
for _benchmark in (
    Benchmark(
        "val", "imagenet-val", imagenet_val, "ImageNet validation",
        record="imagenet-val", beside_train=("val", "validation", "test"),
    ),
    Benchmark("a", "imagenet-a", imagenet_a, "ImageNet-A", 7500, record="imagenet-a"),
    Benchmark("r", "imagenet-r", imagenet_r, "ImageNet-R", 30000, record="imagenet-r"),
    Benchmark("sketch", "imagenet-sketch", class_folders, "ImageNet-Sketch", images=50889, record="imagenet-sketch"),
    Benchmark("v2", "imagenetv2", class_folders, "ImageNet-V2", images=10000, record="imagenet-v2"),
    Benchmark(
        "stylized", "imagenet-style", class_folders, "Stylized-ImageNet",
        side=224, taken_as_is=_AT_224, record="imagenet-stylized",
    ),
    Benchmark(
        "c", "imagenet-c", class_folders, "ImageNet-C",
        side=224, taken_as_is=_AT_224, record="imagenet-c", metric="mce",
    ),
    Benchmark("objectnet", "ObjectNet/images", objectnet, "ObjectNet", 18574),
    Benchmark("damagenet", "damagenet", damagenet, "DamageNet", side=224, taken_as_is=("native",)),
):  # fmt: skip
    register_benchmark(_benchmark)
