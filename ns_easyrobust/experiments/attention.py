"""The experiment ``attention``: do real attention heads meet the conditions of Proposition 1 of arXiv:2403.10476?"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import evaluation
from ..errors import OptionError, without_secrets
from ..utils import add_machine_arguments, add_model_arguments, derive_seed, int_from, pick_device, torch
from .figure import FigureExperiment
from .inputs import add_image_arguments, open_images_of, open_model
from .registry import register_experiment
from .results import Results

if TYPE_CHECKING:
    from ..models import NormalizedModel
    from ..report import FigureReport

_MOST_MODELS = 3
_CONSTRUCTED = (6, 64, 65)  # heads, their width, tokens: a ViT-S


@register_experiment("attention")
class AttentionExperiment(FigureExperiment):
    """check Proposition 1's conditions on real heads: symmetry, row spaces, what no head sees; against random ones"""

    def add_inputs(self, parser: argparse.ArgumentParser) -> None:
        """Add the checkpoints, the images and the number of random matrices."""
        evaluation.add_checkpoint_arguments(parser)
        add_model_arguments(parser)
        parser.add_argument(
            "--also", nargs="+", action="extend", default=[], metavar="NAME=CKPT",
            help=f"checkpoints to measure beside it, {_MOST_MODELS - 1} at most, which name their own architecture",
        )  # fmt: skip
        parser.add_argument(
            "--draws", type=int_from(2, 1000), default=4, metavar="N",
            help="random matrices for each layer, and random directions (default: 4)",
        )  # fmt: skip
        add_image_arguments(parser, 32, required=False)
        add_machine_arguments(parser)

    def measure(self, args: argparse.Namespace, results: Results) -> None:
        """Each model's layers, then the constructed layer."""
        from tqdm.auto import tqdm

        from .. import models
        from .attention_measures import constructed_measures, layer_line, require_heads

        device = pick_device(args.device)
        opened = list(_open_models(args, device))
        images, protocol = {}, {"draws": args.draws, "seed": args.seed, "models": {}}
        for name, (model, described) in opened:
            own = argparse.Namespace(**{**vars(args), "input_size": model.image_size})
            images[name], more = _images(own, device)
            protocol["models"][name] = {**described, **more}
        layers = {name: models.head_projections(model) for name, (model, _) in opened}
        for name, (model, _) in opened:
            require_heads(name, layers[name])
            models.attention_inputs(model, images[name][:1])  # refuses other attention, before anything is measured
        results.begin(protocol, device)
        total = sum(map(len, layers.values()))
        with tqdm(total=total, desc="attention", unit="layer", disable=None) as bar:
            for index, (name, (model, _)) in enumerate(opened):
                todo = [layer for layer in range(len(layers[name])) if results.find(model=name, layer=layer) is None]
                bar.update(len(layers[name]) - len(todo))
                batches = images[name].split(args.batch_size) if todo else ()
                inputs = [models.attention_inputs(model, batch) for batch in batches]
                for layer in todo:
                    tokens, seed = [batch[layer] for batch in inputs], derive_seed(args.seed, index, layer)
                    results.add(layer_line(name, model, layer, layers[name][layer], tokens, args.draws, seed))
                    bar.update()
        for without in range(4):
            if results.find(without=without) is None:
                results.add(constructed_measures(*_CONSTRUCTED, args.seed, without))

    def report(self, protocol: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], parts: Path) -> FigureReport:
        """The conditions, layer by layer, and the constructed layer."""
        from .. import report

        return report.attention_report(protocol, lines)


def _open_models(
    args: argparse.Namespace, device: torch.device
) -> Iterator[tuple[str, tuple[NormalizedModel, dict[str, Any]]]]:
    """(name, (model, what tells it apart)): the checkpoint's, by its architecture's name, then those of ``--also``."""
    further = []
    for text in args.also:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise OptionError(f"--also: expected NAME=CKPT, found {text!r}. Give each checkpoint a name.")
        further.append((name, path))
    if len({name for name, _ in further}) < len(further) or len(further) >= _MOST_MODELS:
        raise OptionError(
            f"--also: expected at most {_MOST_MODELS - 1} checkpoints, each of its own name, found "
            f"{', '.join(args.also)}. Measure the others in another --output."
        )
    model, described = open_model(args, device)
    first = model.arch.rpartition(":")[2]
    if first in dict(further):
        raise OptionError(f"--also: expected other names than {first}, which is --ckpt-path's. Choose another one.")
    yield first, (model, described)
    for name, path in further:
        alone = {"model": None, "ckpt_path": path, "sha256": None, "num_classes": None, "model_kwargs": {}}
        alone |= {"mean": None, "std": None, "img_size": None, "input_size": None}
        found, own = open_model(argparse.Namespace(**{**vars(args), **alone}), device)
        yield name, (found, {**own, "checkpoint": without_secrets(path)})


def _images(args: argparse.Namespace, device: torch.device) -> tuple[torch.Tensor, dict[str, Any]]:
    """Photographs, or random pixels where there is no folder, (n, 3, H, W), and what tells them apart."""
    if args.data_dir is not None:
        measured, _, more = open_images_of(args, device)
        return measured.pixels, more
    generator = torch.Generator().manual_seed(args.seed)
    pixels = torch.rand(args.images, 3, args.input_size, args.input_size, generator=generator)
    return pixels.to(device), {"n": args.images, "images_from": "random pixels"}
