"""Two real processes under torchrun against one that is fed the same total batches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.processes import in_a_fork, torchrun

from ns_easyrobust.evaluation.results_file import read_records
from ns_easyrobust.models.checkpoint_save import save_model
from ns_easyrobust.models.checkpoints import read_checkpoint
from ns_easyrobust.utils import distributed

SCRIPT = Path(__file__).parents[1] / "helpers" / "run_rank.py"


def test_one_process_is_a_no_op():
    value = torch.arange(3.0)
    assert (distributed.rank(), distributed.world_size(), distributed.is_distributed()) == (0, 1, False)
    for collective in (distributed.broadcast, distributed.sum_over_ranks, distributed.mean_over_ranks):
        assert torch.equal(collective(value), torch.arange(3.0))
    with distributed.process_group(torch.device("cpu")) as device:
        assert device == torch.device("cpu")
        assert not torch.distributed.is_initialized()


def launch(processes: int, notes: Path, flags: list[str]) -> list[dict]:
    notes.mkdir()
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    program = torchrun if processes > 1 else [sys.executable]
    done = subprocess.run(
        [*program, str(SCRIPT), str(notes), *flags, "--output", str(notes)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(notes / f"rank{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.mark.parametrize(
    ("arch", "ranks", "solver"),
    [
        ("vit_micro_patch8_32", 2, "paper"),
        pytest.param("swin_micro_patch2_32", 2, "paper", marks=pytest.mark.stress),
        pytest.param("vit_micro_patch8_32", 4, "paper", marks=pytest.mark.stress),
        pytest.param("vit_micro_patch8_32", 2, "sphere", marks=pytest.mark.stress),
    ],
)
def test_ranks_equal_one_process_with_their_total_batch(arch, ranks, solver, digits_dir, tmp_path):
    flags = ["--model", arch, "--num-classes", "10", "--data_dir", str(digits_dir), "-j", "0", "--device", "cpu"]
    eps = "1e-6" if solver == "paper" else "0.001"  # random weights hardly react
    flags += ["--aug", "nullspace", "--ns-solver", solver, "--ns-max-steps", "6", "--ns-eps", eps, "--ns-interval", "2"]
    flags += ["--hflip", "0", "--epoch-steps", "3", "--epochs", "1", "--lr", "1e-3", "--drop-path", "0"]
    flags += ["--experiment", "run"]
    shared = launch(ranks, tmp_path / "shared", [*flags, "-b", str(16 // ranks)])
    (alone,) = launch(1, tmp_path / "one", [*flags, "-b", "16"])
    first = shared[0]

    def rows(found, step):
        return {image.numpy().tobytes() for image in found["seen"][step]}

    for step in range(3):  # different shards, together the batch of one process
        shards = [rows(found, step) for found in shared]
        assert set.union(*shards) == rows(alone, step)
        assert sum(map(len, shards)) == 16
    for other in shared[1:]:
        assert all(torch.equal(value, other["weights"][name]) for name, value in first["weights"].items())
        assert torch.equal(first["noise"], other["noise"])
    assert [entry["synthesis_steps"] for entry in first["history"]] == [6, 6]
    torch.testing.assert_close(first["noise"], alone["noise"], rtol=1e-3, atol=1e-3)
    for ours, theirs in zip(first["history"], alone["history"], strict=True):
        assert ours["mse_probability"] == pytest.approx(theirs["mse_probability"], rel=1e-2)
        assert ours["held_out_mse_probability"] == pytest.approx(theirs["held_out_mse_probability"], rel=1e-2)
    for name, value in first["weights"].items():
        torch.testing.assert_close(value, alone["weights"][name], rtol=1e-3, atol=1e-3, msg=name)
    saved = read_checkpoint(tmp_path / "shared" / "run" / "last.pth.tar").weights().state
    assert all(torch.equal(value, first["weights"][f"1.{name}"]) for name, value in saved.items())


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.stress)])
def test_ranks_evaluate_each_image_once(trained, digits_dir, tmp_path, ranks, monkeypatch):
    """Records, bits and mean L2 of a shared evaluation are those of one process; batches need not divide evenly."""
    monkeypatch.chdir(tmp_path)
    save_model(trained, tmp_path / "c.pth.tar")
    flags = ["--model", "vit_micro_patch8_32", "--num-classes", "10", "--ckpt-path", "c.pth.tar", "--device", "cpu"]
    flags += ["--data-dir", str(digits_dir), "--input-size", "32", "--crop-pct", "1", "-b", "40", "-j", "0"]
    flags += ["--subset", "random:101"]
    flags += ["--suite", "val", "fgsm", "cw", "pgd", "patchfool", "--epsilon", "8/255", "--cw-radius", "0.5"]
    flags += ["--patchfool-loss", "ce", "--patchfool-layer", "1", "--patchfool-steps", "3"]
    found = []
    for processes in (1, ranks):
        words = ["benchmark", *flags, "--records", f"{processes}.jsonl"]
        done = torchrun(processes, tmp_path, *words) if processes > 1 else in_a_fork(words, tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(read_records(tmp_path / f"{processes}.jsonl"))
    assert [r.suite for r in found[0]] == ["imagenet-val", "fgsm", "pgd", "cw", "cw", "cw", "patchfool"]
    for alone, shared in zip(*found, strict=True):
        assert (alone.value, alone.n, alone.correct, alone.images) == (
            pytest.approx(shared.value, rel=1e-5),
            shared.n,
            shared.correct,
            shared.images,
        )
        if alone.right_path is not None:
            assert alone.right == shared.right  # the name carries a hash of the bits


@pytest.mark.stress
def test_train_under_torchrun_leaves_one_run_and_refuses_to_overwrite_it(digits_dir, tmp_path):
    flags = ["--model", "vit_micro_patch8_32", "--num-classes", "10", "--data-dir", digits_dir, "--device", "cpu"]
    flags += ["-j", "0", "-b", "8", "--max-steps", "2", "--aug", "nullspace", "--ns-max-steps", "3", "--ns-eps", "1e-9"]
    words = ["train", *flags, "--output", "out", "--experiment", "x"]
    first = torchrun(2, tmp_path, *words)
    assert first.returncode == 0, first.stderr[-2000:]
    assert first.stdout.count("run folder: out/x") == 1
    assert first.stderr.count("noise 1: 3 synthesis steps") == 1
    before = (tmp_path / "out" / "x" / "last.pth.tar").read_bytes()
    second = torchrun(2, tmp_path, *words)
    assert second.returncode != 0
    lines = [line for line in second.stderr.splitlines() if line.startswith("ns-easyrobust")]
    assert len(lines) == 1
    assert "already holds a run" in lines[0]
    assert "Connection closed" not in second.stderr
    assert (tmp_path / "out" / "x" / "last.pth.tar").read_bytes() == before


def test_a_users_mistake_ends_all_ranks_with_code_2(tmp_path):
    done = torchrun(2, tmp_path, "train", "--model", "vit_micro_patch8_32", "--data-dir", "nowhere", "--device", "cpu")
    assert done.returncode != 0
    assert "exitcode  : 2" in done.stderr
    assert "nowhere/train: expected a folder" in done.stderr
