"""What the experiment ``fingerprint`` measures of models: likenesses, symmetric copies, accuracies, attacks."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from itertools import permutations
from typing import TYPE_CHECKING, Any

from .. import models, nullspace
from ..errors import CheckpointError, ModelError
from ..utils import derive_seed, torch

if TYPE_CHECKING:
    from torch import nn

    from ..nullspace import Fingerprint, PatchCovariance
    from .fingerprint_pool import Member
    from .image_set import ImageSet

_PLACES = 6  # digits that are kept of a likeness
STRENGTHS = (1e-4, 3e-4, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # of hidden noise


class Views:
    """Fingerprints in one space in three ways: row space, weighted, and weighted in the metric of images' patches.

    Args:
        space: common to all.
        covariance: of patches.
    """

    def __init__(self, space: str, covariance: PatchCovariance) -> None:
        self.space, self.covariance = space, covariance
        self._known: dict[Any, tuple[torch.Tensor, ...]] = {}
        self._roots: dict[Any, torch.Tensor] = {}

    def of(self, found: Fingerprint) -> tuple[torch.Tensor, ...]:
        """Rows of each way, for ``nullspace.likeness``: three matrices (j, n), float64, j at most k.

        Raises:
            ModelError: the pixel space of a fingerprint whose normalisation is not known.
        """
        known = found.digest, found.std  # equal weights behind other normalisations see other pixels
        if known not in self._known:
            key = None if self.space == "pixel" else found.std
            if key not in self._roots:
                self._roots[key] = self.covariance.root(self.space, key)
            metric = self._roots[key]
            self._known[known] = (
                found.rows(self.space),
                found.rows(self.space, weighted=True),
                found.rows(self.space, metric, weighted=True),
            )
        return self._known[known]

    def likeness(self, one: Fingerprint, other: Fingerprint) -> list[float]:
        """In each way: three numbers in [0, 1], rounded."""
        pairs = zip(self.of(one), self.of(other), strict=True)
        return [round(nullspace.likeness(*pair), _PLACES) for pair in pairs]

    def copies(self, found: Fingerprint) -> list[list[float]]:
        """Likenesses of a model to each of its own symmetric copies.

        They see what it would see of mirrored, turned and transposed patches with the channels in another order: 47 of
        RGB, subspaces of the same spectrum that no one has trained for.
        """
        side, channels = found.patch_size, found.input_dim // found.patch_size**2
        likenesses = []
        for turns in range(4):
            for mirrored in (False, True):
                for order in permutations(range(channels)):
                    if turns or mirrored or order != tuple(range(channels)):
                        moved = [
                            _moved(rows.view(-1, channels, side, side), turns, mirrored, order)
                            for rows in (found.basis, found.strengths)
                        ]
                        std = None if found.std is None else tuple(found.std[place] for place in order)
                        digest = f"{found.digest} {turns} {mirrored} {order}"
                        copy = replace(found, basis=moved[0], strengths=moved[1], std=std, digest=digest)
                        likenesses.append(self.likeness(found, copy))
                        del self._known[digest, std]
        return likenesses

    def low_pass(self, found: Fingerprint) -> float:
        """Likeness to the k directions in which patches of images vary most."""
        _, vectors = self.covariance.spectrum(self.space, found.std)
        return round(nullspace.likeness(self.of(found)[0], vectors[: found.rank]), _PLACES)


def _moved(kernels: torch.Tensor, turns: int, mirrored: bool, order: tuple[int, ...]) -> torch.Tensor:
    """Kernels (k, C, p, p) turned by ``turns`` right angles, mirrored and of reordered channels, as rows (k, n)."""
    return torch.rot90(kernels.flip(3) if mirrored else kernels, turns, (2, 3))[:, list(order)].flatten(1)


def facts(member: Member, views: Views) -> dict[str, Any]:
    """What is told of one model: rank, share of low-pass, and how far the row space has come from its start."""
    content = {} if member.path.suffix == ".safetensors" else models.read_checkpoint(member.path).content
    line: dict[str, Any] = {"k": member.found.rank, "low_pass": views.low_pass(member.found), "start": None}
    if isinstance(start := content.get("start_embedding"), torch.Tensor):
        line["start"] = views.likeness(nullspace.fingerprint_of(start, std=member.found.std), member.found)[0]
    return line


def open_classifier(member: Member, args: argparse.Namespace, device: torch.device) -> nn.Module | None:
    """The whole model on ``device``, in eval mode; None of a fingerprint, or of weights of no known architecture.

    Args:
        args: ``model``, ``model_kwargs``, ``use_ema`` and ``img_size`` of the experiment's flags.
    """
    options = {} if args.img_size is None else {"img_size": args.img_size}
    logger = logging.getLogger("ns_easyrobust.models")  # two lines a model
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        model: nn.Module = models.load_model(
            args.model, member.path, ema=args.use_ema, model_kwargs=args.model_kwargs, **options
        )
    except (CheckpointError, ModelError):
        return None
    finally:
        logger.setLevel(level)
    return model.eval().to(device)


def answers(model: nn.Module, images: ImageSet, batch: int) -> torch.Tensor:
    """The class of each image, (n,)."""
    with torch.no_grad():
        return torch.cat([nullspace.pixel_logits(model, pixels).argmax(-1) for pixels in images.batches(batch)])


def judged(found: torch.Tensor, images: ImageSet, clean: torch.Tensor | None = None) -> dict[str, Any]:
    """Counts: of how many images the class is right, and, of how many it is that of ``clean``."""
    right = None if images.labels is None else int((found == images.labels).sum())
    return {"n": len(found), "right": right, "unchanged": None if clean is None else int((found == clean).sum())}


def attacked(
    member: Member, model: nn.Module, views: Views, images: ImageSet, seed: int, batch: int
) -> list[dict[str, Any]]:
    """A line a strength of hidden noise: likenesses to the model before, and what it does then.

    The weights are put back.

    Args:
        model: whole, on the device of ``images``.
        images: (N, C, H, W) in [0, 1].
        batch: images at a time.

    Returns:
        Of each strength, 0 and those of ``STRENGTHS`` (rms of the embedding's change relative to the embedding's):
        ``likeness`` [row space, weighted, on images], each in [0, 1]; ``relative_norm`` of the noise to the weight;
        ``n``, ``right`` and ``unchanged`` of :func:`judged`, counts of images.

    Raises:
        ModelError: noise so large that no nullspace is left.
    """
    projection = nullspace.find_projection(model)
    before = projection.weight.detach().clone()
    clean = answers(model, images, batch)
    lines = [{"strength": 0.0, "likeness": [1.0] * 3, **judged(clean, images, clean)}]
    try:
        for number, strength in enumerate(STRENGTHS):
            generator = torch.Generator().manual_seed(derive_seed(seed, number))
            noise = nullspace.hidden_noise(
                before, views.covariance, strength, std=member.found.std, generator=generator
            )
            with torch.no_grad():
                projection.weight.copy_(before + noise)
            changed = nullspace.fingerprint_of(projection.weight, std=member.found.std)
            lines.append(
                {
                    "strength": strength,
                    "likeness": views.likeness(member.found, changed),
                    "relative_norm": float(noise.norm() / before.norm()),
                    **judged(answers(model, images, batch), images, clean),
                }
            )
    finally:
        with torch.no_grad():
            projection.weight.copy_(before)
    return lines


def rotated(member: Member, model: nn.Module, views: Views, seed: int) -> list[float]:
    """1 - likeness, unrounded, to what leaves a fingerprint as it is: A W of row spaces, Q W + 1 v' of weighted ones.

    A of N(0, 1), invertible and of no special form; Q orthogonal, with Q 1 = 1; v as long as all of W.
    """
    weight = nullspace.find_projection(model).weight.detach().double().cpu()
    generator = torch.Generator().manual_seed(seed)
    count, matrix = len(weight), weight.flatten(1)
    mixing = torch.randn(count, count, generator=generator, dtype=torch.float64)
    ones = torch.full((count, 1), count**-0.5, dtype=torch.float64)
    basis = torch.linalg.qr(torch.cat([ones, mixing[:, 1:]], 1)).Q  # its first column is +-ones
    turn = torch.linalg.qr(torch.randn(count - 1, count - 1, generator=generator, dtype=torch.float64)).Q
    inner = torch.eye(count, dtype=torch.float64)
    inner[1:, 1:] = turn
    shift = torch.randn(1, matrix.shape[1], generator=generator, dtype=torch.float64)
    shift *= matrix.norm() / (shift.norm() * count**0.5)
    turned = basis @ inner @ basis.T @ matrix + shift
    found = []
    for place, changed in enumerate((mixing @ matrix, turned, turned)):
        other = nullspace.fingerprint_of(changed.view_as(weight), std=member.found.std)
        found.append(1 - nullspace.likeness(views.of(member.found)[place], views.of(other)[place]))
    return found
