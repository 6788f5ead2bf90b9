"""Runs gathered: one group for each configuration, over its seeds; columns for what the groups differ in; metrics."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from resnet_train.cli.overrides import key_of
from resnet_train.commands.report.records import RunRecord
from resnet_train.runs.console import duration
from resnet_train.runs.resume import CHANGEABLE
from resnet_train.runs.summary import Score

# Keys that runs of one configuration may differ in: what changes no result but by rounding, as at resume. The length
# and the precision do change it; `eval_every` where the best checkpoint is chosen (see `identity`).
FREE = (CHANGEABLE - {"epochs", "steps", "precision", "dataset.root"}) | {"seed", "dataset.root"}
# Among those, what somebody may want to compare: it makes groups where overrides ask for it and differ.
ON_REQUEST = frozenset({"channels_last", "compile", "deterministic", "device", "graph", "kernels"})
OPTIONS = ("model", "dataset", "optim", "schedule")  # groups of the configuration: an override names one by name


@dataclass(frozen=True)
class Metric:
    """One number of a finished run."""

    name: str  # as --sort takes it
    title: str  # of its column
    of: Callable[[RunRecord], float | None]
    ascending: bool  # whether the lowest stands first
    show: Callable[[float], str]
    show_deviation: Callable[[float], str]


def _score(record: RunRecord, split: str) -> Score | None:
    summary = record.summary
    if summary is None:
        return None
    return summary.best.get(split) if split == "val" else summary.last.get(split)


def _of_score(split: str, field_name: str) -> Callable[[RunRecord], float | None]:
    def of(record: RunRecord) -> float | None:
        score = _score(record, split)
        return None if score is None else float(getattr(score, field_name))

    return of


def _of_summary(name: str) -> Callable[[RunRecord], float | None]:
    return lambda record: None if record.summary is None else float(getattr(record.summary, name))


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _metric(
    name: str,
    title: str,
    of: Callable[[RunRecord], float | None],
    show: Callable[[float], str],
    *,
    ascending: bool = False,
) -> Metric:
    return Metric(name, title, of, ascending, show, show)


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        _metric("accuracy", "test %", _of_score("test", "accuracy"), _percent),
        _metric("error", "test error %", _of_score("test", "error"), _percent, ascending=True),
        _metric("loss", "test loss", _of_score("test", "loss"), "{:.4f}".format, ascending=True),
        _metric("val_accuracy", "val %", _of_score("val", "accuracy"), _percent),
        _metric("train_accuracy", "train %", _of_score("train", "accuracy"), _percent),
        _metric("train_loss", "train loss", _of_score("train", "loss"), "{:.4f}".format, ascending=True),
        _metric("time", "time", _of_summary("total_seconds"), duration, ascending=True),
        _metric("images_per_second", "images/s", _of_summary("images_per_second"), "{:,.0f}".format),
        _metric("memory", "memory MB", lambda r: _mega(r, "peak_memory_bytes"), "{:,.0f}".format, ascending=True),
        _metric("parameters", "M params", lambda r: _mega(r, "parameters"), "{:.2f}".format, ascending=True),
        _metric("steps", "steps", _of_summary("steps"), "{:,.0f}".format, ascending=True),
    )
}


def _mega(record: RunRecord, name: str) -> float | None:
    value = _of_summary(name)(record)
    return None if value is None else value / 1e6


@dataclass(frozen=True)
class Group:
    """The runs of one configuration, whatever their seeds."""

    label: str  # what tells it from the others: "optim.lr=0.1 model=resnet20"; the name of the run where nothing does
    columns: dict[str, str]  # key: value, for the keys in which groups differ; the same keys in every group
    runs: list[RunRecord]  # that have finished, by seed
    others: list[RunRecord]  # that have not
    metric: str  # name of the metric of the five that follow
    values: list[float] = field(default_factory=list)  # of `runs`, without those that lack it

    @property
    def n(self) -> int:
        """Number of values."""
        return len(self.values)

    @property
    def mean(self) -> float | None:
        """Of the values; None without any."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation of the values (n - 1); None for fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def seconds(self) -> float | None:
        """Mean time of a run, with evaluation, checkpoints and start-up."""
        return self.mean_of("time")

    @property
    def images_per_second(self) -> float | None:
        """Mean throughput in training steps."""
        return self.mean_of("images_per_second")

    def values_of(self, metric: str) -> list[float]:
        """The values of another metric, of the finished runs that have it."""
        return [value for run in self.runs if (value := METRICS[metric].of(run)) is not None]

    def mean_of(self, metric: str) -> float | None:
        """Their mean; None without any."""
        values = self.values_of(metric)
        return statistics.fmean(values) if values else None


def gather(records: Sequence[RunRecord], *, metric: str = "accuracy") -> list[Group]:
    """One group for each configuration, best first by ``metric``; those without a finished run come last.

    Runs whose configuration is not known are in no group.
    """
    known = [record for record in records if record.config]
    requested = _requested(known)
    gathered: dict[tuple[tuple[str, str], ...], list[RunRecord]] = {}
    for record in known:
        gathered.setdefault(identity(record, requested), []).append(record)
    members = list(gathered.values())
    columns = columns_of([group[0] for group in members], known)
    groups = []
    for group, own in zip(members, columns, strict=True):
        group.sort(key=lambda record: (record.seed or 0, record.directory))
        finished = [record for record in group if record.status == "finished"]
        values = [value for record in finished if (value := METRICS[metric].of(record)) is not None]
        label = " ".join(f"{key}={value}" for key, value in own.items()) or str(group[0].config.get("name", "run"))
        others = [record for record in group if record.status != "finished"]
        groups.append(Group(label, own, finished, others, metric, values))
    sign = 1 if METRICS[metric].ascending else -1
    return sorted(
        groups, key=lambda group: (not group.runs, group.mean is None, sign * (group.mean or 0.0), group.label)
    )


def identity(record: RunRecord, requested: Sequence[str] = ()) -> tuple[tuple[str, str], ...]:
    """What makes runs those of one configuration: every key that changes results, and those that were ``requested``."""
    flat = effective(record)
    free = FREE - set(requested)
    if flat.get("dataset.val_size"):
        free -= {"eval_every"}  # the best checkpoint is chosen at evaluations
    if flat.get("dataset.name") == "imagefolder":
        free -= {"dataset.root"}
    return tuple(
        (key, text_of(value)) for key, value in sorted(flat.items()) if key not in free and not key.startswith("expected")
    )


def effective(record: RunRecord) -> dict[str, Any]:
    """The configuration by dotted keys, with the precision that was really used."""
    flat = record.flat
    return flat | {"precision": record.precision} if record.precision else flat


def _requested(records: Sequence[RunRecord]) -> list[str]:
    """Keys of ON_REQUEST that overrides give, and in which runs differ."""
    given = {key_of(override) for record in records for override in record.overrides} & ON_REQUEST
    return [key for key in sorted(given) if len({text_of(record.flat.get(key)) for record in records}) > 1]


def columns_of(examples: Sequence[RunRecord], records: Sequence[RunRecord]) -> list[dict[str, str]]:
    """For one run of each group the keys in which the groups differ, and its values.

    First the keys that overrides name, in their order. Then those keys of the configuration that are not yet
    determined by them: that another network has another depth needs no column of its own.
    """
    flats = [effective(example) | _chosen(example) for example in examples]
    overridden = dict.fromkeys(key_of(override) for record in records for override in record.overrides)
    ignored = FREE - set(_requested(records))
    chosen: list[str] = []
    for key in overridden:
        if key not in ignored and key != "hydra" and _differ(flats, key):
            chosen.append(key)
    keys = dict.fromkeys(key for flat in flats for key in flat if key not in ignored and not key.startswith("expected"))
    for key in (*OPTIONS, *keys):
        if key not in chosen and _differ(flats, key) and not _determined(flats, key, by=chosen):
            chosen.append(key)
    return [{key: text_of(flat.get(key)) if key in flat else "" for key in chosen} for flat in flats]


def _chosen(record: RunRecord) -> dict[str, Any]:
    """Options by name, and the recipe: ``{"model": "resnet20", "experiment": "quick"}``."""
    found = {option: record.config[option].get("name") for option in OPTIONS if isinstance(record.config.get(option), dict)}
    recipes = [override.partition("=")[2] for override in record.overrides if key_of(override) == "experiment"]
    return found | ({"experiment": recipes[-1]} if recipes else {})


def _differ(flats: Sequence[dict[str, Any]], key: str) -> bool:
    return len({text_of(flat.get(key)) for flat in flats}) > 1


def _determined(flats: Sequence[dict[str, Any]], key: str, *, by: Sequence[str]) -> bool:
    """Whether groups that agree in the keys ``by`` agree in ``key`` too."""
    seen: dict[tuple[str, ...], str] = {}
    for flat in flats:
        found = tuple(text_of(flat.get(one)) for one in by)
        if seen.setdefault(found, text_of(flat.get(key))) != text_of(flat.get(key)):
            return False
    return True


def text_of(value: Any) -> str:
    """A value as overrides write it: ``null``, ``true``, ``[1,2]``."""
    if isinstance(value, list):
        return f"[{','.join(map(text_of, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
