"""Patch-based negative augmentation (Qin et al. 2022, arXiv:2110.07858): unlearning what survives broken patches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

from ...errors import OptionError
from ...models import features_of, find_patch_size, mean_logits, output_of, required_image_size, unwrap
from ...utils import choices_of, derive_seed, fork_rng, nn, setting, torch
from .base import Augmentation
from .negative_losses import LOSSES, contrastive_loss, l2_loss, uniform_loss
from .patch_transforms import TRANSFORMS, check_grid, transform_patches
from .registry import register_augmentation

_PATCHES = 1  # what the seeds of the patches' changes are derived with


@dataclass(frozen=True)
class NegativeSettings:
    """Settings of the negatives and of the loss on them.

    The defaults are P-Rotate with the uniform loss, which is the row "PR" of Table 2 of arXiv:2403.10476. The
    temperature and the weight chosen are in an appendix that we have not seen: 0.1 is that of Khosla et al. 2020, and
    1 the middle of the weights swept, 0.5, 1 and 1.5.

    Raises:
        OptionError: a value is out of range.

    Example:
        >>> NegativeSettings(transform="shuffle", weight=1.5).loss
        'uniform'
    """

    transform: str = setting("rotate", "what is done to an image's patches to make its negative", choices=TRANSFORMS)
    loss: str = setting("uniform", "loss on the negatives", choices=LOSSES)
    weight: float = setting(1.0, "weight of that loss; lambda", least=0, most=1e6)
    multiple: int = setting(1, "side of a transformed patch, in patches of the model", least=1, most=4096, metavar="N")
    patch_size: int = setting(
        0, "side of a patch of the model, in pixels; 0: the model's own", least=0, most=65536, metavar="N"
    )
    rate: float = setting(0.25, "infill: share of the patches that are replaced", least=0, most=1)
    temperature: float = setting(0.1, "contrastive: what cosine similarities are divided by; tau", least=1e-3, most=1e3)

    def __post_init__(self) -> None:
        for item in fields(self):
            value, how = getattr(self, item.name), item.metadata
            if choices := choices_of(type(self), item.name):
                if value not in choices:
                    raise OptionError(
                        f"negative patches, {item.name}: expected one of {', '.join(choices)}, found {value!r}."
                    )
            elif not (isinstance(value, int | type(item.default)) and how["least"] <= value <= how["most"]):
                kind = "whole number" if isinstance(item.default, int) else "number"
                raise OptionError(
                    f"negative patches, {item.name}: expected a {kind} from {how['least']:g} to {how['most']:g}, "
                    f"found {value!r}."
                )


@register_augmentation("negative-patches")
class NegativePatches(Augmentation):
    """Patch-based negative augmentation: a loss that keeps the model from trusting images whose patches are broken.

    Each image of the batch, as the model gets it, has one negative: the image with its patches shuffled, rotated or
    overwritten (:mod:`~ns_easyrobust.training.augmentations.patch_transforms`). To the clean loss it adds
    ``weight`` times one of (:mod:`~ns_easyrobust.training.augmentations.negative_losses`)

    - ``uniform``: the cross-entropy of the negatives' predictions with 1/K;
    - ``l2``: minus the distance of the probabilities of image and negative. The clean ones are not detached;
    - ``contrastive``: the supervised contrastive loss on the features before the classifier, in which images of the
      same label attract each other, and the others and all negatives are repelled. The images are those of this rank;
      with soft targets (mixup), an image is of its most probable class.

    Cost in forward-equivalents for an image: 3; ``contrastive`` 6, because the clean loss leaves no features behind
    and the images are run once more. A plain update costs 3.

    Args:
        model: the model being trained, whose logits are (B, K).
        batches: not used.
        config: settings.
        generator: source of all seeds; by default one with seed 0.

    Raises:
        ModelError: the model's patch size is not known and ``patch_size`` is not set.
        OptionError: the images of the model's size are no grid of such patches.

    Example:
        >>> from ns_easyrobust.training.augmentations import NegativePatches
        >>> negative = NegativePatches(model)
        >>> loss = negative.loss(images, labels, torch.nn.functional.cross_entropy)
        >>> float(loss) > torch.log(torch.tensor(10.0))
        True
    """

    Settings = NegativeSettings
    prefix = "negative-"
    uses_output = True
    loss_name = "negative_loss"

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any] | None = None,
        config: NegativeSettings | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, batches, config, generator=generator)
        self.side = self.config.multiple * (self.config.patch_size or find_patch_size(model))
        if (size := required_image_size(model)) is not None:  # refuse it now, not at the first step
            check_grid(self.config.transform, size, self.side, self.config.rate)

    @classmethod
    def cost(cls, config: NegativeSettings) -> float:
        """3 for the negatives' forward and backward, and 3 more for the clean images' features."""
        return 6.0 if config.loss == "contrastive" else 3.0

    @classmethod
    def output_cost(cls, config: NegativeSettings) -> float:
        """The clean images' own forward and backward, for ``l2``."""
        return 3.0 if config.loss == "l2" else 0.0

    def loss(
        self,
        input: torch.Tensor,
        target: torch.Tensor,
        loss_fn: Callable[[Any, torch.Tensor], torch.Tensor],
        *,
        new_step: bool = True,
        output: Any = None,
    ) -> torch.Tensor:
        """``weight`` times the loss on the negatives of ``input``; see :meth:`Augmentation.loss`.

        ``loss_fn`` is not used. ``output``, the clean one, is used by ``l2``, which without it computes its own.

        Raises:
            OptionError: the images are no grid of such patches.
            DataError: ``contrastive``: the images are not as many as the targets.
        """
        seed = self.next_seed()
        drawing = torch.Generator().manual_seed(derive_seed(seed, _PATCHES))  # dropout has the seed itself
        negatives = transform_patches(self.config.transform, input, self.side, generator=drawing, rate=self.config.rate)
        with fork_rng(seed, input.device):
            return self.config.weight * self._loss_on(negatives, input, target, output)

    def _loss_on(self, negatives: torch.Tensor, input: torch.Tensor, target: torch.Tensor, output: Any) -> torch.Tensor:
        model, number = unwrap(self.model), len(input)
        if self.config.loss == "contrastive":
            self.require_targets(input, target)
            classes = target if target.ndim == 1 else target.argmax(1)
            features, negative_features = features_of(model, torch.cat((input, negatives))).split(number)
            return contrastive_loss(features, negative_features, classes, self.config.temperature)
        negative_logits = mean_logits(output_of(model, negatives), number)
        if self.config.loss == "uniform":
            return uniform_loss(negative_logits)
        logits = mean_logits(output_of(model, input) if output is None else output, number)
        return l2_loss(logits, negative_logits)
