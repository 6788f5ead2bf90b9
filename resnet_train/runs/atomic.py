"""How a run directory is written: atomically, durably, and never through a link that somebody left there.

At every moment a file has its old content or its new one, and the new one survives a crash.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# What file systems answer that cannot sync (SMB, FUSE and WSL, for folders): there is nothing to wait for then.
_CANNOT_SYNC = frozenset(
    {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM}
)
_TEMPORARY = re.compile(r"\.(.+)\.\d+(?:-[0-9a-f]{16})?\.tmp")  # without the random part: of version 0.1
LEFT_SECONDS = 60.0  # a temporary file that is older than this is nobody's any more


def temporary_beside(path: Path) -> Path:
    """A name for a temporary file beside ``path``, which nobody else has or can guess."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(8)}.tmp")


PAUSES_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; what was put there takes the place of ``path``, and survives a crash.

    An exception inside leaves ``path`` as it was. A ``path`` that is a link is replaced itself, not what it points to.
    Raises ``OSError``.
    """
    temporary = temporary_beside(path)
    try:
        yield temporary
        sync(temporary)
        replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write ``content``, text as UTF-8, to ``path``; its mode is that of the umask. Raises ``OSError``."""
    with replacing(path) as temporary, open(temporary, "xb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


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


def sync(path: Path) -> None:
    """Wait until the content of ``path`` is on disk, as far as its file system can do that; raises ``OSError``."""
    with open(path, "rb+", opener=regular_file) as file:
        _fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make names in ``folder`` durable, where the system lets folders be opened; raises ``OSError``."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        _fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


# --------------------------------------------------------------------------------------------- a stranger's directory


def regular_file(name: str | os.PathLike[str], flags: int) -> int:
    """For ``open(..., opener=regular_file)``: raises ``OSError`` for links, pipes and whatever else is no plain file.

    A run directory may have come from somebody else, and a link in it would lead out of it.
    """
    if os.path.islink(name):  # said well; between this and the next line O_NOFOLLOW watches
        raise OSError(errno.ELOOP, "it is a link, which is not followed; remove it", os.fspath(name))
    descriptor = os.open(name, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file; remove it", os.fspath(name))
    return descriptor


def read_regular(path: Path, *, limit: int = 1 << 24) -> bytes:
    """The content of a file that is no link; raises ``OSError``, also where it has more than ``limit`` bytes."""
    with open(path, "rb", opener=regular_file) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit:,} bytes", str(path))
    return content


def remove_leftovers(folder: Path, *, own: str) -> None:
    """Remove temporary files that killed processes left in ``folder``; for the process that holds the run's lock.

    Those of files that nobody else writes (``own``, a regular expression) are removed at once. Others may be
    somebody's at this moment, unless they are old.
    """
    with suppress(OSError):  # a folder that is not there, or cannot be written: they are in nobody's way
        for path in folder.iterdir():
            found = _TEMPORARY.fullmatch(path.name)
            if found and (re.fullmatch(own, found[1]) or time.time() - path.lstat().st_mtime > LEFT_SECONDS):
                path.unlink(missing_ok=True)
