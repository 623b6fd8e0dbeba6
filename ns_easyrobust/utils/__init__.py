"""Utilities for all other folders: seeds, atomic writes, ranks, progress bars, flags, lazy imports."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .arguments import (
        FlagParser,
        add_machine_arguments,
        add_model_arguments,
        add_settings,
        choices_of,
        flags_of,
        float_in,
        int_from,
        setting,
        settings_from,
    )
    from .distributed import (
        broadcast,
        broadcast_object,
        gather_objects,
        is_distributed,
        is_first_rank,
        mean_over_ranks,
        on_first_rank,
        pick_device,
        process_group,
        rank,
        sum_over_ranks,
        world_size,
    )
    from .files import new_run_folder, os_errors_as_output_errors, sha256_of, write_atomically, write_text
    from .lazy import dist, lazy_names, nn, np, timm, torch, transforms
    from .patching import replaced_attributes
    from .progress import Progress
    from .registry import Registry
    from .seeding import derive_seed, draw_seed, fork_rng

__all__ = [
    "FlagParser",
    "Progress",
    "Registry",
    "add_machine_arguments",
    "add_model_arguments",
    "add_settings",
    "broadcast",
    "broadcast_object",
    "choices_of",
    "derive_seed",
    "dist",
    "draw_seed",
    "flags_of",
    "float_in",
    "fork_rng",
    "gather_objects",
    "int_from",
    "is_distributed",
    "is_first_rank",
    "lazy_names",
    "mean_over_ranks",
    "new_run_folder",
    "nn",
    "np",
    "on_first_rank",
    "os_errors_as_output_errors",
    "pick_device",
    "process_group",
    "rank",
    "replaced_attributes",
    "setting",
    "settings_from",
    "sha256_of",
    "sum_over_ranks",
    "timm",
    "torch",
    "transforms",
    "world_size",
    "write_atomically",
    "write_text",
]

if not TYPE_CHECKING:
    from .lazy import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
