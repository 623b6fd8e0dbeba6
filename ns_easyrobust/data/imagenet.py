"""ImageNet's class and image lists, read from the installed easyrobust without importing it.

The lists are literals in modules whose import would pull in attacks and timm; parsing the
source takes milliseconds and prints nothing.
"""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import OptionError

CLASSES = 1000
OBJECTNET_FOLDERS = 313  # folders in ObjectNet/images; 113 of them hold ImageNet classes


def _read_benchmark_file(*relative_path: str) -> str:
    """The text of a file in easyrobust's ``benchmarks`` folder."""
    spec = importlib.util.find_spec("easyrobust")
    if spec is None or not spec.submodule_search_locations:
        raise OptionError("ImageNet's class lists: expected easyrobust to be installed, found none. pip install it.")
    path = Path(spec.submodule_search_locations[0], "benchmarks", *relative_path)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise OptionError(f"{path}: expected easyrobust 0.2.4 with this file, found none. Install that one.") from error


def _literal(module: str, name: str) -> Any:
    """The literal that ``module`` of easyrobust.benchmarks.ood first assigns to ``name``."""
    for node in ast.parse(_read_benchmark_file("ood", f"{module}.py")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return ast.literal_eval(node.value)
    raise OptionError(f"easyrobust's {module}.py: expected the list {name}, found none. Install easyrobust 0.2.4.")


@cache
def wnids() -> tuple[str, ...]:
    """The 1000 WordNet ids, sorted: an id's position is its class index.

    Raises:
        OptionError: easyrobust is missing or of another version (all functions here raise it).
    """
    return tuple(_literal("imagenet_a", "all_wnids"))


@cache
def wnid_index() -> dict[str, int]:
    """WordNet id -> class index."""
    return {wnid: index for index, wnid in enumerate(wnids())}


@cache
def imagenet_a_classes() -> tuple[int, ...]:
    """The 200 class indices of ImageNet-A, ascending."""
    return tuple(sorted(wnid_index()[wnid] for wnid in _literal("imagenet_a", "imagenet_a_wnids")))


@cache
def imagenet_r_classes() -> tuple[int, ...]:
    """The 200 class indices of ImageNet-R, ascending."""
    return tuple(sorted(wnid_index()[wnid] for wnid in _literal("imagenet_r", "imagenet_r_wnids")))


@cache
def objectnet_classes() -> dict[int, int]:
    """ImageNet class index -> position of the ObjectNet folder among all 313, sorted."""
    return {int(index): folder for index, folder in _literal("objectnet", "objectnet_mapping").items()}


@cache
def robustbench_ids() -> tuple[str, ...]:
    """RobustBench's 5000 validation images as 'wnid/file.JPEG', in the order of its list."""
    return tuple(_read_benchmark_file("adversarial", "imagenet_test_image_ids.txt").split())
