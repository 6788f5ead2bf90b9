"""A process that has imported PyTorch and forks for each program that it is asked to run.

Importing the libraries takes most of a short run's time. A fork has them already; the project's own modules it imports
by itself, and everything else about it is as in a process that was started: its arguments, folder, environment,
standard streams, signals, and how it ends.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

LIBRARIES = ("torch", "torch.utils.tensorboard", "hydra._internal.hydra", "PIL.Image", "tqdm")
# Variables that Python and the libraries read when they start.
READ_EARLY = ("PYTHON", "LANG", "LC_", "OMP_", "MKL_", "OPENBLAS", "TORCH_", "CUDA", "LD_", "TRITON")
TIMEOUT_SECONDS = 300


def read_early(environment: dict[str, str]) -> dict[str, str]:
    """The part of an environment by which a fork and a new process could differ."""
    return {name: value for name, value in environment.items() if name.startswith(READ_EARLY)}


class Warm:
    """The client's side: starts the server when first asked."""

    def __init__(self) -> None:
        self._environment = read_early(dict(os.environ))
        self._server: subprocess.Popen[bytes] | None = None

    def serves(self, environment: dict[str, str]) -> bool:
        """Whether a fork is as good as a new process."""
        return hasattr(os, "fork") and read_early(environment) == self._environment

    def call(self, arguments: Sequence[str], *, cwd: Path, environment: dict[str, str]) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of a console script of this environment."""
        if self._server is None:
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._socket.settimeout(TIMEOUT_SECONDS)
            with theirs:
                self._server = subprocess.Popen(
                    [sys.executable, __file__, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
        request = json.dumps([list(arguments), str(cwd), environment]).encode()
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err, open(os.devnull) as nothing:
            socket.send_fds(self._socket, [request], [nothing.fileno(), out.fileno(), err.fileno()])
            try:
                answer = self._socket.recv(100)
            except TimeoutError:
                self.close()
                raise
            out.seek(0), err.seek(0)
            return int(answer), out.read(), err.read()

    def close(self) -> None:
        """End the server, and what runs in it."""
        if self._server is not None:
            self._socket.close()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._server.pid, 9)
            self._server.wait()
            self._server = None


def serve(connection: socket.socket) -> list[str] | None:
    """Fork for each request; returns twice: in each fork its arguments, and nothing once the client is gone."""
    while True:
        request, streams, _, _ = socket.recv_fds(connection, 2**20, 3)
        if not request:
            return None
        child = os.fork()
        if not child:
            arguments, cwd, environment = json.loads(request)
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            connection.close()
            os.chdir(cwd)
            os.environ.clear()
            os.environ.update(environment)
            return list(arguments)
        for stream in streams:
            os.close(stream)
        connection.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())


def main() -> None:
    """The server, and then, in a fork, the program."""
    sys.path[0] = str(Path(sys.executable).parent)  # as a console script has it
    for name in LIBRARIES:
        importlib.import_module(name)
    arguments = serve(socket.socket(fileno=int(sys.argv[1])))
    if arguments is not None:
        sys.argv = arguments
        (script,) = importlib.metadata.entry_points(group="console_scripts", name=Path(arguments[0]).name)
        sys.exit(script.load()())


if __name__ == "__main__":
    main()
