"""What the evaluation tries on images: each attack with its settings, as they stand in the record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from ..attacks import gradient as attacks
from ..attacks.patch_fool import PatchFoolConfig, patchfool
from .recorder import Judged, Recorder
from .task import Trial


def clean(suite: str, **protocol: Any) -> Trial:
    """The images as they are."""
    return Trial(suite, protocol, title=" ".join([suite, *map(str, protocol.values())]))


def fgsm(epsilon: float = 1 / 255) -> Trial:
    """torchattacks' FGSM within L-infinity radius ``epsilon``."""
    attacks.require_radius("fgsm", epsilon)

    def attack(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        return attacks.fgsm(model, pixels, labels, epsilon=epsilon)

    protocol = {"epsilon": epsilon, "norm": "linf"}
    return Trial("fgsm", protocol, attack, clean_first=True, title=f"fgsm {255 * epsilon:g}/255")


def pgd(epsilon: float = 1 / 255, steps: int = 10) -> Trial:
    """torchattacks' PGD within L-infinity radius ``epsilon``, from a random start, steps of epsilon / 4."""
    attacks.require_radius("pgd", epsilon)

    def attack(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        return attacks.pgd(model, pixels, labels, epsilon=epsilon, steps=steps)

    protocol = {"epsilon": epsilon, "norm": "linf", "steps": steps, "step_size": epsilon / 4, "random_start": True}
    return Trial("pgd", protocol, attack, draws=True, title=f"pgd-{steps} {255 * epsilon:g}/255")


def cw(radii: Sequence[float] = (), *, c: float = 1.0, kappa: float = 0.0, steps: int = 50, lr: float = 0.01) -> Trial:
    """torchattacks' CW: unbounded, with the mean L2 it needs, and what is left of it within ``radii``."""
    settings: dict[str, Any] = {"c": c, "kappa": kappa, "steps": steps, "lr": lr}

    def attack(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        adversarial = attacks.cw(model, pixels, labels, **settings)
        with torch.no_grad():  # what was wrong from the start needs no perturbation
            wrong = model(pixels).argmax(-1) != labels
        return torch.where(wrong[:, None, None, None], pixels, adversarial)

    def finish(recorder: Recorder, protocol: dict[str, Any], judged: Judged) -> None:
        for radius in radii:
            within = replace(judged, right=judged.right | (judged.l2 > radius))
            recorder.add("cw", protocol | {"radius": radius}, within)
        needed = judged.l2[~judged.right & (judged.l2 > 0)]
        if len(needed):
            settled = {name: value for name, value in protocol.items() if name != "radius"}
            recorder.add_value("cw", "mean_l2", float(needed.mean()), unit="", n=len(needed), protocol=settled)

    also = [{"radius": radius} for radius in radii]
    return Trial("cw", {"norm": "l2", **settings, "radius": "unbounded"}, attack, also=also, finish=finish, title="cw")


def patch_fool(config: PatchFoolConfig) -> Trial:
    """PatchFool with ``config``."""

    def attack(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        return patchfool(model, pixels, labels, config, seeds=seeds)

    return Trial("patchfool", asdict(config), attack, draws=True, title=f"patchfool {config.mode}")


def auto_attack(norm: str = "Linf", epsilon: float = 4 / 255) -> Trial:
    """EasyRobust's copy of the standard AutoAttack."""
    attacks.require_radius("autoattack", epsilon, norm)

    def attack(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        return attacks.autoattack(model, pixels, labels, norm=norm, epsilon=epsilon, seed=seeds[0] % 2**31)

    protocol = {"epsilon": epsilon, "norm": norm.lower(), "version": "standard"}
    return Trial("autoattack", protocol, attack, draws=True, title=f"autoattack {norm}")
