"""The group ``optim``: what wrong values are answered, word for word."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from resnet_train.config.run import Config

# Overrides, and the whole message.
MESSAGES: list[tuple[str, str]] = [
    (
        "optim=adamw optim.name=sgd",
        "optim.name: expected 'adamw', which names the option itself, got 'sgd'; to change the option write optim=sgd",
    ),
    ("optim.lr=0", "optim.lr: expected a number > 0, got 0.0"),
    ("optim.lr=nan", "optim.lr: expected a number > 0, got nan"),
    ("optim.weight_decay=-0.1", "optim.weight_decay: expected a number >= 0, got -0.1"),
    ("optim.momentum=1", "optim.momentum: expected a number >= 0 and < 1, got 1.0"),
    ("optim.momentum=0", "optim.nesterov=true needs optim.momentum above 0, got 0; set optim.nesterov=false"),
    ("optim=adamw optim.beta1=1", "optim.beta1: expected a number >= 0 and < 1, got 1.0"),
    ("optim=adamw optim.beta2=-0.5", "optim.beta2: expected a number >= 0 and < 1, got -0.5"),
    ("optim=adamw optim.eps=0", "optim.eps: expected a number > 0, got 0.0"),
]


@pytest.mark.parametrize(("overrides", "message"), MESSAGES, ids=[overrides for overrides, _ in MESSAGES])
def test_wrong_values_are_answered(overrides: str, message: str, refusal: Callable[[str], str]) -> None:
    assert refusal(overrides) == message


@pytest.mark.parametrize(
    "overrides",
    [
        "optim.momentum=0 optim.nesterov=false optim.weight_decay=0",
    ],
)
def test_values_at_the_edge_are_accepted(overrides: str, checked: Callable[[str], Config]) -> None:
    checked(overrides)
