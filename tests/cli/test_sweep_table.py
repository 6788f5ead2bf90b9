"""The table that ends a sweep."""

from __future__ import annotations

from dataclasses import replace

import pytest

from resnet_train.cli.sweep_table import SweepJob, sweep_table
from resnet_train.runs.summary import Score, Summary

SUMMARY = Summary(
    status="finished",
    name="resnet20",
    directory="/outputs/a",
    result_split="test",
    result_rule="after the last of 10 steps",
    result=0.9123,
    objective=0.9123,
    last={"test": Score(0.3, 0.9123, 0.0877, 9123, 10000, 10)},
    train_seconds=99.6,
)
FAILED = replace(SUMMARY, status="failed", result=None, train_seconds=0.4)


def test_what_jobs_share_stands_above_what_they_differ_in_are_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    jobs = [
        SweepJob("a", ["model=resnet20", "dataset=synthetic", "optim.lr=0.1", "seed=0"], SUMMARY),
        SweepJob("b", ["model=resnet20", "dataset=synthetic", "optim.lr=0.25", "seed=1"], FAILED),
        SweepJob("c", ["model=resnet20", "dataset=synthetic", "optim.lr=0.1"], None),
    ]
    assert sweep_table(jobs) == (
        "all: model=resnet20 dataset=synthetic\n"
        "\n"
        "optim.lr  seed  status    result        train s  job\n"
        "0.1       0     finished  test 91.23 %  100      a\n"
        "0.25      1     failed                  0        b\n"
        "0.1             not run                          c"
    )


def test_steps_where_a_job_stopped_early() -> None:
    early = replace(SUMMARY, steps=1200, total_steps=3000)
    jobs = [SweepJob("a", ["seed=0"], early), SweepJob("b", ["seed=1"], FAILED), SweepJob("c", ["seed=2"], None)]
    assert sweep_table(jobs).splitlines() == [
        "seed  status    steps  result        train s  job",
        "0     finished  1,200  test 91.23 %  100      a",
        "1     failed    0                    0        b",
        "2     not run                                 c",
    ]


def test_jobs_with_nothing_in_common() -> None:
    assert sweep_table([SweepJob("a", ["seed=0"], None), SweepJob("b", ["seed=1"], None)]).splitlines()[0] == (
        "seed  status   result  train s  job"
    )


def test_a_strangers_overrides_are_written_out() -> None:
    table = sweep_table([SweepJob("a\x1b[2J", ["name=\x1b[31m"], None), SweepJob("b", ["name=x\ny"], None)])
    assert r"\x1b[31m" in table and r"x\ny" in table and r"a\x1b[2J" in table
    assert "\x1b" not in table
