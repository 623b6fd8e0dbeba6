"""Opening images with masks, or with masks that are yet to be made."""

from __future__ import annotations

import logging
from contextlib import closing
from pathlib import Path

from ...data import ClassFolders, check_class_count, open_image_folder
from ...errors import OptionError
from ...models import reference_tensor
from ...utils import (
    FileLock,
    Progress,
    broadcast_object,
    nn,
    on_first_rank,
    os_errors_as_output_errors,
)
from .choice import choose, places_in, with_masks_in
from .masked_images import MaskedImage, MaskedImages
from .sheet import write_sheet
from .token_cut_folder import TokenCutFolder

_logger = logging.getLogger(__name__)


def open_masks(
    images: str | Path,
    masks: str | Path | None,
    model: nn.Module,
    size: int,
    *,
    per_class: int = 3,
    seed: int = 0,
    cache: str | Path | None = None,
    tau: float = 0.2,
    as_published: bool = False,
    most_classes: int | None = None,
    num_classes: int | None = None,
) -> MaskedImages:
    """Images of each class with masks of their foreground; without masks, TokenCut makes them from the model's keys.

    All that is taken is read once here, so that bad files end before training. Rank 0 does it; the others wait.

    Args:
        images: class folders; the labels follow the order of their names, as in training.
        masks: folder in ImageNet-S's format, ``<class>/<image>.png``; None: TokenCut.
        model: gives the keys; not used where there are masks.
        size: side of the square images that the model takes, in pixels.
        per_class: images of each class (RobustViT: 3).
        seed: of the choice.
        cache: folder for TokenCut's masks, with ``masks.json`` of what made them, and ``sheet.png`` to look at. It can
            be given as ``masks`` afterwards. Where it holds masks of this model and these images, they are used.
        tau, as_published: of :func:`~ns_easyrobust.training.masks.token_cut_folder.mask_of`.
        most_classes: take so many classes, by ``seed`` (RobustViT: 500); None: all.
        num_classes: how many class folders there must be; None: any number.

    Raises:
        OptionError: a number is out of its range, or neither masks nor a cache were given.
        DataError: a folder is missing or not as above, or an image or a mask cannot be read or do not fit.
        ModelError: the model's keys cannot be read.
        OutputError: the cache was made otherwise, or cannot be written, or another process is at work on it.
    """
    if per_class < 1 or size < 1 or not -1 <= tau < 1 or (most_classes is not None and most_classes < 1):
        raise OptionError(
            "masks: expected per_class, size and most_classes of at least 1 and tau from -1 to below 1, found "
            f"{per_class}, {size}, {most_classes} and {tau}."
        )
    if masks is None and cache is None:
        raise OptionError("masks: expected a folder of masks, or one to put TokenCut's masks into, found neither.")
    opened: tuple[list[MaskedImage], list[str]] | None = None

    def open_on_this_rank() -> None:
        nonlocal opened
        folder = open_image_folder(images)
        if num_classes is not None:
            check_class_count(images, len(folder.classes), num_classes)
        if masks is not None:
            chosen = choose(with_masks_in(Path(masks), folder), per_class, seed, most_classes)
        else:
            made = TokenCutFolder(Path(cache), folder, model, size, tau, as_published)  # type: ignore[arg-type]  # checked above
            chosen = _cut(made, folder, per_class, seed, most_classes)
        opened = chosen, folder.classes

    on_first_rank(open_on_this_rank, reference_tensor(model).device)
    items, classes = broadcast_object(opened)  # type: ignore[misc]  # rank 0 has it
    return MaskedImages(items, classes, images)


def _cut(
    made: TokenCutFolder, images: ClassFolders, per_class: int, seed: int, most_classes: int | None
) -> list[MaskedImage]:
    """Choose images while their masks are made, and draw the sheet."""
    items = places_in(made.folder, images)
    made.require_readable_keys()
    with os_errors_as_output_errors(made.folder):
        made.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(made.folder / ".masks.lock", "these masks"), closing(Progress(1, shown=True)) as progress:
        made.begin()
        progress.start("masks", per_class * min(len(images.classes), most_classes or len(images.classes)))
        chosen = choose(items, per_class, seed, most_classes, prepare=made.make, advance=progress.batch)
        write_sheet(MaskedImages(chosen, images.classes, images.root), sheet := made.folder / "sheet.png")
    _logger.info("TokenCut: %d masks made, the others were in %s; look at %s", made.made, made.folder, sheet)
    return chosen
