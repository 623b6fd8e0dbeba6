"""The experiment ``targeted``: images changed to look like others, while the model sees no change."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import nullspace, report
from ..errors import OptionError
from ..utils import int_from, torch
from .exact_nullspace import spectrum_with_nullspace
from .figure import FigureExperiment
from .inputs import add_input_arguments, open_images_of, open_inputs
from .likeness import least_side, require_likeness, root_mean_squares, seen_from_afar, structural_similarity
from .photographs import add_class_name_argument, check_class_names
from .registry import register_experiment
from .results import Results
from .triplet_files import write_triplet
from .triplets import Pairs, add_photograph_arguments, draw_targets, pair_photographs, paired

if TYPE_CHECKING:
    from torch import nn

    from ..report import FigureReport

_SHOWN = 2  # pairs, where no photographs are given
_DRAWS = 20  # of random weights


@register_experiment("targeted")
class TargetedExperiment(FigureExperiment):
    """change images within the nullspace to look like others, and measure how far they do and what the model sees"""

    def add_inputs(self, parser: argparse.ArgumentParser) -> None:
        """Add the checkpoint, the images, the sizes, and the photographs that are shown."""
        add_input_arguments(parser, images=48)
        group = parser.add_argument_group("transformed images and picture")
        group.add_argument(
            "--enlarge", dest="factors", nargs="+", type=int_from(1, 8), default=[1, 2, 3, 4], metavar="N",
            help="average images N times as large in front of the model, so that patches and the nullspace are larger; "
            "each N is measured (default: 1 2 3 4)",
        )  # fmt: skip
        add_photograph_arguments(parser)
        add_class_name_argument(group)

    def measure(self, args: argparse.Namespace, results: Results) -> None:
        """Measure size by size, batch by batch; then write the pairs that are shown.

        Raises:
            MissingPackageError: scikit-image is not installed.
            ModelError: the patch embedding has no nullspace, or the model one class.
            OptionError: another number of class names than of classes, an odd number of photographs, or images too
                small for structural similarity.
            DataError: the model predicts one class for all images.
        """
        require_likeness("experiment targeted")
        inputs, factors = open_inputs(args), sorted(set(args.factors))
        check_class_names(args)
        if args.input_size < least_side():
            raise OptionError(
                f"{args.model}: expected images of {least_side()} pixels at least, for SSIM from afar, "
                f"found {args.input_size}. Choose another model."
            )
        spectrum = spectrum_with_nullspace(args.model, inputs.model)
        own = pair_photographs(args, inputs.device)
        targets = draw_targets(inputs.model, inputs.measured, args.batch_size, args.seed)
        sizes = {factor: _pairs_at(args, factor, targets, inputs.device) for factor in factors}
        results.begin(
            {
                **inputs.protocol, "factors": factors, "class_names": args.class_names, "patch": spectrum.patch_size,
                "input_dim": spectrum.input_dim, "rank": spectrum.rank, "targets": targets,
                "random_draws": _DRAWS, "photographs": bool(own),
                "shown": {str(factor): shown.digest for factor, (_, shown) in sizes.items()},
                "pairs": {str(factor): pairs.digest for factor, (pairs, _) in sizes.items()},
            },
            inputs.device,
        )  # fmt: skip
        rounding = None
        for factor, (pairs, shown) in sizes.items():
            rounding = _measure_size(inputs.model, factor, pairs, shown, args, results, rounding)

    def report(self, protocol: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], parts: Path) -> FigureReport:
        """Triplets, how alike they look, and how much the outputs changed."""
        return report.targeted_report(protocol, lines, parts)


def _pairs_at(
    args: argparse.Namespace, factor: int, targets: Sequence[int], device: torch.device
) -> tuple[Pairs, Pairs]:
    """The pairs that are measured on, and those that are shown, ``factor`` times as large."""
    larger = argparse.Namespace(**{**vars(args), "input_size": args.input_size * factor})
    pairs = paired(open_images_of(larger, device)[0], targets)
    return pairs, pair_photographs(larger, device) or pairs.take(0, _SHOWN)


def _measure_size(
    small: nn.Module, factor: int, pairs: Pairs, shown: Pairs, args: argparse.Namespace, results: Results,
    like: nullspace.SquareRounding | None,
) -> nullspace.SquareRounding | None:  # fmt: skip
    from tqdm.auto import tqdm

    size = max(1, args.batch_size // factor**2)
    starts = [start for start in range(0, len(pairs), size) if not results.find(factor=factor, start=start)]
    waiting = [number for number in range(len(shown)) if not results.find(factor=factor, shown=number)]
    if not starts and not waiting:
        return like
    model = nullspace.enlarged(small, factor)
    measuring = TripletMeasure(model, factor, args.seed, like)
    for start in tqdm(starts, desc=f"pairs, {factor} times as large", unit="batch", disable=None):
        found = measuring(pairs.take(start, start + size))
        results.add(*({"factor": factor, "start": start, **line} for line in found))
    for number in waiting:
        pair = shown.take(number, number + 1)
        images = {kind: value[0] for kind, value in measuring.transformed(pair).items()}
        write_triplet(results.parts, number, factor, pair, images)
        results.add({"factor": factor, "shown": number, "names": pair.names[0], **_seen(model, pair, images)})
    return measuring.rounding


class TripletMeasure:
    """Measures pairs of a model for larger images.

    Args:
        model: enlarged.
        factor: how many pixels of the images are one of the model's own.
        seed: of the random weights behind the same pooling that the model's are compared with, the same ones for
            every factor.
        like: rounding of the same model for images of another size.
    """

    def __init__(self, model: nn.Module, factor: int, seed: int, like: nullspace.SquareRounding | None = None) -> None:
        self.model, self.factor = model, factor
        self.space = nullspace.PatchRowSpace(model, next(model.parameters()).device)
        self.rounding = nullspace.SquareRounding(model, like=like)
        generator = torch.Generator().manual_seed(seed)
        shape = self.space.rows.shape
        self.random = [nullspace.random_rows(*shape, generator=generator) for _ in range(_DRAWS)]

    def transformed(self, pairs: Pairs) -> dict[str, torch.Tensor]:
        """By kind, (B, C, H, W) float64."""
        return self._transformed(pairs).images

    def _transformed(self, pairs: Pairs) -> nullspace.TransformedImages:
        return nullspace.transformed_images(
            self.model, pairs.sources, pairs.targets, rounding=self.rounding, space=self.space
        )

    def __call__(self, pairs: Pairs) -> list[dict[str, Any]]:
        """A line of the pairs as they are, and one a kind of transformed images; a number a pair.

        ``draws_share`` has a number a draw of random weights instead: its mean over the pairs.
        """
        sources, targets = pairs.sources.double(), pairs.targets.double()
        images, residual = self._transformed(pairs)
        changes, square = targets - sources, self.space.square
        draws = [
            nullspace.unseen_share_of_rows(rows, self.space.patch_size, changes, square=square) for rows in self.random
        ]
        plain = {
            "kind": report.UNCHANGED, "n": len(pairs), **self._likeness(sources, targets, "target"),
            "unseen_share": nullspace.unseen_share(self.space, changes).tolist(),
            "within_share": nullspace.within_squares_share(changes, square).tolist(),
            "draws_share": torch.stack(draws).mean(1).tolist(), "residual": residual.tolist(),
        }  # fmt: skip
        clean = nullspace.pixel_logits(self.model, pairs.sources)
        return [_short(plain), *(_short(self._line(kind, found, clean, pairs)) for kind, found in images.items())]

    def _line(self, kind: str, images: torch.Tensor, clean: torch.Tensor, pairs: Pairs) -> dict[str, Any]:
        logits = nullspace.pixel_logits(self.model, images.to(pairs.sources.dtype))
        change = nullspace.output_change(clean, logits)
        label = clean.argmax(-1, keepdim=True)
        before, after = (each.double().softmax(-1).gather(-1, label)[:, 0] for each in (clean, logits))
        return {
            "kind": kind,
            "n": len(pairs),
            **self._likeness(images, pairs.targets, "target"),
            **self._likeness(images, pairs.sources, "source"),
            "unchanged": change.unchanged.int().tolist(),
            "logit": change.logits.tolist(),
            "confidence": (after - before).abs().tolist(),
            "clean_confidence": before.tolist(),
            "outside": ((images < 0) | (images > 1)).double().mean((1, 2, 3)).tolist(),
        }

    def _likeness(self, images: torch.Tensor, others: torch.Tensor, name: str) -> dict[str, list[float]]:
        afar = (seen_from_afar(each.double(), self.factor) for each in (images, others))
        return {
            f"rms_{name}": root_mean_squares(images - others),
            f"ssim_{name}": structural_similarity(images, others),
            f"afar_{name}": structural_similarity(*afar),
        }


def _short(line: Mapping[str, Any]) -> dict[str, Any]:
    """With five significant digits of each number of a list."""
    return {
        name: [float(f"{number:.5g}") for number in value] if isinstance(value, list) else value
        for name, value in line.items()
    }


def _seen(model: nn.Module, pair: Pairs, images: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """[class, probability] of a pair's source and target and of each kind."""
    rows = [pair.sources[0], pair.targets[0], *images.values()]
    names = ["source", "target", *images]
    probabilities = nullspace.pixel_logits(model, torch.stack([row.to(rows[0].dtype) for row in rows])).softmax(-1)
    best, labels = probabilities.double().max(-1)
    found = zip(names, labels.tolist(), best.tolist(), strict=True)
    return {"predictions": {name: [label, value] for name, label, value in found}}
