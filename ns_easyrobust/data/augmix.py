"""AugMix as published: mixtures of chains of operations, none of which overlaps with ImageNet-C.

Hendrycks et al. 2020 (arXiv:1912.02781); google-research/augmix 9b9824c, augmentations.py and imagenet.py:197-227.
timm's ``augmix-...`` has other operations and constants; docs/methods.md lists the differences.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageOps

from ..errors import OptionError
from ..utils import np, torch, transforms

Operation = Callable[[Image.Image, float], Image.Image]  # of an image and a severity from 1 to 10
_FIELDS = {"m": "severity", "w": "width", "d": "depth", "a": "alpha"}  # timm's letters


def _level(severity: float, greatest: float) -> float:
    """A random level for ``severity``, of a scale that has ``greatest`` at 10."""
    return np.random.uniform(low=0.1, high=severity) * greatest / 10


def _either_sign(level: float) -> float:
    return -level if np.random.uniform() > 0.5 else level


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR)


def _autocontrast(image: Image.Image, _: float) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, _: float) -> Image.Image:
    return ImageOps.equalize(image)


def _posterize(image: Image.Image, severity: float) -> Image.Image:
    return ImageOps.posterize(image, 4 - int(_level(severity, 4)))


def _rotate(image: Image.Image, severity: float) -> Image.Image:
    return image.rotate(_either_sign(int(_level(severity, 30))), resample=Image.Resampling.BILINEAR)


def _solarize(image: Image.Image, severity: float) -> Image.Image:
    return ImageOps.solarize(image, 256 - int(_level(severity, 256)))


def _shear_x(image: Image.Image, severity: float) -> Image.Image:
    return _affine(image, 1, _either_sign(_level(severity, 0.3)), 0, 0, 1, 0)


def _shear_y(image: Image.Image, severity: float) -> Image.Image:
    return _affine(image, 1, 0, 0, _either_sign(_level(severity, 0.3)), 1, 0)


def _translate_x(image: Image.Image, severity: float) -> Image.Image:
    return _affine(image, 1, 0, _either_sign(int(_level(severity, image.width / 3))), 0, 1, 0)


def _translate_y(image: Image.Image, severity: float) -> Image.Image:
    return _affine(image, 1, 0, 0, 0, 1, _either_sign(int(_level(severity, image.height / 3))))


# In the published order, by which the random numbers choose. Colour, contrast, brightness and sharpness, which the
# published code has under --all-ops, are left out as there, for they overlap with ImageNet-C.
PUBLISHED_OPERATIONS: tuple[Operation, ...] = (
    *(_autocontrast, _equalize, _posterize, _rotate, _solarize),
    *(_shear_x, _shear_y, _translate_x, _translate_y),
)


@dataclass(frozen=True)
class AugMix:
    """An 8-bit RGB image -> its mixture with ``width`` chains of random operations, (3, H, W) in [0, 1].

    ``(1 - m) x + m sum_i w_i chain_i(x)`` with m ~ Beta(alpha, alpha) and w ~ Dirichlet(alpha). Draws are numpy's
    global ones, in the published order. The published code mixes after normalisation; as the weights are convex and
    normalisation is affine, that is the normalised mixture. The mixture is not rounded to 8 bits.

    Args:
        severity: from 1 to 10, of the operations; 1 is that of the published ImageNet runs (imagenet.py:87-91).
        width: chains.
        depth: operations of a chain; 0: 1, 2 or 3, drawn anew for each.
        alpha: of both distributions.

    Raises:
        OptionError: a setting is out of its range.
    """

    severity: float = 1
    width: int = 3
    depth: int = 0
    alpha: float = 1.0

    def __post_init__(self) -> None:
        fits = 1 <= self.severity <= 10 and 1 <= self.width <= 99 and 0 <= self.depth <= 99 and 0 < self.alpha <= 100
        if not fits:
            raise OptionError(
                "AugMix: expected severity from 1 to 10, width from 1 to 99, depth from 0 to 99 and alpha over 0, to "
                f"100, found {self!r}."
            )

    @classmethod
    def from_policy(cls, policy: str) -> AugMix:
        """The settings of timm's string, such as ``augmix-m3-w3-d2-a1``; what is left out has its default.

        Raises:
            OptionError: the string has other parts, or a setting is out of its range.
        """
        name, *parts = policy.split("-")
        settings: dict[str, float] = {}
        for part in parts:
            match = re.fullmatch(r"([mwda])([0-9]{1,3}(?:\.[0-9]{1,9})?)", part)
            whole = match is not None and (match[1] not in "wd" or match[2].isdigit())
            if match is None or not whole or _FIELDS[match[1]] in settings:
                raise OptionError(
                    f"{policy[:100]}: expected augmix with parts mN (severity), wN (width), dN (depth) and aF (alpha) "
                    f"once each, as published, found {part[:100]!r}. timm's b and mstd need its own operations."
                )
            settings[_FIELDS[match[1]]] = float(match[2]) if match[1] in "ma" else int(match[2])
        if name != "augmix":
            raise OptionError(f"{policy[:100]}: expected augmix and its parts, found {name[:100]!r}.")
        return cls(**settings)  # type: ignore[arg-type]

    def __call__(self, image: Image.Image) -> torch.Tensor:
        weights = np.float32(np.random.dirichlet([self.alpha] * self.width))
        share = np.float32(np.random.beta(self.alpha, self.alpha))
        pixels = transforms.functional.to_tensor
        original = pixels(image)
        mixture = torch.zeros_like(original)
        for weight in weights:
            chain = image
            for _ in range(self.depth or np.random.randint(1, 4)):
                operation = PUBLISHED_OPERATIONS[np.random.randint(len(PUBLISHED_OPERATIONS))]
                chain = operation(chain, self.severity)
            mixture += float(weight) * pixels(chain)
        return ((1 - float(share)) * original + float(share) * mixture).clamp(0, 1)  # of rounding alone
