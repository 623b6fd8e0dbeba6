"""Locks against real processes: held, released by the kernel, not inherited."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import socket
import time

import pytest

from ns_easyrobust.errors import OutputError
from ns_easyrobust.utils import FileLock


def forked(work) -> int:
    """A forked process that does ``work`` and ends with 0, or with 1 if it raises."""
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def take(path) -> None:
    with FileLock(path, "this run"):
        pass


def hold_for_ever(path, ready: int) -> None:
    with FileLock(path, "this run"):
        os.write(ready, b"!")
        time.sleep(60)


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".lock"


def test_the_second_process_is_told_who_is_first(path):
    with FileLock(path, "this run"):
        assert exit_code(forked(lambda: take(path))) == 1
        with pytest.raises(OutputError) as caught:
            take(path)
        assert f"process {os.getpid()} on {socket.gethostname()}" in caught.value.line
        assert str(path.parent) in caught.value.line
        assert "this run" in caught.value.line
    assert not path.exists()
    assert exit_code(forked(lambda: take(path))) == 0


def test_a_full_disk_leaves_no_lock(path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(OutputError, match="No space left"):
            take(path)
    assert not path.exists()
    assert exit_code(forked(lambda: take(path))) == 0
    take(path)


def test_kill_9_releases_it_although_a_fork_of_its_holder_lives_on(path):
    reader, writer = os.pipe()

    def hold_and_fork() -> None:
        with FileLock(path, "this run"):
            worker = os.fork()
            if worker:
                os.write(writer, b"%d\n" % worker)
            time.sleep(60)

    holder = forked(hold_and_fork)
    worker = int(os.read(reader, 20))
    with pytest.raises(OutputError):
        take(path)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    try:
        os.kill(worker, 0)  # it is still there
        take(path)
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_forked_child_that_ends_leaves_the_lock_with_its_parent(path):
    lock = FileLock(path, "this run")
    with lock:
        assert exit_code(forked(lambda: lock.__exit__(None, None, None))) == 0
        assert path.exists()
        assert exit_code(forked(lambda: take(path))) == 1


def test_who_waits_gets_it_when_its_holder_dies(path):
    reader, writer = os.pipe()
    holder = forked(lambda: hold_for_ever(path, writer))
    os.read(reader, 1)

    def wait() -> None:
        with FileLock(path, "this run", wait=True):
            assert f"process {os.getpid()} " in path.read_text()

    waiting = forked(wait)
    time.sleep(0.05)
    assert os.waitpid(waiting, os.WNOHANG)[0] == 0
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    assert exit_code(waiting) == 0


def test_what_a_dead_process_left_in_the_file_does_not_matter(path):
    path.write_text("process 1 on elsewhere\n")
    with FileLock(path, "this run"):
        assert path.read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"


def test_without_locks_it_warns_and_goes_on(path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with caplog.at_level(logging.WARNING), FileLock(path, "this run"):
        pass
    assert "no locks" in caplog.text
    assert not path.exists()


def test_a_link_laid_in_its_way_is_not_followed(path, tmp_path):
    (tmp_path / "theirs").write_text("theirs")
    path.symlink_to(tmp_path / "theirs")
    with pytest.raises(OutputError):
        take(path)
    assert (tmp_path / "theirs").read_text() == "theirs"
