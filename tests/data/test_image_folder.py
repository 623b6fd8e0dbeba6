"""Image folders as datasets: labels, broken layouts, images that cannot be decoded."""

from __future__ import annotations

import pytest
from torch.utils.data import DataLoader
from torchvision.datasets.folder import IMG_EXTENSIONS

from ns_easyrobust.data.image_folder import FolderView, check_classes, open_image_folder
from ns_easyrobust.data.listing import IMAGE_ENDINGS
from ns_easyrobust.data.transforms import Preprocessing
from ns_easyrobust.errors import DataError


def test_labels_follow_sorted_class_names(folder):
    dataset = open_image_folder(folder)
    assert dataset.classes == ["a", "b"]
    assert dataset.targets == [0, 0, 0, 1, 1, 1]


def test_broken_layouts_are_named(folder, tmp_path):
    with pytest.raises(DataError, match="nowhere: expected a folder of images, found none"):
        open_image_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="found no folders"):
        open_image_folder(folder / "a")
    (folder / "c").mkdir()
    (folder / "c" / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"found 1 without: c\. Labels would shift"):
        open_image_folder(folder)


def test_wrong_class_count(folder):
    with pytest.raises(DataError, match=r"expected 1000 class folders.*found 2\. Pass num_classes=2"):
        check_classes(open_image_folder(folder), 1000)
    check_classes(open_image_folder(folder), 2)


_TORN = (b"", b"not an image", b"\x89PNG\r\n\x1a\n torn")


@pytest.mark.parametrize(
    ("workers", "content"),
    [
        *((0, content) for content in _TORN),
        *(pytest.param(1, content, marks=[pytest.mark.stress] * (content != b"")) for content in _TORN),
    ],
)
def test_a_corrupt_image_is_named_in_one_line(folder, content, workers):
    (folder / "b" / "1.png").write_bytes(content)
    loader = DataLoader(open_image_folder(folder, Preprocessing(8).transform()), batch_size=6, num_workers=workers)
    with pytest.raises(DataError) as caught:
        next(iter(loader))
    assert "\n" not in caught.value.line
    assert caught.value.line.startswith(f"{folder}/b/1.png: expected an image, found one that cannot be decoded")


def test_a_part_of_a_folder(folder):
    part = FolderView(open_image_folder(folder), [4, 0], Preprocessing(8).transform())
    assert len(part) == 2
    assert [label for _, label in (part[0], part[1])] == [1, 0]


def test_image_endings_are_torchvisions():
    assert IMAGE_ENDINGS == IMG_EXTENSIONS
