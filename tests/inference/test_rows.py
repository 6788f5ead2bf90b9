"""Predictions as lines: a table that fits, CSV and JSON that can be read again."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from resnet_train.inference.classifier import Prediction
from resnet_train.inference.rows import Csv, Json, Table, fitted, width_of

CLASSES = ("cat", "a very long name of a class that nobody reads", "暹罗猫", "T-shirt/top")
PREDICTION = Prediction((0.25, 0.5, 0.15, 0.1), CLASSES)
NAME = "photos/2026/a name that is longer than any other one.png"


@pytest.mark.parametrize("columns", [40, 80, 120])
@pytest.mark.parametrize("top", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["a.png", NAME, "猫" * 60])
def test_a_table_fits_the_terminal(columns: int, top: int, name: str) -> None:
    table = Table(CLASSES, top=top, longest_name=width_of(NAME), columns=columns)
    lines = (table.head + table.row(name, PREDICTION, None)).splitlines()
    assert all(width_of(line) <= columns for line in lines)
    assert sum(line.count("50.0") for line in lines) == 1
    assert lines[1 if table.head else 0].rstrip().startswith(("a.png", "photos/", "…", "猫"))


def test_columns_are_aligned() -> None:
    table = Table(("cat", "暹罗猫"), top=2, longest_name=8, columns=80)
    rows = [
        table.row(name, Prediction(values, ("cat", "暹罗猫")), None)
        for name, values in (
            ("a.png", (0.9, 0.1)),
            ("猫猫.png", (0.0, 1.0)),
        )
    ]
    assert [table.head, *rows] == [
        "image     class      %  class      %\n",
        "a.png     cat     90.0  暹罗猫  10.0\n",
        "猫猫.png  暹罗猫 100.0  cat      0.0\n",
    ]


def test_many_classes_stand_below_each_other() -> None:
    table = Table(CLASSES, top=4, longest_name=5, columns=60)
    assert table.head == ""
    assert table.row("a.png", PREDICTION, None).splitlines() == [
        "a.png",
        "  a very long name of a class tha…  50.0",
        "  cat                               25.0",
        "  暹罗猫                            15.0",
        "  T-shirt/top                       10.0",
    ]


def test_away_from_a_terminal_nothing_is_cut() -> None:
    table = Table(CLASSES, top=4, longest_name=len(NAME), columns=None)
    row = table.row(NAME, PREDICTION, None)
    assert row.startswith(f"{NAME}  {CLASSES[1]}  50.0  cat  ")
    assert "\\x1b[2J.png" in table.row("\x1b[2J.png", PREDICTION, None), "control characters are shown"


def test_csv_can_be_read_again() -> None:
    rows = Csv(CLASSES, top=2, everything=True, sorted_too=True)
    head, row = csv.reader([rows.head, rows.row('a, "b"\n.png', PREDICTION, Path("s/a.png"))], strict=True)
    assert head == [
        *("image", "label", "confidence", "label_2", "confidence_2", "file"),
        *(f"p({name})" for name in CLASSES),
    ]
    assert row == ['a, "b"\n.png', CLASSES[1], "0.5", "cat", "0.25", "s/a.png", "0.25", "0.5", "0.15", "0.1"]
    short = Csv(CLASSES, top=1, everything=False, sorted_too=False)
    assert short.head + short.row("a.png", Prediction((1, 0, 0, 0), CLASSES), None) == (
        "image,label,confidence\na.png,cat,1\n"
    )


def test_a_line_is_a_json_object() -> None:
    rows = Json(top=2, everything=True)
    line = rows.row("猫.png", PREDICTION, Path("s/a.png"))
    assert line.endswith("}\n") and line.isascii()
    assert json.loads(line) == {
        "image": "猫.png",
        "label": CLASSES[1],
        "index": 1,
        "confidence": 0.5,
        "top": [{"label": CLASSES[1], "probability": 0.5}, {"label": "cat", "probability": 0.25}],
        "probabilities": [0.25, 0.5, 0.15, 0.1],
        "file": "s/a.png",
    }
    assert set(json.loads(Json(top=1, everything=False).row("a", PREDICTION, None))) == {
        *("image", "label", "index", "confidence", "top")
    }


def test_text_is_fitted_from_either_end() -> None:
    assert fitted("abc", 5) == "abc  "
    assert fitted("abcdef", 4) == "abc…"
    assert fitted("abcdef", 4, keep_end=True) == "…def"
    assert fitted("猫猫猫", 4) == "猫… "
    assert width_of("e\u0301") == 1
