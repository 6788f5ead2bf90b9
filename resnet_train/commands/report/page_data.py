"""What the page shows, in plain types: configurations and their results, runs, curves, how sure the best one is."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from resnet_train.commands.report.groups import Group
from resnet_train.commands.report.identity import effective, text_of
from resnet_train.commands.report.metrics import LARGEST, METRICS
from resnet_train.commands.report.page_evaluations import Room, read_evaluation
from resnet_train.commands.report.records import STATUSES, RunRecord
from resnet_train.commands.report.welch import interval_of_difference, interval_of_mean
from resnet_train.runs.console import count, duration, shell_quote
from resnet_train.runs.metrics_table import COLUMNS
from resnet_train.runs.summary import Summary

# A value takes about 8 bytes of the page. Plotly takes 4.8 MB of the 6 that 20 runs may have.
CURVE_VALUES, LEAST_POINTS, MOST_POINTS = 60_000, 40, 1000
EVALUATION_BYTES = 500_000
CURVES = tuple(column for column in COLUMNS if column != "epoch")


def page_data(groups: Sequence[Group], records: Sequence[RunRecord], *, metric: str) -> dict[str, Any]:
    """Everything on the page. A set is a group, or a run of none; runs stand in the order of the sets."""
    members = [[*group.runs, *group.repeats, *group.others] for group in groups]
    grouped = {id(record) for own in members for record in own}
    members += [[record] for record in records if id(record) not in grouped]
    ordered = [record for own in members for record in own]
    counted = {id(record) for group in groups for record in group.runs}
    folder = _folder_of(ordered)
    most = _most_points(ordered)
    sets: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    for place, own in enumerate(members):
        group = groups[place] if place < len(groups) else None
        label = group.label if group else own[0].directory.name
        grids, curves = _curves(own, most)
        sets.append(_set(group, label) | grids | {"runs": list(range(len(runs), len(runs) + len(own)))})
        for record, found in zip(own, curves, strict=True):
            more = {"label": label, "set": place, "counts": id(record) in counted, "curves": found}
            runs.append(_run(record, folder, metric) | more)
    common = _common([run["config"] for run in runs])
    for run in runs:
        run["config"] = {key: value for key, value in run["config"].items() if key not in common}
    evaluations, notes = _evaluations(ordered)
    long = max((len(record.rows) for record in ordered), default=0) > most
    numbers = {"run": len(ordered), "configuration": sum(bool(group.runs) for group in groups)}
    return {
        "title": ", ".join(_plural(number, name) for name, number in numbers.items() if number),
        "written": f"{_states(ordered)} · {folder} · {datetime.now().astimezone():%d %B %Y, %H:%M %Z}",
        "footer": "Made by resnet-report. Colours are configurations, dashes are splits; ± is one sample standard "
        "deviation over seeds.",
        "thinned": f"at most {most} rows of each run, evenly spaced; metrics.csv has them all" if long else "",
        "metric": _metric(metric),
        "keys": list(groups[0].columns) if groups else [],
        "verdict": _verdict(groups),
        "common": common,
        "sets": sets,
        "runs": runs,
        "evaluations": evaluations,
        "notes": notes,
    }


def _plural(number: int, name: str) -> str:
    return f"{count(number)} {name}{'s' * (number != 1)}"


def _states(records: Sequence[RunRecord]) -> str:
    numbers = ((sum(record.status == status for record in records), status) for status in STATUSES)
    return ", ".join(f"{number} {status}" for number, status in numbers if number)


def _folder_of(records: Sequence[RunRecord]) -> Path:
    """The folder that holds all of them; a run is named by its path from there."""
    try:
        return Path(os.path.commonpath([record.directory.parent for record in records]))
    except ValueError:  # drives of Windows
        return Path()


def _metric(name: str) -> dict[str, Any]:
    """How the page names, shows and orders it."""
    metric = METRICS[name]
    percent = "accuracy" in name or name == "error"
    label = metric.title.removesuffix(" %") + (" accuracy" if "accuracy" in name else "") if percent else metric.title
    kind = "percent" if percent else "duration" if name == "time" else "number"
    return {"label": label, "kind": kind, "lower": metric.ascending}


def _set(group: Group | None, label: str) -> dict[str, Any]:
    group = group or Group(label, {}, [], [], [], "accuracy")
    return {
        "label": label,
        "columns": group.columns,
        "finished": len(group.runs),
        "results": [number(value) for value in group.values],
        "n": group.n,
        "mean": number(group.mean),
        "sd": number(group.std),
        "seconds": number(group.seconds),
        "rate": number(group.images_per_second),
        "grade": None if group.grade is None else asdict(group.grade),
    }


def number(value: float | None, digits: int = 9) -> float | None:
    """``value`` with so many significant digits; None for what JSON cannot say."""
    return float(f"{value:.{digits}g}") if value is not None and math.isfinite(value) else None


# ---------------------------------------------------------------------------------------------------------------- runs


def _run(record: RunRecord, folder: Path, metric: str) -> dict[str, Any]:
    """One run without its curves."""
    summary, progress = record.summary, record.progress
    directory = record.directory
    finished = record.status == "finished"
    return {
        "name": str(directory.relative_to(folder)) if directory.is_relative_to(folder) else str(directory),
        "directory": str(directory),
        "status": record.status,
        "seed": record.seed,
        "config": {key: text_of(value) for key, value in effective(record).items()},
        "result": number(METRICS[metric].of(record)) if finished else None,
        "error": record.error,
        "progress": None
        if progress is None
        else {
            "epoch": number(progress.epoch),
            "epochs": number(progress.epochs),
            "split": progress.split,
            "accuracy": number(progress.accuracy),
            "seconds_left": number(progress.seconds_left),
        },
        "command": summary.command if summary else shell_quote("resnet-train", *record.flags, *record.overrides),
        "hardware": summary.hardware if summary else "",
        "versions": summary.versions if summary else {},
        "commit": summary.git_commit if summary else None,
        "computed": _computed(record),
        "trained": _trained(summary) if summary else "",
        "forced": summary.forced if summary else [],
    }


def _trained(summary: Summary) -> str:
    seconds = summary.train_seconds, summary.total_seconds
    if not all(0 <= one < LARGEST for one in seconds):
        return ""
    train, total = map(duration, seconds)
    return (
        f"{count(summary.steps)} steps, {summary.epochs:.4g} epochs in {train} at {summary.images_per_second:,.0f} "
        f"images/s; {total} in all, {summary.peak_memory_bytes / 1e6:,.0f} MB of memory, "
        f"{_plural(summary.sessions, 'session')}"
    )


def _computed(record: RunRecord) -> str:
    summary = record.summary
    if summary is None:
        return record.precision or ""
    extras = [name for name, on in (("torch.compile", summary.compiled), ("CUDA graph", summary.graph)) if on]
    return ", ".join([summary.precision, f"{summary.kernels} kernels", f"on {summary.device}", *extras])


def _common(configs: Sequence[dict[str, str]]) -> dict[str, str]:
    """What all runs share is written once."""
    return {key: value for key, value in configs[0].items() if all(config.get(key) == value for config in configs)}


# -------------------------------------------------------------------------------------------------------------- curves


def _most_points(records: Sequence[RunRecord]) -> int:
    """Points that each curve may have."""
    curves = sum(len({tag for row in record.rows.values() for tag in row if tag in CURVES}) for record in records)
    return max(LEAST_POINTS, min(MOST_POINTS, CURVE_VALUES // max(curves, 1)))


def _curves(runs: Sequence[RunRecord], most: int) -> tuple[dict[str, Any], list[dict[str, list[float | None]]]]:
    """Where the curves of a set have points, and the values of each run there.

    All runs of a set keep the same steps, so that a band over them compares like with like. ``grids`` holds each list
    of steps once, ``grid`` says which a curve has.
    """
    grids: list[tuple[int, ...]] = []
    grid: dict[str, int] = {}
    for tag in CURVES:
        steps = tuple(thin(sorted({step for run in runs for step, row in run.rows.items() if tag in row}), most))
        if steps:
            if steps not in grids:
                grids.append(steps)
            grid[tag] = grids.index(steps)
    epochs = {step: row["epoch"] for run in runs for step, row in run.rows.items() if "epoch" in row}
    values = [
        {
            tag: [number(run.rows.get(step, {}).get(tag), 5) for step in grids[place]]
            for tag, place in grid.items()
            if any(tag in row for row in run.rows.values())
        }
        for run in runs
    ]
    shown = [{"step": steps, "epoch": [number(epochs.get(step), 6) for step in steps]} for steps in grids]
    return {"grids": shown, "grid": grid}, values


def thin(steps: Sequence[int], most: int) -> list[int]:
    """At most so many of ``steps``, evenly spaced, the first and the last among them."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(index * (len(steps) - 1) / (most - 1))] for index in range(most)]


# ------------------------------------------------------------------------------------------------ verdict, evaluations


def _verdict(groups: Sequence[Group]) -> dict[str, Any]:
    """Which configuration is best, by how much, how sure."""
    ranked = [place for place, group in enumerate(groups) if group.mean is not None and math.isfinite(group.mean)]
    if not ranked:
        return {"best": None, "clear": False, "sure": "What is known of the runs so far stands below."}
    best = groups[ranked[0]]
    if len(ranked) == 1:
        sure = "" if best.n > 1 else "Where another seed would land is not known; a sweep over seed=1,2 shows it."
        interval = interval_of_mean(best.values)
        return {"best": ranked[0], "next": None, "interval": _plain(interval), "sure": sure}
    second = groups[ranked[1]]
    assert best.mean is not None and second.mean is not None
    interval = interval_of_difference(best.values, second.values)
    clear = interval is not None and not interval[0] <= 0 <= interval[1]
    if interval is None:
        sure = "Two runs of each are needed for the spread over seeds: sweep over seed=0,1."
    elif not clear:
        sure = "The spread over seeds alone may explain it."
    else:
        sure = "The spread over seeds alone does not explain it."
        if len(ranked) > 2:
            sure += f" Not corrected for having chosen the best of {len(ranked)}."
    return {
        "best": ranked[0],
        "next": ranked[1],
        "difference": number(best.mean - second.mean),
        "interval": _plain(interval),
        "clear": clear,
        "sure": sure,
    }


def _plain(interval: tuple[float, float] | None) -> list[float | None] | None:
    return None if interval is None else [number(end) for end in interval]


def _evaluations(records: Sequence[RunRecord]) -> tuple[list[dict[str, Any]], list[str]]:
    """What resnet-eval left, as much as there is room for, best configurations first; and what was left out."""
    found: list[dict[str, Any]] = []
    notes: list[str] = []
    room = Room(EVALUATION_BYTES)
    for place, record in enumerate(records):
        for folder in record.evaluations:
            evaluation = read_evaluation(folder, room, notes)
            if evaluation is not None:
                found.append(evaluation | {"run": place})
    return found, notes
