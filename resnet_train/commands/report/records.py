"""Runs, found at any depth below a folder and read without torch: what each is, how far it came, how well it does.

Whatever lies there may be a stranger's, or cut: what cannot be read is left out of the record, never the end of a
report. Nothing is written, so the directories may be read-only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from resnet_train.cli.job import JOB_LOCK
from resnet_train.commands.report.progress import Progress, progress_of
from resnet_train.errors import ConfigError
from resnet_train.runs.atomic import read_regular
from resnet_train.runs.checkpoint_file import newest_content, numbered, steps_of
from resnet_train.runs.directory import CONFIG, INVOCATION, LOCK, LOG, Invocation, is_run, read_config, read_invocation
from resnet_train.runs.lock import seems_held
from resnet_train.runs.metrics_table import Row, read_rows
from resnet_train.runs.resume import flatten
from resnet_train.runs.saved import config_of, is_over, kept_invocation
from resnet_train.runs.summary import Summary, read_summary

STATUSES = ("finished", "running", "interrupted", "failed", "waiting")
METRICS, EVALUATIONS, EVALUATION = "metrics.csv", "eval", "eval.json"
LOG_BYTES = 1 << 16  # of the end of train.log, which says what went wrong


@dataclass(frozen=True)
class RunRecord:
    """One run, as its directory tells of it."""

    directory: Path  # not there yet, for a job of a sweep that waits
    status: str  # one of STATUSES
    config: dict[str, Any]  # saved, plain, nested; empty where none was saved yet
    overrides: list[str]  # that started it
    summary: Summary | None = None
    flags: list[str] = field(default_factory=list)  # --config-dir and the like
    precision: str | None = None  # in which it is trained; what is configured may be auto
    progress: Progress | None = None  # of one that has not finished
    error: str | None = None  # of one that failed, in one line
    evaluations: tuple[Path, ...] = ()  # folders with an eval.json, which resnet-eval wrote; by name

    @cached_property
    def flat(self) -> dict[str, Any]:
        """The configuration by dotted keys: ``{"optim.lr": 0.1}``."""
        return flatten(self.config)

    @cached_property
    def rows(self) -> dict[int, Row]:
        """``metrics.csv`` by steps; read when it is asked for."""
        return read_rows(self.directory / METRICS)

    @property
    def seed(self) -> int | None:
        """Of the run; None where its configuration is not known."""
        found = self.config.get("seed")
        return found if isinstance(found, int) else None


# ------------------------------------------------------------------------------------------------------------- finding


def find(paths: Sequence[str]) -> list[RunRecord]:
    """All runs below ``paths``, sorted by directory; ``latest`` is the newest one under ``outputs/``.

    Raises `ConfigError` for a path that is no folder, and where there is no run.
    """
    directories: set[Path] = set()
    for name in paths:
        directories |= {latest()} if name == "latest" else {absolute(path) for path in below(_folder(name))}
    records = [record for directory in sorted(directories) if (record := read(directory)) is not None]
    if not records:
        raise ConfigError(
            f"expected runs of resnet-train below {' and '.join(map(repr, paths))}, found none; run directories look "
            f"like outputs/2026-01-31/12-00-00-resnet20"
        )
    return records


def absolute(path: Path) -> Path:
    """``path`` from the root, without dots; links stay as they are."""
    return Path(os.path.abspath(path))


def latest(outputs: Path = Path("outputs")) -> Path:
    """The run under ``outputs`` that changed last, absolute; raises `ConfigError` where there is none."""
    found = list(below(outputs)) if outputs.is_dir() else []
    if not found:
        raise ConfigError(f"latest: expected a run under {str(outputs)!r}, found none; name its directory")
    return max(found, key=_changed).absolute()


def _changed(directory: Path) -> float:
    files = (directory / name for name in (CONFIG, INVOCATION, METRICS, LOG))
    return max((file.stat().st_mtime for file in files if file.is_file()), default=0.0)


def _folder(name: str) -> Path:
    path = Path(name)
    if path.is_dir():
        return path
    what = f"the file {name!r}; name its folder" if path.exists() else f"{name!r}, which does not exist"
    raise ConfigError(f"expected a run directory or a folder of runs, got {what}")


def below(folder: Path) -> Iterator[Path]:
    """Run directories below ``folder``, or itself; links to folders are not followed, nor hidden ones entered."""
    for parent, folders, files in os.walk(folder):
        path = Path(parent)
        starting = {LOG, LOCK} <= set(files)  # before there is a configuration
        if starting or {CONFIG, INVOCATION} & set(files) or ("checkpoints" in folders and is_run(path)):
            yield path
            folders[:] = [name for name in folders if name not in ("checkpoints", EVALUATIONS)]
        folders[:] = [name for name in folders if not name.startswith(".")]


# ------------------------------------------------------------------------------------------------------------- reading


def read(directory: Path) -> RunRecord | None:
    """The run in ``directory``; None where what lies there is not one of ours."""
    summary, config, invocation = read_summary(directory), _config(directory), _invocation(directory)
    newest = next(iter(numbered(directory / "checkpoints")), None)
    steps = None if newest is None else steps_of(newest)
    status = status_of(directory, summary, config, steps)
    if status == "waiting" and not config and not invocation.overrides:
        return None
    content: dict[str, Any] = {}  # of a checkpoint; reading one takes as long as everything else
    asked = config.get("precision")  # auto means what it meant on the machine that trained
    if not config or status == "running" or (status != "finished" and summary is None and asked == "auto"):
        content = newest_content(directory / "checkpoints", unseen=True) or {}
    config = config or config_of(content) or {}
    precision = summary.precision if summary else content.get("precision", None if asked == "auto" else asked)
    kept = kept_invocation(content)
    if not invocation.overrides and kept is not None:
        invocation = kept
    progress = None
    if status != "finished":
        rows = read_rows(directory / METRICS)
        progress = progress_of(directory, config, rows, content, steps=steps or 0, running=status == "running")
    return RunRecord(
        directory=directory,
        status=status,
        config=config,
        overrides=invocation.overrides,
        summary=summary,
        flags=invocation.flags,
        precision=precision if isinstance(precision, str) else None,
        progress=progress,
        error=_error_of(directory, summary) if status == "failed" else None,
        evaluations=tuple(sorted(path.parent for path in directory.glob(f"{EVALUATIONS}/*/{EVALUATION}"))),
    )


def _config(directory: Path) -> dict[str, Any]:
    """What config.yaml says; nothing where it is missing, corrupt, or another program's file of that name."""
    try:
        found = config_of({"config": read_config(directory)}) or {}
    except ConfigError:
        return {}
    return found if isinstance(found.get("model"), dict) and isinstance(found.get("optim"), dict) else {}


def _invocation(directory: Path) -> Invocation:
    try:
        return read_invocation(directory)
    except ConfigError:
        return Invocation([], [])


def status_of(directory: Path, summary: Summary | None, config: dict[str, Any], steps: int | None) -> str:
    """One of STATUSES. ``steps`` are those of the newest checkpoint, None without one.

    A summary of fewer steps than that is one of an earlier session: the later one was killed.
    """
    if any(seems_held(directory / name) for name in (LOCK, JOB_LOCK)):
        return "running"
    if summary is not None and is_over(directory, summary, config or None):
        return "finished"
    if summary is not None and summary.status == "failed" and (steps or 0) <= summary.steps:
        return "failed"
    if steps is not None or (summary is not None and summary.status != "failed"):
        return "interrupted"
    return "waiting" if _told_failure(directory) is None else "failed"


def _error_of(directory: Path, summary: Summary | None) -> str:
    """Why a run failed, in one line."""
    said = summary.error if summary is not None and summary.error else _told_failure(directory)
    return " ".join((said or "its train.log says more").split())


def _told_failure(directory: Path) -> str | None:
    """The failure that train.log ends with, in one line; None where it ends otherwise. Tracebacks follow messages."""
    try:
        text = read_regular(directory / LOG)[-LOG_BYTES:].decode("utf-8", errors="replace")
    except OSError:
        return None
    messages = re.findall(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ([A-Z]+ .*)$", text, re.MULTILINE)
    start = "ERROR failed: "
    return messages[-1].removeprefix(start) if messages and messages[-1].startswith(start) else None


def counts(records: Iterable[RunRecord]) -> dict[str, int]:
    """How many runs have each status, in the order of STATUSES; without those that none has."""
    found = [record.status for record in records]
    return {status: found.count(status) for status in STATUSES if status in found}
