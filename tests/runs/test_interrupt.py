"""Signals that the process really gets."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import FrameType

import pytest

from resnet_train.runs.interrupt import Interrupted, StopSignal, ctrl_c

INT, TERM = signal.SIGINT, signal.SIGTERM
USR1, USR2 = signal.SIGUSR1, signal.SIGUSR2
HUP, QUIT, XCPU = signal.SIGHUP, signal.SIGQUIT, signal.SIGXCPU


@pytest.fixture(autouse=True)
def reached() -> Iterator[list[int]]:
    """Signals that nobody caught; without this they would end the tests."""
    signals: list[int] = []

    def handler(signum: int, _frame: FrameType | None) -> None:
        signals.append(signum)

    before = {signum: signal.signal(signum, handler) for signum in (INT, TERM, USR1, USR2, HUP, QUIT, XCPU)}
    yield signals
    for signum, previous in before.items():
        signal.signal(signum, previous)


def send(signum: int, *, until: Callable[[], object]) -> None:
    """Python handles a signal at one of the next instructions of the main thread."""
    os.kill(os.getpid(), signum)
    deadline = time.monotonic() + 10
    while not until() and time.monotonic() < deadline:
        time.sleep(0.001)


@pytest.mark.parametrize("signum", [INT, TERM, USR1, USR2, HUP, QUIT, XCPU])
def test_the_first_signal_sets_the_number_and_nothing_else(signum: int, reached: list[int]) -> None:
    with StopSignal() as stop:
        assert stop.signum is None
        send(signum, until=lambda: stop.signum)
        assert stop.signum == signum
    assert stop.signum == signum
    assert reached == [signum], "the handler from before is called too"


@pytest.mark.parametrize(
    ("first", "second", "message", "exit_code"),
    [
        (INT, INT, "interrupted by SIGINT", 130),
        (TERM, TERM, "interrupted by SIGTERM", 143),
        (INT, TERM, "interrupted by SIGTERM", 143),
        (USR1, USR1, "interrupted by SIGUSR1", 75),
        (USR1, USR2, "interrupted by SIGUSR2", 75),
        (QUIT, QUIT, "interrupted by SIGQUIT", 131),
        (HUP, TERM, "interrupted by SIGTERM", 143),
    ],
)
def test_the_second_signal_interrupts_at_once(first: int, second: int, message: str, exit_code: int) -> None:
    with StopSignal() as stop:
        send(first, until=lambda: stop.signum)
        with pytest.raises(Interrupted) as caught:
            send(second, until=lambda: False)
    assert (str(caught.value), caught.value.exit_code, caught.value.signum) == (message, exit_code, second)


@pytest.mark.parametrize("first", [INT, TERM, HUP, XCPU])
@pytest.mark.parametrize(("again", "exit_code"), [(HUP, 129), (XCPU, 152)])
def test_signals_that_come_again_by_themselves_interrupt_nothing(
    first: int, again: int, exit_code: int, reached: list[int]
) -> None:
    """A terminal that closes hangs up twice, and beyond its CPU time a process is told each second."""
    with StopSignal() as stop:
        send(first, until=lambda: stop.signum)
        for _ in range(2):
            os.kill(os.getpid(), again)
            time.sleep(0.01)
    assert (stop.signum, reached) == (first, [first, again, again])
    assert Interrupted(again).exit_code == exit_code


@pytest.mark.parametrize("signum", [HUP, QUIT, XCPU])
def test_what_is_ignored_stays_ignored(signum: int) -> None:
    """As nohup wants it."""
    signal.signal(signum, signal.SIG_IGN)
    with StopSignal() as stop:
        assert signal.getsignal(signum) == signal.SIG_IGN
        os.kill(os.getpid(), signum)
        send(TERM, until=lambda: stop.signum)
        assert stop.signum == TERM
    assert signal.getsignal(signum) == signal.SIG_IGN


def test_a_ctrl_c_that_was_swallowed_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctrl_c, "pressed", False)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    signal.signal(INT, ctrl_c)
    with StopSignal() as stop:
        assert stop.signum is None
    with suppress(KeyboardInterrupt):
        send(INT, until=lambda: False)
    assert ctrl_c.pressed
    with StopSignal() as stop:
        assert stop.signum == INT
        with pytest.raises(Interrupted):
            send(INT, until=lambda: False)


def test_an_interruption_is_no_error() -> None:
    assert issubclass(Interrupted, KeyboardInterrupt)
    assert not issubclass(Interrupted, Exception)


def handlers() -> list[object]:
    return [signal.getsignal(signum) for signum in (INT, TERM)]


@pytest.mark.parametrize("error", [None, ValueError, Interrupted])
def test_the_handlers_from_before_are_put_back(error: type[BaseException] | None, reached: list[int]) -> None:
    before = handlers()
    try:
        with StopSignal():
            assert handlers() != before
            if error:
                raise error(2)
    except (ValueError, Interrupted):
        pass
    assert handlers() == before
    send(TERM, until=lambda: reached)
    assert reached == [TERM]


def test_one_within_another(reached: list[int]) -> None:
    with StopSignal() as outer:
        with StopSignal() as inner:
            send(INT, until=lambda: inner.signum)
        assert (outer.signum, inner.signum) == (INT, INT)
        with pytest.raises(Interrupted):
            send(TERM, until=lambda: False)
        assert inner.signum == INT
    assert (outer.signum, reached) == (INT, [INT, TERM])


def test_another_thread_installs_nothing(reached: list[int]) -> None:
    before, seen = handlers(), []

    def run() -> None:
        with StopSignal() as stop:
            seen.append((handlers(), stop.signum))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(before, None)]
    assert handlers() == before
    send(INT, until=lambda: reached)
    assert reached == [INT]
