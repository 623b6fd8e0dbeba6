"""One process at a time in a run's folder, and states that are none."""

from __future__ import annotations

import argparse
import errno
import fcntl
import os
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from helpers.runs import STATE, finish, same_runs, start

from ns_easyrobust.cli import main as cli
from ns_easyrobust.errors import CheckpointError, OptionError, OutputError
from ns_easyrobust.training.resume import save_state
from ns_easyrobust.training.run_folder import held_run_folder

CPU = torch.device("cpu")


def run_in(output: Path, experiment: str = "run", resume: str | None = "auto") -> argparse.Namespace:
    return argparse.Namespace(output=str(output), experiment=experiment, resume=resume, model="vit")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_second_process_is_told_whose_the_folder_is_and_changes_nothing(tmp_path, capsys):
    with held_run_folder(run_in(tmp_path), CPU) as (folder, state):
        assert state is None
        (folder / "summary.csv").write_text("half")
        (folder / f".last.pth.tar.{'0' * 32}.tmp").write_bytes(b"being written")
        before = contents(folder)
        words = ["train", "--model", "vit_micro_patch8_32", "--data-dir", "nowhere", "--output", str(tmp_path)]
        for more in ([], ["--resume", "auto"]):
            assert cli.main([*words, "--device", "cpu", "--experiment", "run", *more]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert f"found process {os.getpid()} on {socket.gethostname()}" in line
        assert contents(folder) == before
    with held_run_folder(run_in(tmp_path, "other"), CPU):
        pass
    assert not (folder / ".lock").exists(), "whoever leaves lets go"


def test_what_a_killed_run_left_half_written_is_cleared(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    torn = [folder / ".state-next.pth.tar.1234.tmp", folder / f".noise.csv.{'a' * 32}.tmp"]
    kept = [folder / ".hidden.tmp", folder / "notes.tmp"]
    for path in (*torn, *kept, folder / ".lock"):
        path.write_bytes(b"half a file")
    with held_run_folder(run_in(tmp_path), CPU):
        assert not any(path.exists() for path in torn)
        assert all(path.exists() for path in kept)


def test_without_locks_nothing_that_another_process_may_be_writing_is_cleared(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    written_elsewhere = tmp_path / "run" / f".noise.csv.{'a' * 32}.tmp"
    written_elsewhere.parent.mkdir()
    written_elsewhere.touch()
    with held_run_folder(run_in(tmp_path), CPU):
        assert written_elsewhere.exists()


def test_the_folder_is_free_again_after_an_error(tmp_path):
    with pytest.raises(OptionError, match="expected --experiment"), held_run_folder(run_in(tmp_path, ""), CPU):
        pass
    assert not list(tmp_path.iterdir())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pth.tar").touch()
    for resume, found in ((None, "already holds a run"), ("auto", "found a run without one")):
        for _ in range(2):
            with pytest.raises(OutputError, match=found), held_run_folder(run_in(tmp_path, resume=resume), CPU):
                pass
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["last.pth.tar"]


def test_a_link_that_leads_nowhere_is_not_written_through(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.csv").symlink_to(tmp_path / "elsewhere")
    for resume, found in ((None, "already holds a run"), ("auto", "found a run without one")):
        with pytest.raises(OutputError, match=found), held_run_folder(run_in(tmp_path, resume=resume), CPU):
            pass


WRONG = {
    "a checkpoint, whose weights --initial-checkpoint takes": {"state_dict": {}, "epoch": 3, "arch": "vit"},
    "none or an odd at": {**STATE, "at": 3},
    "none or an odd at.step": {**STATE, "at": STATE["at"] | {"step": "0"}},
    "none or an odd at.epoch": {**STATE, "at": STATE["at"] | {"epoch": -1}},
    "none or an odd identity.batch": {**STATE, "identity": {"args": {}, "data": ""}},
    "none or an odd identity.args": {**STATE, "identity": {"args": {"lr": torch.zeros(3)}, "data": "", "batch": 1}},
    "none or an odd random": {name: value for name, value in STATE.items() if name != "random"},
}


@pytest.mark.parametrize("found", WRONG)
def test_a_state_that_is_none(tmp_path, found, caplog):
    folder = tmp_path / "run"
    folder.mkdir()
    save_state(folder, WRONG[found])
    message = rf"state\.pth\.tar: expected the state of a training run, found {found}"
    with pytest.raises(CheckpointError, match=message), held_run_folder(run_in(tmp_path), CPU):
        pass
    shutil.copy(folder / "state.pth.tar", folder / "wrong")
    save_state(folder, STATE | {"step": 7})
    shutil.move(folder / "state.pth.tar", folder / "state-before.pth.tar")
    shutil.move(folder / "wrong", folder / "state.pth.tar")
    with held_run_folder(run_in(tmp_path), CPU) as (_, state):
        assert state["step"] == 7, "the one before is taken"
    assert "expected the state of a training run" in caplog.text


@pytest.mark.stress
def test_a_killed_run_holds_its_folder_no_longer_though_its_workers_live(words, tmp_path):
    for _ in range(5):
        process = start([*words, "--experiment", "cut", "-j", "2", "--epochs", "50"])
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline = time.monotonic() + 120
        while len(workers := children.read_text().split()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with held_run_folder(run_in(tmp_path, "cut"), CPU):
            alive = [pid for pid in workers if Path(f"/proc/{pid}").exists()]
        shutil.rmtree(tmp_path / "cut")
        assert alive, "no worker outlived it: this shows nothing"


@pytest.mark.stress
def test_two_processes_in_one_folder_twenty_times_leave_one_exact_run(words, tmp_path):
    finish(words, "--experiment", "whole", "-j", "0")
    refused = 0
    for attempt in range(20):
        both = [start(words, "--experiment", "cut", "-j", str(attempt % 3)) for _ in range(2)]
        if attempt % 4 == 3:
            time.sleep(0.2 * (attempt % 5))
            os.kill(both[0].pid, signal.SIGKILL)
        for process in both:
            process.join(180)
        codes = [process.exitcode for process in both]
        assert set(codes) <= {0, 2, -signal.SIGKILL}, codes
        refused += codes.count(2)
        finish(words, "--experiment", "cut", "-j", "0")
        same_runs(tmp_path / "whole", tmp_path / "cut")
        assert not [path.name for path in (tmp_path / "cut").iterdir() if path.name.startswith(".")]
        shutil.rmtree(tmp_path / "cut")
    assert refused >= 10, "they never met"
