"""Progress of an evaluation: bars on a terminal, occasional log lines elsewhere."""

from __future__ import annotations

import logging
import time

from tqdm.auto import tqdm

_logger = logging.getLogger(__name__)
_LOG_INTERVAL = 60.0  # seconds between log lines


class Interval:
    """Whether it is time for another line of a log.

    Args:
        seconds: between two lines.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.said = seconds, time.monotonic()

    def has_passed(self) -> bool:
        """Whether the time has passed; the next interval then begins."""
        now = time.monotonic()
        if now - self.said < self.seconds:
            return False
        self.said = now
        return True


class Progress:
    """A bar for the tasks and one for the batches of the current task, with the remaining time.

    Args:
        parts: number of tasks.
        shown: whether this process shows its progress.
    """

    def __init__(self, parts: int, shown: bool) -> None:
        self.shown, self.began, self.said, self.done = shown, time.monotonic(), time.monotonic(), 0
        self.total, self.title = 0, ""
        disable = None if shown else True  # None: tqdm shows the bar only on a terminal
        self.parts = tqdm(total=parts, desc="suites", disable=disable if parts > 1 else True, leave=False, unit="part")
        self.batches = tqdm(disable=True)
        self.lines = shown and tqdm(disable=disable, leave=False).disable

    def start(self, title: str, batches: int) -> None:
        """Start a task with ``batches`` batches for this process."""
        self.batches.close()
        self.began, self.done, self.total, self.title = time.monotonic(), 0, batches, title
        disable = None if self.shown else True
        self.batches = tqdm(total=batches, desc=title, disable=disable, leave=False, position=1, unit="batch")

    def batch(self) -> None:
        """Count a finished batch."""
        self.done += 1
        self.batches.update()
        if self.lines and time.monotonic() - self.said > _LOG_INTERVAL:
            self.said = time.monotonic()
            seconds_left = (self.said - self.began) / self.done * (self.total - self.done)
            _logger.info("%s: batch %d of %d, %.0f s to go", self.title, self.done, self.total, seconds_left)

    def next_part(self) -> None:
        """Count a finished task."""
        self.parts.update()

    def close(self) -> None:
        self.batches.close()
        self.parts.close()
