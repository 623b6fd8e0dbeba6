"""The gradients of an update in the trainer: SAM's second pass, and those of several batches."""

from __future__ import annotations

import csv
import math

import pytest
import timm
import torch
from helpers.models import small_vit
from helpers.processes import torchrun
from helpers.runs import equal, state_of
from torch import nn

import ns_easyrobust.training.trainer as module
from ns_easyrobust.errors import OptionError, TrainingError
from ns_easyrobust.models.checkpoint_save import save_model
from ns_easyrobust.training.losses import LogitsLoss
from ns_easyrobust.training.options import parse_args
from ns_easyrobust.training.setup import build_data, build_model, read_start
from ns_easyrobust.training.trainer import train


@pytest.fixture
def flags(digits_dir, tmp_path):
    """Momentum's steps, in which rounding stays rounding, from a start on the disk."""
    save_model(small_vit(), tmp_path / "start.pth.tar")
    return [
        *("--model", "vit_micro_patch8_32", "--num-classes", "10", "--data_dir", str(digits_dir), "-j", "0"),
        *("--initial-checkpoint", str(tmp_path / "start.pth.tar"), "--output", str(tmp_path), "--device", "cpu"),
        *("--batch-size", "8", "--max-steps", "4", "--epoch-steps", "2", "--lr", "0.05", "--opt", "momentum"),
        *("--weight-decay", "0.01", "--select", "last", "--val-interval", "9", "--sched", "step"),
    ]


@pytest.fixture(autouse=True)
def nothing_to_evaluate(monkeypatch):
    monkeypatch.setattr(module, "_evaluate", lambda run, dataset: {"loss": 0.0, "top1": 0.0})


def weights(words, name: str, *more: str) -> torch.Tensor:
    """All weights that a run ends with, (n,)."""
    folder = train(parse_args([*words, "--experiment", name, *more]))
    state = torch.load(folder / "last.pth.tar", weights_only=True)["state_dict"]
    return torch.cat([value.flatten() for name, value in state.items() if name not in ("0.mean", "0.std")])


def by_hand(words, rho: float, count: int, clip: float, steps: int = 4) -> torch.Tensor:
    """The same run as sums of gradients at given weights, by a functional call; no optimizer."""
    args = parse_args(words)
    model, _ = build_model(args, torch.device("cpu"), read_start(args))
    stream = iter(build_data(args, model).train)
    names = [name for name, _ in model.named_parameters()]
    w = {name: value.detach().clone() for name, value in model.named_parameters()}
    velocity = {name: torch.zeros_like(value) for name, value in w.items()}

    def gradient(at, batches):
        at = {name: value.clone().requires_grad_() for name, value in at.items()}
        loss = sum(
            nn.functional.cross_entropy(torch.func.functional_call(model, at, images), labels)
            for images, labels in batches
        )
        return dict(zip(names, torch.autograd.grad(loss / len(batches), list(at.values())), strict=True))

    def norm(values):
        return sum(float(value.double().square().sum()) for value in values.values()) ** 0.5

    for _ in range(steps):
        batches = [next(stream) for _ in range(count)]
        first = gradient(w, batches)
        second = gradient({name: w[name] + rho * first[name] / norm(first) for name in names}, batches)
        shrink = min(1.0, clip / norm(second))
        for name in names:
            decayed = w[name].ndim > 1 and name not in ("1.cls_token", "1.pos_embed")
            velocity[name] = 0.9 * velocity[name] + shrink * second[name] + 0.01 * decayed * w[name]
            w[name] = w[name] - 0.05 * velocity[name]
    return torch.cat([w[name].flatten() for name in names])


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.stress), 3])
def test_updates_are_those_computed_by_hand(flags, count):
    more = ["--sam-rho", "0.3", "--grad-accum-steps", str(count), "--clip-grad", "0.5"]
    found = weights(flags, "run", *more)
    torch.testing.assert_close(found, by_hand(flags, 0.3, count, 0.5), rtol=0, atol=2e-6)
    assert float((found - by_hand(flags, 1e-9, count, 0.5)).abs().max()) > 1e-4, "SAM makes a difference here"


def test_the_second_pass_draws_what_the_first_drew(flags, tmp_path):
    """At a vanishing distance a run is the plain one, whatever it draws."""
    drawing = ["--drop", "0.3", "--drop-path", "0.3", "--mixup", "0.8", "--cutmix", "1", "--grad-accum-steps", "2"]
    drawing += ["--aug", "random", "--ns-interval", "3", "--ns-limit", "1", "--model-ema", "--reprob", "0.5"]
    plain, near = weights(flags, "plain", *drawing), weights(flags, "near", *drawing, "--sam-rho", "1e-6")
    assert float((near - plain).abs().max()) < 1e-5
    states = [state_of(tmp_path / name) for name in ("plain", "near")]
    equal(states[0]["random"], states[1]["random"])
    for name in ("seed", "calls", "steps"):
        equal(states[0]["augmentation"][name], states[1]["augmentation"][name])
    assert states[0]["augmentation"]["calls"] == 8
    with open(tmp_path / "near" / "noise.csv", newline="") as stream:
        assert [row["step"] for row in csv.DictReader(stream)] == ["0", "3"]  # updates, not batches


def test_batches_of_an_update_are_one_large_batch(flags):
    many, one = weights(flags, "many", "--grad-accum-steps", "4"), weights(flags, "one", "--batch-size", "32")
    torch.testing.assert_close(many, one, rtol=0, atol=2e-6)


@pytest.mark.stress
def test_second_derivatives_are_those_of_all_batches(flags, tmp_path):
    """AdaHessian's first update: its averages, for its step divides by curvatures that may be next to nothing."""
    for name, batch, count in (("many", "8", "4"), ("one", "32", "1")):
        words = ["--opt", "adahessian", "--max-steps", "1", "-b", batch, "--grad-accum-steps", count]
        train(parse_args([*flags, *words, "--experiment", name]))
    many, one = (state_of(tmp_path / name)["optimizer"]["state"] for name in ("many", "one"))
    for name in ("exp_avg", "exp_hessian_diag_sq"):
        torch.testing.assert_close(*([item[name] for item in state.values()] for state in (many, one)))


def test_an_epoch_is_all_images_once_however_many_batches_make_an_update(flags):
    model, _ = build_model(args := parse_args(flags), torch.device("cpu"), read_start(args))
    for count in (1, 3, 10_000):
        data = build_data(parse_args([*flags, "--epoch-steps", "0", "--grad-accum-steps", str(count)]), model)
        assert data.steps_per_epoch == max(1, len(data.train.dataset) // 8 // count)


def test_mixed_precision_moves_as_full_precision_does(flags):
    """Autocast keeps its copies of the weights; those of the first pass must not serve the second."""
    more = ["--sam-rho", "0.5", "--max-steps", "1"]
    plain, full = weights(flags, "plain", "--max-steps", "1"), weights(flags, "full", *more)
    low = weights(flags, "low", *more, "--amp", "--amp-dtype", "bfloat16")
    assert float((low - full).norm()) < 0.1 * float((plain - full).norm())


def test_a_first_gradient_that_overflows_skips_the_update_and_lowers_the_scale(flags, tmp_path):
    """float16 at a scale of 2**16 times a loss of 2**20."""
    start = weights([*flags, "--lr", "0", "--min-lr", "0", "--weight-decay", "0"], "start", "--max-steps", "1")
    more = ["--amp", "--amp-dtype", "float16", "--sam-rho", "0.5", "--max-steps", "1", "--weight-decay", "0"]
    with pytest.MonkeyPatch.context() as patch:
        real = LogitsLoss.forward
        patch.setattr(LogitsLoss, "forward", lambda self, output, target: real(self, output, target) * 2**20)
        assert torch.equal(weights(flags, "skipped", *more), start)
    state = state_of(tmp_path / "skipped")
    assert state["scaler"]["scale"] == 2**15
    assert not state["optimizer"]["state"]


def test_a_second_loss_that_is_not_finite_is_told(flags, monkeypatch):
    losses = iter([2.0, math.nan])
    monkeypatch.setattr(LogitsLoss, "forward", lambda self, output, target: next(losses) * output.square().mean())
    with pytest.raises(TrainingError, match=r"step 0: expected a finite loss within --sam-rho 0\.1 of the weights"):
        weights(flags, "far", "--sam-rho", "0.1")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--sam-rho", "0"], r"^--sam-rho: expected a distance > 0, found 0.0, .*Leave it out"),
        (["--sam-adaptive"], "^--sam-adaptive: expected rho with it"),
        (["--sam-rho", "0.1", "--opt", "adahessian"], "^--sam-rho: expected an optimizer of first order"),
    ],
)
def test_flags_that_do_not_fit(flags, wrong, message, tmp_path):
    with pytest.raises(OptionError, match=message):
        train(parse_args([*flags, *wrong, "--experiment", "run"]))
    assert not (tmp_path / "run" / "state.pth.tar").exists()


@pytest.mark.parametrize("wrong", [["--sam-rho", "-1"], ["--sam-rho", "101"], ["--grad-accum-steps", "0"]])
def test_flags_out_of_range(flags, wrong):
    with pytest.raises(OptionError):
        parse_args([*flags, *wrong])


@pytest.mark.skipif(timm.__version__.startswith("0."), reason="timm 0.5.4's Lookahead cannot step under this PyTorch")
def test_lookahead_sees_the_weights_where_they_were(flags):
    more = ["--opt", "lookahead_momentum", "--max-steps", "7"]
    plain, near = (weights(flags, name, *more, *sam) for name, sam in (("a", []), ("b", ["--sam-rho", "1e-6"])))
    assert float((near - plain).abs().max()) < 1e-5


@pytest.mark.stress
def test_two_ranks_are_one_process_with_their_batches(flags, tmp_path):
    """Both passes' gradients are averaged, those of the micro-batches once an update."""
    more = ["--aug", "random", "--ns-limit", "1", "--sam-rho", "0.3", "--grad-accum-steps", "2", "--hflip", "0"]
    alone = weights(flags, "alone", *more)
    done = torchrun(2, tmp_path, "train", *flags, *more, "--batch-size", "4", "--experiment", "shared")
    assert done.returncode == 0, done.stderr[-3000:]
    state = torch.load(tmp_path / "shared" / "last.pth.tar", weights_only=True)["state_dict"]
    shared = torch.cat([value.flatten() for name, value in state.items() if name not in ("0.mean", "0.std")])
    torch.testing.assert_close(shared, alone, rtol=0, atol=5e-6)
