"""Imagenette's squares in two parts: of which sizes, which images, and that no part sees the other's."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from PIL import Image

CLASSES = ("n01", "n02")


@pytest.fixture
def script(monkeypatch):
    """By its name, by which its processes find it."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("imagenette_tree")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Two classes with three images to train on and seven to evaluate; a landscape is red, green, blue in thirds."""
    root = tmp_path_factory.mktemp("source")
    for name in CLASSES:
        for split, count in (("train", 3), ("val", 7)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                image = Image.new("RGB", (90, 30), "red")
                image.paste("green", (30, 0, 60, 30))
                image.paste("blue", (60, 0, 90, 30))
                turned = image.transpose(Image.Transpose.ROTATE_90) if number % 2 else image
                turned.convert("L" if number == 0 else "RGB").save(folder / f"{split}_{number}.png")
    return root


def relative(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*.png")}


def test_parts_are_disjoint_of_equal_size_and_the_same_each_time(script, source, tmp_path):
    roots = [script.write_tree(source, tmp_path / name, side=16, per_class=3) for name in ("a", "b")]
    drawn = []
    for root in roots:
        select, confirm = (relative(root / part / "imagenet-val") for part in ("select", "confirm"))
        assert not select & confirm
        for part in (select, confirm):
            assert [sum(path.startswith(name) for path in part) for name in CLASSES] == [3, 3]
        assert select | confirm < relative(source / "val")
        assert relative(root / "train") == relative(source / "train")
        drawn.append((select, confirm))
    assert drawn[0] == drawn[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_links_hold_when_the_tree_is_moved(script, source, tmp_path):
    script.write_tree(source, tmp_path / "tree", side=16, per_class=1)
    root = (tmp_path / "tree").rename(tmp_path / "moved")
    assert (root / "val").resolve() == root / "select" / "imagenet-val"
    assert {(root / part / "train").resolve() for part in ("select", "confirm")} == {root / "train"}


def test_images_are_central_squares(script, source, tmp_path):
    root = script.write_tree(source, tmp_path / "tree", side=24, per_class=2)
    images = [Image.open(path) for path in root.rglob("*.png")]
    assert len(images) == 2 * (3 + 2 * 2)
    assert {(image.size, image.mode, image.format) for image in images} == {((24, 24), "RGB", "JPEG")}
    for name in ("train_1.png", "train_2.png"):  # upright and across: the middle third alone, as JPEG has it
        pixels = Image.open(root / "train" / "n01" / name).getextrema()
        assert all(abs(end - wanted) < 9 for ends, wanted in zip(pixels, (0, 128, 0), strict=True) for end in ends)


def test_a_tree_that_is_there_stays_and_an_unfinished_one_is_made_anew(script, source, tmp_path):
    (tmp_path / "tree.unfinished" / "train" / "n09").mkdir(parents=True)
    (mine := tmp_path / "tree.unfinished" / "mine").touch()
    with pytest.raises(FileExistsError, match="no unfinished tree"):
        script.write_tree(source, tmp_path / "tree", side=16, per_class=1)
    mine.unlink()
    (source / "train" / "n01" / ".DS_Store").touch()
    root = script.write_tree(source, tmp_path / "tree", side=16, per_class=1)
    assert sorted(path.name for path in (root / "train").iterdir()) == list(CLASSES)
    assert sorted(path.name for path in (root / "train" / "n01").iterdir()) == [f"train_{n}.png" for n in range(3)]
    with pytest.raises(FileExistsError, match="expected a new folder"):
        script.write_tree(source, root)
