"""Models of the Hugging Face hub and folders of that form: timm's ``config.json`` beside ``model.safetensors``."""

from __future__ import annotations

import importlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.models import is_model

from ..errors import CheckpointError, ModelError
from ..utils import parse_json, read_bounded
from .description import Description, image_size_of, kwargs_of, normalization_of

CONFIG = "config.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in this order; the second is read without running code
_LONGEST_CONFIG = 2**20  # bytes
_PREFIX = re.compile(r"(hf[-_]hub|local-dir):(?!//)", re.IGNORECASE)
_OF_IMAGES: dict[str, type | tuple[type, ...]] = {  # their types, beside mean and std
    "input_size": list,
    "crop_pct": (int, float),
    "crop_mode": str,
    "interpolation": str,
    "fixed_input_size": bool,
}


@dataclass(frozen=True)
class HubModel:
    """A model of the hub, or a folder of that form, by the name that was given."""

    name: str

    def file(self, name: str) -> Path | None:
        """The local path of one of its files, downloaded where it must be; None: it has none of that name."""
        kind, _, place = self.name.partition(":") if _PREFIX.match(self.name) else ("", "", self.name)
        if not kind.lower().startswith("hf"):
            path = Path(os.path.expanduser(place)) / name
            return path if path.is_file() else None
        return _downloaded(self.name, place, name)

    @property
    def config(self) -> dict[str, Any]:
        """``config.json``, as timm writes it.

        Raises:
            CheckpointError: it is not there, or not timm's; or timm is older than 1.0.
        """
        if timm.__version__.startswith("0."):
            raise CheckpointError(
                f"{self.name}: expected timm 1.0 or newer for hub names and folders with {CONFIG}, found timm "
                f"{timm.__version__}. Name the weights' file in it, and the model."
            )
        path = self.file(CONFIG)
        if path is None:
            raise CheckpointError(f"{self.name}: expected a folder with {CONFIG}, found none. Check the path.")
        try:
            config = parse_json(read_bounded(path, _LONGEST_CONFIG))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: expected JSON, found {error}. Get the file again.") from error
        if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
            raise CheckpointError(f"{path}: expected timm's config with an architecture, found none. Name the model.")
        return config

    def weights_file(self) -> Path:
        """Local path of its weights; CheckpointError if there are none."""
        path = next((path for name in _WEIGHTS if (path := self.file(name)) is not None), None)
        if path is None:
            raise CheckpointError(f"{self.name}: expected {' or '.join(_WEIGHTS)} beside {CONFIG}, found none.")
        return path


def is_hub_name(name: str) -> bool:
    """Whether ``name`` is ``hf-hub:...``, ``hf_hub:...``, ``local-dir:...``, or a folder with a ``config.json``."""
    if _PREFIX.match(name) is not None or is_model(name):
        return not is_model(name)
    try:
        return (Path(os.path.expanduser(name)) / CONFIG).is_file()
    except (OSError, ValueError):  # no name of a file
        return False


def required_arch(told: Description | None, source: str | None) -> str:
    """The architecture that a description names, for weights whose architecture is not given.

    Args:
        told, source: the checkpoint's description and name; None: there is no checkpoint.

    Raises:
        ModelError: it names none, or none that a file may choose (see :attr:`Description.registered_arch`), such as
            one by which a folder here would be read.
    """
    named = None if told is None else told.registered_arch
    if named is not None and not is_hub_name(named):
        return named
    found = "no checkpoint that names one" if source is None else f"none in {source}"
    if told is not None and told.arch is not None:
        found = f"{told.arch[:80]!r} in {source}, which is never run unless it is given"
    raise ModelError(f"model: expected the name of an architecture, found {found}. Name the model (--model).")


def describe_config(config: dict[str, Any]) -> Description:
    """What a hub's ``config.json`` says of its model."""
    given = images_config(config)
    mean, std = normalization_of(given)
    kwargs = config.get("model_args")
    return Description(
        arch=config["architecture"],
        image_size=image_size_of({"model_kwargs": kwargs}) or image_size_of(given),
        mean=mean,
        std=std,
        model_kwargs=kwargs_of(kwargs),
        place=CONFIG,
    )


def images_config(config: dict[str, Any]) -> dict[str, Any]:
    """What a hub's ``config.json`` says of the images: timm's names for size, crop, interpolation, mean and std."""
    nested = config.get("pretrained_cfg")
    given = nested if isinstance(nested, dict) else config  # timm before 0.9 wrote them side by side
    mean, std = normalization_of(given)
    found = {name: given[name] for name in _OF_IMAGES if isinstance(given.get(name), _OF_IMAGES[name])}
    if "input_size" in found and not _is_shape(found["input_size"]):
        del found["input_size"]
    return found | ({} if mean is None else {"mean": mean, "std": std})


def _is_shape(value: list[Any]) -> bool:
    return len(value) == 3 and all(type(side) is int and side > 0 for side in value)


def _downloaded(name: str, place: str, file: str) -> Path | None:
    """A file of the hub in its local cache; None where the model has no such file."""
    try:
        hub = importlib.import_module("huggingface_hub")
        missing = importlib.import_module("huggingface_hub.errors").EntryNotFoundError
    except ImportError as error:
        raise CheckpointError(
            f"{name}: expected the package huggingface_hub, found none ({error}): pip install huggingface_hub."
        ) from error
    repository, _, revision = place.partition("@")
    try:
        return Path(hub.hf_hub_download(repository, file, revision=revision or None))
    except missing as error:
        if type(error).__name__ == "LocalEntryNotFoundError":  # no network
            raise _no_download(name, file, error) from error
        return None
    except Exception as error:  # of its own kinds, of urllib3's, httpx's, ...
        raise _no_download(name, file, error) from error


def _no_download(name: str, file: str, error: Exception) -> CheckpointError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return CheckpointError(
        f"{name}: expected to download {file} from the hub, found {reason}. Check the name and the network, or give a "
        "local folder."
    )
