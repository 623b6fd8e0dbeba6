"""Checkpoints: every form in, safely; two forms out, atomically.

In come raw state dicts, EasyRobust's and timm's training checkpoints, augreg ``.npz``,
``.safetensors`` and addresses of any of these. Out go EasyRobust's layout, which its
``benchmark.py`` loads, and timm's, which ``timm.models.load_checkpoint`` loads; no single
file satisfies both.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import CheckpointError, OptionError
from ..utils.files import sha256_of
from .architectures import build, published_classes, published_url
from .checkpoint_save import EMA, LAYOUTS, NORMALIZATION, RAW, plain, write_layout
from .download import check_sha256, fetch, is_url
from .safe_load import read_file
from .vit import NormalizedModel, with_normalization
from .weights import (
    Weights,
    check_finite,
    class_count,
    fit,
    fit_jax,
    jax_class_count,
    resolve_normalization,
    weights_from,
)

__all__ = [
    "LAYOUTS",
    "Checkpoint",
    "Exported",
    "Weights",
    "export_checkpoint",
    "load_model",
    "read_checkpoint",
    "resolve_normalization",
    "save_model",
]

_logger = logging.getLogger(__name__)
_TRAINING_STATE = ("optimizer", "optimizer_state_dict", "amp_scaler", "saver")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file that was read, not yet tied to an architecture.

    Attributes:
        path: the local file, for a URL the cached one.
        source: the path or URL as it was given.
        content: the file's dict; for ``.npz`` numpy arrays by their JAX names.
        form: ``torch``, ``safetensors`` or ``npz``.
    """

    path: Path
    source: str
    content: dict[str, Any] = field(repr=False)
    form: str = "torch"

    @property
    def entries(self) -> tuple[str, ...]:
        """The sets of weights in the file, such as ``("state_dict", "state_dict_ema")`` or ``("raw",)``."""
        if self.form == "npz":
            return ("npz",)
        named = tuple(name for name in RAW + EMA if _holds_tensors(self.content.get(name)))
        return named or (("raw",) if _holds_tensors(self.content) else ())

    @property
    def has_ema(self) -> bool:
        """Whether there are weights for ``weights(ema=True)``."""
        return any(name in EMA for name in self.entries)

    @property
    def arch(self) -> str | None:
        """The architecture's name as the file tells it, first in timm's args, or None."""
        recorded = self.metadata.get("args")
        names = [recorded.get("model")] if isinstance(recorded, dict) else []
        names += [self.content.get(key) for key in ("arch", "model_name", "model")]
        return next((name for name in names if isinstance(name, str) and name), None)

    @property
    def metadata(self) -> dict[str, Any]:
        """What the file says besides weights and training state: epoch, metric, args as a dict, ..."""
        values = {}
        for key, value in self.content.items():
            if key not in (*RAW, *EMA, *NORMALIZATION, *_TRAINING_STATE):
                try:
                    values[str(key)] = plain(value, str(key), tensors=False)
                except OptionError:
                    continue  # tensors and the like are no metadata
        return values

    def sha256(self) -> str:
        """Hexadecimal SHA-256 of the file."""
        return sha256_of(self.path)

    def weights(self, ema: bool = False) -> Weights:
        """The raw weights, or with ``ema`` their exponential moving average, under bare names.

        Raises:
            CheckpointError: they are not there, or are not finite tensors.
        """
        if self.form == "npz":
            raise CheckpointError(
                f"{self.source}: expected PyTorch's names, found a JAX .npz, which needs a model. "
                "Use load_model(arch, path)."
            )
        name = next((entry for entry in self.entries if entry in (EMA if ema else (*RAW, "raw"))), None)
        if name is None:
            raise self._not_there(ema)
        entry: Mapping[str, Any] = self.content if name == "raw" else self.content[name]
        if name == "raw":
            entry = {key: value for key, value in entry.items() if key not in NORMALIZATION}
        suffix = "_ema" if ema and "mean_ema" in self.content else ""
        mean, std = self.content.get(f"mean{suffix}"), self.content.get(f"std{suffix}")
        weights = weights_from(entry, name, self.source, mean, std)
        front = {"mean": torch.tensor(weights.mean or ()), "std": torch.tensor(weights.std or ())}
        check_finite(weights.state | front, self.source)
        return weights

    def _not_there(self, ema: bool) -> CheckpointError:
        what = f"EMA weights ({' or '.join(EMA)})" if ema else "weights"
        there = ", ".join(self.entries) or f"none among {', '.join(map(str, self.content)) or 'no entries'}"
        advice = "Save model.state_dict()."
        if self.entries:
            advice = "Load the raw weights instead." if ema else "Load the EMA weights (ema, --use_ema)."
        return CheckpointError(f"{self.source}: expected {what}, found {there}. {advice}")


def _holds_tensors(entry: Any) -> bool:
    return isinstance(entry, Mapping) and any(isinstance(value, torch.Tensor) for value in entry.values())


def read_checkpoint(path_or_url: str | Path, *, sha256: str | None = None) -> Checkpoint:
    """Read a checkpoint file or address; nothing in it can run code.

    Args:
        path_or_url: a file, or a http, https or file address (downloaded once, see
            :func:`ns_easyrobust.models.download.fetch`).
        sha256: refuse any other file; 64 hexadecimal digits.

    Raises:
        CheckpointError: missing, damaged, unsafe, or not the file that ``sha256`` names.
    """
    source = str(path_or_url)
    if is_url(source):
        path = fetch(source, sha256=sha256)
    else:
        path = Path(source).expanduser()
        check_sha256(path, sha256)
    try:
        form, content = read_file(path, source)
    except CheckpointError:
        if is_url(source) and not source.startswith("file:"):
            path.unlink(missing_ok=True)  # or an error page would be served from the cache for ever
        raise
    return Checkpoint(path, source, content, form)


def load_model(
    arch: str,
    path: str | Path | Checkpoint | None = None,
    *,
    ema: bool = False,
    num_classes: int = 1000,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    sha256: str | None = None,
    **model_kwargs: Any,
) -> NormalizedModel:
    """Build ``arch`` behind its input normalisation and load a checkpoint into it, strictly.

    Args:
        arch: the architecture's name, see :func:`ns_easyrobust.models.architectures.build`.
        path: a file, an address, or a checkpoint already read; None leaves the weights as built.
        ema: take the exponential moving average's weights, which must be there.
        num_classes: outputs K.
        mean, std: input normalisation for a checkpoint that does not carry one.
        sha256: refuse any other file.
        model_kwargs: handed to the architecture (``img_size``, ``drop_path_rate``, ``pretrained``, ...).

    Returns:
        Pixels (B, C, H, W) in [0, 1] to logits (B, K), on the CPU, in train mode. It tells
        what was loaded: ``normalization_origin`` (see :func:`resolve_normalization`) and
        ``weights_name`` (``state_dict``, ``state_dict_ema``, ..., ``raw``, ``npz``,
        ``pretrained`` or ``random``).

    Raises:
        ModelError: unknown architecture or arguments.
        CheckpointError: nothing to load, unsafe, damaged, or for another model.
        OptionError: mean without std, or of another length than the image has channels.
    """
    if path is None and (ema or sha256 is not None):
        raise OptionError("ema and sha256: expected a checkpoint to take them from, found none. Give its path.")
    checkpoint = path if isinstance(path, Checkpoint) or path is None else read_checkpoint(path, sha256=sha256)
    if isinstance(path, Checkpoint):
        check_sha256(path.path, sha256)
    pretrained = model_kwargs.pop("pretrained", False) and checkpoint is None
    vit = build(arch, num_classes=num_classes, **model_kwargs)
    weights, name = None, "pretrained" if pretrained else "random"
    if checkpoint is not None:
        weights, name = load_into(vit, checkpoint, ema, arch)
    elif pretrained and (url := published_url(vit)) is not None:
        # timm 0.5.4 would unpickle what it downloads, and tell two files of one name apart by nothing
        published = published_classes(vit)
        vit = build(arch, num_classes=published, **model_kwargs)
        weights, _ = load_into(vit, read_checkpoint(url), ema, arch)
        if published != num_classes:
            _logger.info("%s: a new head for %d classes in place of %d", arch, num_classes, published)
            vit.reset_classifier(num_classes)  # type: ignore[operator]
    elif pretrained:
        vit = build(arch, num_classes=num_classes, pretrained=True, **model_kwargs)
    used_mean, used_std, origin = resolve_normalization(vit, weights, mean=mean, std=std)
    model = with_normalization(vit, used_mean, used_std)
    model.normalization_origin = origin
    model.weights_name = name
    return model


def load_into(vit: nn.Module, checkpoint: Checkpoint, ema: bool, arch: str) -> tuple[Weights | None, str]:
    """Load the chosen weights into a bare ``vit``, strictly; returns them (None for npz) and their name.

    Raises:
        CheckpointError: they are not there, or for another model.
    """
    source, weights, name = checkpoint.source, None, "npz"
    if checkpoint.form != "npz":
        weights = checkpoint.weights(ema)
        fit(vit, weights, arch, source)
        name = weights.name
    elif ema:
        raise checkpoint._not_there(ema)
    else:
        fit_jax(vit, checkpoint.content, checkpoint.path, arch, source)
    others = ", ".join(entry for entry in checkpoint.entries if entry != name)
    _logger.info("%s: loaded %s%s", source, name, f" (it also holds {others})" if others else "")
    return weights, name


def save_model(
    model: nn.Module,
    path: str | Path,
    *,
    ema: nn.Module | None = None,
    layout: str = "easyrobust",
    **extra: Any,
) -> None:
    """Save a model so that its hosts load it with torch's safe default.

    Args:
        model: the model with its normalisation in front, wrapped or not (DistributedDataParallel,
            ``torch.compile``, timm's ModelEmaV2); for layout ``timm`` a bare transformer will do.
        path: the file, replaced at once or not at all.
        ema: the averaged model, likewise.
        layout: ``easyrobust`` or ``timm``, see :func:`ns_easyrobust.models.checkpoint_save.write_layout`.
        extra: stored beside the weights (``arch``, ``epoch``, ``args``, ...) as tensors and plain values.

    Raises:
        ModelError: no normalisation in front for layout ``easyrobust``.
        OptionError: unknown layout, or an ``extra`` that cannot be plain.
        OutputError: the file cannot be written; an older one is then untouched.
    """
    weights = weights_from(model.state_dict(), "state_dict", type(model).__name__)
    averaged = None if ema is None else weights_from(ema.state_dict(), "state_dict_ema", type(ema).__name__)
    write_layout(path, layout, weights, averaged, extra)


@dataclass(frozen=True)
class Exported:
    """What :func:`export_checkpoint` wrote."""

    path: Path
    layout: str
    entries: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    normalization_origin: str


def export_checkpoint(
    source: str | Path | Checkpoint,
    destination: str | Path,
    layout: str,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    arch: str | None = None,
) -> Exported:
    """Rewrite a checkpoint in another layout: weights, EMA weights and metadata, no training state.

    Args:
        source: any form that :func:`read_checkpoint` takes.
        destination: the file to write, replaced if it exists.
        layout: ``easyrobust`` or ``timm``.
        mean, std: input normalisation for a checkpoint that does not carry one.
        arch: the architecture, where the file does not name it and it is needed: for ``.npz``,
            and to ask timm for mean and std (the weights must then fit it).

    Raises:
        CheckpointError: nothing to load, unsafe, damaged, or for another architecture.
        ModelError: neither the file nor the arguments tell the normalisation.
        OutputError: the file cannot be written.
    """
    checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(source)
    arch, vit, ema = arch or checkpoint.arch, None, None
    if checkpoint.form == "npz":
        if arch is None:
            raise CheckpointError(
                f"{checkpoint.source}: expected the architecture of a JAX .npz, found none. Give --model."
            )
        vit = build(arch, num_classes=jax_class_count(checkpoint.content) or 1000)
        load_into(vit, checkpoint, False, arch)
        weights = weights_from(vit.state_dict(), "npz", checkpoint.source)
    else:
        weights = checkpoint.weights()
        ema = checkpoint.weights(ema=True) if checkpoint.has_ema else None
        if arch is not None and weights.mean is None and mean is None:
            vit = build(arch, num_classes=class_count(weights.state) or 1000)
            fit(vit, weights, arch, checkpoint.source)  # another architecture's mean and std would be wrong
    used_mean, used_std, origin = resolve_normalization(vit, weights, mean=mean, std=std)
    weights = replace(weights, mean=used_mean, std=used_std)
    if ema is not None and ema.mean is None:
        ema = replace(ema, mean=used_mean, std=used_std)
    extra = checkpoint.metadata | ({"arch": arch} if arch else {})
    path = write_layout(destination, layout, weights, ema, extra)
    entries = ("state_dict",) if ema is None else ("state_dict", "state_dict_ema")
    return Exported(path, layout, entries, used_mean, used_std, origin)
