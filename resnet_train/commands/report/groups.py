"""Runs gathered: one group for each configuration, over its seeds; columns for what the groups differ in; metrics."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from resnet_train.cli.overrides import key_of
from resnet_train.commands.report.expected import Grade, Recipes, recipe_of
from resnet_train.commands.report.identity import effective, identity, requested_keys, text_of
from resnet_train.commands.report.metrics import METRICS
from resnet_train.commands.report.records import RunRecord

OPTIONS = ("experiment", "model", "dataset", "optim", "schedule")  # what an override chooses by name; first columns


@dataclass(frozen=True)
class Group:
    """The runs of one configuration, whatever their seeds."""

    label: str  # what tells it from the others: "optim.lr=0.1 model=resnet20"; the name of the run where nothing does
    columns: dict[str, str]  # key: value, for the keys in which groups differ; the same keys in every group
    runs: list[RunRecord]  # that have finished, one for each seed, by seed
    repeats: list[RunRecord]  # that have finished too, with seeds that count already: no new evidence
    others: list[RunRecord]  # that have not finished
    metric: str  # name of the metric of the five that follow
    values: list[float] = field(default_factory=list)  # of `runs`, without those that lack it
    grade: Grade | None = None  # of runs of a recipe that expects a result

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
        return METRICS[metric].values(self.runs)

    def mean_of(self, metric: str) -> float | None:
        """Their mean; None without any."""
        values = self.values_of(metric)
        return statistics.fmean(values) if values else None


def gather(records: Sequence[RunRecord], *, metric: str = "accuracy") -> list[Group]:
    """One group for each configuration, best first by ``metric``; those without a finished run come last.

    Runs whose configuration is not known are in no group.
    """
    known = [record for record in records if record.config]
    requested = requested_keys(known)
    gathered: dict[frozenset[tuple[str, str]], list[RunRecord]] = {}
    for record in known:
        gathered.setdefault(frozenset(identity(effective(record), requested).items()), []).append(record)
    members = list(gathered.values())
    columns = columns_of([group[0] for group in members], known, requested)
    recipes, groups = Recipes(), []
    for group, own in zip(members, columns, strict=True):
        group.sort(key=lambda record: (record.seed or 0, record.directory))
        finished, repeats = _by_seed([record for record in group if record.status == "finished"])
        groups.append(
            Group(
                label=" ".join(f"{key}={value}" for key, value in own.items() if value)
                or str(group[0].config.get("name", "run")),
                columns=own,
                runs=finished,
                repeats=repeats,
                others=[record for record in group if record.status != "finished"],
                metric=metric,
                values=METRICS[metric].values(finished),
                grade=recipes.grade(finished),
            )
        )
    sign = 1 if METRICS[metric].ascending else -1
    return sorted(
        groups, key=lambda group: (not group.runs, group.mean is None, sign * (group.mean or 0.0), group.label)
    )


def _by_seed(finished: Sequence[RunRecord]) -> tuple[list[RunRecord], list[RunRecord]]:
    """One run for each seed, the first by name, and the others."""
    chosen: dict[int | None, RunRecord] = {}
    for record in finished:
        chosen.setdefault(record.seed, record)
    first = list(chosen.values())
    return first, [record for record in finished if not any(record is one for one in first)]


def columns_of(
    examples: Sequence[RunRecord], records: Sequence[RunRecord], requested: Collection[str]
) -> list[dict[str, str]]:
    """For one run of each group the keys in which the groups differ, and its values.

    First the keys that overrides name, in their order. Then those keys of the configuration that do not follow from
    them: that another network has another depth needs no column of its own.
    """
    flats = [{key: text_of(value) for key, value in (effective(one) | _options(one)).items()} for one in examples]
    keys = dict.fromkeys((*OPTIONS, *(key for one in examples for key in identity(effective(one), requested))))
    differing = [key for key in keys if len({flat.get(key, "null") for flat in flats}) > 1]
    overridden = dict.fromkeys(key_of(override) for record in records for override in record.overrides)
    chosen = [key for key in dict.fromkeys((*OPTIONS, *overridden)) if key in overridden and key in differing]
    for key in differing:
        if key not in chosen and not _determined(flats, key, by=chosen):
            chosen.append(key)
    return [{key: flat.get(key, "") for key in chosen} for flat in flats]


def _options(record: RunRecord) -> dict[str, Any]:
    """Options by name, and the recipe: ``{"model": "resnet20", "experiment": "quick"}``."""
    nodes = {option: record.config.get(option) for option in OPTIONS}
    found = {option: node.get("name") for option, node in nodes.items() if isinstance(node, dict)}
    recipe = recipe_of(record)
    return found if recipe is None else found | {"experiment": recipe}


def _determined(flats: Sequence[dict[str, str]], key: str, *, by: Sequence[str]) -> bool:
    """Whether groups of one recipe, or with one option of the group that ``key`` is of, agree in ``key``.

    By recipe only where all have one.
    """
    known = [one for one in by if one == "experiment" or (one in OPTIONS and key.startswith(f"{one}."))]
    known = [one for one in known if all(one in flat for flat in flats)]
    seen: dict[tuple[str, ...], str | None] = {}
    return bool(known) and all(
        seen.setdefault(tuple(flat[one] for one in known), flat.get(key)) == flat.get(key) for flat in flats
    )
