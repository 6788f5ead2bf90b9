"""Ctrl-C and other signals as a question that the loop asks between two steps, not as an exception anywhere."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from resnet_train.runs.time_limit import TimeLimit

EXIT_REQUEUE = 75  # EX_TEMPFAIL of sysexits.h, "try again later": what a scheduler can be told to start again
TIME_IS_UP = 0  # in the place of a signal's number: the time of ``max_time``, which stops a run as SIGUSR1 does


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop and did so with a checkpoint; not an error, so no ``except Exception`` catches it."""

    def __init__(self, signum: int) -> None:
        by = "max_time" if signum == TIME_IS_UP else signal.Signals(signum).name
        super().__init__(f"interrupted by {by}")
        self.signum = signum

    def __reduce__(self) -> tuple[type[Interrupted], tuple[int]]:
        return Interrupted, (self.signum,)  # from one process to another

    @property
    def exit_code(self) -> int:
        """What shells report for a process that ended by this signal, 130 for Ctrl-C, 143 for SIGTERM; or requeue."""
        return EXIT_REQUEUE if self.signum in (*_REQUEUE, TIME_IS_UP) else 128 + self.signum


def _those_of(*names: str) -> tuple[int, ...]:
    """The numbers of signals, of those that this system has. Windows lacks most; SIGBREAK (Ctrl-Break) is its own."""
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))


_REQUEUE = _those_of("SIGUSR1", "SIGUSR2")
# Sent again without anybody's wish: SIGHUP by terminal and shell, SIGXCPU each second beyond the limit of CPU time.
_REPEATED = _those_of("SIGHUP", "SIGXCPU")


class CtrlC:
    """Python's own handler of Ctrl-C, which also remembers: libraries swallow a ``KeyboardInterrupt`` now and then."""

    pressed = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Called by Python."""
        self.pressed = True
        sys.unraisablehook = lambda _: None  # would print what callbacks of Python's own swallow
        signal.default_int_handler(signum, frame)


ctrl_c = CtrlC()  # of the command line, while no `StopSignal` is active


class StopSignal:
    """While active, the first signal sets `signum`; the second one interrupts at once, if a person has sent it.

    Handlers that were there before are called when it ends, so that one that exits finds everything saved; but not
    Python's own and `ctrl_c`, which raise ``KeyboardInterrupt``. ``forward`` is called at once with the first signal.
    SIGHUP, SIGQUIT and SIGXCPU stay ignored where they are, as nohup wants it; those of them that the system repeats
    are ignored once they have been received. When the time of ``limit`` is up, `signum` is `TIME_IS_UP`.
    """

    SIGNALS = _those_of("SIGINT", "SIGTERM", "SIGBREAK", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGQUIT", "SIGXCPU")
    _MAY_BE_IGNORED = _those_of("SIGHUP", "SIGQUIT", "SIGXCPU")

    def __init__(self, forward: Callable[[int], None] | None = None, *, limit: TimeLimit | None = None) -> None:
        self._signum: int | None = None
        self._limit = limit
        self._forward = forward
        self._received: list[int] = []
        self._previous: dict[int, Any] = {}

    @property
    def signum(self) -> int | None:
        """What asked to stop, a signal or the time; a loop asks after each of its rounds."""
        if self._limit is not None and self._limit.is_up() and self._signum is None:
            self._signum = TIME_IS_UP
        return self._signum

    def __enter__(self) -> StopSignal:
        # Python only lets the main thread set handlers; elsewhere the caller decides about signals.
        if threading.current_thread() is threading.main_thread():
            for signum in self.SIGNALS:
                if signum in self._MAY_BE_IGNORED and signal.getsignal(signum) == signal.SIG_IGN:
                    continue
                self._previous[signum] = signal.signal(signum, self._handle)
            if ctrl_c.pressed and self._previous[signal.SIGINT] is ctrl_c:
                self._signum = signal.SIGINT  # and somebody swallowed it
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        previous = dict(self._previous)
        for signum, handler in previous.items():
            if signum in _REPEATED and signum in self._received and handler == signal.SIG_DFL:
                handler = signal.SIG_IGN  # the same signal once more must not end what is ending
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)
        self._previous.clear()
        for signum in self._received:
            before = previous[signum]
            if callable(before) and before not in (signal.default_int_handler, ctrl_c):
                before(signum, None)

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        again = self._signum not in (None, TIME_IS_UP)  # what follows the end of the time is the first one
        self._signum = self._signum or signum
        self._received.append(signum)
        if self._forward is not None and not again:
            self._forward(signum)
        if again and signum not in _REPEATED:
            raise Interrupted(signum)
