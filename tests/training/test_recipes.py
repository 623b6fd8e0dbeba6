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
    line = rf"{name}: expected a YAML file of flags, found: No such file or directory. Recipes: .*, paper_weak\b"
    with pytest.raises(OptionError, match=line):
        parse_args(["-c", name, *FLAGS])
