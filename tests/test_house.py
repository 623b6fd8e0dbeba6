"""The house: which folder may import from which, and that importing does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ns_easyrobust"
STOREYS = (
    ("utils",),
    ("models", "data"),
    ("attacks", "nullspace"),
    ("training", "evaluation"),
    ("integration", "report"),
    ("experiments",),
    ("cli",),
)
STOREY = {folder: storey for storey, folders in enumerate(STOREYS) for folder in folders}
FILES = sorted(path for folder in STOREY for path in (PACKAGE / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of each import of this package in the file, the module as dotted path below ns_easyrobust."""
    package = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = package[: len(package) - node.level + 1]
            for alias in node.names:
                yield ".".join([*above, *([node.module] if node.module else [])]), alias.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_folder_imports_from_lower_storeys_alone(path):
    own = path.relative_to(PACKAGE).parts[0]
    used = {(module or name).split(".")[0] for module, name in imports(path)} - {own, "errors"}
    assert {folder for folder in used if STOREY[folder] >= STOREY[own]} == set()


def test_every_folder_has_a_storey():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} <= set(STOREY)


def test_import_does_nothing(tmp_path):
    code = (
        "import logging, random, torch, sys; torch.manual_seed(1); before = torch.random.get_rng_state();"
        "import ns_easyrobust;"
        "assert torch.equal(torch.random.get_rng_state(), before);"
        "assert not logging.getLogger().handlers; assert torch.get_default_device().type == 'cpu';"
        "heavy = {'matplotlib', 'sklearn', 'torchattacks', 'easyrobust'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())
