"""The experiment ``encoder-noise``: section 3.3 and Figure 3 of arXiv:2403.10476, noise learned by Eq. 4."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import nullspace, report
from ..errors import DataError
from ..utils import derive_seed, float_in, int_from, torch
from .figure import FigureExperiment
from .inputs import Inputs, add_input_arguments, open_inputs
from .registry import register_experiment
from .results import Results

if TYPE_CHECKING:
    from ..nullspace import ImageInfluence, InfluenceProbe, NoiseLearner
    from ..report import FigureReport

_logger = logging.getLogger(__name__)
_MOST = 10**6
_LAMBDAS = (0.03, 0.1, 0.3, 1.0, 3.0)
_NOTICED = 0.01  # mean logit distance by all-ones noise of elements 1, above which a model is said to notice it


@register_experiment("encoder-noise")
class EncoderNoiseExperiment(FigureExperiment):
    """learn encoder noise by Eq. 4 at several lambdas, and compare its effect with its permutations' (Figure 3)"""

    def add_inputs(self, parser: argparse.ArgumentParser) -> None:
        """Add the model, the images and the search."""
        add_input_arguments(parser, images=512, synthesis_images=512)
        search = parser.add_argument_group("search")
        shown = " ".join(f"{strength:g}" for strength in _LAMBDAS)
        search.add_argument(
            "--lambdas", type=float_in(1e-9, 1e9), nargs="+", default=_LAMBDAS, metavar="L",
            help=f"weights of the norm's logarithm, in logits (default: {shown})",
        )  # fmt: skip
        search.add_argument(
            "--seeds", type=int_from(1, 1000), default=1, metavar="N",
            help="noises for each lambda: from --seed on, each from a start and orders of its own (default: 1)",
        )  # fmt: skip
        search.add_argument(
            "--steps", type=int_from(1, _MOST), default=300, metavar="N", help="of each search (default: 300)"
        )
        search.add_argument(
            "--minibatch", type=int_from(1, _MOST), default=4, metavar="N", help="images of a step (default: 4)"
        )
        search.add_argument(
            "--step-length", type=float_in(1e-6, 0.9), default=0.05, metavar="X",
            help="of the first step, in norms of the noise; it falls linearly to 0 (default: 0.05)",
        )  # fmt: skip
        search.add_argument(
            "--limit", type=float_in(1e-6, 1e4), default=0.03, metavar="X",
            help="a start is uniform in (-X, X) (default: 0.03)",
        )  # fmt: skip

    def measure(self, args: argparse.Namespace, results: Results) -> None:
        """Learn the noises that are not there yet, and measure each beside its permutations."""
        inputs = open_inputs(args)
        if len(inputs.measured) < 2:  # one has no interval
            raise DataError(f"{args.data_dir}: expected two images at least to measure on, found one. Add images.")
        settings = ("steps", "minibatch", "step_length", "limit")
        protocol = inputs.protocol | {name: getattr(args, name) for name in settings}
        results.begin(protocol, inputs.device)
        todo = [
            (strength, seed)
            for strength in sorted(set(args.lambdas))
            for seed in range(args.seed, args.seed + args.seeds)
            if results.find(kind="noise", strength=strength, noise_seed=seed) is None
        ]
        if todo:
            _Search(args, inputs, results).learn(todo)

    def report(self, protocol: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], parts: Path) -> FigureReport:
        """Figure 3, and how near to a stationary point each noise is."""
        return report.encoder_noise_report(protocol, lines)


class _Search:
    """The images' clean logits, computed once for all noises."""

    def __init__(self, args: argparse.Namespace, inputs: Inputs, results: Results) -> None:
        self.args, self.results = args, results
        self.learner: NoiseLearner = nullspace.NoiseLearner(inputs.model, inputs.searched.batches(args.minibatch))
        self.probe: InfluenceProbe = nullspace.InfluenceProbe(
            inputs.model, inputs.measured.batches(args.batch_size), nullspace.NoiseConfig()
        )

    def learn(self, todo: Sequence[tuple[float, int]]) -> None:
        """Learn, measure and keep a noise for each (lambda, seed)."""
        from tqdm.auto import tqdm

        if self.results.find(kind="ones") is None:
            self.results.add(self._all_ones())
        with tqdm(total=len(todo) * self.args.steps, desc="noise", unit="step", disable=None) as bar:
            for number, (strength, seed) in enumerate(todo, 1):
                self.results.add(self._noise(strength, seed, lambda loss, norm: bar.update()))
                bar.update(number * self.args.steps - bar.n)  # a search that ran away ends before
                _logger.info("%d of %d noises learned", number, len(todo))

    def _all_ones(self) -> dict[str, Any]:
        """What the model notices of the direction that is projected out."""
        value = torch.ones(self.learner.shape)
        found = self.probe.per_image(value)
        distance = _interval(found.logit_distance)
        if distance[0] > _NOTICED:
            _logger.warning(
                "this model notices a token's mean, which a pre-LN transformer's layer norms take off: of noise that "
                "is 1 everywhere its logits move by %.3g. Noise is learned without that component all the same.",
                distance[0],
            )
        return {"kind": "ones", "norm": float(value.norm()), "logit_distance": distance, "n": len(found.distance)}

    def _noise(self, strength: float, seed: int, on_step: Any) -> dict[str, Any]:
        args, learner = self.args, self.learner
        start = nullspace.uniform_start(learner.shape, args.limit, _generator(seed, 0))
        value = learner.learn(start, strength, args.steps, args.step_length, _generator(seed, 1), on_step)
        learned = self.probe.per_image(value)
        config = nullspace.NoiseConfig(
            limit=args.limit,
            lr=args.step_length,  # in norms of the noise
            max_steps=args.steps,
            minibatch=args.minibatch,
            weight_decay=0.0,
        )
        noise = nullspace.Noise(value, float(learned.distance.mean()), args.steps, False, None, (), config)
        noise.save(self.results.parts / f"lambda{strength!r}-seed{seed}.pt")
        stationary = learner.stationarity(value)
        permuted = self.probe.per_image(nullspace.permuted_control(value, _generator(seed, 2)))
        within = self.probe.per_image(nullspace.within_token_control(value, _generator(seed, 3)))
        return {
            "kind": "noise",
            "strength": strength,
            "noise_seed": seed,
            "norm": noise.norm,
            "start_norm": float(start.double().norm()),
            "token_share": noise.token_share,
            "distance": stationary.distance,
            "radial": stationary.radial,
            "learned": _measured(learned),
            "permuted": _control(permuted, learned),
            "within": _control(within, learned),
            "n": len(learned.unchanged),
        }


def _generator(seed: int, use: int) -> torch.Generator:
    """Of a noise's start (0), its orders of minibatches (1), its permutation (2), and that within tokens (3)."""
    return torch.Generator().manual_seed(derive_seed(seed, use))


def _measured(found: ImageInfluence) -> dict[str, Any]:
    """Counts, and intervals over images."""
    return {
        "unchanged": int(found.unchanged.sum()),
        "mse_probability": _interval(found.distance),
        "logit_distance": _interval(found.logit_distance),
    }


def _control(found: ImageInfluence, learned: ImageInfluence) -> dict[str, Any]:
    """:func:`_measured`, and how many predictions only the learned noise, or only the control, leaves as they are."""
    kept, other = learned.unchanged, found.unchanged
    only = {"only_learned": int((kept & ~other).sum()), "only_control": int((other & ~kept).sum())}
    return _measured(found) | only


def _interval(values: torch.Tensor) -> list[float]:
    """Mean, low and high."""
    return list(report.interval_of_mean(values.numpy()))
