"""Triplets of source, target and transformed image as files: whole, and as small as a picture shows them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from .. import nullspace, report
from ..utils import np, os_errors_as_output_errors, torch, write_atomically
from .triplets import Pairs

_SHOWN_SIDE = 224  # pixels


def write_triplet(folder: Path, number: int, factor: int, pair: Pairs, images: Mapping[str, torch.Tensor]) -> None:
    """Write a pair's images.

    ``images/<number>-<factor>x-transformed.png``, of 8 bits, rounded within the nullspace, and ``-transformed.npy``,
    the transformed image before rounding, (C, H, W) float32 in [0, 1]; beside them ``-source.png`` and
    ``-target.png``. ``shown-<number>-<factor>x-<which>.jpg`` are small copies, for the picture.

    Args:
        pair: one.
        images: (C, H, W) by kind, LATTICE and VALID among them.

    Raises:
        OutputError: the folder cannot be written.
    """
    kinds = nullspace.TransformedKinds
    whole = folder / "images"
    with os_errors_as_output_errors(whole):
        whole.mkdir(exist_ok=True)
    shown = {"source": pair.sources[0], "target": pair.targets[0], "transformed": images[kinds.LATTICE]}
    for which, pixels in shown.items():
        picture = _as_image(pixels)
        stem = f"{number}-{factor}x-{which}"
        write_atomically(whole / f"{stem}.png", partial(picture.save, format="PNG", optimize=True))
        filtering = 0 if picture.width <= _SHOWN_SIDE else 4  # Pillow's NEAREST and BOX
        small = picture.resize((_SHOWN_SIDE, _SHOWN_SIDE), filtering)
        save = partial(small.save, format="JPEG", quality=92)
        write_atomically(folder / report.shown_triplet_name(number, factor, which), save)
    exact = images[kinds.VALID].float().cpu().numpy()

    def save_exact(path: Path) -> None:
        with path.open("wb") as stream:
            np.save(stream, exact)

    write_atomically(whole / f"{number}-{factor}x-transformed.npy", save_exact)


def _as_image(pixels: torch.Tensor):  # type: ignore[no-untyped-def]
    from PIL import Image

    levels = (pixels.double() * 255).round().cpu().numpy().astype(np.uint8)
    return Image.fromarray(levels.transpose(1, 2, 0))
