"""Each check by itself: what it lets pass, and its message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from resnet_train.config import checks
from resnet_train.config.checks import nearest_name
from resnet_train.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "bounds"),
    [(0, {"at_least": 0}), (1e308, {"above": 0}), (64, {"at_most": 64}), (0.999, {"below": 1}), (-5, {})],
)
def test_numbers_within_their_bounds(value: float, bounds: dict[str, float]) -> None:
    checks.number("key", value, **bounds)


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: checks.number("key", 0, above=0), "key: expected a number > 0, got 0"),
        (lambda: checks.number("key", 1, at_least=0, below=1), "key: expected a number >= 0 and < 1, got 1"),
        (lambda: checks.number("key", float("nan")), "key: expected a number that is finite, got nan"),
        (lambda: checks.number("key", float("-inf")), "key: expected a number that is finite, got -inf"),
        (
            lambda: checks.number("key", 10**400, at_least=1),
            f"key: expected a number >= 1 and <= 1.79769e+308, got {10**400}",
        ),
        (lambda: checks.choice("model.shortcut", "x"), "model.shortcut: expected one of A, B, got 'x'"),
        (
            lambda: checks.choice("precision", "bf15"),
            "precision: expected one of auto, fp32, tf32, bf16, fp16, got 'bf15'; did you mean precision=bf16?",
        ),
        (lambda: checks.duration("key", "0 steps", positive=True), "key: expected more than 0, got 0 steps"),
        (
            lambda: checks.duration("key", "soon"),
            "key: expected a duration such as 5, '5 epochs' or '400 steps', got 'soon'",
        ),
    ],
)
def test_messages(check: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check()
    assert str(error.value) == message


def test_the_nearest_name_or_none() -> None:
    assert nearest_name("resnet21", ["plain20", "resnet20", "resnet1202"]) == "resnet20"
    assert nearest_name("xyz", iter(["resnet20"])) is None
