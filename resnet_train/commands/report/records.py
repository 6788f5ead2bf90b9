"""Runs, found at any depth below a folder and read without torch: what each is, how far it came, how well it does.

Whatever lies there may be a stranger's, or cut: what cannot be read is left out of the record, never the end of a
report. Nothing is written, so the directories may be read-only.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from resnet_train.config.durations import to_steps
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
METRICS, EVALUATIONS, EVALUATION, JOB_LOCK = "metrics.csv", "eval", "eval.json", ".job.lock"
MOST_LOG_BYTES = 1 << 16  # of the end of train.log, where it says what went wrong


@dataclass(frozen=True)
class Progress:
    """How far a run is that has not finished; None for what nothing in its directory tells."""

    step: int = 0  # completed, by its newest row or checkpoint
    total_steps: int | None = None
    epoch: float | None = None
    epochs: float | None = None  # of the whole run
    split: str = ""  # that `accuracy` speaks of: val, test, or train where neither was measured yet
    accuracy: float | None = None  # the newest, in [0, 1]
    images_per_second: float | None = None  # in training steps, up to the newest checkpoint
    seconds_left: float | None = None  # for a run that is running; an estimate, see `_seconds_left`


@dataclass(frozen=True)
class RunRecord:
    """One run, as its directory tells of it."""

    directory: Path
    status: str  # one of STATUSES
    config: dict[str, Any]  # saved, plain, nested; empty where none was saved yet
    overrides: list[str]  # that started it
    summary: Summary | None
    precision: str | None  # in which it is trained; what is configured may be auto
    progress: Progress | None = None  # of one that has not finished
    error: str | None = None  # of one that failed, in one line
    evaluations: tuple[Path, ...] = field(default=())  # folders with an eval.json, which resnet-eval wrote; by name

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
    directories: dict[Path, None] = {}
    for name in paths:
        found = [latest()] if name == "latest" else list(below(_folder(name)))
        directories |= dict.fromkeys(directory.absolute() for directory in found)
    records = [record for directory in sorted(directories) if (record := read(directory)) is not None]
    if not records:
        raise ConfigError(
            f"expected runs of resnet-train below {', '.join(map(repr, paths))}, found none; run directories look like "
            f"outputs/2026-01-31/12-00-00-resnet20"
        )
    return records


def latest(outputs: Path = Path("outputs")) -> Path:
    """The run under ``outputs`` that changed last; raises `ConfigError` where there is none."""
    found = list(below(outputs)) if outputs.is_dir() else []
    if not found:
        raise ConfigError(f"latest: expected a run under {str(outputs)!r}, found none; name its directory")
    return max(found, key=_changed)


def _changed(directory: Path) -> float:
    files = (directory / name for name in (CONFIG, INVOCATION, METRICS, LOG))
    return max((file.stat().st_mtime for file in files if file.is_file()), default=0.0)


def _folder(name: str) -> Path:
    path = Path(name).expanduser() if name.startswith("~") else Path(name)
    if path.is_dir():
        return path
    if not path.exists():
        raise ConfigError(f"expected a run directory or a folder of runs, got {name!r}, which does not exist")
    raise ConfigError(f"expected a run directory or a folder of runs, got the file {name!r}; name its folder")


def below(folder: Path) -> Iterator[Path]:
    """Run directories below ``folder``, or itself; links to folders are not followed, nor are hidden ones entered."""
    for parent, folders, files in os.walk(folder):
        path = Path(parent)
        if {CONFIG, INVOCATION} & set(files) or ("checkpoints" in folders and is_run(path)):
            yield path
            folders[:] = [name for name in folders if name not in ("checkpoints", EVALUATIONS)]
        folders[:] = sorted(name for name in folders if not name.startswith("."))


# ------------------------------------------------------------------------------------------------------------- reading


def read(directory: Path) -> RunRecord | None:
    """The run in ``directory``; None where what lies there is not one of ours."""
    summary = read_summary(directory)
    try:
        config = read_config(directory) or {}
    except ConfigError:
        config = {}
    try:
        invocation = read_invocation(directory)
    except ConfigError:
        invocation = Invocation([], [])
    if "model" not in config and "optim" not in config:
        config = {}  # another program's file of that name
    steps = max(map(_steps, numbered(directory / "checkpoints")), default=None)
    if not config and summary is None and steps is None and not (directory / INVOCATION).is_file():
        return None
    status = status_of(directory, summary, config, steps)
    content = {} if status in ("finished", "waiting") and config else newest(directory)
    config = config or config_of(content) or {}
    kept = kept_invocation(content)
    record = RunRecord(
        directory=directory,
        status=status,
        config=config,
        overrides=invocation.overrides or (kept.overrides if kept else []),
        summary=summary,
        precision=summary.precision if summary else _text(content.get("precision")),
        error=error_of(directory, summary) if status == "failed" else None,
        evaluations=tuple(sorted(path.parent for path in directory.glob(f"{EVALUATIONS}/*/{EVALUATION}"))),
    )
    if status == "finished":
        return record
    object.__setattr__(record, "progress", progress_of(record, content))  # which looks at the record's rows
    return record


def newest(directory: Path) -> dict[str, Any]:
    """What the newest checkpoint says, without its tensors; empty where there is none."""
    return newest_content(directory / "checkpoints", unseen=True) or {}


def _steps(path: Path) -> int:
    return steps_of(path) or 0


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


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
    return "failed" if _told_failure(directory) is not None else "waiting"


def error_of(directory: Path, summary: Summary | None) -> str:
    """Why a run failed, in one line."""
    said = summary.error if summary is not None and summary.error else _told_failure(directory)
    return " ".join((said or "its train.log says more").split())


def _told_failure(directory: Path) -> str | None:
    """The message of the last failure in train.log, if that is what it ends with."""
    lines = log_end(directory).splitlines()
    for number, line in reversed(list(enumerate(lines))):
        if re.match(r"\d{4}-\d\d-\d\d \S+ [A-Z]+ ", line):  # the newest message; a traceback may follow
            found = re.fullmatch(r"\S+ \S+ ERROR failed: (.*)", line)
            return found[1] if found and number < len(lines) else None
    return None


def log_end(directory: Path) -> str:
    """The last lines of train.log; nothing where there is none."""
    try:
        return read_regular(directory / LOG)[-MOST_LOG_BYTES:].decode("utf-8", errors="replace")
    except OSError:
        return ""


# ------------------------------------------------------------------------------------------------------------ progress


def progress_of(record: RunRecord, content: dict[str, Any]) -> Progress:
    """How far ``record`` is, by its rows and its newest checkpoint, which says ``content``."""
    rows = record.rows
    state, clock = (content.get(name) if isinstance(content.get(name), dict) else {} for name in ("state", "clock"))
    assert isinstance(state, dict) and isinstance(clock, dict)
    saved = state.get("step") if isinstance(state.get("step"), int) else 0
    step = max(max(rows, default=0), saved)
    per_epoch = _steps_per_epoch(record, rows)
    total = _total_steps(record.config, per_epoch)
    split, accuracy = _newest_accuracy(rows)
    speed, seconds_per_step = _speed(record, clock, saved, rows)
    return Progress(
        step=step,
        total_steps=total,
        epoch=step / per_epoch if per_epoch else None,
        epochs=total / per_epoch if per_epoch and total is not None else None,
        split=split,
        accuracy=accuracy,
        images_per_second=speed,
        seconds_left=_seconds_left(record, step, total, seconds_per_step),
    )


def _newest_accuracy(rows: dict[int, Row]) -> tuple[str, float | None]:
    for split in ("val", "test", "train"):
        for row in reversed(rows.values()):
            if f"accuracy/{split}" in row:
                return split, row[f"accuracy/{split}"]
    return "", None


def _steps_per_epoch(record: RunRecord, rows: dict[int, Row]) -> float | None:
    """From the summary, or from a row, whose step and epoch are both known."""
    batch_size = record.config.get("batch_size")
    if record.summary is not None and isinstance(batch_size, int) and batch_size > 0:
        images = record.summary.images.get("train", 0)
        if images > 0:
            return images / batch_size
    step, row = max(rows.items(), default=(0, {}))
    epoch = row.get("epoch", 0.0)
    return step / epoch if epoch > 0 else None


def _total_steps(config: dict[str, Any], per_epoch: float | None) -> int | None:
    if isinstance(config.get("steps"), int):
        return int(config["steps"])
    if per_epoch is None or not isinstance(config.get("epochs"), int):
        return None
    return to_steps(config["epochs"], Fraction(per_epoch).limit_denominator(10**6))


def _speed(
    record: RunRecord, clock: dict[str, Any], saved: int, rows: dict[int, Row]
) -> tuple[float | None, float | None]:
    """Images per second in training steps, and seconds per step with everything around them.

    By the clock in the newest checkpoint. Before the first one of a run that has made steps: by the time between its
    configuration, written when it began, and its newest row.
    """
    batch_size = record.config.get("batch_size")
    numbers = [clock.get(name) for name in ("images", "train_seconds", "earlier_seconds")]
    if saved > 0 and all(isinstance(number, int | float) and number > 0 for number in numbers):
        images, train_seconds, seconds = map(float, numbers)  # type: ignore[arg-type]
        return images / train_seconds, seconds / saved
    step = max(rows, default=0)
    if step == 0 or not isinstance(batch_size, int):
        return None, None
    try:
        seconds = (record.directory / METRICS).stat().st_mtime - (record.directory / CONFIG).stat().st_mtime
    except OSError:
        return None, None
    return (step * batch_size / seconds, seconds / step) if seconds > 0 else (None, None)


def _seconds_left(record: RunRecord, step: int, total: int | None, seconds_per_step: float | None) -> float | None:
    """The steps left at the pace so far, less the time since the newest row was written."""
    if record.status != "running" or total is None or seconds_per_step is None:
        return None
    try:
        since = max(0.0, time.time() - (record.directory / METRICS).stat().st_mtime)
    except OSError:
        since = 0.0
    return max(0.0, (total - step) * seconds_per_step - since)


def counts(records: Iterable[RunRecord]) -> dict[str, int]:
    """How many runs have each status, in the order of STATUSES; without those that none has."""
    found = [record.status for record in records]
    return {status: found.count(status) for status in STATUSES if status in found}
