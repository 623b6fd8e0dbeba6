"""Ctrl-C and SIGTERM at moments when Python or PyTorch would lose them, and what data workers make of them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

import ns_easyrobust.cli.interrupts as module
from ns_easyrobust.cli import main as cli
from ns_easyrobust.cli.interrupts import Interrupted, Interrupts, Terminated


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(module, "_AGAIN_AFTER", 0.02)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] + [sys.unraisablehook]
    yield
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] + [sys.unraisablehook]
    assert after == before


def receive(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)
    time.sleep(5)


class Loader:
    """Lost in its destructor, as in that of PyTorch's loaders, which waits for its workers."""

    def __del__(self):
        receive()


def in_a_bare_except():
    with contextlib.suppress(BaseException):  # as modules have at their import
        receive()


def in_a_destructor():
    Loader()


@pytest.mark.parametrize("lost", [in_a_bare_except, in_a_destructor])
def test_an_interrupt_that_is_lost_is_raised_again(lost, capsys):
    began = time.monotonic()
    with pytest.raises(Interrupted), Interrupts():
        lost()
        time.sleep(5)
    assert time.monotonic() - began < 2
    assert "ignored" not in capsys.readouterr().err


class HalfMade:
    """As PyTorch's loader, interrupted while it starts its workers."""

    def __init__(self):
        receive()
        self.workers = []

    def __del__(self):
        self.workers.clear()


def test_what_was_interrupted_half_made_says_nothing_when_it_is_destroyed(monkeypatch, capsys):
    """pytest would turn what its hook is told into an error."""
    monkeypatch.setattr("ns_easyrobust.cli.nullspace.run", lambda args: HalfMade())
    assert cli.main(["nullspace", "x.pth"]) == 130
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_interrupt_is_not_raised_again_while_cleaning_up_after_it():
    cleaned = []
    with pytest.raises(Interrupted), Interrupts():
        try:
            receive()
        finally:
            time.sleep(0.15)
            cleaned.append(True)
    assert cleaned
    time.sleep(0.05)  # nor afterwards


def test_a_script_that_goes_on_after_an_interrupt_may(capsys):
    with Interrupts(insist=False):
        in_a_bare_except()
        time.sleep(0.1)


def test_sigterm_is_another_ending():
    with pytest.raises(Terminated), Interrupts():
        receive(signal.SIGTERM)


def test_signals_that_are_ignored_or_handled_stay_so():
    heard = []
    before = signal.signal(signal.SIGINT, signal.SIG_IGN), signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        with Interrupts():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
    assert heard


def test_outside_the_main_thread_nothing_is_changed():
    ended = []

    def work():
        with Interrupts():
            ended.append(signal.getsignal(signal.SIGINT))

    with Interrupts() as outer:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert ended == [outer._raise]


def test_workers_leave_ctrl_c_to_their_parent_and_end_by_sigterm(capfd, monkeypatch):
    """Sent to the whole group, also in the middle of a fork."""
    monkeypatch.setattr(module, "_AGAIN_AFTER", 0.5)  # time to start the last worker

    def work():
        signal.raise_signal(signal.SIGINT)
        time.sleep(30)

    workers = [multiprocessing.get_context("fork").Process(target=work) for _ in range(3)]
    early = []
    os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.SIGINT) if early else None)
    try:
        with pytest.raises(Interrupted), Interrupts():
            for worker in workers:
                early += [1] * (worker is workers[-1])
                worker.start()
                early.clear()
            time.sleep(5)
    finally:
        early.clear()  # what is to be done at a fork stays so for the whole process
    for worker in workers:
        assert worker.is_alive()
        worker.terminate()
        worker.join(10)
        assert worker.exitcode == -signal.SIGTERM
    assert capfd.readouterr().err == ""


FAILURES = {
    "out/x.csv: expected to read or write it, found: No space left": OSError(
        28, "No space left on device", "out/x.csv"
    ),
    "a file or stream: expected": OSError(5, "Input/output error"),
    "memory is full": MemoryError(),
    "memory is full: expected more": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    "nested less deeply": RecursionError("maximum recursion depth exceeded"),
    r"data worker 123: .*killed by the system (Killed)": RuntimeError(
        "DataLoader worker (pid 123) is killed by signal: Killed. "
    ),
    "data workers: expected to open files, found too many": RuntimeError(
        "Too many open files. Communication with the workers is no longer possible."
    ),
    "data worker 1, 2: expected it to read images, found it gone": RuntimeError(
        "DataLoader worker (pid(s) 1, 2) exited unexpectedly"
    ),
}


@pytest.mark.parametrize("line", FAILURES)
def test_what_the_system_fails_at_is_one_line(line, monkeypatch, capsys):
    def fails(args):
        raise FAILURES[line]

    monkeypatch.setattr("ns_easyrobust.cli.nullspace.run", fails)
    assert cli.main(["nullspace", "x.pth"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert all(part in said for part in line.split(".*"))


def test_a_fault_of_our_own_keeps_its_traceback(monkeypatch):
    def fails(args):
        raise RuntimeError("a bug")

    monkeypatch.setattr("ns_easyrobust.cli.nullspace.run", fails)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["nullspace", "x.pth"])


@pytest.mark.parametrize(("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (15, 143, "SIGTERM")])
def test_a_signal_that_breaks_something_else_is_still_that_signal(number, code, said, monkeypatch, capsys):
    """Interrupted in the middle, numpy's import fails by a RecursionError."""

    def breaks(args):
        try:
            receive(number)
        except BaseException:
            raise ImportError("cannot import name") from None

    monkeypatch.setattr("ns_easyrobust.cli.nullspace.run", breaks)
    assert cli.main(["nullspace", "x.pth"]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_terminal_that_cannot_print_a_label(monkeypatch, capfd):
    def prints(args):
        print("ViT-ü \udcff")

    monkeypatch.setattr("ns_easyrobust.cli.nullspace.run", prints)
    monkeypatch.setattr(sys, "stdout", open(1, "w", encoding="ascii", closefd=False))  # noqa: SIM115
    assert cli.main(["nullspace", "x.pth"]) == 0
    assert capfd.readouterr().out == "ViT-\\xfc \\udcff\n"


def test_streams_that_are_closed_lead_nowhere(monkeypatch):
    """As by 2>&-; progress bars and logs write there all the same."""

    def prints(args):
        print("a table")
        sys.stderr.write("a bar")

    monkeypatch.setattr("ns_easyrobust.cli.nullspace.run", prints)
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert cli.main(["nullspace", "x.pth"]) == 0
    assert sys.stdin.read() == ""


def test_a_full_disk_behind_stdout(monkeypatch, capsys):
    def prints(args):
        print("a table")

    monkeypatch.setattr("ns_easyrobust.cli.nullspace.run", prints)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main(["nullspace", "x.pth"]) == 2
        monkeypatch.undo()
    assert "No space left on device" in capsys.readouterr().err


@pytest.mark.stress
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_at_thirty_moments_of_a_run_with_workers(digits_dir, tmp_path, number, code):
    """Sent to the whole group, as a terminal does; one line at the end, no traceback, no process left."""
    words = ["--model", "vit_micro_patch8_32", "--num-classes", "10", "--data-dir", str(digits_dir), "-j", "2"]
    words += ["--device", "cpu", "-b", "32", "--epochs", "30", "--epoch-steps", "6", "--output", str(tmp_path)]
    draw = random.Random(1)
    for attempt in range(30):
        process = subprocess.Popen(
            [sys.executable, "-m", "ns_easyrobust", "train", *words, "--experiment", str(attempt)],
            stderr=subprocess.PIPE, start_new_session=True, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"}, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        time.sleep(draw.uniform(0.3, 7))
        os.killpg(process.pid, number)
        _, said = process.communicate(timeout=30)
        assert process.returncode == code, said[-2000:]
        assert said.splitlines()[-1].startswith("ns-easyrobust train: "), said[-2000:]
        assert "Traceback" not in said
        assert "ignored" not in said
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
