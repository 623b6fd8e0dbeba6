"""A folder of TokenCut masks in ImageNet-S's format, made as they are needed, and what made them: masks.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from ...data import ClassFolders, list_folder, read_image
from ...errors import OutputError
from ...models import last_keys, reference_tensor, state_digest
from ...utils import nn, np, parse_json, read_bounded, remove_temporaries, torch, write_text
from .mask_files import write_mask
from .masked_images import MaskedImage
from .token_cut import token_cut

REVISION = 1  # of the masks; one that gives others is another
NAME = "masks.json"
_LONGEST = 2**20  # bytes
_LEAST_PATCHES = 2  # a single patch unlike all others is no object


class TokenCutFolder:
    """The masks of a model's images by TokenCut on the keys of its last block.

    Args:
        folder: new, empty, or made by this class with the same model, images and settings, and then completed.
        images: of all classes.
        model: whose keys are cut, as it is now.
        size: side of the square to which images are resized for the model.
        tau, as_published: of :func:`mask_of`.

    Attributes:
        made: masks that this object has made.

    Raises:
        OutputError: the folder is not as above.
    """

    def __init__(
        self, folder: Path, images: ClassFolders, model: nn.Module, size: int, tau: float, as_published: bool
    ) -> None:
        from ..resume import dataset_digest  # which needs torch

        self.folder, self.model, self.size, self.made = folder, model, size, 0
        self.tau, self.as_published = tau, as_published
        self.contents = {
            "made_by": "ns-easyrobust, TokenCut",
            "revision": REVISION,
            "model_sha256": state_digest(model),
            "size": size,
            "tau": tau,
            "as_published": as_published,
            "images_sha256": dataset_digest(images.samples, images.root),
        }
        self._is_new()

    def _is_new(self) -> bool:
        """Whether nothing is in the folder; raises OutputError where what is does not fit."""
        path = self.folder / NAME
        try:
            before = parse_json(read_bounded(path, _LONGEST))
            if not isinstance(before, dict):
                raise ValueError("no settings")
        except FileNotFoundError:
            if self.folder.exists() and any(list_folder(self.folder)):
                raise OutputError(
                    f"{self.folder}: expected a new or empty folder for masks, or one with a {NAME}, found one that "
                    "something else has made. Choose another; or give it as the folder of masks."
                ) from None
            return True
        except (OSError, ValueError) as error:
            raise OutputError(
                f"{path}: expected what the masks were made with, found: {error}. Choose another folder."
            ) from error
        for name, asked in self.contents.items():
            if before.get(name) != asked:
                raise OutputError(
                    f"{self.folder}: expected masks of this model and these images, found {name} {before.get(name)} "
                    f"where {asked} is asked for. Choose another folder, remove this one, or give it as the folder of "
                    "masks to use them all the same."
                )
        return False

    def require_readable_keys(self) -> None:
        """Raise ModelError unless the model's keys can be read, before anything is written."""
        pixels = reference_tensor(self.model).new_zeros(1, 3, self.size, self.size)
        last_keys(self.model, pixels)

    def begin(self) -> None:
        """Write masks.json where it is not yet, before the first mask, and remove what killed processes left.

        Call it, and :meth:`make`, only under a lock.

        Raises:
            OutputError: it cannot be written; or another process came first, with other settings.
        """
        if self._is_new():
            write_text(self.folder / NAME, json.dumps(self.contents, indent=2) + "\n")
        for name in list_folder(self.folder)[0]:
            remove_temporaries(self.folder / name)

    def make(self, item: MaskedImage) -> None:
        """Write the mask of ``item`` unless it is there; an empty file is what a power failure leaves.

        Where there is no cut, or a single patch is cut off, it is all background, and so not made again either.

        Raises:
            DataError: the image cannot be read. ModelError: the model's keys cannot be. OutputError: the mask cannot
                be written.
        """
        path = Path(item.mask)
        if path.is_file() and path.stat().st_size:
            return
        image = read_image(item.image)
        foreground = mask_of(self.model, image, self.size, self.tau, self.as_published)
        if foreground.sum() < _LEAST_PATCHES:
            foreground[:] = False
        write_mask(path, foreground, image.size)
        self.made += 1


def mask_of(model: nn.Module, image: Image.Image, size: int, tau: float, as_published: bool = False) -> Any:
    """The patches (height, width) bool that TokenCut takes for the object of ``image``, on the model's own keys.

    Args:
        size: side of the square to which the image is resized for the model.
        tau: patches are alike where the cosine of their keys is above this.
        as_published: keys as they are, and the side of the cut by the eigenvector alone: right for DINO's keys. Else
            keys are centred, and the class token's attention chooses the side.

    Raises:
        ModelError: the keys cannot be read, see :func:`~ns_easyrobust.models.last_keys`.
    """
    resized = image.resize((size, size), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.asarray(resized, np.float32) / 255).permute(2, 0, 1)[None]
    read = last_keys(model, pixels.to(reference_tensor(model)))
    attention = None if as_published else read.attention[0].double().cpu().numpy()
    return token_cut(read.keys[0].double().cpu().numpy(), read.grid, tau, attention, centred=not as_published)
