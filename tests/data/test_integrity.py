from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from ns_easyrobust.data import imagenet
from ns_easyrobust.data.benchmarks import known_benchmarks
from ns_easyrobust.data.integrity import Finding, evenly_spaced, examine
from ns_easyrobust.errors import DataError


def said(root: Path, suite: str, **options) -> list[Finding]:
    return examine(root, suites=[suite], workers=1, **options)


def has(findings: list[Finding], level: str, text: str, effect: str = "") -> bool:
    return any(f.level == level and text in f.text and effect in f.effect for f in findings)


def test_a_whole_tree_has_no_problems(tree):
    root, planted = tree
    findings = examine(root, sample=20, workers=1)
    assert {f.suite for f in findings} == set(known_benchmarks())
    assert {f.level for f in findings} == {"ok", "warning"}
    for suite, facts in {
        "val": "1000 classes, 1000 images, labelled by wnid",
        "a": "200 classes, 200 images, labelled by wnid",
        "v2": "1000 classes, 1000 images, labelled by index",
        "c": "all 75 folders: 20 classes, 20 images, labelled by wnid",
        "objectnet": f"113 classes, {planted['ObjectNet/images'][0]} images, labelled by the order of the 313 folders",
        "damagenet": "1000 images, labelled by val.txt",
    }.items():
        assert [f.text for f in findings if f.suite == suite and f.level == "ok"] == [facts]
    assert has(
        [f for f in findings if f.suite == "val"], "warning", "5000 images of RobustBench's", "take a random subset"
    )
    assert has([f for f in findings if f.suite == "sketch"], "warning", "1000 images, expected 50889", "of a subset")
    assert has([f for f in findings if f.suite == "objectnet"], "warning", "in all folders, expected 50273")
    sizes = {f.suite for f in findings if "are not 224x224" in f.text and "(32x32)" in f.text}
    assert sizes == {"stylized", "c", "damagenet"}


def test_unpadded_names_and_what_they_would_have_done(tree):
    root, _ = tree
    # By hand: among "0" to "999" in text order, these twelve stand at the place they name.
    order = sorted(map(str, range(1000)))
    at_home = sum(place == int(name) for place, name in enumerate(order))
    share = f"{100 - at_home / 10:.1f}% of the images wrong"
    assert 0 < at_home < 20
    assert has(said(root, "v2"), "warning", "without leading zeros (0, 1, 10, ...)", share)


def test_a_part_of_the_classes(own):
    root = own("imagenet-a", "imagenet-sketch")
    wnids = [imagenet.wnids()[c] for c in imagenet.imagenet_a_classes()]
    for wnid in wnids[:2]:
        shutil.rmtree(root / "imagenet-a" / wnid)
    text = f"198 of 200 classes have images; none for {wnids[0]}, {wnids[1]}"
    assert has(said(root, "a"), "warning", text, "would label 100.0% of the images wrong; here names")
    last = imagenet.wnids()[-1]
    shutil.rmtree(root / "imagenet-sketch" / last)
    found = said(root, "sketch")
    assert has(found, "warning", f"999 of 1000 classes have images; none for {last}")
    assert not any("wrong" in f.effect for f in found)
    (root / "imagenet-sketch" / last).mkdir()
    assert has(said(root, "sketch"), "warning", f"none for {last}", f"would stop: no images in {last}")


def test_strays(own):
    root = own("imagenet-r")
    folder = root / "imagenet-r" / "n01443537"
    (folder / "Thumbs.db").touch()
    (root / "imagenet-r" / "README.txt").touch()
    (root / "imagenet-r" / "preview.png").touch()
    (folder / "._art_0.jpg").touch()
    (root / "imagenet-r" / ".cache").mkdir()
    found = said(root, "r")
    assert has(found, "ok", "200 classes, 200 images")
    assert has(found, "warning", "3 stray files: README.txt, n01443537/Thumbs.db, preview.png", "ignored")
    assert has(found, "warning", "2 hidden files or folders: .cache, n01443537/._art_0.jpg")
    assert has(found, "warning", "hidden folders", "would stop: no images in .cache")
    (root / "imagenet-r" / "n99999999").mkdir()
    assert has(said(root, "r"), "problem", "found 1 others: n99999999", "EasyRobust would label by the sorted folders")


def test_corruptions_that_are_missing(own):
    root = own("imagenet-c", classes=1)
    c = root / "imagenet-c"
    shutil.rmtree(c / "fog" / "3")
    (c / "noise").mkdir()
    (c / "shot_noise").rename(c / "noise" / "shot_noise")
    found = said(root, "c", sample=75)
    missing = "6 of 75 folders missing: shot_noise, fog/3; move up what lies in noise"
    assert has(found, "problem", missing, "no mCE; EasyRobust would stop")
    assert has(found, "ok", "69 of 75 folders (gaussian_noise/1, gaussian_noise/2, gaussian_noise/3, ...)")
    assert has(found, "warning", "69 of 69 images decoded are not 224x224")


@pytest.mark.parametrize(("sample", "broken"), [(2, 1), (None, 2)])
def test_unreadable_images(own, sample, broken):
    root = own("imagenet-a")
    paths = sorted((root / "imagenet-a").glob("*/*.jpg"))
    for path in (paths[0], paths[7]):
        path.unlink()  # it is a link to what other classes show, too
        path.write_bytes(b"\xff\xd8 torn")
    found = said(root, "a", sample=sample)
    of = sample or len(paths)
    assert has(
        found, "problem", f"{broken} of {of} images decoded are unreadable: {paths[0]}", "would stop at the first"
    )


def test_flat_folders(own, tmp_path):
    root = own("damagenet", "imagenet-a")
    lines = (root / "damagenet" / "val.txt").read_text().splitlines()
    (root / "imagenet-val").mkdir()
    for path in (root / "damagenet").glob("*1.png"):
        shutil.copy(path, root / "imagenet-val")
    rows = ["ImageId,PredictionString"]
    rows += [f"{line.split('.')[0]},{imagenet.wnids()[int(line.split()[1])]} 1 2 3 4" for line in lines]
    (root / "LOC_val_solution.csv").write_text("\n".join(rows))
    text = "100 images, labelled by LOC_val_solution.csv"
    assert has(said(root, "val"), "ok", text, "EasyRobust's ImageFolder would stop: no class folders")
    (root / "damagenet" / "val.txt").unlink()
    assert has(said(root, "damagenet"), "ok", "labelled by LOC_val_solution.csv")
    (root / "LOC_val_solution.csv").unlink()
    assert has(said(root, "damagenet"), "problem", "images a label file (val.txt or", "refused; EasyRobust would stop")


def test_another_number_of_outputs(tmp_path):
    for name in ("ant", "bee", "cat"):
        (tmp_path / "imagenet-val" / name).mkdir(parents=True)
        Image.new("RGB", (5, 4)).save(tmp_path / "imagenet-val" / name / "x.png")
    text = "3 classes, 3 images, labelled by the order of the folders"
    assert said(tmp_path, "val", outputs=3) == [Finding("val", "ok", text)]
    assert has(said(tmp_path, "val", outputs=4), "problem", "each of the model's 4 outputs, found 3", "refused")
    assert has(said(tmp_path, "val"), "problem", "each of the model's 1000 outputs, found 3", "--num-classes 3")


def test_absent_suites_and_a_hint(own):
    root = own("imagenet-a")
    (root / "imagenetv2-matched-frequency-format-val").mkdir()
    hint = "no folder imagenetv2; is it imagenetv2-matched-frequency-format-val?"
    assert said(root, "v2") == [Finding("v2", "absent", hint, "skipped")]


def test_no_such_folder(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: expected a folder of images, found none.*Check the path"):
        examine(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"expected some of imagenet-val, imagenet-a, .*, found none of them"):
        examine(tmp_path)


def test_a_sample_is_spread_evenly():
    assert evenly_spaced(10, 4) == [0, 2, 5, 7]
    assert evenly_spaced(3, 4) == evenly_spaced(3, None) == [0, 1, 2]


def test_own_classes(digits_dir, tmp_path):
    """Sets of ImageNet's classes are skipped, a part of the corruptions gives a mean, no size is expected."""
    findings = examine(digits_dir, 10, suites=["val", "c"], sample=5, workers=1)
    assert {f.level for f in findings} == {"ok", "warning"}
    assert has(findings, "warning", "70 of 75 folders missing", "the mean is over the others")
    assert not has(findings, "warning", "224x224")
    (tmp_path / "imagenet-a" / "n01498041").mkdir(parents=True)
    (tmp_path / "imagenetv2" / "0").mkdir(parents=True)
    folders = {"val": digits_dir / "val"}
    findings = examine(tmp_path, 10, suites=["val", "a", "v2", "r"], folders=folders, sample=5, workers=1)
    assert [(f.suite, f.level) for f in findings] == [
        ("val", "ok"),
        ("a", "warning"),
        ("v2", "warning"),
        ("r", "absent"),
    ]
    assert {f.effect for f in findings if f.level == "warning"} == {"skipped for a model of these classes"}


def test_corruptions_that_lack_images(tmp_path):
    for name in ("fog", "snow"):
        for number in range(2 if name == "fog" else 1):
            path = tmp_path / "imagenet-c" / name / "1" / "0" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(path)
    findings = examine(tmp_path, 1, suites=["c"], workers=1)
    assert has(findings, "warning", "1 of 2 folders have fewer than 2 images: snow/1 (1)", "unequal")
    (tmp_path / "imagenet-c" / "fog" / "1" / "0" / "1.png").unlink()
    assert not has(examine(tmp_path, 1, suites=["c"], workers=1), "warning", "fewer")
