"""Registries of what the command line can name, filled by a folder's files and by other people's packages."""

from __future__ import annotations

import importlib
import logging
import pkgutil
import re
import sys
import threading
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any, TypeVar

from ..errors import OptionError

PLUGINS = "ns_easyrobust.plugins"  # entry points of this group name modules of other packages
_logger = logging.getLogger(__name__)
_registries: list[Registry[Any]] = []
_import_started: set[str] = set()  # folders whose files, or whether the plugins, have been imported or are being so
_lock = threading.RLock()  # other threads wait for the imports; this one may come back from within them
Item = TypeVar("Item")


class Registry(dict[str, Item]):
    """Items of one kind by name; all of them after :meth:`complete`.

    Args:
        kind: what an item is, for errors.
        package: the folder whose every file registers items when it is imported; "" for none.
        namespace: registries of one namespace share their names.
        reserved: names that no item may have.
    """

    def __init__(self, kind: str, package: str = "", namespace: str = "", reserved: Sequence[str] = ("none",)) -> None:
        super().__init__()
        self.kind, self.package, self.namespace, self.reserved = kind, package, namespace or kind, reserved
        self.sources: dict[str, str] = {}  # of the items, by name
        _registries.append(self)

    def require_name(self, name: object) -> None:
        """Raise OptionError unless ``name`` can be one; a decorator without its parentheses gives a function."""
        if not (isinstance(name, str) and re.fullmatch(r"[\w-]+", name)):
            raise OptionError(f"{self.kind}: expected a name of letters, digits, - and _, found {name!r}.")

    def add(self, name: str, item: Item, source: str) -> None:
        """Register an item, which takes its own place if it comes from the same ``source``.

        Args:
            source: where it is defined, a dotted path, or what else tells it from others.

        Raises:
            OptionError: ``name`` is no text, or taken; the item has a ``revision`` that is no whole number >= 1.
        """
        self.require_name(name)
        revision = getattr(item, "revision", 1)
        if not (type(revision) is int and 1 <= revision < 2**53):
            raise OptionError(
                f"{self.kind} {name!r}: expected a whole number >= 1 as its revision, found {revision!r}."
            )
        if not source.startswith(f"{self.package}."):
            self._import_files()  # so that a name of theirs is found to be taken
        related = [other for other in _registries if other.namespace == self.namespace]
        own = self.sources.get(name) == source
        if not own and any(name in other or name in other.reserved for other in related):
            raise OptionError(f"{self.kind} {name!r}: expected a new name, found one that is taken. Choose another.")
        self[name], self.sources[name] = item, source

    def complete(self) -> Registry[Item]:
        """The registry, once the folder's files and the plugins have been imported."""
        self._import_files()
        _import_plugins()
        return self

    def _sort(self, files: list[str]) -> None:
        """The items of ``files`` first, in the files' order, whichever of them was imported first; then the others'."""
        places = {f"{self.package}.{file}": place for place, file in enumerate(files)}
        modules = {name: source.rpartition(".")[0] for name, source in self.sources.items()}
        items = sorted(self.items(), key=lambda item: places.get(modules[item[0]], len(files)))
        self.clear()
        self.update(items)

    def _import_files(self) -> None:
        with _lock:
            if not self.package or self.package in _import_started:
                return
            _import_started.add(self.package)
            try:
                files = [file.name for file in pkgutil.iter_modules(sys.modules[self.package].__path__)]
                for file in files:
                    importlib.import_module(f"{self.package}.{file}")
                self._sort(files)
            except BaseException:
                _import_started.discard(self.package)  # to be tried again
                raise


def _import_plugins() -> None:
    """Import the modules that installed packages name; one that fails is named in a warning, and the others work."""
    with _lock:
        if PLUGINS in _import_started:
            return
        _import_started.add(PLUGINS)
        for plugin in entry_points(group=PLUGINS):
            before = [(registry, dict(registry), dict(registry.sources)) for registry in _registries]
            try:
                plugin.load()
            except (Exception, SystemExit) as error:  # whatever other people's code raises
                for registry, items, sources in before:
                    registry.clear()
                    registry.update(items)
                    registry.sources = sources
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                _logger.warning("plugin %s (%s) is left out: %s", plugin.name, plugin.value, reason)
