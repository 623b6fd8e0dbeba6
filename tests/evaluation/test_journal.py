"""The journal: what a killed run leaves, and what others wrote among it."""

from __future__ import annotations

import json
import os
import random

import pytest
from helpers.hostile_images import mutated
from hypothesis import given, settings
from hypothesis import strategies as st

from ns_easyrobust.errors import OutputError
from ns_easyrobust.evaluation.journal import Journal

BATCH = ([1, 0, 1], [0.0, 0.1, 1 / 3])


def test_batches_come_back_exactly_and_by_measurement(tmp_path):
    journal = Journal(tmp_path / "j")
    journal.add("a", 0, *BATCH)
    journal.add("a", 2, [1], [2.0])
    journal.add("b", 1, [0], [0.0])
    assert Journal(tmp_path / "j").read() == {"a": {0: BATCH, 2: ([1], [2.0])}, "b": {1: ([0], [0.0])}}
    journal.drop("a")
    assert Journal(tmp_path / "j").read() == {"b": {1: ([0], [0.0])}}
    journal.drop("b")
    assert not (tmp_path / "j").exists()
    assert Journal(tmp_path / "j").read() == {}


def test_torn_and_foreign_lines_are_skipped_and_written_after(tmp_path):
    journal = Journal(tmp_path)
    journal.add("a", 0, *BATCH)
    (file,) = tmp_path.glob("a.*")
    file.write_bytes(file.read_bytes() + b'5\n{"x": 1}\nnull\n\xff\xfe\n[1, [1, 0], [0.0')
    later = Journal(tmp_path)
    later.add("a", 3, [0], [0.5])
    assert Journal(tmp_path).read() == {"a": {0: BATCH, 3: ([0], [0.5])}}


def test_a_folder_that_another_process_removes_is_made_again(tmp_path, monkeypatch):
    made, real = [], os.mkdir

    def removed_at_once(path, *rest):
        real(path, *rest)
        if len(made) < 3:
            made.append(path)
            os.rmdir(path)

    monkeypatch.setattr(os, "mkdir", removed_at_once)
    Journal(tmp_path / "j").add("a", 0, *BATCH)
    assert len(made) == 3
    assert Journal(tmp_path / "j").read() == {"a": {0: BATCH}}


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "j").write_text("a file")
    with pytest.raises(OutputError, match="cannot write"):
        Journal(tmp_path / "j").add("a", 0, *BATCH)


def line(number, right, l2) -> str:
    return json.dumps([number, right, l2])


FOREIGN = [
    line(7, [1, 2], [0.0, 0.0]),
    line(7, [1, float("nan")], [0.0, 0.0]),
    line(7, [True, False], [0.0, 0.0]),
    line(7, [1.0, 0.0], [0.0, 0.0]),
    line(7, [1, -1], [0.0, 0.0]),
    line(7, ["1", "0"], [0.0, 0.0]),
    line(7, [[1], [0]], [0.0, 0.0]),
    line(7, [1, None], [0.0, 0.0]),
    line(7, [1, 0], [0.0]),
    line(7, [], []),
    line(7, "10", "00"),
    line(7, {"a": 1}, {"a": 1.0}),
    line(7, [1], [float("nan")]),
    line(7, [1], [float("inf")]),
    line(7, [1], [-0.5]),
    line(7, [1], [1e300]),
    line(7, [1], ["0.5"]),
    line(7.5, [1], [0.0]),
    line(True, [1], [0.0]),
    line("7", [1], [0.0]),
    line(-7, [1], [0.0]),
    "[" + "7" * 400 + ", [1], [0.0]]",
    "[7, [" + "1" * 5000 + "], [0.0]]",
    "[7, [1], [" + "1" * 400 + "]]",
    "[7, [1], [0.0], 4]",
    "[" * 5000 + "]" * 5000,
    "{}",
    "7",
]


@pytest.mark.parametrize("foreign", FOREIGN)
def test_what_is_no_batch_is_skipped(tmp_path, foreign):
    (tmp_path / "a.0.jsonl").write_text(f"{line(0, *BATCH)}\n{foreign}\n{line(2, [1], [2.0])}\n")
    assert Journal(tmp_path).read() == {"a": {0: BATCH, 2: ([1], [2.0])}}


def test_what_is_no_file_is_skipped(tmp_path, caplog):
    Journal(tmp_path).add("a", 0, *BATCH)
    os.mkfifo(tmp_path / "a.1.jsonl")
    (tmp_path / "a.2.jsonl").mkdir()
    (tmp_path / "a.3.jsonl").symlink_to("nowhere")
    (tmp_path / "\udcff.0.jsonl").write_text(line(1, [0], [0.0]))
    assert Journal(tmp_path).read() == {"a": {0: BATCH}, "\udcff": {1: ([0], [0.0])}}
    assert caplog.text.count("left out of the unfinished work") == 3
    os.mkfifo(tmp_path / "b.0.jsonl")
    with pytest.raises(OutputError, match=r"b\.0\.jsonl: expected a regular file or none, found a"):
        Journal(tmp_path).add("b", 0, *BATCH)
    Journal(tmp_path).drop("a")
    assert sorted(path.name for path in tmp_path.glob("a.*")) == ["a.2.jsonl"]


def test_two_processes_write_whole_lines(tmp_path):
    """The second's lines neither tear the first's nor are torn; each line is one write of the system."""
    one, other = Journal(tmp_path), Journal(tmp_path)
    batch = ([1, 0] * 3000, [0.123456789] * 6000)  # longer than any buffer
    one.add("a", 0, *batch)
    other.add("a", 1, *batch)
    one.add("a", 2, *batch)
    other.add("a", 0, *batch)
    assert Journal(tmp_path).read() == {"a": dict.fromkeys((0, 1, 2), batch)}


@settings(derandomize=True, deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), content=st.one_of(st.none(), st.binary(max_size=50)))
def test_any_bytes_are_batches_or_skipped(tmp_path_factory, seed, content):
    folder = tmp_path_factory.getbasetemp() / "journal"
    folder.mkdir(exist_ok=True)
    good = "".join(f"{line(number, *BATCH)}\n" for number in range(3)).encode()
    (folder / "a.0.jsonl").write_bytes(mutated(random.Random(seed), good) if content is None else content)
    for right, l2 in Journal(folder).read().get("a", {}).values():
        assert set(right) <= {0, 1}
        assert len(right) == len(l2) == sum(0 <= norm < 1e6 for norm in l2)
