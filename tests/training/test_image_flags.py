"""Image augmentation of a run: what its flags refuse, and the batches that they lead to."""

from __future__ import annotations

import argparse

import pytest
import torch
from helpers.runs import equal

import ns_easyrobust.training.trainer as module
from ns_easyrobust.errors import OptionError
from ns_easyrobust.models.checkpoints import load_model
from ns_easyrobust.models.vit import unwrap
from ns_easyrobust.training.image_flags import clean_forward_equivalents
from ns_easyrobust.training.options import parse_args
from ns_easyrobust.training.setup import build_data
from ns_easyrobust.training.trainer import train

SPLITS = ["--aa", "augmix-m3-w3", "--aug-splits", "3", "--jsd-loss"]


@pytest.fixture(scope="module")
def model():
    return load_model("vit_micro_patch8_32", num_classes=10)


def flags(*more, data="y"):
    words = ["--model", "vit_micro_patch8_32", "--num-classes", "10", "--data-dir", str(data), "--device", "cpu"]
    return parse_args([*words, "-j", "0", "-b", "8", *more])


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--aug-splits", "3", "--aa", "augmix-m3"], "--aug-splits 3: expected --jsd-loss"),
        (["--jsd-loss"], "--jsd-loss: expected --aug-splits"),
        (["--aug-splits", "1", "--jsd-loss"], "--aug-splits: expected 2 views or more"),
        (["--aug-splits", "17", "--jsd-loss"], "--aug-splits"),
        ([*SPLITS, "--mixup", "0.2"], "--aug-splits 3: expected no --mixup"),
        ([*SPLITS, "--cutmix", "1"], "--aug-splits 3: expected no --mixup"),
        ([*SPLITS, "--cutmix-minmax", "0.2", "0.8"], "--aug-splits 3: expected no --mixup"),
        ([*SPLITS, "--no-aug"], "--aug-splits 3: expected an augmentation"),
        ([*SPLITS[2:], "--color-jitter", "0"], "--aug-splits 3: expected an augmentation"),
        (["--resplit"], "--resplit: expected --aug-splits"),
        (["--augmix-ops", "published"], "--augmix-ops published: expected --aa augmix, found --aa missing"),
        (["--augmix-ops", "published", "--aa", "rand-m9"], "expected --aa augmix, found --aa rand-m9"),
        (["--augmix-ops", "published", "--aa", "augmix-b1"], "augmix-b1: expected augmix with parts"),
        (["--augmix-ops", "published", "--aa", "augmix-m20"], "expected severity from 1 to 10"),
        (["--aa", "rand-m9-inc0"], "expected inc1 or nothing, found inc0"),
        (["--aa", "augmix-b0-m3"], "expected b1 or nothing, found b0"),
    ],
)  # fmt: skip
def test_what_goes_together_is_told_in_one_line(more, line):
    with pytest.raises(OptionError, match=line) as raised:
        flags(*more)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("policy", ["trivial-m3", "trivialaugment", "augmixer"])
def test_a_policy_that_there_is_not(policy, digits_dir, model):
    with pytest.raises(OptionError, match=f"--aa {policy}: expected trivial, or a policy of timm's"):
        build_data(flags("--aa", policy, data=digits_dir), model)


def test_a_companion_in_the_place_of_the_loss_of_views(monkeypatch):
    from ns_easyrobust.training.augmentations import flags as companions
    from ns_easyrobust.training.augmentations.base import Augmentation

    class Instead(Augmentation):
        @classmethod
        def replaces(cls, config):
            return True

    monkeypatch.setattr(companions, "_chosen", lambda args: {"instead": Instead})
    companions.check_augmentation_args(flags())
    with pytest.raises(OptionError, match="--jsd-loss: expected a companion that keeps the clean loss, found instead"):
        companions.check_augmentation_args(flags(*SPLITS))


def test_the_cost_of_the_clean_loss():
    assert clean_forward_equivalents(flags("--mixup", "0.2", "--aa", "trivial")) == 3
    assert clean_forward_equivalents(flags(*SPLITS)) == 9


@pytest.mark.parametrize("more", [["--aa", "trivial"], [*SPLITS, "--augmix-ops", "published", "--reprob", "0.5"]])
def test_a_stream_that_is_resumed_is_the_same_and_evaluation_is_another_matter(digits_dir, model, more):
    args = flags(*more, data=digits_dir)
    whole, late = (iter(build_data(args, model, start).train) for start in (0, 2))
    batches = [next(whole) for _ in range(4)]
    torch.rand(1), torch.manual_seed(5)
    equal(batches[2:], [next(late), next(late)])
    views = batches[0][0] if args.aug_splits else [batches[0][0]]
    assert [view.shape for view in views] == [(8, 3, 32, 32)] * max(1, args.aug_splits)
    assert len({view.sum().item() for view in views}) == len(views)
    data = build_data(args, model)
    plain = build_data(flags(data=digits_dir), model)
    equal(data.val[3], plain.val[3])
    equal(data.holdout[3], plain.holdout[3])


def test_a_run_sees_all_views_and_its_companion_the_clean_one(digits_dir, tmp_path, monkeypatch):
    seen: list[torch.Tensor] = []

    def watched(run, batches):
        handle = unwrap(run.model)[1].register_forward_pre_hook(lambda m, args: seen.append(args[0].detach()))
        result = original(run, batches)
        handle.remove()
        return result

    original = module._train_step
    monkeypatch.setattr(module, "_train_step", watched)
    more = ["--max-steps", "2", "--aug", "random", "--output", str(tmp_path), "--experiment", "run"]
    args: argparse.Namespace = flags(*SPLITS, *more, data=digits_dir)
    train(args)
    clean, companion = seen[-2:]  # of the second step, which makes no noise
    assert (len(clean), len(companion)) == (24, 8)
    assert torch.equal(clean[:8], companion)
    assert not torch.equal(clean[:8], clean[8:16])
