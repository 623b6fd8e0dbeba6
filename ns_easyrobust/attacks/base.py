"""The interface of an attack: its settings, its call, its results beyond top-1; and checks of its input."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import Field, asdict, dataclass
from typing import Any, ClassVar, TypeVar

from ..errors import ModelError, OptionError
from ..utils import Registry, import_package, nn, torch

LARGEST_STEP = 1e4  # of Adam, which would fail at what float32 cannot hold


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
        name: its suite, and its name in records.
        draws: whether it draws random numbers, so that the seed is part of a measurement.
        clean_first: whether its first forward pass is on the unmodified images, so that their
            logits need not be computed again.
        slowness: 0 for attacks that share a pass over the images with others; those that take hours on ImageNet
            are measured afterwards, one at a time, the slowest last.
        sampled: whether RobustBench's 5000 images stand for ImageNet's validation set by default.
        published_resizing: (crop_pct, interpolation) of its authors, for the preset "paper"; None: as photographs.
        verdict_settings: those settings of a protocol that say only which perturbations count. Results of one
            run may differ in them or lack them; in all others they agree.
        revision: to be raised by 1 when the attack finds other pixels than before: results of another one are
            measured anew.
        package: another package that it imports and that need not be installed.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Brighter(Attack):
        ...     name = "brighter"
        ...     by: float = 0.1
        ...     def __call__(self, model, pixels, labels, seeds):
        ...         return (pixels + self.by).clamp(0, 1)
        >>> bool(Brighter(by=0.5)(model, images, labels, seeds=range(8)).min() == 0.5)
        True
        >>> Brighter().protocol()
        {'by': 0.1}
    """

    name: ClassVar[str]
    draws: ClassVar[bool] = False
    clean_first: ClassVar[bool] = False
    slowness: ClassVar[int] = 0
    sampled: ClassVar[bool] = False
    published_resizing: ClassVar[tuple[float, str] | None] = None
    verdict_settings: ClassVar[tuple[str, ...]] = ()
    revision: ClassVar[int] = 1
    package: ClassVar[str | None] = None

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

    def require_applicable(self, model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> None:
        """Raise the error that would end a long evaluation at its first batch; by default only of a missing package.

        Args:
            pixels: (1, C, H, W), an image of the evaluation. labels: (1,).
        """
        if self.package is not None:
            import_package(self.package, self.name)

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


_ATTACKS: Registry[type[Attack]] = Registry("attack", __package__, namespace="suite")
AnyAttack = TypeVar("AnyAttack", bound=type[Attack])


def register_attack(kind: AnyAttack) -> AnyAttack:
    """Class decorator: make an attack a suite of ``benchmark``, with a flag for each :func:`setting` of it.

    Raises:
        OptionError: its name is taken, or the class is no dataclass.

    Example:
        >>> @register_attack
        ... class Inverted(Attack):
        ...     name = "inverted"
        ...     def __call__(self, model, pixels, labels, seeds):
        ...         return 1 - pixels
        >>> from ns_easyrobust.attacks import known_attacks
        >>> known_attacks()["inverted"]()(model, images, labels, seeds=range(8)).equal(1 - images)
        True
    """
    if any(isinstance(value, Field) for value in vars(kind).values()):
        raise OptionError(
            f"attack {kind.__name__}: expected @dataclass(frozen=True) under @register_attack, found none."
        )
    _ATTACKS.add(getattr(kind, "name", ""), kind, f"{kind.__module__}.{kind.__qualname__}")
    return kind


def known_attacks() -> dict[str, type[Attack]]:
    """Every attack by name: those of this folder's files, and others that were registered."""
    return _ATTACKS.complete()


def require_adversarial(attacked: object, shape: torch.Size, title: str) -> None:
    """Raise ModelError unless an attack has returned pixels (B, C, H, W) in [0, 1], up to 1e-4 of rounding errors."""
    if not isinstance(attacked, torch.Tensor) or attacked.shape != shape:
        found = tuple(attacked.shape) if isinstance(attacked, torch.Tensor) else type(attacked).__name__
        raise ModelError(f"{title}: expected adversarial pixels of shape {tuple(shape)}, found {found}.")
    if not attacked.numel():
        return
    low, high = attacked.min().item(), attacked.max().item()
    if not (low > -1e-4 and high < 1 + 1e-4):
        raise ModelError(f"{title}: expected adversarial pixels in [0, 1], found {low:.3g} to {high:.3g}.")


def require_radius(attack: str, radius: float, norm: str = "Linf", name: str = "epsilon") -> None:
    """Raise OptionError unless ``norm`` is Linf or L2 and ``radius``, the setting ``name``, is in pixels of [0, 1].

    A larger one was probably meant for pixels of [0, 255]: an L-infinity radius above 1, or an L2 radius above 50,
    which would change each value of a 224 x 224 image by an eighth.
    """
    if norm not in ("Linf", "L2"):
        raise OptionError(f"{attack}: expected the norm Linf or L2, found {norm!r}.")
    if not (radius >= 0 and math.isfinite(radius)):
        raise OptionError(f"{attack}: expected {name} >= 0 in pixels of [0, 1], found {radius}.")
    if radius > (1 if norm == "Linf" else 50):
        raise OptionError(f"{attack}: expected {name} in pixels of [0, 1], found {radius:g}. Divide it by 255.")
