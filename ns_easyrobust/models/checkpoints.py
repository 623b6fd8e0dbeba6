"""Loading checkpoints of every form safely.

The forms are raw state dicts, EasyRobust's and timm's training checkpoints, augreg
``.npz``, ``.safetensors`` and URLs of any of these.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, OptionError, without_secrets
from ..utils import sha256_of
from .architectures import config_of, published_url
from .description import Description, describe, listed
from .download import check_sha256, fetch, forget
from .factories import is_factory
from .fitting import build_sized, fit_to, image_size_for, side_of
from .heads import reset_head
from .hub import HubModel, describe_config, images_config, is_hub_name, required_arch
from .normalization import NormalizedModel, resolve_normalization, with_normalization
from .safe_load import DamagedFileError, read_file
from .strict_load import class_count_error, jax_class_count
from .weights import (
    EMA,
    NORMALIZATION,
    RAW,
    Weights,
    check_finite,
    class_count,
    to_plain_values,
    weights_of_state_dict,
)

_logger = logging.getLogger(__name__)
_TRAINING_STATE = ("optimizer", "optimizer_state_dict", "amp_scaler", "saver")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file that was read, not yet tied to an architecture.

    Attributes:
        path: the local file; for a URL the cached copy.
        source: the path or URL as it was given, except for the user and password of a URL.
        content: the file's dict; for ``.npz`` numpy arrays by JAX name.
        form: ``torch``, ``safetensors`` or ``npz``.
        config: ``config.json`` beside the weights, for a hub's model or a folder of that form.
    """

    path: Path
    source: str
    content: dict[str, Any] = field(repr=False)
    form: str = "torch"
    config: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def entries(self) -> tuple[str, ...]:
        """Names of the sets of weights in the file, such as ``("state_dict", "state_dict_ema")`` or ``("raw",)``."""
        if self.form == "npz":
            return ("npz",)
        named = tuple(name for name in RAW + EMA if _holds_tensors(self.content.get(name)))
        return named or (("raw",) if _holds_tensors(self.content) else ())

    @property
    def has_ema(self) -> bool:
        """Whether the file holds EMA weights, for ``weights(ema=True)``."""
        return any(name in EMA for name in self.entries)

    @property
    def arch(self) -> str | None:
        """The architecture that the file names, first of all in timm's ``args``; else None."""
        return self.description.arch

    @property
    def description(self) -> Description:
        """What the file says of its model beside the weights."""
        return describe(self.metadata) if self.config is None else describe_config(self.config)

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the raw weights' head; None if it has no usual name."""
        return jax_class_count(self.content) if self.form == "npz" else class_count(self.weights().state)

    @property
    def without_args(self) -> Checkpoint:
        """The checkpoint without its ``args``, so that its :attr:`description` says the architecture at most."""
        return replace(self, content={key: value for key, value in self.content.items() if key != "args"})

    @property
    def metadata(self) -> dict[str, Any]:
        """What the file holds besides weights and training state: epoch, metric, args as a dict, ..."""
        values = {}
        for key, value in self.content.items():
            if key not in (*RAW, *EMA, *NORMALIZATION, *_TRAINING_STATE):
                try:
                    values[str(key)] = to_plain_values(value, str(key), tensors=False)
                except OptionError:
                    continue  # tensors and other objects are not metadata
        return values

    def warn_of_other_normalization(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Log a warning if timm's ``args`` or single numbers beside the weights say another mean or std than these.

        They are not used: a script may normalise in another place, and single numbers may be results.
        """
        timm_args = self.metadata.get("args")
        for place, said in (("its args", timm_args), ("the numbers beside its weights", self.content)):
            given = [listed(said.get(name)) for name in ("mean", "std")] if isinstance(said, dict) else [[]]
            cut = [list(used)[: len(values)] for used, values in zip((mean, std), given, strict=False)]
            if all(given) and given != cut:
                _logger.warning(
                    "%s: %s say mean %.80s and std %.80s, which are not used; give them if it was trained so",
                    self.source, place, *given,
                )  # fmt: skip

    def sha256(self) -> str:
        """Hexadecimal SHA-256 of the file."""
        return sha256_of(self.path)

    def weights(self, ema: bool = False) -> Weights:
        """The raw weights, or with ``ema`` their exponential moving average, by the bare transformer's names.

        Raises:
            CheckpointError: they are missing or not finite tensors, or the file is an ``.npz``.
        """
        if self.form == "npz":
            raise CheckpointError(
                f"{self.source}: expected PyTorch's names, found a JAX .npz, which needs a model. "
                "Use load_model(arch, path)."
            )
        name = next((entry for entry in self.entries if entry in (EMA if ema else (*RAW, "raw"))), None)
        if name is None:
            raise self.missing_weights_error(ema)
        entry: Mapping[str, Any] = self.content if name == "raw" else self.content[name]
        if name == "raw":
            entry = {key: value for key, value in entry.items() if key not in NORMALIZATION}
        suffix = "_ema" if ema and "mean_ema" in self.content else ""
        mean, std = self.content.get(f"mean{suffix}"), self.content.get(f"std{suffix}")
        weights = weights_of_state_dict(entry, name, self.source, mean, std)
        check_finite(weights.state, self.source)
        return weights

    def missing_weights_error(self, ema: bool) -> CheckpointError:
        """The error for a file without the weights that are wanted."""
        wanted = f"EMA weights ({' or '.join(EMA)})" if ema else "weights"
        names = [str(name)[:80] for name in list(self.content)[:10]]
        available = ", ".join(self.entries) or f"none among {', '.join(names) or 'no entries'}"
        advice = "Save model.state_dict()."
        if self.entries:
            advice = "Load the raw weights instead." if ema else "Load the EMA weights (ema=True)."
        return CheckpointError(f"{self.source}: expected {wanted}, found {available}. {advice}")


def _holds_tensors(entry: Any) -> bool:
    return isinstance(entry, Mapping) and any(isinstance(value, torch.Tensor) for value in entry.values())


def read_checkpoint(path_or_url: str | Path, *, sha256: str | None = None) -> Checkpoint:
    """Read a checkpoint from a file or URL; nothing in it can run code.

    Args:
        path_or_url: a file, or a http, https or file URL (downloaded once, see
            :func:`ns_easyrobust.models.download.fetch`); under timm 1.x also a model of the hub (``hf-hub:owner/name``)
            or a folder of that form.
        sha256: the file's SHA-256, 64 hexadecimal digits; any other file is refused.

    Raises:
        CheckpointError: missing, damaged, unsafe, or a file with another SHA-256.
        OptionError: ``sha256`` is not 64 hexadecimal digits.
    """
    source = str(path_or_url)
    config = None
    if is_hub_name(source):
        hub = HubModel(source)
        config, path = hub.config, hub.weights_file()
        check_sha256(path, sha256)
    else:
        path = fetch(source, sha256=sha256)
    try:
        form, content = read_file(path, source)
    except DamagedFileError:
        if config is None:
            forget(source)  # otherwise a cached error page would be read again for ever
        raise
    return Checkpoint(path, without_secrets(source), content, form, config)


def load_model(
    arch: str | None = None,
    path: str | Path | Checkpoint | None = None,
    *,
    ema: bool = False,
    num_classes: int | None = None,
    new_head: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    sha256: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    **more: Any,
) -> NormalizedModel:
    """Build ``arch`` with its input normalisation in front and load a checkpoint into it, strictly.

    Args:
        arch: the architecture's name, see :func:`ns_easyrobust.models.architectures.build`; None: the one that
            the checkpoint names.
        path: a file, a URL, or a checkpoint already read; None: no checkpoint, the weights are
            random, or timm's with ``pretrained``.
        ema: load the exponential moving average of the weights, which the checkpoint must contain.
        num_classes: number K of outputs; None: the checkpoint's, or else timm's 1000. Another number than the
            checkpoint's is refused without ``new_head``.
        new_head: give a checkpoint for another number of classes a new head of random weights.
        mean, std: input normalisation for a checkpoint whose weights do not contain one.
        sha256: the file's SHA-256, 64 hexadecimal digits; any other file is refused.
        model_kwargs: passed to the architecture, whatever their names, before those that the checkpoint tells of.
        more: likewise (``img_size``, ``drop_path_rate``, ...), and before ``model_kwargs``; ``pretrained`` asks for
            timm's weights. With ``img_size`` a ViT's position embedding is resized, by timm's function.

    Returns:
        A model from pixels (B, C, H, W) in [0, 1] to logits (B, K), on the CPU, in train mode. Its
        attributes state what was loaded: ``normalization_origin`` (see :func:`resolve_normalization`),
        ``weights_name`` (``state_dict``, ``state_dict_ema``, ..., ``raw``, ``npz``,
        ``pretrained`` or ``random``), and those of :class:`~ns_easyrobust.models.normalization.NormalizedModel`.

    Raises:
        ModelError: no or an unknown architecture, wrong arguments, or a head that cannot be made anew.
        CheckpointError: nothing to load, unsafe, damaged, or for another model.
        OptionError: mean without std, a wrong number of them, or ``ema`` or ``sha256`` without a checkpoint.

    Example:
        >>> save_model(model, "vit.pth.tar")
        >>> loaded = load_model("vit_micro_patch8_32", "vit.pth.tar")
        >>> loaded.weights_name, torch.equal(loaded.eval()(images), model(images))
        ('state_dict', True)
        >>> load_model("vit_micro_patch8_32", "vit.pth.tar", num_classes=3, new_head=True).eval()(images).shape
        torch.Size([8, 3])
    """
    if path is None and (ema or sha256 is not None):
        raise OptionError("ema and sha256: expected a checkpoint to take them from, found none. Give its path.")
    checkpoint = path if isinstance(path, Checkpoint) or path is None else read_checkpoint(path, sha256=sha256)
    if isinstance(path, Checkpoint):
        check_sha256(path.path, sha256)
    pretrained = more.pop("pretrained", False) and checkpoint is None
    if pretrained and arch is not None and is_hub_name(arch):
        checkpoint, new_head = read_checkpoint(arch), True
    told = Description() if checkpoint is None else checkpoint.description
    config = {} if checkpoint is None or checkpoint.config is None else checkpoint.config
    if arch is not None and is_hub_name(arch):
        config = HubModel(arch).config
        told = describe_config(config)
        arch = told.registered_arch
    arch = arch or required_arch(told, None if checkpoint is None else checkpoint.source)
    told_kwargs = told.kwargs_for(arch)
    options = {**told_kwargs, **(model_kwargs or {}), **more}
    if (
        pretrained
        and checkpoint is None
        and not is_factory(arch)
        and (url := published_url(build_sized(arch, options, num_classes=None))) is not None
    ):
        # timm 0.5.4 would unpickle what it downloads, and could not tell two files of the same name apart
        checkpoint, new_head = read_checkpoint(url), True
    described: dict[str, Any] = {"model_kwargs": told_kwargs} if told_kwargs else {}
    weights, name = None, "pretrained" if pretrained else "random"
    head: tuple[str, ...] = ()
    if checkpoint is not None:
        fitted = fit_to(checkpoint, ema, arch, num_classes=num_classes, options=options)
        vit, weights, size = fitted.vit, fitted.weights, fitted.image_size
        name = name if pretrained else weights.name
        described |= {} if fitted.described_size is None else {"img_size": size}
        if num_classes is not None and fitted.num_classes not in (None, num_classes):
            if not new_head:
                raise class_count_error(checkpoint.source, fitted.num_classes, num_classes)
            head = reset_head(vit, num_classes, arch, size)
            _logger.info("%s: a new head for %d classes in place of %d", arch, num_classes, fitted.num_classes)
    else:
        classes = 1000 if num_classes is None and not pretrained else num_classes
        vit = build_sized(arch, options, num_classes=classes, pretrained=pretrained)
        published = config_of(vit).get("num_classes")
        if pretrained and classes not in (None, published):
            _logger.info("%s: a new head for %d classes in place of %s", arch, classes, published)
        size = side_of(options.get("img_size")) or image_size_for(vit)
    if config:
        vit.pretrained_cfg = vit.default_cfg = {**config_of(vit), **images_config(config)}  # type: ignore[assignment]
    used_mean, used_std, origin = resolve_normalization(vit, weights, mean=mean, std=std, described=told)
    if checkpoint is not None and origin not in ("checkpoint", "caller"):
        checkpoint.warn_of_other_normalization(used_mean, used_std)
    model = with_normalization(vit, used_mean, used_std)
    model.normalization_origin, model.weights_name = origin, name
    model.arch, model.image_size, model.new_head_tensors = arch, size, head
    model.described = described | ({"mean": model.mean, "std": model.std} if origin == told.place else {})
    return model
