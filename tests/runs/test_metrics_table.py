"""``metrics.csv``: rows that are on disk at once, and a table that is continued."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from resnet_train.runs.metrics_table import COLUMNS, MetricsTable

HEADER = "step,epoch,lr,loss/train,accuracy/train,gradient_norm,loss/val,accuracy/val,loss/test,accuracy/test\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.csv"


def test_rows_are_on_disk_at_once_with_empty_cells_for_what_was_not_measured(path: Path) -> None:
    table = MetricsTable(path, from_step=0)
    assert path.read_text() == HEADER
    table.write(5, {"epoch": 0.5, "lr": 0.1, "loss/train": 2.302585092994046, "gradient_norm": 1e-7})
    assert path.read_text() == HEADER + "5,0.5,0.1,2.30258509,,1e-07,,,,\n"
    table.write(10, {"epoch": 1.0, "loss/val": 1.25, "throughput/images_per_second": 1234.5})
    assert path.read_text() == HEADER + "5,0.5,0.1,2.30258509,,1e-07,,,,\n10,1,,,,,1.25,,,\n"


def test_a_row_of_the_last_step_completes_it(path: Path) -> None:
    table = MetricsTable(path, from_step=0)
    table.write(5, {"lr": 0.1})
    table.write(10, {"lr": 0.123456789, "loss/val": 1.5})
    table.write(10, {"loss/test": 2.5})
    assert path.read_text() == HEADER + "5,,0.1,,,,,,,\n10,,0.123456789,,,,1.5,,2.5,\n"
    table.write(10, {"lr": 1.0})
    assert path.read_text() == HEADER + "5,,0.1,,,,,,,\n10,,1,,,,1.5,,2.5,\n", "shorter than before"
    table.write(15, {"lr": 0.5})
    assert path.read_text().endswith("\n10,,1,,,,1.5,,2.5,\n15,,0.5,,,,,,,\n")


def rows(table: MetricsTable, *steps: int) -> None:
    for step in steps:
        table.write(step, {"epoch": step / 10, "loss/train": 1 / step, "accuracy/val": math.sqrt(step)})


@pytest.mark.parametrize("tail", ["", "5,0.5,", "20,2,", "25", "20,2,,0.05,,,,,,,,,\n"])
@pytest.mark.parametrize(("from_step", "redone"), [(15, (20, 25)), (12, (15, 20, 25)), (0, (5, 10, 15, 20, 25))])
def test_a_table_continues_as_if_it_had_never_been_cut(
    path: Path, from_step: int, redone: tuple[int, ...], tail: str
) -> None:
    """Rows from after the step are taken out, and what a killed process wrote half."""
    rows(MetricsTable(path, from_step=0), 5, 10, 15, 20, 25)
    whole = path.read_text()
    with path.open("a") as file:
        file.write(tail)
    table = MetricsTable(path, from_step=from_step)
    assert [int(line.partition(",")[0]) for line in path.read_text().splitlines()[1:]] == [
        step for step in (5, 10, 15, 20, 25) if step <= from_step
    ]
    rows(table, *redone)
    assert path.read_text() == whole
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "line", ["5,0.\x001,0.1,,,,,,,", "five,1,0.1,,,,,,,", "5,1", "5,1,0.1,,,,,,,,,", "5,\xff,0.1,,,,,,,"]
)
def test_a_corrupt_row_is_left_out_and_named(path: Path, line: str, caplog: pytest.LogCaptureFixture) -> None:
    path.write_text(f"{HEADER}4,1,0.1,,,,,,,\n{line}\n6,1,0.2,,,,,,,\n", encoding="latin-1")
    table = MetricsTable(path, from_step=9)
    assert path.read_text() == f"{HEADER}4,1,0.1,,,,,,,\n6,1,0.2,,,,,,,\n"
    assert (table.step, table.row) == (6, {"epoch": 1.0, "lr": 0.2})
    assert f"a row of {path} is corrupt and left out: " in caplog.text


def test_the_last_row_is_known_after_reopening_and_can_be_completed(path: Path) -> None:
    rows(MetricsTable(path, from_step=0), 5, 10)
    table = MetricsTable(path, from_step=10)
    assert (table.step, set(table.row)) == (10, {"epoch", "loss/train", "accuracy/val"})
    table.write(10, {"loss/test": 0.5})
    assert path.read_text().splitlines()[-1] == "10,1,,0.1,,,,3.16227766,0.5,"
    empty = MetricsTable(path, from_step=4)
    assert (empty.step, empty.row, path.read_text()) == (-1, {}, HEADER)


def test_equal_runs_write_equal_tables() -> None:
    assert not [column for column in COLUMNS if "second" in column or "time" in column]
