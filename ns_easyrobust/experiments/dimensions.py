"""The experiment ``dimensions``: Table 1, spectra, and the direction that every LayerNorm takes away besides."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import models, nullspace
from ..errors import ModelError, OptionError, without_secrets
from ..utils import add_model_kwargs, file_or_folder, float_in, int_from, timm, torch
from .figure import FigureExperiment
from .patch_rows import PUBLISHED_DIMENSIONS, Patch, architecture_patch, checkpoint_patch, is_checkpoint
from .registry import register_experiment

if TYPE_CHECKING:
    from torch import nn

    from ..report import FigureReport
    from .results import Results


@register_experiment("dimensions")
class DimensionsExperiment(FigureExperiment):
    """Table 1: dimensions of patch embeddings' nullspaces, their singular values, and what LayerNorms add to them"""

    def add_inputs(self, parser: argparse.ArgumentParser) -> None:
        """Add the models, the threshold for zero singular values, and the noise of the check."""
        group = parser.add_argument_group("models")
        group.add_argument(
            "models", nargs="*", type=file_or_folder, metavar="MODEL",
            help="architectures, factories (file.py:function) and checkpoint files or addresses (default: the paper's "
            "eight models)",
        )  # fmt: skip
        group.add_argument("--model", metavar="ARCH", help="architecture of checkpoint files that name none")
        add_model_kwargs(group)
        group.add_argument(
            "--pretrained", action="store_true",
            help="timm's trained weights for architectures (a download; default: random ones)",
        )  # fmt: skip
        group.add_argument("--ema", action="store_true", help="the moving average's weights in checkpoint files")
        group.add_argument("--space", default="normalised", choices=nullspace.SPACES, help="default: normalised")
        group.add_argument(
            "--rtol", type=float_in(0, 1), metavar="F",
            help="singular values up to F times the largest are zero (default: max(dimensions) * float epsilon)",
        )  # fmt: skip
        check = parser.add_argument_group("check of the all-ones direction")
        check.add_argument(
            "--norm", type=float_in(1e-3, 1e9), default=5000.0, metavar="X",
            help="of the noise on all tokens of an image (default: 5000)",
        )  # fmt: skip
        check.add_argument(
            "--images", type=int_from(1, 4096), default=2, metavar="N", help="of random pixels (default: 2)"
        )
        check.add_argument("--seed", type=int_from(0, 2**32 - 1), default=42, metavar="S", help="default: 42")

    def measure(self, args: argparse.Namespace, results: Results) -> None:
        """Add a line a model that is not there yet."""
        from tqdm.auto import tqdm

        names = list(dict.fromkeys(args.models or PUBLISHED_DIMENSIONS))
        files = [name for name in names if is_checkpoint(name)]
        if (args.ema or args.model) and not files:
            flag = "--ema" if args.ema else "--model"
            raise OptionError(f"{flag}: expected a checkpoint file among the models, found none. Name one, or drop it.")
        if args.pretrained and len(files) == len(names):
            raise OptionError("--pretrained: expected an architecture, found only checkpoint files. Drop it.")
        for name in [name for name in names if name not in files] + ([args.model] if args.model else []):
            models.require_named(name)
        protocol = {name: getattr(args, name) for name in ("space", "rtol", "norm", "images", "seed", "pretrained")}
        protocol |= {"model_kwargs": args.model_kwargs, "ema": args.ema}
        results.begin(protocol, torch.device("cpu"))
        for name in tqdm(names, desc="models", unit="model", disable=None):
            self._add(args, results, name, name in files)

    def _add(self, args: argparse.Namespace, results: Results, name: str, is_file: bool) -> None:
        """Add the line of one model, unless it is there: under this timm, whose models may differ, and of this file."""
        known = {"given": without_secrets(name), "timm": timm.__version__}
        if not is_file and results.find(**known):
            return
        patch = (
            checkpoint_patch(name, ema=args.ema, space=args.space)
            if is_file
            else architecture_patch(
                name, pretrained=args.pretrained, space=args.space, model_kwargs=args.model_kwargs
            )
        )  # fmt: skip
        known["sha256"] = patch.checkpoint.sha256() if patch.checkpoint else None
        known["arch"] = patch.checkpoint.arch or args.model if patch.checkpoint else None
        if results.find(**known):
            return
        spectrum = patch.spectrum(args.space, args.rtol)
        values = spectrum.singular_values / spectrum.singular_values[0].clamp_min(torch.finfo(torch.float64).tiny)
        line = {**known, **asdict(patch.row(spectrum)), "rtol": spectrum.rtol}
        line["nullity_with_all_ones"] = nullspace.layer_norm_nullity(
            patch.weight, space=args.space, rtol=args.rtol, std=patch.std
        )
        line |= _checked(args, patch, spectrum.rtol)
        line["relative_singular_values"] = [float(f"{float(value):.5g}") for value in values]
        results.add(line)

    def report(self, protocol: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], parts: Path) -> FigureReport:
        """The table and the spectra; of a file that has changed, its newest line."""
        from .. import report

        # A dict keeps a key's first place and its last value.
        newest = {(line["given"], line["timm"]): line for line in lines}
        return report.dimensions_report(protocol, list(newest.values()))


def _checked(args: argparse.Namespace, patch: Patch, rtol: float) -> dict[str, Any]:
    """Whether the model ignores all-ones, as measured; or why that is not known."""
    try:
        model = _model_of(args, patch)
        if model is None:
            return {"check": None, "unknown": "its file names no architecture: give --model"}
        generator = torch.Generator().manual_seed(args.seed)
        height, width = models.required_image_size(model) or (models.image_size_for(models.bare_vit(model)),) * 2
        images = torch.randn(args.images, patch.weight.shape[1], height, width, generator=generator)
        check = nullspace.ignores_all_ones(model, images, args.norm, rtol=rtol, generator=generator)
    except ModelError as error:
        return {"check": None, "unknown": error.line}
    verdicts = {name: getattr(check, name) for name in ("ignores_tokens", "ignores_equal", "ignores_pixels")}
    return {"check": vars(check) | verdicts, "unknown": None}


def _model_of(args: argparse.Namespace, patch: Patch) -> nn.Module | None:
    """The model that the patch embedding is of; None where its architecture is not known."""
    if patch.checkpoint is None:
        return patch.model
    arch = patch.checkpoint.arch or args.model
    if arch is None:
        return None
    return models.load_model(arch, patch.checkpoint, ema=args.ema, model_kwargs=args.model_kwargs)
