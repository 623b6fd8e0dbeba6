"""A module imports only from rows above its own (the table in CONTRIBUTING.md)."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ns_easyrobust"
ROWS = [
    ["errors"],
    ["randomness", "files", "corrupt", "distributed", "intervals", "wording", "sheets", "published"],
    [
        "streams",
        "vit",
        "without_cuda",
        "averaging",
        "models",
        "downloads",
        "readers",
        "weights",
        "imagenet",
        "listing",
        "journal",
    ],
    [
        "linear",
        "noise",
        "layouts",
        "attacks",
        "data",
        "records",
        "bits",
        "figures",
        "attention",
        "patches",
        "label_files",
        "fused",
        "pool",
    ],
    ["tracing", "unseen", "probe", "checkpoints", "images", "patchfool", "recorder", "paired", "columns"],
    ["solvers", "trial", "suites", "protocols", "grid"],
    ["sphere", "opened", "progress", "trials"],
    ["synthesis", "judging"],
    ["parts", "checkup", "tables", "summary", "submit"],
    ["corruptions", "summary_sheet"],
    ["augment", "evaluate", "suite_run", "page", "digits"],
    ["options", "report", "companion", "repairs"],
    ["registration", "runstate", "stopping", "trackers"],
    ["prepare"],
    ["training"],
    ["train"],
    ["nullspace_table", "export", "benchmark", "noise_file", "doctor", "launch"],
    ["cli"],
    ["demo", "__main__"],
]
LEVEL = {module: level for level, row in enumerate(ROWS) for module in row}


def imported(path: Path) -> set[str]:
    """Names of this package's modules that the file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found |= {node.module} if node.module else {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("module", sorted(LEVEL))
def test_imports_point_upwards(module):
    names = imported(PACKAGE / f"{module}.py")
    wrong = {name for name in names if name in LEVEL and LEVEL[name] >= LEVEL[module]}
    assert not wrong
    assert names <= set(LEVEL)


def test_every_module_has_a_place():
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} == set(LEVEL)


def test_import_does_nothing(tmp_path):
    import subprocess

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
