"""The controls, and noise at the input of a block, in training."""

from __future__ import annotations

import argparse

import pytest
import torch
from helpers.models import forward_by_hand, small_vit
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ns_easyrobust.errors import ModelError, OptionError
from ns_easyrobust.nullspace.config import NoiseConfig
from ns_easyrobust.nullspace.noise import Noise
from ns_easyrobust.nullspace.synthesis import measure
from ns_easyrobust.training.augmentations.controls import RandomNoiseAugmentation, SensitiveNoiseAugmentation
from ns_easyrobust.training.augmentations.flags import add_nullspace_args, augmentation_from_args
from ns_easyrobust.training.augmentations.noise_use import NoiseUse, gaussians_like, random_combinations
from ns_easyrobust.training.augmentations.nullspace import NullspaceAugmentation
from ns_easyrobust.utils.seeding import fork_rng

AT_BLOCK = NoiseConfig(max_steps=2, eps=1e-9, block=1)


@pytest.fixture
def loader(digits):
    return DataLoader(TensorDataset(*(part[:200] for part in digits)), batch_size=16, shuffle=True)


def test_the_sensitive_direction_is_a_smaller_noise_than_random(trained, loader):
    config = NoiseConfig(max_steps=20, turn=0.2, pool=4)
    sensitive, random = (
        kind(trained, loader, config).refresh() for kind in (SensitiveNoiseAugmentation, RandomNoiseAugmentation)
    )
    assert sensitive.config.solver == "sensitive"
    assert sensitive.stopped
    assert sensitive.norm < random.norm / 4


def test_flags_make_it_and_say_the_block(loader):
    parser = argparse.ArgumentParser()
    add_nullspace_args(parser)
    words = ["--aug", "sensitive", "--ns-block", "2", "--ns-max-steps", "9"]
    made = augmentation_from_args(parser.parse_args(words), small_vit(), loader)
    assert type(made) is SensitiveNoiseAugmentation
    assert made.config == NoiseConfig(solver="sensitive", block=2, max_steps=9)


@pytest.mark.parametrize("solver", ["paper", "sphere", "sensitive", "random"])
def test_a_block_takes_the_noise_of_every_solver(trained, loader, solver):
    config = NoiseConfig(solver=solver, max_steps=2, eps=0.5, limit=0.1, block=1, pool=2)
    ns = NullspaceAugmentation(trained, loader, config)
    images, labels = next(iter(loader))
    loss = ns.loss(images, labels, nn.functional.cross_entropy)
    assert ns.noise.value.shape == (1, 17, 64)
    expected = nn.functional.cross_entropy(forward_by_hand(trained, images, ns.noise.value, 1), labels)
    assert torch.equal(loss, expected)
    assert ns.noise.held_out == measure(trained, ns._held_out, ns.noise.value, block=1)
    assert ns.measured_anew(ns.noise).held_out == ns.noise.held_out


@pytest.mark.parametrize("use", [NoiseUse(fresh=True), NoiseUse(bank=2)])
def test_at_a_block_too_each_image_gets_its_own_noise(loader, use):
    model = small_vit().eval()
    companion = RandomNoiseAugmentation(model, loader, NoiseConfig(eps=0.5, block=1), use=use)
    images, labels = next(iter(loader))
    loss = companion.loss(images, labels, nn.functional.cross_entropy)
    companion.rewind()
    with fork_rng(companion.next_seed()):
        value = companion.noise.value
        noises = gaussians_like(value, 16) if use.fresh else random_combinations(value, 16)
    assert noises.shape == (16, 17, 64)
    assert len(noises.flatten(1).unique(dim=0)) == 16
    assert torch.equal(loss, nn.functional.cross_entropy(forward_by_hand(model, images, noises, 1), labels))


def test_a_block_that_the_model_does_not_have_is_refused_at_once(loader):
    with pytest.raises(OptionError, match=r"noise block: expected -1 .* 0 to 2, found 3"):
        NullspaceAugmentation(small_vit(), loader, NoiseConfig(block=3))
    with pytest.raises(ModelError, match="SwinTransformer has no blocks"):
        NullspaceAugmentation(small_vit(arch="swin_micro_patch2_32"), loader, AT_BLOCK)
    with pytest.raises(OptionError, match="noise block: expected a whole number >= -1"):
        NoiseConfig(block=-2)


def test_states_and_files_from_before_there_were_blocks_go_on(loader):
    model = small_vit()
    first = NullspaceAugmentation(model, loader, NoiseConfig(max_steps=2, eps=1e-9), interval=2)
    images, labels = next(iter(loader))
    first.loss(images, labels, nn.functional.cross_entropy)
    state = first.state_dict()
    assert state["noise"]["config"].pop("block") == -1
    second = NullspaceAugmentation(model, loader, NoiseConfig(max_steps=2, eps=1e-9), interval=2)
    second.load_state_dict(state)
    assert second.noise.config == first.noise.config
    assert torch.equal(second.refresh().value, first.refresh().value)
    by_position = NoiseConfig(3.0, 0.1, 0.03, 3000, 0.01, 0, "paper", 0.05, 100, 0, -1, 0, "bfloat16")
    assert by_position == NoiseConfig(autocast="bfloat16")
    at_block = NullspaceAugmentation(model, loader, AT_BLOCK).refresh()
    assert Noise.from_state_dict(at_block.state_dict()).config.block == 1
