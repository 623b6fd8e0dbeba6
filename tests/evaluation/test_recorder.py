from __future__ import annotations

import os

import pytest

from ns_easyrobust.errors import OutputError
from ns_easyrobust.evaluation.recorder import Journal

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
