"""Costs of pieces of work, each in a process of its own, measured in turns: ratios then stand on noisy machines."""

from __future__ import annotations

import contextlib
import io
import logging
import multiprocessing
import pickle
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn


class Cost(NamedTuple):
    """Wall time in seconds, peak resident memory in MiB, and what the work returned: of several runs a list."""

    seconds: float
    memory: float
    result: Any = None


Work = Callable[[nn.Module], object]


def measured(work: Work, make_model: Callable[[], nn.Module]) -> Cost:
    """Run ``work`` on a fresh model in a forked process, its output swallowed.

    The model is made in there: OpenMP's threads do not live through a fork.
    """

    def child(pipe: Any) -> None:
        logging.disable(logging.CRITICAL)
        with contextlib.redirect_stdout(io.StringIO()):
            model = make_model()
            began = time.perf_counter()
            result = work(model)
            seconds = time.perf_counter() - began
        cost = Cost(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, result)
        pipe.send_bytes(pickle.dumps(cost))  # send() would leave a tensor's memory in this process

    here, there = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=child, args=(there,))
    process.start()
    there.close()
    try:
        cost: Cost = pickle.loads(here.recv_bytes())
    except EOFError:
        sys.exit("a measured process ended early; its error stands above")
    process.join()
    return cost


def in_turns(works: dict[str, Work], make_model: Callable[[], nn.Module], repeats: int) -> dict[str, Cost]:
    """The median time of each, measured A B A B ..., the largest peak, and all results."""
    costs: dict[str, list[Cost]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            costs[name].append(measured(work, make_model))
    return {
        name: Cost(statistics.median(c.seconds for c in found), max(c.memory for c in found), [c.result for c in found])
        for name, found in costs.items()
    }
