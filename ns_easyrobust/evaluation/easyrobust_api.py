"""Evaluations with EasyRobust's signatures: top-1 in percent, and a record of it where one is asked for.

EasyRobust's names keep their return types and units; where its functions are wrong, the
number here is right: docs/evaluation.md lists the differences, tests/test_host.py shows them.
All take EasyRobust's positionals.

Keywords of all: ``records`` (a :class:`~ns_easyrobust.evaluation.recorder.Recorder` or None), ``workers``
(data loading processes, 4), ``seed`` (of what an attack draws, the same for any number of
processes; 0), ``subset`` ("all", "first:N", "random:N", "robustbench"), ``dtype`` (autocast
where it is not float32). All raise ModelError for a model without normalisation inside where
no ``test_transform`` is given, and for logits that are not finite; DataError for a folder that is
not what was expected and an image that cannot be decoded. All return None for a missing
folder, with a warning that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import nn
from torchvision import transforms

from ..attacks.patch_fool import PatchFoolConfig
from ..data import image_list as images
from ..data.image_list import Subset
from ..data.transforms import Preprocessing, describe_transform
from . import trials
from .imagenet_c import corruption_folders, corruption_parts, sum_up_corruptions
from .judging import judge
from .parts import Load, exists, outputs_on, part_of, transform_for
from .recorder import Recorder
from .task import Outcome, Part, Trial

if TYPE_CHECKING:
    from typing_extensions import Unpack


class How(TypedDict, total=False):
    """The keywords that all evaluations share."""

    records: Recorder | None
    workers: int
    seed: int
    subset: str | Subset | None
    dtype: torch.dtype


_Default = Callable[[int], Any]  # the model's image size to a transform


def _photographs(size: int) -> Any:
    return Preprocessing(size).transform()


def _as_they_are(size: int) -> Any:
    """For sets made at 224 pixels."""
    return transforms.ToTensor() if size == 224 else Preprocessing(size, 1.0).transform()


def _patchfools(size: int) -> Any:
    return Preprocessing(size, 1.0, "bilinear").transform()


def _evaluate(
    model: nn.Module,
    data_dir: str | Path,
    batch_size: int,
    transform: Any,
    dist: bool,
    load: Load,
    trial: Trial,
    how: How,
    *,
    default: _Default = _photographs,
    sampled: bool = False,
) -> float | None:
    root, how = Path(data_dir), _known(how)
    if not exists(root):
        return None
    transform = transform_for(model, transform, default)
    outputs = outputs_on(model, root, transform)
    subset = how.get("subset") or ("robustbench" if sampled and outputs == 1000 else "all")
    part = part_of(root, load, outputs, transform, batch_size, Subset.parse(str(subset)), [trial])
    return _judge(model, [part], dist, how)[0][0].top1


def _known(how: How) -> How:
    """``how`` itself; TypeError for a keyword that is none, which Python cannot tell behind ``**``."""
    unknown = set(how) - set(How.__annotations__)
    if unknown:
        raise TypeError(f"unexpected keyword {min(unknown)!r}: expected of {', '.join(How.__annotations__)}")
    return how


def _judge(model: nn.Module, parts: Sequence[Part], dist: bool, how: How) -> list[list[Outcome]]:
    return judge(
        model,
        parts,
        share=dist,
        workers=how.get("workers", 4),
        seed=how.get("seed", 0),
        dtype=how.get("dtype", torch.float32),
        recorder=how.get("records"),
    )


def _clean(name: str, suite: str, load: Load, doc: str, default: _Default = _photographs) -> Any:
    """An evaluation of images as they are, with EasyRobust's signature."""

    def evaluate(
        model: nn.Module,
        data_dir: str | Path,
        test_batchsize: int = 128,
        test_transform: Any = None,
        dist: bool = False,
        **how: Unpack[How],
    ) -> float | None:
        trial = trials.clean(suite)
        return _evaluate(model, data_dir, test_batchsize, test_transform, dist, load, trial, how, default=default)

    evaluate.__name__ = evaluate.__qualname__ = name
    evaluate.__doc__ = doc
    return evaluate


evaluate_imagenet_val = _clean(
    "evaluate_imagenet_val",
    "imagenet-val",
    images.imagenet_val,
    """Top-1 in percent on a folder with one folder a class, or a flat one with a file of labels.

    Args:
        model: pixels in [0, 1] to logits; or anything, with its own ``test_transform``.
        test_transform: default: shorter side to 256 bicubic, centre crop 224, [0, 1]; in proportion for a
            model of another image size.
        dist: share the batches over torchrun's processes.
        how: keywords of all evaluations: ``records`` (a :class:`~ns_easyrobust.evaluation.recorder.Recorder`; None),
            ``workers`` (4), ``seed`` (0), ``subset`` ("all", "first:N", "random:N[:SEED]", "robustbench"),
            ``dtype`` (torch.float32; another one: autocast).
    """,
)
evaluate_imagenet_a = _clean(
    "evaluate_imagenet_a",
    "imagenet-a",
    images.imagenet_a,
    "Top-1 in percent among ImageNet-A's 200 classes; otherwise as :func:`evaluate_imagenet_val`.",
)
evaluate_imagenet_r = _clean(
    "evaluate_imagenet_r",
    "imagenet-r",
    images.imagenet_r,
    "Top-1 in percent among ImageNet-R's 200 classes; otherwise as :func:`evaluate_imagenet_val`.",
)
evaluate_imagenet_sketch = _clean(
    "evaluate_imagenet_sketch",
    "imagenet-sketch",
    images.class_folders,
    "Top-1 in percent on ImageNet-Sketch, as :func:`evaluate_imagenet_val`.",
)
evaluate_imagenet_v2 = _clean(
    "evaluate_imagenet_v2",
    "imagenet-v2",
    images.class_folders,
    "Top-1 in percent on ImageNet-V2, folders padded or not; otherwise as :func:`evaluate_imagenet_val`.",
)
evaluate_stylized_imagenet = _clean(
    "evaluate_stylized_imagenet",
    "imagenet-stylized",
    images.class_folders,
    "Top-1 in percent on Stylized-ImageNet, its images as they are; otherwise as :func:`evaluate_imagenet_val`.",
    _as_they_are,
)
evaluate_objectnet = _clean(
    "evaluate_objectnet",
    "objectnet",
    images.objectnet,
    """Top-1 in percent on the ObjectNet classes that ImageNet has, as EasyRobust maps them; red border cut off.

    Otherwise as :func:`evaluate_imagenet_val`.
    """,
)
evaluate_damagenet = _clean(
    "evaluate_damagenet",
    "damagenet",
    images.damagenet,
    """Top-1 in percent on DamageNet, flat with ``val.txt`` or in class folders.

    The default resizes to 256 and crops, as the paper did; its authors advise against any
    resizing (``test_transform=transforms.ToTensor()``). Otherwise as :func:`evaluate_imagenet_val`.
    """,
)


def evaluate_imagenet_fgsm(
    model: nn.Module,
    data_dir: str | Path,
    test_batchsize: int = 128,
    test_transform: Any = None,
    dist: bool = False,
    *,
    epsilon: float = 1 / 255,
    **how: Unpack[How],
) -> float | None:
    """Top-1 in percent under FGSM of L-infinity radius ``epsilon`` (pixels of [0, 1]; the paper's is 1/255).

    Otherwise as :func:`evaluate_imagenet_val`; also DataError for pixels outside [0, 1].
    """
    trial = trials.fgsm(epsilon)
    return _evaluate(model, data_dir, test_batchsize, test_transform, dist, images.imagenet_val, trial, how)


def evaluate_imagenet_pgd(
    model: nn.Module,
    data_dir: str | Path,
    test_batchsize: int = 128,
    test_transform: Any = None,
    dist: bool = False,
    *,
    epsilon: float = 1 / 255,
    steps: int = 10,
    **how: Unpack[How],
) -> float | None:
    """Top-1 in percent under torchattacks' PGD; otherwise as :func:`evaluate_imagenet_fgsm`."""
    trial = trials.pgd(epsilon, steps)
    return _evaluate(model, data_dir, test_batchsize, test_transform, dist, images.imagenet_val, trial, how)


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
    **how: Unpack[How],
) -> float | None:
    """Top-1 in percent under torchattacks' CW (L2), whose perturbation is unbounded.

    Beside it the records get the mean L2 over the images that were fooled, and, for each of
    ``radii`` (L2, pixels of [0, 1]), the accuracy when only perturbations up to that radius
    count as fooling. Otherwise as :func:`evaluate_imagenet_fgsm`.
    """
    trial = trials.cw(radii, c=c, kappa=kappa, steps=steps, lr=lr)
    return _evaluate(model, data_dir, test_batchsize, test_transform, dist, images.imagenet_val, trial, how)


def evaluate_imagenet_patchfool(
    model: nn.Module,
    data_dir: str | Path,
    test_batchsize: int = 64,
    test_transform: Any = None,
    dist: bool = False,
    *,
    config: PatchFoolConfig | None = None,
    **how: Unpack[How],
) -> float | None:
    """Top-1 in percent under PatchFool (Fu et al. 2022); every image counts, also what was wrong before.

    The defaults are the published code's: shorter side to 224 bilinear, batches of 64, and, on a
    model of ImageNet's classes, RobustBench's 5000 images. Otherwise as :func:`evaluate_imagenet_fgsm`.
    """
    trial = trials.patch_fool(config or PatchFoolConfig())
    return _evaluate(
        model,
        data_dir,
        test_batchsize,
        test_transform,
        dist,
        images.imagenet_val,
        trial,
        how,
        default=_patchfools,
        sampled=True,
    )


def evaluate_imagenet_autoattack(
    model: nn.Module,
    data_dir: str | Path,
    test_batchsize: int = 128,
    test_transform: Any = None,
    attack_type: str = "Linf",
    epsilon: float = 4 / 255,
    dist: bool = False,
    **how: Unpack[How],
) -> float | None:
    """Top-1 in percent under the standard AutoAttack, on RobustBench's 5000 images for ImageNet's classes.

    Args:
        attack_type: "Linf" or "L2".
        epsilon: radius in pixels of [0, 1].

    EasyRobust's function of this name returns nothing. Otherwise as :func:`evaluate_imagenet_fgsm`.
    """
    trial = trials.auto_attack(attack_type, epsilon)
    return _evaluate(
        model, data_dir, test_batchsize, test_transform, dist, images.imagenet_val, trial, how, sampled=True
    )


def evaluate_imagenet_c(
    model: nn.Module,
    data_dir: str | Path,
    test_batchsize: int = 128,
    test_transform: Any = None,
    dist: bool = False,
    **how: Unpack[How],
) -> tuple[float, float | None] | None:
    """Mean top-1 in percent over the corruption folders present, and mCE as a fraction (EasyRobust's units).

    mCE is None unless all 75 folders ``<corruption>/<severity>`` are there; in the records it is
    in percent. Images are taken as they are (ImageNet-C is 224 wide) unless ``test_transform`` is
    given or the model has another image size. Otherwise as :func:`evaluate_imagenet_val`.
    """
    root, how = Path(data_dir), _known(how)
    if not exists(root):
        return None
    transform = transform_for(model, test_transform, _as_they_are)
    folders = corruption_folders(root)
    outputs = outputs_on(model, root / folders[0][0] / str(folders[0][1]), transform)
    subset = Subset.parse(str(how.get("subset") or "all"))
    parts = corruption_parts(root, outputs, transform, test_batchsize, subset)
    found = _judge(model, list(parts.values()), dist, how)
    outcomes = {key: outcome[0] for key, outcome in zip(parts, found, strict=True)}
    protocol = {**describe_transform(transform), "batch_size": test_batchsize, "subset": str(subset)}
    records = how.get("records")
    if records is not None:
        records = records.of_run(model, how.get("dtype", torch.float32), None, dist)
    return sum_up_corruptions(outcomes, records, protocol)
