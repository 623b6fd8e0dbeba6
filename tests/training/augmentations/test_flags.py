"""What all companions have in common: names, flags, joined lists, and one in place of the clean loss."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import pytest
import torch
from helpers.models import small_vit
from torch import nn

from ns_easyrobust.errors import OptionError
from ns_easyrobust.models import logits_of
from ns_easyrobust.nullspace import NoiseConfig
from ns_easyrobust.training.augmentations.base import Augmentation
from ns_easyrobust.training.augmentations.flags import (
    add_nullspace_args,
    augmentation_from_args,
    check_augmentation_args,
    chosen_names,
    companion_costs,
)
from ns_easyrobust.training.augmentations.joined import JoinedAugmentation, part_loss
from ns_easyrobust.training.augmentations.nullspace import NullspaceAugmentation
from ns_easyrobust.training.augmentations.registry import AUGMENTATIONS, register_augmentation
from ns_easyrobust.utils import FlagParser, fork_rng, setting

CROSS_ENTROPY = nn.functional.cross_entropy


@dataclass(frozen=True)
class BrighterSettings:
    by: float = setting(0.5, "what is added to the pixels", least=0)
    alone: bool = setting(False, "in place of the clean loss")


class Brighter(Augmentation):
    """The loss of brighter images, under dropout of the pixels."""

    Settings = BrighterSettings
    uses_output = True

    @classmethod
    def replaces(cls, config):
        return config.alone

    @classmethod
    def cost(cls, config):
        return 3.0

    @property
    def numbers(self):
        return {"by": self.config.by}

    def loss(self, input, target, loss_fn, *, new_step=True, output=None):
        assert (output is None) == self.replaces_clean
        with fork_rng(self.next_seed(), input.device):
            return loss_fn(logits_of(self.model(nn.functional.dropout(input + self.config.by)), len(input)), target)


@pytest.fixture
def registered():
    """``brighter`` and ``brighter-too``, which train's flags then know."""
    names = ("brighter", "brighter-too")
    for name in names:
        register_augmentation(name)(type(name, (Brighter,), {"__module__": f"{__name__}.{name}"}))
    yield names
    for name in names:
        del AUGMENTATIONS[name]


def parsed(*words: str) -> argparse.Namespace:
    parser = FlagParser()
    add_nullspace_args(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    ("aug", "expected"),
    [("none", []), ("nullspace", ["nullspace"]), ("nullspace,random", ["nullspace", "random"])],
)
def test_a_value_of_aug_joins_names_by_commas(aug, expected):
    assert chosen_names(aug) == expected
    assert parsed("--aug", aug).aug == aug


@pytest.mark.parametrize(
    ("aug", "complaint"),
    [
        ("nulspace", "expected one of none, .*, nullspace.*, found 'nulspace'"),
        ("nullspace,", "found ''"),
        ("nullspace,none", "found 'none'"),
        ("random,random", "expected each method once, found random twice"),
    ],
)
def test_a_wrong_name_is_named(aug, complaint):
    with pytest.raises(OptionError, match=complaint):
        chosen_names(aug)
    with pytest.raises(OptionError, match=f"argument --aug: .*{complaint}"):
        parsed("--aug", aug)


def test_settings_are_flags_and_are_checked(registered, trained):
    args = parsed("--aug", "brighter", "--brighter-by", "0.25", "--brighter-alone")
    made = augmentation_from_args(args, trained, [])
    assert made.config == BrighterSettings(by=0.25, alone=True)
    assert made.name == "brighter"
    assert made.replaces_clean
    with pytest.raises(OptionError, match="--brighter-by: expected a number >= 0, found -1"):
        parsed("--brighter-by=-1")


def test_flags_of_methods_that_are_not_named_are_told(registered, trained, caplog):
    augmentation_from_args(parsed("--aug", "brighter", "--brighter-too-by", "0.25"), trained, [])
    assert "--brighter-too-by does nothing with --aug brighter" in caplog.text


def test_two_that_replace_the_clean_loss_are_refused_before_anything_is_built(registered):
    words = ("--aug", "brighter,brighter-too", "--brighter-alone")
    check_augmentation_args(parsed(*words))
    with pytest.raises(OptionError, match="at most one method that replaces the clean loss, found brighter and bright"):
        check_augmentation_args(parsed(*words, "--brighter-too-alone"))


def test_cost_in_forwards(registered):
    assert companion_costs(parsed()) == (0, 0)
    assert companion_costs(parsed("--aug", "brighter,brighter-too")) == (6, 0)
    assert companion_costs(parsed("--aug", "brighter", "--brighter-alone")) == (0, 0)
    assert companion_costs(parsed("--aug", "nullspace", "--ns-max-steps", "80")) == (3, 240)
    assert companion_costs(parsed("--aug", "random")) == (3, 0)
    for joined, cost in (
        ("madry,trades", 44),
        ("madry,trades,negative-patches", 50),
    ):  # with clean outputs of their own
        words = ("--aug", joined, "--madry-steps", "7", "--madry-alone", "--negative-loss", "l2")
        assert companion_costs(parsed(*words)) == (cost - 3, 0)


def make(images, *, seed=0):
    """A noise, brighter images and a second noise, in one."""
    generator, config = torch.Generator().manual_seed(seed), NoiseConfig(max_steps=2)
    model, batches = small_vit(), [images]
    return JoinedAugmentation(
        {
            "nullspace": NullspaceAugmentation(model, batches, config, interval=2, generator=generator),
            "brighter": Brighter(model, generator=generator),
            "other": NullspaceAugmentation(model, batches, config, interval=2, generator=generator),
        }
    )


def test_losses_add_and_the_state_goes_on(digits, tmp_path):
    batch = (digits[0][:8], digits[1][:8])
    joined = make(batch)

    def step(joined):
        return float(part_loss(joined, *batch, CROSS_ENTROPY, joined.parts["brighter"].model(batch[0])).detach())

    alone = make(batch).parts
    expected = sum(float(part_loss(part, *batch, CROSS_ENTROPY, batch[0]).detach()) for part in alone.values())
    assert joined.due
    assert step(joined) == pytest.approx(expected, rel=1e-6)
    assert not joined.due
    state = joined.state_dict()
    rest = [step(joined) for _ in range(2)]
    again = make(batch, seed=1)
    again.load_state_dict(state)
    assert [step(again) for _ in range(2)] == rest
    assert sorted(joined.numbers)[:2] == ["brighter_by", "nullspace_noise_mse_probability"]
    joined.write(tmp_path)
    written = ["noise.csv", "noise.pt", "other-noise.csv", "other-noise.pt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == written


def test_rewound_it_draws_the_same_again(digits):
    batch = (digits[0][:8], digits[1][:8])
    joined = make(batch)
    joined.parts["brighter"].model.train()

    def step(new_step):
        loss = joined.loss(*batch, CROSS_ENTROPY, new_step=new_step, output=batch[0])
        return float(loss.detach())

    first = step(True)
    joined.rewind()
    assert step(False) == first
    assert step(False) != first
