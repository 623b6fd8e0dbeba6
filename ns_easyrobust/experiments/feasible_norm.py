"""The experiment ``feasible-norm``: does training on nullspace noise enlarge the nullspace, and only its own?"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import nullspace
from ..data import INTERPOLATIONS
from ..errors import ModelError, OptionError, UserError, without_secrets
from ..utils import (
    FileLock,
    add_machine_arguments,
    add_model_arguments,
    choices_of,
    file_or_folder,
    float_in,
    int_from,
    os_errors_as_output_errors,
    pick_device,
    write_text,
)
from .feasible_norm_inputs import Trained, add_study_arguments, find_inputs
from .inputs import add_image_arguments
from .registry import Command, Experiment, register_experiment

if TYPE_CHECKING:
    import torch

    from ..models import NormalizedModel
    from .feasible_norm_measure import Direction, NormLab

_logger = logging.getLogger(__name__)
_NULLSPACE, _SENSITIVE, _TRAINED_ON, _OWN, _SEARCH = (
    *("nullspace", "sensitive", "trained on", "own nullspace", "own nullspace, as found"),
)
_MOST = 10**9


@register_experiment("feasible-norm")
class FeasibleNormExperiment(Experiment):
    """compare how large noise may be along fixed directions, and along newly found ones, before and after training"""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the checkpoints, the images, the directions and the search."""
        inputs = parser.add_argument_group("checkpoints")
        inputs.add_argument(
            "--before", type=file_or_folder, metavar="CKPT", help="the start of all (default: the study's)"
        )
        inputs.add_argument(
            "--after", nargs="+", action="extend", default=[], metavar="LABEL=CKPT",
            help="trained models; several seeds of a method as LABEL=CKPT,CKPT or by repeating the label, in one order",
        )  # fmt: skip
        add_study_arguments(inputs)
        inputs.add_argument("--baseline", metavar="LABEL", help="trained without noise (default: none, if there)")
        add_model_arguments(parser)
        add_image_arguments(parser, images=512, synthesis_images=1536)
        images = parser.add_argument_group("preprocessing")
        images.add_argument(
            "--crop-pct", type=float_in(0.01, 1), default=0.875, metavar="F", help="crop (default: 0.875)"
        )
        images.add_argument("--interpolation", choices=INTERPOLATIONS, default="bicubic", help="default: bicubic")
        search = parser.add_argument_group("directions and norms")
        search.add_argument(
            "--directions", type=int_from(1, 10**4), default=8, metavar="K", help="of each kind (default: 8)"
        )
        search.add_argument(
            "--eps", type=float_in(1e-9, 2), default=0.03, metavar="X", help="on mse_probability (default: 0.03)"
        )
        search.add_argument(
            "--max-steps", type=int_from(1, _MOST), default=200, metavar="N", help="of a synthesis (default: 200)"
        )
        search.add_argument(
            "--t-max", type=float_in(1e-6, 1e9), default=1e4, metavar="X", help="largest norm (default: 10000)"
        )
        search.add_argument(
            "--no-own", action="store_true", help="no new synthesis on each model, which takes the most time"
        )
        precisions = choices_of(nullspace.NoiseConfig, "autocast")
        search.add_argument("--autocast", choices=precisions, default="off", help="precision of the forwards")
        add_machine_arguments(parser)
        parser.add_argument(
            "-o", "--output", type=file_or_folder, default="output/feasible_norm", metavar="FOLDER",
            help="where everything goes; what is done there already is not done again (default: output/feasible_norm)",
        )  # fmt: skip

    def run(self, args: argparse.Namespace, commands: Mapping[str, Command]) -> Iterator[str]:
        """Check everything, measure what is not measured yet, write the report.

        Yields:
            The table, and where the files are.

        Raises:
            UserError: a checkpoint, folder or flag is not what it should be, or differs from those of an earlier call.
        """
        from .. import report

        inputs = find_inputs(args)
        labels = list(dict.fromkeys(one.label for one in inputs.trained))
        if args.baseline is not None and args.baseline not in labels:
            raise OptionError(f"--baseline: expected one of {', '.join(labels)}, found {args.baseline}.")
        baseline = args.baseline or ("none" if "none" in labels else None)
        folder = Path(args.output)
        with os_errors_as_output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", "this experiment"):
            lines, notes = _Comparison(args, inputs.start, inputs.trained, baseline, folder).measure()
            write_text(folder / "feasible_norm.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
            changes = report.NormChanges(lines, baseline)
            picture = "![feasible norms before and after training](feasible_norm.png)\n\n"
            try:
                report.feasible_norm_figure(changes, folder / "feasible_norm.png", f"eps {args.eps:g}")
            except UserError as error:
                _logger.warning("feasible_norm.png was not drawn: %s", error)
                picture = ""
            head = "# Feasible norms before and after training\n\n"
            write_text(folder / "feasible_norm.md", head + picture + changes.to_markdown(notes))
        yield changes.to_text(shutil.get_terminal_size((120, 24)).columns, notes)
        yield f"report: {folder / 'feasible_norm.md'}"


class _Comparison:
    """One call: the models, one after the other, each loaded when its turn comes."""

    def __init__(
        self, args: argparse.Namespace, start: str, trained: list[Trained], baseline: str | None, folder: Path
    ) -> None:
        self.args, self.start, self.trained, self.baseline, self.folder = args, start, trained, baseline, folder
        self.device = pick_device(args.device)

    def load(self, path: str) -> NormalizedModel:
        from .. import models

        args = self.args
        options: dict[str, Any] = {"num_classes": args.num_classes, "mean": args.mean, "std": args.std}
        model = models.load_model(args.model, path, model_kwargs=args.model_kwargs, **options)
        return model.to(self.device).eval()

    def measure(self) -> tuple[list[dict[str, Any]], list[str]]:
        """The lines of all models, the start's first, and notes on how they were measured."""
        from tqdm.auto import tqdm

        from .. import data, evaluation, models
        from .feasible_norm_measure import PRECISION, NormLab, NormProtocol, norm_lines
        from .image_set import open_images

        args = self.args
        start = self.load(self.start)
        start_digest = models.state_digest(start)
        weights = {one: self._digest(one, start) for one in self.trained}  # all can be loaded, before hours of work
        preprocessing = data.Preprocessing(start.image_size, args.crop_pct, args.interpolation)
        measured, searched = open_images(
            Path(args.data_dir), preprocessing, args.images, args.synthesis_images, args.seed, args.workers
        )
        protocol = NormProtocol(
            start=start_digest, eps=args.eps, max_steps=args.max_steps, directions=args.directions,
            direction_seed=args.seed, batch_size=args.batch_size, t_max=args.t_max, autocast=args.autocast,
            preprocessing=str(preprocessing), n=len(measured), images=measured.digest, synthesis_n=len(searched),
            synthesis_images=searched.digest,
        )  # fmt: skip
        protocol.keep_in(self.folder)
        shape = models.token_shape(start, measured.pixels[:1].to(self.device))
        trained_on = self._trained_on(shape)
        fields = {"precision": PRECISION, **vars(protocol), "arch": start.arch}
        fields |= {"machine": evaluation.describe_machine(self.device), "versions": evaluation.collect_versions()}
        lines: list[dict[str, Any]] = []
        with tqdm(desc="feasible norms", unit="part", disable=None) as bar:
            lab = NormLab(self.folder, protocol, measured.to(self.device), searched.to(self.device), bar)
            shared = self._shared(lab, start, start_digest)
            bar.total = self._parts(len(shared), len(trained_on))
            for one in (None, *self.trained):
                model, digest = (start, start_digest) if one is None else (self.load(one.path), weights[one])
                directions = [*shared, *(noise for run, noise in trained_on.items() if self._measures(one, run))]
                if not args.no_own:
                    directions += lab.synthesized(model, digest, _OWN, "sphere")
                named = {"label": "before", "seed": None} if one is None else {"label": one.label, "seed": one.seed}
                named |= {"checkpoint": without_secrets(self.start if one is None else one.path), "weights": digest}
                lines += norm_lines(
                    named | fields, directions, lab.norms(model, digest, directions), own=_OWN, search=_SEARCH
                )
                _logger.info("%s: measured", self.start if one is None else one.path)
        return lines, self._notes(lines, protocol.n, measured.origin, searched.origin)

    def _digest(self, one: Trained, start: NormalizedModel) -> str:
        from .. import models

        model = self.load(one.path)
        if model.image_size != start.image_size:
            raise ModelError(
                f"{one.path}: expected a model of {start.image_size} pixels, as the start, found {model.image_size}."
            )
        return models.state_digest(model)

    def _trained_on(self, shape: tuple[int, ...]) -> dict[Trained, Direction]:
        """The direction of the noise that each run was trained on last, of those that have one that fits."""
        from .. import report
        from .feasible_norm_measure import Direction

        found = {}
        for one in self.trained:
            if one.noise is None:
                continue
            noise = nullspace.Noise.load(one.noise)
            if tuple(noise.value.shape) != shape or noise.config.block != -1:
                _logger.warning("%s: left out, as it is no noise on this model's patch embedding", one.noise)
                continue
            name = report.NormChanges.run_name(one.label, one.seed)
            found[one] = Direction(_TRAINED_ON, name, nullspace.unit_direction(noise.value))
        return found

    def _measures(self, one: Trained | None, run: Trained) -> bool:
        """Whether a model is measured along the noise of ``run``: the start, that run, the baseline's of its seed."""
        return one in (None, run) or (one is not None and (one.label, one.seed) == (self.baseline, run.seed))

    def _shared(self, lab: NormLab, start: torch.nn.Module, digest: str) -> list[Direction]:
        """The directions that all models are measured along: made on the start, once."""
        found = lab.synthesized(start, digest, _NULLSPACE, "sphere")
        found += sorted(lab.controls(found), key=lambda direction: direction.kind, reverse=True)
        if _SENSITIVE in nullspace.known_solvers():
            return found + lab.synthesized(start, digest, _SENSITIVE, _SENSITIVE)
        _logger.warning("no sensitive directions: this version has no solver of that name")
        return found

    def _parts(self, shared: int, trained_on: int) -> int:
        """How many syntheses and norms there are, roughly: the baseline's along others' noises are left out."""
        own = 0 if self.args.no_own else 2 * self.args.directions
        return shared + (1 + len(self.trained)) * (shared + own) + 2 * trained_on

    def _notes(self, lines: list[dict[str, Any]], n: int, measured: str, searched: str) -> list[str]:
        args = self.args
        notes = [
            "Feasible norm of a direction: the largest t such that noise of norm t along it, on the patch embedding's "
            f"output, has a mean mse_probability under {args.eps:g} (as all smaller ones on a grid), to 1%, on n={n} "
            f"images ({measured}). All directions are centred per token, as layer norms take away each token's mean.",
            f"{_NULLSPACE}, random, permuted, {_SENSITIVE}: {args.directions} directions each, made once on the model "
            f"before training. {_NULLSPACE}: found by the solver sphere in at most {args.max_steps} steps on other "
            f"images ({searched}, not augmented); permuted: their elements in another order; {_SENSITIVE}: those to "
            f"which that model is most sensitive; {_TRAINED_ON}: the last noise of the run itself.",
        ]
        if not args.no_own:
            unfit = sum(not line["feasible"] for line in lines if line["kind"] == _SEARCH)
            notes.append(
                f"{_OWN}: found anew on each model, with the same seeds, steps and images, and measured as the others; "
                "as found: the norm that the search ended at (Figure 4 of arXiv:2403.10476), with its own margin "
                f"under eps. Searches that ended over eps: {unfit}."
            )
        return notes
