"""A recipe is found by its name, from anywhere; a file of that name comes first."""

from __future__ import annotations

from pathlib import Path

import pytest

from ns_easyrobust.errors import OptionError
from ns_easyrobust.training.options import parse_args
from ns_easyrobust.training.recipes import recipe_names, recipe_path

REPOSITORY = Path(__file__).parents[2]
FLAGS = ["--model", "vit_micro_patch8_32", "--data-dir", "."]


def test_a_name_and_the_path_in_the_repository_are_one_file(monkeypatch, tmp_path):
    old = REPOSITORY / "benchmarks" / "recipes"
    assert recipe_names() == sorted(path.stem for path in old.iterdir()) != []
    assert all(Path(recipe_path(name)).samefile(old / f"{name}.yaml") for name in recipe_names())
    assert recipe_path("paper_weak.yaml") == recipe_path("paper_weak")
    monkeypatch.chdir(tmp_path)
    assert parse_args(["-c", "paper_weak", *FLAGS]).weight_decay == 1e-4
    (tmp_path / "paper_weak").write_text("weight_decay: 0.5")
    assert parse_args(["-c", "paper_weak", *FLAGS]).weight_decay == 0.5


@pytest.mark.parametrize("name", ["paper_storng", "recipes/paper_strong", "../paper_strong.yaml"])
def test_a_name_that_is_none(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    line = rf"{name}: expected a YAML file of flags, found: No such file or directory. Recipes: .*paper_weak.*\."
    with pytest.raises(OptionError, match=line):
        parse_args(["-c", name, *FLAGS])


METHODS = {
    "mixup": {"mixup": 0.2, "aa": None},
    "cutmix": {"cutmix": 1.0, "mixup": 0.0},
    "randaugment": {"aa": "rand-m9-n2-inc1"},
    "trivialaugment": {"aa": "trivial", "train_interpolation": "random"},
    "sam": {"sam_rho": 0.1},
    "augmix": {"aa": "augmix-m1-w3-a1", "augmix_ops": "published", "aug_splits": 3, "jsd_loss": True},
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_differs_from_weak_finetuning_in_itself_alone(name):
    """At equal updates, without nullspace noise; each line has its source."""
    args, weak = (vars(parse_args(["-c", recipe, *FLAGS])) for recipe in (name, "paper_weak"))
    assert {key: args[key] for key in METHODS[name]} == METHODS[name]
    differing = {key for key in args if args[key] != weak[key]} - {"config", "aug", "ns_cosine_steps"}
    assert differing <= set(METHODS[name])
    assert differing
    assert args["aug"] == "none"
    lines = Path(recipe_path(name)).read_text(encoding="utf-8").splitlines()
    assert all("#" in line for line in lines if line != "aug: none")
