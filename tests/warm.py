"""A process that has imported PyTorch and forks for each program that it is asked to run.

Importing the libraries takes most of a short run's time. A fork has them already; the project's own modules it imports
by itself, and everything else about it is as in a process that was started: its arguments, folder, environment,
standard streams, signals, and how it ends.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib.metadata
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "torch.utils.tensorboard", "hydra._internal.hydra", "PIL.Image", "tqdm")
# Variables that Python and the libraries read when they start.
READ_EARLY = ("PYTHON", "LANG", "LC_", "OMP_", "MKL_", "OPENBLAS", "TORCH_", "CUDA", "LD_", "TRITON")


def read_early(environment: dict[str, str]) -> dict[str, str]:
    """The part of an environment by which a fork and a new process could differ."""
    return {name: value for name, value in environment.items() if name.startswith(READ_EARLY)}


class Warm:
    """The client's side: starts the server when first asked."""

    def __init__(self) -> None:
        self._environment: dict[str, str] | None = None  # of the server
        self._server: subprocess.Popen[bytes] | None = None

    def open(self) -> None:
        """From now on, serve in this process's environment."""
        self._environment = read_early(dict(os.environ))

    def serves(self, environment: dict[str, str]) -> bool:
        """Whether a fork is as good as a new process."""
        return sys.platform == "linux" and hasattr(os, "fork") and read_early(environment) == self._environment

    def ask(self, request: list[Any], streams: list[int]) -> None:
        """Have a program run; what becomes of it is written to the last of ``streams``."""
        if self._server is None:
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._server = subprocess.Popen(
                    [sys.executable, __file__, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
        socket.send_fds(self._socket, [json.dumps(request).encode()], streams)

    def close(self) -> None:
        """End the server, and what runs in it."""
        if self._server is not None:
            self._socket.close()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()
            self._server = None


WARM = Warm()


class Fork(subprocess.Popen[str]):
    """A console script of this environment, or ``python -c``, as a fork; to be used like any other process.

    By the methods with which Popen starts and waits. They are its own, and alike in Python 3.11, 3.12 and 3.13.
    """

    def _execute_child(self, args: Any, *others: Any) -> None:
        _, _, _, _, cwd, env, _, _, _, in_read, in_write, out_read, out_write, err_read, err_write, *_ = others
        leads = others[-2]
        streams = [own if given == -1 else given for own, given in enumerate((in_read, out_write, err_write))]
        self._told, telling = os.pipe()
        WARM.ask([list(args), str(cwd), dict(env), leads], [*streams, telling])
        os.close(telling)
        self._close_pipe_fds(in_read, in_write, out_read, out_write, err_read, err_write)  # type: ignore[attr-defined]
        self.pid = self._next()
        self._child_created = True

    def _next(self) -> int:
        line = b""
        while not line.endswith(b"\n"):
            if not (read := os.read(self._told, 1)):
                raise ChildProcessError("the process that forks for programs is gone")
            line += read
        return int(line)

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        return self._wait(0)

    def _wait(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._told], [], [], timeout)[0]:
            self.returncode = self._next()
            os.close(self._told)
        if self.returncode is None and timeout:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode


def renew_streams() -> None:
    """Objects for the standard streams as Python makes them at its start, by what they lead to."""
    encoding = sys.stdout.encoding
    sys.stdin = sys.__stdin__ = os.fdopen(0, encoding=encoding, errors=sys.stdin.errors, closefd=False)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", encoding=encoding, errors=sys.stdout.errors, closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", 1, encoding=encoding, errors="backslashreplace", closefd=False)


def serve(connection: socket.socket) -> list[str] | None:
    """Fork for each request; returns twice: in each program's process its arguments, and nothing at the end."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes that wait for programs
    while True:
        request, streams, _, _ = socket.recv_fds(connection, 2**20, 4)
        if not request:
            return None
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            connection.close()
            *standard, telling = streams
            program = os.fork()
            if program:
                for stream in (*range(3), *standard):  # or nobody would see that the program has closed them
                    os.close(stream)
                os.write(telling, f"{program}\n".encode())
                os.write(telling, f"{os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])}\n".encode())
                os._exit(0)
            os.close(telling)
            for number, stream in enumerate(standard):
                os.dup2(stream, number)
                os.close(stream)
            renew_streams()
            arguments, cwd, environment, leads = json.loads(request)
            if leads:
                os.setsid()
            os.chdir(cwd)
            os.environ.clear()
            os.environ.update(environment)
            return list(arguments)
        for stream in streams:
            os.close(stream)


def program(arguments: list[str]) -> Any:
    """What Python would run; returns what its process is to exit with."""
    if Path(arguments[0]).name == "python":
        assert arguments[1] == "-c", arguments
        sys.path[0], sys.argv = "", arguments[1:2] + arguments[3:]
        exec(compile(arguments[2], "<string>", "exec"), {"__name__": "__main__"})
        return None
    sys.path[0], sys.argv = str(Path(arguments[0]).parent), arguments
    (script,) = importlib.metadata.entry_points(group="console_scripts", name=Path(arguments[0]).name)
    return script.load()()


def leave(code: Any) -> None:
    """End as Python does, but for the libraries' objects, which it takes half a second to take apart."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):  # then Python's own way out says what could not be written
        sys.stdout.flush()
        sys.stderr.flush()
        if code is None or isinstance(code, int):
            os._exit((code or 0) & 0xFF)
    sys.exit(code)


def main() -> None:
    """The server, and then, in a fork, the program."""
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # what is never looked through again stays one copy for all forks
    arguments = serve(socket.socket(fileno=int(sys.argv[1])))
    if arguments is not None:
        try:
            sys.exit(program(arguments))
        except SystemExit as ended:
            leave(ended.code)


if __name__ == "__main__":
    main()
