"""Models that a function of the user's own builds, named ``pkg.module:function`` or ``file.py:function``."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ..errors import ModelError, OptionError, UserError, is_full_memory
from .outputs import logits_of
from .vit import bare_vit, find_normalize, required_image_size

_DEFAULT_SIDE = 224  # pixels, timm's default


def is_factory(name: str) -> bool:
    """Whether ``name`` is that of a factory and not of an architecture, a hub's model or a file.

    Example:
        >>> from ns_easyrobust.models.factories import is_factory
        >>> is_factory("my_models.vit:small"), is_factory("vit.py:small"), is_factory("vit_small_patch16_224")
        (True, True, False)
    """
    return re.fullmatch(r".+:[^\W\d]\w*", name, re.DOTALL) is not None and not re.match(
        r"(hf[-_]hub|local-dir):", name, re.IGNORECASE
    )


def require_factory(name: str) -> None:
    """Import the factory ``name`` without calling it; ModelError if there is none, as :func:`build_from_factory`."""
    where, _, function = name.rpartition(":")
    with _on_user_code(name, where):
        _find(name, where, function)


def build_from_factory(
    name: str, *, num_classes: int | None, pretrained: bool, options: Mapping[str, Any]
) -> nn.Module:
    """Call the factory ``name`` and return the bare transformer that it makes, in train mode.

    It is called with keywords alone: ``num_classes`` where it takes that (one that does not must make the right
    number itself), and the ``options``. What it prints goes to stderr. It returns a module of normalised pixels, or
    ``nn.Sequential(Normalize, module)`` (see :func:`~ns_easyrobust.models.normalization.with_normalization`), whose
    mean and std then stand in place of timm's.

    Args:
        num_classes: number of outputs; None: the factory's own.
        pretrained: refused, as the factory loads what it wants.
        options: further arguments; a ``drop_rate`` of 0 is left out.

    Raises:
        ModelError: no such file, module or function, or it raises, exits, does not take the options, or returns
            something else than a module that makes logits.
        OptionError: ``pretrained``.
    """
    if pretrained:
        raise OptionError(f"pretrained: expected an architecture of timm's, found the factory {name}. Leave it out.")
    arguments = {key: value for key, value in options.items() if not (key == "drop_rate" and not value)}
    where, _, function = name.rpartition(":")
    with _on_user_code(name, where):
        factory = _find(name, where, function)
        taken = _parameters(factory)
        if num_classes is not None and (taken is None or "num_classes" in taken):
            arguments["num_classes"] = num_classes
        if taken is not None and (unknown := [key for key in arguments if key not in taken]):
            raise ModelError(
                f"{name}: expected a factory that takes {', '.join(unknown)}, found {', '.join(taken) or 'none'}. "
                "Give other arguments (model_kwargs), or let it take **kwargs."
            )
        made = factory(**arguments)
        if not isinstance(made, nn.Module):
            found = f"{type(made).__name__} of {len(made)}" if isinstance(made, tuple | list) else type(made).__name__
            raise ModelError(f"{name}: expected a factory that returns an nn.Module, found {found}. Return the model.")
        vit = bare_vit(made).train()
        _describe(vit, find_normalize(made))
        if not isinstance(getattr(vit, "num_classes", None), int):
            vit.num_classes = _count_logits(vit, name)  # type: ignore[assignment]
    return vit


@contextlib.contextmanager
def _on_user_code(name: str, where: str) -> Iterator[None]:
    """Run code of the user's: neighbours of its file and of the current folder can be imported, what it prints goes to
    stderr, and whatever it raises becomes a ModelError.
    """
    added = [str(Path(where).expanduser().resolve().parent)] if where.endswith(".py") else []
    added = [folder for folder in dict.fromkeys((*added, os.getcwd())) if folder not in sys.path]
    sys.path += added
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if is_full_memory(error):
            raise
        found = f"sys.exit({error.code!r})" if isinstance(error, SystemExit) else f"{type(error).__name__}: {error}"
        frames = traceback.extract_tb(error.__traceback__)
        frame = next((one for one in reversed(frames) if "site-packages" not in one.filename), frames[-1])
        place = f" ({Path(frame.filename).name}, line {frame.lineno})"
        raise ModelError(
            f"{name}: expected a factory that returns a model, found {' '.join(found.split())[:300]}{place}. Mend it."
        ) from error
    finally:
        for folder in added:
            with contextlib.suppress(ValueError):
                sys.path.remove(folder)


def _find(name: str, where: str, function: str) -> Callable[..., Any]:
    if where.endswith(".py"):
        path = Path(where).expanduser().absolute()
        if not path.is_file():
            raise ModelError(f"{name}: expected a Python file, found none at {where}. Check the path.")
        status = path.stat()
        module = _imported_file(path, status.st_mtime_ns, status.st_size)
    else:
        if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", where):
            raise ModelError(f"{name}: expected pkg.module:function or file.py:function, found {where!r} before ':'.")
        try:
            module = importlib.import_module(where)
        except ModuleNotFoundError as error:
            if not error.name or not f"{where}.".startswith(f"{error.name}."):
                raise
            raise ModelError(
                f"{name}: expected an importable module, found none called {error.name}. Install it, or give file.py:"
                f"{function}."
            ) from error
    factory = getattr(module, function, None)
    if not callable(factory):
        found = "nothing of that name" if factory is None else type(factory).__name__
        raise ModelError(f"{name}: expected a function {function} in {where}, found {found}. Check its name.")
    return factory


@functools.lru_cache(maxsize=16)
def _imported_file(path: Path, changed: int, size: int) -> ModuleType:
    """The module of a file, run once while it stays as it is (``changed`` and ``size`` say whether it does)."""
    name = f"ns_easyrobust_factory_{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _parameters(factory: Callable[..., Any]) -> list[str] | None:
    """Names of the keywords that it takes; None: any, or it does not say."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]


def _describe(vit: nn.Module, normalize: nn.Module | None) -> None:
    """Give a bare transformer the config that timm's have, as far as it has none: image size, mean and std."""
    config = dict(getattr(vit, "pretrained_cfg", None) or getattr(vit, "default_cfg", None) or {})
    required = required_image_size(vit)
    if required is not None:
        config["input_size"] = (3, *required)
    config.setdefault("input_size", (3, _DEFAULT_SIDE, _DEFAULT_SIDE))
    if normalize is not None:
        config |= {name: tuple(normalize.get_buffer(name).flatten().tolist()) for name in ("mean", "std")}
        config["normalization_origin"] = "factory"
    vit.default_cfg = vit.pretrained_cfg = config  # type: ignore[assignment]


def _count_logits(vit: nn.Module, name: str) -> int:
    size = vit.default_cfg["input_size"]  # type: ignore[index]
    try:
        with torch.no_grad():
            return int(logits_of(vit.eval()(torch.zeros(1, *size)), 1).shape[1])
    except ModelError as error:
        raise ModelError(f"{name}: expected logits of zeros, found other things: {error.line}") from error
    finally:
        vit.train()
