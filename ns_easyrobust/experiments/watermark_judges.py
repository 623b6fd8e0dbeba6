"""Who says whether an image bears the mark: a detector, and a threshold by images that the detector does not know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from .. import nullspace
from ..utils import torch
from .watermark_mark import Marker

if TYPE_CHECKING:
    Scores = Callable[[torch.Tensor], torch.Tensor]

_BATCH = 64


class Judge(NamedTuple):
    """A test for the mark.

    Attributes:
        scores: of images (B, C, H, W), (B,) float64.
        threshold: which the score of an image with the mark exceeds.
    """

    scores: Scores
    threshold: float


class Thirds:
    """Unmarked images in three random parts, each judged by what was learnt of the other two.

    Of those one gives the detector its covariance, and the other the threshold: so neither knows the images that are
    judged, nor the threshold's images the detector, as :func:`~ns_easyrobust.nullspace.threshold_at` needs.

    Args:
        n: number of images.
        seed: of the parts.

    Attributes:
        order: (n,) all images at random; the parts take turns in it.
        part: (n,) of each image, 0 to 2.
        judges: of each part, once :meth:`calibrate` made them.
    """

    def __init__(self, n: int, seed: int) -> None:
        self.order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        self.part = torch.empty(n, dtype=torch.long)
        self.part[self.order] = torch.arange(n) % 3
        self.judges: list[Judge] = []

    def require_rate(self, rate: float) -> None:
        """Raise the OptionError of :func:`~ns_easyrobust.nullspace.threshold_at` for a third of the images."""
        nullspace.threshold_at(torch.zeros(len(self.order) // 3), rate)

    def calibrate(self, marker: Marker, images: torch.Tensor, rate: float) -> None:
        """Make the judges of the ``images`` (n, C, H, W), for this ``rate`` of false positives."""
        self.judges = [self._judge(marker, images, rate, [(part + 1) % 3], (part + 2) % 3) for part in range(3)]

    def judge_of_others(self, marker: Marker, images: torch.Tensor, rate: float) -> Judge:
        """For images that are none of these: two parts give the covariance, the third the threshold."""
        return self._judge(marker, images, rate, [0, 1], 2)

    def _judge(self, marker: Marker, images: torch.Tensor, rate: float, known: list[int], held: int) -> Judge:
        scores = marker.detector(self._batches(images, known))
        found = torch.cat([scores(batch) for batch in self._batches(images, [held])])
        return Judge(scores, nullspace.threshold_at(found, rate))

    def _batches(self, images: torch.Tensor, parts: list[int]) -> Iterator[torch.Tensor]:
        for chosen in torch.isin(self.part, torch.tensor(parts)).nonzero()[:, 0].split(_BATCH):
            yield images[chosen.to(images.device)]

    def scores(self, chosen: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Scores (B,) of what became of the images ``chosen`` (B,), each by its part's judge, and how many are found.

        Args:
            chosen: numbers of images.
            images: (B, C, H, W) in [0, 1], those or what a mark or a file made of them.
        """
        scores, found = torch.zeros(len(images), dtype=torch.float64), 0
        for part, judge in enumerate(self.judges):
            own = self.part[chosen] == part
            if bool(own.any()):
                scores[own] = judge.scores(images[own.to(images.device)])
                found += int((scores[own] > judge.threshold).sum())
        return scores, found
