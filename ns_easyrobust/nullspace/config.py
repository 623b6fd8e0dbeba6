"""Settings for synthesizing nullspace noise."""

from __future__ import annotations

import numbers
from dataclasses import dataclass, fields
from typing import Any

from ..errors import OptionError
from ..utils import choices_of, setting
from .solvers import known_solvers

_MOST = 10**9  # steps, uses, images, blocks
_POSITIVE = ("limit", "lr", "eps", "turn")


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

    limit: float = setting(3.0, "start noise is uniform in (-limit, limit); A in App. C", least=0, most=1e4)
    lr: float = setting(0.1, "learning rate of the noise; eta_v in App. C", least=0, most=1e4)
    eps: float = setting(
        0.03, "threshold on mse_probability; epsilon of Eq. 5 and Algorithm 1, line 9", least=0, most=2
    )
    max_steps: int = setting(3000, "steps at most; T in App. C", least=0, most=_MOST)
    weight_decay: float = setting(
        0.01, "decay of the noise: AdamW's default, which the paper's code leaves on", least=0, most=100
    )
    cosine_steps: int = setting(0, "length of a cosine schedule of lr; 0 keeps lr constant", least=0, most=_MOST)
    solver: str = setting("paper", "how the noise is found", choices=known_solvers)
    turn: float = setting(
        0.05,
        "sphere, sensitive: length of a step, in radii; in sphere less for noise of over 1024 elements",
        least=0,
        most=10,
    )
    patience: int = setting(
        100,
        "sphere, sensitive: stop when the norm has not grown (sensitive: shrunk) by a hundredth in so many steps; "
        "0 never stops",
        least=0,
        most=_MOST,
    )
    minibatch: int = setting(
        0, "images of a batch that a step uses, the rest in the steps after it; 0 uses all", least=0, most=_MOST
    )
    pool: int = setting(
        -1,
        "batches kept with their clean logits and used again; -1: 32 for sphere and sensitive, none for others",
        least=-1,
        most=_MOST,
    )
    reuse: int = setting(
        0, "uses of a kept batch before a fresh one takes its place; 0 keeps it for good", least=0, most=_MOST
    )
    autocast: str = setting("off", "precision of the forwards", choices=("off", "bfloat16", "float16"))
    block: int = setting(
        -1,
        "where the noise is added: -1, the output of patch_embed, as in the paper; K from 0, the input of the K-th "
        "block, class token included",
        least=-1,
        most=_MOST,
    )

    def __post_init__(self) -> None:
        for item in fields(self):
            least, most = item.metadata["least"], item.metadata["most"]
            if most is not None:
                self._require_between(item.name, item.default, least, most)
        for name in ("solver", "autocast"):
            choices = choices_of(type(self), name)
            if getattr(self, name) not in choices:
                raise OptionError(f"noise {name}: expected one of {', '.join(choices)}, found {getattr(self, name)!r}.")

    def _require_between(self, name: str, default: Any, least: float, most: float) -> None:
        value: Any = getattr(self, name)
        bound = "> 0" if name in _POSITIVE else f">= {least}"
        kind: Any = numbers.Integral if isinstance(default, int) else numbers.Real
        noun = "whole number" if isinstance(default, int) else "number"
        is_enough = isinstance(value, kind) and bool(value > 0 if name in _POSITIVE else value >= least)
        if not is_enough:
            raise OptionError(f"noise {name}: expected a {noun} {bound}, found {value!r}.")
        if value > most:
            hint = " It is a squared distance of probabilities, no percentage." if name == "eps" else ""
            raise OptionError(f"noise {name}: expected a {noun} of at most {most:g}, found {value}.{hint}")

    @property
    def batches_kept(self) -> int:
        """Size of the pool in batches: ``pool``, or the solver's default where that is -1."""
        return self.pool if self.pool >= 0 else known_solvers()[self.solver].pool
