from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from helpers.models import forward_by_hand, small_vit

from ns_easyrobust.errors import DataError, NoiseError, OptionError
from ns_easyrobust.models.hooks import encoder_noise
from ns_easyrobust.nullspace.config import NoiseConfig
from ns_easyrobust.nullspace.synthesis import measure, synthesize


def algorithm_1(model, batches, start, *, lr, eps, max_steps, weight_decay):
    """The inner loop written from the paper: manual encoder forward, AdamW from its own equations."""
    v, m, s = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for t in range(max_steps):
        images = batches[t % len(batches)][0].to(start.dtype)
        v.requires_grad_(True)
        z = forward_by_hand(model, images, torch.zeros_like(v)).detach()
        z_noisy = forward_by_hand(model, images, v)
        delta = ((z_noisy.softmax(1) - z.softmax(1)) ** 2).sum(1).mean()
        if delta < eps:
            return v.detach(), t
        ((z_noisy - z) ** 2).sum(1).mean().backward()
        g, v = v.grad, v.detach()
        m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g * g
        v = v * (1 - lr * weight_decay)
        v = v - lr * (m / (1 - 0.9 ** (t + 1))) / ((s / (1 - 0.999 ** (t + 1))).sqrt() + 1e-8)
    return v, max_steps


@pytest.mark.parametrize(
    ("dtype", "rtol"), [pytest.param(torch.float32, 1e-5, marks=pytest.mark.stress), (torch.float64, 1e-10)]
)
def test_follows_algorithm_1_to_the_same_stop(trained, batches, dtype, rtol):
    model = trained.to(dtype)
    data = [(images.to(dtype), labels) for images, labels in batches]
    settings = {"lr": 0.1, "eps": 0.02, "max_steps": 1000, "weight_decay": 0.01}
    start = torch.empty(1, 16, 64, dtype=dtype).uniform_(-3, 3, generator=torch.Generator().manual_seed(4))
    expected, steps = algorithm_1(model, data, start, **settings)
    noise = synthesize(model, data, NoiseConfig(limit=3, **settings), start=start)
    assert 50 < steps < 1000
    assert noise.steps == steps
    assert noise.stopped
    assert noise.value.dtype == dtype
    assert (noise.value - expected).norm() / expected.norm() < rtol


def test_beats_its_own_permutation_on_held_out_images(trained, batches, digits):
    held_out = [digits[0][1297:]]
    noise = synthesize(trained, batches, held_out=held_out)
    control = measure(trained, held_out, noise.permuted(torch.Generator().manual_seed(0)).value)
    assert noise.held_out.n == 500
    assert noise.held_out.mse_probability < 0.5 * control.mse_probability
    assert noise.held_out.agreement > control.agreement + 0.1


def test_the_test_comes_before_the_update_and_is_strict(trained, batches):
    silent = torch.zeros(1, 16, 64)
    noise = synthesize(trained, batches, NoiseConfig(max_steps=5), start=silent)
    assert (noise.steps, noise.stopped, noise.mse_probability) == (0, True, 0.0)
    assert torch.equal(noise.value, silent)
    loud = torch.full((1, 16, 64), 2.0)
    exactly = synthesize(trained, batches, NoiseConfig(max_steps=1), start=loud).mse_probability
    at_eps = synthesize(trained, batches, NoiseConfig(max_steps=1, eps=exactly), start=loud)
    assert (at_eps.steps, at_eps.stopped) == (1, False)
    above = synthesize(trained, batches, NoiseConfig(max_steps=1, eps=exactly * 1.001), start=loud)
    assert (above.steps, above.stopped) == (0, True)


def test_an_untouched_start_is_told(trained, batches, caplog):
    caplog.set_level("INFO")
    noise = synthesize(trained, batches, NoiseConfig(limit=1e-3), held_out=batches)
    assert (noise.untouched, noise.converged, noise.norm > 0) == (True, True, True)
    assert "nothing was optimised" in caplog.text
    assert "raise limit (now 0.001)" in caplog.text
    caplog.clear()
    assert synthesize(trained, batches, start=noise.value).untouched
    assert "the start given is under eps = 0.03 already" in caplog.text
    assert [record.levelname for record in caplog.records] == ["INFO"], "with a warm start that is nothing unusual"
    caplog.clear()
    assert not synthesize(trained, batches, NoiseConfig(max_steps=3, eps=1e-9)).untouched
    assert not synthesize(trained, batches, NoiseConfig(max_steps=0)).untouched
    assert not caplog.records


def test_noise_that_a_last_update_ruined_is_not_returned(trained, batches, monkeypatch):
    """No test follows the last update, as one by a gradient that overflowed."""
    overflown = "ns_easyrobust.nullspace.solvers.algorithm_1.mean_over_ranks"
    monkeypatch.setattr(overflown, lambda gradient: gradient * math.inf)
    with pytest.raises(NoiseError, match="synthesis, 1 updates: expected finite noise, found nan or inf"):
        synthesize(trained, batches, NoiseConfig(max_steps=1, eps=1e-9))


def test_running_out_of_steps_is_told_from_stopping(trained, batches):
    noise = synthesize(trained, batches, NoiseConfig(max_steps=3, eps=1e-9))
    assert (noise.steps, noise.stopped, noise.converged, len(noise.trace)) == (3, False, None, 3)
    assert [step.step for step in noise.trace] == [0, 1, 2]


@pytest.mark.stress
def test_stopped_on_its_batches_is_told_from_feasible_on_held_out_images(trained, batches):
    same = [batches[0]]
    noise = synthesize(trained, same, NoiseConfig(limit=6), held_out=batches[1:])
    assert noise.stopped
    assert noise.converged is False
    assert noise.held_out.mse_probability_upper > noise.config.eps
    easy = replace(noise, config=NoiseConfig(eps=noise.held_out.mse_probability_upper * 1.01))
    assert easy.converged is True


def test_start_noise_is_uniform_within_the_limit_and_seeded(trained, batches):
    def start(seed, limit):
        config = NoiseConfig(limit=limit, max_steps=0)
        return synthesize(trained, batches, config, generator=torch.Generator().manual_seed(seed)).value

    assert torch.equal(start(1, 3.0), start(1, 3.0))
    assert not torch.equal(start(1, 3.0), start(2, 3.0))
    sample = start(3, 2.0).flatten().numpy()
    assert scipy.stats.kstest(sample, scipy.stats.uniform(-2, 4).cdf).pvalue > 0.01


def test_model_and_global_generators_are_left_alone(batches):
    model = small_vit(drop_rate=0.5).train()
    torch.manual_seed(7)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected, np_expected = torch.rand(3), np.random.RandomState(7).rand(3)
    torch.manual_seed(7), np.random.seed(7)
    synthesize(model, batches, NoiseConfig(max_steps=3, eps=1e-9), held_out=batches[:1])
    assert torch.equal(torch.rand(3), expected)
    assert np.array_equal(np.random.rand(3), np_expected)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_works_where_the_caller_switched_gradients_off(trained, batches):
    with torch.no_grad():
        noise = synthesize(trained, batches, NoiseConfig(max_steps=2, eps=1e-9))
    assert noise.trace[1].mse_logits != noise.trace[0].mse_logits


def test_cosine_schedule_slows_the_noise_down(trained, batches):
    config = NoiseConfig(max_steps=10, eps=1e-9, weight_decay=0)
    constant, slowed = (synthesize(trained, batches, replace(config, cosine_steps=n)) for n in (0, 4))
    at_the_end = synthesize(trained, batches, replace(config, cosine_steps=4, max_steps=4))
    assert torch.allclose(slowed.value, at_the_end.value)
    assert not torch.allclose(slowed.value, constant.value)


@pytest.mark.stress
def test_bfloat16_by_request_stays_near_full_precision(trained, batches):
    config = NoiseConfig(max_steps=20, eps=1e-9)
    full, half = (synthesize(trained, batches, replace(config, autocast=mode)) for mode in ("off", "bfloat16"))
    assert not torch.equal(full.value, half.value)
    assert (full.value - half.value).norm() < 0.1 * full.value.norm()


def test_callers_autocast_does_not_reach_the_synthesis(trained, batches):
    config = NoiseConfig(max_steps=3, eps=1e-9)
    plain = synthesize(trained, batches, config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(synthesize(trained, batches, config).value, plain.value)


def test_random_baseline_is_a_gaussian_shrunk_by_0_8(trained, batches):
    noise = synthesize(trained, batches, NoiseConfig(solver="random"))
    assert noise.stopped
    assert noise.steps > 0
    assert noise.mse_probability < 0.03 <= noise.trace[-2].mse_probability
    original = noise.value / 0.8**noise.steps
    assert scipy.stats.kstest(original.flatten().numpy(), "norm").pvalue > 0.01


def test_measure_agrees_with_numpy_and_scipy(trained, digits):
    images = digits[0][1297:1417]
    value = torch.randn(1, 16, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        clean = trained(images).double().numpy()
        with encoder_noise(trained, value):
            noisy = trained(images).double().numpy()
    distance = ((scipy.special.softmax(noisy, 1) - scipy.special.softmax(clean, 1)) ** 2).sum(1)
    upper = distance.mean() + scipy.stats.norm.ppf(0.95) * distance.std(ddof=1) / math.sqrt(120)
    found = measure(trained, images.split(50), value)
    assert found.n == 120
    assert found.mse_probability == pytest.approx(distance.mean(), rel=1e-6)
    assert found.mse_probability_upper == pytest.approx(upper, rel=1e-6)
    assert found.mse_logits == pytest.approx(((noisy - clean) ** 2).sum(1).mean(), rel=1e-6)
    assert found.agreement == (noisy.argmax(1) == clean.argmax(1)).mean()


def test_one_image_bounds_nothing(trained, digits):
    assert measure(trained, [digits[0][:1]], torch.ones(1, 16, 64)).mse_probability_upper == math.inf


def test_bad_input(trained, batches, tmp_path):
    with pytest.raises(NoiseError, match=r"shape \(1, 16, 64\), found shape \(1, 4, 4\)"):
        synthesize(trained, batches, start=torch.zeros(1, 4, 4))
    with pytest.raises(DataError, match="ran out"):
        synthesize(trained, [])
    nan = [torch.full((4, 3, 32, 32), math.nan)]
    with pytest.raises(NoiseError, match="step 0: expected finite logits"):
        synthesize(trained, nan)
    with pytest.raises(NoiseError, match="expected finite logits"):
        measure(trained, nan, torch.zeros(1, 16, 64))
    with pytest.raises(NoiseError, match="at least one batch"):
        measure(trained, [], torch.zeros(1, 16, 64))
    for wrong in ({"eps": 0}, {"lr": -1}, {"limit": math.inf}, {"max_steps": -1}, {"solver": "best"}):
        with pytest.raises(OptionError, match="expected"):
            NoiseConfig(**wrong)


@pytest.mark.parametrize("place", [0, 1])
def test_images_of_another_size_than_the_models_are_one_line(place):
    batches = [torch.rand(2, 3, 32, 32)]
    batches.insert(place, torch.rand(2, 3, 48, 40))
    for attempt in (
        lambda: synthesize(small_vit(), batches, NoiseConfig(max_steps=3, eps=1e-9)),
        lambda: measure(small_vit(), batches, torch.zeros(1, 16, 64)),
    ):
        with pytest.raises(DataError, match="expected 32 x 32 pixels, which the model is built for, found 48 x 40"):
            attempt()
