"""RobustViT: relevance maps that stay on the foreground (Chefer et al. 2022, arXiv:2206.01161)."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ...data import list_folder
from ...errors import DataError, ModelError, OptionError
from ...models import (
    attention_blocks,
    find_normalize,
    frozen,
    reference_tensor,
    relevance_maps,
    required_image_size,
    unwrap,
)
from ...utils import default_workers, derive_seed, fork_rng, nn, setting, torch
from .base import Augmentation
from .registry import register_augmentation

_CHOICE, _FORWARD, _CROPS = range(3)  # uses of a call's randomness, each with its own seed


class Pairs(Protocol):
    """Images with masks of their foreground, such as :class:`~ns_easyrobust.training.masks.MaskedImages`."""

    def __len__(self) -> int: ...

    def pair(self, index: int, seed: int, size: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Image (3, size, size) in [0, 1], mask (1, size, size) in [0, 1], label; cropped and flipped by ``seed``."""


@dataclass(frozen=True)
class RelevanceSettings:
    """Settings of :class:`RelevanceAugmentation`; the weights are those of the public README, for all its models.

    Raises:
        OptionError: a weight below 0, no weight above 0, a temperature or a number of images out of range.
    """

    images: str = setting(
        "", "class folders of the images that have masks; empty: the training images", path=True, metavar="DIR"
    )
    masks: str = setting(
        "",
        "masks in ImageNet-S's format, <class>/<image>.png; empty: TokenCut makes them from the model's own keys",
        path=True,
        metavar="DIR",
    )
    cache: str = setting(
        "",
        "where TokenCut's masks and a sheet of them are kept; empty: masks-<model> in --output",
        path=True,
        metavar="DIR",
    )
    tau: float = setting(0.2, "cosine of two patches' keys above which TokenCut joins them", least=-1, most=1)
    per_class: int = setting(3, "images of each class that are taken, by the seed", least=1, metavar="N")
    classes: int = setting(0, "classes that are taken, by the seed, 500 as published; 0: all", least=0, metavar="N")
    lambda_seg: float = setting(0.8, "weight of the relevance's two losses", least=0)
    lambda_acc: float = setting(0.2, "weight of the cross-entropy", least=0)
    lambda_background: float = setting(2.0, "weight, among the two, of relevance outside the mask", least=0)
    lambda_foreground: float = setting(0.3, "weight, among the two, of relevance missing inside the mask", least=0)
    temperature: float = setting(
        1.0, "what the logits are divided by in the cross-entropy; .55 for DeiT-S, .65 for DeiT-B", least=0.01
    )
    true_labels: bool = setting(
        False, "cross-entropy with the true labels, which the authors ablate, instead of the model's own top-1"
    )
    keep_clean: bool = setting(False, "keep the clean loss of the training batch beside it, which the authors replace")

    def __post_init__(self) -> None:
        weights = {
            name: getattr(self, f"lambda_{name}") for name in ("seg", "acc", "background", "foreground")
        }  # in the order of the formula
        for name, value in weights.items():
            if not 0 <= value < float("inf"):
                raise OptionError(f"lambda_{name}: expected a weight >= 0, found {value}. Correct it.")
        if not weights["acc"] and not weights["seg"] * (weights["background"] + weights["foreground"]):
            raise OptionError("lambda_seg and lambda_acc: expected a loss, found weights of 0 alone. Raise one.")
        if not -1 <= self.tau < 1:
            raise OptionError(f"tau: expected a cosine from -1 to below 1, found {self.tau}. Correct it.")
        if not 0 < self.temperature < float("inf"):
            raise OptionError(f"temperature: expected a number > 0, found {self.temperature}. Correct it.")
        if self.per_class < 1 or self.classes < 0:
            raise OptionError(
                f"per_class, classes: expected at least 1 and at least 0, found {self.per_class}, {self.classes}."
            )


def mask_losses(maps: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How much relevance is outside the masks, and how much is missing inside: two means over all pixels.

    ``mean((R (1 - m))^2)`` and ``mean((R m - m)^2)``, imagenet_finetune.py:328-333 of hila-chefer/RobustViT df06c98.
    There, 1 - m of a pixel that a resized mask covers in part is m itself; here it is 1 - m.

    Args:
        maps: relevance R, (B, 1, H, W) in [0, 1].
        masks: m, alike; 1 is foreground.
    """
    return (maps * (1 - masks)).square().mean(), (maps * masks - masks).square().mean()


@register_augmentation("relevance")
class RelevanceAugmentation(Augmentation):
    """RobustViT's loss, in place of the clean loss: relevance on the foreground, and the model's own decisions kept.

    ``lambda_seg (lambda_background mean((R (1 - m))^2) + lambda_foreground mean((R m - m)^2)) + lambda_acc CE``
    (imagenet_finetune.py:325-349), where R is the relevance map of the label's logit
    (:func:`~ns_easyrobust.models.relevance.relevance_maps`), m the mask, and CE the cross-entropy of the logits over
    the temperature with the model's own top-1. It is computed on images that have masks, three of each class: each
    call draws as many as the loop's batch has, without repetition in it, and takes nothing else from the loop's.

    Cost: 4 forwards an image. One forward and one backward to the maps alone give R, and the backward to the weights
    costs 2. (The public code runs a second forward for the CE, one of the original model for its log, and a backward
    for each block's map.)

    Args:
        model: the model being trained, a transformer behind its normalisation, also in DDP or compiled.
        batches: not used.
        config: :class:`RelevanceSettings`.
        generator: source of all seeds.
        pairs: images with masks, where they are at hand; by default those that ``config`` names.

    Raises:
        ModelError: the attention cannot be read (Swin, XCiT), or the model has no normalisation in front.
        DataError, OptionError: the images or masks are missing or do not fit.

    Example:
        >>> from ns_easyrobust.training.augmentations.relevance import RelevanceAugmentation, RelevanceSettings
        >>> config = RelevanceSettings(images=str(data_dir / "train"), cache=str(tmp_dir / "masks"))
        >>> companion = RelevanceAugmentation(model, config=config)
        >>> loss = companion.loss(images, labels, torch.nn.functional.cross_entropy)
        >>> loss.backward()
        >>> sorted(companion.numbers)
        ['background', 'classification', 'foreground', 'inside']
    """

    Settings = RelevanceSettings

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any] | None = None,
        config: RelevanceSettings | None = None,
        *,
        generator: torch.Generator | None = None,
        pairs: Pairs | None = None,
    ) -> None:
        super().__init__(model, batches, config, generator=generator)
        require_relevance(model)
        self.pairs: Pairs = self._open_pairs() if pairs is None else pairs
        self._latest: dict[str, torch.Tensor | float] = {}

    @classmethod
    def config_from(cls, args: argparse.Namespace) -> RelevanceSettings:
        """The settings in parsed flags, with the training images and the cache's folder where none are given."""
        config: RelevanceSettings = super().config_from(args)
        if not config.images and hasattr(args, "data_dir") and not getattr(args, "dataset", None):
            config = replace(config, images=str(Path(args.data_dir, getattr(args, "train_split", "train"))))
        if not config.masks and not config.cache and getattr(args, "output", None):
            name = re.sub(r"[^\w.-]+", "_", str(getattr(args, "model", None)))[-100:]  # no path, whatever it is called
            config = replace(config, cache=str(Path(args.output, f"masks-{name}")))
        return config

    @classmethod
    def check(cls, args: argparse.Namespace) -> None:
        """Raise a UserError for settings out of range, or folders that are missing or have no class in common."""
        config = cls.config_from(args)
        if not config.masks and not config.cache:
            raise OptionError(
                "masks, cache: expected relevance's folder of masks, or one to put TokenCut's into, found neither. "
                "Give one of them."
            )
        images = list_folder(_images_of(config))[0]
        if not images:
            raise DataError(f"{config.images}: expected a folder for each class, found none. Check relevance's images.")
        if config.masks and not set(images) & set(masks := list_folder(config.masks)[0]):
            raise DataError(
                f"{config.masks}: expected masks in folders named as the classes in {config.images}, found "
                f"{', '.join(masks[:5]) or 'no folders'}. Check relevance's masks and images."
            )

    @classmethod
    def replaces(cls, config: RelevanceSettings) -> bool:
        """Unless ``keep_clean``."""
        return not config.keep_clean

    @classmethod
    def cost(cls, config: RelevanceSettings) -> float:
        """A forward, a backward to the attention maps alone, and one to the weights."""
        return 1 + 1 + 2

    @property
    def numbers(self) -> dict[str, float]:
        """Of the latest batch: the three losses before their weights, and the share of relevance inside the masks."""
        return {name: float(value) for name, value in self._latest.items()}

    def state_dict(self) -> dict[str, Any]:
        """Seeds, how many images there are to draw from, and :attr:`numbers`, for an epoch's very end."""
        return super().state_dict() | {"latest": self.numbers, "pairs": len(self.pairs)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: the images with masks are more or fewer than they were.
        """
        super().load_state_dict(state)
        if len(self.pairs) != state["pairs"]:
            raise ValueError(f"{state['pairs']} images with masks then, {len(self.pairs)} now")
        self._latest = dict(state["latest"])

    def loss(
        self,
        input: torch.Tensor,
        target: torch.Tensor,
        loss_fn: Callable[[Any, torch.Tensor], torch.Tensor],
        *,
        new_step: bool = True,
    ) -> torch.Tensor:
        """RobustViT's loss of ``len(input)`` images with masks, of the size of ``input``; see :class:`Augmentation`."""
        config, seed = self.config, self.next_seed()
        images, masks, labels = (part.to(input.device) for part in self.draw(seed, len(input), input.shape[-2:]))
        with fork_rng(derive_seed(seed, _FORWARD), input.device):
            maps, logits = relevance_maps(self.model, images.to(input.dtype), labels)
        background, foreground = mask_losses(maps, masks)
        decisions = labels if config.true_labels else logits.argmax(1)
        classification = nn.functional.cross_entropy(logits.to(maps.dtype) / config.temperature, decisions)
        with torch.no_grad():
            whole = maps.sum().clamp_min(torch.finfo(maps.dtype).tiny)
            parts = {"background": background, "foreground": foreground, "classification": classification}
            parts["inside"] = (maps * masks).sum() / whole
            self._latest = {name: part.detach() for name, part in parts.items()}
        segmentation = config.lambda_background * background + config.lambda_foreground * foreground
        return config.lambda_seg * segmentation + config.lambda_acc * classification

    def draw(self, seed: int, number: int, size: Iterable[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``number`` pairs by ``seed``: images (B, 3, S, S), masks (B, 1, S, S), labels (B,); S x S is ``size``.

        None is taken again before all have been. Files are read by several threads, which changes no result.
        """
        height, width = size
        if height != width:
            raise DataError(
                f"images: expected squares, as masked images are cut to, found {height} x {width} pixels. Resize them."
            )
        generator = torch.Generator().manual_seed(derive_seed(seed, _CHOICE))
        rounds = -(-number // len(self.pairs))
        order = torch.cat([torch.randperm(len(self.pairs), generator=generator) for _ in range(rounds)])[:number]
        crops = [derive_seed(seed, _CROPS, place) for place in range(number)]
        with ThreadPoolExecutor(default_workers()) as threads:
            drawn = list(threads.map(lambda index, crop: self.pairs.pair(index, crop, width), order.tolist(), crops))
        images, masks, labels = zip(*drawn, strict=True)
        return torch.stack(images), torch.stack(masks), torch.tensor(labels)

    def _open_pairs(self) -> Pairs:
        from ..masks import open_masks

        model, config = unwrap(self.model), self.config
        size = required_image_size(model) or (getattr(model, "image_size", 224),)
        return open_masks(
            _images_of(config),
            config.masks or None,
            model,
            size[0],
            per_class=config.per_class,
            seed=self._seed,
            cache=config.cache or None,
            tau=config.tau,
            most_classes=config.classes or None,
            num_classes=getattr(model, "num_classes", None),
        )


def _images_of(config: RelevanceSettings) -> str:
    if not config.images:
        raise OptionError(
            "images: expected a folder of class folders, which have masks or get them, found none. Give it."
        )
    return config.images


def require_relevance(model: nn.Module) -> None:
    """Refuse a model before any mask is made: one without its normalisation inside, or without attention to read.

    Raises:
        ModelError: see above.
    """
    attention_blocks(model)
    if find_normalize(model) is None:
        raise ModelError(
            f"{type(unwrap(model)).__name__}: expected a model with its normalisation in front, since images with "
            "masks are pixels in [0, 1], found none. Wrap it: ns_easyrobust.models.NormalizedModel."
        )
    if (size := required_image_size(model)) is not None:
        tensor = reference_tensor(model)
        with frozen(model) as inner:
            relevance_maps(inner, tensor.new_zeros(1, 3, *size))
