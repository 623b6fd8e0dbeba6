"""The verb ``nullspace``: dimensions of the patch embedding's exact nullspace, as in Table 1."""

from __future__ import annotations

import argparse
import csv
import io
import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import CheckpointError, ModelError, OptionError, OutputError
from ..models.architectures import build
from ..models.checkpoints import load_model, read_checkpoint, resolve_normalization
from ..models.download import is_url
from ..nullspace.exact import SPACES, PatchSpectrum, find_projection, patch_spectrum
from ..utils.files import write_text
from ..utils.seeding import isolated

# Table 1 of arXiv:2403.10476, "Empirically computed nullspace dimensions for the pre-trained ViT models".
PUBLISHED = {
    "vit_tiny_patch16_224": 576,
    "vit_small_patch32_224": 2688,
    "vit_small_patch16_224": 384,
    "vit_base_patch32_224": 2304,
    "vit_base_patch16_224": 2,
    "vit_base_patch8_224": 0,
    "vit_large_patch32_224": 2048,
    "vit_large_patch16_224": 0,
}
_SEED = 0  # of random weights
_HEADER = (
    "model", "weights", "patch", "input dim", "embedding dim", "nullspace dim", "paper", "smallest kept",
    "largest dropped",
)  # fmt: skip
_NOTES = {
    "random": "random weights: nothing was learned, so rank-nullity alone decides, nullspace dim = "
    "max(0, input dim - embedding dim); --pretrained takes timm's trained weights.",
    "file": "checkpoint files: a weight does not tell its stride, which is taken to equal the patch size.",
    "paper": "paper: Table 1 of arXiv:2403.10476, for pretrained weights and normalised inputs.",
}


@dataclass(frozen=True)
class Row:
    """One line of the table, in the columns' order.

    Attributes:
        weights: ``random``, ``pretrained``, or the name of the checkpoint file's entry.
        published: the nullspace dimension in Table 1, None for other models.
        smallest_kept, largest_dropped: singular values relative to the largest, None where there is none.
    """

    model: str
    weights: str
    patch_size: int
    input_dim: int
    embed_dim: int
    nullity: int
    published: int | None
    smallest_kept: float | None
    largest_dropped: float | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Models or checkpoint files, where their weights come from, and where the zero is cut."""
    parser.add_argument(
        "models", nargs="*", metavar="MODEL",
        help="architectures and checkpoint files or addresses (default: the paper's eight models)",
    )  # fmt: skip
    parser.add_argument(
        "--pretrained", action="store_true", help="timm's trained weights for architectures (a download)"
    )
    parser.add_argument("--ema", action="store_true", help="the moving average's weights in checkpoint files")
    parser.add_argument("--space", default="normalised", choices=SPACES, help="inputs after or before normalisation")
    parser.add_argument(
        "--rtol", type=float, metavar="F",
        help="singular values up to F times the largest are zero (default: max(dimensions) * float epsilon)",
    )  # fmt: skip
    parser.add_argument("--csv", metavar="FILE", help="write the table there too")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --csv file")


def run(args: argparse.Namespace) -> None:
    """Print the table; with ``--csv`` write it too.

    Raises:
        ModelError: a name that is neither an architecture nor a file, or no linear patch embedding.
        CheckpointError: a file that cannot be read, or weights that cannot be downloaded.
        OptionError: ``--ema`` without a checkpoint file, ``--pretrained`` with nothing else, bad ``--rtol``.
        OutputError: the ``--csv`` file exists (without ``--overwrite``) or cannot be written.
    """
    models = args.models or list(PUBLISHED)
    files = [name for name in models if _is_checkpoint(name)]
    if args.ema and not files:
        raise OptionError("--ema: expected a checkpoint file among the models, found none. Name one, or drop it.")
    if args.pretrained and len(files) == len(models):
        raise OptionError("--pretrained: expected an architecture, found only checkpoint files. Drop it.")
    if args.csv and Path(args.csv).exists() and not args.overwrite:
        raise OutputError(f"{args.csv} exists: expected a new file. Pass --overwrite or another --csv.")
    rows = [
        checkpoint_row(name, ema=args.ema, space=args.space, rtol=args.rtol)
        if name in files
        else architecture_row(name, pretrained=args.pretrained, space=args.space, rtol=args.rtol)
        for name in models
    ]
    if args.csv:
        write_text(args.csv, to_csv(rows))
    print(to_text(rows))
    print(f"\n{args.space} inputs; smallest kept and largest dropped: singular values relative to the largest")
    notes = {"random": any(row.weights == "random" for row in rows), "file": bool(files)}
    notes["paper"] = any(row.published is not None for row in rows)
    for note in (name for name, needed in notes.items() if needed):
        print(_NOTES[note])
    if args.csv:
        print(f"wrote {args.csv}")


def _is_checkpoint(name: str) -> bool:
    """Whether ``name`` is an address, a file, or looks like a path; no architecture has such a name."""
    looks_like_path = "/" in name or re.search(r"\.(pth|pt|tar|bin|ckpt|npz|safetensors)$", name) is not None
    return is_url(name) or looks_like_path or Path(name).is_file()


def architecture_row(
    name: str, *, pretrained: bool = False, space: str = "normalised", rtol: float | None = None
) -> Row:
    """The line of an architecture, with timm's trained weights or random ones (always the same).

    The pixel space is that of the normalisation that timm or EasyRobust names for the architecture.

    Raises:
        ModelError: unknown name, or no linear patch embedding.
        CheckpointError: no pretrained weights, or no way to get them.
        OptionError: ``space`` or ``rtol`` out of range.
    """
    with isolated(_SEED):
        try:
            vit: nn.Module = load_model(name, pretrained=pretrained)[1] if pretrained else build(name)
        except ModelError as error:
            raise ModelError(f"{error.line} Or give the path of a checkpoint file.") from error
    find_projection(vit)  # refuse before asking for a normalisation that may not be there
    std = resolve_normalization(vit)[1] if space == "pixel" else None
    spectrum = patch_spectrum(vit, space=space, rtol=rtol, std=std)
    published = PUBLISHED.get(name.split(".")[0])  # timm 1.x names the weights after a dot
    return _row(name, "pretrained" if pretrained else "random", spectrum, published)


def checkpoint_row(path: str | Path, *, ema: bool = False, space: str = "normalised", rtol: float | None = None) -> Row:
    """The line of a checkpoint file, whose architecture need not be known.

    Raises:
        CheckpointError: unreadable file, no EMA weights, or not one patch embedding in it.
        OptionError: ``space`` or ``rtol`` out of range, or no normalisation for the pixel space.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.form == "npz":
        if ema:
            raise CheckpointError(f"{path}: expected EMA weights, found a JAX .npz, which has none. Drop --ema.")
        entry, std = "npz", None
        weight = _jax_projection(checkpoint.content, str(path))
    else:
        weights = checkpoint.weights(ema)
        entry, std = weights.name, weights.std
        weight = _projection(weights.state, str(path))
    if space == "pixel" and std is None:
        raise OptionError(
            f"{path}: expected a normalisation in the checkpoint for pixel space, found none. "
            "Use --space normalised, or export it with --mean and --std first."
        )
    return _row(Path(path).name, entry, patch_spectrum(weight, space=space, rtol=rtol, std=std), None)


def _projection(state: dict[str, torch.Tensor], source: str) -> torch.Tensor:
    """The weight (D, C, p, p) of the one patch embedding, which must hold nothing else but a norm."""
    inside = [name for name in state if re.search(r"(^|\.)patch_embed\.", name)]
    found = [name for name in inside if name.endswith("patch_embed.proj.weight") and state[name].ndim == 4]
    others = [name for name in inside if not re.search(r"patch_embed\.(proj|norm)\.(weight|bias)$", name)]
    if len(found) != 1 or others:
        shown = ", ".join((others or found or inside or list(state))[:4])
        raise CheckpointError(
            f"{source}: expected one patch embedding with a single projection (patch_embed.proj.weight), "
            f"found {shown}, ... Stems of several convolutions have no exact patch nullspace."
        )
    return state[found[0]]


def _jax_projection(arrays: dict[str, Any], source: str) -> torch.Tensor:
    """The kernel (p, p, C, D) of a JAX ViT as the weight (D, C, p, p)."""
    found = [name for name in arrays if re.fullmatch(r"(.*/)?embedding/kernel", name)]
    hybrid = [name for name in arrays if "conv_root" in name]
    if len(found) != 1 or hybrid:
        raise CheckpointError(
            f"{source}: expected one embedding/kernel of pixels (a JAX ViT), found "
            f"{', '.join((hybrid or found or list(arrays))[:4])}. Hybrids have no exact patch nullspace."
        )
    return torch.as_tensor(arrays[found[0]]).permute(3, 2, 0, 1)


def _row(model: str, weights: str, spectrum: PatchSpectrum, published: int | None) -> Row:
    return Row(
        model=model,
        weights=weights,
        patch_size=spectrum.patch_size,
        input_dim=spectrum.input_dim,
        embed_dim=spectrum.embed_dim,
        nullity=spectrum.nullity,
        published=published,
        smallest_kept=spectrum.smallest_kept,
        largest_dropped=spectrum.largest_dropped,
    )


def to_text(rows: Sequence[Row]) -> str:
    """The table in aligned columns; numbers to the right, a dash where there is none."""
    lines = [list(_HEADER), *([_cell(value) for value in astuple(row)] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADER))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.2e}" if isinstance(value, float) else str(value)


def to_csv(rows: Sequence[Row]) -> str:
    """The table as CSV, numbers in full and empty where there is none."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_HEADER)
    writer.writerows(astuple(row) for row in rows)
    return stream.getvalue()
