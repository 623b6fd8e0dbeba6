"""The experiment ``closure``: Figure 5 of arXiv:2403.10476, with controls of equal influence and the local picture."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import nullspace
from ..errors import OptionError
from ..utils import (
    choices_of,
    derive_seed,
    float_in,
    int_from,
    is_first_rank,
    on_first_rank,
    process_group,
    torch,
)
from .figure import FigureExperiment
from .inputs import Inputs, add_input_arguments, open_inputs
from .registry import Command, register_experiment
from .results import Results, parts_of

if TYPE_CHECKING:
    from ..report import FigureReport

_logger = logging.getLogger(__name__)
_MOST = 10**6
_PAIRS = 0  # what the seed of the pairs is derived from, beside --seed


@register_experiment("closure")
class ClosureExperiment(FigureExperiment):
    """measure whether nullspace noise is closed under scaling and addition (Figure 5), and whether any small noise is

    Under torchrun each process synthesizes its share of the noises, alone; the first then measures.
    """

    def add_inputs(self, parser: argparse.ArgumentParser) -> None:
        """Add the inputs, the synthesis and the grid."""
        add_input_arguments(parser, images=512, synthesis_images=1536)
        defaults = nullspace.NoiseConfig()
        noise = parser.add_argument_group("noises")
        noise.add_argument(
            "--noises", type=int_from(2, _MOST), default=100, metavar="M",
            help="from different starts (default: the paper's 100)",
        )  # fmt: skip
        noise.add_argument(
            "--eps", type=float_in(1e-9, 2), default=0.033, metavar="X",
            help="on mse_probability (default: the paper's 0.033)",
        )  # fmt: skip
        noise.add_argument(
            "--solver", choices=choices_of(nullspace.NoiseConfig, "solver"), default="paper",
            help="how they are found (default: paper, which is Algorithm 1)",
        )  # fmt: skip
        noise.add_argument(
            "--limit", type=float_in(1e-6, 1e4), default=defaults.limit, metavar="X",
            help=f"starts are uniform in (-X, X) (default: {defaults.limit:g})",
        )  # fmt: skip
        noise.add_argument(
            "--lr", type=float_in(1e-9, 1e4), default=defaults.lr, metavar="X",
            help=f"learning rate of the noise (default: {defaults.lr:g})",
        )  # fmt: skip
        noise.add_argument(
            "--max-steps", type=int_from(1, 10**9), default=defaults.max_steps, metavar="N",
            help=f"of a synthesis (default: {defaults.max_steps})",
        )  # fmt: skip
        noise.add_argument(
            "--synthesis-batch-size", type=int_from(1, 2**20), default=64, metavar="N",
            help="images of a step (default: 64)",
        )  # fmt: skip
        grid = parser.add_argument_group("combinations")
        grid.add_argument(
            "--pairs", type=int_from(1, _MOST), default=10, metavar="N", help="random ones (default: the paper's 10)"
        )
        grid.add_argument(
            "--grid", type=int_from(2, 101), default=11, metavar="N", help="values of each alpha (default: 11)"
        )
        grid.add_argument(
            "--alpha-max", type=float_in(1e-6, 1e3), default=2.0, metavar="X", help="the largest alpha (default: 2)"
        )
        grid.add_argument(
            "--eigenvalues", type=int_from(1, 10**4), default=128, metavar="K",
            help="of the mean squared Jacobian, the largest (default: 128)",
        )  # fmt: skip

    def run(self, args: argparse.Namespace, commands: Mapping[str, Command]) -> Iterator[str]:
        """As any figure; ranks other than the first of torchrun only synthesize."""
        if is_first_rank():
            yield from super().run(args, commands)
        else:
            _choose_alphas(args)
            _choose_pairs(args)
            inputs = _open(args)
            _begin_together(lambda: None)
            _synthesize(args, inputs, Path(args.output))

    def measure(self, args: argparse.Namespace, results: Results) -> None:
        """Synthesize, then measure single noises, pairs and the local picture."""
        from .closure_lab import LINE, ClosureLab

        alphas, pairs = _choose_alphas(args), _choose_pairs(args)
        inputs = _open(args)
        names = ("noises", "eps", "solver", "limit", "lr", "max_steps", "synthesis_batch_size")
        protocol = {**inputs.protocol, **{name: getattr(args, name) for name in names}}
        protocol |= {"pairs": [list(pair) for pair in pairs], "eigenvalues": args.eigenvalues}
        protocol |= {"alphas": alphas, "shares": list(LINE), **_reader(inputs)}
        _begin_together(partial(results.begin, protocol, inputs.device))
        noises = _synthesize(args, inputs, results.folder)
        ClosureLab(inputs, results, noises, alphas, args.seed).measure(pairs, args.eigenvalues)

    def report(self, protocol: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], parts: Path) -> FigureReport:
        """Tables of scaling and of pairs, findings, and the picture."""
        from .. import report

        return report.closure_report(protocol, lines)


def _choose_alphas(args: argparse.Namespace) -> list[float]:
    """The grid of one alpha; what is claimed of all alphas in (0, 1) would hold of none."""
    alphas = nullspace.even_steps(args.alpha_max, args.grid)
    if not any(0 < alpha < 1 for alpha in alphas):
        raise OptionError(
            f"--grid {args.grid}, --alpha-max {args.alpha_max:g}: expected an alpha between 0 and 1, found steps of "
            f"{alphas[1]:g} from 0. Give a larger --grid or a smaller --alpha-max."
        )
    return alphas


def _choose_pairs(args: argparse.Namespace) -> list[tuple[int, int]]:
    """The pairs, by their noises' numbers; before anything is built, as there may not be so many."""
    generator = torch.Generator().manual_seed(derive_seed(args.seed, _PAIRS))
    return nullspace.draw_pairs(args.noises, args.pairs, generator)


def _open(args: argparse.Namespace) -> Inputs:
    from .closure_synthesis import use_own_gpu

    use_own_gpu()
    inputs = open_inputs(args)
    return inputs


def _reader(inputs: Inputs) -> dict[str, str]:
    """The part that reads tokens without a LayerNorm, if there is one: noise is not centred per token then."""
    from .. import models

    reader = models.reader_without_layer_norm(inputs.model, inputs.measured.pixels[:1])
    if reader is None:
        return {}
    _logger.warning(
        "this model reads a token's mean, which a pre-LN transformer's layer norms take off: %s has no LayerNorm in "
        "front. Noise and its controls are not centred per token.",
        reader,
    )
    return {"reader": reader}


def _begin_together(begin: Any) -> None:
    """``begin`` on the first rank while the others wait; then all go their own ways, without a process group."""
    with process_group(torch.device("cpu")) as device:
        on_first_rank(begin, device)


def _synthesize(args: argparse.Namespace, inputs: Inputs, folder: Path) -> list[nullspace.Noise]:
    from .closure_synthesis import synthesize_all

    names = ("eps", "solver", "limit", "lr", "max_steps")
    config = nullspace.NoiseConfig(**{name: getattr(args, name) for name in names})
    parts = parts_of(folder, ClosureExperiment.name)
    return synthesize_all(
        inputs, parts, config, count=args.noises, batch_size=args.synthesis_batch_size, seed=args.seed
    )
