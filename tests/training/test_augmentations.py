from __future__ import annotations

import argparse
import gc

import pytest
import torch
from helpers.models import small_vit
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from ns_easyrobust.data.batches import CountingIterator
from ns_easyrobust.errors import DataError, ModelError, OptionError
from ns_easyrobust.models.hooks import encoder_noise
from ns_easyrobust.nullspace.config import NoiseConfig
from ns_easyrobust.training.augmentations.controls import PermutedNoiseAugmentation, RandomNoiseAugmentation
from ns_easyrobust.training.augmentations.flags import (
    add_nullspace_args,
    augmentation_from_args,
    check_augmentation_args,
)
from ns_easyrobust.training.augmentations.nullspace import NullspaceAugmentation
from ns_easyrobust.training.augmentations.registry import AUGMENTATIONS, register_augmentation
from ns_easyrobust.utils.seeding import fork_rng

QUICK = NoiseConfig(max_steps=3, eps=1e-9)


@pytest.fixture
def loader(digits):
    return DataLoader(TensorDataset(*(part[:200] for part in digits)), batch_size=16, shuffle=True)


@pytest.mark.parametrize(
    ("loss_fn", "soft"),
    [(nn.CrossEntropyLoss(), False), (LabelSmoothingCrossEntropy(0.1), False), (SoftTargetCrossEntropy(), True)],
)
def test_loss_is_the_loops_loss_with_the_noise_added(loader, trained, loss_fn, soft):
    model = trained
    images, labels = next(iter(loader))
    target = torch.rand(16, 10).softmax(1) if soft else labels
    ns = NullspaceAugmentation(model, loader, QUICK)
    loss = ns.loss(images, target, loss_fn)
    with encoder_noise(model, ns.noise.value):
        expected = loss_fn(model(images), target)
    assert torch.equal(loss, expected)
    assert not torch.allclose(loss, loss_fn(model(images), target), atol=1e-4)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_fresh_noise_every_interval(loader):
    model = small_vit()
    ns = NullspaceAugmentation(model, loader, QUICK, interval=3)
    images, labels = next(iter(loader))
    norms = []
    for _ in range(7):
        ns.loss(images, labels, nn.functional.cross_entropy)
        norms.append(ns.noise.norm)
    assert [entry["step"] for entry in ns.history] == [0, 3, 6]
    assert norms[0] == norms[2] != norms[3] == norms[5] != norms[6]
    assert [entry["norm"] for entry in ns.history] == [norms[0], norms[3], norms[6]]
    for entry in ns.history:
        assert (entry["synthesis_steps"], entry["stopped"], entry["converged"]) == (3, False, False)
        assert entry["held_out_upper"] > entry["held_out_mse_probability"] > 0


class Recorded(Dataset):
    """Digits with a random augmentation; notes which indices the loop's own epochs ask for."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index].roll(int(torch.randint(-3, 4, ())), dims=-1)
        return image, self.labels[index], index


def strangers_loop(digits, workers: int, hooked: bool, epochs: int = 2):
    """A loop that has never heard of the package, but for the two lines under ``hooked``."""
    torch.manual_seed(0)
    model = small_vit(drop_rate=0.1, drop_path_rate=0.2)
    torch.manual_seed(1)
    dataset = Recorded(*(part[:160] for part in digits))
    loader = DataLoader(dataset, 16, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    ns = NullspaceAugmentation(model, loader, QUICK) if hooked else None
    seen = []
    for _ in range(epochs):
        seen.append([])
        for step, (images, labels, indices) in enumerate(loader):
            seen[-1] += indices.tolist()
            if ns is not None and step in (3, 7):
                ns.refresh()
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model.state_dict(), seen, ns


@pytest.mark.parametrize("workers", [0, 2])
def test_a_strangers_loop_is_left_alone(digits, workers, monkeypatch):
    plain, plain_seen, _ = strangers_loop(digits, workers, hooked=False)
    hooked, hooked_seen, ns = strangers_loop(digits, workers, hooked=True)
    assert len(ns.history) == 4
    assert all(sorted(epoch) == list(range(160)) for epoch in hooked_seen)
    assert hooked_seen == plain_seen
    assert all(torch.equal(value, plain[name]) for name, value in hooked.items())
    # The loaders are only collected with their cycles, and each would then wait 5 seconds for its idle workers.
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    del ns
    gc.collect()


def test_adding_the_loss_draws_nothing_from_the_loops_generators(loader):
    model = small_vit(drop_rate=0.5)
    images, labels = next(iter(loader))
    ns = NullspaceAugmentation(model, loader, QUICK)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first = ns.loss(images, labels, nn.functional.cross_entropy)
    assert torch.equal(torch.rand(4), expected)
    second = ns.loss(images, labels, nn.functional.cross_entropy)
    assert first != second  # but its own dropout masks differ from step to step


def test_images_to_judge_on_are_kept_out_of_synthesis(digits):
    images = torch.arange(100).float().view(-1, 1, 1, 1).expand(-1, 3, 32, 32) / 100
    loader = DataLoader(TensorDataset(images, torch.zeros(100)), batch_size=10)
    ns = NullspaceAugmentation(small_vit(), loader, NoiseConfig(max_steps=20, eps=1e-9))
    used = set()
    original = ns._open_stream

    def watched():
        for batch in original():
            used.update(batch[0][:, 0, 0, 0].mul(100).round().int().tolist())
            yield batch

    ns._stream = CountingIterator(watched())
    ns.refresh()
    judged_on = set(torch.cat([b[0] for b in ns._held_out])[:, 0, 0, 0].mul(100).round().int().tolist())
    assert len(judged_on) == 10
    assert len(used) == 90
    assert not used & judged_on


def test_goes_on_from_its_state(loader, trained, tmp_path):
    images, labels = next(iter(loader))

    def calls(ns, count):
        return [float(ns.loss(images, labels, nn.functional.cross_entropy)) for _ in range(count)]

    def new(seed):
        generator = torch.Generator().manual_seed(seed)
        return NullspaceAugmentation(trained.train(), loader, QUICK, interval=3, generator=generator)

    whole = new(seed=5)
    expected = calls(whole, 10)
    first = new(seed=5)
    before = calls(first, 4)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = new(seed=99)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert before + calls(second, 6) == expected
    assert second.history == whole.history


def test_an_untouched_start_is_said_in_the_log(loader, trained, caplog):
    NullspaceAugmentation(trained, loader, NoiseConfig(limit=1e-3)).refresh()
    assert "nothing was optimised" in caplog.text
    caplog.clear()
    NullspaceAugmentation(trained, loader, QUICK).refresh()
    assert "nothing was optimised" not in caplog.text


def test_a_list_of_batches_will_do(digits):
    batches = [digits[0][:8], digits[0][8:16]]
    ns = NullspaceAugmentation(small_vit(), batches, QUICK)
    assert ns.refresh().converged is None
    judged = NullspaceAugmentation(small_vit(), batches, QUICK, held_out=[digits[0][16:32]])
    assert judged.refresh().held_out.n == 16


def test_mixed_precision(loader):
    model = small_vit()
    images, labels = next(iter(loader))
    ns = NullspaceAugmentation(model, loader, QUICK)
    seen = []

    def loss_fn(logits, target):
        seen.append(logits.dtype)
        return nn.functional.cross_entropy(logits, target)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_fn(model(images), labels) + ns.loss(images, labels, loss_fn)
    assert seen == [torch.bfloat16, torch.bfloat16]
    loss.backward()
    assert torch.isfinite(model[1].head.weight.grad).all()
    exact = NullspaceAugmentation(small_vit(), loader, QUICK)
    assert torch.equal(exact.refresh().value, ns.noise.value)  # synthesis kept full precision


def test_baselines(loader, trained):
    config = NoiseConfig(max_steps=200)
    nullspace, permuted, random = (
        kind(trained, loader, config).refresh()
        for kind in (NullspaceAugmentation, PermutedNoiseAugmentation, RandomNoiseAugmentation)
    )
    assert torch.equal(nullspace.value.flatten().sort().values, permuted.value.flatten().sort().values)
    assert permuted.mse_probability > 2 * nullspace.held_out.mse_probability
    assert permuted.mse_probability == permuted.held_out.mse_probability
    assert random.config.solver == "random"
    assert random.norm < nullspace.norm


def test_flags_make_the_augmentation(loader):
    parser = argparse.ArgumentParser()
    add_nullspace_args(parser)
    assert augmentation_from_args(parser.parse_args([]), small_vit(), loader) is None
    text = "--aug permuted --ns-interval 7 --ns-limit 2.5 --ns-eps 0.5 --ns-max-steps 9 --ns-solver paper"
    made = augmentation_from_args(parser.parse_args(text.split()), small_vit(), loader)
    assert type(made) is PermutedNoiseAugmentation
    assert made.interval == 7
    assert made.config == NoiseConfig(limit=2.5, eps=0.5, max_steps=9)
    assert parser.parse_args([]).ns_limit == NoiseConfig().limit


def test_a_new_kind_registers_in_one_line():
    try:

        @register_augmentation("mine")
        class Mine(NullspaceAugmentation):
            pass

        parser = argparse.ArgumentParser()
        add_nullspace_args(parser)
        made = augmentation_from_args(parser.parse_args(["--aug", "mine"]), small_vit(), [])
        assert type(made) is Mine
    finally:
        AUGMENTATIONS.pop("mine")


def test_bad_input(loader):
    with pytest.raises(ModelError, match="has no patch embedding"):
        NullspaceAugmentation(nn.Linear(2, 2), loader)
    with pytest.raises(OptionError, match="found 0"):
        NullspaceAugmentation(small_vit(), loader, interval=0)


def test_subsets_and_small_sets_are_fine(digits):
    dataset = Subset(TensorDataset(*digits), range(5))  # smaller than the batch
    ns = NullspaceAugmentation(small_vit(), DataLoader(dataset, batch_size=16), QUICK)
    assert ns.refresh().steps == 3


class Prefetching:
    """timm's PrefetchLoader in outline: a loader inside, normalised batches outside."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        return iter(self.loader)


class Streamed(IterableDataset):
    def __iter__(self):
        yield torch.zeros(3, 32, 32)


@pytest.mark.parametrize("make", [lambda data: Prefetching(DataLoader(data)), lambda data: DataLoader(Streamed())])
def test_loaders_that_cannot_be_copied_are_refused_at_once(digits, make):
    with pytest.raises(DataError, match="a list of batches"):
        NullspaceAugmentation(small_vit(), make(TensorDataset(*digits)))


def test_a_samplers_subset_is_kept(digits):
    """SubsetRandomSampler is the usual split into train and val: nothing of val may be seen."""
    images = torch.arange(100).float().view(-1, 1, 1, 1).expand(-1, 3, 32, 32) / 100
    dataset = TensorDataset(images, torch.zeros(100))
    loader = DataLoader(dataset, 10, sampler=SubsetRandomSampler(range(30, 80)))
    ns = NullspaceAugmentation(small_vit(), loader, NoiseConfig(max_steps=8, eps=1e-9))
    stream = ns._open_stream()
    used = {round(float(x) * 100) for _ in range(8) for x in next(stream)[0][:, 0, 0, 0]}
    judged_on = {round(float(x) * 100) for batch in ns._held_out for x in batch[0][:, 0, 0, 0]}
    assert used | judged_on == set(range(30, 80))
    assert len(judged_on) == 5


class Custom:
    batch_size = 2

    def __iter__(self):
        return iter([[30, 31], [32, 33]])

    def __len__(self):
        return 2


def test_an_unknown_sampler_is_said_in_the_log(digits, caplog):
    sampler = WeightedRandomSampler([1.0] * 200, 200)
    loader = DataLoader(TensorDataset(*(part[:200] for part in digits)), 10, sampler=sampler)
    NullspaceAugmentation(small_vit(), loader, QUICK).refresh()
    assert caplog.text.count("not followed") == 1
    NullspaceAugmentation(small_vit(), DataLoader(loader.dataset, batch_sampler=Custom()), QUICK)
    assert "Custom is not followed" in caplog.text
    assert "WeightedRandomSampler is not followed" in caplog.text


def test_a_drawing_collate_and_a_loader_to_judge_on_leave_the_loop_alone(digits):
    def collate(samples):
        images, labels = torch.utils.data.default_collate(samples)
        return images[torch.randperm(len(images))], labels

    dataset = TensorDataset(*(part[:200] for part in digits))
    loader = DataLoader(dataset, 10, shuffle=True, collate_fn=collate)
    for kind in (NullspaceAugmentation, PermutedNoiseAugmentation):
        for held_out in (None, DataLoader(dataset, 50, shuffle=True)):
            torch.manual_seed(1)
            expected = torch.rand(3)
            torch.manual_seed(1)
            kind(small_vit_of_its_own(), loader, QUICK, held_out=held_out).refresh()
            assert torch.equal(torch.rand(3), expected)


def small_vit_of_its_own():
    with fork_rng(0):
        return small_vit()


def test_what_the_caller_gave_to_judge_on_survives_a_restart(loader, digits):
    mine = [digits[0][300:307]]
    first = NullspaceAugmentation(small_vit(), loader, QUICK, held_out=mine)
    first.refresh()
    second = NullspaceAugmentation(small_vit(), loader, QUICK, held_out=mine)
    second.load_state_dict(first.state_dict())
    assert second.refresh().held_out.n == 7


def test_gradient_checkpointing_and_half_precision(loader):
    model = small_vit(arch="swin_micro_patch2_32")
    for layer in model[1].layers:
        if hasattr(layer, "use_checkpoint"):
            layer.use_checkpoint = True
        layer.grad_checkpointing = True
    images, labels = next(iter(loader))
    ns = NullspaceAugmentation(model, loader, QUICK)
    ns.loss(images, labels, nn.functional.cross_entropy).backward()
    assert all(layer.grad_checkpointing for layer in model[1].layers)
    half = small_vit().bfloat16()
    ns = NullspaceAugmentation(half, loader, QUICK)
    assert torch.isfinite(ns.loss(images.bfloat16(), labels, nn.functional.cross_entropy))
    assert ns.noise.value.dtype == torch.float32


def test_noise_flags_without_an_augmentation_are_told(caplog, trained):
    parser = argparse.ArgumentParser()
    add_nullspace_args(parser)
    assert augmentation_from_args(parser.parse_args([]), trained, []) is None
    assert not caplog.records
    assert augmentation_from_args(parser.parse_args(["--ns-eps", "0.1"]), trained, []) is None
    assert "--ns-eps does nothing with --aug none" in caplog.text
    assert augmentation_from_args(parser.parse_args(["--ns-warm-start"]), trained, []) is None
    assert "--ns-warm-start does nothing with --aug none" in caplog.text
    for flags, warm in (["--aug", "permuted", "--ns-warm-start"], True), (["--aug", "random"], False):
        assert augmentation_from_args(parser.parse_args(flags), trained, []).warm_start is warm


def test_a_warm_start_begins_with_what_was_found_last(loader):
    model = small_vit()
    for kind in (NullspaceAugmentation, PermutedNoiseAugmentation):
        cold, warm = (kind(model, loader, QUICK, warm_start=warm) for warm in (False, True))
        for ns in (cold, warm):
            ns.refresh()
        first = warm.noise
        assert torch.equal(first.value, cold.noise.value)
        last = first.trace[-1]
        for ns in (cold, warm):
            ns.refresh()
        # Three steps of 0.1 move every element by about 0.3; a start drawn anew would have another norm.
        assert warm.noise.trace[0].norm == pytest.approx(first.norm, rel=1e-6)
        assert cold.noise.trace[0].norm != pytest.approx(first.norm, rel=1e-3)
        assert warm.noise.trace[0].mse_logits < cold.noise.trace[0].mse_logits
        assert last.mse_logits < first.trace[0].mse_logits  # so that there was something to keep
    assert abs(cold.history[1]["cosine"]) < 0.2  # permuted anew each time


def test_warm_rounds_are_alike_and_go_on_after_a_restart(loader):
    model = small_vit()
    first = NullspaceAugmentation(model, loader, QUICK, warm_start=True)
    for _ in range(2):
        first.refresh()
    assert first.history[1]["cosine"] > 0.9
    second = NullspaceAugmentation(model, loader, QUICK, warm_start=True)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.refresh().value, first.refresh().value)
    cold = NullspaceAugmentation(model, loader, QUICK)
    cold.load_state_dict(first.state_dict())
    assert abs(cold.refresh().trace[0].norm - first.noise.norm) > 1e-3 * first.noise.norm


def test_a_warm_start_of_the_random_baseline_is_refused(loader):
    with pytest.raises(OptionError, match="warm_start: expected noise that is optimised"):
        RandomNoiseAugmentation(small_vit(), loader, QUICK, warm_start=True)
    parser = argparse.ArgumentParser()
    add_nullspace_args(parser)
    with pytest.raises(OptionError, match="warm_start: expected noise that is optimised"):
        check_augmentation_args(parser.parse_args(["--aug", "random", "--ns-warm-start"]))  # before a model is built


class Holding(nn.Module):
    """A model that returns a dict, as Hugging Face's do."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return {"loss": None, "logits": self.model(images)}


def test_models_that_return_dicts_get_the_noise_and_the_loss_of_their_logits(trained, batches):
    config = NoiseConfig(max_steps=3, eps=1e-9)
    images, labels = batches[0]
    plain = NullspaceAugmentation(trained, batches, config, held_out=batches[:1])
    holding = NullspaceAugmentation(Holding(trained), batches, config, held_out=batches[:1])
    expected = plain.loss(images, labels, nn.functional.cross_entropy)
    found = holding.loss(images, labels, lambda output, target: nn.functional.cross_entropy(output["logits"], target))
    assert torch.equal(found, expected)
    assert holding.history == plain.history


def test_images_of_another_size_than_the_models(trained, batches):
    augmentation = NullspaceAugmentation(trained, batches, NoiseConfig(max_steps=1))
    with pytest.raises(DataError, match=r"expected 32 x 32 pixels, which the model is built for, found 48 x 40"):
        augmentation.loss(torch.rand(2, 3, 48, 40), torch.zeros(2, dtype=torch.long), nn.functional.cross_entropy)
    with pytest.raises(IndexError):  # the loop's own mistakes stay what they are
        augmentation.loss(batches[0][0], torch.full((64,), 99), nn.functional.cross_entropy)
