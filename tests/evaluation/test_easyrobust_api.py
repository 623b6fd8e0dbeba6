from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ns_easyrobust.data.benchmarks import ALEXNET_ERROR
from ns_easyrobust.data.transforms import Preprocessing
from ns_easyrobust.errors import DataError, ModelError
from ns_easyrobust.evaluation.easyrobust_api import (
    evaluate_imagenet_c,
    evaluate_imagenet_cw,
    evaluate_imagenet_fgsm,
    evaluate_imagenet_val,
    evaluate_stylized_imagenet,
)
from ns_easyrobust.evaluation.mce import mean_corruption_error
from ns_easyrobust.evaluation.per_image import load_correctness
from ns_easyrobust.evaluation.recorder import Recorder
from ns_easyrobust.evaluation.results_file import read_records
from ns_easyrobust.models.normalization import Normalize

PLAIN = Preprocessing(8, 1.0).transform()


class ReadsClass(nn.Module):
    """Predicts the class that is written in an image's first pixel as red / 25."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(255 / 25))

    def forward(self, pixels):
        return -(pixels[:, 0, :1, 0] * self.scale - torch.arange(4.0)).square()


def write_images(root: Path, wrong: set[tuple[int, int]], count: int = 5) -> None:
    """Four classes of ``count`` images; (class, number) in ``wrong`` show the next class's colour."""
    for label in range(4):
        folder = root / f"n{label}"
        folder.mkdir(parents=True)
        for number in range(count):
            shown = (label + ((label, number) in wrong)) % 4
            pixels = np.zeros((8, 8, 3), np.uint8)
            pixels[..., 0] = 25 * shown
            Image.fromarray(pixels).save(folder / f"{number}.png")


def model() -> nn.Sequential:
    return nn.Sequential(Normalize((0.0,) * 3, (1.0,) * 3), ReadsClass())


@pytest.fixture
def recorder(tmp_path):
    return Recorder(
        str(tmp_path / "results.jsonl"), {"label": "stub", "model": "stub", "seed": 0}, {"dtype": "float32"}
    )


@pytest.mark.parametrize("batch", [3, 7, 100])
def test_counts_are_exact_for_every_batch_size(tmp_path, recorder, batch):
    write_images(tmp_path / "val", {(0, 1), (2, 3), (3, 4)})
    top1 = evaluate_imagenet_val(model(), tmp_path / "val", batch, PLAIN, records=recorder, workers=0)
    assert top1 == pytest.approx(100 * 17 / 20)
    (record,) = read_records(recorder.path)
    assert (record.suite, record.n, record.correct, record.protocol["batch_size"]) == ("imagenet-val", 20, 17, batch)
    assert record.protocol["crop"] == 8
    paths, right = load_correctness(record.right_path)
    assert {path for path, ok in zip(paths, right, strict=True) if not ok} == {"n0/1.png", "n2/3.png", "n3/4.png"}


def test_a_missing_folder_is_named_and_gives_none(tmp_path, caplog):
    assert evaluate_imagenet_val(model(), tmp_path / "nowhere") is None
    assert evaluate_imagenet_c(model(), tmp_path / "nowhere-c") is None
    assert "nowhere does not exist" in caplog.text
    assert "nowhere-c does not exist" in caplog.text


def test_a_model_without_normalisation_and_no_transform_is_refused(tmp_path):
    write_images(tmp_path / "val", set())
    with pytest.raises(ModelError, match="no normalisation inside and no test_transform"):
        evaluate_imagenet_val(ReadsClass(), tmp_path / "val")
    assert evaluate_imagenet_val(ReadsClass(), tmp_path / "val", 8, PLAIN, workers=0) == 100


def test_default_preprocessing_is_256_and_224(tmp_path):
    write_images(tmp_path / "val", {(1, 1)})
    seen = []

    class Watching(ReadsClass):
        def forward(self, pixels):
            seen.append(tuple(pixels.shape[2:]))
            return super().forward(pixels)

    watching = nn.Sequential(Normalize((0.0,) * 3, (1.0,) * 3), Watching())
    assert evaluate_imagenet_val(watching, tmp_path / "val", workers=0) == 95
    assert set(seen) == {(224, 224)}


def test_a_model_of_another_size_gets_images_of_its_own_and_no_others(trained, digits_dir):
    root = digits_dir / "imagenet-val"
    own = Preprocessing(32).transform()
    expected = evaluate_imagenet_val(trained, root, 64, own, workers=0)
    assert evaluate_imagenet_val(trained, root, 64, workers=0) == expected
    whole = evaluate_imagenet_val(trained, root, 64, Preprocessing(32, 1.0).transform(), workers=0)
    assert evaluate_stylized_imagenet(trained, root, 64, workers=0) == whole != expected
    with pytest.raises(ModelError, match="images of 32x32 pixels, which the model is built for, found 224x224"):
        evaluate_imagenet_val(trained, root, 64, Preprocessing().transform(), workers=0)


@pytest.mark.stress
def test_fgsm_and_cw_against_the_attack_on_its_own(trained, digits_dir, tmp_path):
    records = Recorder(tmp_path / "results.jsonl", {"label": "vit", "model": "vit", "seed": 0})
    transform = Preprocessing(32, 1.0).transform()
    folder = digits_dir / "imagenet-val"
    clean = evaluate_imagenet_val(trained, folder, 100, transform, workers=0)
    weak, strong = (
        evaluate_imagenet_fgsm(trained, folder, 100, transform, epsilon=e, records=records, workers=0)
        for e in (2 / 255, 16 / 255)
    )
    assert strong < weak < clean
    cw = evaluate_imagenet_cw(trained, folder, 100, transform, radii=(0.1, 0.5), steps=20, records=records, workers=0)
    found = {
        (r.suite, r.metric, r.protocol.get("radius"), r.protocol.get("epsilon")): r for r in read_records(records.path)
    }
    assert found["fgsm", "top1", None, 16 / 255].value == strong
    free, far, near = (found["cw", "top1", radius, None].value for radius in ("unbounded", 0.5, 0.1))
    assert cw == free <= far < near <= clean
    assert 0 < found["cw", "mean_l2", None, None].value < 5
    assert found["cw", "mean_l2", None, None].n == pytest.approx((clean - cw) / 100 * 500)


def test_corruptions_by_hand(tmp_path, recorder):
    names = list(ALEXNET_ERROR)
    assert len(names) == 15
    errors = {}
    for index, name in enumerate(names):
        for severity in range(1, 6):
            wrong = {(label, 0) for label in range(min(4, index % 4 + (severity > 3)))}
            write_images(tmp_path / "c" / name / str(severity), wrong, count=2)
            errors.setdefault(name, []).append(len(wrong) / 8)
    accuracy, mce = evaluate_imagenet_c(model(), tmp_path / "c", 8, PLAIN, records=recorder, workers=0)
    mean_error = {name: sum(values) / 5 for name, values in errors.items()}
    assert accuracy == pytest.approx(100 - 100 * sum(mean_error.values()) / 15)
    expected = sum(mean_error[name] / ALEXNET_ERROR[name] for name in names) / 15
    assert mce == pytest.approx(expected)  # a fraction, EasyRobust's unit
    records = read_records(recorder.path)
    assert len(records) == 76  # 75 folders and their mean; mCE is a figure of ImageNet's 1000 classes
    assert records[-1].metric == "top1_mean"
    assert records[-1].value == pytest.approx(accuracy)


def test_alexnet_errors_are_easyrobusts():
    from easyrobust.benchmarks.ood import imagenet_c

    theirs = {folder: imagenet_c.get_ce_alexnet()[name] for name, folder in imagenet_c.data_loaders_names.items()}
    assert theirs == ALEXNET_ERROR
    accuracy = {(name, s): 50.0 + index + s for index, name in enumerate(ALEXNET_ERROR) for s in range(1, 6)}
    ces = [imagenet_c.get_mce_from_accuracy(53.0 + index, theirs[name]) for index, name in enumerate(ALEXNET_ERROR)]
    assert mean_corruption_error(accuracy) == pytest.approx(sum(ces) / 15)


def test_some_corruptions_give_a_mean_and_no_mce(tmp_path, caplog):
    write_images(tmp_path / "c" / "fog" / "3", {(0, 0)}, count=2)
    accuracy, mce = evaluate_imagenet_c(model(), tmp_path / "c", 8, PLAIN, workers=0)
    assert (accuracy, mce) == (100 * 7 / 8, None)
    assert "1 of 75 folders" in caplog.text
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found none"):
        evaluate_imagenet_c(model(), tmp_path / "empty", 8, PLAIN)


def test_corrupted_photographs_are_framed_as_the_clean_ones_are(tmp_path, recorder):
    """Their mean stands beside the clean accuracy; taken as they are, images of 90 x 60 would be refused."""
    write_images(tmp_path / "c" / "fog" / "3", set(), count=1)
    for path in (tmp_path / "c").rglob("*.png"):
        Image.open(path).resize((90, 60)).save(path)
    (tmp_path / "c" / "corrupt.json").write_text('{"crop": "none: images keep their sizes"}')
    assert evaluate_imagenet_c(model(), tmp_path / "c", 8, records=recorder, workers=0) == (100, None)
    assert {(r.protocol["resize"], r.protocol["corrupted"]) for r in read_records(recorder.path)} == {
        (256, "whole images")
    }


def test_nan_logits_are_an_error(tmp_path):
    write_images(tmp_path / "val", set())
    broken = model()
    broken[1].scale.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="finite logits"):
        evaluate_imagenet_val(broken, tmp_path / "val", 8, PLAIN, workers=0)


def test_easyrobusts_own_function_counts_the_same(trained, digits_dir):
    from easyrobust.benchmarks import evaluate_imagenet_val as theirs

    transform = Preprocessing(32, 1.0).transform()
    folder = str(digits_dir / "imagenet-val")
    ours = evaluate_imagenet_val(trained, folder, 100, transform, workers=0)
    assert ours == pytest.approx(theirs(trained, folder, 100, transform), abs=1e-4)
