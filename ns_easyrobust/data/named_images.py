"""Sets of images by name, through timm's ``create_dataset``: ``torch/NAME`` of torchvision, ``hfds/NAME`` of the Hub.

An exact resume, and the same augmentation whatever the number of workers, need an index; sets that are read as a stream
(``wds/``, ``tfds/``, ``hfids/``) have none and are refused. No code in a file runs: torchvision compares CIFAR's
pickles with their published MD5 before it reads them, MNIST's of old versions are refused here, and ``datasets`` runs
no scripts of a set since its version 4.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import DataError, OptionError, is_full_memory
from ..utils import import_package, np
from .image_reading import read_image, read_image_bytes
from .listing import first_few

_STREAMS = ("wds", "tfds", "hfids")
_HASHED = 100  # images whose content a set's digest covers, at least, or all


def check_dataset_name(name: str) -> None:
    """Raise OptionError unless ``name`` is of a set that :func:`open_named_splits` can open in this environment."""
    prefix, _, rest = name.partition("/")
    prefix = prefix.lower()
    if prefix in _STREAMS:
        raise OptionError(
            f"dataset {name}: expected a set whose images are found by an index, found one that is read as a stream; "
            "exact resume and augmentation by image need an index. Take torch/... or hfds/..., or a folder."
        )
    if prefix not in ("torch", "hfds") or not rest:
        raise OptionError(
            f"dataset {name}: expected torch/NAME or hfds/NAME, as timm's create_dataset takes them, found another. "
            "Leave it out for a folder with one subfolder a class."
        )
    if prefix == "torch":
        return
    if (installed := importlib.metadata.version("timm")).startswith("0."):
        raise OptionError(f"dataset {name}: expected timm 1.x, which reads hfds/ sets, found timm {installed}.")
    import_package("datasets", f"dataset {name}")
    if int((installed := importlib.metadata.version("datasets")).split(".")[0]) < 4:
        raise OptionError(
            f"dataset {name}: expected datasets of version 4 or later, which runs no code of a set's own, found "
            f"{installed}. Run: pip install --upgrade datasets"
        )


class NamedImages:
    """One split of a set by name: RGB images, in the order of the set, with their labels.

    Attributes:
        root: name and split, for messages.
        classes: names of the classes; the numbers as text where the set has no names for its labels.
        targets: the label of each image.
    """

    def __init__(self, source: Any, root: str, targets: list[int], classes: list[str]) -> None:
        self.source, self.root, self.targets, self.classes = source, root, targets, classes

    def __len__(self) -> int:
        return len(self.targets)

    def read(self, index: int) -> Image.Image:
        """Image ``index`` as 8-bit RGB.

        Raises:
            DataError: it cannot be read or decoded.
        """
        where = f"{self.root}, image {index}"
        if hasattr(self.source, "reader"):
            return read_image_bytes(self._encoded(index), where)
        try:
            image: Image.Image = self.source[index][0]
            return image.convert("RGB")
        except DataError:  # read_image's
            raise
        except Exception as error:  # torchvision's and Pillow's, of damaged files
            if is_full_memory(error):
                raise
            raise DataError(f"{where}: expected an image, found none that can be read ({_reason(error)}).") from error

    def _encoded(self, index: int) -> bytes:
        """The file of image ``index`` of a Hugging Face set: timm's own reading skips to the next where one is bad."""
        try:
            with self.source.reader[index][0] as stream:
                return bytes(stream.read())
        except Exception as error:  # no column of images, no file at the path
            if is_full_memory(error):
                raise
            raise DataError(
                f"{self.root}, image {index}: expected an image in column {self.source.reader.image_key!r}, found none "
                f"({_reason(error)}). Check input_key."
            ) from error

    def digest(self) -> str:
        """SHA-256 of number, labels and classes of the images, and of the content of some of them."""
        digest = hashlib.sha256("\n".join([str(len(self)), *self.classes]).encode(errors="surrogateescape"))
        digest.update(np.asarray(self.targets, dtype="<i8").tobytes())
        for index in range(0, len(self), max(1, len(self) // _HASHED)):
            try:
                content = self._encoded(index) if hasattr(self.source, "reader") else self.read(index).tobytes()
            except DataError:  # it is told, or replaced, when it is read
                content = b""
            digest.update(hashlib.sha256(content).digest())
        return digest.hexdigest()


def open_named_splits(
    name: str,
    root: str | Path | None,
    splits: Sequence[str],
    *,
    download: bool = False,
    input_key: str | None = None,
    target_key: str | None = None,
) -> list[NamedImages]:
    """The ``splits`` of the set ``name``.

    Args:
        name: 'torch/NAME' or 'hfds/NAME', as timm's ``create_dataset`` takes them.
        root: folder that holds the set; of an ``hfds/`` set its cache, None for the usual one.
        download: let torchvision download what is not there; Hugging Face's sets always are.
        input_key, target_key: columns of the images and labels of an ``hfds/`` set (default: image, label).

    Raises:
        OptionError: the name is of no set that can be opened here, see :func:`check_dataset_name`.
        DataError: the set is not there or damaged, or its labels are not numbers from 0; or two splits are the same.
    """
    check_dataset_name(name)
    keys = {"input_key": input_key, "target_key": target_key}
    given = {key: value for key, value in keys.items() if value is not None}
    sources = [_open(name, root, split, download, given) for split in splits]
    places = [f"{name}, split {split}" for split in splits]
    targets = [_targets(source, place) for source, place in zip(sources, places, strict=True)]
    number = 1 + max(max(labels) for labels in targets)
    opened = []
    for source, place, labels in zip(sources, places, targets, strict=True):
        classes = _class_names(source) or [str(label) for label in range(number)]
        if min(labels) < 0 or max(labels) >= len(classes):
            odd = min(labels) if min(labels) < 0 else max(labels)
            raise DataError(
                f"{place}: expected labels from 0 to {len(classes) - 1}, found {odd}. Take a split that has labels."
            )
        opened.append(NamedImages(source, place, labels, classes))
    first, *others = opened
    for split, other in zip(splits[1:], others, strict=True):
        if split != splits[0] and other.targets == first.targets and other.digest() == first.digest():
            raise DataError(
                f"{name}: expected two splits, found the same images in {splits[0]} and {split}. Check their names."
            )
    return opened


def _open(name: str, root: str | Path | None, split: str, download: bool, keys: dict[str, str]) -> Any:
    """timm's dataset; of torchvision's, those that read image files do it by :func:`read_image`."""
    from timm.data import create_dataset

    _refuse_old_mnist(name, root)
    try:
        source = create_dataset(name, None if root is None else str(root), split=split, download=download, **keys)
    except Exception as error:  # AssertionError, TypeError and whatever torchvision, datasets and the network raise
        if is_full_memory(error):
            raise
        raise DataError(
            f"dataset {name}: expected a set with a split {split}, found none that can be opened ({_reason(error)})."
        ) from error
    if not len(source):
        raise DataError(f"dataset {name}: expected images in split {split}, found none.")
    if hasattr(source, "loader"):
        source.loader = read_image
    return source


def _refuse_old_mnist(name: str, root: str | Path | None) -> None:
    """Raise DataError if torchvision would load what its versions before 0.9 left: pickles, which may hold code."""
    if name.lower().endswith("mnist") and root is not None:
        for path in sorted(Path(root).glob("*/processed/*.pt")):
            raise DataError(
                f"{path}: expected MNIST's own files in raw/, found a pickle of an old torchvision. Remove its folder."
            )


def _targets(source: Any, place: str) -> list[int]:
    if hasattr(source, "reader"):
        key, columns = source.reader.label_key, source.reader.dataset.column_names
        if key not in columns:
            raise DataError(
                f"{place}: expected a column {key!r} of labels, found {first_few(columns, 10)}. Give target_key."
            )
        values = source.reader.dataset.with_format("numpy")[key][:]
    elif getattr(source, "target_type", ["full"]) != ["full"]:  # INaturalist's kingdom, phylum, ...
        raise DataError(f"{place}: expected one label an image, found {source.target_type}. Name the split alone.")
    else:  # INaturalist has no targets, but an index of (label, file)
        values = source.targets if hasattr(source, "targets") else [label for label, _ in source.index]
    labels = np.asarray(values)
    if labels.ndim == 2 and not hasattr(source, "reader"):  # QMNIST: the label, and seven numbers about the writer
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{place}: expected one whole number an image as its label, found {labels.dtype} of shape {labels.shape}. "
            "Name the column of labels (target_key), or write the images into one folder a class."
        )
    return [int(label) for label in labels]


def _class_names(source: Any) -> list[str]:
    """The set's names of its classes; none where it has none."""
    if hasattr(source, "reader"):
        return list(source.reader.class_to_idx)
    names = getattr(source, "classes", None) or getattr(source, "all_categories", [])
    return [", ".join(name) if isinstance(name, tuple) else str(name) for name in names]


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
