"""CSV, Markdown and JSON, read back."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from resnet_train.commands.report.files import as_csv, as_json, as_markdown
from resnet_train.commands.report.groups import gather
from resnet_train.commands.report.metrics import METRICS
from resnet_train.commands.report.records import RunRecord, find
from resnet_train.commands.report.table import Report

Known = Callable[..., RunRecord]


@pytest.fixture
def report(runs: Path) -> Report:
    records = find([str(runs)])
    return Report(records, gather(records), "accuracy")


@pytest.mark.slow
def test_csv_has_every_metric_in_full(report: Report) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(report))))
    finished = [group for group in report.groups if group.runs]
    assert list(rows[0]) == [
        "optim.lr",
        "n",
        *(name for metric in METRICS for name in (metric, f"{metric}_std")),
        "grade",
    ]
    for row, group in zip(rows, finished, strict=True):
        assert (row["optim.lr"], row["n"], row["grade"]) == (group.columns["optim.lr"], "3", "")
        assert (float(row["accuracy"]), float(row["accuracy_std"])) == (group.mean, group.std)
        assert (float(row["time"]), row["val_accuracy"], row["val_accuracy_std"]) == (group.seconds, "", "")


def test_markdown_is_a_table_and_how_to_obtain_it_again(report: Report) -> None:
    table, _, how = as_markdown(report).partition("\n\n")
    header, rule, *rows = table.splitlines()
    assert header == "| optim.lr | n | test % | test loss | time | images/s |"
    assert rule == "| --- | ---: | ---: | ---: | ---: | ---: |"
    assert [row.split(" | ")[:2] for row in rows] == [
        [f"| {group.columns['optim.lr']}", "3"] for group in report.groups[:2]
    ]
    assert all(" ± " in row for row in rows)
    for group, line in zip(report.groups, how.splitlines(), strict=False):
        summary = group.runs[0].summary
        assert summary is not None
        command, seeds, *rest = line.split("; ")
        assert command.startswith("- `resnet-train ") and f"optim.lr={group.columns['optim.lr']}" in command
        assert "seed=" not in command and seeds == f"seeds {', '.join(str(run.seed) for run in group.runs)}"
        assert rest[:2] == [summary.hardware, f"{summary.precision} by {summary.kernels} kernels"]
        assert (
            f"torch {summary.versions['torch']}" in rest and f"commit {(summary.git_commit or 'unknown')[:7]}" in line
        )
    assert len(how.splitlines()) == len(rows)


def test_a_bar_in_a_value_does_not_end_its_cell(known: Known) -> None:
    records = [known(config={"init_from": "a|b\n"}), known(config={"init_from": "c"})]
    assert r"| a\|b\n |" in as_markdown(Report(records, gather(records), "accuracy"))


def test_json_has_everything(report: Report) -> None:
    plain = json.loads(as_json(report))
    assert plain["metric"] == "accuracy"
    assert [run["status"] for run in plain["runs"]] == [*["finished"] * 6, "failed"]
    for group, found in zip(report.groups, plain["groups"], strict=True):
        assert found["columns"] == group.columns
        assert found["metrics"]["accuracy"] == {"mean": group.mean, "std": group.std}
        assert found["runs"] == [str(run.directory) for run in group.runs]
    failed = plain["runs"][-1]
    assert "diverged" in failed["error"] and failed["metrics"] is None and failed["progress"]["total_steps"] == 13
    assert plain["runs"][0]["config"]["optim"]["lr"] == 0.05


def test_json_has_no_number_that_is_none(known: Known) -> None:
    record = known(config={"optim.lr": float("inf")}, result=float("nan"))
    text = as_json(Report([record], gather([record]), "accuracy"))
    plain = json.loads(text, parse_constant=lambda constant: pytest.fail(constant))
    assert plain["runs"][0]["metrics"]["accuracy"] is None and plain["runs"][0]["config"]["optim"]["lr"] is None


def test_nothing_has_finished(known: Known) -> None:
    record = replace(known(), status="interrupted", summary=None)
    report = Report([record], gather([record]), "accuracy")
    assert as_csv(report).splitlines() == [as_csv(report).strip()]
    assert len(as_markdown(report).splitlines()) == 2
    assert json.loads(as_json(report))["groups"][0]["n"] == 0
