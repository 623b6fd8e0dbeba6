"""Negative patches as a companion: what is added to the clean loss, what is refused, and that it does its job."""

from __future__ import annotations

import argparse
import copy
import math

import pytest
import timm
import torch
from helpers.models import TwoHeads, small_vit
from torch import nn

from ns_easyrobust.errors import DataError, ModelError, OptionError, UserError
from ns_easyrobust.models.features import features_of
from ns_easyrobust.training.augmentations.negative_losses import contrastive_loss
from ns_easyrobust.training.augmentations.negative_patches import NegativePatches, NegativeSettings
from ns_easyrobust.training.augmentations.patch_transforms import transform_patches
from ns_easyrobust.utils.arguments import add_settings
from ns_easyrobust.utils.seeding import derive_seed

LOSS_FN = nn.functional.cross_entropy


@pytest.fixture
def batch(digits):
    return digits[0][:16], digits[1][:16]


def negatives_of(companion: NegativePatches, images: torch.Tensor, transform: str, side: int, rate: float = 0.25):
    """The negatives of the companion's next call."""
    seed = derive_seed(copy.copy(companion).next_seed(), 1)
    return transform_patches(transform, images, side, generator=torch.Generator().manual_seed(seed), rate=rate)


def value(companion: NegativePatches, images: torch.Tensor, target: torch.Tensor, **more) -> float:
    return companion.loss(images, target, LOSS_FN, **more).item()


def test_uniform_is_the_cross_entropy_of_the_negatives_with_one_over_k(trained, batch):
    images, labels = batch
    companion = NegativePatches(trained, config=NegativeSettings(transform="infill", weight=1.5, multiple=2, rate=0.5))
    for _ in range(2):
        negatives = negatives_of(companion, images, "infill", side=16, rate=0.5)
        expected = 1.5 * LOSS_FN(trained(negatives), torch.full((16, 10), 0.1))
        assert companion.loss(images, labels, LOSS_FN).item() == pytest.approx(expected.item(), rel=1e-6)
    first = NegativePatches(trained).loss(images, labels, LOSS_FN)
    (gradient,) = torch.autograd.grad(first, trained[1].head.weight)
    assert gradient.abs().max() > 0


def test_l2_is_between_the_clean_output_and_the_negatives(trained, batch):
    images, labels = batch
    for output in (None, trained(images), {"logits": trained(images)}):
        companion = NegativePatches(trained, config=NegativeSettings(loss="l2", transform="shuffle"))
        negatives = negatives_of(companion, images, "shuffle", side=8)
        p, q = trained(images).softmax(1), trained(negatives).softmax(1)
        expected = -(p - q).square().sum(1).sqrt().mean().item()
        assert value(companion, images, labels, output=output) == pytest.approx(expected, rel=1e-5)
        assert expected < -0.1
    output = trained(images).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(companion.loss(images, labels, LOSS_FN, output=output), output)
    assert gradient.abs().max() > 0  # the clean output is not detached


@pytest.mark.parametrize("loss", ["uniform", "l2"])
def test_two_heads_count_as_their_mean(trained, batch, loss):
    values = []
    for model in (trained.train(), TwoHeads(trained).train()):
        companion = NegativePatches(model, config=NegativeSettings(loss=loss, patch_size=8))
        values += [value(companion, *batch, output=output) for output in (model(batch[0]), None)]
    assert values == pytest.approx([values[0], values[1]] * 2, rel=1e-5)


def test_contrastive_is_on_the_features_and_takes_soft_targets(trained, batch):
    images, labels = batch
    config = NegativeSettings(loss="contrastive", temperature=0.3)
    negatives = negatives_of(NegativePatches(trained, config=config), images, "rotate", side=8)
    features = features_of(trained, images), features_of(trained, negatives)
    expected = contrastive_loss(*features, labels, 0.3).item()
    soft = 0.6 * nn.functional.one_hot(labels, 10) + 0.4 * torch.rand(16, 10).softmax(1)
    for target in (labels, soft):
        assert value(NegativePatches(trained, config=config), images, target) == pytest.approx(expected, rel=1e-5)


def test_contrastive_needs_a_label_for_each_image(trained, batch):
    companion = NegativePatches(trained, config=NegativeSettings(loss="contrastive"))
    with pytest.raises(DataError, match="expected a target for each image, found 8 for 16 images"):
        companion.loss(batch[0], batch[1][:8], LOSS_FN)


def test_dropout_is_its_own_and_every_call_draws_anew(batch):
    model = small_vit(drop_rate=0.3).train()
    companion = NegativePatches(model)
    torch.manual_seed(3)
    state = torch.default_generator.get_state()
    found = [value(companion, *batch) for _ in range(2)]
    assert torch.equal(torch.default_generator.get_state(), state)
    assert found[0] != found[1]
    companion.rewind()
    assert value(companion, *batch) == found[1]


@pytest.mark.parametrize(("loss", "images"), [("uniform", 16), ("l2", 16), ("contrastive", 32)])
def test_its_cost_is_that_of_the_images_that_are_run(batch, loss, images):
    model, config = small_vit(), NegativeSettings(loss=loss)
    output, run = model(batch[0]), []
    handle = model.register_forward_hook(lambda module, args, output: run.append(len(args[0])))
    NegativePatches(model, config=config).loss(*batch, LOSS_FN, output=output)
    handle.remove()
    assert sum(run) == images
    assert NegativePatches.cost(config) == 3 * images / 16  # each with a backward to the weights


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"transform": "blur"}, "transform: expected one of shuffle, rotate, infill, found 'blur'"),
        ({"loss": "l1"}, "loss: expected one of uniform, l2, contrastive, found 'l1'"),
        ({"weight": -1}, "weight: expected a number from 0 to 1e"),
        ({"weight": math.nan}, "found nan"),
        ({"multiple": 0}, "multiple: expected a whole number from 1"),
        ({"multiple": 1.5}, "multiple: expected a whole number"),
        ({"temperature": 0}, "temperature: expected a number from 0.001"),
        ({"rate": 1.5}, "rate: expected a number from 0 to 1"),
    ],
)
def test_settings_out_of_range_are_one_line(settings, match):
    with pytest.raises(OptionError, match=match):
        NegativeSettings(**settings)


@pytest.mark.parametrize(
    ("model", "settings", "error", "match"),
    [
        (lambda: small_vit(), {"multiple": 3}, OptionError, "multiples of the 24 pixels.*found 32 x 32"),
        (lambda: small_vit(), {"multiple": 4, "transform": "shuffle"}, OptionError, "two patches or more"),
        (lambda: small_vit(), {"transform": "infill", "rate": 0.01}, OptionError, "rate that replaces 1 to 15"),
        (lambda: small_vit(arch="swin_micro_patch2_32"), {}, ModelError, "Give the patch size"),
        (lambda: timm.create_model("resnet18"), {}, ModelError, "Give the patch size"),
    ],
)
def test_what_has_no_such_patches_is_refused_at_once(model, settings, error, match):
    with pytest.raises(error, match=match):
        NegativePatches(model(), config=NegativeSettings(**settings))


def test_a_patch_size_of_the_users(batch):
    model = small_vit(arch="swin_micro_patch2_32")
    assert value(NegativePatches(model, config=NegativeSettings(patch_size=8)), *batch) > math.log(10)
    resnet = timm.create_model("resnet18", num_classes=10)
    companion = NegativePatches(resnet, config=NegativeSettings(patch_size=24))
    with pytest.raises(UserError, match="multiples of the 24 pixels"):
        companion.loss(*batch, LOSS_FN)


def test_its_flags():
    parser = argparse.ArgumentParser()
    add_settings(parser, NegativeSettings, NegativePatches.prefix)
    words = "--negative-transform infill --negative-loss contrastive --negative-weight 1.5 --negative-multiple 2"
    words += " --negative-patch-size 16 --negative-rate 0.375 --negative-temperature 0.2"
    args = parser.parse_args(words.split())
    assert NegativePatches.config_from(args) == NegativeSettings("infill", "contrastive", 1.5, 2, 16, 0.375, 0.2)
    assert NegativePatches.config_from(parser.parse_args([])) == NegativeSettings()


def trained_further(model: nn.Module, digits, companion: NegativePatches | None) -> nn.Module:
    """400 updates on the first 1297 digits."""
    images, labels = digits
    optimizer, order = torch.optim.AdamW(model.train().parameters(), 1e-3), torch.Generator().manual_seed(1)
    for _ in range(400):
        batch = torch.randint(1297, (64,), generator=order)
        output = model(images[batch])
        total = LOSS_FN(output, labels[batch])
        if companion is not None:
            total = total + companion.loss(images[batch], labels[batch], LOSS_FN, output=output)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.stress
def test_negatives_fall_to_chance_and_clean_images_do_not(trained, digits):
    """With and without, from one start; judged on 500 digits that no update saw, and on their negatives.

    Chance is 0.1. Of digits with turned patches, the start itself reads hardly any, but is sure of them.
    """
    images, truth = digits[0][1297:], digits[1][1297:]

    def judged(model: nn.Module, images: torch.Tensor) -> tuple[float, float]:
        """Accuracy and mean confidence."""
        with torch.no_grad():
            surest = model(images).softmax(1).max(1)
        return (surest.indices == truth).double().mean().item(), surest.values.mean().item()

    plain = trained_further(copy.deepcopy(trained), digits, None)
    clean, _ = judged(plain, images)
    for transform, loss, least in (
        ("shuffle", "uniform", 0.7),
        ("infill", "uniform", 0.5),
        ("rotate", "uniform", 0.1),
        ("shuffle", "l2", 0.7),
    ):
        model = copy.deepcopy(trained)
        trained_further(model, digits, NegativePatches(model, config=NegativeSettings(transform, loss)))
        negatives = transform_patches(transform, images, 8, generator=torch.Generator().manual_seed(7))
        (broken, sure), (new_broken, new_sure) = judged(plain, negatives), judged(model, negatives)
        new_clean, _ = judged(model, images)
        print(f"{transform} {loss}: clean {clean:.3f} {new_clean:.3f}, negatives {broken:.3f} {new_broken:.3f}", end="")
        print(f", confidence on them {sure:.2f} {new_sure:.2f}")
        assert new_clean >= clean - 0.02
        assert broken >= least
        assert new_broken < 0.25
        if loss == "uniform":
            assert sure > 0.75
            assert new_sure < 0.15
