"""The results file under kills and concurrency."""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path

import pytest
from helpers.records import one_record

from ns_easyrobust.errors import DataError, OutputError
from ns_easyrobust.evaluation import results_file
from ns_easyrobust.evaluation.results_file import append_record, latest, read_records


def test_kill_at_any_byte_costs_the_torn_line_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "r.jsonl"
    first, second, third = one_record(), one_record(label="ü"), one_record(label="third")
    append_record(path, first)
    whole = path.stat().st_size
    append_record(path, second)
    content = path.read_bytes()
    for cut in range(whole + 1, len(content)):
        caplog.clear()
        path.write_bytes(content[:cut])
        complete = cut == len(content) - 1  # all but the line's end
        kept = [first, second] if complete else [first]
        assert read_records(path) == kept, cut
        assert path.read_bytes() == content[:cut], "reading writes nothing"
        assert ("skipped line 2" in caplog.text) is not complete
        append_record(path, third)
        assert read_records(path) == [*kept, third], cut
    assert path.read_bytes().startswith(content[:whole])


def test_power_cut_leaves_zeros(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "r.jsonl"
    append_record(path, one_record())
    with open(path, "ab") as stream:
        stream.write(b'{"suite": "im' + b"\0" * 300)
    assert read_records(path) == [one_record()]
    with caplog.at_level(logging.WARNING):
        append_record(path, one_record(label="b"))
    assert "cut off a torn last line of 313 bytes" in caplog.text
    assert read_records(path) == [one_record(), one_record(label="b")]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (one_record().to_json()[:-9], "no JSON"),
        ("[1, 2]", "JSON, but no object"),
        (one_record().to_json().replace('"n": 8', '"n": 0'), "whole number >= 1"),
        (one_record().to_json().replace('"label"', '"lable"'), "unknown field 'lable'"),
        (
            json.dumps({k: v for k, v in json.loads(one_record().to_json()).items() if k != "versions"}),
            "'versions'",
        ),
        ("\udcff", "no JSON"),
    ],
)
def test_a_corrupt_line_is_named(tmp_path: Path, line: str, found: str) -> None:
    path = tmp_path / "r.jsonl"
    text = f"{one_record().to_json()}\n{line}\n{one_record().to_json()}\n".encode("utf-8", "surrogateescape")
    path.write_bytes(text)
    with pytest.raises(DataError, match=rf"r\.jsonl, line 2: expected a result record, found .*{found}"):
        read_records(path)
    append_record(path, one_record(label="b"))
    assert path.read_bytes().startswith(text), "a result is added, and nothing lost"


def test_a_file_that_is_not_ours_is_never_cut(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("my notes, no line end")
    with pytest.raises(DataError, match="line 1"):
        read_records(notes)
    append_record(notes, one_record())
    assert notes.read_text() == f"my notes, no line end\n{one_record().to_json()}\n"


def test_reading_skips_blank_lines_and_refuses_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(f"\n{one_record().to_json()}\n\n")
    assert read_records(path) == [one_record()]
    with pytest.raises(DataError, match=r"cannot read .*none\.jsonl: expected a results file"):
        read_records(tmp_path / "none.jsonl")
    with pytest.raises(OutputError, match="cannot write"):
        append_record(tmp_path / "no" / "r.jsonl", one_record())


def test_append_reaches_the_disk_and_only_on_rank_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "r.jsonl", []
    monkeypatch.setattr(results_file.os, "fsync", lambda _: synced.append(path.read_bytes()))
    append_record(path, one_record())
    assert synced == [f"{one_record().to_json()}\n".encode()], "the whole line is out when fsync is called"
    monkeypatch.setattr(results_file, "rank", lambda: 1)
    append_record(path, one_record(label="b"))
    assert len(read_records(path)) == 1


def test_an_append_waits_for_another_one(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    path = tmp_path / "r.jsonl"
    line = one_record().to_json().encode() + b"\n"
    thread = threading.Thread(target=append_record, args=(path, one_record(label="b")))
    with open(path, "ab", buffering=0) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(line[:50])  # it would be cut off as torn
        thread.start()
        thread.join(0.2)
        other.write(line[50:])
    thread.join()
    assert read_records(path) == [one_record(), one_record(label="b")]


def test_newest_measurement_wins_and_first_place_stays() -> None:
    old = one_record(value=50.0, correct=4, created="2026-01-01T00:00:00+00:00", seed=1)
    new = one_record(value=75.0, correct=6, created="2026-01-02T00:00:00+00:00", seed=2)
    other = one_record(suite="imagenet-a")
    assert latest([old, other, new]) == [new, other]
    assert latest([new, other, old]) == [new, other]
    assert latest([old, one_record(value=25.0, correct=2, created=old.created)])[0].value == 25.0


def test_what_is_no_regular_file_is_neither_read_nor_written(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, kind in (
        (tmp_path / "fifo", "a pipe"),
        (Path("/dev/full"), "a device or socket"),
        (tmp_path, "a folder"),
    ):
        with pytest.raises(DataError, match=f"expected a results file .*found: {kind}"):
            read_records(path)
        with pytest.raises(OutputError, match=f"cannot write {path}: expected a regular file or none, found {kind}"):
            append_record(path, one_record())
