"""EasyRobust's copy of the standard AutoAttack (Croce and Hein 2020, arXiv:2003.01690)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import OptionError
from ..models import frozen, logits_of
from ..utils import import_package, nn, setting, torch
from .base import Attack, register_attack, require_radius
from .inputs import attack_images


def require_ten_outputs(outputs: int) -> None:
    """Raise OptionError for fewer than 10 outputs: AutoAttack's targeted attacks need nine other classes."""
    if outputs < 10:
        raise OptionError(f"autoattack: expected a model of at least 10 outputs, found {outputs}.")


def autoattack(
    model: nn.Module,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    *,
    norm: str = "Linf",
    epsilon: float = 4 / 255,
    seed: int = 0,
) -> torch.Tensor:
    """EasyRobust's copy of the standard AutoAttack (Croce and Hein 2020), on the device of ``pixels``.

    Args:
        norm: "Linf" or "L2".
        epsilon: radius in pixels of [0, 1].

    Raises:
        DataError: pixels outside [0, 1]. OptionError: unknown norm, invalid radius, or fewer than 10 outputs.
            MissingPackageError: easyrobust is not installed.
    """
    require_radius("autoattack", epsilon, norm)
    standard = import_package("easyrobust.attacks", "autoattack")

    def run(inner: nn.Module, images: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            require_ten_outputs(inner(images[:1]).shape[-1])
        attack = standard.AutoAttack(
            inner, norm=norm, eps=epsilon, version="standard", device=images.device, seed=seed, verbose=False
        )
        adversarial: torch.Tensor = attack.run_standard_evaluation(images, indices, bs=len(images))
        return adversarial

    tracer = sys.gettrace()  # AutoAttack's check for dynamic defences removes it
    try:
        return attack_images("autoattack", model, pixels, labels, run)
    finally:
        sys.settrace(tracer)


@register_attack
@dataclass(frozen=True)
class AutoAttack(Attack):
    """:func:`autoattack` with ``norm``, "Linf" or "L2", and radius ``epsilon``."""

    name = "autoattack"
    package = "easyrobust"
    draws = True
    slowness = 4
    sampled = True

    norm: str = setting("Linf", "norm of the radius", choices=("Linf", "L2"))
    epsilon: float | None = setting(None, "radius; by default 4/255 for Linf", least=0, metavar="E")

    def __post_init__(self) -> None:
        if self.epsilon is None and self.norm == "L2":
            raise OptionError(f"autoattack: expected an epsilon for the norm {self.norm}, found none. Give a radius.")
        require_radius("autoattack", self.radius, self.norm)

    @property
    def radius(self) -> float:
        """``epsilon``, or the default of the L-infinity norm."""
        return 4 / 255 if self.epsilon is None else self.epsilon

    def require_applicable(self, model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> None:
        """Raise OptionError for a model of fewer than 10 outputs, MissingPackageError where easyrobust is missing."""
        super().require_applicable(model, pixels, labels)
        with frozen(model) as inner, torch.no_grad():
            require_ten_outputs(logits_of(inner(pixels)).shape[-1])

    def __call__(
        self, model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, seeds: Sequence[int]
    ) -> torch.Tensor:
        return autoattack(model, pixels, labels, norm=self.norm, epsilon=self.radius, seed=seeds[0] % 2**31)

    def protocol(self) -> dict[str, Any]:
        return {"epsilon": self.radius, "norm": self.norm.lower(), "version": "standard"}

    @property
    def title(self) -> str:
        return f"autoattack {self.norm}"
