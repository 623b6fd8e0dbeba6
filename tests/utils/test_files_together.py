"""Several files written as one, what must not be replaced, and reading that cannot hang."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from ns_easyrobust.errors import OutputError
from ns_easyrobust.utils import read_bounded, write_atomically, write_text, write_together


def writes_of(folder: Path, text: str):
    return {folder / name: lambda temporary: temporary.write_text(text) for name in ("a", "b", "c")}


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("full_at", [1, 2, 3])
def test_a_disk_that_fills_up_leaves_the_old_files_and_nothing_else(tmp_path, monkeypatch, full_at):
    write_together(writes_of(tmp_path, "old"))
    synced = []

    def fsync(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == full_at:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutputError, match=f"cannot write .*/{'abc'[full_at - 1]}: No space left on device"):
        write_together(writes_of(tmp_path, "new"))
    assert contents(tmp_path) == dict.fromkeys("abc", "old")
    monkeypatch.undo()
    assert write_together(writes_of(tmp_path, "new")) == [tmp_path / name for name in "abc"]
    assert contents(tmp_path) == dict.fromkeys("abc", "new")


def test_a_folder_in_the_last_ones_place_stops_all(tmp_path):
    (tmp_path / "c").mkdir()
    with pytest.raises(OutputError, match=r"/c: expected a regular file or none, found a folder"):
        write_together(writes_of(tmp_path, "new"))
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_ctrl_c_waits_until_all_files_are_in_place(tmp_path, monkeypatch):
    write_together(writes_of(tmp_path, "old"))
    replace = os.replace

    def interrupted(source, target):
        if Path(target).name == "b":
            signal.raise_signal(signal.SIGINT)
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_together(writes_of(tmp_path, "new"))
    assert contents(tmp_path) == dict.fromkeys("abc", "new")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_device_or_pipe_is_neither_replaced_nor_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for name, kind in (("pipe", "pipe"), ("null", "device")):
        with pytest.raises(OutputError, match=f"expected a regular file or none, found a {kind}"):
            write_text(tmp_path / name, "x")
        with pytest.raises(OSError, match=f"a {kind}"):
            read_bounded(tmp_path / name, 10)  # a pipe without a writer would block
    assert sorted(path.name for path in tmp_path.iterdir()) == ["null", "pipe"]


def test_reading_is_bounded(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bounded(tmp_path / "file", 5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_bounded(tmp_path / "file", 4)


def test_what_utf_8_cannot_hold_is_escaped(tmp_path):
    assert write_text(tmp_path / "a", "ü \udcff").read_bytes() == b"\xc3\xbc \\udcff"


def test_an_error_of_torch_without_a_text_is_one_line(tmp_path):
    def fail(path: Path) -> None:
        raise RuntimeError

    with pytest.raises(OutputError, match="cannot write"):
        write_atomically(tmp_path / "a", fail)
