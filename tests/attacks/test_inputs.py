"""What attacks take: labels of any whole numbers, any mode of gradients, models of any output; and what they refuse."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from helpers.models import small_vit
from torch import nn

from ns_easyrobust.attacks.gradient import CW, cw, fgsm, pgd
from ns_easyrobust.attacks.patch_fool import PatchFool, patchfool
from ns_easyrobust.attacks.standard_auto_attack import AutoAttack, autoattack
from ns_easyrobust.errors import DataError, ModelError, OptionError, UserError

PATCHFOOL = PatchFool(steps=2, layer=1, loss="ce")
ATTACKS = {
    "fgsm": fgsm,
    "pgd": lambda *given: pgd(*given, steps=2, random_start=False),
    "cw": lambda *given: cw(*given, steps=3),
    "patchfool": lambda *given: patchfool(*given, PATCHFOOL),
}


@pytest.fixture(scope="module")
def model():
    return small_vit().eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


LABELS = torch.arange(4)


class Wrapped(nn.Module):
    def __init__(self, inner, output):
        super().__init__()
        self.inner, self.output = inner, output

    def forward(self, tokens):
        return self.output(self.inner(tokens))


def returning(model, output):
    return nn.Sequential(model[0], Wrapped(model[1], output))


@pytest.mark.parametrize("name", ATTACKS)
def test_the_mode_of_gradients_and_the_type_of_labels_change_nothing(model, images, name):
    attack = ATTACKS[name]
    expected = attack(model, images, LABELS)
    assert not torch.equal(expected, images)
    with torch.inference_mode():
        assert torch.equal(attack(model, images, LABELS), expected)
        assert torch.equal(attack(model, images.clone(), LABELS.clone()), expected), "tensors of inference mode"
    with torch.no_grad():
        assert torch.equal(attack(model, images, LABELS), expected)
    for dtype in (torch.int32, torch.uint8, torch.int16):
        assert torch.equal(attack(model, images, LABELS.to(dtype)), expected)
    assert torch.equal(attack(returning(model, lambda logits: {"logits": logits}), images, LABELS), expected)


@pytest.mark.parametrize("name", ATTACKS)
def test_rounding_is_clamped_and_no_images_give_none(model, images, name):
    rounded = images.clone()
    rounded[0, 0, 0, :2] = torch.tensor([1 + 1e-6, -1e-6])
    attacked = ATTACKS[name](model, rounded, LABELS)
    assert 0 <= attacked.min() <= attacked.max() <= 1
    assert rounded.max() > 1
    assert ATTACKS[name](model, images[:0], LABELS[:0]).shape == (0, 3, 32, 32)


WRONG = {
    "normalised": (lambda x: 2 * x - 1, None, r"expected pixels in \[0, 1\], found \[-"),
    "nan": (lambda x: x * torch.nan, None, "found \\[nan"),
    "uint8": (lambda x: (255 * x).byte(), None, r"float tensor \(B, C, H, W\), found torch.uint8"),
    "no batch": (lambda x: x[0], None, "found torch.float32 of shape \\(3, 32, 32\\)"),
    "smaller": (lambda x: x[:, :, :16, :16], None, "expected images of 32x32 pixels, .* found 16x16"),
    "grey": (lambda x: x[:, :1], None, "expected images of 3 channels"),
    "double": (lambda x: x.double(), None, "expected pixels of torch.float32"),
    "scores": (None, torch.eye(4), r"expected labels as a tensor of shape \(4,\), found shape \(4, 4\)"),
    "floats": (None, LABELS.float(), "as whole numbers, found torch.float32"),
    "booleans": (None, LABELS > 1, "as whole numbers, found torch.bool"),
    "negative": (None, LABELS - 1, "class indices from 0, found -1"),
    "another dataset's": (None, LABELS + 8, r"expected labels 0 to 9, the model's outputs, found 11"),
    "a list": (None, [0, 1, 2, 3], "found list"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("name", ATTACKS)
def test_wrong_images_and_labels_are_refused(model, images, name, case):
    change, labels, message = WRONG[case]
    with pytest.raises(UserError, match=message):
        ATTACKS[name](model, images if change is None else change(images), LABELS if labels is None else labels)


@pytest.mark.parametrize("name", [*ATTACKS, "autoattack"])
def test_models_without_logits_are_refused(model, images, name):
    attack = ATTACKS.get(name, autoattack)
    with pytest.raises(ModelError, match=r"expected logits .* found a tuple of 2"):
        attack(returning(model, lambda logits: (logits, logits)), images, LABELS)
    with torch.inference_mode():
        made_there = small_vit()
    with pytest.raises(ModelError, match="found one made in torch"):
        attack(made_there, images, LABELS)


@pytest.mark.parametrize("attack", [fgsm, pgd, cw])
@pytest.mark.parametrize("cut", [torch.Tensor.detach, torch.Tensor.long])
def test_logits_without_gradients_are_refused(model, images, attack, cut):
    class Cut(nn.Module):
        def forward(self, pixels):
            return cut(model(pixels))

    with pytest.raises(ModelError, match="expected logits with a gradient"):
        attack(Cut(), images, torch.zeros(len(images), dtype=torch.int64))


def test_autoattack_in_inference_mode(model, images):
    with torch.inference_mode():
        predicted = model(images[:1]).argmax(1)
        attacked = autoattack(returning(model, lambda logits: {"logits": logits}), images[:1].clone(), predicted.int())
        assert model(attacked).argmax(1) != predicted
    assert (attacked - images[:1]).abs().max() <= 4 / 255 + 1e-6


def test_a_model_is_left_as_it_was(model, images):
    hooks = dict(model._forward_hooks)
    with pytest.raises(DataError):
        fgsm(model, images, LABELS + 20)
    fgsm(model, images, LABELS)
    assert dict(model._forward_hooks) == hooks


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: CW(radii=[127.5]), "cw: expected radii"),
        (lambda: AutoAttack("L2", 127.5), "autoattack: expected epsilon"),
        (lambda: PatchFool(norm="l2", epsilon=128), "patchfool: expected epsilon"),
        (lambda: pgd(None, None, None, epsilon=0.1, step_size=2), "pgd: expected step_size"),
    ],
)
def test_sizes_of_pixels_in_0_to_255_are_refused(make, named):
    with pytest.raises(OptionError, match=f"{named} .*Divide it by 255"):
        make()


@pytest.mark.parametrize(
    "settings", [{"c": -1}, {"steps": 0}, {"lr": 0}, {"kappa": float("nan")}, {"lr": float("inf")}]
)
def test_settings_of_cw_that_make_no_sense(settings):
    with pytest.raises(OptionError, match="cw: expected c >= 0"):
        CW(**settings)


OUTPUTS = {
    "without a gradient": (lambda logits: logits.detach(), "a gradient to the pixels, found none"),
    "whole numbers": (lambda logits: (9 * logits).long(), "a gradient to the pixels, found none"),
    "nan": (lambda logits: logits * torch.nan, "numbers, found nan"),
    "inf": (lambda logits: logits.abs() * torch.inf, "numbers, found nan or inf"),
}


@pytest.mark.parametrize(
    ("name", "case"),
    [*product(("fgsm", "pgd"), OUTPUTS), ("patchfool", "without a gradient")],
)
def test_logits_that_no_attack_can_use_are_refused(model, images, name, case):
    output, message = OUTPUTS[case]
    with pytest.raises(ModelError, match=f"{name}: expected .*{message}"):
        ATTACKS[name](returning(model, output), images, LABELS)


def test_logits_of_too_few_images_are_refused(model, images):
    with pytest.raises(ModelError, match=r"expected logits \(4, K\).* found a tensor of shape \(1, 10\)"):
        fgsm(returning(model, lambda logits: logits[:1]), images, LABELS)


def test_a_class_that_is_masked_is_attacked_nevertheless(model, images):
    masked = returning(model, lambda logits: torch.cat([logits[:, :9], torch.full((len(logits), 1), -torch.inf)], 1))
    assert 0 < (fgsm(masked, images, LABELS) - images).abs().max() < 1.01 / 255


@pytest.mark.parametrize("name", ATTACKS)
def test_pixels_of_lower_precision_than_the_weights(model, images, name):
    for pixels in (images.half(), images.bfloat16()):
        assert torch.equal(ATTACKS[name](model, pixels, LABELS), ATTACKS[name](model, pixels.float(), LABELS))


def test_an_attack_that_comes_to_nan_is_no_result(model, images):
    broken = returning(model, lambda logits: logits * (torch.nan if torch.is_grad_enabled() else 1))
    with pytest.raises(ModelError, match=r"patchfool: expected adversarial pixels in .*found nan"):
        patchfool(broken, images, LABELS, PATCHFOOL)


def test_step_sizes_that_no_float_holds_are_refused(model, images):
    with pytest.raises(OptionError, match="lr > 0 and at most 10000"):
        PatchFool(lr=1e38)
    with pytest.raises(OptionError, match="lr > 0 and at most 10000"):
        cw(model, images, LABELS, lr=1e38)
