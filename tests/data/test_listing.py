"""What counts as an image or a class folder, for training and evaluation alike; links, and folders without end."""

from __future__ import annotations

import os
import shutil

import pytest
from helpers.folders import fill
from torchvision.datasets import ImageFolder

from ns_easyrobust.data import listing
from ns_easyrobust.data.benchmarks import class_folders
from ns_easyrobust.data.image_folder import open_image_folder
from ns_easyrobust.data.integrity import examine
from ns_easyrobust.data.listing import images_below, list_folder, walk
from ns_easyrobust.errors import DataError

LITTER = (
    ".ipynb_checkpoints/x-checkpoint.png",
    "a/.ipynb_checkpoints/x-checkpoint.png",
    "a/._x.png",
    "a/.DS_Store",
    "a/Thumbs.db",
    "a/@eaDir/x.png/SYNOPHOTO_THUMB_M.jpg",
    "@eaDir/x.png",
    "__MACOSX/a/x.png",
    "lost+found/x.png",
    "README.txt",
)


def test_training_and_evaluation_leave_out_the_same(folder):
    clean = open_image_folder(folder).samples
    theirs = ImageFolder(str(folder))
    assert clean == theirs.samples
    fill(folder, *LITTER)
    dataset, listed = open_image_folder(folder), class_folders(folder, 2)
    assert dataset.classes == ["a", "b"]
    listed_samples = zip((f"{folder}/{path}" for path in listed.paths), listed.labels, strict=True)
    assert dataset.samples == clean == list(listed_samples)
    assert dataset.targets == theirs.targets
    shutil.copytree(folder, folder / "data" / "imagenet-val")
    findings = [finding.text for finding in examine(folder / "data", 2, suites=["val"], workers=1)]
    assert "2 classes, 6 images, labelled by the order of the folders" in findings
    assert any(text.startswith("8 hidden files or folders: .ipynb_checkpoints, @eaDir, __MACOSX") for text in findings)


def test_deeper_folders_in_torchvisions_order(tmp_path):
    fill(tmp_path, "a/z.png", "a/b/2.png", "a/b/10.png", "a/b-c/1.png", "a/B/x.JPG", "b/c/d/e.webp", "b/0.gif")
    assert open_image_folder(tmp_path).samples == ImageFolder(str(tmp_path)).samples


def test_links_are_followed_but_not_in_a_circle(tmp_path):
    fill(tmp_path, "x/1.png", "elsewhere/2.png")
    (tmp_path / "x" / "linked").symlink_to(tmp_path / "elsewhere")
    assert list(images_below(tmp_path, "x")) == ["x/1.png", "x/linked/2.png"]
    for name in ("one", "two"):  # 2**40 folders for who follows both
        (tmp_path / "x" / name).symlink_to(tmp_path / "x")
    with pytest.raises(DataError, match=r"x/one: expected folders of images, found a link back"):
        list(images_below(tmp_path, "x"))
    with pytest.raises(DataError, match="found a link back"):
        open_image_folder(tmp_path)
    assert [place for place, *_ in walk(tmp_path / "x", everything=True)] == ["", "linked"]


def test_links_that_multiply_are_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "_MOST_FOLDERS", 1000)
    for level in range(20):
        (tmp_path / str(level)).mkdir()
        for name in "ab":
            (tmp_path / str(level) / name).symlink_to(f"../{level + 1}")
    with pytest.raises(DataError, match="found over 1000 folders"):
        list(walk(tmp_path / "0"))


def test_names_that_are_no_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    (tmp_path / name).mkdir()
    fill(tmp_path, f"{name}/\udcff.png")
    assert open_image_folder(tmp_path).samples == [(f"{tmp_path}/{name}/\udcff.png", 0)]


@pytest.mark.parametrize("path", ["nowhere", "x" * 300, "a\0b", "file"])
def test_no_folder(tmp_path, path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="expected a folder of images, found none that can be read"):
        list_folder(tmp_path / path)
