"""Flags of ``train`` that name a run's images: a folder, or a set that timm's ``create_dataset`` opens by name."""

from __future__ import annotations

import argparse
import os
from typing import Any

from ..data import check_dataset_name
from ..errors import OptionError
from ..utils import file_or_folder


def add_dataset_args(data: Any) -> None:
    """Add the flags to the group ``data`` of the parser."""
    data.add_argument(
        "--data-dir",
        type=file_or_folder,
        metavar="DIR",
        help="holds train/ and val/, one folder a class; with --dataset, the set's folder or cache",
    )
    data.add_argument("--train-split", default="train", metavar="NAME")
    data.add_argument("--val-split", default="val", metavar="NAME", help="EasyRobust's 'validation' means val/")
    data.add_argument("--dataset", metavar="NAME", help="torch/NAME or hfds/NAME, as timm's, in place of folders")
    data.add_argument("--dataset-download", action="store_true", help="let torchvision download a torch/ set")
    data.add_argument("--input-key", metavar="COLUMN", help="column of images of an hfds/ set (default: image)")
    data.add_argument("--target-key", metavar="COLUMN", help="column of labels of an hfds/ set (default: label)")


def check_dataset_args(args: argparse.Namespace) -> None:
    """Raise OptionError for a set that cannot be opened, or for settings of another kind of set than is named.

    Of a folder of images, EasyRobust's ``validation`` split becomes ``val``, unless there is a folder of that name.
    """
    if args.dataset is not None:
        check_dataset_name(args.dataset)
    from_hub = (args.dataset or "").lower().startswith("hfds/")
    if args.data_dir is None and not from_hub:
        raise OptionError("the following arguments are required: --data-dir")
    for name, fits, of in (
        ("dataset_download", args.dataset is not None and not from_hub, "torch/NAME (an hfds/ set always is)"),
        ("input_key", from_hub, "hfds/NAME"),
        ("target_key", from_hub, "hfds/NAME"),
    ):
        if getattr(args, name) and not fits:
            raise OptionError(
                f"--{name.replace('_', '-')}: expected --dataset {of}, found {args.dataset}. Leave it out."
            )
    in_folder = args.dataset is None and args.val_split == "validation"
    if in_folder and not os.path.isdir(os.path.join(args.data_dir, "validation")):
        args.val_split = "val"
