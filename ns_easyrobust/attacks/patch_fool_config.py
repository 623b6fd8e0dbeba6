"""Settings of PatchFool."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import OptionError

_CHOICES = {
    "select": ("attention", "saliency", "random"),
    "loss": ("attention", "ce"),
    "mode": ("official", "exact"),
    "norm": ("none", "linf", "l2"),
}


@dataclass(frozen=True)
class PatchFoolConfig:
    """Settings of :func:`patchfool`; the defaults are the published program's, with its attention loss.

    Attributes:
        patches: how many patches of an image are attacked.
        select: how they are chosen. "attention": those that receive the most attention in block
            ``layer`` (mean over heads and queries); "saliency": those with the largest sum of
            \\|dCE/dx\\|; "random".
        layer: index of that block, from 0.
        loss: "ce", or "attention": the cross-entropy plus ``alpha`` times the log-attention of
            blocks 1 to L // 2 - 1, L being the number of blocks.
        mode: "official": as published: the cross-entropy is the batch mean and the projection
            divides by the gradient's norm, so that the result depends on the batch, and only
            attention to the first patch counts. "exact": every image independently, a true
            projection (norm squared), and mean attention to all chosen patches.
        norm: "none": any patch content with pixels in [0, 1]; "linf", "l2": within ``epsilon`` of
            the image's own content, for "l2" in each channel separately, as published.
        epsilon: that radius, in pixels of [0, 1]; 0 for "none".
        steps: number of iterations.
        lr, decay_steps, decay: Adam's step size in normalised values, multiplied by ``decay`` every
            ``decay_steps`` iterations.
    """

    patches: int = 1
    select: str = "attention"
    layer: int = 4
    loss: str = "attention"
    alpha: float = 0.002
    mode: str = "official"
    norm: str = "none"
    epsilon: float = 0.0
    steps: int = 250
    lr: float = 0.22
    decay_steps: int = 10
    decay: float = 0.95

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise OptionError(f"patchfool {name}: expected one of {', '.join(choices)}, found {value!r}.")
        for name, minimum in (("patches", 1), ("layer", 0), ("steps", 1), ("decay_steps", 1)):
            if (number := getattr(self, name)) != int(number) or number < minimum:
                raise OptionError(f"patchfool {name}: expected a whole number of at least {minimum}, found {number}.")
        if not (0 <= self.alpha < float("inf") and 0 < self.lr < float("inf") and 0 < self.decay <= 1):
            raise OptionError(
                "patchfool: expected alpha >= 0, lr > 0 and decay in (0, 1], "
                f"found {self.alpha}, {self.lr} and {self.decay}."
            )
        if self.norm == "none" and self.epsilon != 0:
            raise OptionError(
                f"patchfool: expected epsilon 0 with norm 'none', found {self.epsilon}. Choose norm 'linf' or 'l2'."
            )
        if self.norm != "none" and not 0 < self.epsilon < float("inf"):
            raise OptionError(
                f"patchfool: expected epsilon > 0 with norm {self.norm!r}, found {self.epsilon}. Give a radius."
            )
        if self.norm == "linf" and self.epsilon > 1:
            raise OptionError(f"patchfool: expected epsilon in pixels of [0, 1], found {self.epsilon}. Divide by 255.")
