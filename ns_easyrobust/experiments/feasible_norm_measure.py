"""Measures feasible norms model by model; what is done is kept, so that a second call goes on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import nullspace
from ..errors import DataError, OptionError
from ..utils import derive_seed, nn, os_errors_as_output_errors, parse_json, read_bounded, torch, write_text

if TYPE_CHECKING:
    from tqdm import tqdm

    from ..nullspace import Noise
    from .image_set import ImageSet

_logger = logging.getLogger(__name__)
_MOST_BYTES = 2**26  # of a file of norms
_FINAL_IMAGES = 512  # that the sphere solver sets its final radius on, outside its pool
PRECISION = 0.01
# What seeds are derived from, beside the number of the direction.
_SYNTHESIS, _STREAM, _RANDOM, _PERMUTED = range(4)


@dataclass(frozen=True)
class NormProtocol:
    """All that decides the norms beside the trained models; plain values.

    Attributes:
        start: digest of the start's weights.
        eps: threshold on mse_probability.
        max_steps: of each synthesis.
        directions: of each kind.
        direction_seed: of directions and images.
        batch_size: of the syntheses.
        t_max: norm at which the search for a feasible norm ends.
        autocast: precision of the forwards.
        preprocessing: of the images.
        n, images: number and digest of those measured on.
        synthesis_n, synthesis_images: of those for syntheses.
    """

    start: str
    eps: float
    max_steps: int
    directions: int
    direction_seed: int
    batch_size: int
    t_max: float
    autocast: str
    preprocessing: str
    n: int
    images: str
    synthesis_n: int
    synthesis_images: str

    def keep_in(self, folder: Path) -> None:
        """Write it there, if there is none yet.

        Raises:
            OptionError: there is another one.
            DataError: there is something else.
        """
        path = folder / "protocol.json"
        now = asdict(self)
        before = _read_json(path)
        for name in now if before else ():
            if before.get(name) != now[name]:
                raise OptionError(
                    f"{name}: expected {before.get(name)}, with which {folder} was begun, found {now[name]}. Give the "
                    "same flags, images and start, or another --output."
                )
        if not before:
            write_text(path, json.dumps(now, indent=1) + "\n")

    def config(self, solver: str = "sphere") -> nullspace.NoiseConfig:
        """The settings of a synthesis; its pool is all images but those that set the final radius."""
        batches, final = -(-self.synthesis_n // self.batch_size), -(-_FINAL_IMAGES // self.batch_size)
        return nullspace.NoiseConfig(
            solver=solver,
            eps=self.eps,
            max_steps=self.max_steps,
            autocast=self.autocast,
            pool=max(1, batches - min(final, batches // 2)),
        )


def _read_json(path: Path) -> dict[str, Any]:
    """A file of this experiment; {} where there is none."""
    try:
        content = parse_json(read_bounded(path, _MOST_BYTES))
        if not isinstance(content, dict):
            raise ValueError("no object")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: expected what this experiment wrote, found other things ({error}). Delete it."
        ) from error
    return content


@dataclass(frozen=True)
class Direction:
    """A direction along which a norm is measured.

    Attributes:
        kind, name: which one.
        unit: (1, *tokens), centred per token and of norm 1.
        noise: the noise whose direction it is, if it was synthesized.
    """

    kind: str
    name: str
    unit: torch.Tensor
    noise: Noise | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of its values."""
        return hashlib.sha256(self.unit.contiguous().numpy().tobytes()).hexdigest()


class NormLab:
    """Synthesizes noises and measures norms, each once: files in ``folder`` keep them by the digest of the weights.

    Args:
        folder: of the experiment.
        measured, searched: images to measure on and to synthesize with, on the models' device.
        bar: counts syntheses and norms, those that were done before too.
    """

    def __init__(
        self, folder: Path, protocol: NormProtocol, measured: ImageSet, searched: ImageSet, bar: tqdm[Any]
    ) -> None:
        self.folder, self.protocol, self.measured, self.searched, self.bar = folder, protocol, measured, searched, bar
        for name in ("noises", "norms"):
            with os_errors_as_output_errors(folder / name):
                (folder / name).mkdir(parents=True, exist_ok=True)

    def synthesized(self, model: nn.Module, weights: str, kind: str, solver: str) -> list[Direction]:
        """The directions that ``solver`` finds on ``model``, whose digest is ``weights``: the same seeds for each."""
        found = []
        for number in range(self.protocol.directions):
            path = self.folder / "noises" / f"{weights[:24]}-{solver}-{number}.pt"
            if path.exists():
                noise = nullspace.Noise.load(path)
            else:
                self.bar.set_postfix_str(f"synthesis {number + 1}, {solver}")
                seeds = [derive_seed(self.protocol.direction_seed, use, number) for use in (_SYNTHESIS, _STREAM)]
                noise = nullspace.synthesize(
                    model,
                    self.searched.stream(self.protocol.batch_size, seeds[1]),
                    self.protocol.config(solver),
                    generator=torch.Generator().manual_seed(seeds[0]),
                )
                replace(noise, trace=()).save(path)
            self.bar.update()
            found.append(Direction(kind, str(number), nullspace.unit_direction(noise.value), noise))
        return found

    def controls(self, noises: list[Direction]) -> list[Direction]:
        """For each of ``noises`` a Gaussian one and its own elements permuted, all centred per token."""
        found = []
        for number, direction in enumerate(noises):
            assert direction.noise is not None
            seeds = [derive_seed(self.protocol.direction_seed, use, number) for use in (_RANDOM, _PERMUTED)]
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            random = torch.randn(direction.unit.shape, generator=generators[0])
            permuted = direction.noise.permuted(generators[1]).value
            for kind, value in (("random", random), ("permuted", permuted)):
                found.append(Direction(kind, str(number), nullspace.unit_direction(value)))
        return found

    def norms(self, model: nn.Module, weights: str, directions: list[Direction]) -> list[nullspace.FeasibleNorm]:
        """The feasible norm of ``model`` along each of ``directions``."""
        path = self.folder / "norms" / f"{weights[:24]}.json"
        known: dict[str, Any] = _read_json(path)
        probe = None
        for direction in directions:
            if direction.digest not in known:
                self.bar.set_postfix_str(direction.kind)
                if probe is None:
                    batches = self.measured.batches(self.protocol.batch_size)
                    probe = nullspace.InfluenceProbe(model, batches, self.protocol.config())
                found = probe.feasible_norm(direction.unit, self.protocol.t_max, PRECISION)
                known[direction.digest] = found._asdict()
                write_text(path, json.dumps(known, indent=1) + "\n")
            self.bar.update()
        try:
            return [nullspace.FeasibleNorm(**known[direction.digest]) for direction in directions]
        except TypeError as error:
            raise DataError(f"{path}: expected norms, found other things ({error}). Delete it.") from error


def norm_lines(
    model: Mapping[str, Any], directions: list[Direction], norms: list[nullspace.FeasibleNorm], own: str, search: str
) -> list[dict[str, Any]]:
    """A line a direction; of those of kind ``own`` another one of kind ``search``, with the norm that the search found.

    Args:
        model: fields of every line.
    """
    lines = []
    for direction, found in zip(directions, norms, strict=True):
        where = {"direction": direction.name, "direction_sha256": direction.digest}
        lines.append({**model, "kind": direction.kind, **where, **found._asdict()})
    for direction in directions:
        if direction.kind == own and direction.noise is not None:
            noise = direction.noise
            where = {"direction": direction.name, "direction_sha256": direction.digest}
            searched = {"norm": noise.norm, "censored": False, "tests": noise.steps, "feasible": noise.stopped}
            lines.append({**model, "kind": search, **where, **searched})
    return lines
