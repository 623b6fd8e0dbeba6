"""Labels against the classes that names state, as RobustBench's list has them."""

from __future__ import annotations

import logging

import pytest
from easyrobust.benchmarks.adversarial.autoattack import AutoAttackImageNetDataset
from helpers.folders import fill, labels_of

from ns_easyrobust.data import imagenet
from ns_easyrobust.data.benchmarks import class_folders, damagenet, imagenet_val
from ns_easyrobust.data.image_folder import check_classes, open_image_folder
from ns_easyrobust.data.known_labels import OtherClasses, class_in_name, contradiction
from ns_easyrobust.errors import DataError

TRUE = {path.split("/")[1]: int(label) for path, label in AutoAttackImageNetDataset("")._indices}
SOME = dict(list(TRUE.items())[:600])
# Some order that is not that of the WordNet ids, from 1, as the devkit's is.
OTHER_ORDER = {label: (7 * label + 3) % 1000 + 1 for label in range(1000)}


def flat(tmp_path, labels):
    root = fill(tmp_path / "imagenet-val", *SOME)
    (root / "val.txt").write_text("".join(f"{name} {label}\n" for name, label in labels.items()))
    return root


def shifted(names):
    return dict(zip(names, [*list(names.values())[7:], *list(names.values())[:7]], strict=True))


def test_right_labels_are_taken(tmp_path):
    assert labels_of(imagenet_val(flat(tmp_path, SOME), 1000)) == SOME


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({name: label + 1 for name, label in SOME.items()}, r"found another for 600 of 600.* count from 1: subtract 1"),
        ({name: OTHER_ORDER[label] for name, label in SOME.items()}, "classes in another order, such as .* devkit"),
        (shifted(SOME), "labels of other images, as after a shift of the lines"),
        (SOME | {next(iter(SOME)): 999}, r"found another for 1 of 600, the first \S+: 999, not \d+ \(n\d+\)\. Correct"),
    ],
    ids=["from 1", "another order", "shifted", "one"],
)
@pytest.mark.parametrize("load", [imagenet_val, damagenet])
def test_wrong_labels_are_refused_with_their_likely_cause(tmp_path, labels, message, load):
    with pytest.raises(DataError, match=r"imagenet-val, labelled by val\.txt: expected the classes.*" + message):
        load(flat(tmp_path, labels), 1000)


def test_labels_from_1_of_images_that_are_not_known(tmp_path):
    root = fill(tmp_path / "imagenet-val", "x.JPEG", "y.JPEG")
    (root / "val.txt").write_text("x.JPEG 1\ny.JPEG 1000\n")
    with pytest.raises(DataError, match=r"label outside 0 to 999, the first y\.JPEG\. Do the labels count from 1\?"):
        imagenet_val(root, 1000)
    assert imagenet_val(root, 1001).labels == (1, 1000)


def test_what_names_state():
    wnid, index = imagenet.wnids()[7], 7
    name = next(name for name, label in TRUE.items() if label == index)
    assert class_in_name(f"{wnid}/{name}") == class_in_name(name.replace("JPEG", "png")) == index
    assert class_in_name(f"somewhere/{wnid}_10026.JPEG") == index
    assert class_in_name(f"ILSVRC2012_val_00000000_{wnid}.JPEG") == index
    for unknown in ("x.png", "ILSVRC2012_val_00000000.JPEG", "art_0.jpg", "n00000000_1.JPEG", f"sketch_{wnid}.png"):
        assert class_in_name(unknown) is None


def test_folders_in_another_order(tmp_path):
    by_class = {label: name for name, label in TRUE.items()}
    paths = [f"class {1000 - label:04d}/{by_class.get(label, 'x.JPEG')}" for label in range(1000)]
    root = fill(tmp_path, *paths)
    with pytest.raises(DataError, match=r"labelled by the order of the folders: expected .* another order"):
        class_folders(root, 1000)


def test_folders_numbered_from_1(tmp_path):
    root = fill(tmp_path, *(f"{c}/x.png" for c in range(1, 1001)))
    with pytest.raises(DataError, match=r"found 1000 as the largest of 1000\. They seem to count from 1"):
        class_folders(root, 1000)


def test_a_file_in_anothers_folder(tmp_path):
    root = fill(tmp_path, *(f"{imagenet.wnids()[c]}/{imagenet.wnids()[c]}_1.JPEG" for c in range(5)))
    assert class_folders(root, 1000).labels == (0, 1, 2, 3, 4)
    fill(root, f"{imagenet.wnids()[3]}/{imagenet.wnids()[4]}_2.JPEG")
    with pytest.raises(DataError, match=r"found another for 1 of 6, .*: 3, not 4 .* Correct"):
        class_folders(root, 1000)
    assert len(class_folders(root, 5)) == 6, "another dataset's labels are its own"


def test_a_class_folder_that_is_a_broken_link(tmp_path):
    root = fill(tmp_path, f"{imagenet.wnids()[0]}/x.JPEG")
    (root / imagenet.wnids()[1]).symlink_to("nowhere")
    with pytest.raises(DataError, match=f"found files or broken links: {imagenet.wnids()[1]}"):
        class_folders(root, 1000)


@pytest.mark.parametrize(("name", "differs"), [("{}", True), ("{:04d}", False)])
def test_training_warns_of_numbers_that_a_benchmark_takes_otherwise(tmp_path, caplog, name, differs):
    root = fill(tmp_path, *(f"{name.format(c)}/x.png" for c in range(1000)))
    with caplog.at_level(logging.WARNING):
        check_classes(open_image_folder(root), 1000)
    assert ("rename the folders with leading zeros" in caplog.text) == differs


def test_no_contradiction_without_a_statement():
    assert contradiction([("x.png", 3), ("art_1.jpg", 5)]) is None


def test_numbers_beside_a_training_set_of_numbers_are_its_classes(tmp_path):
    fill(tmp_path, *(f"{split}/{name}/1.png" for split in ("train", "val", "v2") for name in "012"))
    for root in (tmp_path / "val", tmp_path / "v2"):
        with pytest.raises(OtherClasses, match=r"train holds 3 classes\. Evaluate a model of 3 outputs"):
            imagenet_val(root, 1000)
        assert set(imagenet_val(root, 3).labels) == {0, 1, 2}


def test_released_sets_beside_other_training_sets(tmp_path):
    """ImageNet-V2's numbers and a part of ImageNet by its ids stay ImageNet's classes; so does Imagenette."""
    wnids = imagenet.wnids()[:3]
    fill(tmp_path, *(f"train/{wnid}/1.png" for wnid in wnids), *(f"val/{wnid}/1.png" for wnid in wnids[1:]))
    fill(tmp_path, "v2/7/1.png", "v2/0/1.png")
    assert imagenet_val(tmp_path / "val", 1000).labels == (1, 2)
    assert set(imagenet_val(tmp_path / "v2", 1000).labels) == {0, 7}
    fill(tmp_path / "all", *(f"{split}/{number}/1.png" for split in ("train", "val") for number in range(501)))
    assert len(imagenet_val(tmp_path / "all" / "val", 1000)) == 501


def test_class_names_that_training_did_not_have(tmp_path):
    fill(tmp_path, *(f"train/{name}/1.png" for name in "abc"), *(f"val/{name}/1.png" for name in "azc"))
    with pytest.raises(
        DataError, match=r"val: expected the class folders of .*train, .*found z in place of b\. Rename"
    ):
        imagenet_val(tmp_path / "val", 3)
    fill(tmp_path, "train/d/1.png")  # another dataset's: the model has three outputs
    assert imagenet_val(tmp_path / "val", 3).labels == (0, 1, 2)


@pytest.mark.parametrize("outputs", [3, 1000])
def test_a_flat_damagenet_of_other_classes_can_be_left_out(tmp_path, outputs):
    root = fill(tmp_path / "damagenet", "x.png", "y.png")
    (root / "val.txt").write_text("x.png 1\ny.png 1000\n")
    with pytest.raises(DataError, match=f"label outside 0 to {outputs - 1}") as caught:
        damagenet(root, outputs)
    assert isinstance(caught.value, OtherClasses) == (outputs == 3)
