"""``max_time``: when the time is up, and how that stops a loop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from resnet_train.config.run import Config
from resnet_train.runs.interrupt import EXIT_REQUEUE, TIME_IS_UP, Interrupted, StopSignal
from resnet_train.runs.time_limit import PROCESS_BEGUN, TimeLimit
from resnet_train.train import limit_of

Tiny = Callable[..., Config]


def test_the_time_is_up_a_round_early(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    limit = TimeLimit(60, begun=100)
    # moments at which it is asked: a start of 30 s, rounds of 1 s, one of 9 s, one of 1 s
    for now, is_up in ((130, False), (131, False), (132, False), (141, False), (150, False), (151, True)):
        assert limit.is_up() == is_up, now
    assert TimeLimit(60, begun=100).is_up() is False
    now = 160
    assert TimeLimit(60, begun=100).is_up() is True


def test_it_counts_from_where_it_should(tiny: Tiny) -> None:
    """From the start of a command, which its scheduler limits; in a notebook from the call."""
    assert limit_of(tiny(), owns_process=True) is None
    assert time.monotonic() - PROCESS_BEGUN > 0
    seconds = time.monotonic() - PROCESS_BEGUN + 1e-9
    config = tiny(f"max_time={seconds:.9f} s")
    commands, calls = limit_of(config, owns_process=True), limit_of(config, owns_process=False)
    assert commands is not None
    assert calls is not None
    assert commands.is_up()
    assert not TimeLimit(3600, begun=time.monotonic()).is_up()


def test_it_stops_as_a_signal_does() -> None:
    interrupted = Interrupted(TIME_IS_UP)
    assert (str(interrupted), interrupted.exit_code) == ("interrupted by max_time", EXIT_REQUEUE)
    limit = TimeLimit(1, begun=time.monotonic() - 2)
    with StopSignal(limit=limit) as stop:
        assert stop.signum == TIME_IS_UP
        os.kill(os.getpid(), signal.SIGTERM)  # while everything is being saved: the first signal
        deadline = time.monotonic() + 10
        while stop.signum == TIME_IS_UP and time.monotonic() < deadline:
            time.sleep(0.001)
        with pytest.raises(Interrupted, match=r"^interrupted by SIGTERM$"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
