"""A real TensorBoard."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest


class Server:
    """A TensorBoard on a free port, asked past any proxy."""

    def __init__(self, address: str) -> None:
        self.address = address

    def get(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON at ``path``."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.address}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as response:
            return json.load(response)

    def wait(self, look: Callable[[], Any]) -> Any:
        """What ``look`` returns as soon as it returns something."""
        return eventually(look)


def eventually(look: Callable[[], Any], process: subprocess.Popen[bytes] | None = None) -> Any:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (process is None or process.poll() is None):
        if found := look():
            return found
        time.sleep(0.1)
    raise AssertionError("nothing after a minute")


@contextmanager
def serve(logdir: Path, log: Path, *flags: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host", "127.0.0.1", "--port", "0"]
    with (
        log.open("w") as file,
        subprocess.Popen([*command, "--reload_interval=1", *flags], stdout=file, stderr=file) as process,
    ):
        try:
            found = eventually(lambda: re.search(r"http://(localhost|127\.0\.0\.1):\d+", log.read_text()), process)
            yield Server(found[0])
        finally:
            process.terminate()


@pytest.fixture(scope="session")
def tensorboard_server(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., AbstractContextManager[Server]]:
    """Starts a TensorBoard for a log directory: ``with tensorboard_server(logdir) as server``."""
    return lambda logdir, *flags: serve(logdir, tmp_path_factory.mktemp("tensorboard") / "server.log", *flags)
