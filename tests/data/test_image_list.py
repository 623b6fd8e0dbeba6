"""Lists of images, and parts of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.folders import labels_of
from PIL import Image
from torchvision import transforms

from ns_easyrobust.data.image_list import ImageList, Subset
from ns_easyrobust.errors import DataError, OptionError


def test_an_item_is_cropped_transformed_and_labelled(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    listed = ImageList(tmp_path, ("x.png",), (4,), 10, border=2)
    image, label = listed[0]
    assert (np.asarray(image).tolist(), label) == (pixels[2:-2, 2:-2].tolist(), 4)
    tensor, _ = listed.with_transform(transforms.ToTensor())[0]
    assert torch.equal(tensor, torch.tensor(pixels[2:-2, 2:-2] / np.float32(255)).permute(2, 0, 1))
    assert listed.transform is None
    (tmp_path / "x.png").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"x\.png: expected an image, found one that cannot be decoded"):
        listed[0]


@pytest.fixture(scope="module")
def listed() -> ImageList:
    return ImageList(Path("nowhere"), tuple(f"{i:03d}.png" for i in range(100)), tuple(range(100)), 100)


@pytest.mark.parametrize("text", ["all", "first:500", "random:500", "random:500:7", "robustbench"])
def test_a_subset_is_its_text(text):
    assert str(Subset.parse(text)) == text


@pytest.mark.parametrize("text", ["", "first", "first:0", "first:5:1", "random:-1", "random:5:", "half", "random:٣"])
def test_no_subset(text):
    with pytest.raises(OptionError, match="subset: expected all, first:N, random:N"):
        Subset.parse(text)


def test_parts_of_a_list(listed):
    assert Subset.parse("all").of(listed) is Subset.parse("first:100").of(listed) is listed
    assert Subset.parse("first:7").of(listed).paths == listed.paths[:7]
    before = torch.random.get_rng_state()
    parts = {text: Subset.parse(text).of(listed) for text in ("random:30", "random:30:0", "random:30:1")}
    assert torch.equal(torch.random.get_rng_state(), before)
    one, again, other = (part.paths for part in parts.values())
    assert one == again != other
    assert one == tuple(sorted(set(one)))
    assert len(one) == 30
    assert all(labels_of(part).items() <= labels_of(listed).items() for part in parts.values())


@pytest.mark.parametrize("layout", [pytest.param("folders", marks=pytest.mark.stress), "flat", "png"])
def test_robustbench(tmp_path, layout):
    from easyrobust.benchmarks.adversarial.autoattack import AutoAttackImageNetDataset

    theirs = AutoAttackImageNetDataset("")._indices
    paths = [*(path for path, _ in theirs), "n01440764/ILSVRC2012_val_00000000.JPEG"]
    if layout != "folders":
        paths = [path.split("/")[1] for path in paths]
    if layout == "png":
        paths = [path.replace(".JPEG", ".png") for path in paths]
    labels = (*(int(label) for _, label in theirs), 0)
    order = torch.randperm(5001, generator=torch.Generator().manual_seed(0)).tolist()
    listed = ImageList(tmp_path, tuple(paths), labels, 1000).take(order)
    part = Subset("robustbench").of(listed)
    assert (part.paths, part.labels) == (tuple(paths[:-1]), labels[:-1])
    with pytest.raises(DataError, match=r"5000 images of RobustBench's list, found 4999 of them \(missing: n09468604/"):
        Subset("robustbench").of(ImageList(tmp_path, tuple(p for p, _ in theirs[1:]), labels[1:-1], 1000))
    with pytest.raises(DataError, match="found 0 of them"):
        Subset("robustbench").of(ImageList(tmp_path, ("x.png",), (0,), 1000))
