"""Evaluations with EasyRobust's signatures: top-1 in percent and, on request, a record of it.

Functions that EasyRobust has too keep their names, return types and units. Where EasyRobust computes a wrong
number, the one here is right: docs/evaluation.md lists the differences, and
tests/evaluation/test_easyrobust_api_host.py shows them. All take EasyRobust's positional arguments.

Keywords of all: ``records`` (a :class:`~ns_easyrobust.evaluation.recorder.Recorder` or None), ``workers``
(data loading processes; 4), ``seed`` (of an attack's random numbers, which are the same for any number of
processes; 0), ``subset`` ("all", "first:N", "random:N[:SEED]", "robustbench"), ``dtype`` (autocast if it is not
float32). All raise ModelError if the model does not normalise its input itself and no ``test_transform`` is given,
and for outputs that are no finite logits; DataError for a folder whose content is not as expected, for labels that
contradict what ImageNet's files are called, for an image that cannot be decoded, and for pixels outside [0, 1] if the
model normalises its input itself. For a missing folder, all log a warning that names it and return None.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..attacks import CW, FGSM, PGD, AutoAttack, PatchFool
from ..data import (
    Subset,
    class_folders,
    damagenet,
    describe_transform,
    imagenet_a,
    imagenet_r,
    imagenet_val,
    objectnet,
)
from .folder_evaluation import (
    EvaluateOptions,
    as_they_are,
    evaluate_folder,
    judge_tasks,
    patchfool_images,
    photographs,
    require_known,
)
from .imagenet_c import corruption_folders, corruption_tasks, framed_as, sum_up_corruptions
from .task import Measurement, number_of_outputs, transform_for, warn_if_missing

if TYPE_CHECKING:
    from typing_extensions import Unpack


def evaluate_imagenet_val(
    model: nn.Module,
    data_dir: str | Path,
    test_batchsize: int = 128,
    test_transform: Any = None,
    dist: bool = False,
    **how: Unpack[EvaluateOptions],
) -> float | None:
    """Top-1 in percent on a folder with one subfolder per class, or a flat folder with a file of labels.

    Args:
        model: maps pixels in [0, 1] to logits, or to a dict or object with ``logits``; or any input, if
            ``test_transform`` produces it and no normalisation is found in front of the model or inside it.
        test_transform: default: shorter side to 256 bicubic, centre crop 224, values in [0, 1]; scaled in
            proportion for a model of another image size.
        dist: divide the batches among torchrun's processes.
        how: keywords of all evaluations: ``records`` (a :class:`~ns_easyrobust.evaluation.recorder.Recorder`; None),
            ``workers`` (4), ``seed`` (0), ``subset`` ("all", "first:N", "random:N[:SEED]", "robustbench"),
            ``dtype`` (torch.float32; another one: autocast).

    Example:
        >>> evaluate_imagenet_val(imagenet_model, data_dir / "imagenet-val", subset="first:20", workers=0)
        15.0
    """
    measurement = Measurement("imagenet-val")
    return evaluate_folder(model, data_dir, test_batchsize, test_transform, dist, imagenet_val, measurement, how)


def evaluate_imagenet_a(
    model: nn.Module,
    data_dir: str | Path,
    test_batchsize: int = 128,
    test_transform: Any = None,
    dist: bool = False,
    **how: Unpack[EvaluateOptions],
) -> float | None:
    """Top-1 in percent among ImageNet-A's 200 classes; otherwise as :func:`evaluate_imagenet_val`.

    Example:
        >>> evaluate_imagenet_a(imagenet_model, data_dir / "imagenet-a", subset="first:100", workers=0)
        99.0
    """
    measurement = Measurement("imagenet-a")
    return evaluate_folder(model, data_dir, test_batchsize, test_transform, dist, imagenet_a, measurement, how)


def evaluate_imagenet_r(
    model: nn.Module,
    data_dir: str | Path,
    test_batchsize: int = 128,
    test_transform: Any = None,
    dist: bool = False,
    **how: Unpack[EvaluateOptions],
) -> float | None:
    """Top-1 in percent among ImageNet-R's 200 classes; otherwise as :func:`evaluate_imagenet_val`.

    Example:
        >>> evaluate_imagenet_r(imagenet_model, data_dir / "imagenet-r", subset="first:100", workers=0)
        98.0
    """
    measurement = Measurement("imagenet-r")
    return evaluate_folder(model, data_dir, test_batchsize, test_transform, dist, imagenet_r, measurement, how)


def evaluate_imagenet_sketch(
    model: nn.Module,
    data_dir: str | Path,
    test_batchsize: int = 128,
    test_transform: Any = None,
    dist: bool = False,
    **how: Unpack[EvaluateOptions],
) -> float | None:
    """Top-1 in percent on ImageNet-Sketch, as :func:`evaluate_imagenet_val`.

    Example:
        >>> evaluate_imagenet_sketch(imagenet_model, data_dir / "imagenet-sketch", subset="first:50", workers=0)
        100.0
    """
    measurement = Measurement("imagenet-sketch")
    return evaluate_folder(model, data_dir, test_batchsize, test_transform, dist, class_folders, measurement, how)


def evaluate_imagenet_v2(
    model: nn.Module,
    data_dir: str | Path,
    test_batchsize: int = 128,
    test_transform: Any = None,
    dist: bool = False,
    **how: Unpack[EvaluateOptions],
) -> float | None:
    """Top-1 in percent on ImageNet-V2, folder names zero-padded or not; otherwise as :func:`evaluate_imagenet_val`.

    Example:
        >>> evaluate_imagenet_v2(imagenet_model, data_dir / "imagenetv2", subset="first:50", workers=0)
        100.0
    """
    measurement = Measurement("imagenet-v2")
    return evaluate_folder(model, data_dir, test_batchsize, test_transform, dist, class_folders, measurement, how)


def evaluate_stylized_imagenet(
    model: nn.Module,
    data_dir: str | Path,
    test_batchsize: int = 128,
    test_transform: Any = None,
    dist: bool = False,
    **how: Unpack[EvaluateOptions],
) -> float | None:
    """Top-1 in percent on Stylized-ImageNet, images not resized; otherwise as :func:`evaluate_imagenet_val`.

    Example:
        >>> evaluate_stylized_imagenet(imagenet_model, data_dir / "imagenet-style", subset="first:200", workers=0)
        98.5
    """
    measurement = Measurement("imagenet-stylized")
    return evaluate_folder(
        model, data_dir, test_batchsize, test_transform, dist, class_folders, measurement, how, default=as_they_are
    )


def evaluate_objectnet(
    model: nn.Module,
    data_dir: str | Path,
    test_batchsize: int = 128,
    test_transform: Any = None,
    dist: bool = False,
    **how: Unpack[EvaluateOptions],
) -> float | None:
    """Top-1 in percent on the ObjectNet classes that ImageNet has (EasyRobust's mapping), red border cut off.

    Otherwise as :func:`evaluate_imagenet_val`.

    Example:
        >>> evaluate_objectnet(imagenet_model, data_dir / "ObjectNet" / "images", subset="first:50", workers=0)
        26.0
    """
    measurement = Measurement("objectnet")
    return evaluate_folder(model, data_dir, test_batchsize, test_transform, dist, objectnet, measurement, how)


def evaluate_damagenet(
    model: nn.Module,
    data_dir: str | Path,
    test_batchsize: int = 128,
    test_transform: Any = None,
    dist: bool = False,
    **how: Unpack[EvaluateOptions],
) -> float | None:
    """Top-1 in percent on DamageNet, a flat folder with ``val.txt`` or class folders.

    The default resizes to 256 and crops, as the paper did; DamageNet's authors advise against any
    resizing (``test_transform=transforms.ToTensor()``). Otherwise as :func:`evaluate_imagenet_val`.

    Example:
        >>> evaluate_damagenet(imagenet_model, data_dir / "damagenet", subset="first:50", workers=0)
        14.0
    """
    measurement = Measurement("damagenet")
    return evaluate_folder(model, data_dir, test_batchsize, test_transform, dist, damagenet, measurement, how)


def evaluate_imagenet_fgsm(
    model: nn.Module,
    data_dir: str | Path,
    test_batchsize: int = 128,
    test_transform: Any = None,
    dist: bool = False,
    *,
    epsilon: float = 1 / 255,
    **how: Unpack[EvaluateOptions],
) -> float | None:
    """Top-1 in percent under FGSM of L-infinity radius ``epsilon`` (pixels in [0, 1]; the paper's is 1/255).

    Otherwise as :func:`evaluate_imagenet_val`; also raises DataError for pixels outside [0, 1] in any case.

    Example:
        >>> clean = evaluate_imagenet_val(model, data_dir / "val", workers=0)
        >>> attacked = evaluate_imagenet_fgsm(model, data_dir / "val", epsilon=16 / 255, workers=0)
        >>> attacked < clean
        True
    """
    measurement = Measurement.under(FGSM(epsilon))
    return evaluate_folder(model, data_dir, test_batchsize, test_transform, dist, imagenet_val, measurement, how)


def evaluate_imagenet_pgd(
    model: nn.Module,
    data_dir: str | Path,
    test_batchsize: int = 128,
    test_transform: Any = None,
    dist: bool = False,
    *,
    epsilon: float = 1 / 255,
    steps: int = 10,
    **how: Unpack[EvaluateOptions],
) -> float | None:
    """Top-1 in percent under torchattacks' PGD; otherwise as :func:`evaluate_imagenet_fgsm`.

    Example:
        >>> clean = evaluate_imagenet_val(model, data_dir / "val", workers=0)
        >>> attacked = evaluate_imagenet_pgd(model, data_dir / "val", epsilon=16 / 255, steps=5, workers=0)
        >>> attacked < clean
        True
    """
    measurement = Measurement.under(PGD(epsilon, steps))
    return evaluate_folder(model, data_dir, test_batchsize, test_transform, dist, imagenet_val, measurement, how)


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
    **how: Unpack[EvaluateOptions],
) -> float | None:
    """Top-1 in percent under torchattacks' CW (L2), whose perturbation is unbounded.

    The records also get the mean L2 norm over the fooled images and, for each of ``radii`` (L2, pixels in
    [0, 1]), the accuracy if only perturbations up to that radius count as fooling the model.
    Otherwise as :func:`evaluate_imagenet_fgsm`.

    Example:
        >>> recorder = Recorder("results.jsonl", {"label": "ViT", "model": "vit_micro_patch8_32"})
        >>> top1 = evaluate_imagenet_cw(model, data_dir / "val", radii=[0.5], steps=10, records=recorder, workers=0)
        >>> [(record.metric, record.protocol.get("radius")) for record in read_records("results.jsonl")]
        [('top1', 0.5), ('mean_l2', None), ('top1', 'unbounded')]
    """
    measurement = Measurement.under(CW(radii, c=c, kappa=kappa, steps=steps, lr=lr))
    return evaluate_folder(model, data_dir, test_batchsize, test_transform, dist, imagenet_val, measurement, how)


def evaluate_imagenet_patchfool(
    model: nn.Module,
    data_dir: str | Path,
    test_batchsize: int = 64,
    test_transform: Any = None,
    dist: bool = False,
    *,
    config: PatchFool | None = None,
    **how: Unpack[EvaluateOptions],
) -> float | None:
    """Top-1 in percent under PatchFool (Fu et al. 2022); images that were already misclassified count too.

    The defaults are the published code's: shorter side to 224 bilinear, batches of 64 and, for a
    model with ImageNet's 1000 classes, RobustBench's 5000 images; where those are not there, or for
    another model, 1000 random ones. Otherwise as :func:`evaluate_imagenet_fgsm`.

    Example:
        >>> clean = evaluate_imagenet_val(model, data_dir / "val", workers=0)
        >>> config = PatchFoolConfig(patches=4, layer=1, loss="ce", steps=10)
        >>> attacked = evaluate_imagenet_patchfool(model, data_dir / "val", config=config, workers=0)
        >>> attacked < clean
        True
    """
    measurement = Measurement.under(config or PatchFool())
    return evaluate_folder(
        model,
        data_dir,
        test_batchsize,
        test_transform,
        dist,
        imagenet_val,
        measurement,
        how,
        default=patchfool_images,
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
    **how: Unpack[EvaluateOptions],
) -> float | None:
    """Top-1 in percent under the standard AutoAttack; on the images that :func:`evaluate_imagenet_patchfool` takes.

    Args:
        attack_type: "Linf" or "L2".
        epsilon: radius, for pixels in [0, 1].

    EasyRobust's function of this name returns nothing. Otherwise as :func:`evaluate_imagenet_fgsm`.

    Example:
        >>> evaluate_imagenet_autoattack(model, data_dir / "val", epsilon=64 / 255, subset="first:2", workers=0)
        0.0
    """
    measurement = Measurement.under(AutoAttack(attack_type, epsilon))
    return evaluate_folder(
        model, data_dir, test_batchsize, test_transform, dist, imagenet_val, measurement, how, sampled=True
    )


def evaluate_imagenet_c(
    model: nn.Module,
    data_dir: str | Path,
    test_batchsize: int = 128,
    test_transform: Any = None,
    dist: bool = False,
    **how: Unpack[EvaluateOptions],
) -> tuple[float, float | None] | None:
    """Mean top-1 in percent over the corruptions present, and mCE as a fraction (EasyRobust's units).

    mCE is None unless all 75 folders ``<corruption>/<severity>`` are present. The records hold it in percent, and
    only of models with ImageNet's 1000 outputs: for others, of which EasyRobust returns it too, it means nothing.
    Images are not resized (ImageNet-C has 224 x 224 pixels) unless ``test_transform`` is given, the model has another
    image size, or the folder was made of whole photographs by ``ns-easyrobust corrupt``: these are framed as
    :func:`evaluate_imagenet_val` frames the clean ones. Otherwise as that.

    Example:
        >>> top1, mce = evaluate_imagenet_c(imagenet_model, data_dir / "imagenet-c", subset="first:5", workers=0)
        >>> f"top-1 {top1:.1f}%, mCE {100 * mce:.1f}%"
        'top-1 50.7%, mCE 62.5%'
    """
    root, how = Path(data_dir), require_known(how)
    if not warn_if_missing(root):
        return None
    transform = transform_for(model, test_transform, as_they_are if framed_as(root) == "c" else photographs)
    folders = corruption_folders(root)
    outputs = number_of_outputs(model, root / folders[0][0] / str(folders[0][1]), transform)
    subset = Subset.parse(str(how.get("subset") or "all"))
    tasks = corruption_tasks(root, outputs, transform, test_batchsize, subset)
    judged = judge_tasks(model, list(tasks.values()), dist, how)
    outcomes = {key: task_outcomes[0] for key, task_outcomes in zip(tasks, judged, strict=True)}
    shared = next(iter(tasks.values())).protocol
    protocol = {**describe_transform(transform), "batch_size": test_batchsize, **shared}
    records = how.get("records")
    if records is not None:
        records = records.for_run(model, how.get("dtype", torch.float32), None, dist)
    return sum_up_corruptions(root, outcomes, records, protocol, outputs)
