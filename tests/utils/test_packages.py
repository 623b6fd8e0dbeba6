"""What is missing is one line with what installs it, before anything is built or written."""

from __future__ import annotations

import configparser
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from helpers.models import small_vit

from ns_easyrobust.attacks import known_attacks
from ns_easyrobust.attacks.gradient import cw, fgsm, pgd
from ns_easyrobust.attacks.standard_auto_attack import autoattack
from ns_easyrobust.cli import main as cli
from ns_easyrobust.errors import MissingPackageError, ModelError
from ns_easyrobust.integration import register, run_script
from ns_easyrobust.models.architectures import build
from ns_easyrobust.utils import import_package, packages

PIXELS, LABELS = torch.rand(2, 3, 32, 32), torch.tensor([0, 1])


@pytest.fixture
def bare(monkeypatch):
    """An environment with the base alone."""
    for package in ("easyrobust", "sklearn", "tensorboard", "torchattacks", "wandb"):
        for name in [name for name in sys.modules if name.split(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)


def missing(package: str, install: str) -> str:
    return rf"expected {package}, found it not installed\. Install it \({install}\)\."


@pytest.mark.parametrize("attack", [fgsm, pgd, cw])
def test_attacks_of_torchattacks(bare, attack):
    line = f"^{attack.__name__}: {missing('torchattacks', 'pip install --no-deps torchattacks')}$"
    with pytest.raises(MissingPackageError, match=line):
        attack(small_vit(), PIXELS, LABELS)
    with pytest.raises(MissingPackageError, match=line):
        known_attacks()[attack.__name__]().require_applicable(small_vit(), PIXELS[:1], LABELS[:1])


def test_attack_and_models_of_easyrobust(bare):
    line = f"^autoattack: {missing('easyrobust', 'pip install --no-deps easyrobust==0.2.4')}$"
    with pytest.raises(MissingPackageError, match=line):
        autoattack(small_vit(), PIXELS, LABELS)
    with pytest.raises(MissingPackageError, match=line):
        known_attacks()["autoattack"]().require_applicable(small_vit(), PIXELS[:1], LABELS[:1])
    with pytest.raises(ModelError, match=missing("easyrobust", "pip install .*PyWavelets.*")):
        build("rvt_tiny_of_easyrobust")


def test_scripts_of_easyrobust(bare, tmp_path):
    (tmp_path / "main.py").write_text("raise SystemExit('run')")
    for call in (register, lambda: run_script(tmp_path / "main.py", [])):
        with pytest.raises(MissingPackageError, match="expected easyrobust, found it not installed"):
            call()


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_tracker_of_train(bare, tmp_path, capsys, package, digits_dir):
    words = ["--model", "vit_micro_patch8_32", "--num-classes", "10", "--data-dir", str(digits_dir)]
    words += ["--output", str(tmp_path / "out"), f"--log-{package}", "--device", "cpu"]
    assert cli.main(["train", *words]) == 2
    line = f"--log-{package}: {missing(package, f'pip install {package}')}\n"
    assert re.search(line, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_the_demo(bare, tmp_path, capsys, monkeypatch):
    assert cli.main(["demo", "--output", str(tmp_path / "out")]) == 2
    line = f"the demo: {missing('scikit-learn', 'pip install scikit-learn')}\n"
    assert re.search(line, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_package_that_lacks_what_it_needs(tmp_path, monkeypatch):
    (tmp_path / "halfthere.py").write_text("import no_such_package_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingPackageError) as caught:
        import_package("halfthere", "a test")
    assert str(caught.value) == (
        "a test: expected to import halfthere, found No module named 'no_such_package_at_all'. "
        "Install what is missing (pip install halfthere)."
    )


def test_what_is_named_is_what_the_extras_hold():
    config = configparser.ConfigParser()
    config.read(Path(__file__).parents[2] / "setup.cfg")
    extras = "\n".join(config["options.extras_require"].values())
    held = {re.split("[<>=!~]", line)[0].lower() for line in extras.splitlines() if line}
    for command in packages._INSTALL.values():
        words = [word for word in shlex.split(command) if word not in ("pip", "install", "--no-deps", "&&")]
        dependencies = {"einops", "ftfy", "opt_einsum", "regex"}  # that easyrobust declares
        dependencies |= {f"ns_easyrobust[{extra}]" for extra in config["options.extras_require"]}
        assert {re.split("[<>=]", word)[0].lower() for word in words} <= held | dependencies
