"""The recipes that come with the package: YAML files of flags, each number with its source."""

from __future__ import annotations

import os
from pathlib import Path

_FOLDER = Path(__file__).parents[1] / "recipes"


def recipe_names() -> list[str]:
    """The names of the package's recipes."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def recipe_path(name: str) -> str:
    """The file ``name``; where there is none, the package's recipe of that name, with or without ``.yaml``.

    Example:
        >>> from ns_easyrobust.training import recipe_path
        >>> recipe_path("paper_strong").endswith("recipes/paper_strong.yaml")
        True
    """
    stem = name.removesuffix(".yaml")
    return str(_FOLDER / f"{stem}.yaml") if stem in recipe_names() and not os.path.lexists(name) else name
