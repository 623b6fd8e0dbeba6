"""The experiment ``patch-noise``: large noise of the patch embedding's nullspace, and the same in another order."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import nullspace, report
from ..utils import derive_seed, float_in, np, torch, write_atomically
from .exact_nullspace import in_float64, spectrum_with_nullspace
from .figure import FigureExperiment
from .inputs import add_input_arguments, open_inputs
from .photographs import add_class_name_argument, add_shown_arguments, check_class_names, check_shown, open_shown
from .registry import register_experiment
from .results import Results

if TYPE_CHECKING:
    from ..report import FigureReport

# What seeds are derived from, beside the number of the batch; a photograph's are those of the batch of its number.
_SAMPLE, _VALID, _SAMPLE_ORDER, _VALID_ORDER = range(4)
_PHOTOGRAPH = 10**6
_MOST_PHOTOGRAPHS = 8


@register_experiment("patch-noise")
class PatchNoiseExperiment(FigureExperiment):
    """add noise of the patch embedding's nullspace to images: which outputs change, and what becomes of it in a file"""

    def add_inputs(self, parser: argparse.ArgumentParser) -> None:
        """Add the checkpoint, the images, and the photographs that are shown."""
        add_input_arguments(parser, images=128)
        group = parser.add_argument_group("noise and picture")
        group.add_argument(
            "--rms", type=float_in(1e-6, 1e6), default=0.3, metavar="X",
            help="root mean square of samples of Eq. 2, in pixels from 0 to 1 (default: 0.3)",
        )  # fmt: skip
        add_shown_arguments(group, _MOST_PHOTOGRAPHS)
        add_class_name_argument(group)

    def measure(self, args: argparse.Namespace, results: Results) -> None:
        """Measure batch by batch, then the photographs.

        Raises:
            ModelError: the patch embedding has no nullspace, or the model one class.
            OptionError: another number of class names than of classes, or too many photographs.
        """
        from tqdm.auto import tqdm

        check_shown(args, _MOST_PHOTOGRAPHS)
        inputs = open_inputs(args)
        check_class_names(args)
        spectrum = spectrum_with_nullspace(args.model, inputs.model)
        photographs, names, digest = open_shown(args, inputs.measured.pixels)
        results.begin(
            {
                **inputs.protocol, "rms": args.rms, "photographs": names, "photographs_sha256": digest,
                "class_names": args.class_names, "patch": spectrum.patch_size, "input_dim": spectrum.input_dim,
                "nullity": spectrum.nullity,
            },
            inputs.device,
        )  # fmt: skip
        batches = inputs.measured.batches(args.batch_size)
        double = in_float64(inputs.model, batches[0][:1])
        for number, images in enumerate(tqdm([*batches, photographs], desc="patch noise", unit="batch", disable=None)):
            is_shown = number == len(batches)
            if results.find(**({"photograph": names[-1]} if is_shown else {"batch": number})):
                continue
            kinds = noisy_images(
                inputs.model, images, args.rms, args.seed, _PHOTOGRAPH if is_shown else number, spectrum.patch_size
            )
            if is_shown:
                for name, line in zip(names, _shown(inputs.model, images, kinds, results.parts), strict=True):
                    results.add({"photograph": name, "predictions": line})
                continue
            lines = _batch_lines(inputs.model, images, kinds, "float32")
            if double is not None:
                exact = {kind: kinds[kind] for kind in (report.PatchNoiseKinds.SAMPLE, report.PatchNoiseKinds.VALID)}
                lines += _batch_lines(double, images.double(), exact, "float64")
            results.add(*({"batch": number, **line} for line in lines))

    def report(self, protocol: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], parts: Path) -> FigureReport:
        """Photographs with their noises, and how much the outputs changed."""
        return report.patch_noise_report(protocol, lines, parts)


def noisy_images(
    model: torch.nn.Module, images: torch.Tensor, rms: float, seed: int, number: int, patch_size: int
) -> dict[str, torch.Tensor]:
    """The noisy images of each kind, (B, C, H, W) in float64, for ``images`` in [0, 1].

    Args:
        seed, number: all that the randomness comes from.
    """
    pixels = images.double()

    def source(use: int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(seed, use, number))

    basis = nullspace.patch_nullspace(model, space="pixel")
    drawn = nullspace.sample_nullspace(
        basis, images.shape[1:], patch_size, generator=source(_SAMPLE), n=len(images)
    )  # on the CPU, as the basis is
    sample = nullspace.scaled_to_rms(drawn, rms).to(pixels)
    valid = nullspace.valid_nullspace_noise(model, pixels, generator=source(_VALID))
    reordered = nullspace.valid_permutation(pixels, valid, patch_size, generator=source(_VALID_ORDER))
    return {
        report.PatchNoiseKinds.SAMPLE: pixels + sample,
        report.PatchNoiseKinds.CLIPPED: (pixels + sample).clamp(0, 1),
        report.PatchNoiseKinds.SAMPLE_PERMUTED: pixels
        + nullspace.permuted_in_patches(sample, patch_size, generator=source(_SAMPLE_ORDER)),
        report.PatchNoiseKinds.VALID: pixels + valid,
        report.PatchNoiseKinds.ROUNDED: nullspace.rounded_to_8_bits(pixels + valid),
        report.PatchNoiseKinds.VALID_PERMUTED: pixels + reordered,
    }


def _batch_lines(
    model: torch.nn.Module, images: torch.Tensor, kinds: Mapping[str, torch.Tensor], precision: str
) -> list[dict[str, Any]]:
    """A line a kind: how the outputs on these images changed, and how large the noise is."""
    clean = nullspace.pixel_logits(model, images)
    lines = []
    for kind, exact in kinds.items():
        noisy = exact.to(images.dtype)
        change = nullspace.output_change(clean, nullspace.pixel_logits(model, noisy))
        noise = (noisy - images).double()
        lines.append(
            {
                "kind": kind,
                "precision": precision,
                "n": len(images),
                "unchanged": int(change.unchanged.sum()),
                "distances": [float(f"{value:.6g}") for value in change.distance.tolist()],
                "largest_distance": float(change.distance.max()),
                "largest_confidence": float(change.confidence.max()),
                "largest_logit": float(change.logits.max()),
                "largest_clean_logit": float(clean.abs().max()),
                "mean_square": float(noise.square().mean()),
                "outside": float(((noisy < 0) | (noisy > 1)).double().mean()),
            }
        )
    return lines


def _shown(
    model: torch.nn.Module, images: torch.Tensor, kinds: Mapping[str, torch.Tensor], folder: Path
) -> list[dict[str, list[float]]]:
    """Of each photograph, [class, probability] by kind; its pixels as the picture shows them go into ``folder``.

    The picture needs 8 bits: the noise of a sample is kept with grey in place of the image, that of others is the
    difference.
    """
    from PIL import Image

    shown = {"image": images, **{kind: kinds[kind] for kind in report.PatchNoiseKinds.SHOWN}}
    pixels = {kind: value.double() for kind, value in shown.items()}
    pixels["noise"] = 0.5 + report.PatchNoiseKinds.NOISE_SCALE * (
        kinds[report.PatchNoiseKinds.SAMPLE] - images.double()
    )
    for kind, value in pixels.items():
        for number, pixel in enumerate((value.clamp(0, 1) * 255).round().cpu().numpy().astype(np.uint8)):
            save = partial(Image.fromarray(pixel.transpose(1, 2, 0)).save, format="PNG", optimize=True)
            write_atomically(folder / report.PatchNoiseKinds.part_name(number, kind), save)
    found: list[dict[str, list[float]]] = [{} for _ in images]
    for kind, value in shown.items():
        probabilities = nullspace.pixel_logits(model, value.to(images.dtype)).double().softmax(-1)
        for line, best, label in zip(found, *(each.tolist() for each in probabilities.max(-1)), strict=True):
            line[kind] = [label, best]
    return found
