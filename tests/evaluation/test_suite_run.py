"""Every suite on a tree of EasyRobust's layout whose right answers are planted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.processes import load_script

from ns_easyrobust.attacks.gradient import CW, FGSM, PGD
from ns_easyrobust.attacks.patch_fool import PatchFool
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
    return ran, read_records(path)


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
    assert set(ran) == set(CLEAN)
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
    assert ran == ["val", "patchfool", "cw", "fgsm", "pgd"]
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


def test_robustbenchs_list_is_asked_for_before_anything_is_computed(tree, reads_pixels, tmp_path):
    with pytest.raises(
        DataError,
        match=r"patchfool: .*5000 images of RobustBench's list.*a smaller subset",
    ):
        run(reads_pixels, tree[0], ["val", "patchfool"], tmp_path / "r.jsonl")
    assert not (tmp_path / "r.jsonl").exists()


def test_a_model_that_patchfool_cannot_attack_is_told_before_anything_is_computed(digits_dir, trained, tmp_path):
    with pytest.raises(ModelError, match=r"and the loss 'ce', .*eave the suite out"):
        run(trained, digits_dir, ["val", "patchfool"], tmp_path / "r.jsonl")  # three blocks, no block 4
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
    assert (ran, len(records)) == (["val"], 1)
    assert "imagenet-sketch does not exist" in caplog.text
    assert run(trained, Path(tmp_path), ["val"], tmp_path / "r.jsonl")[0] == []


def test_what_shares_a_folder_but_not_its_images_is_judged_apart(trained, digits_dir, tmp_path):
    plan = EvaluationPlan(digits_dir, ["val", "fgsm"], Protocol("paper", 32))
    assert plan.alike("val", "fgsm", 10)
    assert not replace(plan, subsets={"fgsm": Subset("first", 10)}).alike("val", "fgsm", 10)
    assert not plan.alike("val", "patchfool", 10)
    options = {"subsets": {"fgsm": Subset("first", 10)}}
    _, records = run(trained, digits_dir, ["val", "fgsm"], tmp_path / "r.jsonl", **options)
    assert [(r.suite, r.n) for r in records] == [("imagenet-val", 500), ("fgsm", 10)]
