"""Seconds that are training, seconds that are not, and the speed that follows."""

from __future__ import annotations

import time

import pytest

from resnet_train.training.clock import Clock


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    seconds = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: seconds[0])
    return seconds


def test_only_what_is_between_start_and_stop_is_training(now: list[float]) -> None:
    clock = Clock(_begun=100.0)
    now[0] = 103.0  # start-up
    clock.start()
    now[0] = 105.0
    clock.stop(images=40)
    now[0] = 115.0  # evaluation
    clock.start()
    now[0] = 118.0
    clock.stop(images=15)
    assert (clock.train_seconds, clock.images, clock.total_seconds, clock.speed()) == (5.0, 55, 18.0, 11.0)


def test_what_is_left_out_is_all_of_this_session(now: list[float]) -> None:
    """The first steps set up what later ones use, and a row of metrics may have been read among them."""
    clock = Clock()
    clock.load_state_dict({"train_seconds": 10.0, "images": 100, "earlier_seconds": 12.0, "sessions": 2})
    clock.start()
    now[0] += 2.0
    clock.stop(images=3)
    clock.mark("log")
    clock.start()
    now[0] += 3.0
    assert clock.discard() == 5.0
    now[0] += 1.0
    clock.stop(images=20)
    assert (clock.train_seconds, clock.images) == (11.0, 120)
    assert clock.speed(since="log") == 20.0


def test_speed_since_a_mark(now: list[float]) -> None:
    clock = Clock()
    speeds = []
    for images in (10, 30, 50):
        clock.start()
        now[0] += 1.0
        clock.stop(images)
        speeds.append((clock.speed(since="log"), clock.speed(since="line"), clock.speed()))
        clock.mark("log")
    assert speeds == [(10.0, 10.0, 10.0), (30.0, 20.0, 20.0), (50.0, 30.0, 30.0)]


def test_the_next_session_continues_to_count(now: list[float]) -> None:
    first = Clock(_begun=90.0)
    first.start()
    now[0] = 102.0
    first.stop(images=10)
    saved = first.state_dict()
    now[0] = 500.0
    second = Clock(_begun=499.0)
    second.load_state_dict(saved)
    assert (second.train_seconds, second.images, second.sessions, second.total_seconds) == (2.0, 10, 2, 13.0)
    second.start()
    now[0] = 501.0
    second.stop(images=7)
    assert (second.speed(since="log"), second.speed()) == (7.0, 17 / 3), (
        "the first log of a session is of its own steps"
    )
