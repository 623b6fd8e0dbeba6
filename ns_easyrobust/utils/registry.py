"""What can be named on the command line: it registers itself, from a folder's files or from other people's packages."""

from __future__ import annotations

import importlib
import logging
import pkgutil
import sys
from importlib.metadata import entry_points
from typing import TypeVar

from ..errors import OptionError

PLUGINS = "ns_easyrobust.plugins"  # entry points of this group name modules of other packages
_logger = logging.getLogger(__name__)
_begun: set[str] = set()  # what was asked for its registrations, which may be under way
Item = TypeVar("Item")


class Registry(dict[str, Item]):
    """Items of one kind by name; all of them after :meth:`complete`.

    Args:
        kind: what an item is, for errors.
        package: the folder whose every file registers items when it is imported; "" for none.
    """

    def __init__(self, kind: str, package: str = "") -> None:
        super().__init__()
        self.kind, self.package = kind, package

    def add(self, name: str, item: Item, module: str) -> None:
        """Register an item that ``module`` defines.

        Raises:
            OptionError: the name is taken.
        """
        if not module.startswith(f"{self.package}."):
            self._import_files()  # so that a name of theirs is found to be taken
        if name in self or name == "none":
            raise OptionError(f"{self.kind} {name!r}: expected a new name, found one that is taken. Choose another.")
        self[name] = item

    def complete(self) -> Registry[Item]:
        """The registry, once the folder's files and the plugins have been imported."""
        self._import_files()
        _import_plugins()
        return self

    def _import_files(self) -> None:
        if not self.package or self.package in _begun:
            return
        _begun.add(self.package)
        for file in pkgutil.iter_modules(sys.modules[self.package].__path__):
            importlib.import_module(f"{self.package}.{file.name}")


def _import_plugins() -> None:
    """Import the modules that installed packages name; one that fails is named in a warning, and the others work."""
    if PLUGINS in _begun:
        return
    _begun.add(PLUGINS)
    for plugin in entry_points(group=PLUGINS):
        try:
            plugin.load()
        except Exception as error:  # whatever other people's code raises
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            _logger.warning("plugin %s (%s) is left out: %s", plugin.name, plugin.value, reason)
