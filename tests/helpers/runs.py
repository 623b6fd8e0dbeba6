"""Runs of ``train`` in processes of their own, and whether two of them are the same."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import torch

from ns_easyrobust.cli import main as cli
from ns_easyrobust.models.safe_load import read_file

# The least that is a state.
AT = {"step": 0, "epoch": 0, "epoch_step": 0, "clean": 0.0, "companion": 0.0, "best": -1.0, "summary": ""}
STATE = {
    **{name: {} for name in ("state_dict", "optimizer", "scaler", "scheduler")},
    **{"identity": {"args": {}, "data": "", "batch": 1}, "at": AT, "random": []},
    **{"state_dict_ema": None, "augmentation": None},
}


def start(words: list[str], *more: str) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=lambda: os._exit(cli.main([*words, *more])))
    process.start()
    return process


def finish(words: list[str], *more: str) -> None:
    process = start(words, *more)
    process.join(180)
    assert process.exitcode == 0


def state_of(folder: Path):
    return read_file(folder / "state.pth.tar", "state")[1]


def equal(one, other, where: str = "") -> None:
    """Bit for bit, wherever a tensor may sit."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            if key not in ("resume", "experiment", "workers", "recovery_interval"):
                equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            equal(a, b, f"{where}[{index}]")
    else:
        assert one == other, where


def same_runs(one: Path, other: Path) -> None:
    """Weights, average, optimizer, schedule, noise, history, random numbers and tables."""
    equal(state_of(one), state_of(other))
    for name in ("last.pth.tar", "model_best.pth.tar"):
        equal(read_file(one / name, name)[1], read_file(other / name, name)[1], name)
    for name in ("summary.csv", "noise.csv"):
        assert (one / name).read_text() == (other / name).read_text()
    equal(torch.load(one / "noise.pt", weights_only=True), torch.load(other / "noise.pt", weights_only=True))
