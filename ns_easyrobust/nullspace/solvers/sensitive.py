"""The most sensitive direction: the smallest noise whose influence is just under eps, a control for the largest one.

One noise for all images that moves the outputs most for its norm is a universal adversarial perturbation
(Moosavi-Dezfooli et al. 2017, arXiv:1610.08401), here of the encoder's input.
"""

from __future__ import annotations

from ...utils import torch
from ..config import NoiseConfig
from ..objective import NoiseObjective, OnStep
from .registry import SolverResult, register_solver
from .sphere_search import search_on_sphere


@register_solver("sensitive", gaussian=True, pool=32)
def sensitive(objective: NoiseObjective, start: torch.Tensor, config: NoiseConfig, on_step: OnStep) -> SolverResult:
    """The smallest noise that :func:`search_on_sphere` finds just under eps.

    It turns towards a larger logit distance. At zero noise that has no gradient, and so ``start`` must not be zero.
    """
    return search_on_sphere(objective, start, config, on_step, uphill=True)
