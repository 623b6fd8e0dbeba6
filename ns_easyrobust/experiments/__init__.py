"""The figures, tables and applications of the paper, one file for each."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .figure import FigureExperiment
    from .fingerprints import distinct, fingerprint_files, patch_covariance, read_fingerprint, split_ending
    from .patch_rows import (
        PUBLISHED_DIMENSIONS,
        architecture_row,
        checkpoint_row,
        dimensions_csv,
        dimensions_text,
        is_checkpoint,
    )
    from .registry import Command, Experiment, experiments, register_experiment
    from .results import Results

__all__ = [
    "PUBLISHED_DIMENSIONS",
    "Command",
    "Experiment",
    "FigureExperiment",
    "Results",
    "architecture_row",
    "checkpoint_row",
    "dimensions_csv",
    "dimensions_text",
    "distinct",
    "experiments",
    "fingerprint_files",
    "is_checkpoint",
    "patch_covariance",
    "read_fingerprint",
    "register_experiment",
    "split_ending",
]

if not TYPE_CHECKING:
    from ..utils import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
