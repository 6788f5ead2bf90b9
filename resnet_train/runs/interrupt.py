"""Ctrl-C and other signals as a question that the loop asks between two steps, not as an exception anywhere."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

EXIT_REQUEUE = 75  # EX_TEMPFAIL of sysexits.h, "try again later": what a scheduler can be told to start again


def _named(*names: str) -> tuple[signal.Signals, ...]:
    """The signals that this system has: Windows lacks most of them, and SIGBREAK (Ctrl-Break) is its own."""
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop and did so with a checkpoint; not an error, so no ``except Exception`` catches it."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """What shells report for a process that ended by this signal, 130 for Ctrl-C, 143 for SIGTERM; or requeue."""
        return EXIT_REQUEUE if self.signum in _named("SIGUSR1", "SIGUSR2") else 128 + self.signum


class StopSignal:
    """While active, the first signal sets `signum`; the second one interrupts at once.

    Handlers that were there before are called too, except Python's own, which would raise ``KeyboardInterrupt``.
    """

    SIGNALS = _named("SIGINT", "SIGTERM", "SIGBREAK", "SIGUSR1", "SIGUSR2")

    def __init__(self) -> None:
        self.signum: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        # Python only lets the main thread set handlers; elsewhere the caller decides about signals.
        if threading.current_thread() is threading.main_thread():
            for signum in self.SIGNALS:
                self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)
        self._previous.clear()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        again = self.signum is not None
        self.signum = self.signum or signum
        before = self._previous.get(signum)
        if callable(before) and before is not signal.default_int_handler:
            before(signum, frame)
        if again:
            raise Interrupted(signum)
