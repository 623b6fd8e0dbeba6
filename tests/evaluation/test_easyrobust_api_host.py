"""Where our evaluations differ from the installed EasyRobust's of the same name, each difference shown on both."""

from __future__ import annotations

import shutil
import sys

import easyrobust.benchmarks as host
import pytest
import torch
from torch.utils.data import DistributedSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder

from ns_easyrobust.data.benchmarks import ALEXNET_ERROR
from ns_easyrobust.data.transforms import Preprocessing, describe_transform
from ns_easyrobust.errors import DataError, ModelError
from ns_easyrobust.evaluation import easyrobust_api as evaluate
from ns_easyrobust.evaluation import folder_evaluation
from ns_easyrobust.evaluation.recorder import Recorder
from ns_easyrobust.evaluation.results_file import read_records
from ns_easyrobust.evaluation.task import Outcome
from ns_easyrobust.integration.registration import ADDED_EVALUATIONS, TRAINING_HOOKS, register
from ns_easyrobust.integration.training_function import nullspace_augmented

PLAIN = Preprocessing(32, 1.0).transform()
OURS = {"workers": 0}


def test_equal_where_theirs_is_right(tree, reads_pixels):
    root, planted = tree
    for name, folder in (
        ("evaluate_imagenet_val", "imagenet-val"),
        ("evaluate_imagenet_a", "imagenet-a"),
        ("evaluate_imagenet_r", "imagenet-r"),
        ("evaluate_imagenet_sketch", "imagenet-sketch"),
        ("evaluate_stylized_imagenet", "imagenet-style"),
        ("evaluate_objectnet", "ObjectNet/images"),
    ):
        n, right, _ = planted[folder]
        arguments = (reads_pixels, str(root / folder), 100, PLAIN)
        assert getattr(evaluate, name)(*arguments, **OURS) == pytest.approx(100 * right / n), name
        assert getattr(host, name)(*arguments) == pytest.approx(100 * right / n, abs=1e-3), name


def test_a_missing_folder_is_named(tmp_path, reads_pixels, capsys, caplog):
    nowhere = str(tmp_path / "nowhere")
    assert host.evaluate_imagenet_val(reads_pixels, nowhere) is None
    assert capsys.readouterr().out == "{} is not exist. skip\n"
    assert evaluate.evaluate_imagenet_val(reads_pixels, nowhere) is None
    assert nowhere in caplog.text


def test_unpadded_v2_folders_keep_their_classes(tree, reads_pixels):
    root, planted = tree
    n, right, _ = planted["imagenetv2"]
    arguments = (reads_pixels, str(root / "imagenetv2"), 100, PLAIN)
    assert host.evaluate_imagenet_v2(*arguments) < 5
    assert evaluate.evaluate_imagenet_v2(*arguments, **OURS) == pytest.approx(100 * right / n)


def test_a_part_of_the_classes_keeps_its_labels(tree, reads_pixels, tmp_path):
    root, _ = tree
    for wnid in sorted(path.name for path in (root / "imagenet-sketch").iterdir())[500:510]:
        shutil.copytree(root / "imagenet-sketch" / wnid, tmp_path / "part" / wnid)
    arguments = (reads_pixels, str(tmp_path / "part"), 100, PLAIN)
    assert host.evaluate_imagenet_val(*arguments) == 0
    assert evaluate.evaluate_imagenet_val(*arguments, **OURS) > 80


def test_missing_corruptions_give_a_mean_instead_of_a_crash(tree, reads_pixels, tmp_path):
    root, _ = tree
    shutil.copytree(root / "imagenet-c" / "fog", tmp_path / "c" / "fog")
    arguments = (reads_pixels, str(tmp_path / "c"), 100, PLAIN)
    with pytest.raises(FileNotFoundError):
        host.evaluate_imagenet_c(*arguments)
    mean, mce = evaluate.evaluate_imagenet_c(*arguments, **OURS)
    assert 0 < mean <= 100
    assert mce is None


def test_mce_is_a_fraction_as_theirs_and_no_record_of_ten_classes(digits_dir, trained, tmp_path):
    for number, name in enumerate(ALEXNET_ERROR):
        for severity in range(1, 6):  # ten images, others in each folder
            for digit in range(10):
                images = sorted((digits_dir / "imagenet-val" / str(digit)).iterdir())
                folder = tmp_path / "c" / name / str(severity) / str(digit)
                folder.mkdir(parents=True)
                (folder / "1.png").symlink_to(images[(5 * number + severity) % len(images)])
    arguments = (trained, str(tmp_path / "c"), 10, PLAIN)
    recorder = Recorder(tmp_path / "r.jsonl", {"label": "m", "model": "m", "seed": 0})
    mean, mce = evaluate.evaluate_imagenet_c(*arguments, records=recorder, **OURS)
    with pytest.MonkeyPatch.context() as patch:  # four workers for each of 75 folders take half a minute here
        real = torch.utils.data.DataLoader
        patch.setattr(torch.utils.data, "DataLoader", lambda *a, **k: real(*a, **k | {"num_workers": 0}))
        assert host.evaluate_imagenet_c(*arguments) == pytest.approx((mean, mce), rel=1e-6)
    assert 0 < mce < 1
    assert {r.metric for r in read_records(recorder.path)} == {"top1", "top1_mean"}


def test_a_bare_model_is_refused_where_theirs_guesses_the_normalisation(tree, reads_pixels):
    folder = str(tree[0] / "imagenet-val")
    with pytest.raises(ModelError, match="no normalisation inside"):
        evaluate.evaluate_imagenet_val(reads_pixels[1], folder, **OURS)


def test_objectnet_is_resized_like_photographs_where_theirs_is_not_cropped(tree, reads_pixels, monkeypatch):
    seen = []

    def judged(model, tasks, dist, how):
        seen.append(tasks)
        return [[Outcome(1, 1)]]

    monkeypatch.setattr(folder_evaluation, "judge_tasks", judged)
    monkeypatch.setattr(folder_evaluation, "number_of_outputs", lambda *_: 1000)
    evaluate.evaluate_objectnet(reads_pixels, tree[0] / "ObjectNet" / "images")
    assert describe_transform(seen[0][0].transform)["resize"] == 256
    used = []
    module = sys.modules["easyrobust.benchmarks.ood.objectnet"]
    monkeypatch.setattr(module, "ObjectNetDataset", lambda root, transform: used.append(transform) or [])
    monkeypatch.setattr(module.AverageMeter, "update", lambda *_: None)
    host.evaluate_objectnet(reads_pixels, str(tree[0] / "ObjectNet" / "images"))
    assert used[0].transforms[0].size == 224


def test_an_unknown_keyword_is_refused(reads_pixels, tree):
    with pytest.raises(TypeError, match="unexpected keyword 'eps'"):
        evaluate.evaluate_imagenet_fgsm(reads_pixels, tree[0] / "imagenet-val", 4, PLAIN, eps=100 / 255)


def test_padding_is_not_counted():
    """Theirs shares images by torch's sampler, which repeats some; test_distributed shows ours to count each once."""
    first, second = (list(DistributedSampler(range(5), num_replicas=2, rank=r, shuffle=False)) for r in (0, 1))
    assert sorted(first + second) == [0, 0, 1, 2, 3, 4]


def test_autoattack_returns_its_number_on_the_models_device(digits_dir, trained, monkeypatch):
    module = sys.modules["easyrobust.benchmarks.adversarial.autoattack"]
    made = []

    class Attack:
        def __init__(self, model, **settings):
            made.append(settings)

        def run_standard_evaluation(self, pixels, labels, bs):
            return pixels

    monkeypatch.setattr(module, "AutoAttack", Attack)
    monkeypatch.setattr(module, "AutoAttackImageNetDataset", lambda folder, transform: ImageFolder(folder, transform))
    folder = str(digits_dir / "imagenet-val")
    assert host.evaluate_imagenet_autoattack(trained, folder, 250, PLAIN) is None
    assert "device" not in made[0]  # so it takes CUDA, wherever the model is
    found = evaluate.evaluate_imagenet_autoattack(trained, folder, 10, PLAIN, "Linf", 0.3, subset="first:10", **OURS)
    assert found == 0  # the real one, at a radius that leaves nothing
    normalised = transforms.Compose([PLAIN, transforms.Normalize((0.5,) * 3, (0.5,) * 3)])
    with pytest.raises(DataError, match=r"expected pixels in \[0, 1\]"):
        evaluate.evaluate_imagenet_autoattack(trained, folder, 10, normalised, subset="first:10", **OURS)


def test_register_adds_and_replaces_nothing():
    before = {name: getattr(host, name) for name in dir(host) if name.startswith("evaluate_")}
    try:
        register()
        register()
        names: dict[str, object] = {}
        exec("from easyrobust.benchmarks import *", names)
        assert {name: names[name] for name in before} == before
        assert all(names[name] is getattr(evaluate, name) for name in ADDED_EVALUATIONS)
        assert "evaluate_imagenet_patchfool" in ADDED_EVALUATIONS
    finally:
        for name in ADDED_EVALUATIONS:
            if name not in before:
                delattr(host, name)


def test_register_puts_the_hook_beside_easyrobusts_augmentations():
    import easyrobust.augmentations as augmentations

    before = {name for name in vars(augmentations) if not name.startswith("_")} - set(TRAINING_HOOKS)
    for name in TRAINING_HOOKS:
        vars(augmentations).pop(name, None)  # of an earlier test
    register()
    register()
    try:
        names: dict[str, object] = {}
        exec("from easyrobust.augmentations import *", names)
        assert names["nullspace_augmented"] is nullspace_augmented
        assert {name for name in names if not name.startswith("_")} - before == set(TRAINING_HOOKS)
    finally:
        for name in TRAINING_HOOKS:
            delattr(augmentations, name)
