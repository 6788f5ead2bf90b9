"""The time that a session may take, ``max_time``: when it has to stop so as to be done before."""

from __future__ import annotations

import time

PROCESS_BEGUN = time.monotonic()  # nearly: the command line imports this before anything that takes long


class TimeLimit:
    """A moment that a loop must not miss, asked for between its rounds.

    The time is up a round early: when the longest round until now, perhaps one with an evaluation and a checkpoint,
    would not end before it. What is saved then comes on top.
    """

    def __init__(self, seconds: float, *, begun: float) -> None:
        """So many seconds after ``begun``, of ``time.monotonic()``."""
        self._end = begun + seconds
        self._asked: float | None = None
        self._longest = 0.0

    def is_up(self) -> bool:
        """Whether the round that has just ended was the last; asked after each."""
        now = time.monotonic()
        if self._asked is not None:  # the first round sets things up: it says nothing of the others
            self._longest = max(self._longest, now - self._asked)
        self._asked = now
        return now + self._longest >= self._end
