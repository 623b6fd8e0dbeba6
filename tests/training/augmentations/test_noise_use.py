"""Variants of how a noise is used, on models whose logits are their tokens: the noise of each image can be read off."""

from __future__ import annotations

import argparse
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers.models import small_vit
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ns_easyrobust.errors import DataError, ModelError, NoiseError, OptionError
from ns_easyrobust.models.normalization import with_normalization
from ns_easyrobust.nullspace.config import NoiseConfig
from ns_easyrobust.training.augmentations.controls import PermutedNoiseAugmentation, RandomNoiseAugmentation
from ns_easyrobust.training.augmentations.flags import (
    add_nullspace_args,
    augmentation_from_args,
    check_augmentation_args,
    companion_costs,
)
from ns_easyrobust.training.augmentations.joined import JoinedAugmentation, part_loss
from ns_easyrobust.training.augmentations.noise_use import NoiseUse
from ns_easyrobust.training.augmentations.nullspace import NullspaceAugmentation
from ns_easyrobust.utils import FlagParser
from ns_easyrobust.utils.seeding import fork_rng

QUICK = NoiseConfig(max_steps=2, eps=1e-9)
TOKENS, WIDTH = 4, 6
STD = (0.2, 0.5, 0.9)


class Embed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, WIDTH, 4, 4)

    def forward(self, images):
        return self.proj(images).flatten(2).transpose(1, 2)


class Tokens(nn.Module):
    """8 x 8 pixels to the four tokens, side by side and times ``gain``, as logits."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed, self.gain = Embed(), nn.Parameter(torch.ones(()))
        self.pixels: list[torch.Tensor] = []

    def forward(self, images):
        self.pixels.append(images.detach())
        return self.gain * self.patch_embed(images).flatten(1)


def tokens_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return with_normalization(Tokens(), (0.4, 0.5, 0.6), STD).double()


def images_of(count: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def made(kind=NullspaceAugmentation, use=NoiseUse(), model=None, config=QUICK, seed=3, **options):  # noqa: B008
    batches = [images_of(8)]
    generator = torch.Generator().manual_seed(seed)
    return kind(model or tokens_model(), batches, config, use=use, generator=generator, **options)


def given(companion, images: torch.Tensor) -> torch.Tensor:
    """The noise that a call of ``loss`` gave each of the images: (B, 24)."""
    seen = []
    companion.loss(images, None, lambda output, target: seen.append(output.detach()) or output.sum())
    return seen[0] - companion.model(images).detach()


VARIANTS = [
    (RandomNoiseAugmentation, NoiseUse(fresh=True)),
    (PermutedNoiseAugmentation, NoiseUse(fresh=True)),
    (NullspaceAugmentation, NoiseUse(bank=3)),
    (RandomNoiseAugmentation, NoiseUse(bank=1, valid_pixels=True)),
]


@pytest.mark.parametrize(("kind", "use"), VARIANTS)
def test_what_images_get_comes_from_the_companions_seeds_alone(kind, use):
    images, (first, second) = images_of(5, seed=2), (made(kind, use, interval=2) for _ in range(2))
    calls = [given(first, images) for _ in range(3)]
    torch.manual_seed(99)
    expected_next = torch.rand(2)
    torch.manual_seed(99)
    assert all(torch.equal(given(second, images), noise) for noise in calls)
    assert torch.equal(torch.rand(2), expected_next)
    assert all(not torch.allclose(a, b) for a, b in pairwise(calls))
    assert len({tuple(row.tolist()) for row in calls[0]}) == 5  # each image its own
    second.rewind()
    again = []
    second.loss(images, None, lambda output, target: again.append(output.detach()) or output.sum(), new_step=False)
    assert torch.equal(again[0] - second.model(images), calls[2])
    state = first.state_dict()
    resumed = made(kind, use, interval=2, seed=77)
    resumed.load_state_dict(state)
    for each in (first, resumed):
        with torch.no_grad():  # as training would; the pseudo-inverse stays that of the noise's renewal
            each.model[1].patch_embed.proj.weight.mul_(1.1)
    for _ in range(3):
        assert torch.equal(given(resumed, images), given(first, images))
    assert resumed.history == first.history


def test_a_fresh_gaussian_has_the_synthesized_noises_norm():
    companion = made(RandomNoiseAugmentation, NoiseUse(fresh=True), config=NoiseConfig(eps=0.01))
    noises = given(companion, images_of(400))
    norm = companion.noise.norm
    torch.testing.assert_close(noises.norm(dim=1), torch.full((400,), norm, dtype=torch.float64), rtol=1e-6, atol=0)
    assert noises.mean(dim=0).abs().max() < 5 * norm / (24 * 400) ** 0.5
    covariance = noises.T @ noises / 400 * 24 / norm**2  # of a direction drawn uniformly: the identity
    assert (covariance - torch.eye(24, dtype=torch.float64)).abs().max() < 0.4
    shared = given(made(RandomNoiseAugmentation, config=NoiseConfig(eps=0.01)), images_of(3))
    assert torch.allclose(shared, shared[:1])


def test_a_fresh_permutation_has_the_same_elements_in_another_order_for_each_image():
    companion = made(PermutedNoiseAugmentation, NoiseUse(fresh=True))
    noises = given(companion, images_of(100))
    value = companion.noise.value.flatten()
    torch.testing.assert_close(noises.sort(dim=1).values, value.sort().values.expand(100, -1), rtol=1e-6, atol=1e-9)
    assert not any(torch.allclose(noise, value) for noise in noises)
    first_places = {int((noise[0] - value).abs().argmin()) for noise in noises}
    assert len(first_places) > 15  # of 24


def test_a_banks_combinations_are_those_documented():
    companion = made(use=NoiseUse(bank=3), interval=1)
    kept = []
    for count in range(1, 6):
        noises = given(companion, images_of(300))
        kept = [*kept, companion.noise.value.flatten()][-3:]
        basis = torch.stack(kept)
        found = torch.linalg.lstsq(basis.T, noises.T).solution.T  # logits are linear in the noise
        torch.testing.assert_close(found @ basis, noises, rtol=1e-6, atol=1e-7)
        scales, shares = found.abs().sum(1), found.abs() / found.abs().sum(1, keepdim=True)
        n = min(count, 3)
        assert found.shape == (300, n)
        assert 0 < scales.min() < 0.05
        assert 0.95 < scales.max() <= 1 + 1e-9
        assert scales.mean() == pytest.approx(0.5, abs=0.07)
        assert torch.allclose(shares.mean(0), torch.full((n,), 1 / n, dtype=torch.float64), atol=0.06)
        if n == 3:  # a share of the flat Dirichlet distribution of three: variance 1/18
            assert torch.allclose(shares.var(0), torch.full((3,), 1 / 18, dtype=torch.float64), atol=0.015)
        assert torch.allclose((found > 0).double().mean(0), torch.full((n,), 0.5, dtype=torch.float64), atol=0.12)
        signs = {tuple(row) for row in (found > 0).tolist()}
        assert len(signs) == 2**n  # independent
    companion.rewind()
    with fork_rng(companion.next_seed()):  # the documented draws, once more by hand
        e = torch.empty(300, 3, dtype=torch.float64).exponential_()
        signs = 1.0 - 2.0 * (torch.rand(300, 3, dtype=torch.float64) < 0.5)
        c = 1 - torch.rand(300, 1, dtype=torch.float64)
    torch.testing.assert_close(found, c * signs * e / e.sum(1, keepdim=True), rtol=1e-4, atol=1e-6)


def test_a_resumed_bank_holds_the_older_noises_bit_for_bit(tmp_path):
    images, use = images_of(4), NoiseUse(bank=3)
    whole = made(use=use, interval=1)
    for _ in range(4):
        given(whole, images)
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    resumed = made(use=use, interval=1, seed=8)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(2):
        assert torch.equal(given(resumed, images), given(whole, images))


def influence_by_hand(model, images: torch.Tensor, value: torch.Tensor) -> float:
    clean = model(images).detach().numpy()
    noisy = clean + model[1].gain.item() * value.flatten().numpy()
    p, q = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True) for logits in (clean, noisy))
    return float(((p - q) ** 2).sum(1).mean())


@pytest.mark.parametrize(("gain", "grows"), [(1.0, False), (0.9, False), (0.55, True), (0.01, True)])
def test_eps_grows_while_the_model_keeps_up(gain, grows, tmp_path):
    images, config, use = images_of(8), NoiseConfig(eps=0.02), NoiseUse(eps_growth=3)

    def companion():
        return made(RandomNoiseAugmentation, use, config=config, held_out=[images], model=tokens_model())

    first = companion()
    first.refresh()
    assert (first.history[0]["eps"], first.eps) == (0.02, 0.02)
    assert 0.01 < influence_by_hand(first.model, images, first.noise.value) < 0.02
    second = companion()
    second.load_state_dict(first.state_dict())
    for each in (first, second):  # the second goes on from the state
        with torch.no_grad():
            each.model[1].gain.fill_(gain)
        assert (influence_by_hand(each.model, images, each.noise.value) < 0.01) == grows
        each.refresh()
        assert each.history[1]["eps"] == each.noise.config.eps == pytest.approx(0.06 if grows else 0.02)
    assert second.history == first.history
    second.write(tmp_path)
    table = [line.split(",") for line in (tmp_path / "noise.csv").read_text().splitlines()]
    assert table[0][-1] == "eps"
    assert [float(row[-1]) for row in table[1:]] == [entry["eps"] for entry in first.history]


def test_eps_grows_to_2_at_most_and_not_without_the_flag():
    images, config = images_of(8), NoiseConfig(eps=0.7, solver="sphere", max_steps=1)
    companion = made(use=NoiseUse(eps_growth=2), config=config, held_out=[images])
    plain = made(config=config, held_out=[images])
    for each in (companion, plain):
        each.refresh()
        with torch.no_grad():
            each.model[1].gain.fill_(1e-3)  # whatever the noise, the outputs stay
        for _ in range(3):
            each.refresh()
    assert [entry["eps"] for entry in companion.history] == [0.7, 1.4, 2.0, 2.0]
    assert [entry["eps"] for entry in plain.history] == [0.7] * 4


@pytest.mark.parametrize("kind", [RandomNoiseAugmentation, NullspaceAugmentation])
def test_eps_stays_where_the_random_start_is_under_it_as_a_larger_one_would_change_nothing(kind):
    images = images_of(8)
    companion = made(kind, NoiseUse(eps_growth=2), config=NoiseConfig(eps=1e-3, max_steps=200), held_out=[images])
    assert not companion.refresh().untouched
    with torch.no_grad():
        companion.model[1].gain.fill_(1e-5)
    for _ in range(3):
        assert companion.refresh().untouched
    assert [entry["eps"] for entry in companion.history] == [1e-3, 2e-3, 2e-3, 2e-3]


def test_eps_grows_by_a_loaders_held_out_images_after_a_resume_too():
    def companion():
        loader = DataLoader(TensorDataset(images_of(40), torch.zeros(40)), batch_size=8)
        config = NoiseConfig(eps=0.02)
        return RandomNoiseAugmentation(tokens_model(), loader, config, use=NoiseUse(eps_growth=2))

    first, second = companion(), companion()
    first.refresh()
    second.load_state_dict(first.state_dict())
    for each in (first, second):
        with torch.no_grad():
            each.model[1].gain.fill_(0.1)
        each.refresh()
    assert first.history == second.history
    assert [entry["eps"] for entry in first.history] == [0.02, 0.04]
    resumed = companion()
    resumed.load_state_dict(first.state_dict())
    assert resumed.eps == first.eps == 0.04


def test_a_state_of_an_earlier_version_goes_on(tmp_path):
    companion = made(interval=1)
    given(companion, images_of(2))
    old = {key: value for key, value in companion.state_dict().items() if key not in ("older", "inverse")}
    old["history"] = [{key: value for key, value in row.items() if key != "eps"} for row in old["history"]]
    resumed = made(interval=1)
    resumed.load_state_dict(old)
    assert torch.equal(given(resumed, images_of(2)), given(companion, images_of(2)))
    resumed.write(tmp_path)
    assert resumed.history == companion.history


def kl_by_hand(noisy: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    return nn.functional.kl_div(noisy.log_softmax(1), clean.softmax(1), reduction="batchmean")


@pytest.mark.parametrize("is_given", [True, False])
def test_kl_is_torchs_and_has_no_gradient_into_the_clean_branch(is_given):
    companion = made(RandomNoiseAugmentation, NoiseUse(loss="kl"), config=NoiseConfig(eps=0.3))
    images, model = images_of(6), companion.model
    clean = model(images).detach().requires_grad_()
    assert companion.uses_output
    assert not made().uses_output

    def loss_fn(output, target):
        raise AssertionError("the loop's loss has no place here")

    loss = companion.loss(images, None, loss_fn, output=clean if is_given else None)
    noise = companion.noise.value.flatten()
    expected = kl_by_hand(model(images) + noise, clean.detach())
    torch.testing.assert_close(loss, expected)
    assert loss > 1e-3
    weights = list(model[1].patch_embed.parameters())
    for found, wanted in zip(
        torch.autograd.grad(loss, weights, retain_graph=True), torch.autograd.grad(expected, weights), strict=True
    ):
        torch.testing.assert_close(found, wanted)
    assert torch.autograd.grad(loss, [clean], allow_unused=True) == (None,)


def test_kl_takes_the_clean_output_of_the_loop_also_where_joined():
    images, target = images_of(6), torch.zeros(6, dtype=torch.long)
    use, config = NoiseUse(loss="kl"), NoiseConfig(eps=0.3)
    alone, joined_one = (made(RandomNoiseAugmentation, use, config=config) for _ in range(2))
    elsewhere = alone.model(images).detach().roll(1, 0)  # not what the model would say of these images
    loss = part_loss(alone, images, target, nn.functional.cross_entropy, elsewhere)
    torch.testing.assert_close(loss, kl_by_hand(alone.model(images) + alone.noise.value.flatten(), elsewhere))
    joined = JoinedAugmentation({"random": joined_one})
    found = part_loss(joined, images, target, nn.functional.cross_entropy, elsewhere)
    torch.testing.assert_close(found, loss.float())


def test_kl_under_autocast_is_in_float32():
    model = small_vit()
    images, labels = torch.rand(4, 3, 32, 32), torch.zeros(4, dtype=torch.long)
    companion = RandomNoiseAugmentation(model, [images], NoiseConfig(eps=0.01), use=NoiseUse(loss="kl"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = companion.loss(images, labels, nn.functional.cross_entropy)
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def seen_pixels(companion, images: torch.Tensor) -> torch.Tensor:
    model = companion.model
    companion.loss(images, None, lambda output, target: output.sum(), new_step=False)
    mean, std = (model[0].get_buffer(name)[:, None, None] for name in ("mean", "std"))
    return model[1].pixels[-1] * std + mean


def test_valid_pixels_have_the_noise_as_their_patch_embedding():
    images = images_of(5) / 5 + 0.4
    companion = made(RandomNoiseAugmentation, NoiseUse(valid_pixels=True), config=NoiseConfig(eps=1e-4))
    change = seen_pixels(companion, images) - images
    assert change.abs().max() < 0.4  # nothing is clipped
    value = companion.noise.value
    torch.testing.assert_close(given(companion, images), value.flatten().expand(5, -1), rtol=1e-4, atol=1e-7)
    # The least change: by numpy's pseudo-inverse, patch by patch.
    weight = companion.model[1].patch_embed.proj.weight.detach().numpy()
    inverse = np.linalg.pinv((weight / np.array(STD)[:, None, None]).reshape(WIDTH, -1))
    for index, (row, column) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
        expected = (inverse @ value[0, index].double().numpy()).reshape(3, 4, 4)
        patch = change[:, :, row : row + 4, column : column + 4].numpy()
        np.testing.assert_allclose(patch, np.broadcast_to(expected, patch.shape), rtol=1e-4, atol=1e-7)


def test_large_noise_stays_in_valid_pixels():
    images = images_of(5)
    large = made(RandomNoiseAugmentation, NoiseUse(valid_pixels=True, fresh=True), config=NoiseConfig(eps=1.0))
    pixels = seen_pixels(large, images)
    assert (pixels.min(), pixels.max()) == (pytest.approx(0, abs=1e-6), pytest.approx(1, abs=1e-6))
    clipped = ((pixels < 1e-6) | (pixels > 1 - 1e-6)).double().mean()
    assert 0.1 < clipped < 0.9
    assert len({tuple(change.flatten().tolist()) for change in (pixels - images)}) == 5
    with pytest.raises(DataError, match=r"valid_pixels: expected pixels in \[0, 1\]"):
        large.loss(images * 2, None, lambda output, target: output.sum())
    with pytest.raises(NoiseError, match="expected 4 patches of 4 x 4, found 12 x 8 pixels"):
        large.loss(torch.zeros(2, 3, 12, 8).double(), None, lambda output, target: output.sum())


def test_where_the_rank_is_too_low_pixels_come_as_near_as_they_can():
    model = tokens_model()
    with torch.no_grad():
        model[1].patch_embed.proj.weight[3:] = model[1].patch_embed.proj.weight[:3]
    use = NoiseUse(valid_pixels=True)
    companion = made(RandomNoiseAugmentation, use, model=model, config=NoiseConfig(eps=1e-4))
    noises = given(companion, images_of(2) / 5 + 0.4).view(2, TOKENS, WIDTH)
    value = companion.noise.value.double()
    half = (value[..., :3] + value[..., 3:]) / 2  # the projection onto what both halves can be
    torch.testing.assert_close(noises, torch.cat([half, half], -1).expand(2, -1, -1), rtol=1e-4, atol=1e-7)


def parsed(*words: str) -> argparse.Namespace:
    parser = FlagParser()
    add_nullspace_args(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--aug nullspace --ns-fresh", "fresh: expected a noise whose direction .*, found nullspace.* Give bank"),
        ("--aug random --ns-fresh --ns-bank 2", "fresh: expected no bank"),
        ("--aug nullspace --ns-warm-start --ns-eps-growth 2", "eps_growth: expected no warm_start"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_built(words, complaint):
    with pytest.raises(OptionError, match=complaint):
        check_augmentation_args(parsed(*words.split()))


def test_erased_pixels_outside_the_range_are_refused_with_valid_pixels():
    args = parsed("--aug", "random", "--ns-valid-pixels")
    check_augmentation_args(args)
    args.erase_outside, args.reprob = True, 0.3
    with pytest.raises(OptionError, match="erase_outside: expected erased pixels inside"):
        check_augmentation_args(args)


@pytest.mark.parametrize(
    "settings", [{"bank": -1}, {"bank": 1.5}, {"eps_growth": 0.5}, {"eps_growth": float("nan")}, {"loss": "mse"}]
)
def test_settings_out_of_range(settings):
    with pytest.raises(OptionError, match=f"noise {next(iter(settings))}: expected"):
        NoiseUse(**settings)


def test_models_and_batches_that_do_not_fit_are_refused_at_construction():
    with pytest.raises(OptionError, match="eps_growth: expected held-out images to measure on, found none"):
        made(use=NoiseUse(eps_growth=2))
    few = DataLoader(TensorDataset(torch.rand(9, 3, 32, 32), torch.zeros(9)))
    with pytest.raises(OptionError, match="eps_growth: expected held-out images"):
        NullspaceAugmentation(small_vit(), few, QUICK, use=NoiseUse(eps_growth=2))
    with pytest.raises(ModelError, match="valid_pixels: expected a normalisation in front of Tokens"):
        made(use=NoiseUse(valid_pixels=True), model=tokens_model()[1])
    swin = small_vit(arch="swin_micro_patch2_32")
    with pytest.raises(ModelError, match="valid_pixels: expected a patch embedding that is linear, found LayerNorm"):
        NullspaceAugmentation(swin, [], QUICK, use=NoiseUse(valid_pixels=True))
    with pytest.raises(OptionError, match="found nullspace"):
        made(use=NoiseUse(fresh=True))


def test_flags_make_the_use_and_are_counted(caplog):
    model = small_vit()
    loader = DataLoader(TensorDataset(torch.rand(20, 3, 32, 32), torch.zeros(20)))
    words = "--aug permuted --ns-fresh --ns-eps-growth 1.5 --ns-loss kl --ns-valid-pixels"
    check_augmentation_args(parsed(*words.split()))
    companion = augmentation_from_args(parsed(*words.split()), model, loader)
    assert companion.use == NoiseUse(fresh=True, eps_growth=1.5, loss="kl", valid_pixels=True)
    assert augmentation_from_args(parsed("--aug", "nullspace", "--ns-bank", "4"), model, []).use == NoiseUse(bank=4)
    assert not caplog.records
    augmentation_from_args(parsed("--aug", "none", "--ns-fresh"), model, [])
    assert "--ns-fresh does nothing with --aug none" in caplog.text
    assert companion_costs(parsed("--aug", "random", "--ns-loss", "kl")) == (3, 0)
    joined = ["--aug", "random,madry", "--madry-alone", "--madry-steps", "7"]
    without, with_kl = (companion_costs(parsed(*joined, *more)) for more in ([], ["--ns-loss", "kl"]))
    assert (with_kl[0] - without[0], with_kl[1]) == (1, 0)
