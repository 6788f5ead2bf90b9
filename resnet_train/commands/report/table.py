"""A report as a person reads it in a terminal."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from resnet_train.cli.overrides import key_of, value_of
from resnet_train.commands.report.expected import Grade
from resnet_train.commands.report.groups import Group
from resnet_train.commands.report.metrics import METRICS
from resnet_train.commands.report.records import STATUSES, RunRecord, counts
from resnet_train.runs.console import count, duration, printable, runnable
from resnet_train.runs.directory import LOG

SHOWN = ("accuracy", "loss", "time", "images_per_second")  # as many as there is room for, behind the chosen one
MOST_LINES = 20  # runs of one status that are named; more are counted
NARROWEST = 28  # of the column that takes all keys where they do not fit side by side


@dataclass(frozen=True)
class Report:
    """What was found below the paths, sorted by one metric."""

    records: Sequence[RunRecord]
    groups: Sequence[Group]
    metric: str


def table(report: Report, *, width: int) -> str:
    """Everything, in at most ``width`` columns where words allow it; blank lines between the parts."""
    found = counts(report.records)
    total = "1 run" if len(report.records) == 1 else f"{count(len(report.records))} runs"
    parts = [f"{total}: {', '.join(f'{count(number)} {status}' for status, number in found.items())}"]
    shared = shared_overrides(report)
    if shared:
        parts[0] += "\n" + _wrapped(f"all: {' '.join(shared)}", width, indent="     ")
    finished = [group for group in report.groups if group.runs]
    if finished:
        parts.append(_rows(finished, report.metric, width))
    parts += [_grade(group, group.grade, width) for group in finished if group.grade is not None]
    labels = labels_of(report)
    for status in STATUSES[1:]:
        runs = [(record, labels[number]) for number, record in enumerate(report.records) if record.status == status]
        if runs:
            parts.append(_others(status, runs, width))
    return "\n\n".join(parts)


def shared_overrides(report: Report) -> list[str]:
    """Overrides that all runs were started with, which stand in no column."""
    keys = {key for group in report.groups for key in group.columns} | {"seed"}
    sets = [record.overrides for record in report.records]
    return [one for one in sets[0] if key_of(one) not in keys and all(one in overrides for overrides in sets)]


def short(keys: Sequence[str]) -> list[str]:
    """The last words of dotted keys, where these tell them apart: lr for optim.lr."""
    last = [key.rpartition(".")[2] for key in keys]
    return [word if last.count(word) == 1 else key for key, word in zip(keys, last, strict=True)]


def labels_of(report: Report) -> list[str]:
    """What tells each record from the others: what its group differs in from others, and its seed."""
    groups = {id(run): group for group in report.groups for run in (*group.runs, *group.repeats, *group.others)}
    keys = list(dict.fromkeys(key for group in report.groups for key in group.columns))
    given = [{key_of(one): value_of(one) for one in record.overrides} for record in report.records]
    seeds = [
        str(record.seed) if record.seed is not None else values.get("seed")
        for record, values in zip(report.records, given, strict=True)
    ]
    found = []
    for record, overrides, seed in zip(report.records, given, seeds, strict=True):
        values = groups[id(record)].columns if id(record) in groups else {key: overrides.get(key, "") for key in keys}
        if seed is not None and len(set(seeds)) > 1:
            values = values | {"seed": seed}
        words = [f"{name}={value}" for name, value in zip(short(list(values)), values.values(), strict=True) if value]
        found.append(printable(" ".join(words) or record.directory.name))
    return found


# --------------------------------------------------------------------------------------------------------------- groups


def _rows(groups: Sequence[Group], metric: str, width: int) -> str:
    """One line for each group, if need be without the last columns, or with all keys in one that is folded."""
    wanted = list(dict.fromkeys((metric, *SHOWN)))
    keys = list(groups[0].columns)
    texts = [short(keys), *([printable(group.columns[key]) for key in keys] for group in groups)]
    names, lines = _fitting(wanted, lambda names: _aligned(texts, _numbers(groups, names)), width)
    if not lines:  # all keys in one column, which is folded
        names, lines = _fitting(wanted, lambda names: _folded(groups, keys, _numbers(groups, names), width), width)
    lines = lines or _folded(groups, keys, _numbers(groups, names), width)
    left_out = [METRICS[name].title for name in wanted if name not in names]
    notes = [f"no room for {', '.join(left_out)}: a wider terminal or --csv shows them"] if left_out else []
    repeats = sum(len(group.repeats) for group in groups)
    if repeats:
        notes.append(f"finished runs that repeat a seed of their row, and do not count: {repeats}")
    return "\n".join([*lines, *(_wrapped(f"({note})", width) for note in notes)])


def _fitting(
    wanted: Sequence[str], draw: Callable[[Sequence[str]], list[str]], width: int
) -> tuple[Sequence[str], list[str]]:
    """The most of the metrics ``wanted`` with which lines fit, and the lines; none where not even two do."""
    for number in range(len(wanted), 1, -1):
        lines = draw(wanted[:number])
        if max(map(len, lines)) <= width:
            return wanted[:number], lines
    return wanted[:1], []


def _numbers(groups: Sequence[Group], names: Sequence[str]) -> list[list[str]]:
    header = ["n", *(METRICS[name].title for name in names)]
    return [
        header,
        *([str(group.n), *(METRICS[name].text(group.values_of(name)) for name in names)] for group in groups),
    ]


def _aligned(texts: Sequence[Sequence[str]], numbers: Sequence[Sequence[str]]) -> list[str]:
    text_widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    widths = [max(map(len, column)) for column in zip(*numbers, strict=True)]
    return [
        "  ".join(
            [cell.ljust(size) for cell, size in zip(left, text_widths, strict=True)]
            + [cell.rjust(size) for cell, size in zip(right, widths, strict=True)]
        )
        for left, right in zip(texts, numbers, strict=True)
    ]


def _folded(groups: Sequence[Group], keys: Sequence[str], numbers: Sequence[Sequence[str]], width: int) -> list[str]:
    right = _aligned([[]] * len(numbers), numbers)
    room = max(NARROWEST, width - len(right[0]) - 2)
    lines = [f"{'':{room}}  {right[0]}".rstrip()]
    for group, cells in zip(groups, right[1:], strict=True):
        named = zip(short(keys), (group.columns[key] for key in keys), strict=True)
        text = printable(" ".join(f"{name}={value}" for name, value in named if value))
        first, *rest = textwrap.wrap(text, room, subsequent_indent="  ", break_on_hyphens=False) or [""]
        lines += [f"{first:{room}}  {cells}", *rest]
    return lines


def graded(grade: Grade) -> str:
    """What the runs of a recipe are worth beside what it expects, in one line."""
    expected = grade.expected
    ours = f"{grade.mean:.2f}" + ("" if grade.std is None else f" ± {grade.std:.2f}")
    theirs = f"{expected.mean:.2f}" + ("" if expected.spread is None else f" ± {expected.spread:.2f}")
    text = f"{grade.recipe}: {grade.verdict}. Test accuracy {ours} % (n = {grade.n})"
    text += f", expected {theirs} % (n = {expected.n})"
    if grade.interval is not None:
        low, high = grade.interval
        text += f"; the difference lies between {low:+.2f} and {high:+.2f} points with 95 % confidence"
    return text


def _grade(group: Group, grade: Grade, width: int) -> str:
    lines = [graded(grade), f"  expected by: {grade.expected.source}"]
    if grade.differences:
        lines += ["  not alike:", *(f"  - {one}" for one in grade.differences)]
    if group.columns:
        lines.insert(1, f"  row: {group.label}")
    return "\n".join(_wrapped(printable(line), width, indent="    ") for line in lines)


# --------------------------------------------------------------------------------------------------------------- others


def _others(status: str, runs: Sequence[tuple[RunRecord, str]], width: int) -> str:
    lines = [f"{status}:"]
    for record, label in runs[:MOST_LINES]:
        said = told(record)
        lines.append(_wrapped(f"  {label}" + (f"  {said}" if said else ""), width, indent="    "))
        if where := _where(record):
            lines.append(f"    {where}")
    if len(runs) > MOST_LINES:
        lines.append(f"  and {count(len(runs) - MOST_LINES)} more")
    return "\n".join(lines)


def told(record: RunRecord) -> str:
    """How far a run is that has not finished, or what ended it, in one line."""
    progress = record.progress
    if progress is None or record.status == "waiting":
        return ""
    parts = []
    if progress.epoch is not None:
        parts.append(f"epoch {progress.epoch:.4g}" + ("" if progress.epochs is None else f"/{progress.epochs:.4g}"))
    else:
        parts.append(
            f"step {count(progress.step)}" if progress.step else "starting" if record.status == "running" else ""
        )
    if progress.accuracy is not None:
        parts.append(f"{progress.split} {100 * progress.accuracy:.2f} %")
    if record.status == "running" and progress.images_per_second is not None:
        parts.append(f"{progress.images_per_second:,.0f} images/s")
    if progress.seconds_left is not None:
        parts.append(f"{duration(progress.seconds_left)} left")
    if record.error is not None:
        parts.append(printable(record.error))
    return ", ".join(filter(None, parts))


def _where(record: RunRecord) -> str:
    """What to type to continue a run, or where it lies."""
    place = near(record.directory)
    match record.status:
        case "waiting" if not record.config:
            return ""
        case "interrupted" if record.config:
            return printable(runnable("resnet-train", f"resume={place}"))
        case "failed":
            return printable(str(Path(place, LOG)))
    return printable(place)


def near(directory: Path) -> str:
    """A directory as it is typed here: from the working directory, where it lies below."""
    try:
        return str(directory.relative_to(Path.cwd()))
    except ValueError:
        return os.fspath(directory)


def _wrapped(text: str, width: int, *, indent: str = "") -> str:
    return textwrap.fill(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
