"""SIGTERM, which a scheduler sends before it takes a machine away: finish the step, save, and end."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from ..errors import TrainingError


class Stopped(TrainingError):
    """The run was asked to end and can go on later."""

    exit_code = 128 + signal.SIGTERM


class Stop:
    """While entered, SIGTERM sets ``asked`` instead of ending the process; off the main thread nothing is caught.

    Attributes:
        asked: whether this process got the signal.
        agreed: whether any rank did, set after each step.
        saved: the step of the newest state.
    """

    def __init__(self) -> None:
        self.asked = self.agreed = False
        self.saved = -1
        self._before: Any = None

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def error(self, folder: Path) -> Stopped:
        """What to raise."""
        return Stopped(
            f"stopped by SIGTERM: the state of step {self.saved} is saved in {folder}. "
            f"The same command with --experiment {folder.name} --resume auto goes on."
        )
