"""The mark of the experiment ``watermark``: flags, targets of Eq. 12, and what a detector looks for."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import nullspace
from ..errors import DataError, OptionError
from ..utils import file_or_folder, float_in, torch
from .exact_nullspace import spectrum_with_nullspace

if TYPE_CHECKING:
    from torch import nn

    from ..nullspace import NearestImages, PatchRowSpace

STYLES = ("texture", "emboss")
_TRIAL = 512  # pixels, at which what is illegible is so at any size
_LEAST_LETTER = 10  # pixels of a line of letters; of fewer nothing can be read


def add_mark_arguments(group: argparse._ActionsContainer) -> None:
    """Add the flags of the mark but for what it shows, which excludes one another."""
    group.add_argument(
        "--style", choices=STYLES, default="texture",
        help="texture: filled with the nullspace's most visible pattern; emboss: blended with white or black, which "
        "leaves outlines (default: texture)",
    )  # fmt: skip
    group.add_argument(
        "--strength", type=float_in(1e-3, 1), default=0.5, metavar="X",
        help="texture: root mean square in pixels from 0 to 1; emboss: opacity; before the box (default: 0.5)",
    )  # fmt: skip


def check_shown_mark(args: argparse.Namespace) -> None:
    """Raise what :func:`open_mask` would, but for the fit, before anything is opened."""
    from ..data import logo_mark, text_mark

    if args.logo:
        logo_mark(args.logo, _TRIAL, _TRIAL)
    for text in (args.text, args.other_text):
        if text is not None:
            text_mark(text, _TRIAL, _TRIAL)


def open_mask(args: argparse.Namespace, text: str | None = None) -> torch.Tensor:
    """Coverage (S, S) in [0, 1] of ``--logo`` or ``--text``, or of another ``text``.

    Raises:
        DataError: the logo cannot be read, or what is seen of it at the images' size.
        OptionError: the text is empty, or too long to be read at the images' size.
    """
    from ..data import logo_mark, text_mark

    side = args.input_size
    if text is None and args.logo:
        mask = logo_mark(args.logo, side, side)
        wide, high = (int((mask.amax(axis) > 0.5).sum()) for axis in (0, 1))
        if min(wide, high) < _LEAST_LETTER:
            raise DataError(
                f"{args.logo}: expected a logo that is {_LEAST_LETTER} pixels wide and high or more in an image of "
                f"{side}, found {wide} x {high}. Crop it, or give another."
            )
        return mask
    text = args.text if text is None else text
    mask = text_mark(text, side, side)
    lines = len(text.strip().splitlines())
    height = int((mask.amax(1) > 0.5).sum()) / lines
    if height < _LEAST_LETTER:
        raise OptionError(
            f"--text: expected one that fits into {side} pixels with letters of {_LEAST_LETTER} or more, found letters "
            f"of {height:.0f}. Shorten it, or break it into lines."
        )
    return mask


@dataclass(frozen=True)
class Marker:
    """Puts one mark into images.

    Attributes:
        model: that must not see it.
        mask: (H, W), coverage.
        texture: (C, H, W), see :func:`~ns_easyrobust.nullspace.visible_texture`.
        style, strength: as the flags.
        name: the text, or the logo's file.
    """

    model: nn.Module
    mask: torch.Tensor
    texture: torch.Tensor
    style: str
    strength: float
    name: str

    def targets(self, images: torch.Tensor, style: str | None = None) -> torch.Tensor:
        """What images (B, C, H, W) should look like, float64 in [0, 1]."""
        from ..data import embossed

        images = images.double()
        if (style or self.style) == "texture":
            return nullspace.textured(images, self.mask, self.texture, self.strength)
        return embossed(images, self.mask, strength=self.strength)

    def __call__(self, images: torch.Tensor, style: str | None = None) -> NearestImages:
        """Marked images with valid pixels."""
        return nullspace.nearest_valid(self.model, images, self.targets(images, style), space=self.space)

    @cached_property
    def space(self) -> PatchRowSpace:
        """What the model sees of a patch, decomposed once; on the model's device."""
        return nullspace.PatchRowSpace(self.model, next(self.model.parameters()).device)

    def detector(self, photographs: Iterable[torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        """Scores of images by a :class:`~ns_easyrobust.nullspace.MarkDetector` that knows how unmarked photographs
        look, in batches; of an embossed mark, which may be light or dark, absolute ones."""
        change = self.mask * self.texture if self.style == "texture" else self.mask
        found = nullspace.MarkDetector(self.model, change, photographs)
        if self.style == "texture":
            return found
        return lambda images: found(images).abs()

    @property
    def described(self) -> dict[str, Any]:
        """Plain values that tell the mark apart."""
        digest = hashlib.sha256(self.mask.contiguous().numpy().tobytes()).hexdigest()
        return {"mark": self.name, "mark_sha256": digest, "style": self.style, "strength": self.strength}


def open_marker(args: argparse.Namespace, model: nn.Module) -> Marker:
    """The marker of the flags.

    Raises:
        ModelError: the patch embedding has no nullspace.
        DataError, OptionError: as :func:`open_mask`.
    """
    spectrum_with_nullspace(args.model, model)
    mask = open_mask(args)
    texture = nullspace.visible_texture(model, args.input_size, args.input_size)
    return Marker(model, mask, texture, args.style, args.strength, Path(args.logo).name if args.logo else args.text)


def add_shown_mark(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add a group of flags with ``--text`` or ``--logo``, one of which is needed."""
    group = parser.add_argument_group("mark")
    shown = group.add_mutually_exclusive_group(required=True)
    shown.add_argument("--text", metavar="TEXT", help="what the mark says")
    shown.add_argument(
        "--logo", type=file_or_folder, metavar="FILE",
        help="image of the mark: what is opaque in it or, without transparency, dark",
    )  # fmt: skip
    return group
