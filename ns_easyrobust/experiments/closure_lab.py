"""Measures Figure 5: single noises scaled, pairs combined, and the local picture; each line kept as soon as known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .. import nullspace
from ..utils import derive_seed, torch
from .inputs import Inputs
from .results import Results

if TYPE_CHECKING:
    from ..nullspace import ImageInfluence, Noise

NULLSPACE, RANDOM, PERMUTED = "nullspace", "random", "permuted"
OUTSIDE = "random, without the eigenvectors found"
KINDS = (NULLSPACE, RANDOM, PERMUTED)
LINE = tuple(step / 5 for step in range(6))  # alpha1 of the convex combinations; alpha2 is 1 - alpha1
_RANDOM, _PERMUTED, _CHECK = 3, 4, 5  # what seeds are derived from, beside --seed and the noise's number
_CHECKED = (1, 4, 16, 64)  # eigenvectors along which the quadratic is checked, by their rank
_CHECK_SHARES = (0.1, 1.0)  # of eps that the quadratic predicts in these checks


class ClosureLab:
    """The three kinds of noise, on the images to measure on.

    Random and permuted noise number i is scaled to the influence that nullspace noise number i has on these images.

    Args:
        noises: as they were found.
        alphas: grid of one alpha.
    """

    def __init__(
        self, inputs: Inputs, results: Results, noises: Sequence[Noise], alphas: Sequence[float], seed: int
    ) -> None:
        self.inputs, self.results, self.noises, self.alphas, self.seed = inputs, results, noises, alphas, seed
        self._batches = inputs.measured.batches(inputs.protocol["batch_size"])
        self._config = nullspace.NoiseConfig(eps=results.protocol["eps"])
        self._is_centred = "reader" not in results.protocol

    @cached_property
    def probe(self) -> nullspace.InfluenceProbe:
        """Of the images to measure on."""
        return nullspace.InfluenceProbe(self.inputs.model, self._batches, self._config)

    @cached_property
    def jacobian(self) -> nullspace.SoftmaxJacobian:
        """At these images."""
        return nullspace.SoftmaxJacobian(self.inputs.model, self._batches)

    def measure(self, pairs: Sequence[tuple[int, int]], eigenvalues: int) -> None:
        """Add the lines that are not there yet."""
        from tqdm.auto import tqdm

        singles = [(kind, number) for number in range(len(self.noises)) for kind in KINDS]
        for kind, number in tqdm(singles, desc="single noises", disable=None):
            if self.results.find(part="single", kind=kind, number=number) is None:
                self.results.add(self._single(kind, number))
        if self.results.find(part="spectrum") is None:
            self.results.add(*self._local(eigenvalues))
        combinations = [(kind, index) for index in range(len(pairs)) for kind in KINDS]
        for kind, index in tqdm(combinations, desc="pairs", disable=None):
            if self.results.find(part="pair", kind=kind, index=index) is None:
                self.results.add(self._pair(kind, index, pairs[index]))

    def direction(self, kind: str, number: int) -> torch.Tensor:
        """(1, *tokens) of norm 1, centred per token unless a part of the model reads its mean; always the same."""
        noise = self.noises[number]
        if kind == NULLSPACE:
            return self._unit(noise.value)
        use = _RANDOM if kind == RANDOM else _PERMUTED
        generator = torch.Generator().manual_seed(derive_seed(self.seed, use, number))
        if kind == RANDOM:
            return self._unit(torch.randn(noise.value.shape, generator=generator))
        return self._unit(noise.permuted(generator).value)

    def _unit(self, value: torch.Tensor) -> torch.Tensor:
        return nullspace.unit_direction(value, self._is_centred)

    def value(self, kind: str, number: int) -> torch.Tensor:
        """The noise itself, once it has been measured alone."""
        single = self.results.find(part="single", kind=kind, number=number)
        assert single is not None
        return single["norm"] * self.direction(kind, number)

    def _single(self, kind: str, number: int) -> dict[str, Any]:
        """Influence of alpha v for each alpha, and of v itself."""
        direction, noise = self.direction(kind, number), self.noises[number]
        found: dict[str, Any] = {"part": "single", "kind": kind, "number": number}
        if kind == NULLSPACE:
            value = noise.value.double()
            norm = float((nullspace.centred(value) if self._is_centred else value).norm())
            found |= {"steps": noise.steps, "stopped": noise.stopped, "untouched": noise.untouched}
        else:
            own = self.results.find(part="single", kind=NULLSPACE, number=number)
            assert own is not None
            norm = nullspace.norm_at_influence(
                lambda norm: self.probe.influence(direction, norm), own["influence"], self._first_guess(kind, number)
            )
        at_1 = self.probe.per_image(norm * direction)
        found |= {"norm": norm, "influence": _mean(at_1), "unsquared": _unsquared(at_1), "error": _error(at_1)}
        found["unchanged"] = float(at_1.unchanged.double().mean())
        nothing = at_1._replace(distance=torch.zeros_like(at_1.distance))
        known = {0.0: nothing, 1.0: at_1}
        scaled = [known.get(alpha) or self.probe.per_image(alpha * norm * direction) for alpha in self.alphas]
        for name, summary in (("influences", _mean), ("errors", _error), ("unsquareds", _unsquared)):
            found[name] = [summary(each) for each in scaled]
        return found

    def _first_guess(self, kind: str, number: int) -> float:
        before = self.results.find(part="single", kind=kind, number=number - 1)
        return float(before["norm"]) if before is not None else 1.0

    def _pair(self, kind: str, index: int, numbers: tuple[int, int]) -> dict[str, Any]:
        """Influence on the grid, on the line of convex combinations, and the quadratic form of the plane."""
        first, second = (self.value(kind, number) for number in numbers)
        form = nullspace.PairForm.of(self.jacobian.responses(first), self.jacobian.responses(second))
        singles = [self.results.find(part="single", kind=kind, number=number) for number in numbers]

        def influence(weights: tuple[float, float]) -> tuple[float, float]:
            for own, (weight, other) in zip(singles, (weights, weights[::-1]), strict=True):
                assert own is not None
                if other == 0 and weight == 1:
                    return own["influence"], own["error"]
                if other == 0 and weight in self.alphas:
                    place = self.alphas.index(weight)
                    return own["influences"][place], own["errors"][place]
            each = self.probe.per_image(nullspace.combined(first, second, weights))
            return _mean(each), _error(each)

        grid = [[influence((one, other)) for other in self.alphas] for one in self.alphas]
        line = [influence((share, 1 - share)) for share in LINE]
        found: dict[str, Any] = {"part": "pair", "kind": kind, "index": index, "numbers": list(numbers)}
        found |= {name: [[one[place] for one in row] for row in grid] for place, name in enumerate(("grid", "errors"))}
        found |= {"line": [mean for mean, _ in line], "line_errors": [error for _, error in line]}
        return found | {"form": list(form)}

    def _local(self, eigenvalues: int) -> Iterable[dict[str, Any]]:
        """The spectrum, and checks of the quadratic: along eigenvectors, and along what none of the images notices."""
        spectrum = self.jacobian.spectrum(eigenvalues, self.seed)
        yield {
            "part": "spectrum", "values": [float(f"{value:.6g}") for value in spectrum.values],
            "dimension": spectrum.dimension, "rank": spectrum.rank, "tokens": list(spectrum.vectors.shape[1:]),
            "classes": self.jacobian.classes,
        }  # fmt: skip
        others = self.inputs.searched.pixels[: self.jacobian.n].split(self.inputs.protocol["batch_size"])
        elsewhere = nullspace.InfluenceProbe(self.inputs.model, others, self._config)
        for rank in _CHECKED:
            if rank <= len(spectrum.values) and spectrum.values[rank - 1] > 0:
                direction = spectrum.vectors[rank - 1 : rank]
                for share in _CHECK_SHARES:
                    norm = math.sqrt(share * self._config.eps / spectrum.values[rank - 1])
                    yield self._check(f"eigenvector {rank}", direction, norm, elsewhere)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, _CHECK))
        start = self._unit(torch.randn(1, *spectrum.vectors.shape[1:], generator=generator))
        found = spectrum.vectors.flatten(1).double()
        rest = start.flatten().double() - found.T @ (found @ start.flatten().double())
        outside = self._unit(rest.view_as(start))
        own = self.results.find(part="single", kind=RANDOM, number=0)
        assert own is not None
        for name, direction in (("random", start), (OUTSIDE, outside)):
            yield self._check(name, direction, own["norm"], elsewhere)
        for number in range(len(self.noises)):
            for kind in KINDS:
                predicted = self.jacobian.influence(self.value(kind, number))
                yield {"part": "quadratic", "kind": kind, "number": number, "predicted": predicted}

    def _check(
        self, name: str, direction: torch.Tensor, norm: float, elsewhere: nullspace.InfluenceProbe
    ) -> dict[str, Any]:
        predicted = self.jacobian.influence(norm * direction)
        measured, other = (probe.per_image(norm * direction) for probe in (self.probe, elsewhere))
        found = {"part": "check", "direction": name, "norm": norm, "predicted": predicted, "measured": _mean(measured)}
        return found | {"error": _error(measured), "others": _mean(other), "others_error": _error(other)}


def _mean(each: ImageInfluence) -> float:
    return _short(each.distance.mean())


def _unsquared(each: ImageInfluence) -> float:
    """Mean of the L2 distances, as Eq. 5 has it."""
    return _short(each.distance.sqrt().mean())


def _error(each: ImageInfluence) -> float:
    """Standard error over images of the mean."""
    return _short(each.distance.std() / math.sqrt(len(each.distance)), 3)


def _short(value: torch.Tensor, digits: int = 7) -> float:
    """Without the digits that float32 does not have."""
    return float(f"{float(value):.{digits}g}")
