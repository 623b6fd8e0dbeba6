"""Evaluation folders with correct labels, transforms, seeded batches and corruptions."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .augmix import AugMix
    from .batches import CountingIterator, cycle, images_of
    from .benchmarks import (
        ALEXNET_ERROR,
        IMAGENET_CLASSES,
        ROBUSTBENCH,
        SEVERITIES,
        SUITE_GROUPS,
        Benchmark,
        Loader,
        class_folders,
        damagenet,
        imagenet_a,
        imagenet_r,
        imagenet_val,
        known_benchmarks,
        objectnet,
        register_benchmark,
    )
    from .carriers import Carrier, find_carrier
    from .completeness import short_folders
    from .corrupt_folder import CorruptedFolder, FolderCorruption
    from .corrupt_record import CORRUPT_FORMATS, CorruptSettings, holds_whole_images
    from .corruptions import (
        CORRUPTION_GROUPS,
        Corruption,
        FrostPictures,
        corrupt,
        known_corruptions,
        register_corruption,
    )
    from .demo_data import write_digits
    from .image_folder import (
        ClassFolders,
        FolderView,
        LabelledImages,
        check_class_count,
        check_classes,
        open_image_folder,
    )
    from .image_list import ImageList, MissingImages, Subset
    from .image_reading import read_image
    from .image_writing import IMAGE_FORMATS, read_pixels, require_format, write_image
    from .integrity import LEVELS, Finding, examine
    from .known_labels import OtherClasses, class_labels, require_names_of
    from .layout import benchmark_folder, holds_benchmarks, outputs_meant
    from .listing import images_below, is_image, list_folder
    from .mark import embossed, logo_mark, text_mark
    from .named_images import NamedImages, check_dataset_name, open_named_splits
    from .sampling import (
        EndlessBatchSampler,
        ParentSigtermOnly,
        SeededSamples,
        endless_batches,
        fixed_batches,
        inspect_loader,
        split_indices,
    )
    from .transforms import INTERPOLATIONS, Preprocessing, describe_transform, is_described, training_transform

__all__ = [
    "ALEXNET_ERROR",
    "CORRUPTION_GROUPS",
    "CORRUPT_FORMATS",
    "IMAGENET_CLASSES",
    "IMAGE_FORMATS",
    "INTERPOLATIONS",
    "LEVELS",
    "ROBUSTBENCH",
    "SEVERITIES",
    "SUITE_GROUPS",
    "AugMix",
    "Benchmark",
    "Carrier",
    "ClassFolders",
    "CorruptSettings",
    "CorruptedFolder",
    "Corruption",
    "CountingIterator",
    "EndlessBatchSampler",
    "Finding",
    "FolderCorruption",
    "FolderView",
    "FrostPictures",
    "ImageList",
    "LabelledImages",
    "Loader",
    "MissingImages",
    "NamedImages",
    "OtherClasses",
    "ParentSigtermOnly",
    "Preprocessing",
    "SeededSamples",
    "Subset",
    "benchmark_folder",
    "check_class_count",
    "check_classes",
    "check_dataset_name",
    "class_folders",
    "class_labels",
    "corrupt",
    "cycle",
    "damagenet",
    "describe_transform",
    "embossed",
    "endless_batches",
    "examine",
    "find_carrier",
    "fixed_batches",
    "holds_benchmarks",
    "holds_whole_images",
    "imagenet_a",
    "imagenet_r",
    "imagenet_val",
    "images_below",
    "images_of",
    "inspect_loader",
    "is_described",
    "is_image",
    "known_benchmarks",
    "known_corruptions",
    "list_folder",
    "logo_mark",
    "objectnet",
    "open_image_folder",
    "open_named_splits",
    "outputs_meant",
    "read_image",
    "read_pixels",
    "register_benchmark",
    "register_corruption",
    "require_format",
    "require_names_of",
    "short_folders",
    "split_indices",
    "text_mark",
    "training_transform",
    "write_digits",
    "write_image",
]

if not TYPE_CHECKING:
    from ..utils import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
