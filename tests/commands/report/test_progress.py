"""How far an unfinished run is, by its rows and its clock."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_train.commands.report.progress import progress_of
from resnet_train.runs.directory import read_config
from resnet_train.runs.metrics_table import read_rows

CLOCK = {"images": 1600, "train_seconds": 4.0, "earlier_seconds": 5.0, "sessions": 2}


def test_by_the_clock_of_the_newest_checkpoint(cut: Callable[..., Path]) -> None:
    """200 images in batches of 32 are 6.25 steps an epoch; two epochs are 13 steps; nine of them are done."""
    directory = cut()
    config = read_config(directory)
    assert config is not None
    rows = read_rows(directory / "metrics.csv")
    content = {"state": {"step": 7}, "clock": CLOCK}
    found = progress_of(directory, config, rows, content, running=False)
    assert (found.step, found.total_steps, found.epoch, found.epochs) == (9, 13, 1.44, 2.08)
    assert (found.split, found.accuracy) == ("test", rows[7]["accuracy/test"])
    assert (found.images_per_second, found.seconds_left) == (400, None)
    os.utime(directory / "metrics.csv")
    running = progress_of(directory, config, rows, content, running=True)
    assert running.seconds_left == pytest.approx((13 - 9) * 5 / 7, abs=1), "nine steps and what came around them"
    os.utime(directory / "metrics.csv", (0, 0))
    assert progress_of(directory, config, rows, content, running=True).seconds_left == 0


def test_before_the_first_checkpoint(cut: Callable[..., Path]) -> None:
    """By the time between the configuration and the newest row."""
    directory = cut()
    config = read_config(directory)
    assert config is not None
    os.utime(directory / "config.yaml", (1000, 1000))
    os.utime(directory / "metrics.csv", (1003, 1003))
    rows = {step: row for step, row in read_rows(directory / "metrics.csv").items() if step <= 6}
    found = progress_of(directory, config, rows, {"state": {"step": 0}, "clock": CLOCK | {"images": 0}}, running=False)
    assert found.images_per_second == 6 * 32 / 3
    assert (found.split, found.accuracy) == ("train", rows[6]["accuracy/train"])
    assert progress_of(directory, config, {}, {}, running=True).seconds_left is None


def test_the_validation_split_goes_first_and_steps_need_no_epochs(tmp_path: Path) -> None:
    rows = {10: {"accuracy/val": 0.5, "accuracy/test": 0.7}, 20: {"accuracy/test": 0.8}}
    found = progress_of(tmp_path, {"steps": 40, "batch_size": 8}, rows, {}, running=True)
    assert (found.split, found.accuracy) == ("val", 0.5)
    assert (found.step, found.total_steps, found.epoch, found.epochs) == (20, 40, None, None)


@pytest.mark.parametrize(
    "clock", [None, {}, {"images": "many"}, CLOCK | {"train_seconds": float("nan")}, CLOCK | {"images": -1}]
)
def test_a_clock_that_says_nothing(tmp_path: Path, clock: object) -> None:
    found = progress_of(tmp_path, {"steps": 40}, {}, {"state": {"step": 7}, "clock": clock}, running=True)
    assert (found.step, found.images_per_second, found.seconds_left) == (7, None, None)
