from __future__ import annotations

import logging

from ns_easyrobust.utils import progress
from ns_easyrobust.utils.progress import Interval, Progress


def test_lines_where_there_is_no_terminal(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    bars = Progress(2, shown=True)  # pytest's stderr is no terminal
    bars.start("cw", 10)
    for _ in range(5):
        clock[0] += 25
        bars.batch()
    bars.next_part()
    bars.close()
    assert [record.getMessage() for record in caplog.records] == ["cw: batch 3 of 10, 175 s to go"]


def test_an_interval_passes_once(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    interval, passed = Interval(30), []
    for seconds in (0, 29, 1, 1, 28, 1, 300, 1):
        clock[0] += seconds
        passed.append(interval.has_passed())
    assert passed == [False, False, True, False, False, True, True, False]


def test_other_ranks_say_nothing(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    bars = Progress(1, shown=False)
    bars.start("cw", 10)
    clock[0] += 1000
    bars.batch()
    bars.close()
    assert not caplog.records
