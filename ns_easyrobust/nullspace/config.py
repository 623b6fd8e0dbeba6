"""Settings for synthesizing nullspace noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import OptionError
from ..utils import choices_of, setting
from .solvers import known_solvers


@dataclass(frozen=True)
class NoiseConfig:
    """Settings of a synthesis; the defaults are those of the paper (App. C) and of its published code.

    Raises:
        OptionError: a value is out of range.

    Example:
        >>> NoiseConfig(max_steps=500).eps
        0.03
        >>> NoiseConfig(eps=-1)
        Traceback (most recent call last):
            ...
        ns_easyrobust.errors.OptionError: noise eps: expected a number > 0, found -1.
    """

    limit: float = setting(3.0, "start noise is uniform in (-limit, limit); A in App. C")
    lr: float = setting(0.1, "learning rate of the noise; eta_v in App. C")
    eps: float = setting(0.03, "threshold on mse_probability; epsilon of Eq. 5 and Algorithm 1, line 9")
    max_steps: int = setting(3000, "steps at most; T in App. C")
    weight_decay: float = setting(0.01, "decay of the noise: AdamW's default, which the paper's code leaves on")
    cosine_steps: int = setting(0, "length of a cosine schedule of lr; 0 keeps lr constant")
    solver: str = setting("paper", "how the noise is found", choices=known_solvers)
    turn: float = setting(0.05, "sphere: length of a step, in radii; less for noise of over 1024 elements")
    patience: int = setting(
        100, "sphere: stop when the norm has not grown by a hundredth in so many steps; 0 never stops"
    )
    minibatch: int = setting(0, "images of a batch that a step uses, the rest in the steps after it; 0 uses all")
    pool: int = setting(-1, "batches kept with their clean logits and used again; -1: 32 for sphere, none for others")
    reuse: int = setting(0, "uses of a kept batch before a fresh one takes its place; 0 keeps it for good")
    autocast: str = setting("off", "precision of the forwards", choices=("off", "bfloat16", "float16"))

    def __post_init__(self) -> None:
        for name in ("limit", "lr", "eps", "turn"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise OptionError(f"noise {name}: expected a number > 0, found {getattr(self, name)}.")
        if not self.pool >= -1:
            raise OptionError(f"noise pool: expected a number of batches, or -1, found {self.pool}.")
        for name in ("max_steps", "weight_decay", "cosine_steps", "patience", "minibatch", "reuse"):
            if not getattr(self, name) >= 0:
                raise OptionError(f"noise {name}: expected a number >= 0, found {getattr(self, name)}.")
        for name in ("solver", "autocast"):
            choices = choices_of(type(self), name)
            if getattr(self, name) not in choices:
                raise OptionError(f"noise {name}: expected one of {', '.join(choices)}, found {getattr(self, name)!r}.")

    @property
    def batches_kept(self) -> int:
        """Size of the pool in batches: ``pool``, or the solver's default where that is -1."""
        return self.pool if self.pool >= 0 else known_solvers()[self.solver].pool
