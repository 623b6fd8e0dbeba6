"""Utilities for all other folders: seeds, atomic writes, ranks, progress bars, flags, lazy imports."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .archives import check_archive, is_archive, read_arrays, read_member
    from .arguments import (
        FlagParser,
        add_machine_arguments,
        add_model_arguments,
        add_settings,
        choices_of,
        default_workers,
        file_or_folder,
        flags_of,
        float_in,
        int_from,
        setting,
        settings_from,
        shown_flags,
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
    from .files import (
        as_utf8,
        new_run_folder,
        open_regular,
        os_errors_as_output_errors,
        read_bounded,
        remove_temporaries,
        require_regular,
        require_replaceable,
        save_tensors,
        sha256_of,
        write_atomically,
        write_text,
        write_together,
    )
    from .keywords import FLAGGED_ARGUMENTS, KEPT_ARGUMENTS, add_model_kwargs, is_plain
    from .lazy import cv2, dist, lazy_names, ndimage, nn, np, timm, torch, transforms
    from .locks import FileLock
    from .packages import import_package
    from .parsing import parse_json, parse_yaml, require_bounded
    from .patching import replaced_attributes
    from .precision import exact_float32
    from .progress import Interval, Progress
    from .registry import Registry
    from .seeding import derive_seed, draw_seed, fork_rng
    from .spreadsheet import as_csv
    from .yaml_flags import read_settings, words_of

__all__ = [
    "FLAGGED_ARGUMENTS",
    "KEPT_ARGUMENTS",
    "FileLock",
    "FlagParser",
    "Interval",
    "Progress",
    "Registry",
    "add_machine_arguments",
    "add_model_arguments",
    "add_model_kwargs",
    "add_settings",
    "as_csv",
    "as_utf8",
    "broadcast",
    "broadcast_object",
    "check_archive",
    "choices_of",
    "cv2",
    "default_workers",
    "derive_seed",
    "dist",
    "draw_seed",
    "exact_float32",
    "file_or_folder",
    "flags_of",
    "float_in",
    "fork_rng",
    "gather_objects",
    "import_package",
    "int_from",
    "is_archive",
    "is_distributed",
    "is_first_rank",
    "is_plain",
    "lazy_names",
    "mean_over_ranks",
    "ndimage",
    "new_run_folder",
    "nn",
    "np",
    "on_first_rank",
    "open_regular",
    "os_errors_as_output_errors",
    "parse_json",
    "parse_yaml",
    "pick_device",
    "process_group",
    "rank",
    "read_arrays",
    "read_bounded",
    "read_member",
    "read_settings",
    "remove_temporaries",
    "replaced_attributes",
    "require_bounded",
    "require_regular",
    "require_replaceable",
    "save_tensors",
    "setting",
    "settings_from",
    "sha256_of",
    "shown_flags",
    "sum_over_ranks",
    "timm",
    "torch",
    "transforms",
    "words_of",
    "world_size",
    "write_atomically",
    "write_text",
    "write_together",
]

if not TYPE_CHECKING:
    from .keywords import FLAGGED_ARGUMENTS, KEPT_ARGUMENTS, add_model_kwargs, is_plain
    from .lazy import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
