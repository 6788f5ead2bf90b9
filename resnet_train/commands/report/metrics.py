"""The numbers of a finished run by which a report compares and sorts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from resnet_train.commands.report.records import RunRecord
from resnet_train.runs.console import duration
from resnet_train.runs.summary import Summary

LARGEST = 1e13  # a stranger's summary may hold any number; longer times cannot be shown


@dataclass(frozen=True)
class Metric:
    """One number of a finished run."""

    name: str  # as --sort takes it
    title: str  # of its column
    get: Callable[[Summary], float | None]
    show: Callable[[float], str]
    ascending: bool = False  # whether the lowest stands first
    varies: bool = False  # whether its deviation between seeds is shown

    def of(self, record: RunRecord) -> float | None:
        """The number of one run; None where it has none, or none that is finite."""
        found = None if record.summary is None else self.get(record.summary)
        return float(found) if found is not None and math.isfinite(found) and abs(found) < LARGEST else None

    def values(self, runs: Sequence[RunRecord]) -> list[float]:
        """Of those ``runs`` that have it."""
        return [value for run in runs if (value := self.of(run)) is not None]

    def text(self, values: Sequence[float]) -> str:
        """``91.25 ± 0.12``: mean and sample standard deviation; nothing without values."""
        if not values:
            return ""
        deviation = f" ± {self.show(statistics.stdev(values))}" if self.varies and len(values) > 1 else ""
        return self.show(statistics.fmean(values)) + deviation


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _score(split: str, number: str) -> Callable[[Summary], float | None]:
    """Of the weights that count: the last ones; on the validation split the best, by which they were chosen."""

    def get(summary: Summary) -> float | None:
        score = (summary.best if split == "val" else summary.last).get(split)
        return None if score is None else float(getattr(score, number))

    return get


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "test %", _score("test", "accuracy"), _percent, varies=True),
        Metric("error", "test error %", _score("test", "error"), _percent, ascending=True, varies=True),
        Metric("loss", "test loss", _score("test", "loss"), "{:.4f}".format, ascending=True, varies=True),
        Metric("val_accuracy", "val %", _score("val", "accuracy"), _percent, varies=True),
        Metric("train_accuracy", "train %", _score("train", "accuracy"), _percent, varies=True),
        Metric("train_loss", "train loss", _score("train", "loss"), "{:.4f}".format, ascending=True, varies=True),
        Metric("time", "time", lambda summary: summary.total_seconds, duration, ascending=True),
        Metric("images_per_second", "images/s", lambda summary: summary.images_per_second, "{:,.0f}".format),
        Metric("memory", "peak MB", lambda summary: summary.peak_memory_bytes / 1e6, "{:,.0f}".format, ascending=True),
        Metric("parameters", "parameters", lambda summary: summary.parameters, "{:,.0f}".format, ascending=True),
        Metric("steps", "steps", lambda summary: summary.steps, "{:,.0f}".format, ascending=True),
    )
}
