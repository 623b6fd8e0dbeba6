"""What pip installs, resolves and shows: the wheel's files, the requirements, README on a package index."""

from __future__ import annotations

import configparser
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import ns_easyrobust

ROOT = Path(__file__).parents[1]
SOURCE = "https://example.org/ns_easyrobust"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def long_description(source: str) -> str:
    spec = importlib.util.spec_from_file_location("setup_script", ROOT / "setup.py")
    spec.loader.exec_module(script := importlib.util.module_from_spec(spec))
    return script.long_description(README, source)


def test_on_a_package_index_no_link_of_readme_leads_nowhere():
    def targets(text):
        return re.findall(r"(?:\]\(|src=\")([^)\"]+)", text)

    relative = [target for target in targets(README) if "://" not in target]
    assert relative
    assert all((ROOT / target).exists() for target in relative)
    without = long_description("")
    assert targets(without) == [target for target in targets(README) if "://" in target]
    assert "docs/reliability.md" in without
    assert [line for line in without.splitlines() if line not in README.splitlines()] != []  # links became words
    absolute = [target for target in targets(long_description(SOURCE)) if target.startswith(SOURCE)]
    assert absolute == [f"{SOURCE}/{'raw' if target.endswith('.png') else 'blob'}/HEAD/{target}" for target in relative]


def test_nothing_pins_an_exact_version_but_easyrobust():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    base = config["options"]["install_requires"].split()
    pins = [line for extra in config["options.extras_require"].values() for line in extra.split() if "==" in line]
    assert [line for line in base if not re.fullmatch(r"\w+>=[\d.]+", line)] == []
    assert pins == ["easyrobust==0.2.4"]


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == ns_easyrobust.__version__
    assert "2403.10476" in citation["preferred-citation"]["url"]


def test_the_wheel_holds_all_that_is_not_python(tmp_path):
    names = ("setup.cfg", "setup.py", "README.md", "LICENSE", "ns_easyrobust")
    for name in names:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    words = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, tmp_path]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("ns_easyrobust/")}
    files = {path for path in (ROOT / "ns_easyrobust").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert packed == {path.relative_to(ROOT).as_posix() for path in files}


@pytest.mark.stress
@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ((".[attacks]", "timm>=1.0"), {"timm": "1.", "torchattacks": "3."}),
        ((".", "robustbench"), {"timm": "1.", "robustbench": "1."}),
        ((".[easyrobust,demo,test]",), {"timm": "0.5.4", "easyrobust": "0.2.4", "setuptools": ("7", "80.")}),
    ],
    ids=["attacks beside timm 1.x", "base beside robustbench", "EasyRobust with its own timm"],
)
def test_pip_resolves_it(wanted, found, tmp_path):
    """In an empty environment, from the metadata of this folder."""
    index = subprocess.run([sys.executable, "-m", "pip", "index", "versions", "pip"], capture_output=True, check=False)
    if index.returncode:
        pytest.skip("pip finds no package index")
    for name in ("setup.cfg", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "ns_easyrobust").mkdir()
    shutil.copy(ROOT / "ns_easyrobust" / "__init__.py", tmp_path / "ns_easyrobust")
    words = ["install", "--dry-run", "--ignore-installed", "--no-build-isolation", "--quiet", "--report", "report.json"]
    pip = [sys.executable, "-m", "pip", *words, *wanted]
    done = subprocess.run(pip, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / "report.json").read_text())
    versions = {item["metadata"]["name"].lower(): item["metadata"]["version"] for item in report["install"]}
    for name, version in found.items():
        assert versions[name].startswith(version), versions
