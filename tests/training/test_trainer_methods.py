"""Each method that ``train`` offers: exact resume, two ranks, mixed precision, under the timm that is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.models import small_vit
from helpers.runs import equal, state_of

import ns_easyrobust.training.trainer as module
from ns_easyrobust.cli import main as cli
from ns_easyrobust.models.checkpoint_save import save_model
from ns_easyrobust.training.augmentations.registry import augmentation_names
from ns_easyrobust.training.options import parse_args

SCRIPT = Path(__file__).parents[1] / "helpers" / "run_methods.py"
NOISE = "--ns-max-steps 2 --ns-interval 2"
MIXED = "--mixup 0.8 --cutmix 1 --smoothing 0.1 --model-ema --model-ema-decay 0.9"
METHODS = {
    "none": MIXED,
    "augmix": f"--aa augmix-m3 --aug-splits 3 --jsd-loss --augmix-ops published --reprob 0.3 --aug random {NOISE}",
    "trivialaugment": "--aa trivial --grad-accum-steps 2",
    "nullspace": f"--aug nullspace {NOISE} {MIXED}",
    "random": f"--aug random {NOISE} {MIXED}",
    "permuted": f"--aug permuted {NOISE} {MIXED}",
    "sensitive": f"--aug sensitive --ns-pool 2 --ns-minibatch 8 {NOISE}",
    "noise-use": f"--aug nullspace {NOISE} --ns-bank 2 --ns-eps-growth 2 --ns-loss kl --ns-valid-pixels",
    "pixel-noise": "--aug pixel-noise --pixel-noise-sigma 0.2 --pixel-noise-uniform-sigma",
    "madry": f"--aug madry --madry-steps 2 {MIXED}",
    "madry-alone": "--aug madry --madry-steps 2 --madry-alone --madry-best",
    "trades": f"--aug trades --trades-steps 2 {MIXED}",
    "trades-original": "--aug nullspace,trades --ns-max-steps 2 --trades-steps 2 --trades-form original",
    "negative-patches": f"--aug negative-patches --negative-transform rotate --negative-loss l2 {MIXED}",
    "sam": f"--aug random,trades --ns-max-steps 2 --trades-steps 2 --sam-rho 0.05 {MIXED}",
    "asam-accumulated": f"--sam-rho 0.5 --sam-adaptive --grad-accum-steps 2 {MIXED}",
    "negative-patches-contrastive": "--aug negative-patches --negative-loss contrastive",
    "relevance": "--aug relevance --relevance-per-class 1",
    "relevance-beside": f"--aug relevance --relevance-per-class 1 --relevance-keep-clean {MIXED}",
}

# What another one has too: those of make stress alone.
LONG = (
    "madry-alone",
    "random",
    "permuted",
    "sensitive",
    "trades-original",
    "negative-patches-contrastive",
    "relevance-beside",
)
# Whose ranks do different things: a noise, no clean forward, two passes, several views.
FEW = ("nullspace", "madry-alone", "sam", "augmix")


@pytest.fixture(scope="module")
def common(digits_dir, tmp_path_factory) -> list[str]:
    """A short run in bfloat16 with dropout, from a checkpoint."""
    start = tmp_path_factory.mktemp("start") / "start.pth.tar"
    save_model(small_vit(), start)
    return [
        *("--model", "vit_micro_patch8_32", "--num-classes", "10", "--data-dir", str(digits_dir), "-j", "0"),
        *("--initial-checkpoint", str(start), "--device", "cpu", "-b", "8", "--drop", "0.1", "--drop-path", "0.1"),
        *("--amp", "--amp-dtype", "bfloat16", "--lr", "1e-3", "--select", "last", "--epochs", "1"),
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def few_images_to_evaluate(monkeypatch):
    monkeypatch.setattr(module, "_evaluate", lambda run, dataset: {"loss": 0.0, "top1": 0.0})


class Killed(BaseException):
    pass


def run(words: list[str], folder: Path) -> None:
    assert cli.main(["train", *words, "--output", str(folder.parent), "--experiment", folder.name]) == 0


def test_every_method_is_tried():
    tried = {
        name for words in METHODS.values() for name in parse_args(["--data-dir", "x", *words.split()]).aug.split(",")
    }
    assert tried == set(augmentation_names())


@pytest.mark.parametrize(
    "method", [pytest.param(method, marks=[pytest.mark.stress] * (method in LONG)) for method in METHODS]
)
def test_a_run_that_is_killed_goes_on_exactly(method, common, tmp_path, monkeypatch):
    words = [*common, "--epoch-steps", "4", "--recovery-interval", "3", *METHODS[method].split()]
    run(words, tmp_path / "whole")
    step, steps = module._train_step, 0

    def killed_step(*call):
        nonlocal steps
        steps += 1
        if steps == 4:
            raise Killed
        return step(*call)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(module, "_train_step", killed_step)
        run([*words, "--resume", "auto"], tmp_path / "cut")
    assert state_of(tmp_path / "cut")["at"]["step"] == 3
    run([*words, "--resume", "auto"], tmp_path / "cut")
    whole, cut = state_of(tmp_path / "whole"), state_of(tmp_path / "cut")
    equal(whole, cut)
    assert whole["at"]["step"] == 4
    start = small_vit().state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in whole["state_dict"].items())


@pytest.mark.stress
@pytest.mark.parametrize("methods", [FEW, tuple(METHODS)], ids=["few", "all"])
def test_two_ranks_end_with_the_same_weights(methods, common, tmp_path):
    words = [" ".join([name, *common, "--epoch-steps", "2", METHODS[name]]) for name in methods]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    done = subprocess.run(
        [*torchrun, str(SCRIPT), str(tmp_path), *words], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    for name in methods:
        assert first[name]["moved"] > 0, name
        equal(first[name]["weights"], second[name]["weights"], name)
