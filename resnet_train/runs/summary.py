"""The result of a run: ``summary.json`` in its directory, and the lines that end it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from resnet_train.errors import RunError
from resnet_train.runs.atomic import read_regular, write_atomically
from resnet_train.runs.console import count, printable

FILE = "summary.json"


@dataclass(frozen=True)
class Score:
    """One evaluation of one split."""

    loss: float
    accuracy: float  # in [0, 1]
    error: float  # 1 - accuracy
    correct: int
    count: int
    step: int  # completed steps when it was measured


@dataclass(frozen=True)
class Facts:
    """What does not change while a run trains."""

    name: str = ""  # of the run
    model: str = ""
    parameters: int = 0
    multiply_adds: int = 0  # of one image
    dataset: str = ""
    images: dict[str, int] = field(default_factory=dict)  # split: number of images
    classes: list[str] = field(default_factory=list)  # names, in label order
    device: str = ""
    hardware: str = ""
    precision: str = ""
    kernels: str = ""
    compiled: bool = False
    graph: bool = False  # whether steps were launched as one CUDA graph
    graph_reason: str = ""  # why, or why not
    seed: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    git_commit: str | None = None  # of the project's source; with "+changes" where it was modified


@dataclass(frozen=True, kw_only=True)
class Summary(Facts):
    """Everything about a run that is worth a table, in plain types."""

    status: str  # finished, interrupted, failed
    directory: str
    result_split: str  # the split that `result` speaks of: test
    result_rule: str  # in words, how the scored weights were chosen
    result: float | None  # accuracy in [0, 1], on result_split
    objective: float | None  # what sweepers maximise: accuracy on val where there is a validation split, else result
    # split: its last evaluation; for train the mean over the last epoch's steps, of augmented images
    last: dict[str, Score] = field(default_factory=dict)
    best: dict[str, Score] = field(default_factory=dict)  # split: its best one, which is a result only for val
    waited: int = 0  # evaluations since the accuracy on val rose last, by more than early_stop.min_delta
    steps: int = 0  # completed
    total_steps: int = 0
    epochs: float = 0.0
    train_seconds: float = 0.0  # in steps, over all sessions of the run
    total_seconds: float = 0.0  # with evaluation, checkpoints and start-up
    images_per_second: float = 0.0  # in steps
    peak_memory_bytes: int = 0  # of the device on CUDA, of the process elsewhere
    command: str = ""
    sessions: int = 1  # 1 + number of times that the run was resumed
    forced: list[str] = field(default_factory=list)  # changes that resume_force let through
    error: str | None = None  # the message that ended a failed run

    @property
    def stopped_early(self) -> bool:
        """Whether the run finished before its last step."""
        return self.status == "finished" and self.steps < self.total_steps

    def write(self, directory: Path) -> None:
        """Write ``summary.json`` atomically, the result before the facts; raises `RunError` where it cannot."""
        plain = asdict(self)
        facts = {one.name: plain.pop(one.name) for one in fields(Facts)}
        try:
            write_atomically(directory / FILE, json.dumps(plain | facts, indent=2) + "\n")
        except OSError as error:
            raise RunError(
                f"cannot write {directory / FILE}: {error.strerror or error}; the checkpoints are whole"
            ) from error

    def sentence(self) -> str:
        """The result in one line."""
        if self.result is None:
            return f"{printable(self.status)} after {self.steps} of {self.total_steps} steps, without a result"
        score = self.last[self.result_split]
        return printable(
            f"{self.result_split} accuracy {100 * score.accuracy:.2f} % "
            f"({count(score.correct)} of {count(score.count)} images, error {100 * score.error:.2f} %), "
            f"{self.result_rule}"
        )


def read_summary(directory: Path) -> Summary | None:
    """The summary in ``directory``; None where there is none yet or it is corrupt."""
    try:
        plain = json.loads(read_regular(directory / FILE))
        for key in ("last", "best"):
            plain[key] = {split: Score(**score) for split, score in plain[key].items()}
        found = Summary(**plain)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return found if has_types(found) and (found.result is None or found.result_split in found.last) else None


def has_types(value: Summary | Score) -> bool:
    """Whether every field has its type: the file may come from a stranger."""
    kind: type = type(value)
    hints = _hints(kind)
    return all(_is(getattr(value, name), hint) for name, hint in hints.items())


_hints = cache(get_type_hints)  # a report reads a thousand


def _is(value: Any, hint: Any) -> bool:
    if isinstance(hint, UnionType):
        return any(_is(value, one) for one in get_args(hint))
    match get_origin(hint), get_args(hint):
        case None, _:
            if hint is float:
                return type(value) is float or (type(value) is int and abs(value) < 1 << 63)
            return has_types(value) if hint is Score and isinstance(value, Score) else type(value) is hint
        case origin, (item,) if origin is list:
            return type(value) is list and all(_is(one, item) for one in value)
        case origin, (key, item) if origin is dict:
            return type(value) is dict and all(_is(k, key) and _is(v, item) for k, v in value.items())
    raise AssertionError(hint)
