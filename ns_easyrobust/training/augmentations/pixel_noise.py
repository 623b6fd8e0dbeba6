"""Gaussian noise on pixels: what nullspace noise that is pulled back to pixels is measured against."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from ...attacks import require_radius
from ...models import output_of, unwrap
from ...utils import fork_rng, setting, torch
from .base import Augmentation
from .pixels import as_pixels, refuse_erasing_outside
from .registry import register_augmentation


@dataclass(frozen=True)
class PixelNoiseSettings:
    """Settings of :class:`PixelNoise`.

    The default sigma is that of "Gaussian noise training" in Rusak et al. 2020 (arXiv:2001.06057), from memory.

    Raises:
        OptionError: ``sigma`` is outside [0, 1].
    """

    sigma: float = setting(0.5, "standard deviation of the noise in pixels of [0, 1]", least=0, metavar="S")
    uniform_sigma: bool = setting(False, "draw each image's standard deviation, uniformly from (0, sigma]")

    def __post_init__(self) -> None:
        require_radius("pixel-noise", self.sigma, name="sigma")


@register_augmentation("pixel-noise")
class PixelNoise(Augmentation):
    """The loop's loss on clip(x + sigma * N(0, I), 0, 1), beside the clean loss; each image of each update has its own.

    The control for ``NoiseUse.valid_pixels``: noise in the same place and under the same clipping, which knows nothing
    of the model. Source: Gaussian noise training of Rusak et al. 2020 (arXiv:2001.06057), cited from memory.
    """

    Settings: ClassVar[type] = PixelNoiseSettings
    loss_name = "noisy_loss"
    config: PixelNoiseSettings

    @classmethod
    def check(cls, args: argparse.Namespace) -> None:
        super().check(args)
        refuse_erasing_outside(args, f"to which {cls.name} clips")

    @classmethod
    def cost(cls, config: PixelNoiseSettings) -> float:
        """The noisy branch's 3."""
        return 3.0

    def noisy(self, input: torch.Tensor) -> torch.Tensor:
        """Noisy images for ``input`` (B, C, H, W) in [0, 1], of its shape and dtype, without its graph.

        Draws from the global generator of its device, in float32 at least: with ``uniform_sigma`` first uniform numbers
        (B, 1, 1, 1), whose differences from 1 are each image's share of sigma; then N(0, 1) in the shape of ``input``.

        Raises:
            DataError: ``input`` is outside [0, 1].
        """
        pixels = as_pixels(input, self.name)
        like: Any = {"dtype": pixels.dtype, "device": pixels.device}
        sigma: float | torch.Tensor = self.config.sigma
        if self.config.uniform_sigma:
            sigma = sigma * (1 - torch.rand(len(pixels), 1, 1, 1, **like))
        return (pixels + sigma * torch.randn(pixels.shape, **like)).clamp(0, 1).to(input.dtype)

    def loss(
        self,
        input: torch.Tensor,
        target: torch.Tensor,
        loss_fn: Callable[[Any, torch.Tensor], torch.Tensor],
        *,
        new_step: bool = True,
    ) -> torch.Tensor:
        """The loss on noisy images, under the caller's autocast; see :meth:`Augmentation.loss`.

        Raises:
            DataError: ``input`` is outside [0, 1]: normalised before the model, or erased by ``--erase-outside``.
        """
        with fork_rng(self.next_seed(), input.device):
            return loss_fn(output_of(unwrap(self.model), self.noisy(input)), target)
