"""The verb ``fingerprint``: whether two models are of one origin, by the row spaces of their patch embeddings."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import OptionError, OutputError, printable, without_secrets
from ..nullspace import STATISTICS
from ..utils import file_or_folder, float_in, int_from, os_errors_as_output_errors, require_replaceable

if TYPE_CHECKING:
    from ..nullspace import Comparison, Fingerprint


_STATISTICS = {
    "rows": "(S / sqrt(k1 k2))",
    "weighted": "(weighted by singular values)",
    "images": "(weighted by singular values, on patches of the images)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-verbs ``make`` and ``compare`` with their flags."""
    verbs = parser.add_subparsers(dest="what", metavar="make|compare", required=True, parser_class=type(parser))
    make = verbs.add_parser("make", help="write a model's fingerprint", description="write a model's fingerprint")
    make.add_argument("model", type=file_or_folder, metavar="MODEL", help="checkpoint file or address, any form")
    make.add_argument(
        "-o", "--output", type=file_or_folder, metavar="FILE",
        help="default: MODEL's name with .fingerprint.safetensors, in the current folder",
    )  # fmt: skip
    make.add_argument("--name", metavar="TEXT", help="of the model, kept in the file (default: its file's)")
    make.add_argument("--overwrite", action="store_true", help="replace an existing --output")
    compare = verbs.add_parser(
        "compare", help="how alike two models are, with a p-value", description="how alike two models are, with p"
    )
    compare.add_argument("claimed", type=file_or_folder, metavar="A", help="checkpoint or fingerprint: one's own model")
    compare.add_argument("suspect", type=file_or_folder, metavar="B", help="checkpoint or fingerprint: the other one")
    compare.add_argument(
        "--independent", type=file_or_folder, nargs="+", default=[], metavar="C",
        help="checkpoints, fingerprints, or folders of them: models of the same patches that were trained apart from A "
        "and B. Without them nothing can be said; with m of them p is 1/(m+1) at least",
    )  # fmt: skip
    compare.add_argument(
        "--alpha", type=float_in(1e-6, 0.999999), default=0.05, metavar="F", help="level of the verdict (default: 0.05)"
    )
    compare.add_argument(
        "--statistic", default="weighted", choices=STATISTICS,
        help="weighted: directions count by their singular values; rows: the row space alone, as in the paper's idea; "
        "images: weighted, and by what patches of --data-dir have, which noise that they hide does not evade "
        "(default: weighted)",
    )  # fmt: skip
    compare.add_argument("--data-dir", type=file_or_folder, metavar="DIR", help="folder of classes of images")
    compare.add_argument(
        "--input-size", type=int_from(1, 8192), default=224, metavar="N", help="image side in pixels (default: 224)"
    )
    compare.add_argument(
        "--crop-pct", type=float_in(0.01, 1), default=0.875, metavar="F", help="centre crop (default: 0.875)"
    )
    compare.add_argument(
        "--images", type=int_from(1, 10**7), default=500, metavar="N", help="of them, at random (default: 500)"
    )
    for each in (make, compare):
        each.add_argument("--ema", action="store_true", help="take the moving average of checkpoints")
        each.add_argument(
            "--std", type=float_in(1e-6, 1.001), nargs="+", metavar="F",
            help="of the normalisation of checkpoints that tell of none, pixels from 0 to 1",
        )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Write a fingerprint, or compare two.

    Raises:
        CheckpointError, ModelError, DataError: a file that is no model of patches, has no nullspace, or has other
            patches than the first.
        OutputError: the output exists (without ``--overwrite``) or cannot be written.
    """
    (_make if args.what == "make" else _compare)(args)


def _make(args: argparse.Namespace) -> None:
    from dataclasses import replace

    from .. import evaluation, nullspace
    from ..experiments import read_fingerprint

    stem = Path(str(args.model).partition("?")[0]).name or "model"
    output = Path(args.output or f"{stem}.fingerprint.safetensors")
    with os_errors_as_output_errors(output):
        is_there = output.exists() or output.is_symlink()
    if is_there and not args.overwrite and not output.is_dir():
        raise OutputError(f"{output}: expected no file there, found one. Choose another --output, or pass --overwrite.")
    require_replaceable(output)
    found = read_fingerprint(args.model, ema=args.ema, std=args.std)
    found = replace(found, name=args.name or stem)
    versions = {name: str(version) for name, version in evaluation.collect_versions().items()}
    nullspace.save_fingerprint(output, found, versions)
    print(f"wrote {printable(str(output))}: {_described(found)}")


def _described(found: Fingerprint) -> str:
    std = "normalisation unknown" if found.std is None else f"std {' '.join(f'{value:.6g}' for value in found.std)}"
    return (
        f"row space of dimension {found.rank} of {found.input_dim}, patches of {found.patch_size} pixels, {std}, "
        f"weight {found.digest[:16]}"
    )


def _compare(args: argparse.Namespace) -> None:
    from .. import nullspace
    from ..experiments import distinct, fingerprint_files, patch_covariance, read_fingerprint

    if (args.statistic == "images") != (args.data_dir is not None):
        raise OptionError("--data-dir: expected one with --statistic images, and with no other. Give both or neither.")
    claimed, suspect = (read_fingerprint(each, ema=args.ema, std=args.std) for each in (args.claimed, args.suspect))
    nullspace.common_space([claimed, suspect])
    files = [path for place in args.independent for path in fingerprint_files(place)]
    found = [read_fingerprint(path, ema=args.ema, std=args.std) for path in files]
    independent = distinct(found, [claimed, suspect])
    if files and not independent:
        raise OptionError(
            "--independent: expected models other than A and B, found only their patch embeddings. Give others."
        )
    result = nullspace.compare_fingerprints(
        claimed,
        suspect,
        independent,
        statistic=args.statistic,
        covariance=None
        if args.data_dir is None
        else patch_covariance(args.data_dir, claimed.patch_size, args.input_size, args.crop_pct, args.images),
        alpha=args.alpha,
    )
    for letter, path, each in (("A", args.claimed, claimed), ("B", args.suspect, suspect)):
        name = f" ({printable(each.name)})" if each.name not in str(path) else ""
        print(f"{letter}  {printable(without_secrets(str(path)))}{name}: {_described(each)}")
    for line in _lines(result, claimed, suspect, len(files) - len(independent)):
        print(line)


def _lines(found: Comparison, claimed: Fingerprint, suspect: Fingerprint, left_out: int) -> list[str]:
    largest = min(claimed.rank, suspect.rank)
    space = "pixels" if found.space == "pixel" else "normalised patches (some normalisation is unknown)"
    lines = [
        f"S = {found.overlap:.4f} of {largest}: sum of squared cosines of the principal angles of the row spaces, in "
        f"{space}; uniformly random ones would have {found.haar.mean:.2f} +- {found.haar.sd:.2f}, which is no null: "
        "independently trained models are more alike than that",
        f"likeness = {found.likeness:.4f} " + _STATISTICS[found.statistic],
    ]
    if claimed.digest == suspect.digest:
        lines.append("the two patch embeddings are the same, bit by bit")
    m = len(found.null)
    if m:
        again = f" ({left_out} left out: A's or B's own weights, or the same twice)" if left_out else ""
        lines.append(
            f"{m} independent models{again}: likeness to A from {min(found.null):.4f} to {max(found.null):.4f}"
        )
        lines.append(
            f"p = {found.p:.3g}: the rank of B among them, exact if B, were it not derived from A, is drawn as they "
            f"are; at least 1/({m}+1) = {found.least_p:.3g}"
        )
    if found.p_t is not None:
        lines.append(f"parametric p = {found.p_t:.2g}: Student's t for one more logit; only as good as that shape")
    if claimed.digest == suspect.digest:
        lines.append("verdict: one origin, as two trainings do not end in the same bits, whatever p is")
    else:
        lines.append(f"verdict at {found.alpha:g}: {found.verdict}{_why(found)}")
    return lines


def _why(found: Comparison) -> str:
    if found.verdict != "cannot be said":
        return ""
    needed = next(m for m in range(1, 10**7) if 1 / (m + 1) <= found.alpha)
    return f": with {len(found.null)} independent models p cannot be below {found.least_p:.3g}; give {needed} or more"
