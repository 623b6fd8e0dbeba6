"""Gradient attacks from maintained libraries: pixels (B, C, H, W) in [0, 1] and labels (B,) to adversarial pixels.

FGSM, PGD and CW are torchattacks', which calls ``.backward()``; inside ``frozen()`` this leaves
the model's gradients and modes alone. It need not be installed, and is imported where it is used.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import OptionError
from ..models import frozen, logits_of
from ..utils import import_package, nn, setting, torch
from .base import LARGEST_STEP, Attack, Quantity, SecondVerdict, register_attack, require_radius
from .inputs import AttackFunction, attack_images


def fgsm(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, *, epsilon: float = 1 / 255) -> torch.Tensor:
    """clip(x + epsilon * sign(grad of the cross-entropy)), one step (Goodfellow et al. 2015).

    Args:
        epsilon: L-infinity radius in pixels of [0, 1]; the nullspace paper's is 1/255.

    Raises:
        DataError: pixels outside [0, 1]. OptionError: ``epsilon`` < 0 or > 1.
    """
    require_radius("fgsm", epsilon)
    return attack_images("fgsm", model, pixels, labels, _torchattack("FGSM", eps=epsilon))


def _torchattack(name: str, **settings: Any) -> AttackFunction:
    """torchattacks' attack ``name``.

    Raises:
        MissingPackageError: torchattacks is not installed.
    """
    torchattacks = import_package("torchattacks", name.lower())

    def run(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with redirect_stdout(io.StringIO()):  # it prints where a model has no parameters to tell its device
            attack = getattr(torchattacks, name)(model, **settings)
        attack.set_device(pixels.device if attack.device is None else attack.device)
        adversarial: torch.Tensor = attack(pixels, labels)
        return adversarial

    return run


def cw(
    model: nn.Module,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    *,
    c: float = 1.0,
    kappa: float = 0.0,
    steps: int = 50,
    lr: float = 0.01,
) -> torch.Tensor:
    """torchattacks' L2 attack of Carlini and Wagner (2017), with the defaults of torchattacks 3.5.1.

    It has no radius: an image on which the attack fails is returned unchanged, the others with
    the perturbation that the attack needed. It stops early on the cost summed over the batch, so
    the result depends on how images are batched.

    Raises:
        DataError: pixels outside [0, 1].
    """
    _require_cw_settings(c, kappa, steps, lr)
    return attack_images("cw", model, pixels, labels, _torchattack("CW", c=c, kappa=kappa, steps=steps, lr=lr))


def _require_cw_settings(c: float, kappa: float, steps: int, lr: float) -> None:
    if not (0 <= c < math.inf and 0 <= kappa < math.inf and steps >= 1 and 0 < lr <= LARGEST_STEP):
        raise OptionError(
            f"cw: expected c >= 0, kappa >= 0, steps >= 1 and lr > 0 and at most {LARGEST_STEP:g}, "
            f"found {c}, {kappa}, {steps}, {lr}."
        )


def pgd(
    model: nn.Module,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    *,
    epsilon: float = 1 / 255,
    steps: int = 10,
    step_size: float | None = None,
    random_start: bool = True,
) -> torch.Tensor:
    """torchattacks' L-infinity PGD of Madry et al. (2018); returns the last iterate.

    Args:
        epsilon: radius in pixels of [0, 1].
        step_size: in pixels of [0, 1]; None: ``epsilon`` / 4.

    Raises:
        DataError: pixels outside [0, 1]. OptionError: ``epsilon`` < 0 or > 1, or no steps.
    """
    require_radius("pgd", epsilon)
    if steps < 1:
        raise OptionError(f"pgd: expected steps >= 1, found {steps}.")
    size = epsilon / 4 if step_size is None else step_size
    require_radius("pgd", size, name="step_size")
    attack = _torchattack("PGD", eps=epsilon, alpha=size, steps=steps, random_start=random_start)
    return attack_images("pgd", model, pixels, labels, attack)


@register_attack
@dataclass(frozen=True)
class FGSM(Attack):
    """:func:`fgsm` with radius ``epsilon``."""

    name = "fgsm"
    package = "torchattacks"
    clean_first = True

    epsilon: float = setting(1 / 255, "FGSM's L-infinity radii", least=0, flag="epsilon", each=True, metavar="E")

    def __post_init__(self) -> None:
        require_radius("fgsm", self.epsilon)

    def __call__(
        self, model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, seeds: Sequence[int]
    ) -> torch.Tensor:
        return fgsm(model, pixels, labels, epsilon=self.epsilon)

    def protocol(self) -> dict[str, Any]:
        return {"epsilon": self.epsilon, "norm": "linf"}

    @property
    def title(self) -> str:
        return f"fgsm {255 * self.epsilon:g}/255"


@register_attack
@dataclass(frozen=True)
class PGD(Attack):
    """:func:`pgd` from a random start, with step size ``epsilon`` / 4."""

    name = "pgd"
    package = "torchattacks"
    draws = True
    slowness = 1

    epsilon: float = setting(1 / 255, "L-infinity radii", least=0, each=True, metavar="E")
    steps: int = setting(10, "iterations, each of epsilon / 4", least=1, metavar="N")

    def __post_init__(self) -> None:
        require_radius("pgd", self.epsilon)

    def __call__(
        self, model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, seeds: Sequence[int]
    ) -> torch.Tensor:
        return pgd(model, pixels, labels, epsilon=self.epsilon, steps=self.steps)

    def protocol(self) -> dict[str, Any]:
        size = self.epsilon / 4
        return {"epsilon": self.epsilon, "norm": "linf", "steps": self.steps, "step_size": size, "random_start": True}

    @property
    def title(self) -> str:
        return f"pgd-{self.steps} {255 * self.epsilon:g}/255"


@register_attack
@dataclass(frozen=True)
class CW(Attack):
    """:func:`cw`, with the mean L2 norm of its unbounded perturbations, and top-1 if only those within a radius count.

    Attributes:
        radii: L2 radii in pixels of [0, 1].
    """

    name = "cw"
    package = "torchattacks"
    slowness = 2
    verdict_settings = ("radius",)

    radii: Sequence[float] = setting(
        (), "L2 radii within which accuracies are also reported", least=0, flag="cw-radius", metavar="R"
    )
    c: float = setting(1.0, "weight of being misclassified against the perturbation's size", least=0)
    kappa: float = setting(0.0, "margin of the misclassification", least=0)
    steps: int = setting(50, "iterations", least=1, metavar="N")
    lr: float = setting(0.01, "Adam's step size", least=0, most=LARGEST_STEP)

    def __post_init__(self) -> None:
        object.__setattr__(self, "radii", tuple(self.radii))  # hashable, as the settings of others are
        _require_cw_settings(**self._settings())
        for radius in self.radii:
            require_radius("cw", radius, "L2", "radii")

    def __call__(
        self, model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, seeds: Sequence[int]
    ) -> torch.Tensor:
        adversarial = cw(model, pixels, labels, **self._settings())
        with frozen(model) as inner, torch.no_grad():  # what is misclassified unattacked needs no perturbation
            wrong = logits_of(inner(pixels), len(pixels)).argmax(-1) != labels
        return torch.where(wrong[:, None, None, None], pixels, adversarial)

    def _settings(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "radii"}

    def protocol(self) -> dict[str, Any]:
        return {"norm": "l2", **self._settings(), "radius": "unbounded"}

    def other_protocols(self) -> list[dict[str, Any]]:
        return [self.protocol() | {"radius": radius} for radius in self.radii]

    def extra_results(self, correct: torch.Tensor, l2: torch.Tensor) -> list[SecondVerdict | Quantity]:
        """Top-1 if only perturbations within each radius count, and the mean L2 norm of those that fooled the model."""
        results: list[SecondVerdict | Quantity] = [
            SecondVerdict(protocol, correct | (l2 > protocol["radius"])) for protocol in self.other_protocols()
        ]
        fooling = l2[~correct & (l2 > 0)]
        if len(fooling):
            settings = {"norm": "l2", **self._settings()}
            results.append(Quantity(settings, "mean_l2", float(fooling.mean()), "", len(fooling)))
        return results
