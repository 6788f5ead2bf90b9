"""One process at a time: by a lock of the operating system, and by a record with a sign of life where that fails.

A lock file holds a record: process, host, and a random token. Two things keep others out.

1. The operating system's lock on the file (``flock``, or ``msvcrt`` on Windows), given back when a process ends,
   however it ends.
2. The record. Network file systems may have no locks, or locks that hold within one machine only. So the holder
   renews the time of the file every `HEARTBEAT_SECONDS`, and a record of another machine counts until it has not been
   renewed for `STALE_SECONDS`.

Whoever holds a lock can ask whether it is still its own (`Lock.check`): a folder that was deleted and made anew by
another process holds another token, and so does a file that was taken over while its holder slept.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from resnet_train.errors import RunError
from resnet_train.runs.atomic import regular_file

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 20.0  # several signs of life: one may be late on a busy machine
SETTLE_SECONDS = 1.0  # without locks the last of several records counts: time for others to write theirs
POLL_SECONDS = 0.2
_LOCKED_BYTE = 1 << 30  # far behind the record, since Windows lets nobody read what is locked
_RECORD_BYTES = 512

logger = logging.getLogger(__name__)


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:  # of the other operating system
        return None


_fcntl, _msvcrt = _module("fcntl"), _module("msvcrt")


class Held(Exception):
    """Somebody else holds the lock; the message says who."""


class LostLock(RunError):
    """What this process had locked is another's by now: nothing more may be written there."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, as its file says."""

    process: int
    host: str
    started: str | None  # tells a process from a later one with the same number; None where the system does not say
    token: str

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


class Lock:
    """A lock that this process holds."""

    def __init__(self, path: Path, file: BinaryIO, record: bytes) -> None:
        self.path = path
        self._file, self._record = file, record
        self._released = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._heart.start()

    def check(self) -> None:
        """Raise `LostLock` where the file is another's. A missing file is left to whoever writes beside it."""
        with suppress(OSError):
            found = _read(self.path)
            if found != self._record:
                raise LostLock(
                    f"{self.path.parent} was taken over by {_name(found)} while this process was in it: deleted and "
                    f"made anew, or held by nobody for a while; this run stops and leaves it alone"
                )

    def release(self) -> None:
        """Give it back; the file stays, without a record."""
        self._released.set()
        self._heart.join()
        with suppress(OSError):
            if _read(self.path) == self._record:
                self._file.truncate(0)
        self._file.close()

    def _beat(self) -> None:
        target = self._file.fileno() if os.utime in os.supports_fd else self.path
        while not self._released.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):
                os.utime(target)


@contextmanager
def hold(path: Path, *, wait: bool = False) -> Iterator[Lock]:
    """Hold the lock file ``path``. Raises `Held` where somebody else does, or waits; ``OSError`` without the file."""
    told = False
    while True:
        try:
            lock = _acquire(path)
            break
        except Held as held:
            if not wait:
                raise
            if not told:
                logger.info("waiting for %s, which holds %s", held, path)
            told = True
            time.sleep(POLL_SECONDS)
    try:
        yield lock
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock file ``path`` now; a file that is not there is not made."""
    if not path.is_file():
        return False
    try:
        with hold(path):
            return False
    except Held:
        return True
    except OSError:
        return False


def seems_held(path: Path) -> bool:
    """Whether somebody holds the lock file ``path``, by its record: for reports, which do not touch what they look at.

    A holder on this machine is looked up among its processes. One on another, whose clock may differ by a few seconds,
    has to have renewed the file within `STALE_SECONDS`.
    """
    try:
        holder = _parse(_read(path))
        fresh = time.time() - _renewed(path) / 1e9 <= STALE_SECONDS
    except OSError:
        return False
    if holder is None:
        return False  # given back, or never held
    if holder.host == socket.gethostname() and holder.started is not None:
        return holder.started == _start_of(holder.process)
    return fresh


def _acquire(path: Path) -> Lock:
    file = open(path, "r+b", buffering=0, opener=_made_if_missing)  # noqa: SIM115 (closed when it is released)
    try:
        given = _lock(file)
        before = _read(path)
        if given is False or (before and _is_alive(path, before, locks=bool(given))):
            raise Held(_name(before))
        record = _write(file)
        if not given:
            logger.warning("%s has no locks: others are kept out by the time of %s alone", path.parent, path.name)
            time.sleep(SETTLE_SECONDS)
        if (found := _read(path)) != record:  # another was faster, or the folder was made anew meanwhile
            raise Held(_name(found))
        return Lock(path, file, record)
    except BaseException as error:
        file.close()
        if isinstance(error, FileNotFoundError):
            raise Held("another process") from None
        raise


def _lock(file: BinaryIO) -> bool | None:
    """Whether the operating system gave the lock; None where it has none, or none on this file system."""
    try:
        if _fcntl is not None:
            _fcntl.flock(file, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
        elif _msvcrt is not None:
            file.seek(_LOCKED_BYTE)
            _msvcrt.locking(file.fileno(), _msvcrt.LK_NBLCK, 1)
        else:
            return None
    except OSError as error:
        # EAGAIN: flock; EACCES, EDEADLK: msvcrt.
        return False if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK) else None
    return True


def _is_alive(path: Path, record: bytes, *, locks: bool) -> bool:
    """Whether the writer of ``record`` still holds the file, although the operating system kept nobody out."""
    holder = _parse(record)
    if locks and (holder is None or holder.host == socket.gethostname()):
        # Within one machine a lock that is free means that its holder has ended, unless that can be seen running for a
        # while: a process that is being killed is seen a moment longer than its lock.
        deadline = time.monotonic() + SETTLE_SECONDS
        while holder is not None and holder.started is not None and holder.started == _start_of(holder.process):
            if time.monotonic() > deadline:
                return True
            time.sleep(POLL_SECONDS / 10)
        return False
    renewed = _renewed(path)
    with tempfile.TemporaryFile(dir=path.parent) as probe:  # the clock of the file system
        if os.fstat(probe.fileno()).st_mtime - renewed / 1e9 > STALE_SECONDS:
            return False
    logger.info("looking whether %s still runs, which held %s: up to %.0f s", _name(record), path, STALE_SECONDS)
    deadline = time.monotonic() + STALE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        if not (now := _read(path)):
            return False  # given back
        if now != record or _renewed(path) != renewed:
            return True
    return False


def _renewed(path: Path) -> int:
    with open(path, "rb") as file:  # opened anew: network file systems then ask their server
        return os.fstat(file.fileno()).st_mtime_ns


def _read(path: Path) -> bytes:
    with open(path, "rb", opener=regular_file) as file:
        return file.read(4096)


def _write(file: BinaryIO) -> bytes:
    """Write a record for this process and return it; nothing where the disk is full.

    All records are equally long and go to the file's start, so that of two written at once one remains whole.
    """
    holder = Holder(os.getpid(), socket.gethostname(), _start_of(os.getpid()), secrets.token_hex(16))
    record = json.dumps(asdict(holder)).encode().ljust(_RECORD_BYTES - 1) + b"\n"
    with suppress(OSError):
        file.seek(0)
        if file.write(record) == len(record):
            file.truncate()
            return record
    file.truncate(0)
    return b""


def _made_if_missing(path: str, flags: int) -> int:
    return regular_file(path, flags | os.O_CREAT)


def _parse(record: bytes) -> Holder | None:
    """Who wrote a record; None for anything else, such as the record of an earlier version."""
    try:
        found = json.loads(record)
        host = "".join(filter(str.isprintable, str(found["host"])))[:100]
        return Holder(int(found["process"]), host, found["started"], str(found["token"]))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _name(record: bytes) -> str:
    return str(_parse(record) or "another process")


def _start_of(process: int) -> str | None:
    """When a process of this machine started, in ticks; None where none runs, or the system does not say."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = text.rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]  # a zombie has ended, and holds nothing
