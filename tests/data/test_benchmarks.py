from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.folders import fill, labels_of
from torchvision.datasets import ImageFolder

from ns_easyrobust.data import benchmarks, imagenet
from ns_easyrobust.errors import DataError, OptionError


def near(labels: torch.Tensor, spread: float = 3.0) -> torch.Tensor:
    """Logits (n, 1000) that are right for some of ``labels``."""
    logits = torch.randn(len(labels), 1000, generator=torch.Generator().manual_seed(0))
    return logits + spread * torch.nn.functional.one_hot(labels, 1000)


def test_other_names_are_labelled_as_imagefolder_does(tmp_path):
    root = fill(tmp_path, "cat/2.png", "cat/10.JPG", "cat/more/x.webp", "ant/0.jpeg", "ant/notes.txt", "ant/.DS_Store")
    listed, theirs = benchmarks.class_folders(root, 2), ImageFolder(str(root))
    assert [str(root / path) for path in listed.paths] == [path for path, _ in theirs.samples]
    assert list(listed.labels) == theirs.targets == [0, 1, 1, 1]
    with pytest.raises(DataError, match=r"one class folder for each of the model's 3 outputs, found 2\. Labels follow"):
        benchmarks.class_folders(root, 3)
    (root / "bee").mkdir()
    with pytest.raises(DataError, match=r"found 1 without: bee\. Labels would shift"):
        benchmarks.class_folders(root, 3)


def test_wordnet_ids_keep_their_class_when_others_are_missing(tmp_path):
    expected = {f"{imagenet.wnids()[c]}/x.png": c for c in (999, 3, 500)}
    root = fill(tmp_path, *expected)
    (root / imagenet.wnids()[7]).mkdir()
    (root / ".cache").mkdir()
    assert labels_of(benchmarks.class_folders(root, 1000)) == expected
    fill(root, "n00000000/x.png")
    with pytest.raises(DataError, match=r"1000 WordNet ids, found 1 others: n00000000\. Take them out"):
        benchmarks.class_folders(root, 1000)


@pytest.mark.parametrize("pattern", ["{}", "{:04d}"])
def test_class_indices_as_names(tmp_path, pattern):
    root = fill(tmp_path, *(f"{pattern.format(c)}/x.png" for c in range(1000)))
    assert labels_of(benchmarks.class_folders(root, 1000)) == {f"{pattern.format(c)}/x.png": c for c in range(1000)}
    theirs = [int(Path(path).parent.name) == label for path, label in ImageFolder(str(root)).samples]
    assert (sum(theirs) == 1000) == (pattern != "{}")


def test_class_indices_that_are_none(tmp_path):
    for wrong in ("1000", "007"):
        root = fill(tmp_path / wrong, "7/x.png", f"{wrong}/x.png")
        with pytest.raises(DataError, match="distinct class indices 0 to 999"):
            benchmarks.class_folders(root, 1000)


def test_numbers_of_another_dataset_follow_the_order_of_training(tmp_path):
    root = fill(tmp_path, *(f"{c}/x.png" for c in range(12)))
    assert list(benchmarks.class_folders(root, 12).labels) == ImageFolder(str(root)).targets == list(range(12))
    assert benchmarks.class_folders(root, 12).paths[2] == "10/x.png"


def test_no_folder_no_classes_no_images(tmp_path):
    for load in (
        benchmarks.class_folders,
        benchmarks.imagenet_val,
        benchmarks.damagenet,
        benchmarks.imagenet_a,
        benchmarks.objectnet,
    ):
        with pytest.raises(DataError, match="nowhere: expected a folder of images, found none"):
            load(tmp_path / "nowhere", 1000)
    with pytest.raises(DataError, match="expected one folder a class, found no folders"):
        benchmarks.class_folders(tmp_path, 2)
    (tmp_path / imagenet.wnids()[0]).mkdir()
    with pytest.raises(DataError, match="expected images, found none"):
        benchmarks.class_folders(tmp_path, 1000)


@pytest.mark.parametrize("name", ["a", "r"])
def test_a_and_r_are_judged_as_easyrobust_does(tmp_path, name):
    from easyrobust.benchmarks.ood import imagenet_a, imagenet_r
    from timm.utils import accuracy

    module = {"a": imagenet_a, "r": imagenet_r}[name]
    load = {"a": benchmarks.imagenet_a, "r": benchmarks.imagenet_r}[name]
    mask = getattr(module, f"imagenet_{name}_mask")
    root = fill(tmp_path, *(f"{wnid}/x.jpg" for wnid in getattr(module, f"imagenet_{name}_wnids")))
    listed = load(root, 1000)
    labels = torch.tensor(listed.labels)
    logits = near(labels)
    theirs = accuracy(logits[:, mask], torch.tensor(ImageFolder(str(root)).targets), topk=(1, 5))[0]
    right = listed.correct_predictions(logits, labels)
    assert int(right.sum()) == round(theirs.item() * 2) > int((logits.argmax(-1) == labels).sum()) > 0
    with pytest.raises(DataError, match="1000 outputs for this set, found 10"):
        load(root, 10)
    outside = next(w for w, inside in zip(imagenet.wnids(), mask, strict=True) if not inside)
    with pytest.raises(DataError, match=rf"200 classes, found 1 others: {outside}\."):
        load(fill(root, f"{outside}/x.jpg"), 1000)


def test_objectnet_is_judged_as_easyrobust_does(tmp_path):
    from easyrobust.benchmarks.ood.objectnet import ObjectNetDataset, imageNetIDToObjectNetID

    root = fill(tmp_path, *(f"object {c:03d}/{j}.png" for c in range(313) for j in range(2)))
    listed, theirs = benchmarks.objectnet(root, 1000), ObjectNetDataset(str(root))
    assert [(str(root / path), label) for path, label in labels_of(listed).items()] == theirs.imgs
    meaning = {folder: output for output, folder in imagenet.objectnet_classes().items()}
    labels = torch.tensor(listed.labels)
    logits = near(torch.tensor([meaning[label] for label in listed.labels]))
    predicted = logits.argmax(-1).tolist()
    imageNetIDToObjectNetID(predicted)
    assert listed.correct_predictions(logits, labels).tolist() == torch.tensor(predicted).eq(labels).tolist()
    assert 0 < listed.correct_predictions(logits, labels).sum() < len(listed)
    (root / "object 313").mkdir()
    with pytest.raises(DataError, match="expected all 313 folders of ObjectNet, found 314"):
        benchmarks.objectnet(root, 1000)


FLAT = ("ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG", "ILSVRC2012_val_00000003.JPEG")


LABELS = {FLAT[0]: 65, FLAT[1]: 970, FLAT[2]: 0}


def png(name: str) -> str:
    return name.replace(".JPEG", ".png")


def wnid_of(name: str) -> str:
    return imagenet.wnids()[LABELS[name]]


@pytest.mark.parametrize("place", [".", ".."])
@pytest.mark.parametrize(
    ("file", "lines"),
    [
        ("val.txt", lambda: [f"{name} {label}" for name, label in LABELS.items()]),
        ("val.txt", lambda: [f"{png(name)} {label}" for name, label in LABELS.items()]),
        (
            "LOC_val_solution.csv",
            lambda: [
                "ImageId,PredictionString",
                *(f"{n[:-5]},{wnid_of(n)} 85 1 499 272 {wnid_of(n)} 3 4 5 6 " for n in LABELS),
            ],
        ),
        ("mine.csv", lambda: [f"val/{name},{label}" for name, label in LABELS.items()]),
        ("mine.csv", lambda: ["\ufeff,label,width,filename", *(f"0,{LABELS[n]},500,{n}" for n in LABELS)]),
        ("mine.csv", lambda: ["file,wnid", *(f'"{name}",{wnid_of(name)}' for name in LABELS)]),
    ],
)
def test_a_flat_validation_folder(tmp_path, file, lines, place):
    root = fill(tmp_path / "imagenet-val", *FLAT, "._" + FLAT[0])
    (root / place / file).write_text("\n".join(lines()) + "\n", encoding="utf-8")
    (root / "sizes.csv").write_text("name,width\nx,two\n")
    listed = benchmarks.imagenet_val(root, 1000)
    assert labels_of(listed) == LABELS
    assert (listed.root, listed.labelled) == (root, f"by {file}")


def test_labels_of_a_flat_folder_that_do_not_fit(tmp_path, caplog):
    root = fill(tmp_path / "imagenet-val", *FLAT)
    with pytest.raises(DataError, match=r"beside these 3 images a label file \(val\.txt or LOC_val_solution\.csv\)"):
        benchmarks.imagenet_val(root, 1000)
    (root / "val.txt").write_text(f"{FLAT[0]} 1000\n{FLAT[1]} 1000\n{FLAT[2]} 1\n")
    with pytest.raises(DataError, match=rf"val\.txt.*found 2 with a label outside 0 to 999, the first {FLAT[0]}"):
        benchmarks.imagenet_val(root, 1000)
    (root / "val.txt").write_text(f"{FLAT[1]} 1\n")
    with pytest.raises(DataError, match=rf"found 2 without a label, the first {FLAT[0]}"):
        benchmarks.imagenet_val(root, 1000)
    (root / "val.txt").write_text("".join(f"{name} 1\n" for name in (*FLAT, "another.JPEG")))
    assert len(benchmarks.imagenet_val(root, 1000)) == 3
    assert "3 images for the 4 labels" in caplog.text
    (root / "val.txt").write_text(f"{FLAT[0]} 1\n{FLAT[0]} 2\n")
    with pytest.raises(DataError, match="expected one class an image, found 1 and 2 for ILSVRC2012_val_00000001"):
        benchmarks.imagenet_val(root, 1000)


def test_two_files_of_labels_that_disagree(tmp_path):
    root = fill(tmp_path, *FLAT)
    (root / "a.csv").write_text("".join(f"{name},1\n" for name in FLAT))
    (root / "b.csv").write_text("".join(f"{name},2\n" for name in FLAT))
    with pytest.raises(DataError, match=r"a\.csv and .*b\.csv: expected the same labels in both"):
        benchmarks.imagenet_val(root, 1000)


@pytest.mark.parametrize(("inner", "label_place"), [("", ""), ("", ".."), ("val", ""), ("val", "val"), ("val", "..")])
def test_flat_damagenet(tmp_path, inner, label_place):
    root = tmp_path / "damagenet"
    fill(root / inner, *map(png, FLAT))
    (root / label_place / "val.txt").write_text("".join(f"{name} {label}\n" for name, label in LABELS.items()))
    listed = benchmarks.damagenet(root, 1000)
    assert listed.root == root / inner
    assert labels_of(listed) == {png(name): label for name, label in LABELS.items()}


@pytest.mark.parametrize("inner", ["", "val"])
def test_damagenet_in_class_folders(tmp_path, inner):
    paths = {f"{wnid_of(name)}/{png(name)}": label for name, label in LABELS.items()}
    fill(tmp_path / inner, *paths)
    assert labels_of(benchmarks.damagenet(tmp_path, 1000)) == paths


def test_a_benchmark_does_not_take_anothers_place_even_with_the_same_loader():
    mine = benchmarks.Benchmark("v2", "mine", benchmarks.known_benchmarks()["v2"].load, "mine")
    with pytest.raises(OptionError, match="benchmark 'v2': expected a new name, found one that is taken"):
        benchmarks.register_benchmark(mine)
    assert benchmarks.known_benchmarks()["v2"].folder == "imagenetv2"
