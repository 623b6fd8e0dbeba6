"""The sphere solver for Equation 6: the largest noise under eps, approached from inside the feasible set.

Algorithm 1 starts far outside and stops at the first minibatch that happens to be under eps. This search starts inside.
"""

from __future__ import annotations

from ...utils import torch
from ..config import NoiseConfig
from ..objective import NoiseObjective, OnStep
from .registry import SolverResult, register_solver
from .sphere_search import search_on_sphere


@register_solver("sphere", gaussian=True, pool=32)
def sphere(objective: NoiseObjective, start: torch.Tensor, config: NoiseConfig, on_step: OnStep) -> SolverResult:
    """The largest noise that :func:`search_on_sphere` finds under eps."""
    return search_on_sphere(objective, start, config, on_step)
