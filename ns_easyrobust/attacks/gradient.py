"""Attacks: pixels (B, C, H, W) in [0, 1] and labels (B,) in, adversarial pixels out.

FGSM and CW are torchattacks'; its attacks call ``.backward()``, so they run inside
``frozen()`` and leave the model's gradients and modes alone. It is imported where it is
used: it brings in scipy and requests, which nothing else needs.
"""

from __future__ import annotations

import math
import sys

import torch
from torch import nn

from ..errors import DataError, OptionError
from ..models.vit import frozen


def checked(pixels: torch.Tensor) -> torch.Tensor:
    """``pixels`` themselves, if they are in [0, 1]; DataError if not."""
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise DataError(
            f"attack: expected pixels in [0, 1], found [{pixels.min():.3g}, {pixels.max():.3g}]. "
            "Normalise inside the model (load_model does), not in the transform."
        )
    return pixels


def require_radius(attack: str, epsilon: float, norm: str = "Linf") -> None:
    """OptionError for another norm, or what is no radius in pixels of [0, 1]; Linf above 1 was meant on [0, 255]."""
    if norm not in ("Linf", "L2"):
        raise OptionError(f"{attack}: expected the norm Linf or L2, found {norm!r}.")
    if not (epsilon >= 0 and math.isfinite(epsilon)):
        raise OptionError(f"{attack}: expected epsilon >= 0 in pixels of [0, 1], found {epsilon}.")
    if norm == "Linf" and epsilon > 1:
        raise OptionError(f"{attack}: expected epsilon in pixels of [0, 1], found {epsilon:g}. Divide it by 255.")


def fgsm(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, *, epsilon: float = 1 / 255) -> torch.Tensor:
    """clip(x + epsilon * sign(grad of the cross-entropy)), one step (Goodfellow et al. 2015).

    Args:
        epsilon: L-infinity radius in pixels of [0, 1]; the paper's is 1/255.

    Raises:
        DataError: pixels outside [0, 1]. OptionError: ``epsilon`` < 0 or > 1.
    """
    require_radius("fgsm", epsilon)
    import torchattacks

    with frozen(model) as inner, torch.enable_grad():
        adversarial: torch.Tensor = torchattacks.FGSM(inner, eps=epsilon)(checked(pixels), labels)
    return adversarial


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
    """torchattacks' L2 attack of Carlini and Wagner (2017), with its 3.5.1 defaults.

    It has no radius: an image that is never fooled comes back as it was, and the size of the
    others is what the attack needed. It stops on the batch's summed cost, so the result
    depends on the batch size.

    Raises:
        DataError: pixels outside [0, 1].
    """
    import torchattacks

    with frozen(model) as inner, torch.enable_grad():
        attack = torchattacks.CW(inner, c=c, kappa=kappa, steps=steps, lr=lr)
        adversarial: torch.Tensor = attack(checked(pixels), labels)
    return adversarial


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
    """torchattacks' L-infinity PGD of Madry et al. (2018); the last iterate.

    Args:
        epsilon: radius in pixels of [0, 1].
        step_size: in pixels of [0, 1]; None: epsilon / 4.

    Raises:
        DataError: pixels outside [0, 1]. OptionError: ``epsilon`` < 0 or > 1, or no steps.
    """
    require_radius("pgd", epsilon)
    if steps < 1:
        raise OptionError(f"pgd: expected steps >= 1, found {steps}.")
    import torchattacks

    with frozen(model) as inner, torch.enable_grad():
        size = epsilon / 4 if step_size is None else step_size
        attack = torchattacks.PGD(inner, eps=epsilon, alpha=size, steps=steps, random_start=random_start)
        adversarial: torch.Tensor = attack(checked(pixels), labels)
    return adversarial


def require_ten(outputs: int) -> None:
    """OptionError for a model of fewer outputs: AutoAttack's targeted attacks take nine other classes."""
    if outputs < 10:
        raise OptionError(f"autoattack: expected a model of at least 10 outputs, found {outputs}. Leave it out.")


def autoattack(
    model: nn.Module,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    *,
    norm: str = "Linf",
    epsilon: float = 4 / 255,
    seed: int = 0,
) -> torch.Tensor:
    """EasyRobust's copy of the standard AutoAttack (Croce and Hein 2020), on the model's own device.

    Args:
        norm: "Linf" or "L2".
        epsilon: radius in pixels of [0, 1].

    Raises:
        DataError: pixels outside [0, 1]. OptionError: another norm or radius, or fewer than 10 outputs.
    """
    require_radius("autoattack", epsilon, norm)
    from easyrobust.attacks import AutoAttack

    tracer = sys.gettrace()  # AutoAttack's check for dynamic defences unsets it
    try:
        with frozen(model) as inner:
            with torch.no_grad():
                outputs = inner(checked(pixels)[:1]).shape[-1]
            require_ten(outputs)
            attack = AutoAttack(
                inner, norm=norm, eps=epsilon, version="standard", device=pixels.device, seed=seed, verbose=False
            )
            adversarial: torch.Tensor = attack.run_standard_evaluation(pixels, labels, bs=len(pixels))
    finally:
        sys.settrace(tracer)
    return adversarial
