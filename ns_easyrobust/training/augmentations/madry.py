"""Adversarial training by PGD (Madry et al. 2018, arXiv:1706.06083), beside the clean loss or alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from ...errors import OptionError
from ...models import frozen, logits_of, output_of, unwrap
from ...utils import fork_rng, nn, setting, torch
from .linf import LinfAugmentation, LinfSettings, ascend, ascent_logits, uniform_start
from .pixels import as_pixels
from .registry import register_augmentation


@dataclass(frozen=True)
class MadrySettings(LinfSettings):
    """Settings of :class:`Madry`; the defaults are those of the paper's Table 3.

    Raises:
        OptionError: also for a ``beta`` with ``alone``, where it has nothing to weigh against.
    """

    method = "madry"

    random_start: bool = setting(True, "start at a random point of the ball rather than at the image")
    best: bool = setting(False, "train on the iterate of the largest loss rather than on the last one")
    alone: bool = setting(False, "Madry's own loss: that of the adversarial images alone, without the clean loss")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alone and self.beta != 1:
            raise OptionError(
                f"madry: expected no beta with alone, which leaves no clean loss to weigh against, found {self.beta}. "
                "Leave one of them out."
            )


@register_augmentation("madry")
class Madry(LinfAugmentation):
    """``beta`` * the loop's loss on adversarial images, beside the clean loss; ``alone``: in its place, unweighted.

    The images are those of PGD in an L-infinity ball: signed ascent of the cross-entropy with the target, hard or
    soft, in eval mode. The loss on them is the loop's, in the model's mode.

    Sources: CE(clean) + beta * CE(adversarial), 10 steps of 2/255 in 8/255 from a uniform start, last iterate:
    dat/train_hal.py of Liu-Hy/easyrobust f72cee0 with torchattacks' PGD, the paper's Table 3 (its text leaves the
    clean loss out). Alone, from the image itself, best iterate of 7 steps: MadryLab/robustness a954124 (train.py,
    attacker.py, defaults.py).
    """

    Settings: ClassVar[type] = MadrySettings
    config: MadrySettings

    @classmethod
    def replaces(cls, config: MadrySettings) -> bool:
        return config.alone

    @classmethod
    def cost(cls, config: MadrySettings) -> float:
        """2 a step of the attack, 1 to judge the last iterate with ``best``, 3 for the update on what it found.

        So 23 by default, and an update of 26 with the clean loss; MadryLab's 7 steps, alone: 17, with ``best`` 18.
        """
        return 2.0 * config.steps + config.best + 3

    def attack(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Adversarial images for ``input`` (B, C, H, W) in [0, 1]; draws its start from the global generator.

        Raises:
            DataError: ``input`` is outside [0, 1], or has another length than ``target``. ModelError: the logits have
                no gradient to it.
        """
        self.require_targets(input, target)
        pixels = as_pixels(input, self.name)
        start = uniform_start(pixels, self.config.epsilon) if self.config.random_start else pixels
        with frozen(self.model) as inner:

            def losses_of(images: torch.Tensor) -> torch.Tensor:
                logits = logits_of(output_of(inner, images.to(input.dtype)), len(images))
                return nn.functional.cross_entropy(ascent_logits(logits), target, reduction="none")

            return ascend(losses_of, pixels, start, self.config, best=self.config.best).to(input.dtype)

    def loss(
        self,
        input: torch.Tensor,
        target: torch.Tensor,
        loss_fn: Callable[[Any, torch.Tensor], torch.Tensor],
        *,
        new_step: bool = True,
    ) -> torch.Tensor:
        """The loss on adversarial images, under the caller's autocast; see :meth:`Augmentation.loss`.

        Raises:
            DataError: ``input`` is outside [0, 1]: normalised before the model, or erased by ``--erase-outside``.
        """
        with fork_rng(self.next_seed(), input.device):
            adversarial = self.attack(input, target)
            loss = loss_fn(output_of(unwrap(self.model), adversarial), target)
        return loss if self.config.alone else self.config.beta * loss
