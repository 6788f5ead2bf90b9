"""A real TensorBoard, and checkpoints as version 0.1 sealed them."""

from __future__ import annotations

import hashlib
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


@pytest.fixture(scope="session")
def seal() -> Callable[[bytes], bytes]:
    """A checkpoint file as version 0.1 wrote it, from the archive that ``torch.save`` makes: what must stay readable.

    The checksum of all before it is the archive's comment, whose length stands in the two bytes before.
    """

    def sealed(archive: bytes) -> bytes:
        assert archive[-22:-18] == b"PK\x05\x06" and archive[-2:] == b"\0\0", "an archive without a comment"
        body = archive[:-2] + (7 + 64).to_bytes(2, "little")
        return body + b"sha256:" + hashlib.sha256(body).hexdigest().encode()

    return sealed


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
