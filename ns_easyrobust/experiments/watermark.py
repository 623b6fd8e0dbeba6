"""Watermarks in the patch embedding's nullspace (arXiv:2403.10476, appendix E, Figure 6): made, measured, found."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import nullspace, report
from ..errors import OptionError, OutputError
from ..utils import (
    derive_seed,
    file_or_folder,
    float_in,
    int_from,
    os_errors_as_output_errors,
    pick_device,
    require_replaceable,
    torch,
)
from .figure import FigureExperiment
from .inputs import Inputs, add_input_arguments, open_images_of, open_inputs, open_model
from .photographs import add_class_name_argument, add_shown_arguments, check_class_names, check_shown, open_shown
from .registry import Command, register_experiment
from .results import Results
from .watermark_folder import MarkedFolder
from .watermark_judges import Thirds
from .watermark_mark import Marker, add_mark_arguments, add_shown_mark, check_shown_mark, open_marker, open_mask
from .watermark_measure import marked_lines, shown_photographs, unmarked_lines
from .watermark_search import search_folder

if TYPE_CHECKING:
    from ..data import Preprocessing
    from ..report import FigureReport

_MOST_PHOTOGRAPHS = 4
_ORDER = 0  # what the seed of the images' order is derived from


@register_experiment("watermark")
class WatermarkExperiment(FigureExperiment):
    """mark images with a text or logo that the model does not see, find it again, and see what files leave of it"""

    def add_inputs(self, parser: argparse.ArgumentParser) -> None:
        """Add the checkpoint, the images, the mark, folders to mark and to search, and the photographs shown."""
        add_input_arguments(parser, images=1000, enlarge=True)
        mark = add_shown_mark(parser)
        add_mark_arguments(mark)
        mark.add_argument(
            "--other-text", default="IP", metavar="TEXT",
            help="another mark, which must not be taken for this one (default: IP)",
        )  # fmt: skip
        mark.add_argument(
            "--marked-images", type=int_from(2, 10**6), default=128, metavar="N",
            help="of the --images, those that are marked and measured; the detector is tried on all (default: 128)",
        )  # fmt: skip
        mark.add_argument(
            "--false-positive-rate", type=float_in(1e-6, 0.5), default=0.01, metavar="X",
            help="share of unmarked images in which a mark may be found (default: 0.01)",
        )  # fmt: skip
        folders = parser.add_argument_group("folders")
        folders.add_argument(
            "--marked-dir", type=file_or_folder, metavar="DIR",
            help="write all images below --data-dir there, marked, and measure nothing; what is there is left as it is",
        )  # fmt: skip
        folders.add_argument(
            "--marked-format", choices=("png", "png16", "float"), default="png",
            help="png: 8 bits, rounded in the nullspace; png16: 16 bits; float: NumPy's float32 (default: png)",
        )  # fmt: skip
        folders.add_argument(
            "--detect", type=file_or_folder, metavar="DIR",
            help="look for the mark in the images below it, --data-dir's being unmarked ones; write detected.csv into "
            "--output, and measure nothing",
        )  # fmt: skip
        shown = parser.add_argument_group("picture")
        add_shown_arguments(shown, _MOST_PHOTOGRAPHS)
        add_class_name_argument(shown)

    def run(self, args: argparse.Namespace, commands: Mapping[str, Command]) -> Iterator[str]:
        """Mark and search folders where these are named; else measure what is not measured yet, and write the report.

        Raises:
            UserError: as :meth:`measure`; or detected.csv is there already, without ``--force``.
        """
        if not (args.marked_dir or args.detect):
            yield from super().run(args, commands)
            return
        check_shown_mark(args)
        table = Path(args.output) / "detected.csv"
        if args.detect:
            with os_errors_as_output_errors(table):
                is_there = os.path.lexists(table)
            if is_there and not args.force:
                raise OutputError(f"{table}: expected none, found one. Choose another --output, or give --force.")
        device = pick_device(args.device)
        model, identity = open_model(args, device)
        marker = open_marker(args, model)
        if args.marked_dir:
            yield self._mark(args, marker, identity, device)
        if args.detect:
            yield self._search(args, marker, table, device)

    def _mark(self, args: argparse.Namespace, marker: Marker, identity: Mapping[str, Any], device: torch.device) -> str:
        preprocessing = _preprocessing(args)
        settings = {**marker.described, "weights": identity["weights"], "preprocessing": str(preprocessing)}
        folder = MarkedFolder(Path(args.data_dir), Path(args.marked_dir), args.marked_format, settings)
        rounding = nullspace.SquareRounding(marker.model) if args.marked_format == "png" else None

        def marked(images: torch.Tensor) -> torch.Tensor:
            images = images.to(device)
            valid = marker(images).images
            return valid if rounding is None else rounding(images.double(), valid)

        return folder.write(marked, preprocessing, args.batch_size)

    def _search(self, args: argparse.Namespace, marker: Marker, table: Path, device: torch.device) -> str:
        unmarked, _, _ = open_images_of(args, device)
        thirds = _thirds(args, marker, len(unmarked))
        judge = thirds.judge_of_others(marker, unmarked.pixels, args.false_positive_rate)
        require_replaceable(table)
        return search_folder(Path(args.detect), judge, _preprocessing(args), args.batch_size, table)

    def measure(self, args: argparse.Namespace, results: Results) -> None:
        """Score the unmarked images, then mark batch by batch, then the photographs.

        Raises:
            ModelError: the patch embedding has no nullspace, or the model one class.
            DataError: a logo, image or folder cannot be read.
            OptionError: a text that does not fit, too few images for the rate, patches too large for the detector, too
                many photographs or class names.
        """
        check_shown(args, _MOST_PHOTOGRAPHS)
        check_shown_mark(args)
        inputs = open_inputs(args)
        check_class_names(args)
        marker = open_marker(args, inputs.model)
        other = replace(marker, mask=open_mask(args, args.other_text), name=args.other_text)
        if torch.equal(marker.mask, other.mask):
            raise OptionError(f"--other-text: expected another mark, found {args.other_text!r} twice. Give another.")
        spectrum = nullspace.patch_spectrum(inputs.model, space="pixel")
        shown = open_shown(args, inputs.measured.pixels)
        thirds = _thirds(args, marker, len(inputs.measured))
        results.begin(
            {
                **inputs.protocol, **marker.described, "other_text": args.other_text,
                "marked_n": min(args.marked_images, len(inputs.measured)), "covered": float(marker.mask.mean()),
                "false_positive_rate": args.false_positive_rate, "photographs": shown[1],
                "photographs_sha256": shown[2], "class_names": args.class_names, "patch": spectrum.patch_size,
                "input_dim": spectrum.input_dim, "nullity": spectrum.nullity,
            },
            inputs.device,
        )  # fmt: skip
        self._measure_all(args, results, inputs, marker, other, thirds)
        if not results.find(photograph=shown[1][-1]):
            predictions = shown_photographs(inputs.model, shown[0], marker, results.parts)
            lines = zip(shown[1], predictions, strict=True)
            results.add(*({"photograph": name, "predictions": line} for name, line in lines))

    def _measure_all(
        self, args: argparse.Namespace, results: Results, inputs: Inputs, marker: Marker, other: Marker, thirds: Thirds
    ) -> None:
        from tqdm.auto import tqdm

        pixels, marked = inputs.measured.pixels, results.protocol["marked_n"]
        batches = list(enumerate(thirds.order[:marked].split(args.batch_size)))
        waiting = [(number, chosen) for number, chosen in batches if not results.find(batch=number)]
        if waiting or not results.find(unmarked=2):
            thirds.calibrate(marker, pixels, args.false_positive_rate)
        if not results.find(unmarked=2):
            results.add(*unmarked_lines(thirds, pixels))
        if not waiting:
            return
        rounding = nullspace.SquareRounding(inputs.model)
        for number, chosen in tqdm(waiting, desc="watermark", unit="batch", disable=None):
            images = pixels[chosen.to(pixels.device)]
            scores = partial(thirds.scores, chosen)
            lines = marked_lines(inputs.model, images, marker, other, rounding, scores)
            results.add(*({"batch": number, **line} for line in lines))

    def report(self, protocol: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], parts: Path) -> FigureReport:
        """Photographs with their marks, how much the outputs changed, and how well the mark is found."""
        return report.watermark_report(protocol, lines, parts)


def _preprocessing(args: argparse.Namespace) -> Preprocessing:
    from ..data import Preprocessing

    return Preprocessing(args.input_size, args.crop_pct, args.interpolation)


def _thirds(args: argparse.Namespace, marker: Marker, n: int) -> Thirds:
    """Of ``n`` unmarked images; refuses too few for the rate, and patches that are too large for the detector."""
    nullspace.require_detectable(marker.space.input_dim)
    thirds = Thirds(n, derive_seed(args.seed, _ORDER))
    thirds.require_rate(args.false_positive_rate)
    return thirds
