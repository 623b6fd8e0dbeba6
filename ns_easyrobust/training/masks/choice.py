"""Which images are taken: so many of each class, by a seed, of those that have a mask that says something."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from ...data import ClassFolders, images_below, list_folder
from ...errors import DataError
from ...utils import derive_seed, torch
from .mask_files import flaw
from .masked_images import MaskedImage, read_pair

_MOST_TRIES = 10  # times the images that are wanted of a class: where so many have no mask, the others have none
_logger = logging.getLogger(__name__)


def with_masks_in(folder: Path, images: ClassFolders) -> list[MaskedImage]:
    """The images that have a mask ``folder/<class>/.../<name>.png``, by label and path.

    Raises:
        DataError: the folder is missing, or has no masks that fit, or one that fits two images.
    """
    masks = {name: {f"{folder}/{path}" for path in images_below(folder, name)} for name in list_folder(folder)[0]}
    items = [item for item in _places(folder, images) if item.mask in masks.get(images.classes[item.label], ())]
    total = sum(map(len, masks.values()))
    if not items:
        known = len(set(masks) & set(images.classes))
        raise DataError(
            f"{folder}: expected masks <class>/<image>.png of the images in {images.root}, found {total} that fit none "
            f"of them ({known} of {len(masks)} folders are named as classes there). Give the masks of these images."
        )
    _logger.info("%s: %d of %d masks have their image in %s", folder, len(items), total, images.root)
    return _distinct(items)


def places_in(folder: Path, images: ClassFolders) -> list[MaskedImage]:
    """Each image with the path that its mask has in ``folder``, whether there is one or not.

    Raises:
        DataError: two images of one class differ only in what their files' names end with.
    """
    return _distinct(_places(folder, images))


def _places(folder: Path, images: ClassFolders) -> list[MaskedImage]:
    below = len(images.root) + 1
    return [
        MaskedImage(path, f"{folder}/{os.path.splitext(path[below:])[0]}.png", label) for path, label in images.samples
    ]


def _distinct(items: list[MaskedImage]) -> list[MaskedImage]:
    mask, count = Counter(item.mask for item in items).most_common(1)[0]
    if count > 1:
        same = " and ".join(item.image for item in items if item.mask == mask)
        raise DataError(f"{mask}: expected one image for each mask, found {same}. Rename one of them.")
    return items


def choose(
    items: Sequence[MaskedImage],
    per_class: int,
    seed: int,
    most_classes: int | None = None,
    *,
    prepare: Callable[[MaskedImage], object] = lambda item: None,
    advance: Callable[[], object] = lambda: None,
) -> list[MaskedImage]:
    """Up to ``per_class`` of the ``items`` of each class, by label and then in the order that ``seed`` gives.

    What is taken does not depend on the order in which a file system lists files, as it does in RobustViT. Masks that
    are all background, all foreground, or of several classes are passed over, and their numbers logged.

    Args:
        per_class: at most ten times as many are looked at.
        most_classes: take so many classes, by ``seed``; None: all.
        prepare: called before the mask of an item is read, to make it.
        advance: called after each item that is taken.

    Raises:
        DataError: a mask or its image cannot be read, they do not fit each other, or no mask is left.
    """
    by_label: dict[int, list[MaskedImage]] = {}
    for item in items:
        by_label.setdefault(item.label, []).append(item)
    labels = [sorted(by_label)[place] for place in _order(len(by_label), seed, 0)[:most_classes]]
    chosen, left_out = list[MaskedImage](), Counter[str]()
    for label in sorted(labels):
        taken = 0
        for place in _order(len(by_label[label]), seed, 1, label)[: _MOST_TRIES * per_class]:
            if taken == per_class:
                break
            item = by_label[label][place]
            prepare(item)
            if reason := flaw(read_pair(item)[1]):
                left_out[reason] += 1
                continue
            chosen.append(item)
            taken += 1
            advance()
    told = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
    if left_out:
        _logger.warning("masks passed over: %s", told)
    if not chosen:
        raise DataError(
            f"{Path(items[0].mask).parent.parent}: expected masks with a foreground and a background, found none: "
            f"{told}. Give others; or, for TokenCut, another tau."
        )
    _logger.info("masks: %d images of %d classes", len(chosen), len({item.label for item in chosen}))
    return chosen


def _order(length: int, *seeds: int) -> list[int]:
    order: list[int] = torch.randperm(length, generator=torch.Generator().manual_seed(derive_seed(*seeds))).tolist()
    return order
