"""What was measured, through a checkpoint and back."""

from __future__ import annotations

import math

import pytest

from resnet_train.runs.history import History


def test_it_comes_back_as_it_was_up_to_a_step() -> None:
    history = History()
    assert History.of(history.state_dict(), steps=99).rows == {}
    history.add(5, {"lr": 0.1, "loss/train": 1 / 3}, at=1e9 + 0.25)
    history.add(10, {"gradient_norm": math.inf}, at=2e9)
    history.add(10, {"lr": 0.2}, at=3e9)
    history.add(15, {"lr": 0.3})
    found = History.of(history.state_dict(), steps=10)
    assert found.rows == {5: {"lr": 0.1, "loss/train": 1 / 3}, 10: {"gradient_norm": math.inf, "lr": 0.2}}
    assert found.times == {5: 1e9 + 0.25, 10: 2e9}
    assert History.of(history.state_dict(), steps=15).times == history.times


def test_a_value_that_is_no_number_is_kept_too() -> None:
    history = History()
    history.add(5, {"gradient_norm": math.nan})
    assert math.isnan(History.of(history.state_dict(), steps=5).rows[5]["gradient_norm"])


def test_something_else_is_an_error() -> None:
    history = History()
    history.add(5, {"lr": 0.1})
    saved = history.state_dict()
    for broken in ({}, {**saved, "tags": []}, {**saved, "steps": saved["steps"][:0]}, {**saved, "values": None}):
        with pytest.raises((KeyError, ValueError, AttributeError)):
            History.of(broken, steps=9)
