"""What a GPU decides: that every verb runs there, and gives what the CPU gives (``make gpu``).

The CPU's results, which all other tests hold to independent oracles, are the oracle here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.models import small_vit
from helpers.runs import same_runs
from torch import nn

from ns_easyrobust import NullspaceAugmentation, load_model, read_records, save_model, synthesize
from ns_easyrobust.attacks import known_attacks
from ns_easyrobust.cli import main as cli
from ns_easyrobust.models.hooks import encoder_noise
from ns_easyrobust.models.safe_load import read_file
from ns_easyrobust.nullspace.config import NoiseConfig
from ns_easyrobust.training.options import parse_args
from ns_easyrobust.training.trainer import train
from ns_easyrobust.utils import exact_float32

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif("not __import__('torch').cuda.is_available()", reason="no GPU that PyTorch sees (make gpu)"),
]
MODEL = ["--model", "vit_micro_patch8_32", "--num-classes", "10", "--device", "cuda"]
ATTACKS = ["--cw-steps", "5", "--patchfool-layer", "1", "--patchfool-steps", "3", "--patchfool-loss", "ce"]
NOISE = ["--ns-max-steps", "30", "--ns-limit", "3", "--ns-interval", "5"]


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """Convolutions in float32, as on the CPU; matrix products are by default."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture
def flags(digits_dir: Path, tmp_path: Path) -> list[str]:
    """A short run of ``train`` on the GPU."""
    data = ["--data-dir", str(digits_dir), "-b", "64", "-j", "2", "--lr", "1e-3", "--max-steps", "12"]
    return [*MODEL, *data, "--epoch-steps", "6", "--output", str(tmp_path), "--aug", "nullspace", *NOISE]


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--amp", "--amp-dtype", "bfloat16", "--channels-last", "--pin-mem", "--model-ema"],
        ["--amp", "--amp-dtype", "float16", "--ns-solver", "sphere", "--model-ema", "--mixup", "0.8", "--cutmix", "1"],
        ["--aug", "random", "--clip-grad", "1"],
        ["--aug", "permuted", "--opt", "sgd"],
        ["--aug", "sensitive", "--ns-block", "1", "--ns-bank", "2"],
        ["--aug", "permuted", "--ns-fresh", "--ns-block", "2", "--amp", "--amp-dtype", "bfloat16"],
        ["--aug", "random", "--ns-fresh", "--ns-valid-pixels", "--ns-loss", "kl", "--ns-eps-growth", "2"],
        ["--aug", "madry", "--madry-alone", "--amp", "--amp-dtype", "float16"],
        ["--aug", "nullspace,trades", "--sam-rho", "0.05"],
        ["--aug", "negative-patches", "--negative-loss", "contrastive", "--grad-accum-steps", "2"],
        ["--aa", "augmix-m1-w3", "--aug-splits", "3", "--jsd-loss"],
    ],
    ids=" ".join,
)
def test_a_run_trains_and_is_benchmarked(flags, tmp_path, digits_dir, more):
    assert cli.main(["train", *flags, "--experiment", "run", *more]) == 0
    weights = tmp_path / "run" / "last.pth.tar"
    state = read_file(weights, "weights")[1]["state_dict"]
    assert all(value.isfinite().all() for value in state.values())
    assert not torch.equal(state["1.blocks.0.mlp.fc1.weight"], small_vit(seed=42)[1].blocks[0].mlp.fc1.weight)
    records = tmp_path / "results.jsonl"
    command = ["benchmark", *MODEL, "--ckpt-path", str(weights), "--data-dir", str(digits_dir), "-j", "2"]
    command += ["--suite", "val", "fgsm", "cw", "patchfool", "--subset", "random:64", "--records", str(records)]
    assert cli.main([*command, *ATTACKS]) == 0
    assert {record.suite for record in read_records(records)} >= {"imagenet-val", "fgsm", "cw", "patchfool"}


def test_a_stopped_run_goes_on_to_the_same_weights(flags, tmp_path, monkeypatch):
    exact = ["--model-ema", "--mixup", "0.8"]
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        train(parse_args([*flags, *exact, "--experiment", "whole"]))
        step, seen = nn.Module.__call__, 0

        def stop_after(self, *args, **kwargs):
            nonlocal seen
            seen += 1
            if seen == 400:
                raise KeyboardInterrupt
            return step(self, *args, **kwargs)

        monkeypatch.setattr(nn.Module, "__call__", stop_after)
        with pytest.raises(KeyboardInterrupt):
            train(parse_args([*flags, *exact, "--experiment", "stopped", "--recovery-interval", "1"]))
        monkeypatch.setattr(nn.Module, "__call__", step)
        train(parse_args([*flags, *exact, "--experiment", "stopped", "--recovery-interval", "1", "--resume", "auto"]))
    finally:
        torch.use_deterministic_algorithms(False)
    same_runs(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("solver", ["paper", "sphere"])
def test_the_noise_is_the_cpus(trained, batches, solver):
    start = torch.empty(1, 16, 64).uniform_(-3, 3, generator=torch.Generator().manual_seed(4))
    config = NoiseConfig(limit=3, lr=0.1, eps=1e-4, max_steps=20, solver=solver)
    expected = synthesize(trained, batches, config, start=start)
    found = synthesize(trained.to("cuda"), batches, config, start=start)
    assert found.steps == expected.steps
    assert (found.value.cpu() - expected.value).norm() < 1e-3 * expected.value.norm()
    assert not expected.value.allclose(start, rtol=0.1)


@pytest.mark.parametrize("name", ["fgsm", "pgd", "cw", "patchfool"])
def test_an_attack_fools_as_many_as_on_the_cpu(trained, digits, name):
    images, labels = digits[0][1297:1361], digits[1][1297:1361]
    few = {"cw": {"steps": 10}, "patchfool": {"steps": 10, "layer": 1, "loss": "ce"}}.get(name, {})
    attack = known_attacks()[name](**few)
    on_cpu = attack(trained, images, labels, seeds=range(64))
    model = trained.to("cuda")
    on_gpu = attack(model, images.to("cuda"), labels.to("cuda"), seeds=range(64))
    assert on_gpu.device.type == "cuda"
    assert (on_gpu.cpu() - on_cpu).abs().mean() < 2e-3
    right = [(model(pixels.to("cuda")).argmax(1).cpu() == labels).sum().item() for pixels in (on_cpu, on_gpu, images)]
    assert abs(right[0] - right[1]) <= 2
    assert right[1] < right[2]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_verdicts_are_the_cpus(trained, digits_dir, tmp_path, dtype):
    save_model(trained, tmp_path / "m.pth.tar")
    found = {}
    for device in ("cpu", "cuda"):
        command = ["benchmark", *MODEL[:4], "--device", device, "--ckpt-path", str(tmp_path / "m.pth.tar"), "-j", "0"]
        more = ["--data-dir", str(digits_dir), "--dtype", dtype, "--suite", "val", "--records"]
        assert cli.main([*command, *more, str(tmp_path / f"{device}.jsonl")]) == 0
        found[device] = next(r for r in read_records(tmp_path / f"{device}.jsonl") if r.metric == "top1")
    assert abs(found["cpu"].correct - found["cuda"].correct) <= (0 if dtype == "float32" else 3)
    assert "GPU" not in str(found["cpu"].machine)
    assert torch.cuda.get_device_name() in str(found["cuda"].machine)


def test_wrapped_models_take_the_same_noise(trained, digits):
    images, labels = digits[0][:8].to("cuda"), digits[1][:8].to("cuda")
    model = trained.to("cuda")
    value = torch.randn(1, 16, 64, device="cuda")
    with encoder_noise(model, value):
        expected = model(images)
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        with encoder_noise(wrapped, value):
            assert torch.allclose(model(images), expected)
        ns = NullspaceAugmentation(wrapped, [(images, labels)], NoiseConfig(max_steps=3), interval=1)
        loss = ns.loss(images, labels, nn.functional.cross_entropy)
        assert loss.isfinite()
        loss.backward()


def test_full_memory_is_one_line(flags, capsys):
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-4)
    try:
        assert cli.main(["train", *flags, "-b", "1024"]) == 2
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    line = capsys.readouterr().err.strip().split("\n")[-1]
    assert "memory" in line
    assert "--batch-size" in line


def test_a_checkpoint_from_the_gpu_is_read_without_one(trained, tmp_path):
    torch.save({"state_dict": trained.to("cuda").state_dict()}, tmp_path / "m.pth")
    loaded = load_model("vit_micro_patch8_32", tmp_path / "m.pth", num_classes=10)
    assert {tensor.device.type for tensor in loaded.state_dict().values()} == {"cpu"}


def test_exact_float32_keeps_convolutions_from_tf32():
    layer = nn.Conv2d(3, 64, 16, 16).to("cuda")
    images = torch.rand(8, 3, 224, 224, device="cuda")
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        expected = layer.double()(images.double())
        layer.float()
        with exact_float32():
            assert float((layer(images) - expected).abs().max()) < 1e-5
