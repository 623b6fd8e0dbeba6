"""Registry of the corruptions that ``corrupt`` can name, and what applies one of them to an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import OptionError
from ...utils import Registry, np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .frost_pictures import FrostPictures

# (pixels (H, W, 3) uint8, generator, *strength) -> values (H, W, 3) in [0, 255]
Apply = Callable[..., "NDArray[Any]"]
# ImageNet-C's, in the paper's order (Hendrycks and Dietterich 2019, arXiv:1903.12261, figure 1): a file each here.
CORRUPTION_GROUPS = ("noise", "blur", "weather", "digital")


class Corruption(NamedTuple):
    """One way of corrupting an image.

    Attributes:
        apply: called with pixels (H, W, 3) of 8 bits, a ``numpy.random.Generator`` from which all is drawn that is
            random, and a strength; returns values (H, W, 3) in [0, 255], whose fractions are cut off.
        strengths: ImageNet-C's at severities 1 to 5, each the further arguments of ``apply``.
        pictures: whether ``apply`` also takes ``pictures``, a :class:`FrostPictures`.
        group: one of ``CORRUPTION_GROUPS``; "" for a corruption of another package.
    """

    apply: Apply
    strengths: tuple[tuple[float, ...], ...]
    pictures: bool = False
    group: str = ""

    def __call__(self, pixels: NDArray[np.uint8], generator: np.random.Generator, *strength: float) -> Any:
        """Pixels (H, W, 3) of 8 bits, corrupted at any strength."""
        return np.asarray(self.apply(pixels, generator, *strength)).astype(np.uint8)


_CORRUPTIONS: Registry[Corruption] = Registry("corruption", __package__, reserved=("none", "common", "extra", "all"))


def register_corruption(
    name: str, *strengths: float | tuple[float, ...], pictures: bool = False
) -> Callable[[Apply], Apply]:
    """Decorator: make a function available to ``corrupt`` as ``name``; the arguments are those of :class:`Corruption`.

    Raises:
        OptionError: the name is taken.

    Example:
        >>> @register_corruption("negative", 0, 0, 0, 0, 0)
        ... def negative(pixels, generator, offset):
        ...     return 255 - pixels
        >>> corrupt(np.zeros((2, 2, 3), np.uint8), "negative", 3, np.random.default_rng(0)).max()
        np.uint8(255)
    """
    _CORRUPTIONS.require_name(name)
    as_tuples = tuple(strength if isinstance(strength, tuple) else (strength,) for strength in strengths)
    if len(as_tuples) != 5:
        raise OptionError(f"corruption {name!r}: expected the strengths of 5 severities, found {len(as_tuples)}.")

    def register(apply: Apply) -> Apply:
        package, _, file = apply.__module__.rpartition(".")
        group = file if package == __package__ else ""
        corruption = Corruption(apply, as_tuples, pictures, group)
        _CORRUPTIONS.add(name, corruption, f"{apply.__module__}.{apply.__qualname__}")
        return apply

    return register


def known_corruptions() -> dict[str, Corruption]:
    """Every corruption by name: those of this folder's files, and others that were registered."""
    return _CORRUPTIONS.complete()


def corrupt(
    pixels: NDArray[np.uint8],
    name: str,
    severity: int,
    generator: np.random.Generator,
    pictures: FrostPictures | None = None,
) -> NDArray[np.uint8]:
    """An image under one of ImageNet-C's corruptions.

    Args:
        pixels: (H, W, 3), RGB of 8 bits, of any size.
        name: of the corruption, as ImageNet-C's folders are named.
        severity: 1 to 5.
        generator: from which all is drawn that is random.
        pictures: of frost, for the corruption of that name; None: :meth:`FrostPictures.drawn`.

    Raises:
        OptionError: there is no such corruption or severity, or ``pixels`` are not as above.

    Example:
        >>> corrupt(np.full((8, 8, 3), 128, np.uint8), "brightness", 5, np.random.default_rng(0))[0, 0].tolist()
        [255, 255, 255]
    """
    corruption = known_corruptions().get(name)
    if corruption is None or severity not in range(1, 6):
        raise OptionError(
            f"corrupt: expected a corruption of {', '.join(known_corruptions())} and a severity from 1 to 5, "
            f"found {name!r} and {severity!r}."
        )
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise OptionError(f"corrupt: expected pixels (H, W, 3) of 8 bits, found {pixels.shape} of {pixels.dtype}.")
    arguments: tuple[Any, ...] = corruption.strengths[severity - 1]
    if corruption.pictures:
        from .frost_pictures import FrostPictures

        arguments += (pictures or FrostPictures.drawn(),)
    return corruption(pixels, generator, *arguments)
