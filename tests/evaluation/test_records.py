"""The result record, its file under kills and concurrency, and the per-image bits."""

from __future__ import annotations

import json
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.records import one_record

from ns_easyrobust.errors import OptionError
from ns_easyrobust.evaluation import records
from ns_easyrobust.evaluation.records import Record, collect_versions, describe_machine
from ns_easyrobust.evaluation.results_file import append_record, read_records


def test_record_equals_itself_after_the_file(tmp_path: Path) -> None:
    protocol = {
        "epsilon": np.float32(0.5),
        "mean": (0.5, 0.25),
        "steps": np.int64(3),
        "masked": np.bool_(True),
    }
    record = one_record(
        label="DAT ü | ε", protocol=protocol, checkpoint=tmp_path / "a.pth", seed=3, ema=True, machine="CPU"
    )
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
        one_record(**changes)


def test_what_makes_a_measurement_another_one() -> None:
    same = [one_record(), one_record(seed=9), one_record(value=50.0, correct=4), one_record(machine="GPU")]
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
    assert len({one_record().key, *(one_record(**change).key for change in changes)}) == 1 + len(changes)
    hashed = {"checkpoint_sha256": "abc"}
    assert one_record(checkpoint="a", **hashed).key == one_record(checkpoint="moved", **hashed).key


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
