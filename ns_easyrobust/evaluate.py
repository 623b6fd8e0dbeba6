"""Evaluations with EasyRobust's signatures: top-1 in percent, records and one bit an image beside it.

Every image counts once. Batches are cut once and dealt to ranks, each with a seed of its
own, so the number of processes changes no result.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from tqdm.auto import tqdm

from . import attacks
from .data import Preprocessing, describe_transform, image_folder
from .distributed import rank, sum_over_ranks, world_size
from .errors import DataError, ModelError, OptionError
from .randomness import isolated, mix
from .records import Record, append_record, images_digest, save_right
from .vit import find_normalize, frozen, unwrap

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

Attack = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Recorder:
    """Where results go, and what every record of one evaluated checkpoint has in common.

    Attributes:
        path: the results file.
        common: fields of :class:`~ns_easyrobust.records.Record` that say which weights these are.
        protocol: what every evaluation shares (mean, std and where they came from, dtype).
    """

    path: Path
    common: dict[str, Any]
    protocol: dict[str, Any] = field(default_factory=dict)

    def add(self, judged: Judged, suite: str, protocol: dict[str, Any]) -> None:
        """Append a top-1 record and its bits."""
        label = self.common["label"]
        self.add_value(
            suite,
            "top1",
            judged.top1,
            n=judged.n,
            correct=int(judged.right.sum()),
            protocol=protocol,
            images=images_digest(judged.paths),
            right=save_right(self.path.parent, f"{label}-{suite}", judged.paths, judged.right),
        )

    def add_value(self, suite: str, metric: str, value: float, *, protocol: dict[str, Any], **rest: Any) -> None:
        """Append a record of any metric."""
        append_record(
            self.path,
            Record(suite=suite, metric=metric, value=value, protocol=self.protocol | protocol, **self.common, **rest),
        )


@dataclass(frozen=True)
class Judged:
    """Which images were right.

    Attributes:
        paths: relative to the data folder.
        right: (n,) bool.
        l2: (n,) L2 norm of what an attack added, in pixels of [0, 1]; zeros without one.
    """

    paths: list[str]
    right: torch.Tensor
    l2: torch.Tensor

    @property
    def n(self) -> int:
        return len(self.right)

    @property
    def top1(self) -> float:
        """Percent right."""
        return 100 * int(self.right.sum()) / self.n


def _judge(
    model: nn.Module,
    folder: ImageFolder,
    batch_size: int,
    *,
    share: bool,
    attack: Attack | None = None,
    seed: int = 0,
    workers: int = 4,
    title: str = "",
) -> Judged:
    """Run ``model`` once over every image, after ``attack``; with ``share``, batches are dealt to ranks."""
    if batch_size < 1:
        raise OptionError(f"batch size: expected at least 1, found {batch_size}.")
    n, device = len(folder), next(unwrap(model).parameters()).device
    batches = [list(range(i, min(i + batch_size, n))) for i in range(0, n, batch_size)]
    mine = batches[rank() :: world_size()] if share else batches
    right, l2 = torch.zeros(n, device=device), torch.zeros(n, dtype=torch.float64, device=device)
    with frozen(model) as inner:
        loader: DataLoader[Any] = DataLoader(
            folder, batch_sampler=mine, num_workers=workers, generator=torch.Generator().manual_seed(seed)
        )
        bar = tqdm(zip(mine, loader, strict=True), title, len(mine), disable=None if rank() == 0 else True, leave=False)
        for members, (pixels, labels) in bar:
            pixels, labels = pixels.to(device), labels.to(device)
            attacked = pixels
            if attack is not None:
                with isolated(mix(seed, members[0]), device):
                    attacked = attack(inner, pixels, labels)
            with torch.no_grad():
                logits = inner(attacked)
            if not torch.isfinite(logits).all():
                raise ModelError(f"{title}: expected finite logits, found nan or inf. Check the checkpoint.")
            right[members] = (logits.argmax(-1) == labels).float()
            l2[members] = (attacked - pixels).double().flatten(1).norm(dim=1)
    if share:
        sum_over_ranks(right), sum_over_ranks(l2)
    paths = [str(Path(path).relative_to(folder.root)) for path, _ in folder.samples]
    return Judged(paths, right.bool().cpu(), l2.cpu())


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
) -> float | None:
    """Top-1 in percent on a folder with one folder a class; None where it is missing.

    Args:
        model: pixels in [0, 1] to logits; or anything, with its own ``test_transform``.
        test_transform: default: shorter side to 256 bicubic, centre crop 224, [0, 1].
        dist: share the batches over torchrun's processes.
        records: where to keep the result.

    Raises:
        ModelError: no normalisation inside the model and no ``test_transform``.
        DataError: not an image folder, or an image that cannot be decoded.
    """
    folder = _open(model, data_dir, test_transform)
    if folder is None:
        return None
    judged = _judge(model, folder, test_batchsize, share=dist, workers=workers, title="imagenet-val")
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
) -> float | None:
    """Top-1 in percent under FGSM of L-infinity radius ``epsilon`` (pixels of [0, 1]; the paper's is 1/255).

    Arguments and errors as :func:`evaluate_imagenet_val`; also DataError for pixels outside [0, 1].
    """
    folder = _open(model, data_dir, test_transform)
    if folder is None:
        return None
    judged = _judge(
        model,
        folder,
        test_batchsize,
        share=dist,
        workers=workers,
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

    judged = _judge(
        model,
        folder,
        test_batchsize,
        share=dist,
        workers=workers,
        title="cw",
        attack=attack,
    )
    if records is not None:
        protocol = _protocol(folder, test_batchsize, norm="l2", **settings)
        records.add(judged, "cw", protocol | {"radius": None})
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
            parts.append(_judge(model, folder, test_batchsize, share=dist, workers=workers, title=title))
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
) -> None:
    """Every evaluation named in ``suites`` (of :data:`SUITES`) under EasyRobust's folder names."""
    root, dist = Path(data_dir), world_size() > 1
    val = root / "imagenet-val"
    common: dict[str, Any] = {"dist": dist, "records": records, "workers": workers}
    for suite in suites:
        if suite == "val":
            evaluate_imagenet_val(model, val, batch_size, transform, **common)
        elif suite == "fgsm":
            for epsilon in epsilons:
                evaluate_imagenet_fgsm(model, val, batch_size, transform, epsilon=epsilon, **common)
        elif suite == "cw":
            evaluate_imagenet_cw(model, val, batch_size, transform, radii=radii, **common)
        elif suite == "c":
            evaluate_imagenet_c(model, root / "imagenet-c", batch_size, transform, **common)
        else:
            raise OptionError(f"--suite: expected one of {', '.join(SUITES)}, found {suite!r}.")
