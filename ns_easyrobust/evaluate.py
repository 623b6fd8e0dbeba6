"""Evaluations with EasyRobust's signatures: top-1 in percent, and a record of it where one is asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import transforms
from torchvision.datasets import ImageFolder

from . import attacks
from .data import Preprocessing, describe_transform, image_folder
from .distributed import world_size
from .errors import DataError, ModelError, OptionError
from .judging import Judged, Recorder, judge
from .vit import find_normalize

_logger = logging.getLogger(__name__)

# Top-1 error of AlexNet on each corruption, the denominators of mCE (Hendrycks and Dietterich 2019).
ALEXNET_ERROR = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
SEVERITIES = range(1, 6)
SUITES = ("val", "fgsm", "cw", "c")


def _open(model: nn.Module, data_dir: str | Path, transform: Any) -> ImageFolder | None:
    """The folder of an evaluation; None, with a warning that names it, where it is missing."""
    if not Path(data_dir).exists():
        _logger.warning("%s does not exist: skipped", data_dir)
        return None
    if transform is None and find_normalize(model) is None:
        raise ModelError(
            "the model has no normalisation inside and no test_transform was given: expected one of both. "
            "Wrap it (load_model does), or pass the transform that its weights were trained with."
        )
    return image_folder(data_dir, transform or Preprocessing().transform())


def _protocol(folder: ImageFolder, batch_size: int, **rest: Any) -> dict[str, Any]:
    return {**describe_transform(folder.transform), "batch_size": batch_size, **rest}


def evaluate_imagenet_val(
    model: nn.Module,
    data_dir: str | Path,
    test_batchsize: int = 128,
    test_transform: Any = None,
    dist: bool = False,
    *,
    records: Recorder | None = None,
    workers: int = 4,
    seed: int = 0,
) -> float | None:
    """Top-1 in percent on a folder with one folder a class; None where it is missing.

    Args:
        model: pixels in [0, 1] to logits; or anything, with its own ``test_transform``.
        test_transform: default: shorter side to 256 bicubic, centre crop 224, [0, 1].
        dist: share the batches over torchrun's processes.
        records: where to keep the result.
        workers: data loading processes.
        seed: of what an attack draws, the same for any number of processes.

    Raises:
        ModelError: no normalisation inside the model and no ``test_transform``.
        DataError: not an image folder, or an image that cannot be decoded.
    """
    folder = _open(model, data_dir, test_transform)
    if folder is None:
        return None
    judged = judge(model, folder, test_batchsize, share=dist, workers=workers, seed=seed, title="imagenet-val")
    if records is not None:
        records.add(judged, "imagenet-val", _protocol(folder, test_batchsize))
    return judged.top1


def evaluate_imagenet_fgsm(
    model: nn.Module,
    data_dir: str | Path,
    test_batchsize: int = 128,
    test_transform: Any = None,
    dist: bool = False,
    *,
    epsilon: float = 1 / 255,
    records: Recorder | None = None,
    workers: int = 4,
    seed: int = 0,
) -> float | None:
    """Top-1 in percent under FGSM of L-infinity radius ``epsilon`` (pixels of [0, 1]; the paper's is 1/255).

    Arguments and errors as :func:`evaluate_imagenet_val`; also DataError for pixels outside [0, 1].
    """
    folder = _open(model, data_dir, test_transform)
    if folder is None:
        return None
    judged = judge(
        model,
        folder,
        test_batchsize,
        share=dist,
        workers=workers,
        seed=seed,
        title=f"fgsm {255 * epsilon:g}/255",
        attack=lambda inner, pixels, labels: attacks.fgsm(inner, pixels, labels, epsilon=epsilon),
    )
    if records is not None:
        records.add(judged, "fgsm", _protocol(folder, test_batchsize, epsilon=epsilon, norm="linf"))
    return judged.top1


def evaluate_imagenet_cw(
    model: nn.Module,
    data_dir: str | Path,
    test_batchsize: int = 128,
    test_transform: Any = None,
    dist: bool = False,
    *,
    radii: Sequence[float] = (),
    c: float = 1.0,
    kappa: float = 0.0,
    steps: int = 50,
    lr: float = 0.01,
    records: Recorder | None = None,
    workers: int = 4,
    seed: int = 0,
) -> float | None:
    """Top-1 in percent under torchattacks' CW (L2), whose perturbation is unbounded.

    Beside it the records get the mean L2 over the images that were fooled, and, for each of
    ``radii`` (L2, pixels of [0, 1]), the accuracy when only perturbations up to that radius
    count as fooling. Arguments and errors as :func:`evaluate_imagenet_fgsm`.
    """
    folder = _open(model, data_dir, test_transform)
    if folder is None:
        return None
    settings: dict[str, Any] = {"c": c, "kappa": kappa, "steps": steps, "lr": lr}

    def attack(inner: nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        adversarial = attacks.cw(inner, pixels, labels, **settings)
        with torch.no_grad():  # what was wrong from the start needs no perturbation
            wrong = inner(pixels).argmax(-1) != labels
        return torch.where(wrong[:, None, None, None], pixels, adversarial)

    judged = judge(
        model,
        folder,
        test_batchsize,
        share=dist,
        workers=workers,
        seed=seed,
        title="cw",
        attack=attack,
    )
    if records is not None:
        protocol = _protocol(folder, test_batchsize, norm="l2", **settings)
        records.add(judged, "cw", protocol | {"radius": "unbounded"})
        for radius in radii:
            within = Judged(judged.paths, judged.right | (judged.l2 > radius), judged.l2)
            records.add(within, "cw", protocol | {"radius": radius})
        needed = judged.l2[~judged.right & (judged.l2 > 0)]
        if len(needed):
            records.add_value("cw", "mean_l2", float(needed.mean()), unit="", n=len(needed), protocol=protocol)
    return judged.top1


def _severities(data_dir: Path, corruption: str) -> list[int]:
    return [s for s in SEVERITIES if (data_dir / corruption / str(s)).is_dir()]


def mean_corruption_error(accuracy: dict[str, float]) -> float:
    """mCE as a fraction from each corruption's mean accuracy in percent (all fifteen)."""
    errors = [(100 - accuracy[name]) / (100 * alexnet) for name, alexnet in ALEXNET_ERROR.items()]
    return sum(errors) / len(errors)


def evaluate_imagenet_c(
    model: nn.Module,
    data_dir: str | Path,
    test_batchsize: int = 128,
    test_transform: Any = None,
    dist: bool = False,
    *,
    records: Recorder | None = None,
    workers: int = 4,
    seed: int = 0,
) -> tuple[float, float | None] | None:
    """Mean top-1 in percent over the corruption folders present, and mCE as a fraction (EasyRobust's units).

    mCE is None unless all 75 folders ``<corruption>/<severity>`` are there. Images are taken
    as they are (ImageNet-C is 224 wide) unless ``test_transform`` is given. Otherwise as
    :func:`evaluate_imagenet_val`.
    """
    root = Path(data_dir)
    transform = test_transform or (transforms.ToTensor() if find_normalize(model) is not None else None)
    present = {name: _severities(root, name) for name in ALEXNET_ERROR} if root.exists() else {}
    accuracy: dict[str, float] = {}
    for name, severities in present.items():
        parts = []
        for severity in severities:
            folder = _open(model, root / name / str(severity), transform)
            assert folder is not None
            title = f"{name} {severity}"
            parts.append(judge(model, folder, test_batchsize, share=dist, workers=workers, seed=seed, title=title))
            if records is not None:
                protocol = _protocol(folder, test_batchsize, corruption=name, severity=severity)
                records.add(parts[-1], "imagenet-c", protocol)
        if parts:
            accuracy[name] = sum(part.top1 for part in parts) / len(parts)
    if not accuracy:
        if root.exists():
            raise DataError(f"{root}: expected folders <corruption>/<severity 1-5>/<class>, found none.")
        _logger.warning("%s does not exist: skipped", root)
        return None
    whole = all(len(severities) == len(SEVERITIES) for severities in present.values())
    mce = mean_corruption_error(accuracy) if whole else None
    if mce is None:
        found = sum(map(len, present.values()))
        _logger.warning("%s: %d of 75 folders; no mCE from a part", root, found)
    elif records is not None:
        records.add_value("imagenet-c", "mce", 100 * mce, n=parts[-1].n, protocol={"batch_size": test_batchsize})
    return sum(accuracy.values()) / len(accuracy), mce


def run_suites(
    model: nn.Module,
    data_dir: str | Path,
    suites: Iterable[str],
    *,
    batch_size: int,
    transform: Any,
    epsilons: Sequence[float],
    radii: Sequence[float],
    records: Recorder,
    workers: int,
    seed: int = 0,
) -> int:
    """Every evaluation named in ``suites`` (of :data:`SUITES`) under EasyRobust's folder names; how many ran."""
    root, dist = Path(data_dir), world_size() > 1
    val = root / "imagenet-val"
    common: dict[str, Any] = {"dist": dist, "records": records, "workers": workers, "seed": seed}
    results: list[Any] = []
    for suite in suites:
        if suite == "val":
            results.append(evaluate_imagenet_val(model, val, batch_size, transform, **common))
        elif suite == "fgsm":
            for epsilon in epsilons:
                results.append(evaluate_imagenet_fgsm(model, val, batch_size, transform, epsilon=epsilon, **common))
        elif suite == "cw":
            results.append(evaluate_imagenet_cw(model, val, batch_size, transform, radii=radii, **common))
        elif suite == "c":
            results.append(evaluate_imagenet_c(model, root / "imagenet-c", batch_size, transform, **common))
        else:
            raise OptionError(f"--suite: expected one of {', '.join(SUITES)}, found {suite!r}.")
    return sum(result is not None for result in results)
