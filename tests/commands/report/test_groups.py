"""Seeds gathered, columns for what differs, and the order of the rows."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from resnet_train.commands.report.groups import gather
from resnet_train.commands.report.metrics import METRICS
from resnet_train.commands.report.records import RunRecord, find

Known = Callable[..., RunRecord]


def test_seeds_are_gathered(runs: Path) -> None:
    records = find([str(runs)])
    groups = gather(records)
    assert [(group.columns, group.label) for group in groups if group.runs] == [
        ({"optim.lr": lr}, f"optim.lr={lr}") for lr in sorted(("0.1", "0.05"), key=lambda lr: -_mean(records, lr))
    ]
    for group in groups[:2]:
        results = [run.summary.result for run in group.runs if run.summary and run.summary.result is not None]
        assert [run.seed for run in group.runs] == [0, 1, 2]
        assert (group.n, group.mean, group.std) == (3, statistics.fmean(results), statistics.stdev(results))
        assert group.seconds and group.images_per_second
    assert (groups[2].runs, groups[2].n, groups[2].mean, groups[2].std) == ([], 0, None, None)
    assert [record.status for record in groups[2].others] == ["failed"]


def _mean(records: list[RunRecord], lr: str) -> float:
    found = [one.summary.result for one in records if one.summary and one.flat["optim.lr"] == float(lr)]
    return statistics.fmean(value for value in found if value is not None)


def test_one_run_has_no_deviation(known: Known) -> None:
    group, *others = gather([known()])
    assert (group.n, group.std, group.columns, group.label, others) == (1, None, {}, "resnet8", [])


def test_a_seed_counts_once(known: Known) -> None:
    first, again = known(directory=Path("/a")), known(directory=Path("/b"), result=0.9)
    (group,) = gather([again, first])
    assert (group.runs, group.repeats, group.n) == ([first], [again], 1)


# ------------------------------------------------------------------------------------------------------------- columns


@pytest.mark.parametrize(
    ("config", "columns"),
    [
        ({"optim.lr": 0.2}, {"optim.lr": ("0.1", "0.2")}),
        ({"seed": 7}, None),
        (
            {"log_every": 3, "checkpoint.keep": 9, "dataset.root": "/elsewhere", "name": "other", "kernels": "plain"},
            None,
        ),
        ({"eval_every": 5}, None),
        ({"key_of_a_later_version": None}, None),
        (
            {"eval_every": 5, "dataset.val_size": 10},
            {"dataset.val_size": ("0", "10"), "eval_every": ("1", "5")},
        ),
        ({"epochs": 9}, {"epochs": ("2", "9")}),
        ({"init_from": "/runs/a"}, {"init_from": ("null", "/runs/a")}),
        (
            {"dataset.mean": [0.1, 0.2, 0.3], "ema_decay": 0.9},
            {"dataset.mean": ("[0.5,0.5,0.5]", "[0.1,0.2,0.3]"), "ema_decay": ("null", "0.9")},
        ),
        ({"model.name": "resnet20", "model.depth": 20}, {"model": ("resnet8", "resnet20")}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_what_makes_another_configuration(
    known: Known, config: dict[str, object], columns: dict[str, tuple[str, str]] | None
) -> None:
    """The keys of a network follow from its name."""
    one, other = known(overrides=[]), known(overrides=[], config=config)
    groups = {id(run): group for group in gather([one, other]) for run in (*group.runs, *group.repeats)}
    if columns is None:
        assert groups[id(one)] is groups[id(other)]
    else:
        assert groups[id(one)].columns == {key: values[0] for key, values in columns.items()}
        assert groups[id(other)].columns == {key: values[1] for key, values in columns.items()}


def test_evaluations_choose_the_result_where_images_are_held_out(known: Known) -> None:
    held = {"dataset.val_size": 10}
    groups = gather([known(config=held), known(config=held | {"eval_every": 5})])
    assert sorted(group.label for group in groups) == ["eval_every=1", "eval_every=5"]


def test_overrides_have_their_columns_in_their_order_options_first(known: Known) -> None:
    one = known(overrides=["optim.lr=0.1", "optim.momentum=0.9", "model=resnet8", "seed=0"])
    both = {"optim.lr": 0.2, "optim.momentum": 0.8, "model.name": "resnet14", "model.depth": 14}
    other = known(overrides=["model=resnet14", "optim.lr=0.2", "optim.momentum=0.8"], config=both)
    assert list(gather([one, other])[0].columns) == ["model", "optim.lr", "optim.momentum"]


@pytest.mark.slow
def test_what_follows_from_a_recipe_has_no_column_if_all_have_one(known: Known) -> None:
    quick = known(overrides=["experiment=quick"])
    other = known(overrides=["experiment=other"], config={"optim.lr": 0.7, "batch_size": 8})
    assert list(gather([quick, other])[0].columns) == ["experiment"]
    groups = gather([quick, replace(other, overrides=[])])
    assert [set(group.columns) for group in groups] == [{"experiment", "optim.lr", "batch_size"}] * 2
    assert not any("experiment= " in group.label for group in groups)


def test_kernels_are_compared_where_that_was_asked_for(known: Known) -> None:
    plain = known(overrides=["kernels=plain"], config={"kernels": "plain"})
    fused = known(overrides=["kernels=fused"], config={"kernels": "fused"})
    assert [group.columns for group in gather([plain, fused])] == [{"kernels": "fused"}, {"kernels": "plain"}]


def test_the_precision_is_the_one_that_was_used(known: Known) -> None:
    groups = gather([known(config={"precision": "auto"}, precision=used) for used in ("bf16", "fp32")])
    assert [group.columns for group in groups] == [{"precision": "bf16"}, {"precision": "fp32"}]


# --------------------------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("accuracy", [0.3, 0.2, 0.1]),
        ("error", [0.3, 0.2, 0.1]),
        ("time", [0.1, 0.3, 0.2]),
        ("images_per_second", [0.2, 0.3, 0.1]),
    ],
)
def test_the_best_stands_first(known: Known, metric: str, expected: list[float]) -> None:
    facts = {0.1: (0.5, 10.0, 100.0), 0.2: (0.6, 30.0, 300.0), 0.3: (0.7, 20.0, 200.0)}
    records = [
        known(config={"optim.lr": lr}, result=result, total_seconds=seconds, images_per_second=speed)
        for lr, (result, seconds, speed) in facts.items()
    ]
    groups = gather(records, metric=metric)
    assert [group.runs[0].flat["optim.lr"] for group in groups] == expected
    assert [group.mean for group in groups] == [METRICS[metric].of(group.runs[0]) for group in groups]


def test_what_lacks_the_metric_comes_last(known: Known) -> None:
    lacks, has = known(result=float("nan")), known(config={"optim.lr": 0.9}, result=0.1)
    assert [group.n for group in gather([lacks, has])] == [1, 0]
    assert [group.n for group in gather([lacks, has], metric="val_accuracy")] == [0, 0]


def test_the_error_is_the_rest_of_the_accuracy(known: Known) -> None:
    assert METRICS["error"].text([0.25, 0.75]) == "50.00 ± 35.36"
    assert METRICS["time"].text([10, 20]) == "0:00:15"
    assert METRICS["accuracy"].text([]) == ""
    assert METRICS["error"].of(known(result=0.75)) == 0.25
