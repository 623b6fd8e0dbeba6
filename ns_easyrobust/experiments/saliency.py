"""The experiment ``saliency``: maps of sources, targets and transformed images side by side, and how far they agree."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import models, nullspace, report
from ..errors import OptionError
from ..utils import int_from, np, torch, write_atomically
from .exact_nullspace import in_float64, spectrum_with_nullspace
from .figure import FigureExperiment
from .inputs import add_input_arguments, open_inputs
from .likeness import require_likeness, structural_similarity
from .registry import register_experiment
from .results import Results
from .triplets import Pairs, add_photograph_arguments, pair_images, pair_photographs

if TYPE_CHECKING:
    from ..models import Saliency
    from ..report import FigureReport

_SHOWN = 2  # pairs of the picture where no photographs are given


@register_experiment("saliency")
class SaliencyExperiment(FigureExperiment):
    """compare saliency maps of images, of targets, and of images changed to look like these within the nullspace"""

    def add_inputs(self, parser: argparse.ArgumentParser) -> None:
        """Add the checkpoint, the images, the methods, and what is shown and written."""
        add_input_arguments(parser, images=64, enlarge=True)
        group = parser.add_argument_group("maps and picture")
        group.add_argument(
            "--methods", nargs="+", default=list(report.SaliencyKinds.METHODS), metavar="NAME",
            choices=report.SaliencyKinds.METHODS,
            help=f"of {', '.join(report.SaliencyKinds.METHODS)} (default: all)",
        )  # fmt: skip
        add_photograph_arguments(parser)
        group.add_argument(
            "--maps", type=int_from(0, 10**6), default=0, metavar="N",
            help="write the maps of the first N pairs, and of photographs, over the images as PNG, to maps/ in the "
            "folder of parts (default: 0, none)",
        )  # fmt: skip

    def measure(self, args: argparse.Namespace, results: Results) -> None:
        """Measure batch by batch, then the pairs that are shown; then write maps.

        Raises:
            MissingPackageError: no scikit-image, which has SSIM.
            ModelError: the patch embedding has no nullspace, or a method does not fit the model.
            OptionError: a method is named twice.
            DataError: the model predicts the same class for all images.
        """
        from tqdm.auto import tqdm

        require_likeness("saliency, SSIM of maps")
        if len(set(args.methods)) < len(args.methods):
            raise OptionError(f"--methods: expected different ones, found {' '.join(args.methods)}. Name each once.")
        inputs = open_inputs(args)
        model = inputs.model
        spectrum = spectrum_with_nullspace(args.model, model)
        models.all_saliency_maps(model, inputs.measured.pixels[:1], args.methods)  # refuses before anything is measured
        pairs = pair_images(model, inputs.measured, args.batch_size, args.seed)
        photographs = pair_photographs(args, inputs.device)
        shown = photographs or pairs.take(0, _SHOWN)
        results.begin(
            {
                **inputs.protocol, "methods": args.methods, "pairs": pairs.digest, "shown": shown.names,
                "shown_pixels": shown.digest, "patch": spectrum.patch_size, "input_dim": spectrum.input_dim,
                "nullity": spectrum.nullity,
            },
            inputs.device,
        )  # fmt: skip
        double = in_float64(model, pairs.sources[:1])
        starts = range(0, len(pairs), args.batch_size)
        for number, start in enumerate(tqdm(starts, desc="saliency", unit="batch", disable=None)):
            if not results.find(batch=number):
                lines = batch_lines(model, double, pairs.take(start, start + args.batch_size), args.methods)
                results.add(*({"batch": number, **line} for line in lines))
        for number in range(len(shown)):
            if not results.find(shown=number):
                pair = shown.take(number, number + 1)
                _keep(results.parts, number, maps_of_pair(model, pair, args.methods))
                results.add({"shown": number, "names": list(pair.names[0])})
        if args.maps:
            several = [("pair", pairs.take(0, args.maps)), *([("photographs", photographs)] if photographs else [])]
            for prefix, some in several:
                write_maps(results.parts / "maps", prefix, model, some, args.methods)

    def report(self, protocol: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], parts: Path) -> FigureReport:
        """Maps of the shown pairs, and agreement on all of them."""
        return report.saliency_report(protocol, lines, parts)


def batch_lines(
    model: torch.nn.Module, double: torch.nn.Module | None, pairs: Pairs, methods: Sequence[str]
) -> list[dict[str, Any]]:
    """Lines of agreement, one a method and two kinds of images, and of what the model predicts.

    Args:
        double: ``model`` in float64, for what no 8 bits have changed.
    """
    kinds = nullspace.TransformedKinds
    transformed, residual = nullspace.transformed_images(model, pairs.sources, pairs.targets)
    images = {report.SaliencyKinds.SOURCE: pairs.sources, report.SaliencyKinds.TARGET: pairs.targets, **transformed}
    lines = _agreement_lines(model, images, methods, pairs.sources.dtype)
    if double is not None:
        exact = {kind: images[kind] for kind in (report.SaliencyKinds.SOURCE, kinds.LEAST_SQUARES, kinds.VALID)}
        lines += _agreement_lines(double, exact, methods, torch.float64)
    clean = nullspace.pixel_logits(model, pairs.sources)
    for kind, changed in transformed.items():
        change = nullspace.output_change(clean, nullspace.pixel_logits(model, changed.to(pairs.sources.dtype)))
        from_target = (changed - pairs.targets).square().mean((1, 2, 3)).sqrt()
        lines.append(
            {
                "predicted": kind,
                "n": len(pairs),
                "unchanged": int(change.unchanged.sum()),
                "largest_confidence": float(change.confidence.max()),
                "from_target": _rounded(from_target),
                "from_source": _rounded((changed - pairs.sources).square().mean((1, 2, 3)).sqrt()),
                "outside": float(((changed < 0) | (changed > 1)).double().mean()),
                **({"largest_residual": float(residual.max())} if kind == kinds.VALID else {}),
            }
        )
    return lines


def _agreement_lines(
    model: torch.nn.Module, images: Mapping[str, torch.Tensor], methods: Sequence[str], dtype: torch.dtype
) -> list[dict[str, Any]]:
    """Of each kind with the source, and with the target where there is one; every map explains its own top-1."""
    found = {kind: models.all_saliency_maps(model, pixels.to(dtype), methods) for kind, pixels in images.items()}
    lines = []
    for first in (report.SaliencyKinds.SOURCE, report.SaliencyKinds.TARGET):
        if first not in found:
            continue
        for second in list(found)[list(found).index(first) + 1 :]:
            for method in methods:
                agreement = agreement_of(found[first][method], found[second][method])
                lines.append(
                    {"method": method, "of": first, "and": second, "precision": str(dtype).removeprefix("torch.")}
                    | agreement
                )
    return lines


def agreement_of(one: Saliency, other: Saliency) -> dict[str, Any]:
    """How far two kinds of images have the same maps, pair by pair.

    Returns:
        ``correlations``: Pearson's, of the patches' numbers; None where a map is constant. ``ssims``: structural
        similarity of the maps in [0, 1]. ``largest_difference``:
        of a patch's number, as a share of the first map's largest; None where that is 0 in all pairs.
    """
    tokens = [saliency.tokens.flatten(1).double() for saliency in (one, other)]
    centred = [each - each.mean(1, keepdim=True) for each in tokens]
    norms = [each.norm(dim=1) for each in centred]
    scales = [each.abs().amax(1) for each in tokens]
    constant = (norms[0] <= 1e-12 * scales[0]) | (norms[1] <= 1e-12 * scales[1])
    correlations = (centred[0] * centred[1]).sum(1) / torch.where(constant, 1.0, norms[0] * norms[1])
    differences = ((tokens[0] - tokens[1]).abs().amax(1) / scales[0])[scales[0] > 0]
    return {
        "n": len(constant),
        "correlations": [
            None if undefined else value
            for value, undefined in zip(_rounded(correlations.clamp(-1, 1)), constant.tolist(), strict=True)
        ],
        "ssims": [float(f"{value:.7g}") for value in structural_similarity(one.maps, other.maps)],
        "largest_difference": float(differences.max()) if len(differences) else None,
    }


def _rounded(values: torch.Tensor) -> list[float]:
    """To seven digits, which is what float32 has."""
    return [float(f"{value:.7g}") for value in values.tolist()]


def maps_of_pair(
    model: torch.nn.Module, pair: Pairs, methods: Sequence[str]
) -> dict[str, tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Of one pair's source, target and transformed image in 8 bits: the pixels (H, W, 3), and each method's map (H, W).

    All in 8 bits.
    """
    kinds = report.SaliencyKinds
    transformed = nullspace.transformed_images(model, pair.sources, pair.targets).images
    images = {kinds.SOURCE: pair.sources, kinds.TARGET: pair.targets}
    images[kinds.TRANSFORMED] = transformed[nullspace.TransformedKinds.ROUNDED].to(pair.sources.dtype)
    found = {}
    for kind, pixels in images.items():
        saliency = models.all_saliency_maps(model, pixels, methods)
        maps = {method: _bytes(saliency[method].maps[0, 0]) for method in methods}
        found[kind] = (_bytes(pixels[0].permute(1, 2, 0)), maps)
    return found


def _bytes(values: torch.Tensor) -> np.ndarray:
    found: np.ndarray = (values.double().clamp(0, 1) * 255).round().cpu().numpy().astype(np.uint8)
    return found


def _keep(parts: Path, number: int, found: Mapping[str, tuple[np.ndarray, Mapping[str, np.ndarray]]]) -> None:
    for kind, (pixels, maps) in found.items():
        for name, array in {"image": pixels, **maps}.items():
            _write_png(parts / report.SaliencyKinds.part_name(number, kind, name), array)


def write_maps(folder: Path, prefix: str, model: torch.nn.Module, pairs: Pairs, methods: Sequence[str]) -> None:
    """Each pair's images and, over them, their maps, as PNG; pairs whose files are there are left as they are."""
    from tqdm.auto import tqdm

    folder.mkdir(exist_ok=True)
    for number in tqdm(range(len(pairs)), desc=f"maps of {prefix}", unit="pair", disable=None):
        names = [
            folder / f"{prefix}-{number + 1}-{kind}-{name}.png"
            for kind in report.SaliencyKinds.SHOWN
            for name in ("image", *methods)
        ]
        if all(path.exists() for path in names):
            continue
        for kind, (pixels, maps) in maps_of_pair(model, pairs.take(number, number + 1), methods).items():
            overlaid = {method: report.heat_overlay(pixels, array) for method, array in maps.items()}
            for name, array in {"image": pixels, **overlaid}.items():
                _write_png(folder / f"{prefix}-{number + 1}-{kind}-{name}.png", array)


def _write_png(path: Path, array: np.ndarray) -> None:
    from PIL import Image

    write_atomically(path, partial(Image.fromarray(array).save, format="PNG", optimize=True))
