"""Atomic writes: at every moment a file has its old content or its new one, and the new one survives a crash."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PAUSES_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; what was put there takes the place of ``path``, and survives a crash.

    An exception inside leaves ``path`` as it was. The temporary name holds the process id, since two processes may
    write the same file. Raises ``OSError``.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write ``content``, text as UTF-8, to ``path``; its mode is that of the umask. Raises ``OSError``."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def link_atomically(source: Path, target: Path) -> None:
    """Make ``target`` another name of ``source``; a copy where there are no hard links. Raises ``OSError``."""
    with replacing(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def replace(source: Path, target: Path) -> None:
    """``os.replace``, tried for some seconds: Windows refuses it while another program has ``target`` open."""
    for seconds in (*PAUSES_SECONDS, None):
        try:
            os.replace(source, target)
            return
        except PermissionError as error:
            if getattr(error, "winerror", None) not in (5, 32):  # ERROR_ACCESS_DENIED, ERROR_SHARING_VIOLATION
                raise
            if seconds is None:
                text = "another program (an editor, a spreadsheet, a virus scanner) has it open"
                raise PermissionError(error.errno, text, str(target)) from error
            time.sleep(seconds)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where the system lets folders be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
