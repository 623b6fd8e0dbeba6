"""The house: which folder may import what from which, and that importing and ``--help`` load no torch."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import ns_easyrobust

PACKAGE = Path(ns_easyrobust.__file__).parent
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


class Import(NamedTuple):
    """``name`` of ``module``, the path of a module or folder below the package."""

    module: tuple[str, ...]
    name: str


def imports(path: Path, types: bool = True) -> Iterator[Import]:
    """What the file imports of this package; without ``types`` what it imports at run time."""
    tree, package = ast.parse(path.read_text(encoding="utf-8")), path.relative_to(PACKAGE).parent.parts
    for_types = {id(inner) for block in ast.walk(tree) if is_for_types(block) for inner in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and (types or id(node) not in for_types):
            above = package[: len(package) - node.level + 1]
            for alias in node.names:
                yield Import((*above, *(node.module or "").split(".")) if node.module else above, alias.name)
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert not any(module.split(".")[0] == PACKAGE.name for module in modules), f"{path}: import it relatively"


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def names_taken(path: Path) -> Iterator[Import]:
    """What the file takes from other folders: by name, or as an attribute of a folder."""
    own, folders = path.relative_to(PACKAGE).parts[0], {}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    aliases = [alias for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    for found in imports(path):
        if not found.module and found.name in STOREY:
            used_as = {alias.asname or alias.name for alias in aliases if alias.name == found.name}
            folders |= dict.fromkeys(used_as, found.name)  # from .. import data
        elif found.module and found.module[0] in STOREY and found.module[0] != own:
            yield found
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in folders:
            yield Import((folders[node.value.id],), node.attr)


def folder_of(found: Import) -> str:
    return (*found.module, found.name)[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_file_imports_from_lower_storeys_and_only_what_they_offer(path):
    own = path.relative_to(PACKAGE).parts[0]
    used = {folder_of(found) for found in imports(path)} - {own, "errors", "__version__"}
    assert {folder for folder in used if STOREY[folder] >= STOREY[own]} == set()
    for found in names_taken(path):
        assert len(found.module) == 1, f"{'.'.join(found.module)}: take {found.name} from its folder"
        assert found.name in importlib.import_module(f"ns_easyrobust.{found.module[0]}").__all__


def test_files_beside_the_folders_import_nothing_of_them():
    for path in PACKAGE.glob("*.py"):
        if path.name not in ("__init__.py", "__main__.py"):
            assert list(imports(path)) == [], path


def test_every_folder_has_a_storey():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(STOREY)


def test_no_file_imports_itself_by_a_detour():
    modules = {path.relative_to(PACKAGE).with_suffix("").parts: path for path in FILES if path.name != "__init__.py"}
    needs = {
        module: {place for found in imports(path, types=False) for place in (found.module, (*found.module, found.name))}
        & set(modules)
        for module, path in modules.items()
    }
    assert len(list(TopologicalSorter(needs).static_order())) == len(modules)  # CycleError names the detour


@pytest.mark.parametrize("folder", ["", *STOREY])
def test_a_folder_offers_what_it_says_and_no_name_of_a_file(folder):
    package = importlib.import_module(f"ns_easyrobust.{folder}".rstrip("."))
    files = {path.stem for path in (PACKAGE / folder).iterdir()} - {"errors"}
    if folder != "cli":  # from which nobody imports
        tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
        stated = {n.name for block in tree.body if is_for_types(block) for line in block.body for n in line.names}
        assert stated | ({"errors"} if not folder else set()) == set(package.__all__) == set(dir(package))
    assert not files & set(package.__all__), "import of the file would hide the name"
    for name in package.__all__:
        assert getattr(package, name) is getattr(package, name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_tests_lie_as_the_code_does():
    tests = Path(__file__).parent
    for path in tests.glob("*/**/test_*.py"):
        place = path.parent.relative_to(tests)
        folder = (tests.parent if place.parts[0] in ("benchmarks", "examples") else PACKAGE) / place
        modules = [file.stem for file in folder.iterdir() if file.stem != "__init__"]
        about = path.stem.removeprefix("test_")
        assert any(about == name or about.startswith(f"{name}_") for name in modules), f"{path}: no such module"


def fresh(code: str, where: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=where, capture_output=True, text=True, check=False)


def test_import_does_nothing(tmp_path):
    code = (
        "import sys; import ns_easyrobust; assert not {'torch', 'timm', 'numpy'} & set(sys.modules);"
        "import logging, random, torch; torch.manual_seed(1); before = torch.random.get_rng_state();"
        "from ns_easyrobust import *; assert callable(synthesize) and callable(evaluate_imagenet_val);"
        "assert torch.equal(torch.random.get_rng_state(), before);"
        "assert not logging.getLogger().handlers; assert torch.get_default_device().type == 'cpu';"
        "heavy = {'matplotlib', 'sklearn', 'torchattacks', 'easyrobust'} & set(sys.modules); assert not heavy, heavy"
    )
    done = fresh(code, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_help_does_not_wait_for_torch(tmp_path):
    code = (
        "import contextlib, sys\n"
        "from ns_easyrobust.cli import main\n"
        "for words in [[], ['--version'], *([verb, '--help'] for verb in main.VERBS)]:\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        main.main(words)\n"
        "    heavy = {'torch', 'timm', 'torchvision', 'numpy', 'matplotlib', 'easyrobust'} & set(sys.modules)\n"
        "    assert not heavy, (words, heavy)\n"
    )
    done = fresh(code, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"ns-easyrobust {ns_easyrobust.__version__}\n" in done.stdout
    assert "--ns-solver" in done.stdout
