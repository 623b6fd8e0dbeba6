"""Opening masks, and making them."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.models import small_vit
from PIL import Image

from ns_easyrobust.errors import DataError, ModelError, OptionError, OutputError
from ns_easyrobust.training.masks import open_masks, read_ids, write_mask
from ns_easyrobust.training.masks import token_cut_folder as made_by

CLASSES = ("n2", "n1", "n3")


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Six images in each of three classes: an oblong in noise. Masks of two of the classes."""
    generator = np.random.default_rng(0)
    for name in CLASSES:
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(6):
            pixels = generator.integers(0, 60, (48, 40, 3), np.uint8)
            pixels[8:32, 10:30] = (220, 40 * number, 120)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.{'png' if number % 2 else 'jpg'}")
            if name != "n2":
                patches = np.zeros((6, 4), bool)
                patches[1:4, 1:3] = True
                write_mask(tmp_path / "masks" / name / f"{number}.png", patches, (40, 48))
    return tmp_path / "images", tmp_path / "masks"


@pytest.fixture
def model() -> torch.nn.Module:
    return small_vit().eval()


def chosen(masked) -> list[tuple[str, str, int]]:
    return [(Path(item.image).parent.name, Path(item.image).stem, item.label) for item in masked.items]


def test_labels_follow_all_class_folders_and_the_seed_chooses(folders, model, monkeypatch):
    images, masks = folders
    first = chosen(open_masks(images, masks, model, 32, per_class=2, seed=1))
    assert [(name, label) for name, _, label in first] == [("n1", 0), ("n1", 0), ("n3", 2), ("n3", 2)]
    listed = os.scandir

    class Backwards:
        def __init__(self, folder):
            self.entries = list(listed(folder))[::-1]

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *error):
            return None

    monkeypatch.setattr(os, "scandir", Backwards)
    assert chosen(open_masks(images, masks, model, 32, per_class=2, seed=1)) == first
    others = {tuple(chosen(open_masks(images, masks, model, 32, per_class=2, seed=seed))) for seed in range(6)}
    assert len(others) > 3
    assert len({name for name, _, _ in chosen(open_masks(images, masks, model, 32, most_classes=1))}) == 1


def test_masks_that_say_nothing_are_passed_over_with_their_numbers(folders, model, caplog):
    images, masks = folders
    for number in range(5):
        write_mask(masks / "n1" / f"{number}.png", np.full((2, 2), number % 2 == 0), (40, 48))
    with caplog.at_level(logging.WARNING):
        taken = chosen(open_masks(images, masks, model, 32, per_class=6))
    assert [stem for name, stem, _ in taken if name == "n1"] == ["5"]
    assert len(taken) == 7
    assert "masks passed over: 2 all background, 3 all foreground" in caplog.text


def test_token_cut_masks_are_made_once_and_are_masks(folders, model, tmp_path, monkeypatch):
    images, _ = folders
    cache = tmp_path / "cache"
    masked = open_masks(images, None, model, 32, per_class=2, cache=cache)
    files = {path: path.stat().st_mtime_ns for path in cache.glob("*/*.png")}
    assert {item.mask for item in masked.items} <= set(map(str, files))
    assert (cache / "sheet.png").is_file()
    assert not (cache / ".masks.lock").exists()
    item = masked.items[0]
    image = Image.open(item.image).convert("RGB")
    patches = made_by.mask_of(model, image, 32, 0.2)
    rows, columns = np.arange(48) * 4 // 48, np.arange(40) * 4 // 40  # the patch that each pixel lies in
    assert np.array_equal(read_ids(item.mask) > 0, patches[rows][:, columns])
    assert patches.sum() > 1
    monkeypatch.setattr(made_by, "mask_of", None)
    assert chosen(open_masks(images, None, model, 32, per_class=2, cache=cache)) == chosen(masked)
    assert {path: path.stat().st_mtime_ns for path in cache.glob("*/*.png")} == files
    assert chosen(open_masks(images, cache, model, 32, per_class=1))  # in ImageNet-S's format


def test_an_interrupted_making_goes_on(folders, model, tmp_path, monkeypatch):
    images, _ = folders
    whole = open_masks(images, None, model, 32, per_class=2, cache=tmp_path / "whole")
    original, left = made_by.mask_of, 3

    def interrupted(*args):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(made_by, "mask_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_masks(images, None, model, 32, per_class=2, cache=tmp_path / "parts")
    present = list((tmp_path / "parts").glob("*/*.png"))
    assert len(present) == 3
    assert not (tmp_path / "parts" / "sheet.png").exists()
    present[0].write_bytes(b"")  # as after a power failure
    (present[0].parent / f".x.{'0' * 32}.tmp").touch()
    left = 1000
    again = open_masks(images, None, model, 32, per_class=2, cache=tmp_path / "parts")
    assert chosen(again) == chosen(whole)
    assert not list((tmp_path / "parts").glob("*/.*"))
    for one, other in zip(again.items, whole.items, strict=True):
        assert Path(one.mask).read_bytes() == Path(other.mask).read_bytes()


def test_a_cache_of_another_model_or_tau_or_of_something_else_is_refused(folders, model, tmp_path):
    images, masks = folders
    cache = tmp_path / "cache"
    open_masks(images, None, model, 32, per_class=1, cache=cache)
    with pytest.raises(OutputError, match="found model_sha256"):
        open_masks(images, None, small_vit(seed=1), 32, cache=cache)
    with pytest.raises(OutputError, match=r"found tau 0.2 where 0.3 is asked for"):
        open_masks(images, None, model, 32, cache=cache, tau=0.3)
    with pytest.raises(OutputError, match="that something else has made"):
        open_masks(images, None, model, 32, cache=masks)
    assert set(json.loads((cache / "masks.json").read_text())) >= {"model_sha256", "tau", "size", "images_sha256"}
    (cache / "masks.json").write_text("{")
    with pytest.raises(OutputError, match="expected what the masks were made with"):
        open_masks(images, None, model, 32, cache=cache)


def test_bad_folders_and_numbers_are_one_line_each(folders, model, tmp_path):
    images, masks = folders
    with pytest.raises(DataError, match="expected a folder of images, found none that can be read"):
        open_masks(images, tmp_path / "nowhere", model, 32)
    with pytest.raises(DataError, match=r"found 0 that fit none of them \(3 of 3 folders"):
        open_masks(images, _empty(tmp_path / "other"), model, 32)
    with pytest.raises(DataError, match="expected 10 class folders"):
        open_masks(images, masks, model, 32, num_classes=10)
    with pytest.raises(OptionError, match="found neither"):
        open_masks(images, None, model, 32)
    for options in ({"per_class": 0}, {"tau": 1.0}, {"most_classes": 0}):
        with pytest.raises(OptionError, match="masks: expected per_class"):
            open_masks(images, masks, model, 32, **options)
    with pytest.raises(ModelError, match="no patch embedding"):
        open_masks(images, None, torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8)), 32, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    write_mask(masks / "n1" / "0.png", np.eye(2, dtype=bool), (48, 40))
    with pytest.raises(DataError, match="expected a mask of 40x48 pixels"):
        open_masks(images, masks, model, 32, per_class=6)
    (masks / "n1" / "0.png").write_bytes(b"no PNG")
    with pytest.raises(DataError, match=r"0.png: expected an image"):
        open_masks(images, masks, model, 32, per_class=6)
    (images / "n1" / "0.webp").write_bytes((images / "n1" / "0.jpg").read_bytes())
    with pytest.raises(DataError, match=r"0.png: expected one image for each mask, found .*0.jpg and .*0.webp"):
        open_masks(images, masks, model, 32, per_class=6)


def _empty(folder: Path) -> Path:
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    return folder
