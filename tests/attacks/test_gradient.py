from __future__ import annotations

import pytest
import torch
from torch import nn

from ns_easyrobust.attacks.base import require_radius
from ns_easyrobust.attacks.gradient import cw, fgsm, pgd
from ns_easyrobust.attacks.standard_auto_attack import autoattack
from ns_easyrobust.errors import DataError, OptionError
from ns_easyrobust.evaluation.easyrobust_api import (
    evaluate_imagenet_autoattack,
    evaluate_imagenet_fgsm,
    evaluate_imagenet_pgd,
)


def accuracy(model, images, labels):
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


@pytest.fixture
def data(digits):
    return digits[0][1297:1361].clone(), digits[1][1297:1361]


@pytest.mark.parametrize("epsilon", [1 / 255, 8 / 255])
def test_fgsm_is_one_signed_step(trained, data, epsilon):
    images, labels = data
    leaf = images.clone().requires_grad_()
    nn.functional.cross_entropy(trained(leaf), labels).backward()
    expected = (images + epsilon * leaf.grad.sign()).clamp(0, 1)
    trained.zero_grad(set_to_none=True)
    assert torch.allclose(fgsm(trained, images, labels, epsilon=epsilon), expected, atol=1e-6)


def test_attacks_lower_accuracy_and_leave_the_model_alone(trained, data):
    images, labels = data
    trained.train()
    clean = accuracy(trained.eval(), images, labels)
    trained.train()
    for attacked in (fgsm(trained, images, labels, epsilon=16 / 255), cw(trained, images, labels)):
        assert trained.training
        assert all(p.grad is None and p.requires_grad for p in trained.parameters())
        assert 0 <= attacked.min() <= attacked.max() <= 1
        assert accuracy(trained.eval(), attacked, labels) < clean - 0.2
        trained.train()


def test_cw_needs_less_than_a_signed_step_of_equal_success(trained, data):
    images, labels = data
    attacked = cw(trained, images, labels, steps=100)
    fooled = trained(attacked).argmax(1) != labels
    assert fooled.float().mean() > 0.5
    by_cw = (attacked - images)[fooled].flatten(1).norm(dim=1).mean()
    by_sign = (fgsm(trained, images, labels, epsilon=0.3) - images)[fooled].flatten(1).norm(dim=1).mean()
    assert by_cw < by_sign


def test_pixels_out_of_range_are_refused(trained, data):
    images, labels = data
    for attack in (fgsm, cw):
        with pytest.raises(DataError, match=r"expected pixels in \[0, 1\], found \[-1"):
            attack(trained, images * 2 - 1, labels)


def test_radii_are_in_pixels_of_0_to_1(trained, data, digits_dir):
    images, labels = data
    for epsilon, message in ((-1, "epsilon >= 0"), (float("nan"), "epsilon >= 0"), (8, "found 8. Divide it by 255")):
        for attack in (fgsm, pgd, autoattack):
            with pytest.raises(OptionError, match=message):
                attack(trained, images, labels, epsilon=epsilon)
        for evaluate in (evaluate_imagenet_fgsm, evaluate_imagenet_pgd, evaluate_imagenet_autoattack):
            with pytest.raises(OptionError, match=message):
                evaluate(trained, digits_dir / "imagenet-val", epsilon=epsilon)
    require_radius("autoattack", 8, "L2")  # an L2 radius may well be 8
    with pytest.raises(OptionError, match="expected the norm Linf or L2, found False"):
        evaluate_imagenet_autoattack(trained, digits_dir / "imagenet-val", 8, None, False)
