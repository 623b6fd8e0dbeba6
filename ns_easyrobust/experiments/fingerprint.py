"""The experiment ``fingerprint``: whether row spaces tell derived models from independent ones (section 6)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import evaluation, nullspace
from ..errors import ModelError, OptionError, without_secrets
from ..utils import (
    add_machine_arguments,
    add_model_kwargs,
    derive_seed,
    file_or_folder,
    float_in,
    pick_device,
)
from .figure import FigureExperiment
from .inputs import add_image_arguments, open_images_of
from .registry import register_experiment

if TYPE_CHECKING:
    from ..report import FigureReport
    from .fingerprint_measure import Views
    from .fingerprint_pool import Member, Pool
    from .image_set import ImageSet
    from .results import Results

_MIXING = 1  # use of a seed


@register_experiment("fingerprint")
class FingerprintExperiment(FigureExperiment):
    """Section 6, model patenting: false negatives, false positives and an adversary of the row space's fingerprint"""

    def add_inputs(self, parser: argparse.ArgumentParser) -> None:
        """Add the folder of models, the level, the images and the attack."""
        group = parser.add_argument_group("models")
        group.add_argument(
            "models", type=file_or_folder, metavar="MODELS",
            help="folder with claimed/NAME.*, derived/KIND/NAME/* and independent/RECIPE/*: checkpoints, of the same "
            "patches (benchmarks/fingerprint_models.py makes one)",
        )  # fmt: skip
        group.add_argument("-m", "--model", metavar="ARCH", help="architecture of checkpoints that name none")
        add_model_kwargs(group)
        group.add_argument(
            "--alpha", type=float_in(1e-6, 0.5), default=0.05, metavar="F", help="level of the test (default: 0.05)"
        )
        group.add_argument(
            "--attacked", nargs="+", default=[], metavar="NAME",
            help="claimed models whose patch embedding gets hidden noise (default: none)",
        )  # fmt: skip
        add_image_arguments(parser, 1000, 2000)
        evaluation.add_reading_arguments(parser)
        add_machine_arguments(parser)

    def measure(self, args: argparse.Namespace, results: Results) -> None:
        """Add the lines of the models, of pairs, of copies and of attacks that are not there yet."""
        from tqdm.auto import tqdm

        from .fingerprint_measure import Views
        from .fingerprint_pool import open_pool

        device = pick_device(args.device)
        pool = open_pool(Path(args.models), args.use_ema)
        names = [each.kind for each in pool.claimed]
        if unknown := sorted(set(args.attacked) - set(names)):
            raise OptionError(f"--attacked: expected some of {', '.join(names)[:200]}, found {unknown[0]}. Correct it.")
        if args.input_size is None:
            raise OptionError("--input-size: expected the side of the models' images in pixels, found none. Give it.")
        measured, searched, described = open_images_of(args, device)
        first = pool.members[0].found
        space = nullspace.common_space([each.found for each in pool.members])
        covariance = nullspace.PatchCovariance.of(searched.pixels, first.patch_size)
        results.begin(
            {
                "models": without_secrets(str(args.models)), "models_sha256": pool.digest, "space": space,
                "patch": first.patch_size, "input_dim": first.input_dim, "alpha": args.alpha,
                "attacked": args.attacked, "seed": args.seed, "model": args.model, "model_kwargs": args.model_kwargs,
                "ema": args.use_ema, "img_size": args.img_size, **described,
            },
            device,
        )  # fmt: skip
        views = Views(space, covariance)
        for member in tqdm(pool.members, desc="models", unit="model", disable=None):
            self._add_facts(args, results, member, views, measured)
        for member in tqdm([*pool.claimed, *pool.independent], desc="pairs", unit="model", disable=None):
            _add_pairs(results, member, pool, views)
        for name in args.attacked:
            _add_attack(args, results, next(each for each in pool.claimed if each.kind == name), views, measured)

    def _add_facts(
        self, args: argparse.Namespace, results: Results, member: Member, views: Views, images: ImageSet
    ) -> None:
        from . import fingerprint_measure as measures

        if results.find(what="model", name=member.name):
            return
        line: dict[str, Any] = {
            "what": "model", "name": member.name, "group": member.group, "kind": member.kind, "origin": member.origin,
            "digest": member.found.digest[:16], **measures.facts(member, views),
        }  # fmt: skip
        if member.group == "claimed":
            line["copies"] = views.copies(member.found)
        if member.group != "independent":
            model = measures.open_classifier(member, args, images.pixels.device)
            if model is not None:
                line |= measures.judged(measures.answers(model, images, args.batch_size), images)
                if member.group == "claimed":
                    line["mixed"] = measures.rotated(member, model, views, derive_seed(args.seed, _MIXING))
        results.add(line)

    def report(self, protocol: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], parts: Path) -> FigureReport:
        """Likenesses by kind, errors of both sorts, and the attack."""
        from .. import report

        return report.fingerprint_report(protocol, lines)


def _add_pairs(results: Results, member: Member, pool: Pool, views: Views) -> None:
    """The line of a model's likenesses to all independent ones; of a claimed one also to all derived ones."""
    if results.find(what="pairs", name=member.name):
        return
    others = [each for each in pool.independent if each.found.digest != member.found.digest]
    if member.group == "claimed":
        others += list(pool.derived)
    found = {each.name: views.likeness(member.found, each.found) for each in others}
    results.add({"what": "pairs", "name": member.name, "likeness": found})


def _add_attack(args: argparse.Namespace, results: Results, member: Member, views: Views, images: ImageSet) -> None:
    from . import fingerprint_measure as measures

    if results.find(what="attack", name=member.name):
        return
    model = measures.open_classifier(member, args, images.pixels.device)
    if model is None:
        raise ModelError(
            f"{member.name}: expected a whole checkpoint of a known architecture for --attacked, found none. "
            "Give --model, or attack another."
        )
    steps = measures.attacked(member, model, views, images, args.seed, args.batch_size)
    results.add({"what": "attack", "name": member.name, "steps": steps})
