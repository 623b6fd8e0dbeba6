"""Atomic writes: what stands in a folder after success, failure and a kill."""

from __future__ import annotations

import os
import resource
import stat
from pathlib import Path

import pytest
import torch

from ns_easyrobust.errors import OutputError
from ns_easyrobust.utils import remove_temporaries, save_tensors, write_atomically, write_text


def test_a_write_leaves_one_file_with_the_usual_permissions(tmp_path):
    (tmp_path / "plain").touch()
    write_text(tmp_path / "a.txt", "ä")
    assert (tmp_path / "a.txt").read_bytes() == "ä".encode()
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "plain"}


def test_a_full_memory_is_not_called_a_full_disk(tmp_path):
    def write(temporary: Path) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        write_atomically(tmp_path / "state.pth.tar", write)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("torch")])
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path, error):
    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OutputError):
        write_atomically(tmp_path / "a.txt", fail)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]


def test_temporaries_are_new_files_whose_names_differ(tmp_path):
    seen = []

    def write(temporary: Path) -> None:
        assert temporary.exists()
        assert not temporary.is_symlink()
        seen.append(temporary.name)

    for _ in range(2):
        write_atomically(tmp_path / "a.txt", write)
    assert len(set(seen)) == 2
    assert all(len(name) > len(".a.txt.tmp") + 30 for name in seen)


def test_a_link_at_the_path_is_replaced_not_followed(tmp_path):
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "a.txt").symlink_to(tmp_path / "theirs")
    write_text(tmp_path / "a.txt", "ours")
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert not (tmp_path / "a.txt").is_symlink()


def test_the_longest_name_that_a_file_system_takes_can_be_written(tmp_path):
    for name in ("n" * 255, "ä" * 127):
        write_text(tmp_path / name, "")
        assert (tmp_path / name).exists()
    with pytest.raises(OutputError, match="name too long"):
        write_text(tmp_path / ("n" * 256), "")


def test_equal_contents_give_equal_files_whatever_they_are_called(tmp_path):
    contents = [{"state_dict": {"a": torch.arange(5.0), "b": torch.ones(2, 3).t()}, "epoch": 1} for _ in range(2)]
    written = [save_tensors(tmp_path / name, content) for name, content in zip("ab", contents, strict=True)]
    assert written[0].read_bytes() == written[1].read_bytes()
    assert torch.equal(torch.load(written[0], weights_only=True)["state_dict"]["b"], torch.ones(3, 2))


def test_only_temporaries_are_removed(tmp_path):
    left = [f".last.pth.tar.{'0f' * 16}.tmp", ".last.pth.tar.4711.tmp"]  # of this version, of an earlier one
    kept = ["last.pth.tar", ".last.pth.tar.tmp", ".mine.tmp", "notes.4711.tmp", ".other.4711.tmp"]
    for name in (*left, *kept):
        (tmp_path / name).touch()
    (tmp_path / ".last.pth.tar.12.tmp").mkdir()
    remove_temporaries(tmp_path, "last.pth.tar.*")
    assert {path.name for path in tmp_path.iterdir()} == {*kept, ".last.pth.tar.12.tmp"}
    remove_temporaries(tmp_path)
    assert ".other.4711.tmp" not in os.listdir(tmp_path)
    assert ".mine.tmp" in os.listdir(tmp_path)
    remove_temporaries(tmp_path / "none")


def test_the_systems_reason_is_told_when_torch_cannot_write(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"x\.pth: File too large"):
            save_tensors(tmp_path / "x.pth", {"weight": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
