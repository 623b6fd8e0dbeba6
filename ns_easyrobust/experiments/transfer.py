"""The experiment ``transfer``: is a nullspace one of the model alone, whatever the images?"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import evaluation, nullspace, report
from ..errors import DataError, ModelError, OptionError, without_secrets
from ..utils import add_machine_arguments, add_model_arguments, choices_of, file_or_folder, float_in, int_from
from .exact_nullspace import spectrum_with_nullspace
from .feasible_norm_inputs import named_paths
from .figure import FigureExperiment
from .inputs import add_image_arguments, open_images_of
from .registry import register_experiment
from .results import Results

if TYPE_CHECKING:
    from ..models import NormalizedModel
    from ..report import FigureReport
    from .image_set import ImageSet

_logger = logging.getLogger(__name__)
KINDS = ("encoder", "patch", "valid")
_MOST = 10**6


@register_experiment("transfer")
class TransferExperiment(FigureExperiment):
    """measure nullspace noise of one model on other images, on what it was finetuned to, and on other models"""

    def add_inputs(self, parser: argparse.ArgumentParser) -> None:
        """Add the models, the images and the noises."""
        group = parser.add_argument_group("models")
        group.add_argument(
            "--models", nargs="+", action="extend", required=True, metavar="LABEL=CKPT",
            help="checkpoints of one architecture; noise of each is measured on all",
        )  # fmt: skip
        group.add_argument("--sources", nargs="+", metavar="LABEL", help="whose noise is measured (default: all)")
        add_model_arguments(parser)
        evaluation.add_reading_arguments(parser)
        add_image_arguments(parser, images=256, synthesis_images=512)
        images = parser.add_argument_group("other images")
        images.add_argument(
            "--other-data", nargs="+", type=file_or_folder, default=[], metavar="DIR",
            help="more folders of classes, as --data-dir, to measure on; each has a column of its own",
        )  # fmt: skip
        noises = parser.add_argument_group("noises")
        noises.add_argument(
            "--kinds", nargs="+", choices=KINDS, default=list(KINDS),
            help="encoder: approximate, on the patch embedding's output; patch: exact, a sample of Eq. 2, one for all "
            "images; valid: exact, large, and keeping pixels in [0, 1], one for each image (default: all)",
        )  # fmt: skip
        noises.add_argument(
            "--noises", type=int_from(1, 1000), default=4, metavar="M", help="of each model, but valid (default: 4)"
        )
        noises.add_argument(
            "--rms", type=float_in(1e-6, 1e6), default=0.3, metavar="X",
            help="root mean square of patch noise, in pixels from 0 to 1 (default: 0.3)",
        )  # fmt: skip
        noises.add_argument(
            "--valid-images", type=int_from(2, _MOST), default=64, metavar="N",
            help="images of each folder at most that valid noise is made for (default: 64)",
        )  # fmt: skip
        solvers = choices_of(nullspace.NoiseConfig, "solver")
        noises.add_argument("--solver", choices=solvers, default="sphere", help="of encoder noise (default: sphere)")
        noises.add_argument(
            "--eps", type=float_in(1e-9, 2), default=0.03, metavar="X", help="on mse_probability (default: 0.03)"
        )
        noises.add_argument(
            "--max-steps", type=int_from(1, 10**9), default=200, metavar="N", help="of a synthesis (default: 200)"
        )
        add_machine_arguments(parser)

    def measure(self, args: argparse.Namespace, results: Results) -> None:
        """Measure model by model; noises are kept, and made once.

        Raises:
            OptionError: labels that are no labels of --models, or come twice.
            ModelError: models that cannot take each other's noise, or one of a single class.
        """
        from tqdm.auto import tqdm

        from .. import models
        from ..utils import pick_device
        from .transfer_measure import TransferLab

        device = pick_device(args.device)
        named = list(named_paths(args.models, "--models", "CKPT"))
        labels = [label for label, _ in named]
        if len(set(labels)) < len(labels):
            raise OptionError(f"--models: expected a label of its own for each, found {', '.join(labels)[:200]}.")
        sources = args.sources or labels
        for label in sources:
            if label not in labels:
                raise OptionError(f"--sources: expected some of {', '.join(labels)[:200]}, found {label[:200]}.")
        by_label = {label: _opened(args, path, device) for label, path in named}
        args.input_size = next(iter(by_label.values())).image_size
        measured, searched, protocol = open_images_of(args, device)
        sets = {"found on": searched, "held out": measured, **_others(args, device)}
        digests = _checked(by_label, measured)
        pixels = measured.pixels[:1]
        readers = {
            label: models.reader_without_layer_norm(models.bare_vit(one), pixels) for label, one in by_label.items()
        }
        uncentred = {label: reader for label, reader in readers.items() if reader}
        if uncentred and "encoder" in args.kinds:
            _logger.warning(
                "noise and its controls keep each token's mean, as %s reads it: %s is no LayerNorm of each token.",
                *next(iter(uncentred.items())),
            )
        for label in sources if {"patch", "valid"} & set(args.kinds) else ():
            spectrum_with_nullspace(f"--models {label}", by_label[label])
        results.begin(
            {
                **protocol, "models": {label: without_secrets(path) for label, path in named}, "weights": digests,
                "ema": args.use_ema, "uncentred": uncentred,
                "architecture": next(iter(by_label.values())).arch, "sources": sources, "kinds": args.kinds,
                "noises": args.noises, "rms": args.rms, "valid_images": args.valid_images, "solver": args.solver,
                "eps": args.eps, "max_steps": args.max_steps, "seed": args.seed,
                "sets": {name: one.origin for name, one in sets.items()},
                "sets_images": {name: one.digest for name, one in sets.items()},
                "sets_pixels": {name: one.pixels_digest for name, one in sets.items()},
            },
            device,
        )  # fmt: skip
        total = len(sources) * len(by_label) * len(sets) * len(args.kinds)
        with tqdm(total=total, desc="transfer", unit="part", disable=None) as bar:
            lab = TransferLab(args, by_label, digests, sets, results, bar, centre=not uncentred)
            for source in sources:
                lab.measure(source)

    def report(self, protocol: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], parts: Path) -> FigureReport:
        """Influence on models, and on images."""
        return report.transfer_report(protocol, lines)


def _opened(args: argparse.Namespace, path: str, device: Any) -> NormalizedModel:
    """The model of one checkpoint; each may have settings of its own."""
    own = argparse.Namespace(**{**vars(args), "ckpt_path": path, "sha256": None})
    return evaluation.checkpoint_model(own, device)[0].eval()


def _others(args: argparse.Namespace, device: Any) -> dict[str, ImageSet]:
    """The images of --other-data, as many as are held out, by the folder's name."""
    from ..data import Preprocessing
    from .image_set import open_image_set

    found: dict[str, ImageSet] = {}
    preprocessing = Preprocessing(args.input_size, args.crop_pct, args.interpolation)
    for word in args.other_data:
        name = Path(word).resolve().name
        if name in found:
            raise OptionError(f"--other-data: expected folders of different names, found {name} twice. Rename one.")
        found[name] = open_image_set(Path(word), preprocessing, args.images, args.seed, args.workers).to(device)
        if len(found[name]) < 2:
            raise DataError(f"{word}: expected two images at least for --images, found one. Give more images.")
    return found


def _checked(by_label: Mapping[str, NormalizedModel], images: ImageSet) -> dict[str, str]:
    """Digests of the weights of models that can take each other's noise."""
    from .. import models

    first, *_ = by_label

    def shape(model: NormalizedModel) -> tuple[Any, ...]:
        pixels = images.pixels.new_zeros(1, 3, model.image_size, model.image_size)
        return model.image_size, nullspace.find_projection(model).kernel_size[0], models.token_shape(model, pixels)

    for label, model in by_label.items():
        if model.num_classes == 1:
            raise ModelError(f"--models {label}: expected two classes at least, found one, which nothing can change.")
        if shape(model) != shape(by_label[first]):
            size, patch, tokens = shape(by_label[first])
            raise ModelError(
                f"--models {label}: expected {size} pixels, patches of {patch} and tokens {tokens}, as {first}, found "
                f"{', '.join(map(str, shape(model)))}. Noise of one fits no other; give models of one shape."
            )
    return {label: models.state_digest(model) for label, model in by_label.items()}
