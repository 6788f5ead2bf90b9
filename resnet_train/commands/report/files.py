"""A report as programs read it: CSV and Markdown with a row for each configuration, JSON with everything."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from resnet_train.cli.overrides import key_of
from resnet_train.commands.report.groups import Group
from resnet_train.commands.report.metrics import METRICS
from resnet_train.commands.report.records import RunRecord
from resnet_train.commands.report.table import SHOWN, Report, graded
from resnet_train.runs.console import printable, shell_quote

DAY = re.compile(r"\b\d{4}-\d\d-\d\d\b")  # in the path of a run, unless it was given another place
VERSIONS = ("python", "torch", "torchvision")  # on which results depend


def as_csv(report: Report) -> str:
    """Keys, number of seeds, then mean and sample standard deviation of every metric; empty where there is none."""
    groups = [group for group in report.groups if group.runs]
    keys = list(groups[0].columns) if groups else []
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*keys, "n", *(title for name in METRICS for title in (name, f"{name}_std")), "grade"])
    for group in groups:
        numbers = [number for name in METRICS for number in _both(group, name)]
        cells = ["" if number is None else repr(number) for number in numbers]
        writer.writerow(
            [
                *map(printable, group.columns.values()),
                len(group.runs),
                *cells,
                group.grade.verdict if group.grade else "",
            ]
        )
    return out.getvalue()


def as_markdown(report: Report) -> str:
    """A table with the metrics of the terminal; below it, for each row, how to obtain it again."""
    groups = [group for group in report.groups if group.runs]
    names = list(dict.fromkeys((report.metric, *SHOWN)))
    keys = list(groups[0].columns) if groups else []
    rows = [[*keys, "n", *(METRICS[name].title for name in names)]]
    rows.append([*("---" for _ in keys), *("---:" for _ in (1, *names))])
    rows += [
        [*group.columns.values(), str(len(group.runs)), *(METRICS[name].text(group.values_of(name)) for name in names)]
        for group in groups
    ]
    lines = [f"| {' | '.join(printable(cell).replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    lines += ["", *(f"- {printable(_how(group))}" for group in groups)] if groups else []
    return "".join(f"{line}\n" for line in lines)


def _how(group: Group) -> str:
    """Command, seeds, machine, versions, source and day of the runs of a group, and their grade, as one item."""
    first = group.runs[0]
    summaries = [run.summary for run in group.runs if run.summary is not None]
    left_out = {"seed"} if first.flat.get("dataset.name") == "imagefolder" else {"seed", "dataset.root"}
    words = [one for one in first.overrides if key_of(one) not in left_out]
    days = [found[0] for run in group.runs if (found := DAY.findall(str(run.directory)))]
    parts = [
        f"`{shell_quote('resnet-train', *words)}`",
        ("seed " if len(group.runs) == 1 else "seeds ") + ", ".join(str(run.seed) for run in group.runs),
        _all(one.hardware for one in summaries),
        _all(f"{one.precision} by {one.kernels} kernels" for one in summaries),
        *_all_versions([one.versions for one in summaries]),
        "commit " + _all(_commit(one.git_commit) for one in summaries),
        _all(days),
    ]
    text = "; ".join(part for part in parts if part)
    return f"{text}. {graded(group.grade)}" if group.grade is not None else text


def _commit(name: str | None) -> str:
    if name is None:
        return "unknown"
    head, plus, rest = name.partition("+")
    return head[:7] + plus + rest


def _all(texts: Iterable[str]) -> str:
    """Each different text once."""
    return ", ".join(dict.fromkeys(texts))


def _all_versions(found: Sequence[dict[str, str]]) -> list[str]:
    return [f"{name} {_all(one.get(name, 'unknown') for one in found)}" for name in VERSIONS if found]


def as_json(report: Report) -> str:
    """Groups with their statistics, and every run; numbers that are not finite become null."""
    plain = {
        "metric": report.metric,
        "groups": [_group(group) for group in report.groups],
        "runs": [_run(record) for record in report.records],
    }
    return json.dumps(_finite(plain), indent=2, ensure_ascii=False) + "\n"


def _both(group: Group, name: str) -> tuple[float | None, float | None]:
    values = group.values_of(name)
    return group.mean_of(name), statistics.stdev(values) if len(values) > 1 else None


def _group(group: Group) -> dict[str, Any]:
    means = {name: dict(zip(("mean", "std"), _both(group, name), strict=True)) for name in METRICS}
    return {
        "label": group.label,
        "columns": group.columns,
        "n": len(group.runs),
        "metrics": means,
        "runs": [str(run.directory) for run in group.runs],
        "repeats": [str(run.directory) for run in group.repeats],
        "others": [str(run.directory) for run in group.others],
        "grade": None if group.grade is None else asdict(group.grade),
    }


def _run(record: RunRecord) -> dict[str, Any]:
    return {
        "directory": str(record.directory),
        "status": record.status,
        "seed": record.seed,
        "precision": record.precision,
        "overrides": record.overrides,
        "error": record.error,
        "progress": None if record.progress is None else asdict(record.progress),
        "metrics": {name: metric.of(record) for name, metric in METRICS.items()}
        if record.status == "finished"
        else None,
        "evaluations": [str(path) for path in record.evaluations],
        "config": record.config,
    }


def _finite(value: Any) -> Any:
    match value:
        case dict():
            return {key: _finite(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_finite(inner) for inner in value]
        case float():
            return value if math.isfinite(value) else None
    return value
