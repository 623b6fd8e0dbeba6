"""Approximate nullspace noise as a thing: its settings, how it was found, what it does, its file."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..errors import NoiseError, OptionError
from ..utils.files import write_atomically

_POOL = 32  # batches that the sphere solver keeps


def _option(default: Any, help: str, **rest: Any) -> Any:
    return field(default=default, metadata={"help": help, **rest})


@dataclass(frozen=True)
class NoiseConfig:
    """Settings of a synthesis; the defaults are the paper's (App. C) and its code's.

    Raises:
        OptionError: a value outside its range.
    """

    limit: float = _option(3.0, "start noise is uniform in (-limit, limit); A in App. C")
    lr: float = _option(0.1, "learning rate of the noise; eta_v in App. C")
    eps: float = _option(0.03, "threshold on mse_probability; epsilon of Eq. 5 and Algorithm 1, line 9")
    max_steps: int = _option(3000, "steps at most; T in App. C")
    weight_decay: float = _option(0.01, "decay of the noise: AdamW's default, which the paper's code leaves on")
    cosine_steps: int = _option(0, "length of a cosine schedule of lr; 0 keeps lr constant")
    solver: str = _option("paper", "how the noise is found", choices=("paper", "sphere", "random"))
    turn: float = _option(0.05, "sphere: length of a step, in radii; less for noise of over 1024 elements")
    patience: int = _option(
        100, "sphere: stop when the norm has not grown by a hundredth in so many steps; 0 never stops"
    )
    minibatch: int = _option(0, "images of a batch that a step uses, the rest in the steps after it; 0 uses all")
    pool: int = _option(-1, "batches kept with their clean logits and used again; -1: 32 for sphere, none for others")
    reuse: int = _option(0, "uses of a kept batch before a fresh one takes its place; 0 keeps it for good")
    autocast: str = _option("off", "precision of the forwards", choices=("off", "bfloat16", "float16"))

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
            choices = type(self).__dataclass_fields__[name].metadata["choices"]
            if getattr(self, name) not in choices:
                raise OptionError(f"noise {name}: expected one of {', '.join(choices)}, found {getattr(self, name)!r}.")

    @property
    def batches_kept(self) -> int:
        """Size of the pool that these settings ask for."""
        return self.pool if self.pool >= 0 else _POOL if self.solver == "sphere" else 0


class Step(NamedTuple):
    """One tested noise: before update ``step``, on one minibatch, averaged over ranks."""

    step: int
    mse_probability: float  # batch mean of ||softmax(z') - softmax(z)||^2
    mse_logits: float  # batch mean of ||z' - z||^2
    norm: float  # ||v||_2


@dataclass(frozen=True)
class Influence:
    """What a noise does to a model's outputs on ``n`` images.

    Attributes:
        mse_probability: mean over images of the squared L2 distance of the softmax outputs, in [0, 2].
        mse_probability_upper: its one-sided 95% upper confidence bound (normal approximation).
        mse_logits: mean squared L2 distance of the logits.
        agreement: share of unchanged predictions, in [0, 1].
        n: number of images, over all ranks.
    """

    mse_probability: float
    mse_probability_upper: float
    mse_logits: float
    agreement: float
    n: int


@dataclass(frozen=True)
class Noise:
    """A perturbation of the encoder's input, and how it was found.

    Attributes:
        value: (1, *tokens), for a ViT (1, N, D); on the CPU.
        mse_probability: on the last minibatch tested, before the last update where the steps
            ran out; nan for a permuted noise.
        steps: updates made (for the random baseline: times it was shrunk).
        stopped: mse_probability fell under eps on a minibatch, before the steps ran out; sphere: its
            bound is under eps on the images of the stream that its last radius was set on.
        held_out: its influence on images that it was not fitted to, or None.
        trace: every step tested.
        config: the settings it was made with.
    """

    value: torch.Tensor
    mse_probability: float
    steps: int
    stopped: bool
    held_out: Influence | None
    trace: tuple[Step, ...]
    config: NoiseConfig

    @property
    def token_share(self) -> float:
        """Share of the squared norm that the largest token holds, in (0, 1]: near 1 where one token is sacrificed."""
        tokens = self.value.double().square().sum(dim=-1)
        return float(tokens.max() / tokens.sum())

    @property
    def norm(self) -> float:
        """L2 norm of the whole value."""
        return float(self.value.double().norm())

    @property
    def converged(self) -> bool | None:
        """Whether the upper bound on held-out images is under eps; None if that was not measured."""
        return None if self.held_out is None else self.held_out.mse_probability_upper < self.config.eps

    def permuted(self, generator: torch.Generator) -> Noise:
        """The norm-matched control: the same elements in a random order (Figure 3a of the paper)."""
        order = torch.randperm(self.value.numel(), generator=generator)
        value = self.value.flatten()[order].view_as(self.value)
        return replace(self, value=value, mse_probability=math.nan, stopped=False, held_out=None)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, so that ``torch.load(weights_only=True)`` reads it."""
        return {
            "format": "ns_easyrobust.noise/1",
            "value": self.value.clone(),
            "mse_probability": self.mse_probability,
            "steps": self.steps,
            "stopped": self.stopped,
            "held_out": None if self.held_out is None else asdict(self.held_out),
            "trace": torch.tensor(self.trace, dtype=torch.float64).reshape(-1, len(Step._fields)),
            "config": asdict(self.config),
        }

    @staticmethod
    def from_state_dict(state: Any) -> Noise:
        """Inverse of :meth:`state_dict`.

        Raises:
            NoiseError: not a noise of this package, or not finite.
        """
        if not isinstance(state, dict) or state.get("format") != "ns_easyrobust.noise/1":
            raise NoiseError("not a noise: expected what Noise.save writes, found another file. Check the path.")
        try:
            noise = Noise(
                value=state["value"],
                mse_probability=float(state["mse_probability"]),
                steps=int(state["steps"]),
                stopped=bool(state["stopped"]),
                held_out=None if state["held_out"] is None else Influence(**state["held_out"]),
                trace=tuple(Step(int(s), p, z, v) for s, p, z, v in state["trace"].tolist()),
                config=NoiseConfig(**state["config"]),
            )
            finite = bool(torch.isfinite(noise.value).all())
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise NoiseError(
                f"noise file: expected the fields of this version, found another set ({error}). Synthesize it again."
            ) from error
        if not finite:
            raise NoiseError("noise holds nan or inf: expected finite values. Synthesize it again.")
        return noise

    def save(self, path: str | Path) -> Path:
        """Write to ``path`` atomically."""
        return write_atomically(path, lambda temporary: torch.save(self.state_dict(), temporary))

    @staticmethod
    def load(path: str | Path) -> Noise:
        """Read what :meth:`save` wrote; code in a pickle never runs.

        Raises:
            NoiseError: the file is missing, damaged or something else.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise NoiseError(f"{path}: expected a noise file, found nothing. Check the path.") from None
        except Exception as error:  # the unpickler raises what it likes on other files' bytes
            raise NoiseError(
                f"{path}: expected a noise file, found a damaged or foreign one ({type(error).__name__}). "
                "Synthesize it again."
            ) from error
        return Noise.from_state_dict(state)
