"""Runs that are killed, stopped or damaged, and go on as if nothing had happened."""

from __future__ import annotations

import csv
import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.runs import STATE, equal, finish, same_runs, start, state_of

import ns_easyrobust.training.trainer as module
from ns_easyrobust.cli import main as cli
from ns_easyrobust.errors import CheckpointError, OutputError, TrainingError
from ns_easyrobust.training import resume as runstate
from ns_easyrobust.training import run as training
from ns_easyrobust.training.augmentations import nullspace as augment
from ns_easyrobust.training.options import parse_args
from ns_easyrobust.training.resume import (
    STATE_FILES,
    dataset_digest,
    find_state,
    random_state,
    save_state,
    set_random_state,
)
from ns_easyrobust.training.run_folder import RUN_FILES
from ns_easyrobust.training.trainer import train

STEPS, SYNTHESIS, SAVING = range(3)


def step_in(folder: Path) -> int:
    try:
        return 0 if (state := find_state(folder)) is None else state["at"]["step"]
    except CheckpointError:
        return 0  # it was renamed while it was looked for


def killed_at(words: list[str], folder: Path, step: int, *more: str) -> None:
    """Kill -9 once the state of ``step`` is there."""
    process, deadline = start(words, *more), time.monotonic() + 120
    while not any((folder / name).exists() for name in STATE_FILES) or step_in(folder) < step:
        assert time.monotonic() < deadline
        assert process.is_alive(), "through before it could be killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()


@pytest.mark.stress
def test_killed_twice_with_other_numbers_of_workers(words, tmp_path):
    finish(words, "--experiment", "whole", "-j", "0")
    killed_at(words, tmp_path / "cut", 2, "--experiment", "cut", "-j", "2")
    killed_at(words, tmp_path / "cut", 10, "--experiment", "cut", "-j", "0")
    finish(words, "--experiment", "cut", "-j", "1")
    same_runs(tmp_path / "whole", tmp_path / "cut")
    with open(tmp_path / "cut" / "summary.csv", newline="") as stream:
        assert [row["epoch"] for row in csv.DictReader(stream)] == ["0", "1", "2"]
    finish(words, "--experiment", "cut", "-j", "0")  # a finished run has nothing to do
    same_runs(tmp_path / "whole", tmp_path / "cut")
    assert not (tmp_path / "cut" / STATE_FILES[0]).exists()


@pytest.mark.stress
@pytest.mark.parametrize("during", ["steps", "synthesis"])
def test_sigterm_to_all_processes_saves_and_ends(words, tmp_path, during):
    """As torchrun and SLURM send it: to the data workers too."""
    slow = ["--ns-max-steps", "100", "--ns-interval", "7"] if during == "synthesis" else []
    finish([*words, *slow], "--experiment", "whole", "-j", "0")
    words = [*words, *slow, "--recovery-interval", "0", "-j", "2"]  # so that only epochs and the signal save
    command = [sys.executable, "-m", "ns_easyrobust", *words, "--experiment", "cut"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, env=environment)
    deadline = time.monotonic() + 120
    while step_in(tmp_path / "cut") < 6:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.05 if during == "steps" else 0.4)  # a noise is due at step 7
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == 143
    assert process.stderr is not None
    last = process.stderr.read().decode().splitlines()[-1]
    step = step_in(tmp_path / "cut")
    assert f"stopped by SIGTERM: the state of step {step} is saved in cut" in last
    assert step > 6 if during == "steps" else step == 7
    finish(words, "--experiment", "cut")
    same_runs(tmp_path / "whole", tmp_path / "cut")


@pytest.fixture
def doing(monkeypatch):
    """What a forked run is at, in memory shared with it."""
    now = multiprocessing.Value("i", STEPS, lock=False)

    def marked(real, what):
        def work(*args, **options):
            now.value = what
            try:
                return real(*args, **options)
            finally:
                now.value = STEPS

        return work

    for where, name, what in ((augment.nullspace, "synthesize", SYNTHESIS), (training, "save_state", SAVING)):
        monkeypatch.setattr(where, name, marked(getattr(where, name), what))
    return now


@pytest.mark.stress
def test_killed_at_twenty_random_moments(words, tmp_path, doing):
    """Seven each aimed at any moment, a synthesis, a save; what it hit is read from the halted process."""
    finish(words, "--experiment", "whole", "-j", "2")
    draw, hit = random.Random(1), Counter()
    while hit.total() < 20 or min(hit[SYNTHESIS], hit[SAVING]) < 3:
        aim = (None, SYNTHESIS, SAVING)[hit.total() % 3]
        process = start(words, "--experiment", "cut", "-j", str(draw.choice([0, 2])))
        process.join(draw.uniform(0.3, 6.0) if aim is None else draw.uniform(0.0, 2.0))
        while process.exitcode is None and aim not in (None, doing.value):
            pass
        if process.exitcode is None:
            time.sleep(draw.uniform(0.0, 0.004))
            os.kill(process.pid, signal.SIGSTOP)
            status = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            if status.si_code == os.CLD_STOPPED:
                hit[doing.value] += 1
                doing.value = STEPS
                os.kill(process.pid, draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
                os.kill(process.pid, signal.SIGCONT)
                process.join()
                continue
        process.join()
        assert process.exitcode == 0
        same_runs(tmp_path / "whole", tmp_path / "cut")
        shutil.rmtree(tmp_path / "cut")
    print(f"killed in steps {hit[STEPS]}, in a synthesis {hit[SYNTHESIS]}, while saving {hit[SAVING]} times")
    finish(words, "--experiment", "cut", "-j", "0")
    same_runs(tmp_path / "whole", tmp_path / "cut")


def test_killed_while_it_saves(tmp_path, monkeypatch):
    """At each of the three moves of a save, one whole state is found."""
    for step in range(3):
        save_state(tmp_path, STATE | {"step": step})
    assert find_state(tmp_path)["step"] == 2
    real, moves = os.replace, []

    def cut(source, target):
        if len(moves) == stop:
            raise KeyboardInterrupt
        moves.append(target)
        real(source, target)

    for stop, expected in ((0, 2), (1, 3), (2, 3)):
        folder = tmp_path / str(stop)
        shutil.copytree(tmp_path, folder, ignore=lambda _, names: [name for name in names if name not in STATE_FILES])
        moves.clear()
        monkeypatch.setattr(os, "replace", cut)
        with pytest.raises(KeyboardInterrupt):
            save_state(folder, STATE | {"step": 3})
        monkeypatch.setattr(os, "replace", real)
        assert find_state(folder)["step"] == expected
        save_state(folder, STATE | {"step": 4})
        assert find_state(folder)["step"] == 4


def test_a_run_has_a_state_from_the_start(words, tmp_path, monkeypatch):
    def killed(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("ns_easyrobust.training.trainer._train_step", killed)
    flags = [*words[1:], "--experiment", "cut", "-j", "0", "--recovery-interval", "0"]
    with pytest.raises(KeyboardInterrupt):
        train(parse_args(flags))
    assert step_in(tmp_path / "cut") == 0
    assert find_state(tmp_path / "cut") is not None


def test_weights_that_are_not_finite_are_not_saved(words, tmp_path, monkeypatch):
    real = module._train_step

    def poisoned(run, batches):
        if run.at.step == 2:
            next(iter(run.model.parameters())).data.fill_(float("nan"))
            return 1.0, 0.0
        return real(run, batches)

    monkeypatch.setattr(module, "_train_step", poisoned)
    flags = [*words[1:], "--experiment", "cut", "-j", "0", "--recovery-interval", "1", "--aug", "none"]
    with pytest.raises(TrainingError, match=r"step 3: expected finite weights.*state\.pth\.tar"):
        train(parse_args(flags))
    assert step_in(tmp_path / "cut") == 2


def test_a_damaged_state_falls_back_to_the_one_before(tmp_path, caplog):
    assert find_state(tmp_path) is None
    for step in range(2):
        save_state(tmp_path, STATE | {"step": step})
    newest = tmp_path / "state.pth.tar"
    newest.write_bytes(newest.read_bytes()[:-200])
    assert find_state(tmp_path)["step"] == 0
    assert "state.pth.tar" in caplog.text
    assert "The one before is taken" in caplog.text
    (tmp_path / STATE_FILES[0]).write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="found 2 damaged"):
        find_state(tmp_path)


def test_bits_that_turned_over_on_the_disk_are_seen(tmp_path, caplog):
    """``torch.load`` reads them as good weights."""
    for step in range(2):
        save_state(tmp_path, STATE | {"step": step, "weights": torch.zeros(5000)})
    newest = tmp_path / "state.pth.tar"
    content = bytearray(newest.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(255 - byte for byte in content[middle : middle + 64])
    newest.write_bytes(content)
    assert torch.load(newest, weights_only=True)["weights"].any()
    assert find_state(tmp_path)["step"] == 0
    assert "state.pth.tar: expected a whole checkpoint, found a damaged" in caplog.text


def test_a_run_without_its_states_is_not_begun_anew(words, tmp_path):
    flags = [*words[1:], "--experiment", "cut", "-j", "0", "--max-steps", "2", "--aug", "none"]
    train(parse_args(flags))
    (tmp_path / "cut" / "state.pth.tar").unlink()
    with pytest.raises(OutputError, match="expected a state in cut, found a run without one"):
        train(parse_args(flags))


def test_an_optimizer_with_random_numbers_of_its_own_goes_on_exactly(words, monkeypatch):
    flags = [*words[1:], "-j", "0", "--aug", "none", "--opt", "adahessian", "--epochs", "1", "--epoch-steps", "4"]
    train(parse_args([*flags, "--experiment", "whole"]))
    real = module._train_step

    def cut(run, batches):
        if run.at.step == 3:
            raise KeyboardInterrupt
        return real(run, batches)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "_train_step", cut)
        train(parse_args([*flags, "--experiment", "cut"]))
    train(parse_args([*flags, "--experiment", "cut"]))
    equal(state_of(Path("cut")), state_of(Path("whole")))


@pytest.fixture
def disk(tmp_path):
    """A disk of 1 MiB of its own; root ignores permissions, but not what a mount says."""
    if os.geteuid() != 0 or not Path("/bin/mount").exists():
        pytest.skip("needs root to mount a small disk")
    where = tmp_path / "disk"
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", where]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield where
    subprocess.run(["umount", where], check=True)


def test_a_full_disk_keeps_the_last_state(disk):
    save_state(disk, STATE | {"step": 1, "weights": torch.zeros(100_000)})
    with pytest.raises(OutputError, match=r"No space left|Nothing was overwritten"):
        save_state(disk, STATE | {"step": 2, "weights": torch.zeros(1_000_000)})
    assert find_state(disk)["step"] == 1
    assert sorted(path.name for path in disk.iterdir()) == ["state.pth.tar"]


def test_a_folder_that_turns_read_only_keeps_the_last_state(disk, words, capsys):
    save_state(disk, STATE | {"step": 1})
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(OutputError, match="Read-only file system"):
        save_state(disk, STATE | {"step": 2})
    assert find_state(disk)["step"] == 1
    assert cli.main([*words, "--output", str(disk), "--experiment", "new", "-j", "0"]) == 2
    assert "Read-only file system" in capsys.readouterr().err.splitlines()[-1]
    assert sorted(path.name for path in disk.iterdir()) == ["state.pth.tar"]


def test_other_flags_or_images_are_refused(words, tmp_path, digits_dir):
    flags = [*words[1:], "--experiment", "cut", "-j", "0", "--max-steps", "3", "--aug", "none"]
    train(parse_args(flags))
    with pytest.raises(TrainingError, match=r"--lr: expected 0.001, with which the run in cut began, found 0.01"):
        train(parse_args([*flags, "--lr", "0.01"]))
    assert "lr: 0.001" in Path("cut/args.yaml").read_text(), "a refused command leaves no trace"
    shutil.copytree(digits_dir / "train", "other/train")
    shutil.copytree(digits_dir / "val", "other/val")
    assert train(parse_args([*flags, "--data-dir", "other"])) == Path("cut")  # the same images elsewhere
    next(Path("other/train/3").iterdir()).unlink()
    with pytest.raises(TrainingError, match="expected the images that the run in cut began with"):
        train(parse_args([*flags, "--data-dir", "other"]))


def test_resume_needs_a_name(words, capsys):
    assert cli.main([*words, "-j", "0"]) == 2
    assert "--resume auto: expected --experiment" in capsys.readouterr().err


def test_random_numbers_go_on(tmp_path):
    def draws():
        return (
            random.random(),
            float(np.random.rand()),
            float(np.random.randn()),
            float(torch.rand(())),
            random.gauss(0, 1),
        )

    device = torch.device("cpu")
    np.random.randn()  # leaves a second number in reserve
    random.gauss(0, 1)
    save_state(tmp_path, STATE | random_state(device))
    expected = [draws() for _ in range(3)]
    set_random_state(find_state(tmp_path), device)
    assert [draws() for _ in range(3)] == expected


def test_a_dataset_is_its_names_labels_and_sizes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text("x")
    samples = [(str(tmp_path / "a"), 0), (str(tmp_path / "b"), 1)]
    digests = {dataset_digest(samples, tmp_path), dataset_digest(samples[:1], tmp_path)}
    digests.add(dataset_digest([samples[0], (samples[1][0], 0)], tmp_path))
    (tmp_path / "b").write_text("xy")
    digests.add(dataset_digest(samples, tmp_path))
    assert len(digests) == 4


def test_a_dataset_with_a_name_that_is_not_utf8_has_a_digest_of_its_bytes(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff.png")
    path.write_text("xyz")
    expected = hashlib.sha256(b"\xff.png\t7\n3\n").hexdigest()
    assert dataset_digest([(str(path), 7)], tmp_path) == expected


def test_a_dataset_with_a_link_that_leads_nowhere_has_a_digest(tmp_path):
    (tmp_path / "x.png").symlink_to("x.png")
    assert dataset_digest([(str(tmp_path / "x.png"), 7)], tmp_path) == hashlib.sha256(b"x.png\t7\nNone\n").hexdigest()


@pytest.mark.stress
def test_a_rank_that_is_killed_ends_the_others_and_the_run_goes_on(words, tmp_path):
    """Two ranks: one is killed; torchrun ends the other within a minute; resumed, the end is the same."""
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--standalone",
        "-m",
        "ns_easyrobust",
    ]
    short = [*words, "--epochs", "2", "--epoch-steps", "4", "-j", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*torchrun, *short, "--experiment", "whole"], check=True, env=environment, capture_output=True)
    process = subprocess.Popen([*torchrun, *short, "--experiment", "cut"], env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while step_in(tmp_path / "cut") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [pid for pid in children if b"RANK=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")]
    os.kill(int(ranks[0]), signal.SIGKILL)
    assert process.wait(60) != 0
    assert b"SIGKILL" in process.stderr.read() or b"Signal 9" in process.stderr.read()
    subprocess.run([*torchrun, *short, "--experiment", "cut"], check=True, env=environment, capture_output=True)
    same_runs(tmp_path / "whole", tmp_path / "cut")


def test_the_names_of_states_are_marks_of_a_run():
    assert set(runstate.STATE_FILES) < set(RUN_FILES)
