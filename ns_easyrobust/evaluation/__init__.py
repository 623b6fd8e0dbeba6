"""Evaluation: which images a model classifies correctly, and the records of the results."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .checkpoint_flags import add_checkpoint_arguments, add_reading_arguments, checkpoint_model
    from .checkpoint_run import evaluate_checkpoint
    from .easyrobust_api import (
        evaluate_damagenet,
        evaluate_imagenet_a,
        evaluate_imagenet_autoattack,
        evaluate_imagenet_c,
        evaluate_imagenet_cw,
        evaluate_imagenet_fgsm,
        evaluate_imagenet_patchfool,
        evaluate_imagenet_pgd,
        evaluate_imagenet_r,
        evaluate_imagenet_sketch,
        evaluate_imagenet_v2,
        evaluate_imagenet_val,
        evaluate_objectnet,
        evaluate_stylized_imagenet,
    )
    from .mce import corruption_error, mean_corruption_error
    from .per_image import images_digest, load_correctness
    from .recorder import Recorder
    from .records import MODEL_SETTINGS, RUN_SETTINGS, Record, collect_versions, column_settings, describe_machine
    from .results_file import latest, read_records
    from .suite import (
        ADVERSARIAL,
        CLEAN,
        LARGEST_BATCH,
        MISSING_FOLDER,
        OOD,
        PRESETS,
        TABLE2,
        Protocol,
        Suite,
        expand_groups,
        mean_corruption_suite,
        released_images,
        suite_groups,
        suites,
        table2_suites,
    )
    from .suite_run import EvaluationPlan, SuitesRun, run_suites

__all__ = [
    "ADVERSARIAL",
    "CLEAN",
    "LARGEST_BATCH",
    "MISSING_FOLDER",
    "MODEL_SETTINGS",
    "OOD",
    "PRESETS",
    "RUN_SETTINGS",
    "TABLE2",
    "EvaluationPlan",
    "Protocol",
    "Record",
    "Recorder",
    "Suite",
    "SuitesRun",
    "add_checkpoint_arguments",
    "add_reading_arguments",
    "checkpoint_model",
    "collect_versions",
    "column_settings",
    "corruption_error",
    "describe_machine",
    "evaluate_checkpoint",
    "evaluate_damagenet",
    "evaluate_imagenet_a",
    "evaluate_imagenet_autoattack",
    "evaluate_imagenet_c",
    "evaluate_imagenet_cw",
    "evaluate_imagenet_fgsm",
    "evaluate_imagenet_patchfool",
    "evaluate_imagenet_pgd",
    "evaluate_imagenet_r",
    "evaluate_imagenet_sketch",
    "evaluate_imagenet_v2",
    "evaluate_imagenet_val",
    "evaluate_objectnet",
    "evaluate_stylized_imagenet",
    "expand_groups",
    "images_digest",
    "latest",
    "load_correctness",
    "mean_corruption_error",
    "mean_corruption_suite",
    "read_records",
    "released_images",
    "run_suites",
    "suite_groups",
    "suites",
    "table2_suites",
]

if not TYPE_CHECKING:
    from ..utils import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
