"""The paper's two nullspaces: the exact one of the patch embedding, and noise in the encoder's approximate one."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .all_ones import AllOnesCheck, ignores_all_ones, layer_norm_nullity, layer_norm_nullspace
    from .config import NoiseConfig
    from .exact import SPACES, PatchSpectrum, find_projection, patch_nullspace, patch_pseudo_inverse, patch_spectrum
    from .exact_noise import patchify, unpatchify, valid_nullspace_noise
    from .exploratory import (
        NoiseLearner,
        Stationarity,
        exploratory_loss,
        permuted_control,
        uniform_start,
    )
    from .feasible import FeasibleNorm, ImageInfluence, InfluenceProbe, first_crossing, unit_direction
    from .noise import Influence, Noise, Step
    from .objective import OnStep
    from .solvers import SolverResult, centred, known_solvers, register_solver
    from .synthesis import measure, synthesize

__all__ = [
    "SPACES",
    "AllOnesCheck",
    "FeasibleNorm",
    "ImageInfluence",
    "Influence",
    "InfluenceProbe",
    "Noise",
    "NoiseConfig",
    "NoiseLearner",
    "OnStep",
    "PatchSpectrum",
    "SolverResult",
    "Stationarity",
    "Step",
    "centred",
    "exploratory_loss",
    "find_projection",
    "first_crossing",
    "ignores_all_ones",
    "known_solvers",
    "layer_norm_nullity",
    "layer_norm_nullspace",
    "measure",
    "patch_nullspace",
    "patch_pseudo_inverse",
    "patch_spectrum",
    "patchify",
    "permuted_control",
    "register_solver",
    "synthesize",
    "uniform_start",
    "unit_direction",
    "unpatchify",
    "valid_nullspace_noise",
]

if not TYPE_CHECKING:
    from ..utils import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
