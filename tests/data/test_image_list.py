from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from ns_easyrobust.data import image_list as images
from ns_easyrobust.data import imagenet
from ns_easyrobust.data.image_list import ImageList, Subset
from ns_easyrobust.errors import DataError, OptionError


def fill(root: Path, *paths: str) -> Path:
    """Empty files: what they are called is all that a list looks at."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def labels_of(listed: ImageList) -> dict[str, int]:
    return dict(zip(listed.paths, listed.labels, strict=True))


def near(labels: torch.Tensor, spread: float = 3.0) -> torch.Tensor:
    """Logits (n, 1000) that are right for some of ``labels``."""
    logits = torch.randn(len(labels), 1000, generator=torch.Generator().manual_seed(0))
    return logits + spread * torch.nn.functional.one_hot(labels, 1000)


def test_other_names_are_labelled_as_imagefolder_does(tmp_path):
    root = fill(tmp_path, "cat/2.png", "cat/10.JPG", "cat/more/x.webp", "ant/0.jpeg", "ant/notes.txt", "ant/.DS_Store")
    listed, theirs = images.class_folders(root, 2), ImageFolder(str(root))
    assert [str(root / path) for path in listed.paths] == [path for path, _ in theirs.samples]
    assert list(listed.labels) == theirs.targets == [0, 1, 1, 1]
    with pytest.raises(DataError, match=r"one class folder for each of the model's 3 outputs, found 2\. Labels follow"):
        images.class_folders(root, 3)
    (root / "bee").mkdir()
    with pytest.raises(DataError, match=r"found 1 without: bee\. Labels would shift"):
        images.class_folders(root, 3)


def test_wordnet_ids_keep_their_class_when_others_are_missing(tmp_path):
    expected = {f"{imagenet.wnids()[c]}/x.png": c for c in (999, 3, 500)}
    root = fill(tmp_path, *expected)
    (root / imagenet.wnids()[7]).mkdir()
    (root / ".cache").mkdir()
    assert labels_of(images.class_folders(root, 1000)) == expected
    fill(root, "n00000000/x.png")
    with pytest.raises(DataError, match=r"1000 WordNet ids, found 1 others: n00000000\. Take them out"):
        images.class_folders(root, 1000)


@pytest.mark.parametrize("pattern", ["{}", "{:04d}"])
def test_class_indices_as_names(tmp_path, pattern):
    root = fill(tmp_path, *(f"{pattern.format(c)}/x.png" for c in range(1000)))
    assert labels_of(images.class_folders(root, 1000)) == {f"{pattern.format(c)}/x.png": c for c in range(1000)}
    theirs = [int(Path(path).parent.name) == label for path, label in ImageFolder(str(root)).samples]
    assert (sum(theirs) == 1000) == (pattern != "{}")


def test_class_indices_that_are_none(tmp_path):
    for wrong in ("1000", "007"):
        root = fill(tmp_path / wrong, "7/x.png", f"{wrong}/x.png")
        with pytest.raises(DataError, match="distinct class indices 0 to 999"):
            images.class_folders(root, 1000)


def test_numbers_of_another_dataset_follow_the_order_of_training(tmp_path):
    root = fill(tmp_path, *(f"{c}/x.png" for c in range(12)))
    assert list(images.class_folders(root, 12).labels) == ImageFolder(str(root)).targets == list(range(12))
    assert images.class_folders(root, 12).paths[2] == "10/x.png"


def test_no_folder_no_classes_no_images(tmp_path):
    for load in (images.class_folders, images.imagenet_val, images.damagenet, images.imagenet_a, images.objectnet):
        with pytest.raises(DataError, match="nowhere: expected a folder of images, found none"):
            load(tmp_path / "nowhere", 1000)
    with pytest.raises(DataError, match="expected one folder a class, found no folders"):
        images.class_folders(tmp_path, 2)
    (tmp_path / imagenet.wnids()[0]).mkdir()
    with pytest.raises(DataError, match="expected images, found none"):
        images.class_folders(tmp_path, 1000)


@pytest.mark.parametrize("name", ["a", "r"])
def test_a_and_r_are_judged_as_easyrobust_does(tmp_path, name):
    from easyrobust.benchmarks.ood import imagenet_a, imagenet_r
    from timm.utils import accuracy

    module = {"a": imagenet_a, "r": imagenet_r}[name]
    load = {"a": images.imagenet_a, "r": images.imagenet_r}[name]
    mask = getattr(module, f"imagenet_{name}_mask")
    root = fill(tmp_path, *(f"{wnid}/x.jpg" for wnid in getattr(module, f"imagenet_{name}_wnids")))
    listed = load(root, 1000)
    labels = torch.tensor(listed.labels)
    logits = near(labels)
    theirs = accuracy(logits[:, mask], torch.tensor(ImageFolder(str(root)).targets), topk=(1, 5))[0]
    right = listed.predictions_right(logits, labels)
    assert int(right.sum()) == round(theirs.item() * 2) > int((logits.argmax(-1) == labels).sum()) > 0
    with pytest.raises(DataError, match="1000 outputs for this set, found 10"):
        load(root, 10)
    outside = next(w for w, inside in zip(imagenet.wnids(), mask, strict=True) if not inside)
    with pytest.raises(DataError, match=rf"200 classes, found 1 others: {outside}\."):
        load(fill(root, f"{outside}/x.jpg"), 1000)


def test_objectnet_is_judged_as_easyrobust_does(tmp_path):
    from easyrobust.benchmarks.ood.objectnet import ObjectNetDataset, imageNetIDToObjectNetID

    root = fill(tmp_path, *(f"object {c:03d}/{j}.png" for c in range(313) for j in range(2)))
    listed, theirs = images.objectnet(root, 1000), ObjectNetDataset(str(root))
    assert [(str(root / path), label) for path, label in labels_of(listed).items()] == theirs.imgs
    meaning = {folder: output for output, folder in imagenet.objectnet_classes().items()}
    labels = torch.tensor(listed.labels)
    logits = near(torch.tensor([meaning[label] for label in listed.labels]))
    predicted = logits.argmax(-1).tolist()
    imageNetIDToObjectNetID(predicted)
    assert listed.predictions_right(logits, labels).tolist() == torch.tensor(predicted).eq(labels).tolist()
    assert 0 < listed.predictions_right(logits, labels).sum() < len(listed)
    (root / "object 313").mkdir()
    with pytest.raises(DataError, match="expected all 313 folders of ObjectNet, found 314"):
        images.objectnet(root, 1000)


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
    listed = images.imagenet_val(root, 1000)
    assert labels_of(listed) == LABELS
    assert (listed.root, listed.labelled) == (root, f"by {file}")


def test_labels_of_a_flat_folder_that_do_not_fit(tmp_path, caplog):
    root = fill(tmp_path / "imagenet-val", *FLAT)
    with pytest.raises(DataError, match=r"beside these 3 images a label file \(val\.txt or LOC_val_solution\.csv\)"):
        images.imagenet_val(root, 1000)
    (root / "val.txt").write_text(f"{FLAT[0]} 1000\n{FLAT[1]} 1000\n{FLAT[2]} 1\n")
    with pytest.raises(DataError, match=rf"val\.txt.*found 2 with a label outside 0 to 999, the first {FLAT[0]}"):
        images.imagenet_val(root, 1000)
    (root / "val.txt").write_text(f"{FLAT[1]} 1\n")
    with pytest.raises(DataError, match=rf"found 2 without a label, the first {FLAT[0]}"):
        images.imagenet_val(root, 1000)
    (root / "val.txt").write_text("".join(f"{name} 1\n" for name in (*FLAT, "another.JPEG")))
    assert len(images.imagenet_val(root, 1000)) == 3
    assert "3 images for the 4 labels" in caplog.text
    (root / "val.txt").write_text(f"{FLAT[0]} 1\n{FLAT[0]} 2\n")
    with pytest.raises(DataError, match="expected one class an image, found 1 and 2 for ILSVRC2012_val_00000001"):
        images.imagenet_val(root, 1000)


def test_two_files_of_labels_that_disagree(tmp_path):
    root = fill(tmp_path, *FLAT)
    (root / "a.csv").write_text("".join(f"{name},1\n" for name in FLAT))
    (root / "b.csv").write_text("".join(f"{name},2\n" for name in FLAT))
    with pytest.raises(DataError, match=r"a\.csv and .*b\.csv: expected the same labels in both"):
        images.imagenet_val(root, 1000)


@pytest.mark.parametrize(("inner", "label_place"), [("", ""), ("", ".."), ("val", ""), ("val", "val"), ("val", "..")])
def test_flat_damagenet(tmp_path, inner, label_place):
    root = tmp_path / "damagenet"
    fill(root / inner, *map(png, FLAT))
    (root / label_place / "val.txt").write_text("".join(f"{name} {label}\n" for name, label in LABELS.items()))
    listed = images.damagenet(root, 1000)
    assert listed.root == root / inner
    assert labels_of(listed) == {png(name): label for name, label in LABELS.items()}


@pytest.mark.parametrize("inner", ["", "val"])
def test_damagenet_in_class_folders(tmp_path, inner):
    paths = {f"{wnid_of(name)}/{png(name)}": label for name, label in LABELS.items()}
    fill(tmp_path / inner, *paths)
    assert labels_of(images.damagenet(tmp_path, 1000)) == paths


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


@pytest.mark.parametrize("layout", ["folders", "flat", "png"])
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
