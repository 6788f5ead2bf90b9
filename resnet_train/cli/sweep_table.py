"""The table that ends a sweep: what all jobs share once, what they differ in as columns."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from resnet_train.cli.overrides import key_of, value_of
from resnet_train.runs.console import count, printable
from resnet_train.runs.summary import Summary


@dataclass(frozen=True)
class SweepJob:
    """One row."""

    name: str  # of its folder
    overrides: Sequence[str]
    summary: Summary | None


def sweep_table(jobs: Sequence[SweepJob]) -> str:
    """Overrides that all jobs share, then a row for each job; with the steps that it made if any stopped early."""
    values = [{key_of(override): value_of(override) for override in job.overrides} for job in jobs]
    keys = list(dict.fromkeys(key for found in values for key in found))
    differing = [key for key in keys if len({found.get(key) for found in values}) > 1]
    common = [override for override in jobs[0].overrides if key_of(override) not in differing]
    early = any(job.summary is not None and job.summary.stopped_early for job in jobs)
    rows = [(*differing, "status", *(["steps"] if early else []), "result", "train s", "job")]
    for job, found in zip(jobs, values, strict=True):
        status, steps, *result = _result(job.summary)
        shown = [steps] if early else []
        rows.append((*(found.get(key, "") for key in differing), status, *shown, *result, job.name))
    rows = [tuple(printable(cell) for cell in row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    columns = shutil.get_terminal_size((120, 24)).columns
    shared = textwrap.wrap(f"all: {printable(' '.join(common))}", columns, subsequent_indent="     ") if common else []
    return "\n".join([*shared, *([""] if shared else []), *lines])


def _result(summary: Summary | None) -> tuple[str, str, str, str]:
    """Status, completed steps, result and seconds of training."""
    if summary is None:
        return "not run", "", "", ""
    result = "" if summary.result is None else f"{summary.result_split} {100 * summary.result:.2f} %"
    return summary.status, count(summary.steps), result, f"{summary.train_seconds:.0f}"
