"""The companion loss in training functions that are not ours, against the line one would write by hand."""

from __future__ import annotations

import argparse
import copy

import pytest
import torch
from helpers.models import small_vit
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ns_easyrobust.errors import DataError, ModelError, OptionError
from ns_easyrobust.integration.companion_loss import CompanionLoss
from ns_easyrobust.integration.training_function import FirstBatches, add_script_args, nullspace_augmented
from ns_easyrobust.nullspace.config import NoiseConfig
from ns_easyrobust.training.augmentations.controls import RandomNoiseAugmentation
from ns_easyrobust.training.augmentations.flags import add_nullspace_args, config_from_args
from ns_easyrobust.training.augmentations.madry import Madry, MadrySettings
from ns_easyrobust.training.augmentations.noise_use import NoiseUse
from ns_easyrobust.training.augmentations.nullspace import NullspaceAugmentation
from ns_easyrobust.training.augmentations.trades import Trades, TradesSettings


@pytest.fixture
def data(digits):
    return TensorDataset(digits[0][:48].clone(), digits[1][:48].clone())


def loader(data):
    return DataLoader(data, batch_size=8)


def parsed(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=3)
    add_nullspace_args(parser)
    add_script_args(parser)
    return parser.parse_args(["--ns-max-steps", "3", "--ns-eps", "1e-9", "--ns-interval", "4", *flags])


def plain(model, input, target, loss_fn):
    """EasyRobust's base script."""
    return loss_fn(model(input), target), input


def augmix(model, input, target, loss_fn):
    """Three views in one forward; the loss is handed the middle one's logits."""
    logits = model(torch.cat([input.flip(3), input, input * 0.5]))
    one, middle, two = torch.split(logits, len(input))
    return loss_fn(middle, target) + 0.1 * (one - two).square().mean(), input


def dat(model, input, target, loss_fn):
    """Two forwards and two losses, with an attack between them that runs the model in training mode."""
    loss = loss_fn(model(input), target)
    adversarial = input.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(adversarial), target), adversarial)
    loss += loss_fn(model((input + gradient.sign() / 255).clamp(0, 1)), target)
    return loss, input


def shape_texture(model, input, target, loss_fn):
    """Two forwards joined, one loss of both."""
    logits = torch.cat([model(input), model(input * 0.7)])
    return loss_fn(logits, torch.cat([target, target])), torch.cat([input, input * 0.7])


STEPS = {step.__name__: step for step in (plain, augmix, dat, shape_texture)}


def epoch_of(step, seen=None):
    """A training function of EasyRobust's shape around ``step``."""

    def train_one_epoch(epoch, model, loader, optimizer, loss_fn, args, lr_scheduler=None):
        model.train()
        for input, target in loader:
            loss, _ = step(model, input, target, loss_fn)
            if seen is not None:
                seen.append(float(loss.detach()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return {"loss": epoch}

    return train_one_epoch


def by_hand(step, model, data, args, epochs):
    """The same with the line that the README shows, on the images that the step says its first loss is of."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    batches = loader(data)
    ns = NullspaceAugmentation(
        model, batches, config_from_args(args), interval=args.ns_interval, generator=torch.Generator().manual_seed(3)
    )
    for _ in range(epochs):
        model.train()
        for input, target in batches:
            loss, images = step(model, input, target, F.cross_entropy)
            targets = torch.cat([target] * (len(images) // len(target)))
            loss = loss + ns.loss(images, targets, F.cross_entropy)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return ns


@pytest.mark.parametrize("name", STEPS)
def test_the_same_as_by_hand(data, name):
    model, args = small_vit(), parsed("--aug", "nullspace")
    other = copy.deepcopy(model)
    train = nullspace_augmented(epoch_of(STEPS[name]))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for epoch in range(2):
        assert train(epoch, model, loader(data), optimizer, nn.CrossEntropyLoss(), args) == {"loss": epoch}
    ns = by_hand(STEPS[name], other, data, args, 2)
    assert len(ns.history) == 3  # 12 steps, a noise for each 4
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        # gradients of two losses are summed in another order
        assert torch.allclose(mine, theirs, atol=2e-4)
    assert not any(module._forward_hooks for module in model.modules())


def trained_by_flags(data, *flags: str):
    """Weights after an epoch of the base script with ``flags``."""
    model = small_vit()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9)
    nullspace_augmented(epoch_of(plain))(0, model, loader(data), optimizer, nn.CrossEntropyLoss(), parsed(*flags))
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def trained_by_hand(data, loss_of):
    """The same with ``loss_of(model, generator)``, a function of images and labels, as the whole loss."""
    model = small_vit()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9)
    loss = loss_of(model, torch.Generator().manual_seed(3))
    model.train()
    for input, target in loader(data):
        optimizer.zero_grad()
        loss(input, target).backward()
        optimizer.step()
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def test_trades_gets_the_scripts_own_logits(data):
    def with_trades(model, generator):
        trades = Trades(model, config=TradesSettings(beta=6.0, steps=2), generator=generator)

        def loss(input, target):
            output = model(input)
            return F.cross_entropy(output, target) + trades.loss(input, target, F.cross_entropy, output=output)

        return loss

    weights = trained_by_flags(data, "--aug", "trades", "--trades-beta", "6", "--trades-steps", "2")
    torch.testing.assert_close(weights, trained_by_hand(data, with_trades), rtol=0, atol=1e-5)
    assert float((weights - trained_by_flags(data)).abs().max()) > 1e-4


def test_a_divergence_from_the_scripts_own_logits_in_place_of_the_noisy_loss(data):
    def with_kl(model, generator):
        config = NoiseConfig(eps=0.1)
        ns = RandomNoiseAugmentation(model, loader(data), config, use=NoiseUse(loss="kl"), generator=generator)

        def loss(input, target):
            output = model(input)
            return F.cross_entropy(output, target) + ns.loss(input, target, None, output=output)

        return loss

    weights = trained_by_flags(data, "--aug", "random", "--ns-interval", "40", "--ns-eps", "0.1", "--ns-loss", "kl")
    torch.testing.assert_close(weights, trained_by_hand(data, with_kl), rtol=0, atol=1e-5)
    assert float((weights - trained_by_flags(data)).abs().max()) > 1e-4


def test_a_companion_in_place_of_the_scripts_loss(data):
    def madry_alone(model, generator):
        madry = Madry(model, config=MadrySettings(steps=2, alone=True), generator=generator)
        return lambda input, target: madry.loss(input, target, F.cross_entropy)

    alone = trained_by_flags(data, "--aug", "madry", "--madry-steps", "2", "--madry-alone")
    torch.testing.assert_close(alone, trained_by_hand(data, madry_alone), rtol=0, atol=1e-6)
    beside = trained_by_flags(data, "--aug", "madry", "--madry-steps", "2")
    assert float((alone - beside).abs().max()) > 1e-3


def test_all_losses_of_a_step_are_replaced(data):
    """Two batches a step: none of them is left to the script's own loss."""

    def train_one_epoch(epoch, model, loader, optimizer, loss_fn, args):
        for number, (input, target) in enumerate(loader):
            loss = loss_fn(model(input), target)
            losses.append((loss.item(), F.cross_entropy(model(input), target).item()))
            loss.backward()
            if number % 2:
                optimizer.step()
                optimizer.zero_grad()

    losses: list[tuple[float, float]] = []
    model = small_vit()
    flags = parsed("--aug", "madry", "--madry-steps", "1", "--madry-alone")
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    nullspace_augmented(train_one_epoch)(0, model, loader(data), optimizer, F.cross_entropy, flags)
    assert len(losses) == 6
    assert all(companion != clean for companion, clean in losses)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--aug madry,relevance --madry-alone --relevance-images {0} --relevance-cache x",
            "at most one method that rep",
        ),
        ("--aug madry --madry-epsilon 8", "madry: expected epsilon in pixels of"),
        ("--aug relevance --relevance-images {0}", "masks, cache: expected relevance's folder of masks"),
        ("--aug relevance --relevance-cache x", "images: expected a folder of class folders"),
    ],
)
def test_methods_are_checked_as_in_train(data, flags, message, tmp_path):
    (tmp_path / "cat").mkdir()
    with pytest.raises(OptionError, match=message):
        trained_by_flags(data, *flags.format(tmp_path).split())


def test_several_views_for_one_label_each_are_refused_where_labels_are_needed(data):
    def views(model, input, target, loss_fn):
        return loss_fn(model(torch.cat([input, input.flip(3)])), target), input

    def of_the_first(logits, target):
        return F.cross_entropy(logits[: len(target)], target)

    model, args = small_vit(), parsed("--aug", "madry")
    with pytest.raises(DataError, match="madry: expected a target for each image, found 8 for 16 images"):
        nullspace_augmented(epoch_of(views))(
            0, model, loader(data), torch.optim.SGD(model.parameters(), 0.0), of_the_first, args
        )


def test_nothing_happens_without_aug(data):
    model, args = small_vit(), parsed()
    other = copy.deepcopy(model)
    for one, wrap in ((model, nullspace_augmented), (other, lambda function: function)):
        wrap(epoch_of(plain))(0, one, loader(data), torch.optim.SGD(one.parameters(), 0.1), F.cross_entropy, args)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_companion_for_all_losses_of_a_step(data):
    seen = {}
    for branch in ("first", "all"):
        args, losses = parsed("--aug", "nullspace", "--ns-branch", branch), []
        model = small_vit()
        train = nullspace_augmented(epoch_of(dat, losses))
        train(0, model, loader(data), torch.optim.SGD(model.parameters(), 0.0), F.cross_entropy, args)
        seen[branch] = losses
    plain_losses: list[float] = []
    model = small_vit()
    epoch_of(dat, plain_losses)(0, model, loader(data), torch.optim.SGD(model.parameters(), 0.0), F.cross_entropy, None)
    for none, first, both in zip(plain_losses, seen["first"], seen["all"], strict=True):
        assert none == pytest.approx(4.6, abs=1.5)
        assert first == pytest.approx(1.5 * none, rel=0.1), "one companion beside two losses"
        assert both == pytest.approx(2 * none, rel=0.1), "two"


def test_accumulated_batches_are_one_step(data, caplog):
    """Two batches a step: the companion is of the first, and rounds count steps."""

    def train_one_epoch(epoch, model, loader, optimizer, loss_fn, args):
        for number, (input, target) in enumerate(loader):
            losses.append(float((loss := loss_fn(model(input), target)).detach()))
            loss.backward()
            if number % 2:
                optimizer.step()
                optimizer.zero_grad()

    losses: list[float] = []
    args, model = parsed("--aug", "nullspace", "--ns-interval", "2"), small_vit()
    with caplog.at_level("INFO"):
        nullspace_augmented(train_one_epoch)(
            0, model, loader(data), torch.optim.SGD(model.parameters(), 0.0), F.cross_entropy, args
        )
    assert [round(loss / 2.3) for loss in losses] == [2, 1, 2, 1, 2, 1]
    assert sum(line.startswith("noise ") and "synthesis steps" in line for line in caplog.messages) == 2


def test_a_part_of_each_epoch(data):
    losses: list[float] = []
    args, model = parsed("--aug", "nullspace", "--epoch-steps", "2"), small_vit()
    train, optimizer = nullspace_augmented(epoch_of(plain, losses)), torch.optim.SGD(model.parameters(), 0.0)
    for epoch in range(3):
        train(epoch, model, loader(data), optimizer, F.cross_entropy, args)
    assert len(losses) == 6
    first = FirstBatches(loader(data), 2)
    assert (len(first), len(FirstBatches(loader(data), 99)), first.batch_size) == (2, 6, 8)


def test_a_part_of_each_epoch_without_noise_too(data):
    losses: list[float] = []
    model = small_vit()
    nullspace_augmented(epoch_of(plain, losses))(
        0, model, loader(data), torch.optim.SGD(model.parameters(), 0.0), F.cross_entropy, parsed("--epoch-steps", "2")
    )
    assert len(losses) == 2


def test_a_step_that_the_scaler_skips_is_a_step(data):
    """Gradients overflow at the first two steps, as fp16 runs begin."""

    class Skipping(torch.amp.GradScaler):
        def step(self, optimizer, *args, **options):
            steps.append(len(steps))
            return None if len(steps) <= 2 else optimizer.step()

    def train_one_epoch(epoch, model, loader, optimizer, loss_fn, args):
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        for input, target in loader:
            losses.append(float((loss := loss_fn(model(input), target)).detach()))
            optimizer.zero_grad()
            loss.backward()
            scaler.step(optimizer)

    steps, losses = [], []
    real, torch.amp.GradScaler.step = torch.amp.GradScaler.step, Skipping.step
    try:
        model = small_vit()
        nullspace_augmented(train_one_epoch)(
            0, model, loader(data), torch.optim.SGD(model.parameters(), 0.0), F.cross_entropy, parsed("--aug", "random")
        )
        assert torch.amp.GradScaler.step is Skipping.step
    finally:
        torch.amp.GradScaler.step = real
    assert [round(loss / 2.3) for loss in losses] == [2] * 6


@pytest.mark.parametrize(("name", "value"), [("aug", "nulspace"), ("ns_branch", "frist")])
def test_what_a_yaml_file_sets_is_checked(data, name, value):
    args, model = parsed("--aug", "nullspace"), small_vit()
    setattr(args, name, value)  # as parser.set_defaults does
    with pytest.raises(OptionError, match=f"{name}: expected one of .*, found '{value}'"):
        nullspace_augmented(epoch_of(plain))(
            0, model, loader(data), torch.optim.SGD(model.parameters(), 0.0), F.cross_entropy, args
        )


def test_the_log_names_step_and_losses(data, caplog):
    args, model = parsed("--aug", "nullspace"), small_vit()
    args.log_interval = 2
    with caplog.at_level("INFO"):
        nullspace_augmented(epoch_of(plain))(
            0, model, loader(data), torch.optim.SGD(model.parameters(), 0.0), F.cross_entropy, args
        )
    lines = [line for line in caplog.messages if line.startswith("--aug: step")]
    assert [line.split(":")[1] for line in lines] == [" step 0", " step 2", " step 4"]
    assert all(float(line.rsplit(" ", 1)[1]) > 0.5 for line in lines)


def test_an_ensemble_is_refused(data):
    def ensemble(model, input, target, loss_fn):
        return loss_fn((model(input) + model(input.flip(3))) / 2, target), input

    args, model = parsed("--aug", "nullspace"), small_vit()
    with pytest.raises(ModelError, match="mixture of several"):
        nullspace_augmented(epoch_of(ensemble))(
            0, model, loader(data), torch.optim.SGD(model.parameters(), 0.0), F.cross_entropy, args
        )
    assert not any(module._forward_hooks for module in model.modules())


def test_an_epoch_that_would_train_nothing_is_refused_and_a_short_one_told(data, caplog):
    run = nullspace_augmented(epoch_of(plain))
    model = small_vit()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def epoch(batch_size, *flags):
        batches = DataLoader(data, batch_size=batch_size, drop_last=True)
        run(0, model, batches, optimizer, nn.CrossEntropyLoss(), parsed(*flags))

    with pytest.raises(DataError, match="too few images for one batch: expected at least 64"):
        epoch(64)
    with pytest.raises(OptionError, match=r"^epoch_steps: expected a number of batches >= 0, found -1"):
        epoch(8, "--epoch-steps", "-1")
    epoch(8, "--epoch-steps", "6")
    assert "an epoch of these images" not in caplog.text
    epoch(8, "--epoch-steps", "7")
    assert "--epoch-steps 7: an epoch of these images has 6 batches" in caplog.text


def test_a_function_that_is_augmented_already_is_left_as_it_is():
    run = nullspace_augmented(epoch_of(plain))
    assert nullspace_augmented(run) is run


class Holding(nn.Module):
    """A model that returns its logits in a dict, of which the script takes them."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return {"logits": self.model(images), "loss": None}


def test_logits_that_a_script_takes_from_a_dict_are_traced():
    images, labels = torch.rand(4, 3, 32, 32), torch.arange(4)
    config = NoiseConfig(max_steps=2, eps=1e-9)
    losses = []
    for model in (small_vit(), Holding(small_vit())):
        loss_fn = CompanionLoss(nn.CrossEntropyLoss(), NullspaceAugmentation(model, [(images, labels)], config))
        with loss_fn.recorder.on(model):
            output = model(images)
            losses.append(loss_fn(output["logits"] if isinstance(output, dict) else output, labels))
    assert torch.equal(*losses)
    assert losses[0] > nn.functional.cross_entropy(small_vit()(images), labels)
