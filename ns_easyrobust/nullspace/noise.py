"""Approximate nullspace noise as a data type: its value, its synthesis, its influence and its file."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from .. import models
from ..errors import CheckpointError, NoiseError, OptionError
from ..utils import save_tensors, torch
from .config import NoiseConfig

# What reading the fields of a foreign file may raise; OptionError: settings that NoiseConfig refuses.
_ODD_FIELDS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, OptionError)


class Step(NamedTuple):
    """One test of a noise, on one minibatch, averaged over ranks."""

    step: int  # tests before this one; Algorithm 1: also the updates before it
    mse_probability: float  # batch mean of ||softmax(z') - softmax(z)||^2
    mse_logits: float  # batch mean of ||z' - z||^2
    norm: float  # ||v||_2


@dataclass(frozen=True)
class Influence:
    """Measured influence of a noise on a model's outputs, on ``n`` images.

    Attributes:
        mse_probability: mean over images of the squared L2 distance between softmax outputs, in [0, 2].
        mse_probability_upper: its one-sided 95% upper confidence bound (normal approximation).
        mse_logits: mean over images of the squared L2 distance between logits.
        agreement: share of unchanged predictions, in [0, 1].
        n: number of images, over all ranks.

    Example:
        >>> influence = measure(model, loader, torch.zeros(1, 16, 64))
        >>> influence.mse_probability, influence.agreement, influence.n
        (0.0, 1.0, 40)
    """

    mse_probability: float
    mse_probability_upper: float
    mse_logits: float
    agreement: float
    n: int


@dataclass(frozen=True)
class Noise:
    """A perturbation of the encoder's input, and how it was synthesized.

    Attributes:
        value: (1, *tokens), for a ViT (1, N, D), at the input of a block (1, N + 1, D); on the CPU.
        mse_probability: at the last test, which precedes the last update if the steps ran out (sphere, sensitive:
            of ``value``, on the images that set the final radius); nan if permuted or never tested.
        steps: number of updates (for the random baseline: of times it was shrunk).
        stopped: whether mse_probability fell under eps on a minibatch before the steps ran out (sphere,
            sensitive: whether its upper bound is under eps on the images that set the final radius).
        held_out: influence on held-out images, or None if not measured.
        trace: every test, in order.
        config: the settings of the synthesis.

    Example:
        >>> noise = synthesize(model, loader, NoiseConfig(max_steps=5))
        >>> path = noise.save("noise.pt")
        >>> torch.equal(Noise.load(path).value, noise.value)
        True
        >>> permuted = noise.permuted(torch.Generator().manual_seed(0))
        >>> abs(permuted.norm - noise.norm) < 1e-6, torch.equal(permuted.value, noise.value)
        (True, False)
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
        """Share of the squared norm in the largest token, in (0, 1]: near 1 where the noise sacrifices one token."""
        tokens = self.value.double().square().sum(dim=-1)
        return float(tokens.max() / tokens.sum())

    @property
    def norm(self) -> float:
        """L2 norm of ``value`` over all its elements."""
        return float(self.value.double().norm())

    @property
    def untouched(self) -> bool:
        """Whether the start was under eps already, so that it was returned as it is and nothing was synthesized."""
        return self.stopped and self.steps == 0

    @property
    def converged(self) -> bool | None:
        """Whether the upper bound on held-out images is under eps (also if :attr:`untouched`); None if not measured."""
        return None if self.held_out is None else self.held_out.mse_probability_upper < self.config.eps

    def permuted(self, generator: torch.Generator) -> Noise:
        """The norm-matched control: the same elements in a random order (Figure 3a of the paper)."""
        order = torch.randperm(self.value.numel(), generator=generator)
        value = self.value.flatten()[order].view_as(self.value)
        return replace(self, value=value, mse_probability=math.nan, stopped=False, held_out=None)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and built-in types only, so that ``torch.load(weights_only=True)`` can read it."""
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
            NoiseError: ``state`` is not a noise of this package, or its values are not finite.
        """
        if not isinstance(state, dict) or state.get("format") != "ns_easyrobust.noise/1":
            raise NoiseError("not a noise: expected what Noise.save writes, found another file. Check the path.")
        try:
            held_out = state["held_out"]
            noise = Noise(
                value=_checked_value(state["value"]),
                mse_probability=float(state["mse_probability"]),
                steps=_count(state["steps"]),
                stopped=_truth(state["stopped"]),
                held_out=None if held_out is None else Influence(**_numbers(held_out)),
                trace=tuple(Step(int(step), *numbers) for step, *numbers in state["trace"].tolist()),
                config=NoiseConfig(**state["config"]),
            )
        except _ODD_FIELDS as error:
            raise NoiseError(
                f"noise file: expected the fields of this version, found another set ({error}). Synthesize it again."
            ) from error
        if not bool(torch.isfinite(noise.value).all()):
            raise NoiseError("noise holds nan or inf: expected finite values. Synthesize it again.")
        return noise

    def save(self, path: str | Path) -> Path:
        """Write to ``path`` atomically."""
        return save_tensors(path, self.state_dict())

    @staticmethod
    def load(path: str | Path) -> Noise:
        """Read a file that :meth:`save` wrote, without running any code pickled in it.

        Raises:
            NoiseError: the file is missing, damaged (see :func:`ns_easyrobust.models.read_file`) or not a noise.
        """
        try:
            form, state = models.read_file(Path(path), str(path))
        except CheckpointError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise NoiseError(f"{path}: expected a noise file, found nothing. Check the path.") from error
            raise NoiseError(
                f"{path}: expected a noise file, found none that can be read ({error.line.rstrip('.')})."
            ) from error
        return Noise.from_state_dict(state if form == "torch" else None)


def _checked_value(value: torch.Tensor) -> torch.Tensor:
    """``value`` if it is a noise's tensor; else raise ValueError or AttributeError."""
    if value.layout is not torch.strided or value.is_meta or value.is_nested:
        raise ValueError("a value that is not dense")
    if not value.is_floating_point() or value.element_size() < 2 or value.ndim < 2 or not value.numel():
        raise ValueError(f"a value that is {value.dtype} of shape {tuple(value.shape)}")
    return value.detach()


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):  # bool("False") is True
        raise TypeError(f"{value!r:.80} in place of True or False")
    return value


def _count(value: Any) -> int:
    if int(value) != value or value < 0:
        raise ValueError(f"{value!r:.80} in place of a count")
    return int(value)


def _numbers(held_out: Any) -> dict[str, Any]:
    numbers = {name: _count(value) if name == "n" else float(value) for name, value in held_out.items()}
    if not all(value >= 0 for value in numbers.values()):  # the bound of one image is infinite
        raise ValueError(f"an influence of {numbers}")
    return numbers
