"""What judging refuses before it counts anything wrong: pixels, labels, outputs and sizes that cannot be meant."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from helpers.models import small_vit
from torch import nn
from torchvision import transforms

from ns_easyrobust.attacks.base import Attack
from ns_easyrobust.attacks.gradient import FGSM
from ns_easyrobust.data.benchmarks import class_folders
from ns_easyrobust.data.transforms import Preprocessing
from ns_easyrobust.errors import DataError, ModelError, OptionError, UserError
from ns_easyrobust.evaluation.easyrobust_api import evaluate_imagenet_val
from ns_easyrobust.evaluation.judging import judge
from ns_easyrobust.evaluation.task import EvaluationTask, Measurement

TENSOR = transforms.ToTensor()
NORMALISING = transforms.Compose([TENSOR, transforms.Normalize((0.5,) * 3, (0.5,) * 3)])


@pytest.fixture(scope="module")
def few(digits_dir):
    return class_folders(digits_dir / "imagenet-val", 10).take(range(0, 500, 100))


CLEAN = (Measurement("s"),)


def judged(model, images, transform=TENSOR, measurements=CLEAN, batch_size=3, **options):
    task = EvaluationTask(lambda: images, transform, batch_size, measurements)
    return judge(model, [task], workers=0, **options)[0][0].correct


WRONG = {
    "normalised": (NORMALISING, r"the transform: expected pixels in \[0, 1\], found \[-1, 1\]\. Normalise inside"),
    "uint8": (transforms.PILToTensor(), "float tensor .* found torch.uint8"),
    "0..255": (transforms.Compose([TENSOR, lambda x: 255 * x]), r"found \[0, 255\]"),
    "no tensor": (transforms.Resize(32), "expected a transform to a tensor .* found one to Image"),
    "smaller": (Preprocessing(16).transform(), "expected images of 32x32 pixels, .* found 16x16"),
    "grey": (transforms.Compose([transforms.Grayscale(), TENSOR]), "expected images of 3 channels"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("measurement", [Measurement("s"), Measurement.under(FGSM())], ids=["clean", "attacked"])
def test_pixels_that_a_model_would_misread(few, case, measurement):
    transform, message = WRONG[case]
    with pytest.raises(UserError, match=message):
        judged(small_vit(), few, transform, [measurement])


@pytest.mark.parametrize("where", ["a module of its own", "the model itself"])
def test_a_normalisation_inside_a_model_of_ones_own_is_found(few, where):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            normalize, self.vit = small_vit()
            if where == "the model itself":
                self.normalize = lambda pixels: (pixels - self.mean) / self.std
                self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5))
                self.register_buffer("std", torch.full((1, 3, 1, 1), 0.5))
            else:
                self.normalize = normalize

        def forward(self, pixels):
            return self.vit(self.normalize(pixels))

    judged(Own(), few)
    with pytest.raises(DataError, match=r"expected pixels in \[0, 1\], found \[-1, 1\]"):
        judged(Own(), few, NORMALISING)
    with pytest.raises(ModelError, match="expected images of 3 channels"):
        judged(Own(), few, WRONG["grey"][0])


def test_easyrobusts_way_of_normalising_in_the_transform_gives_the_same_count(trained, digits_dir):
    folder = digits_dir / "imagenet-val"
    inside = evaluate_imagenet_val(trained, folder, test_transform=TENSOR, subset="random:60", workers=0)
    outside = evaluate_imagenet_val(trained[1], folder, test_transform=NORMALISING, subset="random:60", workers=0)
    assert inside == outside > 50
    rounding = transforms.Compose([TENSOR, lambda pixels: pixels * (1 + 1e-6)])
    assert evaluate_imagenet_val(trained, folder, test_transform=rounding, subset="random:60", workers=0) == inside


def test_in_inference_mode(trained, few):
    """Also for an attack of somebody else's, which takes gradients without further ado."""

    @dataclass(frozen=True)
    class Signed(Attack):
        name = "signed"

        def __call__(self, model, pixels, labels, seeds):
            leaf = pixels.clone().requires_grad_()
            loss = nn.functional.cross_entropy(model(leaf), labels)
            return (pixels + 0.1 * torch.autograd.grad(loss, leaf)[0].sign()).clamp(0, 1)

    measurements = [Measurement.under(Signed())]
    with torch.inference_mode():
        attacked = judged(trained, few, measurements=measurements)
    assert attacked == judged(trained, few, measurements=measurements)


class Returning(nn.Module):
    num_classes = 10

    def __init__(self, model, output):
        super().__init__()
        self.model, self.output = model, output

    def forward(self, pixels):
        return self.output(self.model(pixels))


@pytest.mark.parametrize("measurement", [Measurement("s"), Measurement.under(FGSM())], ids=["clean", "attacked"])
def test_outputs_of_models(trained, few, measurement):
    expected = judged(trained, few, measurements=[measurement])
    in_dict = Returning(trained, lambda logits: {"loss": None, "logits": logits})
    assert judged(in_dict, few, measurements=[measurement]) == expected
    assert judged(in_dict, few, measurements=[Measurement("clean"), measurement]) == judged(trained, few)
    for output, message in (
        (lambda logits: (logits, logits), "found a tuple of 2"),
        (lambda logits: logits[0], r"found a tensor of shape \(10,\)"),
    ):
        with pytest.raises(ModelError, match=message):
            judged(Returning(trained, output), few, measurements=[measurement])
    with pytest.raises(ModelError, match=r"expected logits \(3, K\).*\(1, 10\)"):
        judged(Returning(trained, lambda logits: logits[:1]), few)


def test_labels_without_an_output(few):
    wrong = replace(few, labels=(10, *few.labels[1:]))
    with pytest.raises(DataError, match="expected labels 0 to 9, the model's outputs, found 10"):
        judged(small_vit(), wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 10**12}, "batch size: expected 1 to 65536 images, found 1000000000000"),
        ({"batch_size": 2.5}, "batch size: expected 1 to 65536 images, found 2.5"),
        ({"batch_size": 0}, "batch size: expected 1 to 65536 images, found 0"),
        ({"seed": 2**63}, "seed: expected a whole number < 2"),
        ({"dtype": torch.int8}, "expected torch.float32, torch.bfloat16 or torch.float16, found torch.int8"),
        ({"dtype": "float16"}, "found 'float16'"),
    ],
)
def test_settings_that_make_no_sense(few, options, message):
    with pytest.raises(OptionError, match=message):
        judged(small_vit(), few, **options)


def test_a_fork_bomb_of_workers(few):
    with pytest.raises(OptionError, match="workers: expected 0 to 1024 processes, found 1000000"):
        judge(small_vit(), [], workers=10**6)
