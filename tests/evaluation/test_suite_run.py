"""Every suite on a tree of EasyRobust's layout whose right answers are planted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from helpers.processes import load_script
from PIL import Image

from ns_easyrobust.attacks.base import Attack, register_attack
from ns_easyrobust.attacks.gradient import CW, FGSM, PGD
from ns_easyrobust.attacks.patch_fool import PatchFool
from ns_easyrobust.cli import main as cli
from ns_easyrobust.data.benchmarks import ALEXNET_ERROR
from ns_easyrobust.data.image_list import Subset
from ns_easyrobust.errors import DataError, ModelError, OptionError
from ns_easyrobust.evaluation.recorder import Recorder
from ns_easyrobust.evaluation.results_file import read_records
from ns_easyrobust.evaluation.suite import Protocol, suite_groups, suites
from ns_easyrobust.evaluation.suite_run import EvaluationPlan, run_suites

CLEAN = ("val", "a", "r", "sketch", "v2", "stylized", "c", "objectnet", "damagenet")
FOLDER = {
    "imagenet-val": "imagenet-val",
    "imagenet-a": "imagenet-a",
    "imagenet-r": "imagenet-r",
    "imagenet-sketch": "imagenet-sketch",
    "imagenet-v2": "imagenetv2",
    "imagenet-stylized": "imagenet-style",
    "objectnet": "ObjectNet/images",
    "damagenet": "damagenet",
}


def run(model, root, suites, path, *, protocol="paper", remeasure=False, **options):
    recorder = Recorder(path, {"label": "m", "model": "m", "seed": 0}, remeasure=remeasure)
    ran = run_suites(
        model, EvaluationPlan(root, suites, Protocol(protocol, 32), **options), records=recorder, workers=0
    )
    return ran, read_records(path) if path.exists() else []


def test_groups_are_the_papers_columns_and_easyrobusts():
    assert len(suite_groups()["table2"]) == 11
    assert set(suite_groups()["easyrobust"]) < set(suite_groups()["table2"]) < set(suites())


@pytest.mark.parametrize("classes", [20, pytest.param(1000, marks=pytest.mark.stress)])
def test_every_column_counts_exactly_what_was_planted(tree, reads_pixels, tmp_path, classes):
    root, planted = tree
    if classes == 1000:  # all 75,000 files of ImageNet-C
        root = tmp_path / "tree"
        planted = load_script("make_benchmark_tree").write_tree(root)
    ran, records = run(reads_pixels, root, CLEAN, tmp_path / "r.jsonl", batch_size=64)
    assert (set(ran.run), ran.not_run) == (set(CLEAN), {})
    counted = [record for record in records if record.metric == "top1"]
    assert len(counted) == 8 + 75
    for record in counted:
        c = record.protocol
        folder = FOLDER.get(record.suite) or f"imagenet-c/{c['corruption']}/{c['severity']}"
        n, right, unmasked = planted[folder]
        assert (record.n, record.correct) == (n, right), folder
        assert (right != unmasked) == (record.suite in ("imagenet-a", "imagenet-r")), folder
    assert {r.protocol.get("classes") for r in counted if r.suite in ("imagenet-a", "imagenet-r")} == {200}
    error = {
        name: sum(1 - planted[f"imagenet-c/{name}/{s}"][1] / planted[f"imagenet-c/{name}/{s}"][0] for s in range(1, 6))
        for name in ALEXNET_ERROR
    }
    mce = sum(total / 5 / ALEXNET_ERROR[name] for name, total in error.items()) / 15
    found = {record.metric: record for record in records if record.suite == "imagenet-c"}
    assert found["mce"].value == pytest.approx(100 * mce)
    assert found["top1_mean"].value == pytest.approx(100 - 100 * sum(error.values()) / 75)
    assert found["mce"].protocol["preset"] == "paper"
    again, after = run(reads_pixels, root, CLEAN, tmp_path / "r.jsonl", batch_size=64)
    assert (again, len(after)) == (ran, len(records))


def test_both_layouts_of_damagenet(tree, reads_pixels, tmp_path):
    root, planted = tree
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "damagenet").symlink_to(root / "damagenet-folders")
    _, (record,) = run(reads_pixels, tmp_path / "data", ["damagenet"], tmp_path / "r.jsonl")
    assert (record.n, record.correct) == tuple(planted["damagenet-folders"][:2])
    assert planted["damagenet-folders"][1] != planted["damagenet"][1]


def test_protocols_differ_where_they_should_and_say_so(tree, reads_pixels, tmp_path):
    root, planted = tree
    seen = {}
    for preset in ("paper", "easyrobust", "native"):
        _, records = run(
            reads_pixels, root, ["val", "stylized", "damagenet"], tmp_path / f"{preset}.jsonl", protocol=preset
        )
        seen[preset] = {r.suite: (r.protocol["resize"], r.protocol["crop"]) for r in records}
        assert {r.protocol["preset"] for r in records} == {preset}
        assert [r.correct for r in records if r.suite == "imagenet-val"] == [planted["imagenet-val"][1]]
    photo, whole = (36, 32), (32, 32)
    assert seen["paper"] == {"imagenet-val": photo, "imagenet-stylized": whole, "damagenet": photo}
    assert seen["easyrobust"] == {"imagenet-val": photo, "imagenet-stylized": photo, "damagenet": photo}
    assert seen["native"] == {"imagenet-val": photo, "imagenet-stylized": whole, "damagenet": whole}


def test_attacks_their_settings_and_subsets_are_in_the_records(trained, digits_dir, tmp_path):
    attacks = {
        "fgsm": [FGSM(1 / 255), FGSM(8 / 255)],
        "pgd": [PGD(8 / 255)],
        "cw": [CW((0.5,))],
        "patchfool": [PatchFool(layer=1, loss="ce", steps=10)],
    }
    subsets = {"cw": Subset("first", 20), "patchfool": Subset("random", 40, 1), "": Subset("random", 100)}
    ran, records = run(
        trained,
        digits_dir,
        ["val", "fgsm", "pgd", "cw", "patchfool"],
        tmp_path / "r.jsonl",
        attacks=attacks,
        subsets=subsets,
    )
    assert ran == (["val", "patchfool", "cw", "fgsm", "pgd"], {})
    top = {(r.suite, r.protocol.get("epsilon"), r.protocol.get("radius")): r for r in records if r.metric == "top1"}
    clean = top["imagenet-val", None, None]
    assert clean.n == 100
    weak, strong, pgd = (top[s, e / 255, None] for s, e in (("fgsm", 1), ("fgsm", 8), ("pgd", 8)))
    assert pgd.correct <= strong.correct < weak.correct <= clean.correct
    assert pgd.protocol["steps"] == 10
    assert {r.images for r in (weak, strong, pgd)} == {clean.images}
    assert {r.protocol["subset"] for r in (clean, weak, strong, pgd)} == {"random:100"}
    assert top["cw", None, "unbounded"].n == 20
    (fooled,) = [r for r in records if r.suite == "patchfool"]
    assert (fooled.n, fooled.protocol["subset"], fooled.protocol["steps"]) == (40, "random:40:1", 10)
    assert fooled.images != clean.images


@register_attack
@dataclass(frozen=True)
class Slow(Attack):
    """Leaves the images as they are, but not for a model that is ``refused``."""

    name = "slow-for-tests"
    slowness = 1
    sampled = True
    refused: ClassVar[str] = ""

    def require_applicable(self, model, pixels, labels):
        if self.refused:
            raise ModelError(self.refused)

    def __call__(self, model, pixels, labels, seeds):
        return pixels.clone()


def test_where_robustbenchs_images_are_missing_a_stated_random_subset_is_taken(
    tree, reads_pixels, tmp_path, caplog, monkeypatch
):
    caplog.set_level("INFO")
    monkeypatch.setattr("ns_easyrobust.evaluation.suite._SAMPLE", 30)
    run(reads_pixels, tree[0], ["val", "slow-for-tests"], tmp_path / "r.jsonl")
    clean, slow = read_records(tmp_path / "r.jsonl")
    assert (clean.n, clean.protocol["subset"]) == (1000, "all")
    assert (slow.n, slow.protocol["subset"]) == (30, "random:30")
    assert (
        "imagenet-val: RobustBench's 5000 images are not all there; "
        "30 random ones of 1000 are attacked (subset random:30)" in caplog.text
    )
    assert clean.outputs == slow.outputs == 1000
    _, records = run(
        reads_pixels, tree[0], ["slow-for-tests"], tmp_path / "all.jsonl", subsets={"slow-for-tests": Subset()}
    )
    assert [(r.n, r.protocol["subset"]) for r in records] == [(1000, "all")]
    ran, records = run(
        reads_pixels, tree[0], ["val", "slow-for-tests"], tmp_path / "b.jsonl", subsets={"": Subset("robustbench")}
    )
    assert "the 5000 images of RobustBench's list" in ran.not_run["slow-for-tests"]
    assert (list(ran.not_run), records) == (["val", "slow-for-tests"], [])


def test_of_own_classes_slow_attacks_take_all_images_of_a_small_set_and_a_subset_of_a_large_one(
    digits_dir, trained, tmp_path, monkeypatch
):
    _, records = run(trained, digits_dir, ["slow-for-tests"], tmp_path / "r.jsonl")
    assert [(r.n, r.protocol["subset"], r.outputs) for r in records] == [(500, "all", 10)]
    monkeypatch.setattr("ns_easyrobust.evaluation.suite._SAMPLE", 499)
    _, records = run(trained, digits_dir, ["slow-for-tests"], tmp_path / "s.jsonl")
    assert [(r.n, r.protocol["subset"]) for r in records] == [(499, "random:499")]


def test_what_cannot_be_run_is_left_out_and_named(digits_dir, trained, tmp_path, caplog, monkeypatch):
    """An attack that the model does not take, a set of other classes, a set whose folders are not there."""
    monkeypatch.setattr(Slow, "refused", "slow: expected another model. Take one.")
    data = tmp_path / "data"
    for name in ("imagenet-a/n01498041", "imagenetv2/n01498041", "imagenet-c/blur/fog/1"):
        (data / name).mkdir(parents=True)
    (data / "imagenet-val").symlink_to(digits_dir / "imagenet-val")
    chosen = ["val", "patchfool", "slow-for-tests", "a", "v2", "c", "r"]
    ran, records = run(trained, data, chosen, tmp_path / "r.jsonl")
    assert ran.run == ["val"]
    assert [(r.suite, r.n) for r in records] == [("imagenet-val", 500)]
    reasons = {
        "patchfool": "and the loss 'ce'",  # three blocks, no block 4
        "slow-for-tests": "expected another model. Take one.",
        "a": "expected a model with ImageNet's 1000 outputs for this set, found 10",
        "v2": "one class folder for each of the model's 10 outputs, found 1",
        "c": "ImageNet-C's 15 corruptions, found blur",
        "r": "imagenet-r does not exist",
    }
    assert set(ran.not_run) == set(reasons)
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    for name, reason in reasons.items():
        assert reason in ran.not_run[name]
        assert "leave the suite out" not in ran.not_run[name]
        assert sum(line.startswith(f"{name}: not run: ") and reason in line for line in warnings) == 1, name


def test_a_fault_of_the_validation_set_stops_before_anything_is_computed(digits_dir, trained, tmp_path):
    """Of other classes than the model's it may be the wrong folder, or the wrong model."""
    (tmp_path / "data" / "imagenet-val").mkdir(parents=True)
    for digit in range(9):
        (tmp_path / "data" / "imagenet-val" / str(digit)).symlink_to(digits_dir / "imagenet-val" / str(digit))
    (tmp_path / "data" / "imagenet-sketch").symlink_to(digits_dir / "imagenet-val")
    for name in ("val", "fgsm"):
        with pytest.raises(DataError, match=rf"{name}: .*each of the model's 10 outputs, found 9.*leave the suite"):
            run(trained, tmp_path / "data", [name, "sketch"], tmp_path / "r.jsonl")
    assert not (tmp_path / "r.jsonl").exists()


def test_attacks_in_float16_are_refused_before_anything_is_computed(digits_dir, trained, tmp_path):
    plan = EvaluationPlan(digits_dir, ["val", "cw"], Protocol("paper", 32))
    with pytest.raises(OptionError, match="float16: expected float32 or bfloat16 for attacks"):
        run_suites(trained, plan, records=Recorder(tmp_path / "r.jsonl", {"label": "m", "model": "m"}), workers=0,
                   dtype=torch.float16)  # fmt: skip
    assert not (tmp_path / "r.jsonl").exists()


def test_a_stray_class_in_one_corruption_is_told_before_anything_is_computed(tmp_path, reads_pixels):
    load_script("make_benchmark_tree").write_tree(tmp_path / "data", folders=("imagenet-val", "imagenet-c"), classes=2)
    (tmp_path / "data" / "imagenet-c" / "fog" / "1" / "stray").mkdir()
    with pytest.raises(DataError, match=r"c: .*fog/1: .*WordNet ids, found 1 others: stray.* Or leave the suite out"):
        run(reads_pixels, tmp_path / "data", ["val", "c"], tmp_path / "r.jsonl")
    assert not (tmp_path / "r.jsonl").exists()


def test_linked_class_folders_and_hidden_files(digits_dir, trained, tmp_path):
    (tmp_path / "data" / "imagenet-val").mkdir(parents=True)
    for digit in range(10):
        (tmp_path / "data" / "imagenet-val" / str(digit)).symlink_to(digits_dir / "imagenet-val" / str(digit))
    (tmp_path / "data" / "imagenet-val" / "._0.png").write_bytes(b"macOS leaves these")
    _, (record,) = run(trained, tmp_path / "data", ["val"], tmp_path / "r.jsonl")
    assert record.n == 500


def test_a_folder_that_is_not_there_is_skipped_and_named(digits_dir, trained, tmp_path, caplog):
    ran, records = run(trained, digits_dir, ["val", "sketch", "damagenet"], tmp_path / "r.jsonl")
    assert (ran.run, len(records)) == (["val"], 1)
    assert set(ran.not_run) == {"sketch", "damagenet"}
    assert "imagenet-sketch does not exist" in caplog.text
    ran, _ = run(trained, Path(tmp_path), ["val", "fgsm"], tmp_path / "r.jsonl")
    assert (ran.run, list(ran.not_run)) == ([], ["val", "fgsm"])
    assert f"val, fgsm: not run: {tmp_path}/imagenet-val does not exist" in caplog.text


def test_a_training_folder_and_folders_elsewhere(digits_dir, trained, tmp_path):
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "val").symlink_to(digits_dir / "val")
    plan = EvaluationPlan(tmp_path / "data", ["val", "fgsm"], Protocol("paper", 32))
    assert plan.folder("val") == plan.folder("fgsm") == tmp_path / "data" / "val"
    elsewhere = {"v2": digits_dir / "imagenet-val", "pgd": digits_dir / "val"}
    ran, records = run(trained, tmp_path / "data", ["val", "v2"], tmp_path / "r.jsonl", folders=elsewhere)
    assert ran == (["val", "v2"], {})
    assert [(r.suite, r.n) for r in records] == [("imagenet-val", 500), ("imagenet-v2", 500)]
    assert records[0].images == records[1].images
    plan = replace(plan, data_dir=None, folders={"val": digits_dir / "val", "pgd": tmp_path})
    assert (plan.folder("cw"), plan.folder("pgd")) == (digits_dir / "val", tmp_path)
    with pytest.raises(OptionError, match="v2: expected a folder for it"):
        plan.folder("v2")


def test_mce_is_imagenets_alone(digits_dir, trained, tmp_path, caplog):
    """The digits have five of the 75 folders; two more hold a corruption that ImageNet-C's fifteen do not have."""
    caplog.set_level("INFO")
    data = tmp_path / "data"
    (data / "imagenet-c").mkdir(parents=True)
    for folder in (digits_dir / "imagenet-c").iterdir():
        (data / "imagenet-c" / folder.name).symlink_to(folder)
    _, records = run(trained, data, ["c"], tmp_path / "r.jsonl")
    accuracies = [r.value for r in records if r.metric == "top1"]
    (mean,) = [r for r in records if r.metric != "top1"]
    named = "gaussian_noise impulse_noise contrast pixelate jpeg_compression 3 (5 of 75)"
    assert (mean.metric, mean.protocol["folders"], mean.n) == ("top1_mean", named, 2500)
    assert mean.value == pytest.approx(sum(accuracies) / 5)
    assert len(set(accuracies)) > 2
    assert "left out" not in caplog.text
    (data / "imagenet-c" / "spatter").symlink_to(digits_dir / "imagenet-c" / "contrast")
    _, after = run(trained, data, ["c"], tmp_path / "r.jsonl")
    assert after == records
    assert "left out, as none of ImageNet-C's 15 corruptions: spatter" in caplog.text


def test_corrupted_photographs_are_framed_as_the_clean_ones_are(tmp_path):
    (tmp_path / "val" / "0").mkdir(parents=True)
    Image.new("RGB", (90, 60), "gray").save(tmp_path / "val" / "0" / "image.png")
    corrupt = ["corrupt", str(tmp_path / "val"), "--corruption", "brightness", "--severity", "1", "-j", "1"]
    protocol = Protocol("paper", 32)
    for name, more, expected in (("whole", [], "val"), ("cropped", ["--size", "32"], "c")):
        assert cli.main([*corrupt, str(tmp_path / name), *more]) == 0
        plan = EvaluationPlan(tmp_path, ["c"], protocol, folders={"c": tmp_path / name})
        assert plan.preprocessing("c") == protocol.preprocessing(expected)
    assert protocol.preprocessing("val") != protocol.preprocessing("c")
    clean = EvaluationPlan(tmp_path, ["val"], protocol, folders={"val": tmp_path / "val"})
    assert clean.preprocessing("val") == protocol.preprocessing("val")


def test_what_shares_a_folder_but_not_its_images_is_judged_apart(trained, digits_dir, tmp_path):
    plan = EvaluationPlan(digits_dir, ["val", "fgsm"], Protocol("paper", 32))
    assert plan.prepared_alike("val", "fgsm")
    assert not plan.prepared_alike("val", "patchfool")
    assert not replace(plan, folders={"fgsm": digits_dir / "val"}).prepared_alike("val", "fgsm")
    options = {"subsets": {"fgsm": Subset("first", 10)}}
    _, records = run(trained, digits_dir, ["val", "fgsm"], tmp_path / "r.jsonl", **options)
    assert [(r.suite, r.n) for r in records] == [("imagenet-val", 500), ("fgsm", 10)]


def test_what_was_corrupted_is_part_of_the_protocol(tmp_path, digits_dir, trained):
    """A mean over some folders, or over whole photographs, is another column than one over others."""
    (tmp_path / "val").mkdir()
    for digit in range(10):
        image = next((digits_dir / "imagenet-val" / str(digit)).iterdir())
        (tmp_path / "val" / str(digit)).mkdir()
        (tmp_path / "val" / str(digit) / "0.png").write_bytes(image.read_bytes())
    common = ["corrupt", str(tmp_path / "val"), "-j", "1"]
    chosen = {"one": ("contrast", "5"), "other": ("impulse_noise", "5"), "cropped": ("contrast", "5", "--size", "32")}
    protocols = {}
    for name, (corruption, severity, *more) in chosen.items():
        folder = tmp_path / name
        assert cli.main([*common, str(folder), "--corruption", corruption, "--severity", severity, *more]) == 0
        _, records = run(trained, None, ["c"], tmp_path / f"{name}.jsonl", folders={"c": folder})
        assert len({record.protocol.get("corrupted") for record in records}) == 1
        protocols[name] = records[-1].protocol
    assert protocols["one"]["folders"] == protocols["cropped"]["folders"] == "contrast 5 (1 of 75)"
    assert protocols["other"]["folders"] == "impulse_noise 5 (1 of 75)"
    assert (protocols["one"]["corrupted"], protocols["cropped"].get("corrupted")) == ("whole images", None)


def test_folders_that_lack_images_are_told(tmp_path, digits_dir, trained, caplog):
    (tmp_path / "c").mkdir()
    for name in ("fog", "snow"):
        (tmp_path / "c" / name / "3").mkdir(parents=True)
        for digit in range(10):
            (tmp_path / "c" / name / "3" / str(digit)).symlink_to(digits_dir / "imagenet-val" / str(digit))
    run(trained, None, ["c"], tmp_path / "r.jsonl", folders={"c": tmp_path / "c"})
    assert "images:" not in caplog.text
    (tmp_path / "c" / "snow" / "3" / "7").unlink()
    (tmp_path / "c" / "snow" / "3" / "7").mkdir()
    (tmp_path / "c" / "snow" / "3" / "7" / "0.png").symlink_to(next((digits_dir / "imagenet-val" / "7").iterdir()))
    run(trained, None, ["c"], tmp_path / "r.jsonl", folders={"c": tmp_path / "c"})
    assert "1 of 2 folders have fewer than 500 images: snow/3 (" in caplog.text
    caplog.clear()
    subsets = {"c": Subset("first", 5)}
    run(trained, None, ["c"], tmp_path / "r.jsonl", folders={"c": tmp_path / "c"}, subsets=subsets)
    assert "fewer" not in caplog.text


def test_corruptions_of_other_names_than_the_clean_ones(tmp_path, digits_dir, trained):
    for digit in range(10):
        for parent in ("val", "c/fog/3"):
            (tmp_path / parent).mkdir(parents=True, exist_ok=True)
            (tmp_path / parent / str(digit)).symlink_to(digits_dir / "imagenet-val" / str(digit))
    folders = {"val": tmp_path / "val", "c": tmp_path / "c"}
    (tmp_path / "c" / "fog" / "3" / "1").rename(tmp_path / "c" / "fog" / "3" / "z")
    with pytest.raises(DataError, match=r"c: .*fog/3: expected the class folders of .*val, .*found z in place of 1"):
        run(trained, None, ["val", "c"], tmp_path / "r.jsonl", folders=folders)
    assert not (tmp_path / "r.jsonl").exists()
    ran, _ = run(trained, None, ["c"], tmp_path / "r.jsonl", folders={"c": tmp_path / "c"})
    assert ran.run == ["c"]


def test_a_flat_damagenet_of_imagenets_classes_stops_nothing(tmp_path, digits_dir, trained):
    (tmp_path / "damagenet").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "damagenet" / "x.png")
    (tmp_path / "damagenet" / "val.txt").write_text("x.png 999\n")
    folders = {"val": digits_dir / "imagenet-val", "damagenet": tmp_path / "damagenet"}
    subsets = {"": Subset("first", 20)}
    ran, _ = run(trained, None, list(folders), tmp_path / "r.jsonl", folders=folders, subsets=subsets)
    assert (ran.run, list(ran.not_run)) == (["val"], ["damagenet"])
