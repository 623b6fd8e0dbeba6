"""Images with masks as training takes them: resized, cropped and flipped alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ...data import read_image
from ...utils import derive_seed, np, torch
from .mask_files import read_ids, require_fitting


class MaskedImage(NamedTuple):
    """Paths of an image and of its mask, and the image's label."""

    image: str
    mask: str
    label: int


class MaskedPair(NamedTuple):
    """What training takes: pixels (3, S, S) float32 in [0, 1], mask (1, S, S) float32 in [0, 1], label."""

    image: torch.Tensor
    mask: torch.Tensor
    label: int


class MaskedImages:
    """Images with masks of their foreground, by index; can be pickled.

    Args:
        items: which; in this order.
        classes: names of all classes; their positions are the labels.
        root: folder of the images, for messages.

    Example:
        >>> from ns_easyrobust.training.masks import open_masks
        >>> masked = open_masks(data_dir / "train", None, model, 32, per_class=1, cache=tmp_dir / "masks")
        >>> image, mask, label = masked.pair(0, seed=1, size=32)
        >>> image.shape, mask.shape, label
        (torch.Size([3, 32, 32]), torch.Size([1, 32, 32]), 0)
    """

    def __init__(self, items: Sequence[MaskedImage], classes: Sequence[str], root: str | Path) -> None:
        self.items, self.classes, self.root = list(items), list(classes), str(root)

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        return f"MaskedImages({len(self)} images of {len({item.label for item in self.items})} classes in {self.root})"

    def pair(self, index: int, seed: int, size: int) -> MaskedPair:
        """Image ``index`` with its mask, both under the random crop and flip of ``seed``; see :func:`crop_alike`.

        Raises:
            DataError: the image or the mask cannot be read, or the mask is not of the image's proportions.
        """
        item = self.items[index]
        image, ids = read_pair(item)
        return MaskedPair(*crop_alike(image, ids > 0, seed, size), item.label)


def read_pair(item: MaskedImage) -> tuple[Image.Image, Any]:
    """The image as 8-bit RGB, and the ids (H, W) of its mask; raises the errors of :meth:`MaskedImages.pair`."""
    image, ids = read_image(item.image), read_ids(item.mask)
    require_fitting(image, item.image, ids, item.mask)
    return image, ids


def crop_alike(image: Image.Image, foreground: Any, seed: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """RobustViT's transform (segmentation_dataset.py:114-127): to a square of 256/224 ``size``, random crop, flip.

    Both are resized bilinearly over the area that a pixel covers, so that where it has both, the mask is the share of
    the foreground.

    Args:
        image: 8-bit RGB.
        foreground: (H, W) bool; need not be of the image's size.
        seed: of the crop's place, uniform, and of the flip, in half of all cases.
        size: S, side in pixels.

    Returns:
        Pixels (3, S, S) and mask (1, S, S), float32 in [0, 1].
    """
    generator = torch.Generator().manual_seed(derive_seed(seed))
    side = round(size * 256 / 224)
    left, top = torch.randint(side - size + 1, (2,), generator=generator).tolist()
    flipped = torch.rand((), generator=generator).item() > 0.5
    mask = Image.fromarray(np.where(foreground, 255, 0).astype(np.uint8))
    tensors = []
    for picture in (image, mask):
        picture = picture.resize((side, side), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
        values = np.asarray(picture, np.float32).reshape(size, size, -1)
        tensors.append(torch.from_numpy((values[:, ::-1] if flipped else values).copy() / 255).permute(2, 0, 1))
    return tensors[0].contiguous(), tensors[1].contiguous()
