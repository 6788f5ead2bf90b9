"""Checkpoints: atomic writes, a checksum in each file, strict loads, retention.

Contents are tensors and plain types only. What the file looks like, and what is refused before memory is taken for it,
stands in `runs.checkpoint_file`.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from resnet_train.errors import ConfigError, RunError
from resnet_train.runs.atomic import link_atomically, replacing, sync_folder
from resnet_train.runs.checkpoint_file import (
    FORMAT,
    CorruptCheckpoint,
    numbered,
    open_checkpoint,
    read_declared,
    unseal,
)
from resnet_train.runs.sealing import SealingWriter
from resnet_train.runs.snapshot import Snapshot, take

RETRY_SECONDS = 1.0

logger = logging.getLogger(__name__)


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` to ``path`` atomically: at every moment there is the old file or the new one, on disk."""
    with replacing(path) as temporary, open(temporary, "xb") as file:
        sealing = SealingWriter(file)
        torch.save(content, sealing)  # type: ignore[arg-type]
        sealing.seal()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; raises `CorruptCheckpoint`, also for files that hold code or another format."""
    try:
        with open_checkpoint(path) as opened:
            file = io.BytesIO(unseal(opened.read()))
        read_declared(file)
        file.seek(0)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler calls functions with what the file holds: they may raise anything
        raise CorruptCheckpoint((str(error).splitlines() or [type(error).__name__])[0]) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise CorruptCheckpoint(f"its format is {found!r}, expected {FORMAT}")
    return content


class Checkpoints:
    """The checkpoints of one run: ``step-<steps>.pt``, and ``last.pt`` and ``best.pt``, which are links to them."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._begun: Future[Path] | None = None

    def begin_save(self, content: dict[str, Any], *, step: int, best: bool = False) -> None:
        """Copy ``content`` as it is now and write the copy while training continues.

        Waits for the one before, and raises what that raised: nothing fails unseen, if `finish` is called at the end.
        The process does not end before the file is written, unless it is killed; then the one before is in place.
        """
        snapshot = take(content)
        self.finish()
        self._begun = self._writer.submit(self._save, snapshot, step=step, best=best)

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
        return self._save(take(content), step=step, best=best)

    def _save(self, snapshot: Snapshot, *, step: int, best: bool) -> Path:
        content = snapshot.on_host()
        path = self.folder / f"step-{step:08d}.pt"
        try:
            self._write_once_more(path, content)
            link_atomically(path, self.folder / "last.pt")
            if best:
                link_atomically(path, self.folder / "best.pt")
            saved = numbered(self.folder)
            if path not in saved:  # the directory was taken away just now
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            later = saved[: saved.index(path)]  # corrupt ones that this run went back behind
            for old in (*later, *saved[len(later) + self.keep :]):
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
                if not self.folder.exists():
                    self.folder.mkdir()
                    sync_folder(self.folder.parent)
                write_checkpoint(path, content)
                return
            except OSError as error:
                if seconds is None:
                    raise
                logger.warning("cannot write the checkpoint %s: %s; trying once more", path, error)
                time.sleep(seconds)

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The checkpoint with the most steps that is whole; None where there is none at all.

        A corrupt one is named in the log and the one before it is taken; raises `ConfigError` if none is left.
        """
        if self.folder.is_symlink():
            raise ConfigError(
                f"expected a folder, got the link {self.folder}: a run writes and deletes in its own directory alone; "
                f"put the folder that it points to in its place"
            )
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

    def _candidates(self) -> list[Path]:
        steps = numbered(self.folder)
        links = [path for name in ("last.pt", "best.pt") if (path := self.folder / name).is_file()]
        # Where links are hard links, these are the same files again: a corrupt one is not worth a second look.
        seen = [path.stat() for path in steps]
        return steps + [path for path in links if not any(os.path.samestat(path.stat(), other) for other in seen)]
