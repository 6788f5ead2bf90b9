"""Takes away what Windows lacks, at the start of every process that has this folder on its ``PYTHONPATH``.

Modules and signals are gone for everybody. Functions of ``os`` are gone for this project alone: other packages ask
``sys.platform`` whether they are there. ``msvcrt`` locks in its place, one byte from the position of the file on.
"""

from __future__ import annotations

import asyncio  # noqa: F401 (this and the next ones define what they need while it is there)
import fcntl
import multiprocessing.util  # noqa: F401
import os
import shutil  # noqa: F401
import signal
import socketserver  # noqa: F401
import struct
import subprocess
import sys
import tempfile  # noqa: F401
import types
from collections.abc import Callable
from typing import Any

MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty")
SIGNALS = ("SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL", "SIG_IGN")  # that Windows has
FUNCTIONS = (
    *("chown", "fchmod", "fork", "getegid", "geteuid", "getgid", "getloadavg", "getpgid", "getuid", "killpg"),
    *("mkfifo", "nice", "pread", "sched_getaffinity", "setsid", "statvfs", "sysconf", "ttyname", "uname"),
)
CONSTANTS = ("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW")


def missing(name: str, there: Callable[..., Any]) -> Callable[..., Any]:
    def function(*arguments: Any, **options: Any) -> Any:
        if sys._getframe(1).f_globals.get("__name__", "").startswith("resnet_train"):
            raise AttributeError(f"module 'os' has no attribute {name!r}")
        return there(*arguments, **options)

    return function


def locking(descriptor: int, mode: int, count: int) -> None:
    """As documented for Windows: ``EACCES`` where another open file has locked these bytes."""
    assert mode == 2, "expected LK_NBLCK"
    start = os.lseek(descriptor, 0, os.SEEK_CUR)
    wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, start, count, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wanted)
    except BlockingIOError:
        raise PermissionError(13, "Permission denied") from None


msvcrt = types.ModuleType("msvcrt")
vars(msvcrt).update(LK_NBLCK=2, locking=locking)
sys.modules["msvcrt"] = msvcrt
for name in MODULES:
    sys.modules[name] = None  # type: ignore[assignment]
for name in dir(signal):
    if name.startswith("SIG") and name not in SIGNALS:
        delattr(signal, name)
for name in FUNCTIONS:
    setattr(os, name, missing(name, getattr(os, name)))
for name in CONSTANTS:
    delattr(os, name)
os.supports_fd.discard(os.utime)
subprocess.Popen.kill = lambda self: self.poll() is None and os.kill(self.pid, 9)  # type: ignore[method-assign] (it names the signal)
