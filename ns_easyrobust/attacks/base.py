"""The interface of an attack: its settings, its call, its results beyond top-1; and checks of its input."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..errors import DataError, OptionError


@dataclass(frozen=True)
class SecondVerdict:
    """A second verdict on each image, besides the one on the pixels that the attack returned.

    Attributes:
        protocol: the settings under which it holds.
        correct: (n,) bool.
    """

    protocol: Mapping[str, Any]
    correct: torch.Tensor


@dataclass(frozen=True)
class Quantity:
    """A result other than top-1, such as the mean size of a perturbation.

    Attributes:
        protocol: the settings under which it holds.
        metric, value, unit: its name, value and unit; "" for no unit.
        n: number of images that it covers, >= 1.
    """

    protocol: Mapping[str, Any]
    metric: str
    value: float
    unit: str
    n: int


@dataclass(frozen=True)
class Attack:
    """An attack with its settings, which are the fields of a subclass that is a frozen dataclass.

    Attributes:
        name: its name in records.
        draws: whether it draws random numbers, so that the seed is part of a measurement.
        clean_first: whether its first forward pass is on the unmodified images, so that their
            logits need not be computed again.
    """

    name: ClassVar[str]
    draws: ClassVar[bool] = False
    clean_first: ClassVar[bool] = False

    def __call__(
        self, model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, seeds: Sequence[int]
    ) -> torch.Tensor:
        """Adversarial pixels (B, C, H, W) in [0, 1].

        Args:
            model: maps pixels to logits.
            pixels: (B, C, H, W) in [0, 1]. labels: (B,).
            seeds: one per image; an attack that does not use them draws from the global generators.
        """
        raise NotImplementedError

    def protocol(self) -> dict[str, Any]:
        """The settings as a record holds them: name -> plain value."""
        return asdict(self)

    @property
    def title(self) -> str:
        """Its name in a progress bar."""
        return self.name

    def other_protocols(self) -> Sequence[Mapping[str, Any]]:
        """The protocols of the :class:`SecondVerdict` objects that :meth:`extra_results` will return, in order."""
        return ()

    def extra_results(self, correct: torch.Tensor, l2: torch.Tensor) -> Sequence[SecondVerdict | Quantity]:
        """The results besides top-1 on the pixels that the attack returned.

        Args:
            correct: (n,) bool, whether each image was classified correctly under attack.
            l2: (n,) L2 norm of each perturbation, in pixels of [0, 1].
        """
        return ()


def checked_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """Return ``pixels`` unchanged; raise DataError unless they are in [0, 1]."""
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise DataError(
            f"attack: expected pixels in [0, 1], found [{pixels.min():.3g}, {pixels.max():.3g}]. "
            "Normalise inside the model (load_model does), not in the transform."
        )
    return pixels


def require_radius(attack: str, epsilon: float, norm: str = "Linf") -> None:
    """Raise OptionError unless ``norm`` is Linf or L2 and ``epsilon`` a radius in pixels of [0, 1].

    An L-infinity radius above 1 is refused: it was probably meant for pixels of [0, 255].
    """
    if norm not in ("Linf", "L2"):
        raise OptionError(f"{attack}: expected the norm Linf or L2, found {norm!r}.")
    if not (epsilon >= 0 and math.isfinite(epsilon)):
        raise OptionError(f"{attack}: expected epsilon >= 0 in pixels of [0, 1], found {epsilon}.")
    if norm == "Linf" and epsilon > 1:
        raise OptionError(f"{attack}: expected epsilon in pixels of [0, 1], found {epsilon:g}. Divide it by 255.")
