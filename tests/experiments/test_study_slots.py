"""Where the processes of a study run: every device alike, and no more threads than cores."""

from __future__ import annotations

import pytest
import torch

from ns_easyrobust.errors import OptionError
from ns_easyrobust.experiments import study_slots
from ns_easyrobust.experiments.study_slots import find_slots


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Two GPUs, which are a machine's third and sixth, and 16 cores."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(study_slots, "default_workers", lambda most: 16)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def seen(slots):
    keys = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    return [(slot.name, slot.device, *(slot.environment[key] for key in keys)) for slot in slots]


@pytest.mark.parametrize(
    ("devices", "processes", "expected"),
    [
        ([], 1, [("cuda:0", "cuda", "2", "8"), ("cuda:1", "cuda", "5", "8")]),
        (
            [],
            2,
            [(f"cuda:{gpu}, {number}", "cuda", "25"[gpu], "4") for number in (0, 1) for gpu in (0, 1)],
        ),
        (["cuda:1"], 12, [(f"cuda:1, {number}", "cuda", "5", "1") for number in range(12)]),
        (["cpu"], 1, [("cpu", "cpu", "", "16")]),
        (["cpu"], 3, [(f"cpu, {number}", "cpu", "", "5") for number in range(3)]),
        (["cpu"], 40, [(f"cpu, {number}", "cpu", "", "1") for number in range(40)]),
    ],
)
def test_so_many_processes_on_each_device_share_the_cores(devices, processes, expected):
    assert seen(find_slots(devices, processes)) == expected


def test_threads_that_are_set_stay_and_all_gpus_may_be_visible(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert seen(find_slots(["cuda:1"], 1)) == [("cuda:1", "cuda", "1", "7")]


@pytest.mark.parametrize(
    ("devices", "line"),
    [(["cuda:2"], "expected some of cpu, cuda:0, cuda:1, found cuda:2"), (["cuda:0"] * 2, "Use --processes")],
)
def test_a_device_that_is_not_there_or_there_twice_is_refused(devices, line):
    with pytest.raises(OptionError, match=line):
        find_slots(devices, 1)
