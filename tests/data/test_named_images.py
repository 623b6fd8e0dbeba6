"""Sets by name: torchvision's from files in its own formats, Hugging Face's from a folder and from a table."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import pickle
import shutil
import struct
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from ns_easyrobust.data.image_folder import FolderView, check_classes, open_image_folder
from ns_easyrobust.data.named_images import check_dataset_name, open_named_splits
from ns_easyrobust.errors import DataError, OptionError

NO_HUB = importlib.util.find_spec("datasets") is None or importlib.metadata.version("timm").startswith("0.")
hub = pytest.mark.skipif(NO_HUB, reason="hfds/ sets need timm 1.x and datasets: pip install 'ns_easyrobust[hfds]'")
GREYS = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
DIGITS = np.arange(30, dtype=np.uint8) % 10


def write_idx(path: Path, array: np.ndarray) -> None:
    """MNIST's own format: magic number, sizes, bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    for name, part in (("train", slice(0, 20)), ("t10k", slice(20, 30))):
        write_idx(tmp_path / "MNIST" / "raw" / f"{name}-images-idx3-ubyte", GREYS[part])
        write_idx(tmp_path / "MNIST" / "raw" / f"{name}-labels-idx1-ubyte", DIGITS[part])
    return tmp_path


@pytest.fixture
def splits(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train/`` with three images in each of two classes, ``val/`` with two."""
    root = tmp_path_factory.mktemp("splits")
    shutil.copytree(folder, root / "train")
    shutil.copytree(folder, root / "val")
    for path in (root / "val").glob("*/0.png"):
        path.unlink()
    return root


def pixels(images) -> list[np.ndarray]:
    return [np.asarray(images.read(index)) for index in range(len(images))]


def test_mnist_as_colours_with_its_labels_and_class_names(mnist):
    train, val = open_named_splits("torch/MNIST", mnist, ["train", "val"])
    assert [*train.targets, *val.targets] == DIGITS.tolist()
    assert (train.classes[0], len(train.classes)) == ("0 - zero", 10)
    assert np.array_equal(pixels(train) + pixels(val), np.repeat(GREYS[..., None], 3, axis=-1))
    check_classes(train, 10)
    with pytest.raises(DataError, match=r"torch/mnist, split train: expected 9 .*found 10"):
        check_classes(open_named_splits("torch/mnist", mnist, ["train"])[0], 9)


def test_a_view_of_a_set_by_name_has_its_items_under_a_transform(mnist):
    view = FolderView(
        open_named_splits("torch/mnist", mnist, ["train"])[0], [7, 3], lambda image: image.getpixel((5, 9))
    )
    assert [view[0], view[1]] == [((int(GREYS[index, 9, 5]),) * 3, index) for index in (7, 3)]


def test_torchs_image_folder_is_ours(splits):
    named = open_named_splits("torch/image_folder", splits, ["train", "val"])
    for ours, images in zip(
        (open_image_folder(splits / "train"), open_image_folder(splits / "val")), named, strict=True
    ):
        assert (images.classes, images.targets) == (ours.classes, ours.targets)
        assert np.array_equal(pixels(images), pixels(ours))


def test_inaturalist_whose_labels_are_in_an_index(tmp_path):
    for split, label in (("2021_train", 0), ("2021_train", 1), ("2021_valid", 1)):
        species = tmp_path / split / f"0000{label}_Animalia_Chordata_Aves_Passeriformes_Corvidae_Corvus_c{label}"
        species.mkdir(parents=True)
        Image.new("RGB", (4, 4), (label, 0, 0)).save(species / "a.jpg")
    train = open_named_splits("torch/inat", tmp_path, ["train"])[0]
    assert (train.targets, len(train.classes)) == ([0, 1], 2)
    with pytest.raises(DataError, match=r"expected one label an image, found \['family'\]"):
        open_named_splits("torch/inat", tmp_path, ["family/train"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wds/shards", "read as a stream"),
        ("TFDS/mnist", "read as a stream"),
        ("hfids/uoft-cs/cifar10", "read as a stream"),
        ("cifar10", "expected torch/NAME or hfds/NAME"),
        ("torch/", "expected torch/NAME or hfds/NAME"),
        ("", "expected torch/NAME or hfds/NAME"),
    ],
)
def test_what_has_no_index_or_no_such_prefix_is_refused_by_name(name, message):
    with pytest.raises(OptionError, match=message) as caught:
        check_dataset_name(name)
    assert caught.value.line.startswith(f"dataset {name}: ")


def test_hugging_face_needs_timm_1_and_a_datasets_that_runs_no_scripts(monkeypatch):
    versions = {"timm": "0.5.4", "datasets": "3.6.0"}
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    with pytest.raises(OptionError, match=r"expected timm 1.x.*found timm 0\.5\.4"):
        check_dataset_name("hfds/x")
    versions["timm"] = "1.0.31"
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(OptionError, match=r"found it not installed. Install it .pip install 'datasets>=4'"):
        check_dataset_name("hfds/x")
    monkeypatch.setitem(sys.modules, "datasets", ModuleType("datasets"))
    with pytest.raises(OptionError, match=r"version 4 or later, .*found 3\.6\.0"):
        check_dataset_name("hfds/x")
    versions["datasets"] = "4.0.0"
    check_dataset_name("hfds/x")


def test_what_is_not_there_ends_in_one_line(mnist, tmp_path):
    for name, root in (("torch/nope", mnist), ("torch/mnist", tmp_path / "no"), ("torch/cifar10", mnist)):
        with pytest.raises(DataError, match=f"dataset {name}: expected a set with a split train, found none"):
            open_named_splits(name, root, ["train"])


def test_a_split_that_timm_takes_for_the_test_set_is_refused(mnist):
    with pytest.raises(DataError, match="expected two splits, found the same images in typo and val"):
        open_named_splits("torch/mnist", mnist, ["typo", "val"])  # for timm, whatever is not 'train' is the test set


def test_a_split_for_which_timm_takes_the_whole_folder_is_refused(splits):
    with pytest.raises(DataError, match="expected two splits, found the same images in train and other"):
        open_named_splits("torch/image_folder", splits / "train", ["train", "other"])


def test_pickles_never_run(mnist, tmp_path):
    class Harm:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    old = mnist / "MNIST" / "processed"
    old.mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save(Harm(), old / name)
    with pytest.raises(DataError, match=r"expected MNIST's own files in raw/, found a pickle of an old torchvision"):
        open_named_splits("torch/mnist", mnist, ["train"])
    batches = tmp_path / "cifar-10-batches-py"
    batches.mkdir()
    for name in (
        "data_batch_1",
        "data_batch_2",
        "data_batch_3",
        "data_batch_4",
        "data_batch_5",
        "test_batch",
        "batches.meta",
    ):
        (batches / name).write_bytes(pickle.dumps(Harm()))
    with pytest.raises(DataError, match="torch/cifar10: expected a set"):
        open_named_splits("torch/cifar10", tmp_path, ["train"])
    assert not (tmp_path / "ran").exists()


def test_an_unreadable_image_is_named_or_replaced(splits):
    (splits / "train" / "a" / "1.png").write_bytes(b"torn")
    train = open_named_splits("torch/image_folder", splits, ["train"])[0]
    with pytest.raises(DataError, match=r"a/1\.png: expected an image"):
        train.read(1)
    view = FolderView(train, range(6), np.asarray, replace_bad=True)
    assert np.array_equal(view[1][0], train.read(2))
    assert view.replaced.tolist() == [0, 1, 0, 0, 0, 0]


def test_the_digest_tells_images_labels_and_order_apart(mnist):
    def digest() -> str:
        return open_named_splits("torch/mnist", mnist, ["train"])[0].digest()

    raw, first = mnist / "MNIST" / "raw", digest()
    assert digest() == first
    write_idx(raw / "train-labels-idx1-ubyte", DIGITS[:20][::-1])
    second = digest()
    write_idx(raw / "train-images-idx3-ubyte", GREYS[:20] ^ 1)
    assert len({first, second, digest()}) == 3


@hub
def test_a_folder_through_hugging_face_is_ours(splits, tmp_path):
    named = open_named_splits(f"hfds/{splits}", tmp_path / "cache", ["train", "validation"])
    for ours, images in zip(
        (open_image_folder(splits / "train"), open_image_folder(splits / "val")), named, strict=True
    ):
        assert (images.classes, images.targets) == (ours.classes, ours.targets)
        assert np.array_equal(pixels(images), pixels(ours))
    with pytest.raises(DataError, match="expected a set with a split nope, found none"):
        open_named_splits(f"hfds/{splits}", tmp_path / "cache", ["nope"])


@hub
def test_a_table_with_columns_of_its_own(tmp_path):
    import datasets

    images = [Image.fromarray(grey) for grey in GREYS[:4]]
    columns = {"photo": images, "kind": [0, 2, 1, 0], "word": ["a", "b", "c", "d"], "half": [0.5] * 4}
    features = {"photo": datasets.Image(), **{name: datasets.Value(kind) for name, kind in
                (("kind", "int64"), ("word", "string"), ("half", "float32"))}}  # fmt: skip
    (tmp_path / "set").mkdir()
    for split, rows in (("train", 4), ("test", 2)):  # of the test images, none is of the last class
        table = datasets.Dataset.from_dict(columns, features=datasets.Features(features)).select(
            range(rows)[::-1][:rows]
        )
        table.to_parquet(tmp_path / "set" / f"{split}.parquet")

    def opened(splits=("train", "test"), input_key="photo", target_key="kind"):
        keys = {"input_key": input_key, "target_key": target_key}
        return open_named_splits(f"hfds/{tmp_path}/set", tmp_path / "cache", splits, **keys)

    train, test = opened()
    assert (train.classes, test.classes, train.targets, test.targets) == (["0", "1", "2"],) * 2 + ([0, 1, 2, 0], [2, 0])
    assert np.array_equal(pixels(train), np.repeat(GREYS[3::-1, ..., None], 3, axis=-1))
    for key, message in ((None, "expected a column 'label' of labels, found photo, kind"), ("word", "whole number"),
                         ("half", "whole number")):  # fmt: skip
        with pytest.raises(DataError, match=message):
            opened(target_key=key)
    wrong = opened(["train"], input_key="pixels")[0]
    with pytest.raises(DataError, match=r"expected an image in column 'pixels', found none.*input_key"):
        wrong.read(0)
