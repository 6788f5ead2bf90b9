"""How far a run is that has not finished, by what lies in its directory; `None` for what nothing there tells."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from resnet_train.config.durations import to_steps
from resnet_train.config.run import MAX_STEPS
from resnet_train.runs.directory import CONFIG
from resnet_train.runs.metrics_table import Row

METRICS = "metrics.csv"
LONGEST_SECONDS = 1e10  # a stranger's clock may say anything


@dataclass(frozen=True)
class Progress:
    """What its newest row and its newest checkpoint say."""

    step: int = 0  # completed
    total_steps: int | None = None
    epoch: float | None = None
    epochs: float | None = None  # of the whole run
    split: str = ""  # that `accuracy` speaks of: val, test, or train where neither was measured yet
    accuracy: float | None = None  # the newest, in [0, 1]
    images_per_second: float | None = None  # of the run so far, see `_pace`
    seconds_left: float | None = None  # of a run that is running: its pace so far, continued


def progress_of(
    directory: Path,
    config: dict[str, Any],
    rows: dict[int, Row],
    content: dict[str, Any],
    *,
    steps: int = 0,
    running: bool,
) -> Progress:
    """Of the run in ``directory``: ``rows`` are those of its metrics.csv, ``content`` what its checkpoint says.

    ``steps`` are those in the name of the checkpoint, which may not have been read.
    """
    state = content.get("state")
    saved = state.get("step") if isinstance(state, dict) else None
    saved = saved if isinstance(saved, int) and saved > 0 else 0
    rows = {step: row for step, row in sorted(rows.items()) if 0 < step <= MAX_STEPS}
    measured, row = max(rows.items(), default=(0, {}))
    step = min(max(measured, saved, steps), MAX_STEPS)
    per_epoch = _steps_per_epoch(measured, row.get("epoch", 0.0), config.get("batch_size"))
    total = _total_steps(config, per_epoch)
    split, accuracy = _newest_accuracy(rows)
    images_per_second, seconds_per_step = _pace(directory, config, content, saved=saved, measured=measured)
    seconds_left = None
    if running and total is not None and seconds_per_step is not None:
        since = max(0.0, time.time() - _written(directory / METRICS))
        seconds_left = min(max(0.0, (total - step) * seconds_per_step - since), LONGEST_SECONDS)
    return Progress(
        step=step,
        total_steps=total,
        epoch=float(step / per_epoch) if per_epoch else None,
        epochs=float(total / per_epoch) if per_epoch and total is not None else None,
        split=split,
        accuracy=accuracy,
        images_per_second=images_per_second,
        seconds_left=seconds_left,
    )


def _steps_per_epoch(step: int, epoch: float, batch_size: Any) -> Fraction | None:
    """Exact: a number of images over the batch size. The file gives ``epoch`` to nine digits."""
    if not isinstance(batch_size, int) or batch_size < 1 or not 1e-9 < epoch < 1e9:
        return None
    return Fraction(step / epoch).limit_denominator(batch_size)


def _total_steps(config: dict[str, Any], per_epoch: Fraction | None) -> int | None:
    steps, epochs = config.get("steps"), config.get("epochs")
    if not isinstance(steps, int) and per_epoch is not None and isinstance(epochs, int) and epochs > 0:
        steps = to_steps(epochs, per_epoch)
    return steps if isinstance(steps, int) and 0 < steps <= MAX_STEPS else None


def _newest_accuracy(rows: dict[int, Row]) -> tuple[str, float | None]:
    for split in ("val", "test", "train"):
        for row in reversed(rows.values()):
            if math.isfinite(accuracy := row.get(f"accuracy/{split}", math.nan)):
                return split, accuracy
    return "", None


def _pace(
    directory: Path, config: dict[str, Any], content: dict[str, Any], *, saved: int, measured: int
) -> tuple[float | None, float | None]:
    """Images per second in training steps, and seconds per step with everything around them.

    By the clock in the newest checkpoint, which is ``saved`` steps old. Before there is one, by the time between the
    configuration, which is written when a run begins, and the newest row, ``measured`` steps later.
    """
    clock = content.get("clock")
    numbers = (
        [clock.get(key) for key in ("images", "train_seconds", "earlier_seconds")] if isinstance(clock, dict) else []
    )
    known = [float(number) for number in numbers if isinstance(number, int | float) and 0 < number < LONGEST_SECONDS]
    if saved and len(known) == 3:
        images, train_seconds, seconds = known
        return images / train_seconds, seconds / saved
    batch_size = config.get("batch_size")
    seconds = _written(directory / METRICS) - _written(directory / CONFIG)
    if saved or not measured or not isinstance(batch_size, int) or not seconds > 0:
        return None, None
    return measured * batch_size / seconds, seconds / measured


def _written(path: Path) -> float:
    """When a file was written, in seconds since 1970; NaN for one that is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return math.nan
