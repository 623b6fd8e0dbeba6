"""What experiments on the patch embedding's exact nullspace share: a check for it, and the model in float64."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .. import nullspace
from ..errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..nullspace import PatchSpectrum

_logger = logging.getLogger(__name__)


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


def in_float64(model: nn.Module, images: torch.Tensor) -> nn.Module | None:
    """A copy in float64; None, with a warning, of a model that does not run so."""
    try:
        exact: nn.Module = nullspace.float64_copy(model, images)[0]
    except ModelError as error:
        _logger.warning("the rows of float64 are left out: %s", error)
        return None
    return exact
