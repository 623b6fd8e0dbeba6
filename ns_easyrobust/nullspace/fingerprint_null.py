"""Whether two fingerprints are of one origin: p-values against independently trained models (section 6, ours).

The null is measured, not derived: independently trained models of the same patches resemble each other far more than
uniformly random subspaces do (:func:`~ns_easyrobust.nullspace.fingerprint.haar_overlap`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import OptionError
from ..utils import np
from .fingerprint import Fingerprint, HaarOverlap, common_space, haar_overlap, likeness, overlap

if TYPE_CHECKING:
    import torch

    from .patch_covariance import PatchCovariance

DERIVED, INDEPENDENT, UNKNOWN = "derived", "not told apart from independent", "cannot be said"
STATISTICS = ("weighted", "rows", "images")
_EDGE = 1e-9  # likenesses are kept this far from 0 and 1, where their logits are infinite


@dataclass(frozen=True)
class Comparison:
    """Two fingerprints, and independent ones beside them.

    Attributes:
        overlap: S, the sum of squared cosines of the principal angles.
        statistic: ``weighted``, ``rows`` or ``images``, what the test is made of.
        likeness: of that statistic, in [0, 1]: S / sqrt(k1 k2) of rows.
        haar: mean and standard deviation of S if weights were pure chance: a reference, not the null.
        space: ``pixel`` or ``normalised``, in which the row spaces were compared.
        null: likenesses of the claimed model to each independent one.
        p: exact rank p-value; None without independents.
        p_t: Student's t predictive p-value, parametric; None with fewer than 3 independents.
        alpha: level of the verdict.
    """

    overlap: float
    statistic: str
    likeness: float
    haar: HaarOverlap
    space: str
    null: tuple[float, ...]
    p: float | None
    p_t: float | None
    alpha: float

    @property
    def least_p(self) -> float:
        """1 / (m + 1), the smallest rank p-value that m independents allow."""
        return 1 / (len(self.null) + 1)

    @property
    def verdict(self) -> str:
        """``derived``, ``not told apart from independent``, or ``cannot be said`` where m is too small for alpha."""
        if self.p is None or self.least_p > self.alpha:
            return UNKNOWN
        return DERIVED if self.p <= self.alpha else INDEPENDENT


def rank_p_value(found: float, null: Sequence[float]) -> float:
    """(1 + #{null >= found}) / (m + 1): exact if the suspect is exchangeable with the m independents.

    That is, if it were one more of them, drawn as they were, all orders of the m + 1 likenesses would be equally
    likely (Vovk, Gammerman and Shafer 2005). It then holds for any distribution and any m, and errs on no side but by
    the steps of 1 / (m + 1).

    Raises:
        OptionError: no independents.
    """
    if not null:
        raise OptionError("p-value: expected one independent model at least, found none. Give some.")
    return (1 + sum(value >= found for value in null)) / (len(null) + 1)


def t_p_value(found: float, null: Sequence[float]) -> float:
    """Upper tail of Student's predictive t for one more likeness, on the scale of logits.

    ``(z - mean) / (sd sqrt(1 + 1/m))`` with m - 1 degrees of freedom, z = log(x / (1 - x)). **Parametric**: it goes
    below 1 / (m + 1) on the word of a normal distribution that nobody has checked out there.

    Args:
        found, null: likenesses in [0, 1]; at least 3 in ``null``.

    Raises:
        OptionError: fewer.
    """
    from scipy.special import logit
    from scipy.stats import t

    if len(null) < 3:
        raise OptionError(f"p-value: expected three independent models at least, found {len(null)}. Give more.")
    scores = logit(np.clip(np.asarray(null, dtype=np.float64), _EDGE, 1 - _EDGE))
    spread = max(float(scores.std(ddof=1)), 1e-12) * math.sqrt(1 + 1 / len(null))
    score = float(logit(min(max(found, _EDGE), 1 - _EDGE)))
    return float(t.sf((score - float(scores.mean())) / spread, len(null) - 1))


def compare_fingerprints(
    claimed: Fingerprint,
    suspect: Fingerprint,
    independent: Sequence[Fingerprint] = (),
    *,
    statistic: str = "weighted",
    covariance: PatchCovariance | None = None,
    alpha: float = 0.05,
) -> Comparison:
    """Whether ``suspect`` is derived from ``claimed``, against independently trained models.

    All are compared in pixel space where all normalisations are known, else in that of normalised patches. Independent
    models with the weights of one of both would be no null: leave them out.

    Args:
        statistic: ``rows``, the row space alone; ``weighted`` by singular values; or ``images``, weighted in the metric
            of ``covariance``. Choose before looking: with the best of their p-values the level does not hold.
        covariance: of patches of images, at the scale that the models see them; for ``images`` alone.
        alpha: level, in (0, 1).

    Raises:
        ModelError: patches of different sizes or channels.
        OptionError: an independent model that has the weights of one of both; ``statistic`` or ``alpha`` out of range.
    """
    if statistic not in STATISTICS:
        raise OptionError(f"statistic: expected one of {', '.join(STATISTICS)}, found {statistic!r}. Choose one.")
    if (statistic == "images") != (covariance is not None):
        given = "none" if covariance is None else f"one with {statistic}"
        raise OptionError(f"covariance: expected one with the statistic images alone, found {given}. Give images.")
    if not 0 < alpha < 1:
        raise OptionError(f"alpha: expected a number between 0 and 1, found {alpha}. Choose 0.05, for example.")
    space = common_space([claimed, suspect, *independent])
    known = {claimed.digest, suspect.digest}
    if same := next((each for each in independent if each.digest in known), None):
        raise OptionError(
            f"{same.name}: expected an independently trained model, found the patch embedding of one of both that are "
            "compared. Leave it out."
        )

    def rows(each: Fingerprint) -> torch.Tensor:
        metric = None if covariance is None else covariance.root(space, each.std)
        return each.rows(space, metric, weighted=statistic != "rows")

    one, other = rows(claimed), rows(suspect)
    found = likeness(one, other)
    null = tuple(likeness(one, rows(each)) for each in independent)
    return Comparison(
        overlap=overlap(claimed.rows(space), suspect.rows(space)),
        statistic=statistic,
        likeness=found,
        haar=haar_overlap(claimed.rank, suspect.rank, claimed.input_dim),
        space=space,
        null=null,
        p=rank_p_value(found, null) if null else None,
        p_t=t_p_value(found, null) if len(null) >= 3 else None,
        alpha=alpha,
    )
