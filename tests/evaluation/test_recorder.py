from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from ns_easyrobust.attacks.base import Attack
from ns_easyrobust.attacks.gradient import CW
from ns_easyrobust.errors import DataError
from ns_easyrobust.evaluation.recorder import PerImageResult, Recorder
from ns_easyrobust.evaluation.records import Record
from ns_easyrobust.evaluation.results_file import append_record, read_records


def recorder(path: Path) -> Recorder:
    return Recorder(path, {"label": "m", "model": "m"})


def add(to: Recorder, cell: int, value: float) -> None:
    to.add_value("suite", "metric", value, protocol={"cell": cell}, n=1)


def values(path: Path) -> list[tuple[int, float]]:
    return [(record.protocol["cell"], record.value) for record in read_records(path)]


def test_a_line_is_parsed_once(tmp_path, monkeypatch):
    parsed, from_json = [], Record.from_json
    monkeypatch.setattr(Record, "from_json", lambda line: parsed.append(line) or from_json(line))
    kept = recorder(tmp_path / "r.jsonl")
    for cell in range(20):
        add(kept, cell, 1.0)
        add(replace(kept, seed=None), cell, 1.0)  # a copy sees that it is there
    assert len(parsed) == len(set(parsed)) == len(read_records(kept.path)) == 20


def test_what_another_process_adds_is_noticed(tmp_path):
    kept, other = recorder(tmp_path / "r.jsonl"), recorder(tmp_path / "r.jsonl")
    add(kept, 0, 1.0)
    add(other, 0, 2.0)
    add(kept, 0, 1.0)  # no longer the newest of its cell
    add(other, 1, 3.0)
    add(kept, 1, 3.0)  # there already
    assert values(kept.path) == [(0, 1.0), (0, 2.0), (0, 1.0), (1, 3.0)]
    kept.path.write_bytes(kept.path.read_bytes() + b"no record\n")
    with pytest.raises(DataError, match="line 5: expected a result record, found no JSON"):
        add(kept, 2, 1.0)


def cut(path: Path, removed: int) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - removed])


FOREIGN_CHANGES: list[Callable[[Path], object]] = [
    lambda path: append_record(path, recorder(path).record("suite", "metric", 1.0, protocol={"cell": 0}, n=1)),
    lambda path: cut(path, 1),  # the last record lacks its newline
    lambda path: cut(path, 30),  # a torn record
    lambda path: path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:])),
    lambda path: path.write_bytes(path.read_bytes().replace(b'"value": 1.0', b'"value": 0.0')),
    Path.unlink,
]


@pytest.mark.parametrize("seed", range(4))
def test_a_recorder_that_stays_writes_what_new_ones_write(tmp_path, seed):
    """Whatever happens to the file in between; a new recorder has nothing in memory."""
    generator = random.Random(seed)
    stays, new = recorder(tmp_path / "stays.jsonl"), tmp_path / "new.jsonl"
    happened = set()
    for _ in range(60):
        cell, value = generator.randrange(3), float(generator.randrange(2))
        add(stays, cell, value)
        add(recorder(new), cell, value)
        assert values(stays.path) == values(new)
        if generator.random() < 0.5 and new.stat().st_size > 30:
            change = generator.choice(FOREIGN_CHANGES)
            happened.add(change)
            for path in (stays.path, new):
                change(path)
    assert len(happened) == len(FOREIGN_CHANGES)


@dataclass(frozen=True)
class Budgeted(Attack):
    name = "budgeted"
    verdict_settings = ("budget",)


@pytest.mark.parametrize(
    ("attack", "together"), [(Budgeted(), {0.5, 1.0}), (CW(), {0.5}), (None, {0.5})], ids=["its own", "another", "none"]
)
def test_the_attack_says_which_results_are_of_one_run(tmp_path, attack, together):
    """Verdicts within another budget are renewed with the reused one, results of other steps are not."""
    kept = recorder(tmp_path / "r.jsonl")
    judged = PerImageResult(("a.png", "b.png"), torch.tensor([True, False]), torch.zeros(2), "task")
    runs = [{"batch_size": 8, "steps": 3}, {"batch_size": 16, "steps": 3}, {"batch_size": 8, "steps": 4}]
    for run in runs:
        for budget in (1.0, 0.5):
            kept.add("budgeted", run | {"budget": budget}, judged)
    before = read_records(kept.path)
    (reused,) = [record for record in before if record.protocol == runs[0] | {"budget": 0.5}]
    kept.renew(reused, attack)
    renewed = read_records(kept.path)[len(before) :]
    assert {record.protocol["budget"] for record in renewed} == together
    assert all(record.protocol.items() >= runs[0].items() for record in renewed)
    kept.renew(reused, attack)
    assert len(read_records(kept.path)) == len(before) + len(renewed), "they are the newest already"
