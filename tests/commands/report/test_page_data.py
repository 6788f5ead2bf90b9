"""What the page shows, from records of real runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resnet_train.commands.report.groups import gather
from resnet_train.commands.report.page_data import page_data, thin
from resnet_train.commands.report.records import RunRecord, find
from resnet_train.runs.metrics_table import COLUMNS, line_of

Known = Callable[..., RunRecord]


def data_of(records: list[RunRecord], metric: str = "accuracy") -> dict[str, Any]:
    found = page_data(gather(records, metric=metric), records, metric=metric)
    return json.loads(json.dumps(found, allow_nan=False))  # type: ignore[no-any-return]


def seeds(known: Known, lr: float, results: list[float]) -> list[RunRecord]:
    """Runs of one configuration."""
    return [
        known(config={"optim.lr": lr, "seed": seed}, overrides=[f"optim.lr={lr}", f"seed={seed}"], result=result)
        for seed, result in enumerate(results)
    ]


def test_real_runs(runs: Path) -> None:
    data = data_of(find([str(runs)]))
    assert data["title"] == "7 runs, 2 configurations"
    assert data["written"].startswith(f"6 finished, 1 failed · {runs} · ")
    assert data["keys"] == ["optim.lr"]
    assert [one["runs"] for one in data["sets"]] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [run["name"] for run in data["runs"]][-1] == "diverged"
    run = data["runs"][0]
    assert run["counts"] and run["curves"].keys() >= {"loss/train", "accuracy/test", "lr", "gradient_norm"}
    grid = data["sets"][0]["grids"][data["sets"][0]["grid"]["loss/test"]]
    assert len(grid["step"]) == len(grid["epoch"]) == len(run["curves"]["loss/test"]) == 2, "once an epoch"
    assert run["config"] | data["common"] == {**run["config"], **data["common"]}
    assert "optim.lr" in run["config"] and "batch_size" in data["common"]


@pytest.mark.parametrize(
    ("one", "other", "clear", "words"),
    [
        ([0.912, 0.913, 0.911], [0.902, 0.903, 0.9], True, "does not explain it."),
        ([0.912, 0.918, 0.906], [0.911, 0.904, 0.915], False, "may explain it."),
        ([0.912], [0.902, 0.903], False, "Two runs of each are needed"),
    ],
)
def test_how_sure(known: Known, one: list[float], other: list[float], clear: bool, words: str) -> None:
    verdict = data_of([*seeds(known, 0.1, one), *seeds(known, 0.2, other)])["verdict"]
    assert (verdict["best"], verdict["next"], verdict["clear"]) == (0, 1, clear)
    assert words in verdict["sure"]
    assert (verdict["interval"] is None) == (len(one) == 1)
    if clear:
        low, high = verdict["interval"]
        assert 0 < low < verdict["difference"] < high


def test_the_best_of_many_is_said_to_be_chosen(known: Known) -> None:
    records = [one for lr in (0.1, 0.2, 0.3) for one in seeds(known, lr, [1 - lr, 0.999 - lr, 0.998 - lr])]
    assert data_of(records)["verdict"]["sure"].endswith("Not corrected for having chosen the best of 3.")


def test_one_configuration(known: Known) -> None:
    alone = data_of(seeds(known, 0.1, [0.9]))["verdict"]
    assert alone["next"] is None and alone["interval"] is None and "seed=1,2" in alone["sure"]
    low, high = data_of(seeds(known, 0.1, [0.9, 0.91, 0.92]))["verdict"]["interval"]
    assert low < 0.91 < high


def test_the_lowest_loss_is_best(known: Known) -> None:
    data = data_of([*seeds(known, 0.1, [0.9]), *seeds(known, 0.2, [0.8])], metric="loss")
    assert data["metric"] == {"label": "test loss", "kind": "number", "lower": True}


@pytest.mark.parametrize(
    ("metric", "label", "kind"),
    [("accuracy", "test accuracy", "percent"), ("error", "test error", "percent"), ("time", "time", "duration")],
)
def test_metrics_have_names_and_kinds(known: Known, metric: str, label: str, kind: str) -> None:
    found = data_of(seeds(known, 0.1, [0.9]), metric=metric)["metric"]
    assert (found["label"], found["kind"]) == (label, kind)


def test_a_job_that_waits(known: Known, tmp_path: Path) -> None:
    waiting = RunRecord(tmp_path / "optim.lr=0.4 seed=0", "waiting", {}, ["optim.lr=0.4", "seed=0"])
    data = data_of([*seeds(known, 0.1, [0.9]), waiting])
    assert data["sets"][1] | {"grids": [], "grid": {}} == data["sets"][1], "no curves"
    assert data["runs"][1]["label"] == "optim.lr=0.4 seed=0"
    assert data["runs"][1]["command"] == "resnet-train optim.lr=0.4 seed=0"


def test_long_curves_are_thinned_alike_in_all_seeds(known: Known, tmp_path: Path) -> None:
    records = []
    for seed, length in enumerate((5000, 5000, 1200)):  # the last one was cut
        folder = tmp_path / str(seed)
        folder.mkdir()
        lines = [line_of(step, {"epoch": step / 10, "loss/train": 1 / step}) for step in range(1, length + 1)]
        (folder / "metrics.csv").write_text("\n".join([",".join(("step", *COLUMNS)), *lines]) + "\n")
        records.append(replace(known(config={"seed": seed}), directory=folder))
    data = data_of(records)
    assert data["thinned"] == "at most 1000 rows of each run, evenly spaced; metrics.csv has them all"
    (grid,) = data["sets"][0]["grids"]
    assert len(grid["step"]) == 1000 and grid["step"][0] == 1 and grid["step"][-1] == 5000
    for run, length in zip(data["runs"], (5000, 5000, 1200), strict=True):
        for step, value in zip(grid["step"], run["curves"]["loss/train"], strict=True):
            assert value == (pytest.approx(1 / step, rel=1e-4) if step <= length else None)


@pytest.mark.parametrize("length", [1, 2, 9, 10, 11, 12345])
def test_thin_keeps_both_ends(length: int) -> None:
    found = thin(range(length), 10)
    assert len(found) == len(set(found)) == min(length, 10)
    assert (found[0], found[-1]) == (0, length - 1)
