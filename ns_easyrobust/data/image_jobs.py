"""Work on many images in several processes, each with one thread."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import Any

from ..utils import cv2


def results_of(jobs: Any, workers: int) -> Generator[Any, None, None]:
    """The items of a dataset as they are done, in any order.

    Args:
        jobs: has a length and items, each of which is made in one of the processes.
        workers: processes; 0: this one. They end with the iteration, also where an error or Ctrl-C ends it, in the
            midst of an item.
    """
    from torch.utils.data import DataLoader

    items = iter(
        DataLoader(
            jobs,
            batch_size=None,
            num_workers=min(workers, len(jobs)),
            in_order=False,
            worker_init_fn=_use_one_thread,
            collate_fn=_as_it_is,
        )
    )
    try:
        yield from items
    finally:
        for worker in getattr(items, "_workers", ()):
            worker.terminate()  # or PyTorch waits 5 seconds for each to end its item
        for worker in getattr(items, "_workers", ()):
            worker.join(5)  # so that none writes any more


def _as_it_is(item: Any) -> Any:
    return item


def _use_one_thread(worker: int) -> None:
    cv2.setNumThreads(1)


@contextlib.contextmanager
def one_opencv_thread() -> Iterator[None]:
    """OpenCV's threads are useless where there are processes, and do not live through a fork."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
