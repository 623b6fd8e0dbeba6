from __future__ import annotations

import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.models import small_vit
from scipy import stats

from ns_easyrobust.errors import NoiseError, OptionError
from ns_easyrobust.models.hooks import encoder_noise
from ns_easyrobust.nullspace.config import NoiseConfig
from ns_easyrobust.nullspace.solvers.sphere_search import _FINAL, _FIRST, _MARGIN, centred, step_length
from ns_easyrobust.nullspace.synthesis import measure, synthesize

SPHERE = NoiseConfig(solver="sphere", turn=0.1, max_steps=100)


def shrunk_to_feasible(model, held_out, value, eps=0.03):
    """The norm at which ``value``'s direction has its upper bound under eps, by plain search."""
    value = centred(value)
    while measure(model, held_out, value).mse_probability_upper >= eps:
        value = value * 0.97
    return float(value.norm())


@pytest.fixture
def held_out(digits):
    """Images that neither the model nor a noise was fitted to."""
    return [digits[0][1297:]]


@pytest.mark.stress
def test_feasible_on_other_images_and_larger_than_the_others_where_they_are(trained, batches):
    """Six batches to turn on, eight to set the radius on, six to judge on, all of one distribution."""
    batches, held_out, config = batches[:14], batches[14:], replace(SPHERE, pool=6)
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    noises = [synthesize(trained, batches, config, held_out=held_out, generator=g) for g in generators]
    assert all(noise.stopped for noise in noises)
    assert statistics.median(noise.held_out.mse_probability for noise in noises) < 0.03
    assert all(noise.held_out.mse_probability < 0.06 for noise in noises)  # Algorithm 1's are at 0.08
    assert sum(noise.converged for noise in noises) >= 2  # few images decide: those whose answer flips
    found = min(noises, key=lambda noise: noise.norm)
    assert found.held_out.agreement > 0.9
    for other, factor in (("random", 3), ("paper", 1.2)):
        noise = synthesize(trained, batches, NoiseConfig(solver=other))
        assert found.norm > factor * shrunk_to_feasible(trained, held_out, noise.value), other
    control = measure(trained, held_out, found.permuted(torch.Generator().manual_seed(0)).value)
    assert control.mse_probability > 5 * found.held_out.mse_probability


def test_a_shift_of_a_whole_token_does_nothing_and_does_not_count(trained, batches, held_out, digits):
    """Layer norms take it away: noise of any norm could be had for nothing."""
    shift = torch.randn(1, 16, 1, generator=torch.Generator().manual_seed(1)).expand(1, 16, 64) * 100
    assert shift.norm() > 2000
    assert measure(trained.double(), [held_out[0].double()], shift.double()).mse_probability < 1e-12
    trained.float()
    start = torch.randn(1, 16, 64, generator=torch.Generator().manual_seed(2)) + shift
    noise = synthesize(trained, batches, replace(SPHERE, max_steps=20), start=start)
    assert noise.value.mean(dim=-1).abs().max() < 1e-5
    with pytest.raises(NoiseError, match="found none left once it is centred"):
        synthesize(trained, batches, SPHERE, start=shift.contiguous())


@pytest.mark.stress
def test_the_same_seed_gives_the_same_noise_and_another_a_different_one(trained, batches):
    def noise(seed):
        generator = torch.Generator().manual_seed(seed)
        return synthesize(trained, batches, replace(SPHERE, max_steps=15), generator=generator)

    assert torch.equal(noise(1).value, noise(1).value)
    one, other = noise(1).value.flatten(), noise(2).value.flatten()
    assert abs(float(torch.nn.functional.cosine_similarity(one, other, dim=0))) < 0.2


@pytest.mark.stress
def test_turning_is_what_makes_it_large(trained, batches):
    still = synthesize(trained, batches, replace(SPHERE, turn=1e-9))
    assert synthesize(trained, batches, SPHERE).norm > 3 * still.norm


@pytest.mark.stress
@pytest.mark.parametrize("lag", [0, 8])
def test_it_ends_where_it_no_longer_grows(trained, batches, monkeypatch, lag):
    """A GPU's numbers come some steps late."""
    monkeypatch.setattr("ns_easyrobust.nullspace.objective.lag_on", lambda device: lag)
    growing = synthesize(trained, batches, replace(SPHERE, max_steps=60, patience=15))
    assert growing.steps > 40
    patient = synthesize(trained, batches, replace(SPHERE, turn=1e-9, patience=20, max_steps=1000))
    assert patient.steps < 110
    assert synthesize(trained, batches, replace(SPHERE, turn=1e-9, patience=0, max_steps=120)).steps == 120


def test_no_steps_leave_the_start_as_it_is(trained, batches):
    start = torch.full((1, 16, 64), 5.0)
    noise = synthesize(trained, batches, replace(SPHERE, max_steps=0), start=start)
    assert torch.equal(noise.value, start)
    assert (noise.steps, noise.stopped, noise.trace) == (0, False, ())


@pytest.mark.parametrize("deaf", [False, True])
def test_a_model_that_nothing_moves_ends_at_a_norm_and_is_told(batches, caplog, deaf):
    """Random weights hardly react, and a head of zeros never does."""
    model = small_vit()
    if deaf:
        torch.nn.init.zeros_(model[1].head.weight)
    noise = synthesize(model, batches, replace(SPHERE, max_steps=1000))
    assert noise.mse_probability < 0.03
    assert noise.norm == pytest.approx(10 * 3 * (16 * 64 / 3) ** 0.5, rel=0.03)
    assert noise.steps < 200
    assert "where the search ends (limit = 3): the model hardly reacts to anything" in caplog.text
    assert "raise limit to let it grow on" in caplog.text
    assert caplog.text.count("where the search ends") == 1


@pytest.mark.parametrize("count", [16, 512])
def test_few_images_behind_the_final_radius_are_told(digits, caplog, count):
    """A stream of 16 images gives 512 by beginning anew 31 times."""
    images = digits[0][:count]
    batches = [images[i : i + 16] for i in range(0, count, 16)]
    synthesize(small_vit(), batches, replace(SPHERE, max_steps=1, pool=0))
    told = [message for message in caplog.messages if "distinct images" in message]
    assert [message.split(": ")[0] for message in told] == (
        [f"the final radius was set on {len(torch.unique(images, dim=0))} distinct images instead of 512"]
        if count < 512
        else []
    )


def test_what_is_returned_is_what_was_judged(trained, batches, monkeypatch):
    """Also where the last test allowed is over eps: then it is not called feasible."""
    monkeypatch.setattr("ns_easyrobust.nullspace.solvers.sphere_search._FINAL", _FINAL._replace(tests=1))
    start = torch.randn(1, 16, 64, generator=torch.Generator().manual_seed(2)) * 40
    monkeypatch.setattr("ns_easyrobust.nullspace.solvers.sphere_search._FIRST", _FIRST._replace(tests=1))
    noise = synthesize(trained, batches, replace(SPHERE, max_steps=1), start=start)
    assert not noise.stopped
    assert noise.mse_probability > 0.03
    assert noise.trace[-1].norm == pytest.approx(noise.norm, rel=1e-5)


@pytest.mark.stress
@pytest.mark.parametrize("norm", [0.05, 500.0])
def test_the_last_radius_is_found_from_either_side(trained, batches, monkeypatch, norm):
    """One short turn, from far inside and from far outside: the norm ends where random noise's may."""
    monkeypatch.setattr("ns_easyrobust.nullspace.solvers.sphere_search._FIRST", _FIRST._replace(tests=1))
    start = centred(torch.randn(1, 16, 64, generator=torch.Generator().manual_seed(2)))
    start = start * (norm / start.norm())
    noise = synthesize(trained, batches, replace(SPHERE, turn=1e-9, max_steps=1, pool=1), start=start)
    assert noise.stopped
    judges = [images for images, _ in batches[1:9]]  # the pool took the first
    assert shrunk_to_feasible(trained, judges, start * (20 / norm)) * 0.75 < noise.norm
    assert noise.mse_probability < 0.03


@pytest.mark.stress
def test_tokens_on_a_grid_and_half_precision(batches):
    noise = synthesize(small_vit(arch="swin_micro_patch2_32"), batches[:2], replace(SPHERE, max_steps=3))
    assert (len(noise.value), noise.value.shape[-1], noise.value.numel()) == (1, 24, 256 * 24)  # a grid in timm 1.x
    half = synthesize(small_vit(), batches[:2], replace(SPHERE, max_steps=3, autocast="bfloat16"))
    assert torch.isfinite(half.value).all()
    assert half.value.dtype == torch.float32


def test_nan_is_told(batches):
    model = small_vit()
    model[1].head.bias.data[0] = torch.nan
    with pytest.raises(NoiseError, match="expected finite logits"):
        synthesize(model, batches, SPHERE)


def test_its_noise_is_what_was_measured(trained, batches):
    """The last number of the trace is that of the noise that is returned, on images of the stream."""
    noise = synthesize(trained, batches, replace(SPHERE, max_steps=20, pool=4))
    images = torch.cat([images for images, _ in batches[4:12]])  # the pool took the first four
    with torch.no_grad():
        clean = trained(images).softmax(1)
        with encoder_noise(trained, noise.value):
            noisy = trained(images).softmax(1)
    assert noise.mse_probability == pytest.approx(float((noisy - clean).square().sum(1).mean()), rel=1e-4)
    assert noise.trace[-1].norm == pytest.approx(noise.norm, rel=1e-5)


def test_the_margin_lets_others_agree_nine_times_in_ten():
    """Means of 512 images at the margin under eps, and the 95% bounds of 256 others of the same kind."""
    draw = np.random.default_rng(0)
    deviation, trials = 1.0, 20_000
    ours = draw.normal(0, deviation / 512**0.5, trials)  # judged mean minus the true one
    theirs = draw.normal(0, deviation / 256**0.5, trials)
    eps = ours + _MARGIN * deviation / 512**0.5
    agree = theirs + stats.norm.ppf(0.95) * deviation / 256**0.5 < eps
    assert agree.mean() == pytest.approx(0.9, abs=0.01)


def test_turns_are_long_at_first_and_shorter_for_larger_noise():
    assert step_length(0.05, 16 * 64, 0) == pytest.approx(0.1)
    assert step_length(0.05, 16 * 64, 40) == step_length(0.05, 512, 400) == pytest.approx(0.05)
    assert step_length(0.05, 100 * 16 * 64, 40) == pytest.approx(0.005)


def test_a_turn_must_be_positive():
    with pytest.raises(OptionError, match="noise turn: expected a number > 0"):
        NoiseConfig(turn=0)
