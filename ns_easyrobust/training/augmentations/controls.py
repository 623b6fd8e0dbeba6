"""Controls for nullspace noise: other noise under the same threshold, and nullspace noise in another order."""

from __future__ import annotations

from ...nullspace import Noise
from ...utils import torch
from .noise_use import gaussians_like, permutations_of
from .nullspace import NullspaceAugmentation
from .registry import register_augmentation
from .renewed_noise import _PERMUTE


@register_augmentation("random")
class RandomNoiseAugmentation(NullspaceAugmentation):
    """Baseline of Table 4: Gaussian noise, scaled down until its mse_probability is under eps."""

    solver = "random"
    draw_fresh = staticmethod(gaussians_like)


@register_augmentation("permuted")
class PermutedNoiseAugmentation(NullspaceAugmentation):
    """Norm-matched control: nullspace noise with its elements permuted, which keeps the norm but not the direction."""

    draw_fresh = staticmethod(permutations_of)

    def make_noise(self) -> Noise:
        seed = self._seed_for(_PERMUTE, len(self.history))
        return self.measured_anew(super().make_noise().permuted(torch.Generator().manual_seed(seed)))


@register_augmentation("sensitive")
class SensitiveNoiseAugmentation(NullspaceAugmentation):
    """Adversarial control: the smallest noise found for an influence of eps, in the model's most sensitive direction.

    One noise for all images is a universal adversarial perturbation (Moosavi-Dezfooli et al. 2017, arXiv:1610.08401),
    here of the encoder's input.
    """

    solver = "sensitive"
