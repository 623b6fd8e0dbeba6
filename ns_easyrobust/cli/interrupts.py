"""Ctrl-C and SIGTERM: at any moment they end a verb with one line and its exit code, and data workers say nothing."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import traceback
from types import FrameType, TracebackType
from typing import Any

_AGAIN_AFTER = 1.0  # seconds


class Interrupted(KeyboardInterrupt):
    """Ctrl-C. Not a plain KeyboardInterrupt, after which Python kills itself where one has left an ``exec`` before."""

    exit_code = 128 + signal.SIGINT


class Terminated(BaseException):
    """SIGTERM, where no run catches it to save its state first."""

    exit_code = 128 + signal.SIGTERM


_ENDINGS: dict[signal.Signals, type[Interrupted | Terminated]] = {
    signal.SIGINT: Interrupted,
    signal.SIGTERM: Terminated,
}
_DEFAULTS: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


class Interrupts:
    """Context manager: SIGINT and SIGTERM raise :class:`Interrupted` and :class:`Terminated` in the main thread.

    What is raised may be lost: Python drops it in a destructor, such as that of a data loader, and PyTorch's C++ code
    where it looks an attribute up. So it is raised again each second until the body is left, except while the body
    cleans up after it. Signals that are ignored (as under ``nohup``) or that the caller handles stay as they are.

    Args:
        insist: whether to raise again. A script of EasyRobust's catches Ctrl-C and goes on to its end on purpose.

    Attributes:
        received: what was raised last; None if there was no signal.
    """

    def __init__(self, insist: bool = True) -> None:
        self.insist = insist
        self.received: type[Interrupted | Terminated] | None = None
        self._handled: dict[signal.Signals, Any] = {}  # the handlers before
        self._timer: threading.Timer | None = None
        self._is_timers = False  # whether the signal being handled comes from the timer

    def __enter__(self) -> Interrupts:
        global _active
        if threading.current_thread() is threading.main_thread() and _active is None:
            self._hook, sys.unraisablehook = sys.unraisablehook, self._on_unraisable
            for number, default in _DEFAULTS.items():
                if signal.getsignal(number) == default:
                    self._handled[number] = signal.signal(number, self._raise)
            _active = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _active
        if _active is self:
            if self.received is not None:
                _let_go(error)
            _active = None
            if self._timer is not None:
                self._timer.cancel()
            sys.unraisablehook = self._hook
            for number, handler in self._handled.items():
                signal.signal(number, handler)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.received = _ENDINGS[signal.Signals(number)]
        is_again, self._is_timers = self._is_timers, False
        if self.insist:
            self._timer = threading.Timer(_AGAIN_AFTER, self._send_again, (number,))
            self._timer.daemon = True
            self._timer.start()
        if not (is_again and _is_handled(sys.exc_info()[1])):
            raise self.received

    def _send_again(self, number: int) -> None:
        if _active is self:
            self._is_timers = True
            signal.pthread_kill(threading.main_thread().ident or 0, number)  # also ends a wait in the main thread

    def _on_unraisable(self, unraisable: Any) -> None:
        if self.received is None:  # afterwards, what was interrupted half made fails in its destructor
            self._hook(unraisable)

    def before_fork(self) -> None:
        """Hold signals back: a child that one finds half made would print where it was."""
        signal.pthread_sigmask(signal.SIG_BLOCK, self._handled)

    def after_fork_in_parent(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._handled)

    def after_fork_in_child(self) -> None:
        """In a data worker: Ctrl-C reaches it too, but it is its parent that ends it.

        SIGTERM stays held back where a run saves its state first: its workers take it from their parent alone.
        """
        sys.unraisablehook, sys.excepthook = self._hook, _unless_parent_is_gone
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if signal.getsignal(signal.SIGTERM) == self._raise:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._handled)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _unless_parent_is_gone(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A worker's ``sys.excepthook``: its thread that hands images over says where it was when its parent ended."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _let_go(error: BaseException | None) -> None:
    """Destroy what the interrupted functions held, such as loaders, while what fails in it is not printed."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
    gc.collect()


def _is_handled(error: BaseException | None) -> bool:
    """Whether ``error``, which is being handled, is or comes from an interrupt."""
    while error is not None and not isinstance(error, tuple(_ENDINGS.values())):
        error = error.__context__
    return error is not None


_active: Interrupts | None = None


def _before_fork() -> None:
    if _active is not None:
        _active.before_fork()


def _after_fork_in_parent() -> None:
    if _active is not None:
        _active.after_fork_in_parent()


def _after_fork_in_child() -> None:
    global _active
    if _active is not None:
        active, _active = _active, None
        active.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
