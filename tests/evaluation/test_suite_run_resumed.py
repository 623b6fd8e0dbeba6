"""A benchmark that is killed with kill -9 and run again leaves the records of one that was not."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ns_easyrobust.cli import main as cli
from ns_easyrobust.evaluation.per_image import load_correctness
from ns_easyrobust.evaluation.results_file import read_records
from ns_easyrobust.models.checkpoint_save import save_model


@pytest.fixture
def command(trained, digits_dir, tmp_path, monkeypatch):
    """The benchmark of a small checkpoint, quick and slow suites, as words without --records."""
    monkeypatch.chdir(tmp_path)
    save_model(trained, tmp_path / "c.pth.tar")
    words = ["benchmark", "--model", "vit_micro_patch8_32", "--num-classes", "10", "--ckpt-path", "c.pth.tar"]
    words += ["--data-dir", str(digits_dir), "--device", "cpu", "-b", "32", "--suite", "val", "fgsm", "pgd", "cw", "c"]
    return [*words, "--subset", "first:200", "--cw-radius", "0.5", "--label", "it"]


def start(words: list[str]) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=lambda: os._exit(cli.main(words)))
    process.start()
    return process


def finish(words: list[str]) -> None:
    process = start(words)
    process.join(120)
    assert process.exitcode == 0


def kill(process: multiprocessing.Process) -> bool:
    """Whether it was still running."""
    alive = process.is_alive()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return alive


def compare(one: Path, other: Path) -> None:
    first, second = (
        [replace(record, created="2026-01-01T00:00:00+00:00") for record in read_records(path)] for path in (one, other)
    )
    assert first == second
    for mine, theirs in zip(read_records(one), read_records(other), strict=True):
        if mine.right_path is not None:
            assert np.array_equal(load_correctness(mine.right_path)[1], load_correctness(theirs.right_path)[1])
    assert not list(one.parent.glob("*.unfinished"))


@pytest.mark.stress  # by default tests/evaluation/test_recorder_revision.py goes on from a killed run
def test_killed_in_the_middle_of_an_attack(command, tmp_path):
    (tmp_path / "whole").mkdir()
    finish([*command, "-j", "0", "--records", "whole/r.jsonl"])
    path = tmp_path / "cut" / "r.jsonl"
    process = start([*command, "-j", "0", "--records", "cut/r.jsonl"])
    deadline = time.monotonic() + 60
    while not (path.exists() and b'"pgd"' in path.read_bytes() and path.with_name("r.jsonl.unfinished").exists()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert kill(process)  # at CW
    before = read_records(path)
    finish([*command, "-j", "0", "--records", "cut/r.jsonl"])
    assert read_records(path)[: len(before)] == before  # nothing that was finished is measured again
    compare(path, tmp_path / "whole" / "r.jsonl")


@pytest.mark.stress
def test_killed_at_ten_random_moments(command, tmp_path):
    began = time.monotonic()
    (tmp_path / "whole").mkdir()
    finish([*command, "--subset", "all", "-j", "2", "--records", "whole/r.jsonl"])
    lasts = time.monotonic() - began
    generator, path = random.Random(0), tmp_path / "cut" / "r.jsonl"
    killed = 0
    for _ in range(10):
        process = start([*command, "--subset", "all", "-j", "2", "--records", "cut/r.jsonl"])
        time.sleep(generator.uniform(0.03, 0.15) * lasts)
        killed += kill(process)
    assert killed >= 7
    finish([*command, "--subset", "all", "-j", "2", "--records", "cut/r.jsonl"])
    compare(path, tmp_path / "whole" / "r.jsonl")
