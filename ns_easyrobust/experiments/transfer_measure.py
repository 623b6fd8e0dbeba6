"""Measures noises of one model on all models and images; what is done is kept, so that a second call goes on."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .. import nullspace
from ..utils import derive_seed, torch
from .results import Results

if TYPE_CHECKING:
    from tqdm import tqdm

    from ..models import NormalizedModel
    from .image_set import ImageSet

    Measured = dict[str, list[nullspace.OutputChange | nullspace.ImageInfluence]]

# What seeds are derived from, beside the source's weights and the number of the noise.
_SYNTHESIS, _STREAM, _CONTROLS, _SAMPLE, _SAMPLE_ORDER, _SAMPLE_RANDOM, _VALID, _VALID_ORDER = range(8)
_FINAL_IMAGES = 512  # that the sphere solver sets its final radius on, outside its pool


class TransferLab:
    """Makes the noises of a model, and measures them.

    Args:
        args: of the experiment.
        by_label: the models, on one device.
        digests: of their weights.
        sets: images by name, on it too.
        bar: counts parts: a source, a target, a set of images and a kind of noise.
        centre: whether encoder noise and its controls lose each token's mean, which all models' layer norms take away.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        by_label: Mapping[str, NormalizedModel],
        digests: Mapping[str, str],
        sets: Mapping[str, ImageSet],
        results: Results,
        bar: tqdm[Any],
        *,
        centre: bool,
    ) -> None:
        self.args, self.models, self.digests, self.sets = args, by_label, digests, sets
        self.results, self.bar, self.centre = results, bar, centre
        first = next(iter(by_label.values()))
        self.patch_size = nullspace.find_projection(first).kernel_size[0]
        self._valid_made: dict[tuple[str, str], list[torch.Tensor]] = {}

    def measure(self, source: str) -> None:
        """All that is not known yet of the noises of the model ``source``."""
        for kind in self.args.kinds:
            for target in self.models:
                for images in self.sets:
                    self.bar.set_postfix_str(f"{kind}, {source} on {target}")
                    where = {"source": source, "target": target, "images": images, "kind": kind}
                    if not self.results.find(**where):
                        found = getattr(self, f"_{kind}")(source, target, self.sets[images])
                        self.results.add(*({**where, **line} for line in _lines(*found)))
                    self.bar.update()

    def _seed(self, source: str, use: int, number: int) -> int:
        """One of its own for each model, so that noises of two share neither start nor order nor controls."""
        return derive_seed(self.args.seed, int(self.digests[source][:16], 16), use, number)

    def _seeded(self, source: str, use: int, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed(source, use, number))

    def _encoder(self, source: str, target: str, images: ImageSet) -> tuple[Measured, list[float]]:
        """Noises that the solver finds on the images to make noise with, on the patch embedding's output."""
        config = self._config()
        probe = nullspace.InfluenceProbe(self.models[target], images.batches(self.args.batch_size), config)
        found: Measured = {}
        norms = []
        for number in range(self.args.noises):
            value = self._synthesized(source, number).value
            controls = nullspace.encoder_controls(
                value, generator=self._seeded(source, _CONTROLS, number), centre=self.centre
            )
            norms.append(float(controls.noise.double().norm()))
            for control, own in controls._asdict().items():
                found.setdefault(control, []).append(probe.per_image(own))
        return found, norms

    def _config(self) -> nullspace.NoiseConfig:
        args, searched = self.args, self.sets["found on"]
        batches, final = -(-len(searched) // args.batch_size), -(-_FINAL_IMAGES // args.batch_size)
        return nullspace.NoiseConfig(
            solver=args.solver,
            eps=args.eps,
            max_steps=args.max_steps,
            pool=max(1, batches - min(final, batches // 2)) if args.solver in ("sphere", "sensitive") else -1,
        )

    def _synthesized(self, source: str, number: int) -> nullspace.Noise:
        path = self.results.parts / f"{self.digests[source][:24]}-{number}.pt"
        if path.exists():
            return nullspace.Noise.load(path)
        stream = self.sets["found on"].stream(self.args.batch_size, self._seed(source, _STREAM, number))
        generator = self._seeded(source, _SYNTHESIS, number)
        noise = nullspace.synthesize(self.models[source], stream, self._config(), generator=generator)
        replace(noise, trace=()).save(path)
        return noise

    def _patch(self, source: str, target: str, images: ImageSet) -> tuple[Measured, list[float]]:
        """Samples of Eq. 2, each one for all images; given to the model as floats, unclipped."""
        basis = nullspace.patch_nullspace(self.models[source], space="pixel")
        shape = images.pixels.shape[1:]
        batches = images.batches(self.args.batch_size)
        clean = [nullspace.pixel_logits(self.models[target], batch) for batch in batches]
        found: Measured = {}
        norms = []
        for number in range(self.args.noises):
            drawn = nullspace.sample_nullspace(
                basis, shape, self.patch_size, generator=self._seeded(source, _SAMPLE, number)
            )  # fmt: skip
            sample = nullspace.scaled_to_rms(drawn, self.args.rms)
            order, gaussian = (self._seeded(source, use, number) for use in (_SAMPLE_ORDER, _SAMPLE_RANDOM))
            random = torch.randn(sample.shape, generator=gaussian, dtype=sample.dtype)
            values = {
                "noise": sample,
                "permuted": nullspace.permuted_in_patches(sample, self.patch_size, generator=order),
                "random": random * (sample.norm() / random.norm()),
            }
            norms.append(float(sample.norm()))
            for control, value in values.items():
                change = nullspace.pixel_change(self.models[target], batches, [value] * len(batches), clean)
                found.setdefault(control, []).append(change)
        return found, norms

    def _valid(self, source: str, target: str, images: ImageSet) -> tuple[Measured, list[float]]:
        """Large valid noise of each image, and its elements in another valid order."""
        pixels = images.pixels[: self.args.valid_images]
        batches = pixels.split(self.args.batch_size)
        noises = self._valid_noises(source, batches, images.digest)
        orders = [
            nullspace.valid_permutation(
                batch, noise, self.patch_size, generator=self._seeded(source, _VALID_ORDER, number)
            )
            for number, (batch, noise) in enumerate(zip(batches, noises, strict=True))
        ]  # fmt: skip
        clean = [nullspace.pixel_logits(self.models[target], batch) for batch in batches]
        found: Measured = {
            control: [nullspace.pixel_change(self.models[target], batches, values, clean)]
            for control, values in (("noise", noises), ("permuted", orders))
        }
        squares = sum(float(noise.double().square().sum()) for noise in noises)
        return found, [math.sqrt(squares / len(pixels))]

    def _valid_noises(self, source: str, batches: tuple[torch.Tensor, ...], digest: str) -> list[torch.Tensor]:
        """Made once for all targets."""
        if (source, digest) not in self._valid_made:
            self._valid_made[source, digest] = [
                nullspace.valid_nullspace_noise(
                    self.models[source], batch, generator=self._seeded(source, _VALID, number)
                )
                for number, batch in enumerate(batches)
            ]
        return self._valid_made[source, digest]


def _lines(found: Measured, norms: list[float]) -> Iterator[dict[str, Any]]:
    """A line for the noise and each control: means of each noise, and their spread over images.

    ``error`` is the standard error over images of the mean over noises, ``ratio_error`` that of the logarithm of the
    ratio to the permutation's, ``norms`` those of the noises (rms over images where each has its own).
    """
    averages = {control: torch.stack([one.distance for one in changes]).mean(0) for control, changes in found.items()}
    for control, changes in found.items():
        per_image = averages[control]
        yield {
            "control": control,
            "n": len(per_image),
            "influences": [float(change.distance.mean()) for change in changes],
            "unchanged": [int(change.unchanged.sum()) for change in changes],
            "error": float(per_image.std()) / math.sqrt(len(per_image)),
            "ratio_error": nullspace.ratio_error(per_image, averages["permuted"]),
            "norms": norms,
        }
