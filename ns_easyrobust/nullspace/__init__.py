"""The paper's two nullspaces: the exact one of the patch embedding, and noise in the encoder's approximate one."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .all_ones import AllOnesCheck, ignores_all_ones, layer_norm_nullity, layer_norm_nullspace
    from .attention_nullspace import (
        LeastSeen,
        head_invariant_directions,
        least_seen,
        nearest_row,
        principal_cosines,
        symmetric_share,
        unit_roundoff,
    )
    from .closure import PairForm, combined, draw_pairs, even_steps, norm_at_influence, share_under
    from .config import NoiseConfig
    from .constructed_attention import constructed_layer, heads_of
    from .exact import SPACES, PatchSpectrum, find_projection, patch_nullspace, patch_pseudo_inverse, patch_spectrum
    from .exact_noise import patchify, unpatchify, valid_nullspace_noise
    from .exploratory import (
        NoiseLearner,
        Stationarity,
        exploratory_loss,
        permuted_control,
        uniform_start,
        within_token_control,
    )
    from .feasible import FeasibleNorm, ImageInfluence, InfluenceProbe, first_crossing, unit_direction
    from .local_spectrum import LocalSpectrum, SoftmaxJacobian
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
    "LeastSeen",
    "LocalSpectrum",
    "Noise",
    "NoiseConfig",
    "NoiseLearner",
    "OnStep",
    "PairForm",
    "PatchSpectrum",
    "SoftmaxJacobian",
    "SolverResult",
    "Stationarity",
    "Step",
    "centred",
    "combined",
    "constructed_layer",
    "draw_pairs",
    "even_steps",
    "exploratory_loss",
    "find_projection",
    "first_crossing",
    "head_invariant_directions",
    "heads_of",
    "ignores_all_ones",
    "known_solvers",
    "layer_norm_nullity",
    "layer_norm_nullspace",
    "least_seen",
    "measure",
    "nearest_row",
    "norm_at_influence",
    "patch_nullspace",
    "patch_pseudo_inverse",
    "patch_spectrum",
    "patchify",
    "permuted_control",
    "principal_cosines",
    "register_solver",
    "share_under",
    "symmetric_share",
    "synthesize",
    "uniform_start",
    "unit_direction",
    "unit_roundoff",
    "unpatchify",
    "valid_nullspace_noise",
    "within_token_control",
]

if not TYPE_CHECKING:
    from ..utils import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
