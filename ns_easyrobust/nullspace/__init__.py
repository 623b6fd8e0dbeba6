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
    from .enlargement import enlarged
    from .exact import SPACES, PatchSpectrum, find_projection, patch_nullspace, patch_pseudo_inverse, patch_spectrum
    from .exact_noise import patchify, sample_nullspace, unpatchify, valid_nullspace_noise
    from .exploratory import (
        NoiseLearner,
        Stationarity,
        exploratory_loss,
        permuted_control,
        uniform_start,
        within_token_control,
    )
    from .feasible import FeasibleNorm, ImageInfluence, InfluenceProbe, first_crossing, unit_direction
    from .fingerprint import Fingerprint, HaarOverlap, common_space, fingerprint_of, haar_overlap, likeness, overlap
    from .fingerprint_file import load_fingerprint, save_fingerprint
    from .fingerprint_null import STATISTICS, Comparison, compare_fingerprints, rank_p_value, t_p_value
    from .float64 import float64_copy
    from .lattice_rounding import LatticeRounding, embedding_error, rounded_in_nullspace
    from .local_spectrum import LocalSpectrum, SoftmaxJacobian
    from .mark import MarkDetector, require_detectable, threshold_at
    from .nearest import NearestImages, nearest_in_nullspace, nearest_valid
    from .noise import Influence, Noise, Step
    from .objective import OnStep
    from .patch_covariance import PatchCovariance, hidden_noise
    from .pixel_noise import (
        OutputChange,
        output_change,
        permuted_in_patches,
        pixel_logits,
        rounded_to_8_bits,
        scaled_to_rms,
        valid_permutation,
    )
    from .row_space import PatchRowSpace
    from .shares import random_rows, unseen_share, unseen_share_of_rows, within_squares_share
    from .solvers import SolverResult, centred, known_solvers, register_solver
    from .square_rounding import SquareRounding
    from .synthesis import measure, synthesize
    from .texture import MarkContrast, mark_contrast, textured, visible_texture
    from .transfer import EncoderControls, encoder_controls, pixel_change, ratio_error
    from .transformed import TransformedImages, TransformedKinds, transformed_images

__all__ = [
    "SPACES",
    "STATISTICS",
    "AllOnesCheck",
    "Comparison",
    "EncoderControls",
    "FeasibleNorm",
    "Fingerprint",
    "HaarOverlap",
    "ImageInfluence",
    "Influence",
    "InfluenceProbe",
    "LatticeRounding",
    "LeastSeen",
    "LocalSpectrum",
    "MarkContrast",
    "MarkDetector",
    "NearestImages",
    "Noise",
    "NoiseConfig",
    "NoiseLearner",
    "OnStep",
    "OutputChange",
    "PairForm",
    "PatchCovariance",
    "PatchRowSpace",
    "PatchSpectrum",
    "SoftmaxJacobian",
    "SolverResult",
    "SquareRounding",
    "Stationarity",
    "Step",
    "TransformedImages",
    "TransformedKinds",
    "centred",
    "combined",
    "common_space",
    "compare_fingerprints",
    "constructed_layer",
    "draw_pairs",
    "embedding_error",
    "encoder_controls",
    "enlarged",
    "even_steps",
    "exploratory_loss",
    "find_projection",
    "fingerprint_of",
    "first_crossing",
    "float64_copy",
    "haar_overlap",
    "head_invariant_directions",
    "heads_of",
    "hidden_noise",
    "ignores_all_ones",
    "known_solvers",
    "layer_norm_nullity",
    "layer_norm_nullspace",
    "least_seen",
    "likeness",
    "load_fingerprint",
    "mark_contrast",
    "measure",
    "nearest_in_nullspace",
    "nearest_row",
    "nearest_valid",
    "norm_at_influence",
    "output_change",
    "overlap",
    "patch_nullspace",
    "patch_pseudo_inverse",
    "patch_spectrum",
    "patchify",
    "permuted_control",
    "permuted_in_patches",
    "pixel_change",
    "pixel_logits",
    "principal_cosines",
    "random_rows",
    "rank_p_value",
    "ratio_error",
    "register_solver",
    "require_detectable",
    "rounded_in_nullspace",
    "rounded_to_8_bits",
    "sample_nullspace",
    "save_fingerprint",
    "scaled_to_rms",
    "share_under",
    "symmetric_share",
    "synthesize",
    "t_p_value",
    "textured",
    "threshold_at",
    "transformed_images",
    "uniform_start",
    "unit_direction",
    "unit_roundoff",
    "unpatchify",
    "unseen_share",
    "unseen_share_of_rows",
    "valid_nullspace_noise",
    "valid_permutation",
    "visible_texture",
    "within_squares_share",
    "within_token_control",
]

if not TYPE_CHECKING:
    from ..utils import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
