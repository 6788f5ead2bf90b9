"""Checkpoints: atomic writes, a checksum in each file, strict loads, retention.

A checkpoint is what ``torch.save`` writes, a ZIP archive, whose comment field holds the SHA-256 of all that stands
before it. So ``torch.load(path, weights_only=True)`` reads it as it is, and `read_checkpoint` finds any flipped bit
first (ZIP's own checksums leave its headers out, and torch does not look at them). Contents are tensors and plain
types only.
"""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import pickle
import re
import struct
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from resnet_train.errors import ConfigError, RunError
from resnet_train.runs.atomic import link_atomically, write_atomically

FORMAT = 1
RETRY_SECONDS = 1.0
_END = struct.pack("<I", 0x06054B50)  # signature of the ZIP record that ends an archive
_END_LENGTH = 22  # bytes of that record up to the comment; its last two bytes are the comment's length
_PREFIX = b"sha256:"

logger = logging.getLogger(__name__)


class CorruptCheckpoint(Exception):
    """The file is not what was once written; the message says why."""


def seal(payload: bytes) -> bytes:
    """Append the checksum of a ZIP archive without comment to it, as its comment."""
    start = len(payload) - _END_LENGTH
    assert payload[start : start + 4] == _END and payload[-2:] == b"\0\0", "expected a ZIP archive without a comment"
    length = len(_PREFIX) + 64
    body = payload[:-2] + struct.pack("<H", length)
    return body + _PREFIX + hashlib.sha256(body).hexdigest().encode()


def unseal(sealed: bytes) -> bytes:
    """Check the checksum that `seal` appended and return the bytes unchanged; raises `CorruptCheckpoint`."""
    length = len(_PREFIX) + 64
    body, comment = sealed[:-length], sealed[-length:]
    if not comment.startswith(_PREFIX):
        raise CorruptCheckpoint("it does not end in a checksum: truncated, or not one of our checkpoints")
    if comment[len(_PREFIX) :] != hashlib.sha256(body).hexdigest().encode():
        raise CorruptCheckpoint("its checksum does not fit its content")
    return sealed


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` to ``path`` atomically: at every moment there is the old file or the new one, on disk."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, seal(buffer.getvalue()))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; raises `CorruptCheckpoint`, also for files that hold code or another format."""
    try:
        sealed = unseal(path.read_bytes())
        content = torch.load(io.BytesIO(sealed), map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise CorruptCheckpoint(str(error).splitlines()[0]) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise CorruptCheckpoint(f"its format is {found!r}, expected {FORMAT}")
    return content


def copy_of(content: Any) -> Any:
    """Tensors, dictionaries, lists and tuples in memory of their own, on the CPU."""
    match content:
        case torch.Tensor():
            return content.detach().to("cpu", copy=True)
        case dict():
            return {key: copy_of(value) for key, value in content.items()}
        case list() | tuple():
            return type(content)(copy_of(value) for value in content)
        case _:
            return content


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights of a run directory (the best ones if it has them, else the newest), a checkpoint, or a state dict.

    The moving average where there is one. Raises `ConfigError` for anything else; never runs code of the file.
    """
    if path.is_dir():
        found = [file for name in ("best.pt", "last.pt") if (file := path / "checkpoints" / name).is_file()]
        if not found:
            raise ConfigError(f"init_from: expected a run with checkpoints, got {path}, which has none")
        path = found[0]
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(content, dict) and isinstance(content.get("state"), dict):
            state = read_checkpoint(path)["state"]
            content = state["model"] if state["ema"] is None else state["ema"]
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError, CorruptCheckpoint) as error:
        raise ConfigError(f"init_from: cannot read {path}: {_first_line(error)}") from error
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ConfigError(
            f"init_from: expected weights by name in {path}, got {type(content).__name__} of other things"
        )
    return content


def _first_line(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):  # torch's text advises to run what is in the file
        return "expected a checkpoint or a state dict, got another file, or one that holds more than tensors"
    return (str(error).splitlines() or [type(error).__name__])[0]


class Checkpoints:
    """The checkpoints of one run: ``step-<steps>.pt``, and ``last.pt`` and ``best.pt``, which are links to them."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._begun: Future[Path] | None = None

    def begin_save(self, content: dict[str, Any], *, step: int, best: bool = False) -> None:
        """Copy ``content`` as it is now and let `save` write the copy while training continues.

        Waits for the one before, and raises what that raised: nothing fails unseen, if `finish` is called at the end.
        The process does not end before the file is written, unless it is killed; then the one before is in place.
        """
        copied = copy_of(content)
        self.finish()
        self._begun = self._writer.submit(self.save, copied, step=step, best=best)

    def check(self) -> None:
        """Raise `RunError` if what was begun has failed by now."""
        if self._begun is not None and self._begun.done():
            self.finish()

    def finish(self) -> None:
        """Wait until what was begun is on disk; raises `RunError` if it could not be written."""
        begun, self._begun = self._begun, None
        if begun is not None:
            begun.result()

    def save(self, content: dict[str, Any], *, step: int, best: bool = False) -> Path:
        """Write the checkpoint after ``step`` steps, then let the oldest go; raises `RunError` if it cannot."""
        path = self.folder / f"step-{step:08d}.pt"
        try:
            self._write_once_more(path, content)
            link_atomically(path, self.folder / "last.pt")
            if best:
                link_atomically(path, self.folder / "best.pt")
            numbered = self._numbered()
            if path not in numbered:  # the directory was taken away just now
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            later = numbered[: numbered.index(path)]  # corrupt ones that this run went back behind
            for old in (*later, *numbered[len(later) + self.keep :]):
                with suppress(OSError):  # on Windows while somebody reads it: the next checkpoint tries again
                    old.unlink()
        except OSError as error:
            raise RunError(
                f"cannot write the checkpoint {path}: {error.strerror or error}; the checkpoints before it are whole. "
                f"Free the disk or make it writable, then resume"
            ) from error
        return path

    def _write_once_more(self, path: Path, content: dict[str, Any]) -> None:
        """Write, and if that fails, try again after a moment: others may have made room."""
        for seconds in (RETRY_SECONDS, None):
            try:
                # Not its parents: where the run's directory was taken away, a new one would hide that.
                self.folder.mkdir(exist_ok=True)
                write_checkpoint(path, content)
                return
            except OSError as error:
                if seconds is None:
                    raise
                logger.warning("cannot write the checkpoint %s: %s; trying once more", path, error)
                time.sleep(seconds)

    def exist(self) -> bool:
        """Whether there is any checkpoint, whole or not."""
        return bool(self._candidates())

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The checkpoint with the most steps that is whole; None where there is none at all.

        A corrupt one is named in the log and the one before it is taken; raises `ConfigError` if none is left.
        """
        candidates = self._candidates()
        corrupt = []
        for path in candidates:
            try:
                content = read_checkpoint(path)
            except CorruptCheckpoint as error:
                corrupt.append(f"{path.name}: {error}")
                logger.warning("checkpoint %s is corrupt (%s); trying the one before it", path, error)
                continue
            return path, content
        if corrupt:
            raise ConfigError(
                f"no whole checkpoint in {self.folder}: {'; '.join(corrupt)}. Provide one of them from a backup, or "
                f"start a new run"
            )
        return None

    def best(self) -> dict[str, Any]:
        """The checkpoint that was best on the validation split; raises `ConfigError` where it is missing or corrupt."""
        path = self.folder / "best.pt"
        try:
            return read_checkpoint(path)
        except CorruptCheckpoint as error:
            raise ConfigError(f"cannot read the best checkpoint {path}: {error}; restore it and resume") from error

    def _numbered(self) -> list[Path]:
        """Checkpoints with a number, newest first, by number: 10 is newer than 9."""
        found = [
            (int(match[1]), path)
            for path in self.folder.glob("step-*.pt")
            if (match := re.fullmatch(r"step-(\d+)\.pt", path.name))
        ]
        return [path for _, path in sorted(found, reverse=True)]

    def _candidates(self) -> list[Path]:
        numbered = self._numbered()
        links = [path for name in ("last.pt", "best.pt") if (path := self.folder / name).exists()]
        # Where links are hard links, these are the same files again: a corrupt one is not worth a second look.
        seen = [path.stat() for path in numbered]
        return numbered + [path for path in links if not any(os.path.samestat(path.stat(), other) for other in seen)]
