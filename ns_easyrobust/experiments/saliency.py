"""The experiment ``saliency``: maps of sources, targets and transformed images side by side, and how far they agree."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import models, nullspace, report
from ..errors import OptionError
from ..utils import derive_seed, int_from, np, torch, write_atomically
from .exact_nullspace import in_float64, spectrum_with_nullspace
from .figure import FigureExperiment
from .inputs import add_input_arguments, open_inputs
from .likeness import require_likeness, root_mean_squares, structural_similarity
from .registry import register_experiment
from .results import Results
from .triplets import Pairs, add_photograph_arguments, pair_images, pair_photographs

if TYPE_CHECKING:
    from ..models import Saliency
    from ..report import FigureReport

_SHOWN = 1  # pairs of the picture where no photographs are given
_ORDER, _NOISE = range(2)  # what seeds are derived from, beside the number of the batch
_ROUNDING = 2.0**-24  # the most that float32 moves a number by, as a share of it


@register_experiment("saliency")
class SaliencyExperiment(FigureExperiment):
    """compare saliency maps of images, of targets, and of images changed to look like these within the nullspace"""

    def add_inputs(self, parser: argparse.ArgumentParser) -> None:
        """Add the checkpoint, the images, the methods, and what is shown and written."""
        add_input_arguments(parser, images=64, enlarge=True)
        group = parser.add_argument_group("maps and picture")
        group.add_argument(
            "--methods", nargs="+", default=list(models.SALIENCY_METHODS), metavar="NAME",
            choices=list(models.SALIENCY_METHODS), help=f"of {', '.join(models.SALIENCY_METHODS)} (default: all)",
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
        photographs = pair_photographs(args, inputs.device)
        pairs = pair_images(model, inputs.measured, args.batch_size, args.seed)
        shown = photographs or pairs.take(0, _SHOWN)
        results.begin(
            {
                **inputs.protocol, "methods": args.methods, "pairs": pairs.digest, "shown": shown.names,
                "shown_pixels": shown.digest, "patch": spectrum.patch_size, "input_dim": spectrum.input_dim,
                "nullity": spectrum.nullity, "rounding": _ROUNDING,
            },
            inputs.device,
        )  # fmt: skip
        double = in_float64(model, pairs.sources[:1])
        starts = range(0, len(pairs), args.batch_size)
        for number, start in enumerate(tqdm(starts, desc="saliency", unit="batch", disable=None)):
            if not results.find(batch=number):
                batch = pairs.take(start, start + args.batch_size)
                seeds = [derive_seed(args.seed, use, number) for use in (_ORDER, _NOISE)]
                lines = batch_lines(model, double, batch, args.methods, spectrum.patch_size, seeds)
                results.add(*({"batch": number, **line} for line in lines))
        left = [number for number in range(len(shown)) if not results.find(shown=number)]
        for number, found in zip(left, maps_of_pairs(model, shown.among(left), args.methods), strict=True):
            _keep(results.parts, number, found)
            results.add({"shown": number, "names": list(shown.names[number])})
        if args.maps:
            several = [("pair", pairs.take(0, args.maps)), *([("photographs", photographs)] if photographs else [])]
            for prefix, some in several:
                write_maps(results.parts / "maps", prefix, model, some, args.methods, args.batch_size)

    def report(self, protocol: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], parts: Path) -> FigureReport:
        """Maps of the shown pairs, and agreement on all of them."""
        return report.saliency_report(protocol, lines, parts)


def batch_lines(
    model: torch.nn.Module, double: torch.nn.Module | None, pairs: Pairs, methods: Sequence[str], patch_size: int,
    seeds: Sequence[int],
) -> list[dict[str, Any]]:  # fmt: skip
    """Lines of agreement, one a method and two kinds of images, and of what the model predicts.

    Args:
        double: ``model`` in float64, for what no rounding has changed.
        seeds: of the order of elements, and of the noise.
    """
    kinds = report.SaliencyKinds
    transformed, residual = nullspace.transformed_images(model, pairs.sources, pairs.targets)
    valid = transformed[nullspace.TransformedKinds.VALID]
    order, noise = (torch.Generator().manual_seed(seed) for seed in seeds)
    noisy = rounding_noise(pairs.sources, noise)
    controls = equally_large(pairs, valid, patch_size, order)
    images = {kinds.SOURCE: pairs.sources, kinds.TARGET: pairs.targets, **transformed, **controls, kinds.NOISE: noisy}
    lines = _agreement_lines(model, images, methods, pairs.sources.dtype)
    if double is not None:
        exact = {kind: images[kind] for kind in (kinds.SOURCE, kinds.LEAST_SQUARES, kinds.VALID, kinds.NOISE)}
        lines += _agreement_lines(double, exact, methods, torch.float64)
    clean = nullspace.pixel_logits(model, pairs.sources)
    for kind in (kinds.SOURCE, *transformed, *controls):
        pixels = images[kind].double()
        change = nullspace.output_change(clean, nullspace.pixel_logits(model, pixels.to(pairs.sources.dtype)))
        lines.append(
            {
                "predicted": kind,
                "n": len(pairs),
                "unchanged": int(change.unchanged.sum()),
                "largest_confidence": float(change.confidence.max()),
                "from_target": _rounded(root_mean_squares(pixels - pairs.targets)),
                "from_source": _rounded(root_mean_squares(pixels - pairs.sources)),
                "outside": float(((pixels < 0) | (pixels > 1)).double().mean()),
                **({"largest_residual": float(residual.max())} if kind == kinds.VALID else {}),
            }
        )
    return lines


def equally_large(
    pairs: Pairs, valid: torch.Tensor, patch_size: int, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Controls that change sources by as much as ``valid`` (B, C, H, W) does, image by image, and keep pixels valid.

    Returns:
        The same change with the elements of each patch in another order, and a blend of the source towards the target;
        float64.
    """
    sources, whole = pairs.sources.double(), pairs.targets.double() - pairs.sources.double()
    change = torch.minimum(torch.maximum(valid - sources, -sources), 1 - sources)  # the sum rounds to valid pixels
    reordered = nullspace.valid_permutation(sources, change, patch_size, generator=generator)
    share = (change.flatten(1).norm(dim=1) / whole.flatten(1).norm(dim=1)).nan_to_num()
    kinds = report.SaliencyKinds
    return {kinds.REORDERED: sources + reordered, kinds.BLEND: sources + share.view(-1, 1, 1, 1) * whole}


def rounding_noise(sources: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each pixel times 1 + 6e-8 N(0, 1), as large as float32's rounding; in float64."""
    noise = torch.randn(sources.shape, generator=generator, dtype=torch.float64).to(sources.device)
    return sources.double() * (1 + _ROUNDING * noise)


def _agreement_lines(
    model: torch.nn.Module, images: Mapping[str, torch.Tensor], methods: Sequence[str], dtype: torch.dtype
) -> list[dict[str, Any]]:
    """Of each kind with the source, and of the file with the target; every map explains its own top-1."""
    kinds = report.SaliencyKinds
    found = {kind: models.all_saliency_maps(model, pixels.to(dtype), methods) for kind, pixels in images.items()}
    couples = [(kinds.SOURCE, kind) for kind in images if kind != kinds.SOURCE]
    if kinds.TARGET in images:
        couples.append((kinds.TARGET, kinds.ROUNDED))
    return [
        {"method": method, "of": first, "and": second, "precision": str(dtype).removeprefix("torch.")}
        | agreement_of(found[first][method], found[second][method])
        for first, second in couples
        for method in methods
    ]


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
            for value, undefined in zip(_rounded(correlations.clamp(-1, 1).tolist()), constant.tolist(), strict=True)
        ],
        "ssims": _rounded(structural_similarity(one.maps, other.maps)),
        "largest_difference": float(differences.max()) if len(differences) else None,
    }


def _rounded(values: Sequence[float]) -> list[float]:
    """To seven digits, which is what float32 has."""
    return [float(f"{value:.7g}") for value in values]


def maps_of_pairs(
    model: torch.nn.Module, pairs: Pairs, methods: Sequence[str]
) -> list[dict[str, tuple[np.ndarray, dict[str, np.ndarray]]]]:
    """Of each pair's source, target and transformed image in 8 bits: pixels (H, W, 3), and each method's map (H, W).

    All in 8 bits.
    """
    if not len(pairs):
        return []
    kinds = report.SaliencyKinds
    valid = nullspace.nearest_valid(model, pairs.sources, pairs.targets).images
    images = {kinds.SOURCE: pairs.sources, kinds.TARGET: pairs.targets}
    images[kinds.TRANSFORMED] = nullspace.rounded_to_8_bits(valid).to(pairs.sources.dtype)
    found = {kind: models.all_saliency_maps(model, pixels, methods) for kind, pixels in images.items()}
    return [
        {
            kind: (
                _bytes(pixels[number].permute(1, 2, 0)),
                {method: _bytes(found[kind][method].maps[number, 0]) for method in methods},
            )
            for kind, pixels in images.items()
        }
        for number in range(len(pairs))
    ]


def _bytes(values: torch.Tensor) -> np.ndarray:
    found: np.ndarray = (values.double().clamp(0, 1) * 255).round().cpu().numpy().astype(np.uint8)
    return found


def _keep(parts: Path, number: int, found: Mapping[str, tuple[np.ndarray, Mapping[str, np.ndarray]]]) -> None:
    for kind, (pixels, maps) in found.items():
        for name, array in {"image": pixels, **maps}.items():
            _write_png(parts / report.SaliencyKinds.part_name(number, kind, name), array)


def write_maps(
    folder: Path, prefix: str, model: torch.nn.Module, pairs: Pairs, methods: Sequence[str], batch_size: int
) -> None:
    """Each pair's images and, over them, their maps, as PNG; pairs whose files are there are left as they are."""
    from tqdm.auto import tqdm

    def path(number: int, kind: str, name: str) -> Path:
        return folder / f"{prefix}-{number + 1}-{kind}-{name}.png"

    folder.mkdir(exist_ok=True)
    files = [(kind, name) for kind in report.SaliencyKinds.SHOWN for name in ("image", *methods)]
    left = [number for number in range(len(pairs)) if not all(path(number, *file).exists() for file in files)]
    for start in tqdm(range(0, len(left), batch_size), desc=f"maps of {prefix}", unit="batch", disable=None):
        numbers = left[start : start + batch_size]
        for number, found in zip(numbers, maps_of_pairs(model, pairs.among(numbers), methods), strict=True):
            for kind, (pixels, maps) in found.items():
                overlaid = {method: report.heat_overlay(pixels, array) for method, array in maps.items()}
                for name, array in {"image": pixels, **overlaid}.items():
                    _write_png(path(number, kind, name), array)


def _write_png(path: Path, array: np.ndarray) -> None:
    from PIL import Image

    write_atomically(path, partial(Image.fromarray(array).save, format="PNG", optimize=True))
