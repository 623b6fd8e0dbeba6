"""The result record, its file under kills and concurrency, and the per-image bits."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.hostile_checkpoints import flipped, hostile_files
from helpers.records import make

from ns_easyrobust.errors import DataError, OptionError
from ns_easyrobust.evaluation import per_image as bits
from ns_easyrobust.evaluation.per_image import images_digest, load_correctness, save_correctness
from ns_easyrobust.evaluation.results_file import append_record, read_records


def test_right_is_one_bit_an_image(tmp_path: Path) -> None:
    paths = [f"n{index:02d}/ü {index}.JPEG" for index in range(19)]
    right = np.random.default_rng(0).random(19) < 0.5
    name = save_correctness(tmp_path, "DAT/ü: fgsm", paths, right)
    assert re.fullmatch(r"right/DAT_fgsm-[0-9a-f]{12}\.npz", name)
    assert [file.name for file in (tmp_path / "right").iterdir()] == [Path(name).name]
    with np.load(tmp_path / name, allow_pickle=False) as stored:
        expected = bytes(
            sum(int(bit) << (7 - place) for place, bit in enumerate(right[start : start + 8]))
            for start in range(0, 19, 8)
        )
        assert stored["right"].tobytes() == expected
    read_paths, read_right = load_correctness(tmp_path / name)
    assert (read_paths, read_right.dtype) == (paths, bool)
    np.testing.assert_array_equal(read_right, right)
    assert save_correctness(tmp_path, "DAT/ü: fgsm", paths, torch.from_numpy(right)) == name


def test_other_bits_never_overwrite_earlier_ones(tmp_path: Path) -> None:
    paths = ["a/1.png", "a/2.png"]
    one = save_correctness(tmp_path, "run", paths, np.array([True, False]))
    other = save_correctness(tmp_path, "run", paths, np.array([False, False]))
    assert one != other
    assert load_correctness(tmp_path / one)[1].tolist() == [True, False]
    append_record(tmp_path / "r.jsonl", make(right=one))
    (record,) = read_records(tmp_path / "r.jsonl")
    assert record.right_path is not None
    assert load_correctness(record.right_path) == (paths, pytest.approx([True, False]))
    assert make().right_path is None


@pytest.mark.parametrize(
    ("paths", "right", "message"),
    [
        (["a", "b"], np.array([True]), "expected 2 booleans"),
        (["a"], np.array([1]), "found int64"),
        (["a", "a"], np.array([True, True]), "found 1 repeated"),
        (["/data/a"], np.array([True]), "relative to the data folder, found '/data/a'"),
        ([], np.array([], bool), "found none"),
    ],
)
def test_bits_that_fit_no_images_are_refused(tmp_path: Path, paths: list[str], right: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        save_correctness(tmp_path, "k", paths, right)
    assert not list(tmp_path.iterdir())


def test_damaged_bits_are_refused(tmp_path: Path) -> None:
    name = save_correctness(tmp_path, "k", ["a", "b"], np.array([True, False]))
    damaged = tmp_path / "d.npz"
    for content in (b"", b"text", (tmp_path / name).read_bytes()[:-30]):
        damaged.write_bytes(content)
        with pytest.raises(DataError, match="per-image bits"):
            load_correctness(damaged)
    np.savez(damaged, other=np.zeros(2))
    with pytest.raises(DataError, match="per-image bits"):
        load_correctness(damaged)
    np.save(tmp_path / "x.npy", np.zeros(2))
    for path in (tmp_path / "x.npy", tmp_path / "none.npz"):
        with pytest.raises(DataError, match="Measure that record again"):
            load_correctness(path)


def test_images_digest_is_of_the_set_of_names() -> None:
    assert images_digest(["b/2", "a/1"]) == hashlib.sha256(b"a/1\0b/2").hexdigest()
    assert images_digest(["a/1", "b/2"]) == images_digest(["b/2", "a/1"])
    assert len({images_digest(names) for names in (["a"], ["b"], ["a", "b"], ["ab"])}) == 4
    with pytest.raises(OptionError, match="repeated"):
        images_digest(["a", "a"])


def test_only_rank_0_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bits, "rank", lambda: 1)
    assert not (tmp_path / save_correctness(tmp_path, "k", ["a"], np.array([True]))).exists()


@pytest.mark.parametrize(
    "change",
    [
        {"n": np.int64(10**12)},  # unpackbits would fill the memory with zeros
        {"n": np.int64(-1)},
        {"n": np.int64(3)},
        {"n": np.array([2])},
        {"right": np.zeros(1, np.float32)},
        {"right": np.zeros(2, np.uint8)},
        {"paths": np.frombuffer(b"a", np.uint8)},
    ],
)
def test_bits_and_paths_that_do_not_fit_each_other_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    good = {"paths": np.frombuffer(b"a\0b", np.uint8), "right": np.zeros(1, np.uint8), "n": np.int64(2)}
    np.savez(tmp_path / "a.npz", **good)
    assert load_correctness(tmp_path / "a.npz")[0] == ["a", "b"]
    np.savez(tmp_path / "a.npz", **(good | change))
    with pytest.raises(DataError, match="per-image bits"):
        load_correctness(tmp_path / "a.npz")


@pytest.mark.parametrize("name", sorted(hostile_files()))
def test_hostile_files_are_no_bits(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.npz").write_bytes(hostile_files()[name])
    with pytest.raises(DataError, match="per-image bits"):
        load_correctness(tmp_path / "a.npz")


def test_a_flipped_bit_is_seen(tmp_path: Path) -> None:
    path = tmp_path / save_correctness(tmp_path, "k", ["a", "b"], np.array([True, False]))
    path.write_bytes(flipped(path.read_bytes(), "right.npy"))
    with pytest.raises(DataError, match="per-image bits"):
        load_correctness(path)


def test_what_killed_runs_left_goes_with_the_next_result(tmp_path: Path) -> None:
    (tmp_path / "right").mkdir()
    for name in (f".x.npz.{'0' * 32}.tmp", ".x.npz.4711.tmp", "other.tmp", "x.npz"):
        (tmp_path / "right" / name).touch()
    name = save_correctness(tmp_path, "mine", ["a", "b"], np.array([True, False]))
    left = {path.name for path in (tmp_path / "right").iterdir()}
    assert left == {"other.tmp", "x.npz", Path(name).name}


def test_without_locks_nothing_that_another_process_may_be_writing_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    written_elsewhere = tmp_path / "right" / f".x.npz.{'0' * 32}.tmp"
    written_elsewhere.parent.mkdir()
    written_elsewhere.touch()
    name = save_correctness(tmp_path, "mine", ["a", "b"], np.array([True, False]))
    assert (tmp_path / name).exists()
    assert written_elsewhere.exists()
