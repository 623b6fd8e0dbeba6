"""Progress of an evaluation: bars on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import logging
import time

from tqdm.auto import tqdm

_logger = logging.getLogger(__name__)
_LINE_EVERY = 60.0  # seconds, where there is no terminal


class Progress:
    """A bar for the parts, and one for the batches of the part at hand, with their times to go."""

    def __init__(self, parts: int, shown: bool) -> None:
        self.shown, self.began, self.said, self.done = shown, time.monotonic(), time.monotonic(), 0
        self.total, self.title = 0, ""
        off = None if shown else True
        self.parts = tqdm(total=parts, desc="suites", disable=off if parts > 1 else True, leave=False, unit="part")
        self.batches = tqdm(disable=True)
        self.lines = shown and tqdm(disable=off, leave=False).disable

    def start(self, title: str, batches: int) -> None:
        """A part with so many batches for this process."""
        self.batches.close()
        self.began, self.done, self.total, self.title = time.monotonic(), 0, batches, title
        off = None if self.shown else True
        self.batches = tqdm(total=batches, desc=title, disable=off, leave=False, position=1, unit="batch")

    def batch(self) -> None:
        """A batch is through."""
        self.done += 1
        self.batches.update()
        if self.lines and time.monotonic() - self.said > _LINE_EVERY:
            self.said = time.monotonic()
            to_go = (self.said - self.began) / self.done * (self.total - self.done)
            _logger.info("%s: batch %d of %d, %.0f s to go", self.title, self.done, self.total, to_go)

    def next_part(self) -> None:
        """A part is through."""
        self.parts.update()

    def close(self) -> None:
        self.batches.close()
        self.parts.close()
