"""Grades: what a recipe's runs reached against what the recipe expects, and in what the two were not measured alike."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from resnet_train.cli.compose import compose
from resnet_train.cli.overrides import key_of, parse, value_of
from resnet_train.commands.report.identity import effective, identity, text_of
from resnet_train.commands.report.records import RunRecord
from resnet_train.commands.report.welch import t_quantile
from resnet_train.config.expected import ExpectedConfig
from resnet_train.config.run import Config
from resnet_train.errors import ConfigError
from resnet_train.runs.directory import lasting
from resnet_train.runs.resume import flatten

FEWEST_SEEDS = 3


@dataclass(frozen=True)
class Grade:
    """What the runs of one configuration are worth beside what its recipe expects. Numbers are accuracies in %."""

    recipe: str
    expected: ExpectedConfig
    n: int
    mean: float
    std: float | None
    interval: tuple[float, float] | None  # 95 %, of the difference of the means; None for too few seeds
    verdict: str  # within, above, below, too few seeds
    differences: list[str]  # of protocol, a line each


def recipe_of(record: RunRecord) -> str | None:
    """The recipe that its overrides name; None for a run without one."""
    named = [value_of(override) for override in record.overrides if key_of(override) == "experiment"]
    return named[-1] if named else None


class Recipes:
    """Recipes as they are composed now, each once."""

    def __init__(self) -> None:
        self._composed: dict[tuple[str, ...], Config | None] = {}

    def grade(self, runs: Sequence[RunRecord]) -> Grade | None:
        """Of finished runs of one configuration; None where their recipe expects nothing of this data set.

        None also where the recipe is not at hand.
        """
        results = [run.summary.result for run in runs if run.summary and run.summary.result is not None]
        name = recipe_of(runs[0]) if results else None
        recipe = None if name is None else self._compose((*runs[0].flags, f"experiment={name}"))
        if name is None or recipe is None or recipe.expected is None:
            return None
        if runs[0].flat.get("dataset.name") != recipe.dataset.name:
            return None
        verdict, interval = compare([100 * result for result in results], recipe.expected)
        return Grade(
            recipe=name,
            expected=recipe.expected,
            n=len(results),
            mean=100 * statistics.fmean(results),  # in this order, as the table has it: halves are rounded alike
            std=100 * statistics.stdev(results) if len(results) > 1 else None,
            interval=interval,
            verdict=verdict,
            differences=differences(runs, lasting(recipe), recipe.expected),
        )

    def _compose(self, words: tuple[str, ...]) -> Config | None:
        if words not in self._composed:
            try:
                self._composed[words] = compose(parse(words)).config
            except (ConfigError, HydraException, OmegaConfBaseException):
                self._composed[words] = None  # the recipe is not at hand, or another one by now
        return self._composed[words]


def compare(accuracies: Sequence[float], expected: ExpectedConfig) -> tuple[str, tuple[float, float] | None]:
    """The verdict, and the 95 % interval of the difference between our mean and the expected one, in points.

    ``within`` means that seeds alone explain the difference: 0 lies in the interval. By Welch's t where the source
    gives a spread. Where it gives none, its runs are taken to vary like ours (for one run that is the prediction
    interval of another). With few seeds the interval is wide: ``within`` is no proof of being equal. Fewer than
    `FEWEST_SEEDS` of ours give no verdict.
    """
    n = len(accuracies)
    if n < FEWEST_SEEDS:
        return "too few seeds", None
    ours = statistics.variance(accuracies)
    theirs, freedom = ours, float(n - 1)
    if expected.spread is not None:
        theirs = expected.spread**2
        parts = ours / n, theirs / expected.n
        if sum(parts) > 0:
            freedom = sum(parts) ** 2 / (parts[0] ** 2 / (n - 1) + parts[1] ** 2 / (expected.n - 1))
    error = math.sqrt(ours / n + theirs / expected.n)
    reach = t_quantile(freedom) * error
    difference = round(statistics.fmean(accuracies) - expected.mean, 9)  # 88.24 in binary is not 100 * 0.8824
    interval = difference - reach, difference + reach
    if interval[0] <= 0 <= interval[1]:
        return "within", interval
    return ("above" if difference > 0 else "below"), interval


def differences(runs: Sequence[RunRecord], recipe: dict[str, Any], expected: ExpectedConfig) -> list[str]:
    """In what ``runs`` of one configuration and the source were not trained or measured alike, a line each.

    First the runs against the recipe, key by key; then their precision and their choice of the result against the
    source; then what was forced at resume, and what the recipe itself says of its source.
    """
    run = runs[0]
    ours, theirs = effective(run), flatten(recipe)
    keys = dict.fromkeys((*identity(theirs), *identity(ours)))
    pairs = {key: (text_of(ours.get(key)), text_of(theirs.get(key))) for key in keys if key != "precision"}
    found = [
        f"{key}: {here}, {f'{there} in the recipe' if key in theirs else 'which the recipe does not have'}"
        for key, (here, there) in pairs.items()
        if here != there
    ]
    protocol = expected.protocol
    if protocol.precision != run.precision:
        found.append(f"precision: {run.precision}, {protocol.precision} in the source")
    assert run.summary is not None
    rule = run.summary.result_rule
    match protocol.result:
        case "best":
            found.append(f"result: {rule}; the source gives the best one on the test images")
        case "unknown":
            found.append(f"result: {rule}; the source does not say whether it gives the last or the best one")
        case "last" if "best" in rule:
            found.append(f"result: {rule}; the source gives the last one")
    found += [f"forced at resume: {one}" for each in runs if each.summary is not None for one in each.summary.forced]
    return [*found, *(f"source: {text}" for text in protocol.differs)]
