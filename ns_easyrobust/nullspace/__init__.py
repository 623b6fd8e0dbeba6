"""The paper's two nullspaces: the exact one of the patch embedding, and noise in the encoder's approximate one."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import NoiseConfig
    from .exact import SPACES, PatchSpectrum, find_projection, patch_nullspace, patch_pseudo_inverse, patch_spectrum
    from .exact_noise import patchify, sample_nullspace, unpatchify, valid_nullspace_noise
    from .feasible import FeasibleNorm, ImageInfluence, InfluenceProbe, first_crossing, unit_direction
    from .noise import Influence, Noise, Step
    from .objective import OnStep
    from .pixel_noise import (
        OutputChange,
        output_change,
        permuted_in_patches,
        pixel_logits,
        rounded_to_8_bits,
        scaled_to_rms,
        valid_permutation,
    )
    from .solvers import SolverResult, centred, known_solvers, register_solver
    from .synthesis import measure, synthesize
    from .transfer import EncoderControls, encoder_controls, pixel_change

__all__ = [
    "SPACES",
    "EncoderControls",
    "FeasibleNorm",
    "ImageInfluence",
    "Influence",
    "InfluenceProbe",
    "Noise",
    "NoiseConfig",
    "OnStep",
    "OutputChange",
    "PatchSpectrum",
    "SolverResult",
    "Step",
    "centred",
    "encoder_controls",
    "find_projection",
    "first_crossing",
    "known_solvers",
    "measure",
    "output_change",
    "patch_nullspace",
    "patch_pseudo_inverse",
    "patch_spectrum",
    "patchify",
    "permuted_in_patches",
    "pixel_change",
    "pixel_logits",
    "register_solver",
    "rounded_to_8_bits",
    "sample_nullspace",
    "scaled_to_rms",
    "synthesize",
    "unit_direction",
    "unpatchify",
    "valid_nullspace_noise",
    "valid_permutation",
]

if not TYPE_CHECKING:
    from ..utils import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
