"""The check of experiments that need a patch embedding with a nullspace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import nullspace
from ..errors import ModelError

if TYPE_CHECKING:
    from torch import nn

    from ..nullspace import PatchSpectrum


def spectrum_with_nullspace(name: str, model: nn.Module) -> PatchSpectrum:
    """The patch embedding's spectrum in pixel space.

    Args:
        name: of the model, for the message.

    Raises:
        ModelError: its nullspace is trivial, or it is not linear.
    """
    spectrum = nullspace.patch_spectrum(model, space="pixel")
    if not spectrum.nullity:
        raise ModelError(
            f"{name}: expected a patch embedding with a nullspace, found rank {spectrum.rank} for {spectrum.input_dim} "
            "numbers a patch, which leaves none. Choose a model with larger patches or a smaller width."
        )
    return spectrum
