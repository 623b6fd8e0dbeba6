"""Carries out the runs of a study: each command a process, one at a time in each slot."""

from __future__ import annotations

import ctypes
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..errors import NotRunError
from ..utils import FileLock, Interval, os_errors_as_output_errors
from .study_plan import LAST, Run
from .study_record import RunRecord, record_of
from .study_slots import Slot

_logger = logging.getLogger(__name__)
_POLL = 0.2  # seconds
_SAVE = 20.0  # seconds between two writings of a training's seconds, which a kill would lose
_TO_END = 120.0  # seconds that a command has to save its state after SIGTERM
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl
_TAIL = 2**16  # bytes of a log in which the line is looked for that says why a command has failed


def carry_out(runs: Sequence[Run], slots: Sequence[Slot]) -> dict[str, str]:
    """Train and evaluate what is not done yet; after a failure the method's other runs are not begun.

    However this ends, no process that it started goes on: trainings save their state, from which the next call goes on.

    Returns:
        Why a run failed, in a line, by its name.
    """
    for run in runs:
        _await_others(run)
    waiting = deque(_Task(run, record, parts) for run in runs if (parts := (record := _begun(run)).lacks(run)))
    failed: dict[str, str] = {}
    active: dict[str, _Process] = {}
    free, done = list(slots), 0
    total = sum(len(task.parts) for task in waiting)
    with tqdm(total=total, desc="study", unit="part", disable=None if total else True) as bar:
        try:
            while waiting or active:
                while free and waiting:
                    slot = free.pop(0)
                    active[slot.name] = _Process(waiting.popleft(), slot)
                time.sleep(_POLL)
                for process in list(active.values()):
                    if not process.has_ended():
                        continue
                    del active[process.slot.name]
                    free.append(process.slot)
                    bar.update()
                    done += 1
                    _logger.info("%d of %d trainings and evaluations ended", done, total)
                    task = process.task
                    if (reason := process.finish()) is not None:
                        failed.setdefault(task.run.name, reason)
                    if reason is not None and process.process.returncode != NotRunError.exit_code:
                        _drop(waiting, task.run)
                    elif task.parts:
                        waiting.appendleft(task)
        finally:
            _end(list(active.values()))
    return failed


@dataclass
class _Task:
    """A run with what is still to be tried of it: ``train``, and the labels of evaluations."""

    run: Run
    record: RunRecord
    parts: list[str]


def _await_others(run: Run) -> None:
    """Wait for a training that an earlier study, killed since, has left behind."""
    if (run.folder / ".lock").exists():
        _logger.info("%s: waiting for the process that trains in %s", run.name, run.folder)
        with FileLock(run.folder / ".lock", "this run", wait=True):
            pass


def _begun(run: Run) -> RunRecord:
    """The run's record; a new one, in its folder, where it has not begun."""
    record = record_of(run)
    if record is None or not record.has_begun(run):
        with os_errors_as_output_errors(run.folder):
            run.folder.mkdir(parents=True, exist_ok=True)
        forwards = 0.0 if run.cost is None else run.cost.of(run.updates)
        record = RunRecord(dict(run.flags), run.updates, forwards)
        record.write(run)
    return record


def _drop(waiting: deque[_Task], failed: Run) -> None:
    """Take the other runs of the failed run's method out of those that wait."""
    others = [task for task in waiting if task.run.label == failed.label]
    for task in others:
        waiting.remove(task)
    if others:
        _logger.warning("%s: not begun, as %s failed", ", ".join(task.run.name for task in others), failed.name)


class _Process:
    """A command under way: the first part of a task, which is taken off it."""

    def __init__(self, task: _Task, slot: Slot) -> None:
        self.task, self.slot, self.part = task, slot, task.parts.pop(0)
        run, self.run, self.record = task.run, task.run, task.record
        step = run.train if self.part == "train" and run.train is not None else run.measuring[self.part]
        self.step, self.log = step, run.folder / f"{step.verb}.log"
        self.name = run.name if step.verb == "train" else self.part
        self.began = time.time()
        self.counted = 0.0  # seconds of this process that the record has
        self.save_time = Interval(_SAVE)
        words = [*step.words, f"--device={slot.device}"]
        with os_errors_as_output_errors(self.log), open(self.log, "ab") as log:
            log.write(
                f"$ ns-easyrobust {step.verb} {shlex.join([*step.shown, words[-1]])}\n".encode(
                    "utf-8", "surrogateescape"
                )
            )
            log.flush()
            self.said_from = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ns_easyrobust", step.verb, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(slot),
                start_new_session=True,  # Ctrl-C reaches this process alone, which lets trainings save their state
                preexec_fn=_end_with_parent(),
            )
        _logger.info("%s: %s on %s; log: %s", self.name, step.verb, slot.name, self.log)

    def has_ended(self) -> bool:
        """Whether the process has; from time to time the seconds until now are saved."""
        ended = self.process.poll() is not None
        if self.step.verb == "train" and (ended or self.save_time.has_passed()):
            self._count()
        return ended

    def _count(self) -> None:
        """Add to the record the seconds since the training began, when it wrote its flags: the model was built then."""
        with suppress(FileNotFoundError):
            began = (self.run.folder / "args.yaml").stat().st_mtime
            if began >= self.began:
                seconds = max(0.0, time.time() - began)
                self.record.seconds += seconds - self.counted
                self.counted = seconds
                self.record.write(self.run)

    def finish(self) -> str | None:
        """Keep in the record that the command has ended; returns why it failed, if it did."""
        code, seconds = self.process.returncode, time.time() - self.began
        if code != 0:
            reason = _reason(self.log, self.said_from, self.step.verb, code)
            _logger.error("%s: %s failed: %s", self.name, self.step.verb, reason)
            return reason
        if self.step.verb == "train":
            self.record.trained, self.record.measured = True, []
        else:
            self.record.measured.append(self.step.shown)
        self.record.write(self.run)
        if self.part in self.record.lacks(self.run):
            return f"{self.step.verb} ended well, but left no {LAST if self.step.verb == 'train' else 'records'}"
        _logger.info("%s: %s done in %.0f s", self.name, self.step.verb, seconds)
        return None


def _environment(slot: Slot) -> dict[str, str]:
    """Of a command: the slot's, with this very package in front of any other."""
    package = str(Path(__file__).parents[2])
    paths = filter(None, (package, os.environ.get("PYTHONPATH")))
    return {**os.environ, **slot.environment, "PYTHONPATH": os.pathsep.join(paths)}


def _end_with_parent() -> Any:
    """What a child does first: ask the kernel for SIGTERM when this process dies, ``kill -9`` included.

    None where the system has no such thing: a process that is left over then goes on, and the next study waits for it.
    """
    if not sys.platform.startswith("linux"):
        return None
    libc, parent = ctypes.CDLL(None), os.getpid()

    def ask() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        libc.prctl(_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != parent:  # it has died before
            os._exit(128 + signal.SIGTERM)

    return ask


def _end(processes: Sequence[_Process]) -> None:
    """End what still runs: by SIGTERM, after which trainings save their state, or by force if that takes too long."""
    if processes:
        _logger.info("ending %s", ", ".join(process.run.name for process in processes))
    try:
        for each in processes:
            each.process.terminate()
        deadline = time.monotonic() + _TO_END
        for each in processes:
            each.process.wait(max(0.0, deadline - time.monotonic()))
            each.has_ended()
    except subprocess.TimeoutExpired:
        pass
    finally:
        for each in processes:
            if each.process.poll() is None:
                each.process.kill()
                each.process.wait()


def _reason(log: Path, start: int, verb: str, code: int) -> str:
    """The line with which a command said why it ended, at the end of its log, which for it begins at ``start``."""
    with open(log, "rb") as stream:
        stream.seek(max(start, log.stat().st_size - _TAIL))
        lines = stream.read().decode("utf-8", "replace").splitlines()
    said = [line for line in lines if line.startswith(f"ns-easyrobust {verb}: ")]
    if code < 0 and not said:
        return f"ended by {signal.Signals(-code).name}"
    last = next((line for line in reversed(lines) if line.strip()), f"exit code {code}")
    return said[-1].partition(": ")[2] if said else last.strip()
