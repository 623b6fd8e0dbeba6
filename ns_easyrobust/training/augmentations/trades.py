"""TRADES (Zhang et al. 2019, arXiv:1901.08573): the divergence between predictions on clean and adversarial images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from ...attacks import require_radius
from ...models import frozen, logits_of, mean_logits, output_of, unwrap
from ...utils import fork_rng, setting, torch
from .linf import LinfAugmentation, LinfSettings, ascend, ascent_logits, in_full_precision
from .pixels import as_pixels
from .registry import register_augmentation


@dataclass(frozen=True)
class TradesSettings(LinfSettings):
    """Settings of :class:`Trades`; the defaults are those of the paper's Table 3."""

    method = "trades"

    form: str = setting(
        "authors",
        "authors: the nullspace paper's code, which takes the clean predictions from the clean loss; original: TRADES' "
        "own code, which computes them in a forward of their own",
        choices=("authors", "original"),
    )
    noise: float = setting(0.001, "standard deviation of the start around the image, in pixels of [0, 1]", least=0)
    detach: bool = setting(False, "treat the clean predictions as constants in the loss")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_radius(self.method, self.noise, name="noise")


@register_augmentation("trades")
class Trades(LinfAugmentation):
    """``beta`` * KL(p(clean) || p(adversarial)), averaged over the images of the batch, beside the clean loss.

    The images are those of signed ascent of that divergence in an L-infinity ball, in eval mode, from the image plus
    ``noise`` * N(0, 1): at the image itself the gradient is zero, and without noise the ascent never leaves it. The
    divergence in the loss is of predictions in the model's mode.

    Sources: trades.py:17-84 of yaodongyu/TRADES 6e8e11b for ``form`` original; for authors, dat/train_hal.py of
    Liu-Hy/easyrobust f72cee0 with torchattacks' TPGD, the paper's Table 3. Both let gradients into the clean
    predictions. They differ in two points: TPGD clips the noisy start to [0, 1]; and trades.py computes the clean
    predictions of the loss by a second forward, so with other dropout. Three departures, none of which changes what
    the originals compute on whole batches: the attack's clean predictions, constant in eval mode, are computed once
    and not at each step; the sum is divided by the images there are, where train_hal.py:69 divides by the flag
    ``--batch-size``, too much for a last, smaller batch; and the model's mode is restored, where trades.py always ends
    in train mode.
    """

    Settings: ClassVar[type] = TradesSettings
    uses_output = True
    config: TradesSettings

    @classmethod
    def cost(cls, config: TradesSettings) -> float:
        """1 for the attack's clean predictions, 2 a step, 3 for the update on what it found: 24 by default.

        ``form`` original adds the loss's own clean forward: 3, or 1 with ``detach``.
        """
        own_clean = 0 if config.form == "authors" else _own_clean(config)
        return 1 + 2.0 * config.steps + 3 + own_clean

    @classmethod
    def output_cost(cls, config: TradesSettings) -> float:
        return _own_clean(config) if config.form == "authors" else 0.0

    def attack(self, input: torch.Tensor) -> torch.Tensor:
        """Adversarial images for ``input`` (B, C, H, W) in [0, 1]; draws its start from the global generator.

        Raises:
            DataError: ``input`` is outside [0, 1]. ModelError: the logits have no gradient to it.
        """
        pixels = as_pixels(input, self.name)
        start = pixels + self.config.noise * torch.randn_like(pixels)
        if self.config.form == "authors":
            start = start.clamp(0, 1)
        with frozen(self.model) as inner:

            def logits_for(images: torch.Tensor) -> torch.Tensor:
                return logits_of(output_of(inner, images.to(input.dtype)), len(images))

            with torch.no_grad():
                clean = logits_for(pixels)

            def losses_of(images: torch.Tensor) -> torch.Tensor:
                return divergence(clean, ascent_logits(logits_for(images)))

            return ascend(losses_of, pixels, start, self.config).to(input.dtype)

    def loss(
        self,
        input: torch.Tensor,
        target: torch.Tensor,
        loss_fn: Callable[[Any, torch.Tensor], torch.Tensor],
        *,
        new_step: bool = True,
        output: Any = None,
    ) -> torch.Tensor:
        """The weighted divergence, under the caller's autocast; see :meth:`Augmentation.loss`.

        Args:
            output: what the model returned for ``input`` in the clean loss, with its graph. None, and with ``form``
                original whatever it is: computed here.

        Raises:
            DataError: ``input`` is outside [0, 1]: normalised before the model, or erased by ``--erase-outside``.
        """
        inner = unwrap(self.model)
        with fork_rng(self.next_seed(), input.device):
            adversarial = mean_logits(output_of(inner, self.attack(input)), len(input))
            if output is None or self.config.form == "original":
                with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.detach):
                    output = output_of(inner, input)
        clean = mean_logits(output, len(input))
        if self.config.detach:
            clean = clean.detach()
        return self.config.beta * divergence(clean, adversarial).mean()


def _own_clean(config: TradesSettings) -> float:
    """Cost of the loss's own clean forward, and of its backward unless its predictions are constants."""
    return 1.0 if config.detach else 3.0


def divergence(clean: torch.Tensor, adversarial: torch.Tensor) -> torch.Tensor:
    """KL(softmax(clean) || softmax(adversarial)) of each row of two (B, K) logits: (B,), with gradients to both.

    A clean probability that underflows to 0 counts 0. (Through ``nn.KLDivLoss`` its gradient would be 0 / 0.)
    """
    clean, adversarial = in_full_precision(clean), in_full_precision(adversarial)
    return (clean.softmax(-1) * (clean.log_softmax(-1) - adversarial.log_softmax(-1))).sum(-1)
