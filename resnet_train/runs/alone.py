"""One run in a process at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from resnet_train.errors import ConfigError

_running = threading.Lock()


@contextmanager
def alone() -> Iterator[None]:
    """Refuse a second run in this process while there is one, say in another thread, with a `ConfigError`.

    Initialisation and dropout draw from the generators of the process, and the log is one: neither run would be what
    its seed says.
    """
    if not _running.acquire(blocking=False):
        raise ConfigError(
            "run: expected no other run in this process, since its random generators and its log serve one; "
            "wait for the other run, or start a process for each, as resnet-train -m does"
        )
    try:
        yield
    finally:
        _running.release()
