"""The paper's two nullspaces: the exact one of the patch embedding, and noise in the encoder's approximate one."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .attention_nullspace import (
        LeastSeen,
        head_invariant_directions,
        least_seen,
        nearest_row,
        principal_cosines,
        symmetric_share,
        unit_roundoff,
    )
    from .config import NoiseConfig
    from .constructed_attention import constructed_layer, heads_of
    from .exact import SPACES, PatchSpectrum, find_projection, patch_nullspace, patch_pseudo_inverse, patch_spectrum
    from .exact_noise import patchify, unpatchify, valid_nullspace_noise
    from .feasible import FeasibleNorm, ImageInfluence, InfluenceProbe, first_crossing, unit_direction
    from .noise import Influence, Noise, Step
    from .objective import OnStep
    from .solvers import SolverResult, centred, known_solvers, register_solver
    from .synthesis import measure, synthesize

__all__ = [
    "SPACES",
    "FeasibleNorm",
    "ImageInfluence",
    "Influence",
    "InfluenceProbe",
    "LeastSeen",
    "Noise",
    "NoiseConfig",
    "OnStep",
    "PatchSpectrum",
    "SolverResult",
    "Step",
    "centred",
    "constructed_layer",
    "find_projection",
    "first_crossing",
    "head_invariant_directions",
    "heads_of",
    "known_solvers",
    "least_seen",
    "measure",
    "nearest_row",
    "patch_nullspace",
    "patch_pseudo_inverse",
    "patch_spectrum",
    "patchify",
    "principal_cosines",
    "register_solver",
    "symmetric_share",
    "synthesize",
    "unit_direction",
    "unit_roundoff",
    "unpatchify",
    "valid_nullspace_noise",
]

if not TYPE_CHECKING:
    from ..utils import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
