"""The result record, its file under kills and concurrency, and the per-image bits."""

from __future__ import annotations

import json
import logging
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ns_easyrobust.errors import DataError, OptionError, OutputError
from ns_easyrobust.evaluation import records
from ns_easyrobust.evaluation.records import (
    Record,
    append_record,
    collect_versions,
    describe_machine,
    latest,
    read_records,
)


def make(**changes: Any) -> Record:
    fields: dict[str, Any] = {
        "suite": "imagenet-val",
        "metric": "top1",
        "value": 75.0,
        "n": 8,
        "correct": 6,
        "label": "DAT",
        "model": "vit_tiny",
        "protocol": {"resize": 256, "crop": 224, "interpolation": "bilinear"},
        "versions": {"python": "3.11.7"},
        "created": "2026-01-31T12:00:00+00:00",
    }
    return Record(**{**fields, **changes})


def test_record_equals_itself_after_the_file(tmp_path: Path) -> None:
    protocol = {
        "epsilon": np.float32(0.5),
        "mean": (0.5, 0.25),
        "steps": np.int64(3),
        "masked": np.bool_(True),
    }
    record = make(label="DAT ü | ε", protocol=protocol, checkpoint=tmp_path / "a.pth", seed=3, ema=True, machine="CPU")
    append_record(tmp_path / "r.jsonl", record)
    (read,) = read_records(tmp_path / "r.jsonl")
    assert read == record
    assert read.protocol == {"epsilon": 0.5, "mean": [0.5, 0.25], "steps": 3, "masked": True}
    assert (type(read.value), type(read.n)) == (float, int)
    assert (read.checkpoint, read.folder) == (str(tmp_path / "a.pth"), tmp_path)
    assert "folder" not in json.loads((tmp_path / "r.jsonl").read_text())


def test_defaults_say_when_and_with_what() -> None:
    record = Record(suite="s", metric="m", value=1, n=1, label="l", model="m", protocol={})
    assert record.versions == collect_versions()
    assert abs(time.time() - record.time.timestamp()) < 60


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": float("nan")}, "value: expected a finite number, found nan"),
        ({"value": True}, "value"),
        ({"n": 0}, "n: expected a whole number >= 1, found 0"),
        ({"n": 8.0}, "n: expected a whole number"),
        ({"correct": 9, "value": 112.5}, "correct: expected at most n=8, found 9"),
        ({"correct": -1}, "correct"),
        ({"value": 76.0}, r"value: expected 100 \* correct / n = 75.0000, found 76.0"),
        ({"value": 0.75}, "value"),
        ({"unit": ""}, "unit: expected '%'"),
        ({"label": ""}, "label: expected one line of text"),
        ({"label": "two\nlines"}, "label"),
        ({"suite": None}, "suite"),
        ({"ema": 1}, "ema"),
        ({"seed": -1}, "seed"),
        ({"protocol": {"dtype": torch.float32}}, r"protocol\['dtype'\]: expected a plain value"),
        ({"protocol": {"mean": [0.5, float("inf")]}}, r"protocol\['mean'\]\[1\]"),
        ({"protocol": [1]}, "protocol"),
        ({"created": "yesterday"}, "created: expected a UTC time"),
        ({"created": "2026-01-31T12:00:00+02:00"}, "created"),
        ({"created": "2026-01-31T12:00:00"}, "created"),
    ],
)
def test_impossible_records_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make(**changes)


def test_kill_at_any_byte_costs_the_torn_line_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "r.jsonl"
    first, second, third = make(), make(label="ü"), make(label="third")
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
    append_record(path, make())
    with open(path, "ab") as stream:
        stream.write(b'{"suite": "im' + b"\0" * 300)
    assert read_records(path) == [make()]
    with caplog.at_level(logging.WARNING):
        append_record(path, make(label="b"))
    assert "cut off a torn last line of 313 bytes" in caplog.text
    assert read_records(path) == [make(), make(label="b")]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (make().to_json()[:-9], "no JSON"),
        ("[1, 2]", "JSON, but no object"),
        (make().to_json().replace('"n": 8', '"n": 0'), "whole number >= 1"),
        (make().to_json().replace('"label"', '"lable"'), "unknown field 'lable'"),
        (
            json.dumps({k: v for k, v in json.loads(make().to_json()).items() if k != "versions"}),
            "'versions'",
        ),
        ("\udcff", "no JSON"),
    ],
)
def test_a_corrupt_line_is_named(tmp_path: Path, line: str, found: str) -> None:
    path = tmp_path / "r.jsonl"
    text = f"{make().to_json()}\n{line}\n{make().to_json()}\n".encode("utf-8", "surrogateescape")
    path.write_bytes(text)
    with pytest.raises(DataError, match=rf"r\.jsonl, line 2: expected a result record, found .*{found}"):
        read_records(path)
    append_record(path, make(label="b"))
    assert path.read_bytes().startswith(text), "a result is added, and nothing lost"


def test_a_file_that_is_not_ours_is_never_cut(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("my notes, no line end")
    with pytest.raises(DataError, match="line 1"):
        read_records(notes)
    append_record(notes, make())
    assert notes.read_text() == f"my notes, no line end\n{make().to_json()}\n"


def test_reading_skips_blank_lines_and_refuses_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(f"\n{make().to_json()}\n\n")
    assert read_records(path) == [make()]
    with pytest.raises(DataError, match=r"cannot read .*none\.jsonl: expected a results file"):
        read_records(tmp_path / "none.jsonl")
    with pytest.raises(OutputError, match="cannot write"):
        append_record(tmp_path / "no" / "r.jsonl", make())


def test_append_reaches_the_disk_and_only_on_rank_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "r.jsonl", []
    monkeypatch.setattr(records.os, "fsync", lambda _: synced.append(path.read_bytes()))
    append_record(path, make())
    assert synced == [f"{make().to_json()}\n".encode()], "the whole line is out when fsync is called"
    monkeypatch.setattr(records, "rank", lambda: 1)
    append_record(path, make(label="b"))
    assert len(read_records(path)) == 1


def test_an_append_waits_for_another_one(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    path = tmp_path / "r.jsonl"
    line = make().to_json().encode() + b"\n"
    thread = threading.Thread(target=append_record, args=(path, make(label="b")))
    with open(path, "ab", buffering=0) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(line[:50])  # it would be cut off as torn
        thread.start()
        thread.join(0.2)
        other.write(line[50:])
    thread.join()
    assert read_records(path) == [make(), make(label="b")]


def test_newest_measurement_wins_and_first_place_stays() -> None:
    old = make(value=50.0, correct=4, created="2026-01-01T00:00:00+00:00", seed=1)
    new = make(value=75.0, correct=6, created="2026-01-02T00:00:00+00:00", seed=2)
    other = make(suite="imagenet-a")
    assert latest([old, other, new]) == [new, other]
    assert latest([new, other, old]) == [new, other]
    assert latest([old, make(value=25.0, correct=2, created=old.created)])[0].value == 25.0


def test_what_makes_a_measurement_another_one() -> None:
    same = [make(), make(seed=9), make(value=50.0, correct=4), make(machine="GPU")]
    assert len({record.key for record in same}) == 1
    changes: list[dict[str, Any]] = [
        {"label": "b"},
        {"model": "b"},
        {"checkpoint": "b.pth"},
        {"checkpoint_sha256": "b"},
        {"ema": True},
        {"weights": "b"},
        {"suite": "b"},
        {"metric": "b"},
        {"protocol": {"resize": 248}},
    ]
    assert len({make().key, *(make(**change).key for change in changes)}) == 1 + len(changes)
    hashed = {"checkpoint_sha256": "abc"}
    assert make(checkpoint="a", **hashed).key == make(checkpoint="moved", **hashed).key


def test_versions_are_those_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = collect_versions()
    assert versions["numpy"] == np.__version__
    assert set(versions) == {
        "python", "torch", "torchvision", "timm", "torchattacks", "easyrobust", "numpy", "ns_easyrobust"
    }  # fmt: skip

    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    assert collect_versions()["torch"] == "absent"


def test_machine_is_named_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "logical cores" in describe_machine("cpu")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    monkeypatch.setattr(records, "world_size", lambda: 2)
    assert describe_machine(torch.device("cuda:1")) == "2 x GPU of cuda:1"
